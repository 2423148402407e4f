"""Descriptions of generative programs, drawn by hypothesis, and the Pyro programs that they describe.

A description is plain data. `pair` makes a model and a guide of it, by the contract; `slowly` computes by loops what
these must give; `spoiling` makes them wrong.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions.testing import fakes
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus


@dataclass(frozen=True)
class Site:
    """A sample site.

    Attributes:
        family: its distribution, of `FAMILIES`.
        shape: axes that ``to_event`` declares.
        size: of the family's own event, or its number of categories.
        parents: what its parameters depend on: earlier sites, in a guide data too.
        mark: whether it is marked for enumeration.
        masked: whether an argument says which of its elements are observed.
        scale: of its own, by ``poutine.scale``.
    """

    name: str
    family: str
    shape: tuple[int, ...] = ()
    size: int = 1
    parents: tuple[str, ...] = ()
    mark: bool = False
    masked: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Description:
    """A model, a guide that fits it, and data.

    Attributes:
        latents, observed: the model's sites in order.
        drawn: the guide's sites in order.
        terms: factors by role ("model" or "guide") and name: what they depend on.
        double: whether in float64.
        rows: B.
        size: N of the plate, if it is told.
        particles: K.
        seed: of parameters, data and draws.
        spread: of parameters.
    """

    latents: tuple[Site, ...]
    observed: tuple[Site, ...]
    drawn: tuple[Site, ...]
    terms: tuple[tuple[str, str, tuple[str, ...]], ...]
    double: bool
    rows: int
    size: int | None
    particles: int
    seed: int
    spread: float

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def summed(self) -> tuple[Site, ...]:
        names = {site.name for site in self.drawn}
        return tuple(site for site in self.latents if site.name not in names)

    @property
    def listed(self) -> tuple[Site, ...]:
        return tuple(site for site in self.drawn if site.mark)

    @property
    def scaled(self) -> tuple[Site, ...]:
        return tuple(s for s in (*self.latents, *self.observed, *self.drawn) if s.scale != 1)

    @property
    def sites(self) -> dict[str, Site]:
        return {site.name: site for site in (*self.latents, *self.observed)}


def positive(raw: Tensor) -> Tensor:
    return softplus(raw) + 0.3


def factor_of(raw: Tensor, size: int) -> Tensor:
    """Return lower triangular matrices with positive diagonals."""
    lower = raw.reshape(*raw.shape[:-1], size, size)
    return lower.tril(-1) + torch.diag_embed(positive(lower.diagonal(dim1=-2, dim2=-1)))


@dataclass(frozen=True)
class Family:
    """A distribution as a function of unconstrained numbers.

    Attributes:
        make: from numbers ``(..., n)`` and a size.
        numbers: n, by size.
        own: whether its own event has the size.
        kind: where its values lie.
        enumerable: whether Pyro lists its values.
        moved: whether a draw is loc + scale * noise, or the exponential of that.
    """

    make: Callable[[Tensor, int], dist.Distribution]
    numbers: Callable[[int], int]
    kind: str
    own: bool = False
    enumerable: bool = False
    moved: bool = False


def two(make: Callable, kind: str, moved: bool = False) -> Family:
    return Family(lambda r, _: make(r[..., 0], positive(r[..., 1])), lambda _: 2, kind, moved=moved)


FAMILIES = {
    "Normal": two(dist.Normal, "real", moved=True),
    "Laplace": two(dist.Laplace, "real", moved=True),
    "StudentT": two(lambda loc, scale: dist.StudentT(5.0, loc, scale), "real", moved=True),
    "ScoredNormal": two(fakes.NonreparameterizedNormal, "real"),
    "LogNormal": two(dist.LogNormal, "positive", moved=True),
    "Gamma": Family(lambda r, _: dist.Gamma(1 + positive(r[..., 0]), positive(r[..., 1])), lambda _: 2, "positive"),
    "Beta": Family(lambda r, _: dist.Beta(1 + positive(r[..., 0]), 1 + positive(r[..., 1])), lambda _: 2, "unit"),
    "Bernoulli": Family(lambda r, _: dist.Bernoulli(logits=r[..., 0]), lambda _: 1, "bit", enumerable=True),
    "Categorical": Family(lambda r, _: dist.Categorical(logits=r), lambda size: size, "category", enumerable=True),
    "OneHotCategorical": Family(
        lambda r, _: dist.OneHotCategorical(logits=r), lambda size: size, "corner", own=True, enumerable=True
    ),
    "Poisson": Family(lambda r, _: dist.Poisson(positive(r[..., 0])), lambda _: 1, "count"),
    "Geometric": Family(lambda r, _: dist.Geometric(logits=r[..., 0]), lambda _: 1, "count"),
    "Dirichlet": Family(lambda r, _: dist.Dirichlet(1 + positive(r)), lambda size: size, "simplex", own=True),
    "IndependentNormal": Family(
        lambda r, size: dist.Normal(r[..., :size], positive(r[..., size:])).to_event(1),
        lambda size: 2 * size,
        "vector",
        own=True,
        moved=True,
    ),
    "MultivariateNormal": Family(
        lambda r, size: dist.MultivariateNormal(r[..., :size], scale_tril=factor_of(r[..., size:], size)),
        lambda size: size * (size + 1),
        "vector",
        own=True,
        moved=True,
    ),
}
IMPLICIT = {"Gamma", "Beta", "Dirichlet"}  # draws follow their parameters, and are no function of them and of noise
KINDS = {kind: [n for n, f in FAMILIES.items() if f.kind == kind] for kind in {f.kind for f in FAMILIES.values()}}


def event(site: Site) -> tuple[int, ...]:
    return (*site.shape, site.size) if FAMILIES[site.family].own else site.shape


def width(site: Site) -> int:
    """Return how many features a site's value has."""
    return prod(event(site)) * (site.size if FAMILIES[site.family].kind == "category" else 1)


def features(site: Site, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a value of batch shape and event as bounded features, ``(*batch, width)``."""
    batch = value.shape[: value.dim() - len(event(site))]
    if FAMILIES[site.family].kind == "category":
        value = one_hot(value.long(), site.size)
    return torch.tanh(value.reshape(*batch, -1).to(dtype) / 2)


# Programs.


class Program(nn.Module):
    """One of a pair. What `spoiling` changes is in its attributes."""

    def __init__(self, description: Description, role: str):
        super().__init__()
        self.description, self.role = description, role
        own = (*description.latents, *description.observed) if role == "model" else description.drawn
        self.own: list[Site] = list(own)
        self.terms = [(name, parents) for where, name, parents in description.terms if where == role]
        self.edit: dict[str, Callable] = {}  # of distributions
        self.around: dict[str, Callable] = {}  # contexts of statements
        self.rename: dict[str, str] = {}
        self.after: list[Callable] = []  # more statements, in the plate
        self.plate = lambda rows: pyro.plate("data", description.size or rows, rows, dim=-1)
        random = torch.Generator().manual_seed(description.seed * 2 + (role == "guide"))
        self.weights = nn.ParameterDict()
        for site in self.own:
            n = prod(site.shape) * FAMILIES[site.family].numbers(site.size)
            self.weights[site.name] = self._drawn(random, n)
            for parent in site.parents:
                self.weights[f"{site.name}_{parent}"] = self._drawn(random, n, width(description.sites[parent]))
        for name, parents in self.terms:
            for parent in parents:
                self.weights[f"{name}_{parent}"] = self._drawn(random, 1, width(description.sites[parent]))

    def _drawn(self, random: torch.Generator, *shape: int) -> nn.Parameter:
        drawn = torch.randn(shape, generator=random, dtype=torch.float64) * self.description.spread
        return nn.Parameter(drawn.to(self.description.dtype))

    def forward(self, x, observed=None, w=None):
        values = {"x": x, "w": w}
        with self.plate(x.shape[0]):
            for site in self.own:
                values[site.name] = self._sample(site, values, observed)
            for name, parents in self.terms:
                pyro.factor(self.rename.get(name, name), self._linear(name, parents, values).squeeze(-1))
            for statement in self.after:
                statement(self, values)

    def _linear(self, name, parents, values):
        sites, dtype = self.description.sites, self.description.dtype
        bias = self.weights.get(name, 0.0)
        return sum((features(sites[p], values[p], dtype) @ self.weights[f"{name}_{p}"].mT for p in parents), start=bias)

    def _sample(self, site, values, observed):
        raw, family = self._linear(site.name, site.parents, values), FAMILIES[site.family]
        fn = family.make(raw.reshape(*raw.shape[:-1], *site.shape, -1), site.size)
        fn = fn.mask(observed) if site.masked else fn
        fn = fn.to_event(len(site.shape)) if site.shape else fn
        fn = self.edit.get(site.name, lambda fn: fn)(fn)
        data = values[site.name] if site in self.description.observed else None
        with ExitStack() as stack:
            if site.scale != 1:
                stack.enter_context(poutine.scale(scale=site.scale))
            for context in [self.around[site.name]()] if site.name in self.around else []:
                stack.enter_context(context)
            infer = {"enumerate": "parallel"} if site.mark else {}
            return pyro.sample(self.rename.get(site.name, site.name), fn, obs=data, infer=infer)


def pair(description: Description) -> tuple[Program, Program]:
    return Program(description, "model"), Program(description, "guide")


def data_of(description: Description) -> tuple[Tensor, ...]:
    """Return a batch: the first observed site, which of its elements are observed, the second site."""
    random = torch.Generator().manual_seed(description.seed)
    parts = [_values(site, description, random) for site in description.observed]
    first = description.observed[0]
    if first.masked or len(parts) > 1:  # positions of the arguments
        shape = (description.rows, *first.shape)
        parts.insert(1, torch.rand(shape, generator=random) > 0.3)
    return tuple(parts)


def _values(site: Site, description: Description, random: torch.Generator) -> Tensor:
    z = torch.randn((description.rows, *event(site)), generator=random, dtype=torch.float64)
    u = torch.rand(z.shape, generator=random, dtype=torch.float64)
    kind = FAMILIES[site.family].kind
    if kind == "category":
        return (u * site.size).long()
    made = {
        "real": lambda: z,
        "vector": lambda: z,
        "positive": z.exp,
        "unit": lambda: 0.02 + 0.96 * u,
        "bit": lambda: (u > 0.5).double(),
        "corner": lambda: one_hot(z.argmax(-1), site.size),
        "count": lambda: (4 * u).floor(),
        "simplex": lambda: z.softmax(-1),
    }
    return made[kind]().to(description.dtype)


# Strategies.

SHAPES = st.sampled_from([(), (), (1,), (2,), (3,), (4,), (1, 2), (2, 2), (2, 1)])


@st.composite
def families_of(draw, kinds=None):
    kind = draw(st.sampled_from(sorted(kinds or KINDS)))
    return draw(st.sampled_from(KINDS[kind]))


@st.composite
def descriptions(draw, double=None, most=7, implicit=True, scaled=True):
    """Draw a description.

    Args:
        double: float64 or float32, if not either.
        most: particles.
        implicit: whether the guide may draw by families whose gradients are implicit.
        scaled: whether a site may have a scale.
    """
    rows = draw(st.integers(1, 6))
    shapes = st.one_of(SHAPES, st.just((rows,))) if rows < 5 else SHAPES
    kinds = None if implicit else {*KINDS} - {"unit", "simplex"}
    latents, drawn = [], []
    observed_names = ("x", "w")[: draw(st.sampled_from([1, 1, 2]))]
    count = draw(st.integers(1, 3))
    names = ["z"] if count == 1 else ["y", "z1", "z2", "z3"][draw(st.integers(0, 1)) :][:count]
    observed = [_observed(draw, name, names, shapes) for name in observed_names]
    for name in names:
        family = draw(families_of(kinds))
        how = draw(st.sampled_from(["drawn", "summed", "listed"])) if FAMILIES[family].enumerable else "drawn"
        site = Site(
            name,
            family,
            shape=draw(shapes) if how == "drawn" else (),
            size=draw(st.integers(2, 3)),
            parents=_some(draw, [before.name for before in latents]),
            mark=how == "summed",
        )
        latents.append(site)
        if how != "summed":
            drawn.append(_fitting(draw, site, implicit, how == "listed"))
    if draw(st.booleans()):
        drawn.reverse()
    before = list(accumulate((site.name for site in drawn), lambda a, b: (*a, b), initial=()))
    drawn = [
        replace(site, parents=_some(draw, [*b, *observed_names])) for site, b in zip(drawn, before[:-1], strict=True)
    ]
    names_drawn = [site.name for site in drawn]
    terms = []
    for role in ("model", "guide"):
        for term in ("penalty_cost", "extra"):
            if draw(st.sampled_from([False, False, False, True])) and names_drawn:
                terms.append((role, term, _some(draw, names_drawn) or (names_drawn[0],)))
    if scaled and not any(site.mark for site in latents) and draw(st.sampled_from([False] * 4 + [True])):
        where = draw(st.sampled_from(["latents", "observed", "drawn"]))
        chosen = {"latents": latents, "observed": observed, "drawn": drawn}[where]
        if chosen:
            chosen[0] = replace(chosen[0], scale=draw(st.sampled_from([0.25, 3.0])))
    return Description(
        latents=tuple(latents),
        observed=tuple(observed),
        drawn=tuple(drawn),
        terms=tuple(terms),
        double=draw(st.booleans()) if double is None else double,
        rows=rows,
        size=draw(st.sampled_from([None, None, max(rows, 2), 10 * rows, 1000])),
        particles=draw(st.integers(1, most)),
        seed=draw(st.integers(0, 2**20)),
        spread=draw(st.sampled_from([0.3, 1.0, 2.0])),
    )


def _observed(draw, name, latents, shapes):
    family = draw(families_of())
    family = "Normal" if family == "ScoredNormal" else family
    shape = draw(shapes)
    return Site(
        name,
        family,
        shape=shape,
        size=draw(st.integers(2, 3)),
        parents=_some(draw, latents),
        masked=name == "x" and draw(st.sampled_from([False, False, True])),
    )


def _fitting(draw, site, implicit, mark):
    """Return a guide's site with the event and the support of a latent."""
    choices = KINDS[FAMILIES[site.family].kind]
    if mark:
        choices = [site.family]
    if not implicit:
        choices = [name for name in choices if name not in IMPLICIT]
    return replace(site, family=draw(st.sampled_from(choices)), mark=mark, parents=())


def _some(draw, names):
    return tuple(name for name in names if draw(st.booleans()))
