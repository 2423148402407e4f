"""What `fuzzing`'s programs must give, by loops over particles, data and values, one number at a time.

Neither Pyro nor ``torch.distributions``, and no axis of particles or data: densities are their textbook formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import log, pi

import torch
from fuzzing import FAMILIES, Description, Program, Site, event, positive
from torch import Tensor
from torch.nn.functional import softplus


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * log(2 * pi)


def student(x, loc, scale, df=5.0):
    df = torch.as_tensor(df, dtype=loc.dtype)
    t = (x - loc) / scale
    constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * pi).log()
    return constant - scale.log() - (df + 1) / 2 * (1 + t**2 / df).log()


def gamma(x, a, rate):
    return a * rate.log() + (a - 1) * x.log() - rate * x - torch.lgamma(a)


def beta(x, a, b):
    return torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b) + (a - 1) * x.log() + (b - 1) * (1 - x).log()


def dirichlet(x, a):
    return torch.lgamma(a.sum()) + sum((c - 1) * v.log() - torch.lgamma(c) for v, c in zip(x, a, strict=True))


def lower_triangle(raw: Tensor, size: int) -> list[list[Tensor]]:
    at = raw.reshape(size, size)
    return [[positive(at[i, j]) if i == j else at[i, j] for j in range(i + 1)] for i in range(size)]


def correlated(x, raw, size):
    """Return the density of a multivariate normal, by forward substitution."""
    lower, noise = lower_triangle(raw[size:], size), []
    for i in range(size):
        noise.append((x[i] - raw[i] - sum(lower[i][j] * noise[j] for j in range(i))) / lower[i][i])
    return sum(-0.5 * e**2 - lower[i][i].log() - 0.5 * log(2 * pi) for i, e in enumerate(noise))


def log_sum(terms: list[Tensor]) -> Tensor:
    largest = max(term.detach() for term in terms)
    return largest + sum((term - largest).exp() for term in terms).log()


# From a value without axes (or of the family's own event), numbers and a size.
LOG_DENSITIES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "Normal": lambda x, r, _: normal(x, r[0], positive(r[1])),
    "ScoredNormal": lambda x, r, _: normal(x, r[0], positive(r[1])),
    "Laplace": lambda x, r, _: -(x - r[0]).abs() / positive(r[1]) - (2 * positive(r[1])).log(),
    "StudentT": lambda x, r, _: student(x, r[0], positive(r[1])),
    "LogNormal": lambda x, r, _: normal(x.log(), r[0], positive(r[1])) - x.log(),
    "Gamma": lambda x, r, _: gamma(x, 1 + positive(r[0]), positive(r[1])),
    "Beta": lambda x, r, _: beta(x, 1 + positive(r[0]), 1 + positive(r[1])),
    "Bernoulli": lambda x, r, _: x * r[0] - softplus(r[0]),
    "Categorical": lambda x, r, _: r[int(x)] - r.exp().sum().log(),
    "OneHotCategorical": lambda x, r, _: r[int(x.argmax())] - r.exp().sum().log(),
    "Poisson": lambda x, r, _: x * positive(r[0]).log() - positive(r[0]) - torch.lgamma(x + 1),
    "Geometric": lambda x, r, _: -x * softplus(r[0]) - softplus(-r[0]),
    "Dirichlet": lambda x, r, _: dirichlet(x, 1 + positive(r)),
    "IndependentNormal": lambda x, r, n: sum(normal(x[i], r[i], positive(r[n + i])) for i in range(n)),
    "MultivariateNormal": correlated,
}


def moved(site: Site, raw: Tensor, drawn: Tensor) -> Tensor:
    """Return a draw as a function of its parameters, its noise held."""
    if site.family == "MultivariateNormal":
        lower, noise, found = lower_triangle(raw[site.size :], site.size), [], []
        for i in range(site.size):
            rest = drawn[i] - raw[i] - sum(lower[i][j] * noise[j] for j in range(i))
            noise.append((rest / lower[i][i]).detach())
            found.append(raw[i] + sum(lower[i][j] * noise[j] for j in range(i + 1)))
        return torch.stack(found)
    if site.family == "IndependentNormal":
        one = Site(site.name, "Normal")
        return torch.stack([moved(one, raw[i :: site.size], drawn[i]) for i in range(site.size)])
    drawn = drawn.log() if site.family == "LogNormal" else drawn
    value = raw[0] + positive(raw[1]) * ((drawn - raw[0]) / positive(raw[1])).detach()
    return value.exp() if site.family == "LogNormal" else value


VALUES = {
    "Bernoulli": lambda site, dtype: torch.tensor([0.0, 1.0], dtype=dtype),
    "Categorical": lambda site, dtype: torch.arange(site.size),
    "OneHotCategorical": lambda site, dtype: torch.eye(site.size, dtype=dtype),
}


@dataclass
class Slow:
    """Densities of a pair at the draws that `pv.weigh` made.

    Args:
        description: of the pair.
        model, guide: whose weights are read.
        batch: data.
        values: what the guide drew.
        follow: whether draws follow the guide's parameters, their noise held.
        stopped: whether the parameters of the guide's densities are held.
    """

    description: Description
    model: Program
    guide: Program
    batch: tuple[Tensor, ...]
    values: dict[str, Tensor]
    follow: bool = False
    stopped: bool = False
    log_p: dict = field(default_factory=dict)
    log_q: dict = field(default_factory=dict)
    penalties: dict = field(default_factory=dict)

    def __post_init__(self):
        d = self.description
        for listed in product(*(VALUES[s.family](s, d.dtype) for s in d.listed)):
            at = dict(zip([s.name for s in d.listed], listed, strict=True))
            for k in range(d.particles):
                for b in range(d.rows):
                    self._one(at, k, b)

    def _one(self, at, k, b):
        d = self.description
        values, key = dict(at) | self._data(b), (*(self._place(s, at) for s in d.listed), k, b)
        for site in d.drawn:
            if not site.mark:
                values[site.name] = self._drawn(site, self._raw(self.guide, site, values), at, k, b)
        for site in d.drawn:
            raw = self._raw(self.guide, site, values, held=self.stopped)
            self._keep(self.log_q, site.name, key, self._density(site, raw, values[site.name], b))
        joints = []
        for summed in product(*(VALUES[s.family](s, d.dtype) for s in d.summed)):
            values |= dict(zip([s.name for s in d.summed], summed, strict=True))
            sites = (*d.latents, *d.observed)
            joints.append(
                {s.name: self._density(s, self._raw(self.model, s, values), values[s.name], b) for s in sites}
            )
        if d.summed:  # sites that hang together have no density of their own
            joints = [{"all": log_sum([sum(joint.values()) for joint in joints])}]
        for name, density in joints[0].items():
            self._keep(self.log_p, name, key, density)
        self._terms(self.model, self.log_p, 1, values, key)
        self._terms(self.guide, self.log_q, -1, values, key)

    def _keep(self, into, name, key, density):
        slot = into.setdefault(name, {})
        slot[key] = slot.get(key, 0.0) + density

    def _terms(self, program, densities, sign, values, key):
        for name, parents in program.terms:
            term = self._linear(program, name, parents, values, 0.0)[0]
            if name.startswith("penalty_"):
                self._keep(self.penalties, name, key, sign * term)
            else:
                self._keep(densities, name, key, term)

    def _place(self, site, at):
        values = VALUES[site.family](site, self.description.dtype)
        return next(i for i, v in enumerate(values) if torch.equal(v, at[site.name]))

    def _data(self, b):
        parts = [part[b] for part in self.batch]
        return {"x": parts[0], "observed": parts[1] if len(parts) > 1 else None, "w": parts[-1]}

    def _raw(self, program, site, values, held=False):
        raw = self._linear(program, site.name, site.parents, values, program.weights[site.name], held)
        return raw.detach() if held and not site.parents else raw

    def _linear(self, program, name, parents, values, bias, held=False):
        total = bias.detach() if held else bias
        for parent in parents:
            weight, given = program.weights[f"{name}_{parent}"], self.description.sites[parent]
            seen = values[parent].reshape(-1)
            if FAMILIES[given.family].kind == "category":
                seen = torch.tensor([float(v == c) for v in seen for c in range(given.size)])
            features = torch.tanh(seen.to(weight.dtype) / 2)
            total = total + torch.stack([(row * features).sum() for row in (weight.detach() if held else weight)])
        return total

    def _drawn(self, site, raw, at, k, b):
        """Return one draw; axes of size one, of enumerated values that it does not follow, are passed over."""
        d, value = self.description, self.values[site.name]
        places = [*(self._place(s, at) for s in reversed(d.listed)), k, b]
        axes = value.shape[: value.dim() - len(event(site))]
        places = places[len(places) - len(axes) :]
        drawn = value[tuple(0 if size == 1 else place for size, place in zip(axes, places, strict=True))].detach()
        if not self.follow or not FAMILIES[site.family].moved:
            return drawn
        n = FAMILIES[site.family].numbers(site.size)
        own = drawn.reshape(-1, site.size) if FAMILIES[site.family].own else drawn.reshape(-1)
        return torch.stack([moved(site, r, v) for r, v in zip(raw.reshape(-1, n), own, strict=True)]).reshape(
            drawn.shape
        )

    def _density(self, site, raw, value, b):
        """Sum over the elements of an event, those apart that are not observed."""
        family = FAMILIES[site.family]
        raws = raw.reshape(-1, family.numbers(site.size))
        elements = value.reshape(len(raws), -1) if family.own else value.reshape(-1)
        there = self.batch[1][b].reshape(-1) if site.masked else [True] * len(raws)
        densities = [
            LOG_DENSITIES[site.family](x, r, site.size) for x, r, use in zip(elements, raws, there, strict=True) if use
        ]
        return site.scale * sum(densities, start=raw.new_zeros(()))

    def tensor(self, parts: dict) -> Tensor:
        """Return numbers by particle and datum as a tensor ``(K, B)``, left of it an axis for each listed site."""
        d = self.description
        sizes = [len(VALUES[s.family](s, d.dtype)) for s in d.listed]
        flat = torch.stack([parts[key] for key in sorted(parts)])
        shaped = flat.reshape(*sizes, d.particles, d.rows)
        order = [*reversed(range(len(sizes))), len(sizes), len(sizes) + 1]
        return shaped.permute(order)

    @cached_property
    def densities(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return log p and log q by site."""
        return tuple({n: self.tensor(v) for n, v in parts.items()} for parts in (self.log_p, self.log_q))

    @cached_property
    def log_w(self) -> Tensor:
        log_p, log_q = self.densities
        return sum(log_p.values()) - sum(log_q.values(), start=torch.zeros(()))
