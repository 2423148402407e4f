"""The graph of each program, drawn by Pyro's ``render_model``: ``python -m docs.generating.graphs`` makes all anew.

Pictures are committed beside the text that they are drawn of, so that a build needs no ``dot`` and notices when a
program has changed.
"""

import inspect
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import render_model
from torch import Tensor, nn

from docs.generating.writing import DOCS
from ppl_vae import pairing, zoo
from ppl_vae.batches import Batch, as_batch
from ppl_vae.distributions import Pushforward
from ppl_vae.programs import forked_random_state

FOLDER = DOCS / "zoo" / "graphs"
PARTNER = {"exact": "linear_gaussian", "ladder": "hierarchical", "nearest_code": "vq_vae", "semi_amortized": "vae"}
N = 5


class Data(dist.Delta):
    """What graphs call the distribution of what is given."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros, for values of any type."""
        return torch.zeros(self.batch_shape)


@cache
def source(kind: str, name: str) -> str:
    """Return the graph of a program in the language of ``dot``.

    Example:
        >>> "z -> x" in source("models", "vae"), "x -> z" in source("guides", "normal")
        (True, True)
    """
    # Pyro asks densities what they depend on; that of a network's output is not known, what it depends on is.
    with forked_random_state(0), mock.patch.object(Pushforward, "log_prob", dist.Delta.log_prob):
        program, batch = small(kind, name)
        return render_model(with_data(program, batch), model_args=batch, render_distributions=True).source


def small(kind: str, name: str) -> tuple[nn.Module, Batch]:
    """Return a small program with a batch for it."""
    if name in PARTNER and kind == "guides":
        pair = pairing.make(PARTNER[name], name)
        return pair.guide, as_batch(pair.data())
    program = zoo.build(zoo.find(kind, name), pairing.SMALL)
    given = {name: of(N, pairing.SMALL["x_dim"]) for name, of in pairing.GIVEN.items()} | {"index": torch.arange(N)}
    batch = tuple(given.get(name, torch.ones(N, pairing.SMALL["x_dim"])) for name in arguments(program))
    if kind == "models":  # data of its own, which its likelihood supports
        trace = poutine.trace(poutine.uncondition(program)).get_trace(*batch)
        batch = (trace.nodes["x"]["value"], *batch[1:])
    return program, batch


def with_data(program: nn.Module, batch: Batch) -> Callable[..., Any]:
    """Return a program in whose graph data that are given to it, and that it does not generate, are nodes too."""
    drawn = poutine.trace(program).get_trace(*batch).nodes
    names = arguments(program)

    def shown(*batch: Tensor) -> None:
        given = list(batch)
        with poutine.block(hide=["data"]), pyro.plate("data", len(batch[0]), dim=-1):
            for i, (name, part) in enumerate(zip(names, batch, strict=True)):
                if name not in drawn:
                    given[i] = pyro.sample(name, Data(part, event_dim=part.dim() - 1), obs=part)
        program(*given)

    return shown


def arguments(program: nn.Module) -> list[str]:
    """Return the names of what a program takes of a batch."""
    parameters = inspect.signature(program.forward).parameters
    return [name for name, p in parameters.items() if p.kind is not p.VAR_POSITIONAL]


def checked(kind: str, name: str) -> Path:
    """Return the drawing of a program.

    Raises:
        ValueError: there is none, or it shows another program than that of today.
    """
    drawing = FOLDER / f"{kind}-{name}.svg"
    text = drawing.with_suffix(".dot")
    again = f"make it: python -m docs.generating.graphs {kind}/{name} (which needs Graphviz's dot)"
    if not drawing.is_file() or not text.is_file():
        raise ValueError(f"{drawing.name}: there is no graph of this program; {again}")
    if text.read_text() != source(kind, name):
        raise ValueError(f"{drawing.name}: the program has changed since its graph was drawn; {again}")
    return drawing


def programs(chosen: list[str]) -> list[tuple[str, str]]:
    """Return kind and name of the programs that a person names as ``models/vae``, or of all."""
    every = [(kind, name) for kind in ("models", "guides") for name in zoo.discover(kind)]
    return [names for names in every if not chosen or "/".join(names) in chosen]


def main() -> None:
    """Draw graphs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for kind, name in programs(sys.argv[1:]):
        path = FOLDER / f"{kind}-{name}.dot"
        path.write_text(source(kind, name))
        subprocess.run(["dot", "-Tsvg", "-o", path.with_suffix(".svg"), path], check=True)
        print(path.with_suffix(".svg").name)


if __name__ == "__main__":
    main()
