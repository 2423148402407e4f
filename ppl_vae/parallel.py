"""Several processes on one batch: rows shared out, noise drawn in common, gradients averaged."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.distributed
from torch import SymInt, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.batches import Batch

__all__ = ["LostWorker", "SharedNoise", "Workers", "launched", "workers"]

# They draw again until a value is accepted: how many random numbers they take depends on their parameters.
BY_REJECTION = {"_standard_gamma", "_sample_dirichlet", "poisson", "binomial"}


class LostWorker(RuntimeError):
    """Another process has ended, so that this one cannot go on."""


@contextmanager
def _heard() -> Iterator[None]:
    """Say in plain words that another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise LostWorker(
            "another process has ended, or cannot be reached; its own message is above or in its log"
        ) from error


@dataclass(frozen=True)
class Workers:
    """The processes that train together.

    All of them see the same batches in the same order, and have the same parameters and random
    state; each takes its part of the rows. A batch whose rows cannot be shared out evenly is
    computed by all.

    Args:
        rank: which of them this one is, from 0.
        size: how many there are.

    Reference: S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel
    Training", VLDB 2020, https://arxiv.org/abs/2006.15704.

    Example:
        >>> Workers(rank=1, size=2).part((torch.arange(6),))
        (tensor([3, 4, 5]),)
        >>> Workers(rank=1, size=2).part((torch.arange(5),)) is None
        True
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch | None:
        """Return this worker's rows of a batch, or None if all are to compute all of it."""
        rows, rest = divmod(len(batch[0]), self.size)
        if rest or rows == 1:  # an axis of one row could be anything
            return None
        return tuple(part[self.rank * rows : (self.rank + 1) * rows] for part in batch)

    def mean(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the mean of each tensor over the workers; all get the same numbers."""
        there = [tensor for tensor in tensors if tensor is not None]
        means: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in there):  # in one order everywhere
            alike = [tensor for tensor in there if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            with _heard():
                torch.distributed.all_reduce(flat)
            parts = (flat / self.size).split([tensor.numel() for tensor in alike])
            means |= {id(tensor): part.view_as(tensor) for tensor, part in zip(alike, parts, strict=True)}
        return [None if tensor is None else means[id(tensor)] for tensor in tensors]

    def gathered(self, values: Tensor) -> Tensor:
        """Return the workers' values for their rows, ``(B / size, ...)``, one after the other."""
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.size)]
        with _heard():
            torch.distributed.all_gather(parts, values)
        return torch.cat(parts)

    def start_alike(self, tensors: Mapping[str, Tensor]) -> None:
        """Give all workers the leading one's tensors, and see that their random states are one.

        Raises:
            RuntimeError: they draw different random numbers.
        """
        for tensor in tensors.values():
            torch.distributed.broadcast(tensor.detach(), 0)
        if self.different({"random state": torch.get_rng_state().to(next(iter(tensors.values())).device)}):
            raise RuntimeError(
                "the processes have different random states; call torch.manual_seed with one seed in all"
            )

    def different(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Return the name of a tensor that is not the same in all workers, or None; asked once, as it waits for all."""
        if not tensors:
            return None
        everywhere = self.gathered(torch.stack([*map(_digest, tensors.values())]).unsqueeze(0))
        differs = (everywhere != everywhere[0]).any(0).tolist()
        return next((name for name, d in zip(tensors, differs, strict=True) if d), None)

    def told(self, value: Any) -> Any:
        """Return the leading one's value on every worker."""
        values = [value]
        with _heard():
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def agree(self, problem: str | None) -> None:
        """Raise on every worker if the leading one has a problem.

        Raises:
            RuntimeError: on those that do not lead.
        """
        told = self.told(problem)
        if told is not None and not self.leads:
            raise RuntimeError(f"the leading process stopped: {told}")


def _digest(tensor: Tensor) -> Tensor:
    """Return one number that hardly two tensors share."""
    flat = tensor.detach().double().reshape(-1)
    return (flat * torch.arange(1, len(flat) + 1, device=flat.device)).sum()


@contextmanager
def launched() -> Iterator[Workers | None]:
    """Join the other processes that ``torchrun`` has started, if it has started this one.

    Example:
        >>> with launched() as together:
        ...     together is None
        True
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # Its functions have the group of their import as a default, and torch's optimizers import it: imported with the
    # group there, it would keep the group's threads alive into Python's end, where they abort the process.
    import_module("torch.distributed.nn.functional")
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        yield workers()
    except LostWorker:
        before = _stopped  # so that a launcher's signal does not end this process before it has said what happened
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        torch.distributed.destroy_process_group()


def _stopped(number: int, frame: Any) -> None:
    raise LostWorker("the launcher stopped this process, as it does when another one has ended")


def workers() -> Workers | None:
    """Return the processes of a run under ``torch.distributed``, or None where there is one alone.

    Raises:
        RuntimeError: several processes have been launched, and have not joined.

    Example:
        >>> workers() is None
        True
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RuntimeError(
                f"{os.environ['WORLD_SIZE']} processes were launched (WORLD_SIZE), and each would train alone; put the "
                "script's work in `with ppl_vae.parallel.launched():`, or unset WORLD_SIZE to have it so"
            )
        return None
    size = torch.distributed.get_world_size()
    return Workers(torch.distributed.get_rank(), size) if size > 1 else None


class SharedNoise(TorchDispatchMode):
    """Draw noise for the rows of all workers and keep that of one's own.

    Workers with the same random state then draw what one process alone would draw for the whole
    batch, and still have the same random state afterwards. In a graph, the number of rows has a name and
    is found on any axis; eagerly it is a number like others, and where it might be another, that is an error.

    Args:
        workers: who share.
        particles: K, the size of the axis before the data's.
        rows: of this worker.

    Raises:
        NotImplementedError: inside, something is drawn by rejection, or on an axis that merges data with
            something else.
        ValueError: sizes leave open which axis of a draw is that of the data.

    Example:
        >>> with SharedNoise(Workers(rank=1, size=2), particles=3, rows=4):
        ...     torch.manual_seed(0)
        ...     mine = torch.rand(3, 4, 5)
        <torch._C.Generator ...>
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(mine, torch.rand(3, 8, 5)[:, 4:])
        True
    """

    def __init__(self, workers: Workers, particles: int, rows: int | SymInt):
        super().__init__()
        self.workers, self.particles, self.rows = workers, particles, rows

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        shape = args[0].shape if isinstance(args[0], Tensor) else args[0]
        axes = None if isinstance(shape, int | float) else self._axes(shape)
        if axes is None:  # nothing of the data's
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in BY_REJECTION:
            raise NotImplementedError(
                f"{name} draws by rejection, which takes as many random numbers as its parameters ask for, so that "
                "processes would part ways; train such a model in one process"
            )
        wide = [self._widened(arg, axes, shape) for arg in args]
        drawn = func(*wide, **kwargs)
        if func._schema.is_mutable:
            return args[0].copy_(self._mine(drawn, axes))
        if isinstance(drawn, Tensor):
            return self._mine(drawn, axes)
        return type(drawn)(self._mine(part, axes) for part in drawn)

    def _axes(self, shape: Sequence[Any]) -> tuple[int, bool] | None:
        """Return where the data are, and whether that axis holds all particles of all data; None if nowhere."""
        of_data = [i for i, size in enumerate(shape) if self._is(size, self.rows)]
        after_particles = [i for i in of_data if i and self._is(shape[i - 1], self.particles)]
        if after_particles:
            return after_particles[0], False
        if not of_data and len(shape) and self._is(shape[0], self.particles * self.rows):
            return 0, True
        find = self._by_name if isinstance(self.rows, SymInt) else self._by_number
        return find(shape, of_data)

    def _by_name(self, shape: Sequence[Any], of_data: list[int]) -> tuple[int, bool] | None:
        if len(of_data) == 1:
            return of_data[0], False
        if any(isinstance(size, SymInt) for size in shape):
            raise NotImplementedError(
                f"noise of shape {tuple(shape)} has the data merged with something else on an axis, or on several "
                "axes, so that it cannot be shared out; keep data on one axis of their own, or train in one process"
            )
        return None

    def _by_number(self, shape: Sequence[int], of_data: list[int]) -> tuple[int, bool] | None:
        if of_data == [0] and self.rows != self.particles:
            return 0, False
        merged = len(shape) and shape[0] > self.rows and shape[0] % self.rows == 0 and shape[0] != self.particles
        if of_data or merged:
            raise ValueError(
                f"noise of shape {tuple(shape)} leaves open where the {self.rows} data of this process are; pass "
                "compile=True, where their number is no mere number, choose another batch_size, or keep data on an "
                "axis of their own, the first or next to the particles'"
            )
        return None

    def _is(self, size: Any, wanted: Any) -> bool:
        # In a graph a number is no number of rows, even if it is the same one now.
        return isinstance(size, SymInt) == isinstance(wanted, SymInt) and bool(size == wanted)

    def _widened(self, arg: Any, axes: tuple[int, bool], shape: Sequence[Any]) -> Any:
        axis, flat = axes
        if isinstance(arg, Tensor):
            if arg.dim() != len(shape):
                return arg
            parts = arg.reshape(self.particles, self.rows, *arg.shape[1:]) if flat else arg
            wide = torch.cat([parts] * self.workers.size, dim=1 if flat else axis)
            return wide.flatten(0, 1) if flat else wide
        if arg is shape:
            return [n * self.workers.size if i == axis else n for i, n in enumerate(shape)]
        return arg

    def _mine(self, drawn: Tensor, axes: tuple[int, bool]) -> Tensor:
        axis, flat = axes
        if flat:
            drawn = drawn.reshape(self.particles, self.workers.size * self.rows, *drawn.shape[1:])
        mine = drawn.narrow(1 if flat else axis, self.workers.rank * self.rows, self.rows)
        return mine.flatten(0, 1) if flat else mine.clone()
