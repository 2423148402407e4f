"""Ways to make a right pair of programs, or its data, wrong, each with the words that the error must have.

A way takes a `Case`, spoils it in place, and returns what the message must match; or None, where it does not apply.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from fuzzing import FAMILIES, Description, Program, Site, data_of, event, pair
from torch import nn


@dataclass
class Case:
    """A pair with data, and a number that decides which site is spoilt."""

    description: Description
    which: int
    model: Any = None
    guide: Any = None
    batch: Any = None

    def __post_init__(self):
        self.model, self.guide = pair(self.description)
        self.batch = data_of(self.description)

    def either(self) -> Program:
        return (self.model, self.guide)[self.which % 2]

    def last_drawn(self) -> Site | None:
        """Return a site of the guide on which nothing in it depends, its terms taken away."""
        if not self.guide.own:
            return None
        self.guide.terms = []
        return self.guide.own[-1]

    def drop_parameters(self, program: Program) -> None:
        """Forget the weights that nothing reads any more."""
        used = {s.name for s in program.own} | {f"{s.name}_{p}" for s in program.own for p in s.parents}
        used |= {f"{name}_{parent}" for name, parents in program.terms for parent in parents}
        for name in [name for name in program.weights if name not in used]:
            del program.weights[name]


def forgotten_latent(case):
    site = case.last_drawn()
    if site is None:
        return None
    case.guide.own.pop()
    case.drop_parameters(case.guide)
    return f"site '{site.name}' is latent in the model, but the guide never samples it"


def another_latent(case):
    case.guide.after.append(lambda program, values: pyro.sample("more", dist.Normal(torch.zeros(()), 1.0)))
    return "site 'more' is sampled by the guide, but the model has no such latent"


def misspelt_name(case):
    site = case.last_drawn()
    if site is None:
        return None
    case.guide.rename[site.name] = f"{site.name}_"
    return f"site '{site.name}' is latent in the model, but the guide never samples it"


def missing_plate(case):
    program = case.either()
    program.plate = lambda rows: nullcontext()
    if not program.own:
        return None
    return rf"{program.role}: (site|factor) '\w+' (is|has).*outside the plate 'data'"


def misnamed_plate(case):
    program = case.either()
    program.plate = lambda rows: pyro.plate("batch", rows, dim=-1)
    return rf"{program.role}: site '\w+' is inside the plate 'batch'.*'data'" if program.own else None


def plate_at_the_left(case):
    program = case.either()
    program.plate = lambda rows: pyro.plate("data", rows, dim=-2)
    return rf"{program.role}: site '\w+'.*(dim=-2; it needs dim=-1|batch shape)" if program.own else None


def plate_of_a_fixed_size(case):
    program = case.either()
    program.plate = lambda rows: pyro.plate("data", case.description.rows + 2, dim=-1)
    return rf"{program.role}: site '\w+'.*plate 'data' has size" if program.own else None


def plate_of_fewer_than_its_batch(case):
    program, rows = case.either(), case.description.rows
    if rows < 3 or not program.own:
        return None
    program.plate = lambda given: pyro.plate("data", rows - 2, given, dim=-1)
    return rf"{program.role}: .*plate 'data'.*{rows - 2}"


def sequential_plate(case):
    program = case.either()

    @contextmanager
    def plate(rows):
        for _ in pyro.plate("data", rows):
            yield
            return

    program.plate = plate
    return r"site '\w+'.*dim=None; it needs dim=-1|site '\w+' has batch shape" if program.own else None


def nested_plate(case):
    program = case.either()
    if not program.own:
        return None
    site = program.own[case.which % len(program.own)]
    program.around[site.name] = lambda: pyro.plate("inner", 2, dim=-2)
    return rf"{program.role}: site '{site.name}' (is inside the plate 'inner'|has batch shape)"


def colliding_plates(case):
    program = case.either()
    if not program.own:
        return None
    site = program.own[0]
    program.around[site.name] = lambda: pyro.plate("inner", case.description.rows, dim=-1)
    return rf"{program.role}: .*plate.*'inner'"


def missing_to_event(case):
    program = case.either()
    sites = [s for s in program.own if s.shape not in ((), (1,)) and not s.masked]  # one number is a number
    if not sites:
        return None
    site = sites[case.which % len(sites)]
    program.edit[site.name] = lambda fn: fn.base_dist
    return rf"site '{site.name}'"


def another_event_shape(case):
    site = case.last_drawn()
    if site is None or site.mark:
        return None
    shape = (*event(site), 2)
    case.guide.edit[site.name] = lambda fn: dist.Normal(torch.zeros((*fn.batch_shape, *shape)), 1.0).to_event(
        len(shape)
    )
    return rf"site '{site.name}' has event shape"


def another_support(case):
    site = case.last_drawn()
    if site is None or site.mark:
        return None
    shape, real = event(site), FAMILIES[site.family].kind in ("real", "vector")
    make = (lambda zeros: dist.Gamma(zeros + 1, 1.0)) if real else (lambda zeros: dist.Normal(zeros, 1.0))
    case.guide.edit[site.name] = lambda fn: make(torch.zeros((*fn.batch_shape, *shape))).to_event(len(shape))
    return rf"site '{site.name}' has support"


def point_mass(case):
    site = case.last_drawn()
    if site is None or site.mark:
        return None
    case.guide.edit[site.name] = lambda fn: dist.Delta(fn.sample()).to_event(len(event(site)))
    return rf"site '{site.name}' (is a point mass \(Delta\)|has support)"


def data_outside_the_support(case):
    site, x = case.description.observed[0], case.batch[0].clone()
    kind = FAMILIES[site.family].kind
    outside = {"positive": -1.0, "unit": 2.0, "bit": 0.4, "count": -1.0, "simplex": 2.0, "corner": 0.3}.get(kind)
    if outside is None:
        return None
    x.view(-1)[case.which % x.numel()] = outside
    case.batch = (x, *(torch.ones_like(part) if part.dtype == torch.bool else part for part in case.batch[1:]))
    return r"site 'x': data from .* outside the support of the likelihood"


def no_numbers(case):
    x = case.batch[0].clone()
    if not x.is_floating_point():
        return None
    x.view(-1)[case.which % x.numel()] = (torch.nan, torch.inf, -torch.inf)[case.which % 3]
    case.batch = (x, *(torch.ones_like(part) if part.dtype == torch.bool else part for part in case.batch[1:]))
    return r"data: part 0 of the batch has \d+ NaN or infinite values \(first in row"


def another_dtype(case):
    parts = [i for i, part in enumerate(case.batch) if part.is_floating_point()]
    if not parts:
        return None
    chosen = parts[case.which % len(parts)]
    other = (torch.float32 if case.description.double else torch.float64, torch.float16)[case.which % 2]
    case.batch = tuple(part.to(other) if i == chosen else part for i, part in enumerate(case.batch))
    return rf"(data: x is|site 'w': its data are) {other} but the parameters are {case.description.dtype}"


def another_data_shape(case):
    if any("x" in site.parents for site in case.guide.own):  # the guide's own network would fail
        return None
    case.batch = (case.batch[0].unsqueeze(-1), *case.batch[1:])
    return r"site 'x': data of shape"


def no_rows(case):
    case.batch = tuple(part[:0] for part in case.batch)
    return r"data: empty \(no rows\)"


def unequal_rows(case):
    case.batch = (*case.batch[:-1], torch.cat([case.batch[-1], case.batch[-1]])) if len(case.batch) > 1 else None
    return "data: the tensors of a batch differ in their number of rows" if case.batch else None


def no_tensors(case):
    case.batch = [case.batch[0].tolist(), case.batch[0].numpy(), None, "x.npy", {"x": case.batch[0]}, 3][case.which % 6]
    return "data: "


def a_scalar(case):
    case.batch = torch.tensor(1.0)
    return "data: expected tensors whose first axis runs over data"


def too_many_tensors(case):
    case.batch = (*case.batch, *(torch.ones(case.description.rows) for _ in range(4 - len(case.batch))))
    return r"(model|guide): it takes \(x, observed, w\), but the batch has 4 tensors"


def global_latent(case):
    for program in (case.model, case.guide):
        own = program.plate

        def plate(rows, own=own):
            pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
            return own(rows)

        program.plate = plate
    return r"site 'theta' is a global latent \(outside the plate 'data'\)"


def deterministic_likelihood(case):
    name, x = case.description.observed[0].name, case.batch[0]
    case.model.edit[name] = lambda fn: dist.Delta(torch.zeros((*fn.batch_shape, *x.shape[1:]))).to_event(x.dim() - 1)
    return r"site 'x' is a deterministic likelihood \(Delta\)"


def duplicate_site(case):
    program = case.either()
    if not program.own:
        return None
    site = program.own[case.which % len(program.own)]
    program.after.append(lambda program, values: pyro.sample(site.name, dist.Normal(torch.zeros(()), 1.0)))
    return rf"{program.role}: .*'{site.name}'"


def observing_guide(case):
    case.guide.after.append(lambda p, values: pyro.sample("seen", dist.Normal(0.0, 1.0), obs=values["x"].new_zeros(())))
    return "site 'seen'"


def swapped_programs(case):
    case.model, case.guide = case.guide, case.model
    return r"guide: site '\w+' is observed, but a guide only draws latents; are model and guide swapped"


def nothing_observed(case):
    case.model.own = [site for site in case.model.own if site not in case.description.observed]
    case.model.terms = []
    case.drop_parameters(case.model)
    return r"model: it observes nothing"


def no_program(case):
    role = ("model", "guide")[case.which % 2]
    setattr(case, role, [None, 3, "vae", Program, torch.zeros(2)][case.which % 5])
    return rf"{role}: |model, guide: pass both"


def unused_parameter(case):
    program = case.either()
    program.unused = nn.Linear(2, 1).to(case.description.dtype)
    return rf"parameter {program.role}.unused.weight, {program.role}.unused.bias: trainable, but absent"


def hidden_parameter(case):
    hidden = torch.zeros((), dtype=case.description.dtype, requires_grad=True)
    program = case.model
    program.after.append(lambda program, values: pyro.factor("more", hidden.expand(case.batch[0].shape[:0])))
    return r"a trainable tensor of shape .* is used by the programs but belongs to no module"


def data_changed_in_place(case):
    if not case.batch[0].is_floating_point():
        return None
    case.either().after.append(lambda program, values: values["x"].mul_(1.0))
    return r"data: a program changes part 0 of its batch in place"


def mixed_data(case):
    site = case.description.observed[0]
    if FAMILIES[site.family].kind not in ("real",) or site.masked or not set(site.parents) - _summed(case):
        return None
    case.model.edit["x"] = lambda fn: dist.Normal(fn.mean.sum().expand(fn.shape()), 1.0).to_event(len(site.shape))
    return r"model: site 'x' (has log density .* something mixes|has batch shape)"


def _summed(case):
    return {site.name for site in case.description.summed}


def penalty_of_a_summed_latent(case):
    if not case.description.summed:
        return None
    site = case.description.summed[0]

    def cost(program, values):
        value = values[site.name]
        pyro.factor("penalty_y", (value[..., 0] if event(site) else value).to(case.description.dtype))

    case.model.after.append(cost)
    return r"factor 'penalty_y'"


def marked_continuous(case):
    sites = [s for s in case.guide.own if not FAMILIES[s.family].enumerable]
    if not sites:
        return None
    site = sites[case.which % len(sites)]
    case.guide.own[case.guide.own.index(site)] = replace(site, mark=True)
    return rf"site '{site.name}' is marked for enumeration"


def numberless_parameters(case):
    program = case.either()
    if not program.own:
        return None
    site = program.own[case.which % len(program.own)]
    with torch.no_grad():
        program.weights[site.name].fill_(torch.nan)
    return rf"parameter.*{program.role}\.weights\.{site.name}|site '{site.name}'"


def factor_not_summed(case):
    rows = case.description.rows
    case.model.after.append(lambda program, values: pyro.factor("more", torch.zeros(values["x"].shape[0], 2)))
    return r"model: factor 'more' has shape" if rows != 2 else r"(factor|site) 'more'"


def another_scale(case):
    case.model.plate = lambda rows: pyro.plate("data", 7 * rows, rows, dim=-1)
    case.guide.plate = lambda rows: pyro.plate("data", 11 * rows, rows, dim=-1)
    return "plate 'data': model and guide scale it differently" if case.guide.own or case.guide.terms else None


WAYS: dict[str, Callable[[Case], str | None]] = {
    name: way
    for name, way in globals().items()
    if getattr(way, "__module__", None) == __name__ and callable(way) and not isinstance(way, type) and name[0] != "_"
}


def simple(family: str = "Normal") -> Description:
    """Return two latents of two numbers, of which data of one number hang, and data in the second place."""
    latents = tuple(Site(name, "Normal", (2,)) for name in ("z1", "z2"))
    x = Site("x", family, (2,), parents=("z1",))
    w = Site("w", "Normal", (), parents=("z2",))
    summed = Site("y", "Bernoulli", mark=True)
    return Description((*latents, summed), (x, w), latents, (), True, 4, None, 3, 0, 1.0)
