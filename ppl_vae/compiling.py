"""Run a function of Pyro programs captured and compiled where that pays, as it is otherwise."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK

from ppl_vae.batches import Batch
from ppl_vae.flops import Flops
from ppl_vae.lowering import lower
from ppl_vae.parallel import LostWorker
from ppl_vae.programs import Programs
from ppl_vae.remarks import remark
from ppl_vae.replaying import Replayed, record
from ppl_vae.verifying import Redraw, fault
from ppl_vae.watching import Watch

# What captures and compiles takes seconds to import, and is imported where it is used.
if TYPE_CHECKING:
    from ppl_vae.capture import Function, Graph

__all__ = ["Compiled", "check_compile"]

# What it costs to capture and compile what the compiler's disk cache does not know, and what a run then saves on a CPU:
# Pyro's and autograd's own time and, growing with the work, memory's. Round figures from benchmarks/steps.py.
SECONDS_TO_COMPILE = 15.0
SECONDS_SAVED = 3e-3
SECONDS_SAVED_PER_FLOP = 5e-12

MOST_GRAPHS = 8
MOST_COUNTED = 100
MOST_SIZES = 8
MISSES_BEFORE_A_WORD = 20


class Compiled:
    """A function of programs and a batch that becomes a graph, compiled, when it runs often.

    Each combination of shapes (the number of rows apart), types, modes and Python numbers that the programs read needs
    a graph of its own. There are never more than eight; what comes then runs as it is. So does, with a warning, what
    cannot be captured or was compiled wrongly (a graph's first run of each size is held to an eager one). Without a C++
    compiler graphs are run uncompiled.

    Args:
        function: see `capture`.
        programs: whose tensors it uses.
        readers: the programs and the objective themselves, whose Python numbers are watched.
        compile: True for a graph from the first run on, ``"auto"`` where it pays, or False.
        planned: how often the function will run, where that is known. Automatically, it becomes a graph after the first
            run if so many save more time than compiling takes; without a plan, once it has run so often that they would
            have.
        redraw: see `ppl_vae.verifying.fault`, which holds each graph to the function, once for a size of batches.

    Attributes:
        graphs: those in use, by what they stand for.
        reason: why the function runs as it is, if it cannot be captured, or was compiled wrongly.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> function = Compiled(lambda tensors, batch: net(batch[0]).sum(), Programs(net, net), compile=False)
        >>> torch.equal(function((torch.ones(3, 2),)), net(torch.ones(3, 2)).sum())
        True
        >>> function.graphs
        {}
    """

    def __init__(
        self,
        function: "Function",
        programs: Programs,
        readers: Sequence[Any] = (),
        compile: bool | str = "auto",  # noqa: A002 - the public name
        planned: int | None = None,
        redraw: Redraw = lambda batch, trial: batch,
    ):
        self.function, self.programs, self.readers = function, programs, readers
        self.compile, self.planned, self.redraw = compile, planned, redraw
        self.graphs: dict[Any, list[Graph]] = {}
        self.reason: str | None = None
        self._watch: Watch | None = None
        self._patience: float | None = None if compile == "auto" else 1
        self._runs: Counter = Counter()
        self._earlier: Mapping[str, Any] | None = None
        self._kind: Any = None
        self._misses = 0
        self._wrong = ""
        self._last: tuple[Any, Any] = (None, None)

    def __call__(self, batch: Batch) -> Any:
        """Return what the function returns."""
        graph = None if self.compile is False or self.reason else self._graph(batch)
        if graph is not None:
            batch = tuple([part.contiguous() for part in batch])
            held = batch[0].shape[0] in graph.held or self._hold(graph, batch)
            return graph(batch) if held else self.as_it_is(batch)
        if self.compile == "auto" and self._patience is None:
            return self._counted(batch)
        return self.as_it_is(batch)

    def as_it_is(self, batch: Batch) -> Any:
        """Return what the function returns, without a graph."""
        with pyro.validation_enabled(False), _casts_made_anew(batch[0].device.type):
            return self.function(self.programs.tensors(), batch)

    def distrust(self, reason: str) -> None:
        """Drop all graphs and make no more, with a warning."""
        self.forget()
        self.reason = reason
        self._say(reason)

    def _hold(self, graph: "Graph", batch: Batch) -> bool:
        """Tell whether a graph does what an eager run does, found out once for each of the first sizes of a batch."""
        if len(graph.held) == MOST_SIZES:
            return True
        try:
            reason = fault(graph, self.as_it_is, self.programs, batch, self.redraw)
        except LostWorker:
            raise
        except Exception as error:  # it needs more memory, or what graphs alone can do
            first = (str(error).strip().splitlines() or [""])[0][:300]
            remark(f"compile: a graph is not held to an eager run, which failed: {type(error).__name__}: {first}")
            reason = ""
        if reason:
            self._wrong = (
                f"a graph's numbers are not those of an eager run with the same draws: {reason}. Either torch's "
                "compiler is at fault, or the programs follow something that is in no tensor of theirs"
            )
            self.distrust(self._wrong)
        if reason is not None:  # where nothing was finite, nothing is known
            graph.held.add(batch[0].shape[0])
        return not reason

    def forget(self) -> None:
        """Drop all graphs, as the function is another one now."""
        self.graphs, self._watch, self._last = {}, None, (None, None)

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return sum(map(len, self.graphs.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return which graphs there are and what decides on more, as far as the present programs and shapes go.

        A graph and an eager run differ in rounding, and so do graphs made for other numbers of rows: whoever goes on
        elsewhere, bit for bit, needs the same graphs at the same time.
        """
        if self._earlier:
            return dict(self._earlier)
        runs = {rows: n for (kind, rows), n in self._runs.items() if _same(kind, self._kind)}
        latest = next(reversed(self.graphs.values()), ())
        rows, held = [graph.rows for graph in latest], [sorted(graph.held) for graph in latest]
        return {"patience": self._patience, "rows": rows, "held": held, "runs": runs, "wrong": self._wrong}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; a function that has graphs already goes on with them."""
        if not self.graphs:
            self._patience, self._earlier = state["patience"], dict(state)
            if wrong := state.get("wrong"):
                self._wrong = wrong
                self.distrust(wrong)

    def _go_on(self, batch: Batch) -> None:
        """Make the graphs that there were, of stand-ins with as many rows, and count on."""
        earlier, self._earlier = self._earlier, None
        for rows, held in zip_longest(earlier["rows"], earlier.get("held", ()), fillvalue=()):
            graph = self._add_or_give_up(tuple([p[:1].expand(rows, *p.shape[1:]).contiguous() for p in batch]))
            if graph is not None:
                graph.held.update(held)
        key = self._key(batch)
        self._runs.update({(key if self.graphs else key[1:], rows): n for rows, n in earlier["runs"].items()})

    def _graph(self, batch: Batch) -> "Graph | None":
        """Return the graph that holds for a batch, a new one if that pays, or None."""
        if _PYRO_STACK or self._parameters_replaced():  # neither of which a key could tell
            self._say("a Pyro handler is open around it, or a tensor in Pyro's store has been replaced")
            return None
        batch = tuple([part.contiguous() for part in batch])
        if self._earlier:
            self._go_on(batch)
        key, rows = self._key(batch), batch[0].shape[0]
        if _same(key, self._last[0]) and self._last[1].serves(rows):  # faster than a look-up
            self._misses = 0
            return self._last[1]
        for graph in self.graphs.get(key, ()):
            if graph.serves(rows):
                self._misses, self._last = 0, (key, graph)
                return graph
        if len(self._runs) > MOST_COUNTED:
            self._runs.clear()
        # Until there is a graph, it is unknown which of the changes in Python matter (a draw that is kept does not).
        self._kind = key if self.graphs else key[1:]
        self._runs[self._kind, rows] += 1
        if not self._pays(self._runs[self._kind, rows]):
            self._notice_miss(key)
            return None
        return self._add_or_give_up(batch)

    def _add_or_give_up(self, batch: Batch) -> "Graph | None":
        from ppl_vae.capture import CannotCapture

        try:
            return self._add(batch)
        except CannotCapture as error:
            self.distrust(f"it cannot be captured as a graph: {error}")
            return None

    def _key(self, batch: Batch) -> Any:
        if self._watch is None:
            self._watch = self._new_watch()
        parts = tuple([(part.shape[1:], part.dtype, part.device) for part in batch])
        kind = batch[0].device.type
        cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        return self._watched(), parts, cast, torch.get_default_dtype()

    def _watched(self) -> Any:
        try:
            now = self._watch.now()
            hash(now)
        except (KeyError, TypeError):  # an attribute is gone, or holds no number any more
            self._watch = self._new_watch()
            return self._watch.now()
        return now

    def _new_watch(self) -> Watch:
        return Watch(list(self.programs.modules.values()), *self.readers)

    def _parameters_replaced(self) -> bool:
        """Tell whether Pyro's store has other tensors than those that were found at param sites."""
        known = pyro.get_param_store()._params
        return any(known.get(site, tensor) is not tensor for site, tensor in self.programs.at_sites.items())

    def __getstate__(self) -> dict[str, Any]:
        """Return what can be copied: graphs are made anew."""
        fresh = {"graphs": {}, "_watch": None, "_last": (None, None), "_runs": Counter()}
        return {**vars(self), **fresh}

    def _pays(self, runs: int) -> bool:
        if self._patience is None or self.count >= MOST_GRAPHS:
            return False
        if self.count == 0 and (self.planned is not None or self.compile is True):
            return self.compile is True or self.planned >= self._patience
        # A kind that came once may not come again: wait until it has.
        return runs > self._patience

    def _add(self, batch: Batch) -> "Graph":
        from ppl_vae.capture import capture

        # Anew, as a module may have taken another's place.
        self._watch = self._new_watch()
        # What a GPU replays has one size.
        on_gpu = batch[0].device.type == "cuda"
        with _casts_made_anew(batch[0].device.type):
            graph = capture(self.function, self.programs, batch, not on_gpu, self._watch)
        lower(graph)
        if on_gpu:
            graph.run = Replayed(graph.run, graph.fixed, record)
        graph.watch, graph.rows = self._watch, batch[0].shape[0]
        self.graphs.setdefault(self._key(batch), []).append(graph)
        return graph

    def _counted(self, batch: Batch) -> Any:
        """Run as it is, and find from the work done after how many runs a graph would have paid."""
        with Flops() as flops:
            result = self.as_it_is(batch)
        on_cpu = batch[0].device.type == "cpu"
        work = flops.total * SECONDS_SAVED_PER_FLOP if on_cpu else 0.0
        self._patience = SECONDS_TO_COMPILE / (SECONDS_SAVED + work)
        return result

    def _notice_miss(self, key: Any) -> None:
        """Say so when graphs exist and none fits any more."""
        self._misses += 1
        if self.graphs and self._misses == MISSES_BEFORE_A_WORD:
            remark(
                f"compile: {MISSES_BEFORE_A_WORD} batches in a row ran eagerly, since what the graphs hold fixed has "
                f"changed: {self._what_changed(key)}"
            )

    def _what_changed(self, key: Any) -> str:
        if key in self.graphs:
            return (
                "the number of rows, which the programs read as a number of Python (x.shape[0] stays open, len(x) not)"
            )
        latest, (graph, *_) = next(reversed(self.graphs.items()))
        try:
            changed = graph.watch.changed(latest[0])  # by its own watch: another one may look at other things
        except KeyError as error:
            changed = [f"{error.args[0]}, which is gone"]
        if not changed:
            return "shape or type of the data, or autocast"
        return f"{', '.join(changed[:3])}; a number that changes in training belongs in a buffer, a tensor without axes"

    def _say(self, reason: str) -> None:
        """Tell once why something runs eagerly that might be compiled."""
        if reason not in self.programs.said:
            self.programs.said.add(reason)
            remark(f"compile: it runs eagerly, since {reason}. Pass compile=False to have it so without a word")


def _same(key: Any, other: Any) -> bool:
    try:
        return key == other
    except (RuntimeError, ValueError):  # a tensor or an array where a number was
        return False


def _casts_made_anew(kind: str) -> AbstractContextManager:
    """Have autocast cast parameters in every run; its cache would outlive their update."""
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)


def check_compile(compile: Any) -> None:  # noqa: A002 - the public name
    """Raise if the option is unknown.

    Example:
        >>> check_compile("yes")
        Traceback (most recent call last):
        ...
        ValueError: compile: expected 'auto', True or False, found 'yes'
    """
    if not (isinstance(compile, bool) or compile == "auto"):
        raise ValueError(f"compile: expected 'auto', True or False, found {compile!r}")
