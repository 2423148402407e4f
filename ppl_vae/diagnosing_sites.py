"""Look at each site of programs that run, and say what is no finite number there."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppl_vae import contract
from ppl_vae.contract import Site
from ppl_vae.programs import Program, modules_of, reached
from ppl_vae.remarks import WITHIN
from ppl_vae.weighing import scaled

__all__ = ["Fault", "Looking", "at_datum", "failure", "in_short", "in_words"]

POSITIVE = (constraints.positive, constraints.nonnegative, constraints.lower_cholesky, constraints.positive_definite)


def in_short(number: Tensor) -> str:
    """Write a number.

    Example:
        >>> in_short(torch.tensor(torch.nan)), in_short(torch.tensor(12345.678))
        ('nan', '1.235e+04')
    """
    return f"{number.item():.4g}"


def at_datum(datum: int | None, rows: Tensor | None) -> str:
    """Say which datum it is, in a batch and in its data set.

    Example:
        >>> at_datum(2, torch.tensor([7, 3, 9]))
        ' at datum 2 (row 9 of the data set)'
    """
    if datum is None:
        return ""
    return f" at datum {datum}" + ("" if rows is None else f" (row {int(rows[datum])} of the data set)")


@dataclass(frozen=True)
class Fault:
    """What is not finite at a site, or leads to it."""

    site: str
    what: str
    number: str
    repair: str
    particle: int | None
    datum: int | None


class Looking(Messenger):
    """Looks at each site of programs as it comes, and changes nothing.

    Args:
        roles: the programs, by what messages call them.

    Attributes:
        faults: found so far.
        current: the site that is being drawn, and where it is.
    """

    def __init__(self, roles: Mapping[str, Program]):
        super().__init__()
        self.owners = {role: _owners(program) for role, program in roles.items()}
        self.faults: list[Fault] = []
        self.current: tuple[str, Site] | None = None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if contract.has_density(msg):
            self.current = (self._place(msg["name"]), msg)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if contract.has_density(msg):
            with torch.no_grad(), suppress(NotImplementedError, KeyError):  # implicit guides, flows without inverse
                self.faults += _faults(self.current[0], msg)
            self.current = None

    def first(self, data: set[int]) -> Fault | None:
        """Return the first fault, at one of these data if there is any there."""
        among = [fault for fault in self.faults if fault.datum in data or fault.datum is None]
        return next(iter(among or self.faults), None)

    def _place(self, name: str) -> str:
        """Say in which program a site is, and on which line of a person's own."""
        frame, line, role = sys._getframe(1), None, ""
        while frame is not None and not role:
            if line is None and not frame.f_code.co_filename.startswith((*WITHIN, "<")):
                line = f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
            role = next((role for role, owners in self.owners.items() if _owned(frame, owners)), "")
            frame = frame.f_back
        return f"{role}: site '{name}'" + ("" if line is None or not role else f" ({line})")


def _owners(program: Program) -> set[int]:
    """Return, by identity, the modules that a program is or refers to, and the code of its functions."""
    functions = (getattr(thing, "__func__", thing) for thing in reached(program))
    codes = {id(f.__code__) for f in functions if hasattr(f, "__code__")}
    return codes | {id(module) for module in modules_of(program) if not hasattr(program, "__func__")}


def _owned(frame: FrameType, owners: set[int]) -> bool:
    return id(frame.f_code) in owners or id(frame.f_locals.get("self")) in owners


def _faults(place: str, site: Site) -> list[Fault]:
    """Return what is wrong at a site: its first parameter that is, else its value, else its log density."""
    fn, value = site["fn"], site["value"]
    parameters = [*_parameters(fn)]  # before a density adds those that it computes
    density = scaled(site["name"], site, linear=True)
    drawn = not site["is_observed"]
    spread = value.isfinite().reshape(*value.shape[: value.dim() - fn.event_dim], -1).all(-1)
    bad = ~density.isfinite() | (~spread if drawn else torch.zeros_like(spread))
    if not bad.any():
        return []
    index = tuple(bad.nonzero()[0].tolist())
    particle, datum = (index[-2] if len(index) > 1 else None), (index[-1] if index else None)
    kind = contract.kind(fn)
    for label, tensor, constraint, right in parameters:
        wrong = _wrong(tensor, constraint)
        near = _here(wrong, right, index)
        if near.any():
            number = in_short(_here(tensor, right, index)[near].flatten()[0])
            return [Fault(place, f"{label} of {kind}", number, _repair(label, constraint, number), particle, datum)]
    if not spread.expand_as(bad)[index]:
        number = in_short(_here(value, fn.event_dim, index)[~_here(value, fn.event_dim, index).isfinite()].flatten()[0])
        repair = "what it was drawn with is finite: its numbers are too large"
        return [Fault(place, f"value drawn from {kind}", number, repair, particle, datum)]
    number = in_short(density.expand_as(bad)[index])
    return [Fault(place, f"log density under {kind}", number, _unlikely(site, parameters, index), particle, datum)]


def _parameters(fn: Any) -> Iterator[tuple[str, Tensor, Any, int]]:
    """Yield the parameters that a distribution holds: name, tensor, constraint, and axes right of the data's."""
    inner = contract.innermost(fn)
    declared = fn.event_dim - inner.event_dim if inner is not fn else 0
    known = getattr(inner, "arg_constraints", {})
    for name, tensor in vars(inner).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not name.startswith("_"):
            constraint = known.get(name)
            yield name, tensor, constraint, declared + getattr(constraint, "event_dim", 0)
        elif isinstance(tensor, Distribution):
            for label, part, constraint, right in _parameters(tensor):
                yield f"{label} of the {contract.kind(tensor)} in it", part, constraint, max(right, fn.event_dim)


def _wrong(tensor: Tensor, constraint: Any) -> Tensor:
    """Tell for each number whether it is none, or outside of what a distribution allows."""
    wrong = ~tensor.isfinite()
    if constraint in POSITIVE[:2]:
        wrong |= ~(tensor > 0)
    return wrong


def _here(tensor: Tensor, right: int, index: tuple[int, ...]) -> Tensor:
    """Return the part of a tensor at a particle and a datum, whose axes may be missing or of size one."""
    axes = tensor.shape[: max(tensor.dim() - right, 0)]
    of = index[len(index) - len(axes) :] if len(axes) <= len(index) else (0,) * (len(axes) - len(index)) + index
    return tensor[tuple(0 if size == 1 else i for size, i in zip(axes, of, strict=True))]


def _repair(label: str, constraint: Any, number: str) -> str:
    if constraint in POSITIVE and number in ("0", "-0"):
        return "put a floor under it (softplus(...) + 1e-4, as the heads of ppl_vae.nets have it)"
    if constraint in POSITIVE:
        return "keep what it is made of from overflowing: softplus for exp, a floor, a smaller learning rate, clip_norm"
    if label in ("logits", "probs"):
        return "keep what it is made of from growing: a smaller learning rate, clip_norm, or weight decay"
    return "look at the network that gives it: its inputs and weights are finite, so an operation in it overflows"


def _unlikely(site: Site, parameters: list[tuple[str, Tensor, Any, int]], index: tuple[int, ...]) -> str:
    """Say why a density is none although all that it is made of is finite."""
    fn, value = site["fn"], site["value"]
    with suppress(NotImplementedError):  # not every distribution knows its support
        if not _here(fn.support.check(value), 0, index).all():
            kind = contract.kind(fn)
            return f"the value lies outside the support of {kind}; choose another likelihood, or other data"
    parts = {"value": _here(value, fn.event_dim, index)}
    parts |= {label: _here(tensor, right, index) for label, tensor, _, right in parameters}
    ends = [f"{label} from {in_short(part.min())} to {in_short(part.max())}" for label, part in parts.items()]
    return f"it overflows, of finite numbers ({', '.join(ends)}); put a floor under scales, or keep values in bounds"


def in_words(fault: Fault, rows: Tensor | None) -> str:
    """Say what a fault is."""
    particle = "" if fault.particle is None else f", particle {fault.particle}"
    return f"{fault.site}: {fault.what} is {fault.number}{at_datum(fault.datum, rows)}{particle}; {fault.repair}"


def failure(error: Exception, looking: Looking, rows: Tensor | None) -> str:
    """Say what was wrong where a program raised."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    raised = f"{type(error).__name__}: {first}"
    if looking.faults:
        return f"{in_words(looking.faults[0], rows)} (then the programs fail: {raised})"
    if looking.current is None:
        return f"the programs fail on this batch: {raised}"
    place, site = looking.current
    for label, tensor, constraint, right in _parameters(site["fn"]):
        wrong = _wrong(tensor.detach(), constraint)
        if wrong.any():
            index, data = wrong.nonzero()[0].tolist(), tensor.dim() - right
            number, datum = in_short(tensor[tuple(index)]), index[data - 1] if data else None
            of = f"{label} of {contract.kind(site['fn'])}"
            fault = Fault(place, of, number, _repair(label, constraint, number), None, datum)
            return f"{in_words(fault, rows)} ({raised})"
    return f"{place}: the programs fail there: {raised}"
