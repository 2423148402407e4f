"""What must become of wrong programs and wrong data: the right error, and nothing changed."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyro
import rich.default_styles  # noqa: F401 - its import draws from Python's random numbers
import torch
from fuzzing import FAMILIES, Description, data_of, pair
from spoiling import WAYS, Case

import ppl_vae as pv

QUIET = {"compile": False, "progress": False}
VERBS = {
    "check": lambda case, out: pv.check(case.model, case.guide, case.batch),
    "fit": lambda case, out: pv.fit(case.model, case.guide, case.batch, epochs=1, out=out, **QUIET),
    "evaluate": lambda case, out: pv.evaluate(case.model, case.guide, case.batch, particles=3, out=out, **QUIET),
}


def refused(way: str, description: Description, which: int, verb: str, folder: Path) -> bool:
    """Spoil a pair; tell whether that applies, and raise if a verb does not refuse it in the right words."""
    case = Case(description, which)
    pattern = WAYS[way](case)
    if pattern is None:
        return False
    with unmoved(case.model, case.guide):
        try:
            VERBS[verb](case, folder / "out")
        except (pv.ContractError, ValueError, TypeError) as error:
            found = error
        else:
            raise AssertionError(f"{way}: {verb} raised nothing")
    if not re.search(f"(?s){pattern}", str(found)):
        raise AssertionError(f"{way}: {type(found).__name__}: {found}; wanted {pattern}") from found
    assert not any(folder.iterdir()), f"{way}: {verb} left a file"
    return True


def whole_numbers(description: Description, kind: torch.dtype) -> None:
    """Data that are no floating numbers weigh what they would as such, or are refused by name."""
    model, guide = pair(description)
    x, *others = data_of(description)
    if not x.is_floating_point():
        return
    positive = FAMILIES[description.observed[0].family].kind == "positive"
    given = (x.abs() + positive).to(kind)
    try:
        with unmoved(model, guide):
            pv.check(model, guide, (given, *others))
    except pv.ContractError as error:
        if not str(error).startswith("site 'x': "):
            raise AssertionError(str(error)) from error
        return
    weights = []
    for data in (given, given.to(x.dtype)):
        torch.manual_seed(description.seed)
        weights.append(pv.weigh(model, guide, (data, *others), 2).log_w)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=2e-3)


@contextmanager
def unmoved(*programs) -> Iterator[None]:
    """Raise if parameters, their gradients, random states or Pyro's store are others afterwards."""

    def state():
        tensors = [
            t.nan_to_num(nan=12345.0)
            for p in programs
            if isinstance(p, torch.nn.Module)
            for t in p.state_dict().values()
        ]
        store = sorted(pyro.get_param_store().keys())
        return [torch.get_rng_state(), *tensors], [random.getstate(), str(np.random.get_state()), store]  # noqa: NPY002

    before, plain = state()
    try:
        yield
    finally:
        after, plain_after = state()
        assert all(map(torch.equal, before, after)), "parameters or torch's random state moved"
        assert plain == plain_after, "a random state or Pyro's store moved"
        modules = [p for p in programs if isinstance(p, torch.nn.Module)]
        assert all(p.grad is None for m in modules for p in m.parameters()), "gradients were left"
