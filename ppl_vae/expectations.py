"""Expected log densities of a program's sites under a mean-field posterior, exactly.

A program computes with values, and a mean-field update needs ``E log p``. Each factor of the posterior is
replaced by a few values with the same expected statistics (`ppl_vae.families`); the program runs on each
combination of them, and log densities are averaged. For a program that is conjugate this is no approximation: its log
densities are linear in the statistics of each factor, given the others.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Size, Tensor

from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.factorisation import Factorisation, run
from ppl_vae.factors import Values, expected_log_prior
from ppl_vae.families import Natural
from ppl_vae.natural_forms import Coefficients, Form, log_density, natural
from ppl_vae.programs import Program

__all__ = ["Expectations", "Summed", "Term", "Terms"]

# Beyond it the combinations of points take longer than anybody waits.
MOST_RUNS = 4096


@dataclass(frozen=True)
class Term:
    """The log density of a site in one run of the program, or its average over runs.

    Attributes:
        tensors: coefficients of the form; without one, a table with an axis for each discrete latent and one of data.
        form: what gives the log density of any data from coefficients.
        batch: shape of what the coefficients are of, the axis of data left out.
    """

    tensors: tuple[Tensor, ...]
    form: Form | None = None
    batch: Size | None = None


Terms = Mapping[str, Term]


def averaged(runs: Iterator[Terms]) -> Terms:
    """Average over runs, one of which is in memory at a time.

    Example:
        >>> found = averaged(iter([{"x": Term((torch.zeros(2),))}, {"x": Term((torch.ones(2),))}]))
        >>> found["x"].tensors
        (tensor([0.5000, 0.5000]),)
    """
    found, count = dict(next(runs)), 1
    for terms in runs:
        count += 1
        for name, term in terms.items():
            pairs = zip(found[name].tensors, term.tensors, strict=True)
            found[name] = replace(term, tensors=tuple(one + other for one, other in pairs))
    return {name: replace(term, tensors=tuple(one / count for one in term.tensors)) for name, term in found.items()}


@dataclass(frozen=True)
class Traced:
    """Runs of the program on the first datum.

    Attributes:
        sizes: how many points the factors of each group took, by the group's number.
        points: all factors' points.
        traces: the sites of each run.
    """

    sizes: Mapping[int, int]
    points: Mapping[str, Values]
    traces: Sequence[Mapping[str, Site]]

    def serves(self, sizes: Mapping[int, int], points: Mapping[str, Values]) -> bool:
        """Tell whether averages over these runs are those over other numbers of the same points."""
        enough = all(self.sizes.get(group, 1) % size == 0 for group, size in sizes.items())
        return enough and all(self.points[name] is values for name, values in points.items())


@dataclass(frozen=True)
class Summed:
    """What is known of the ELBO once a discrete latent has its optimal probabilities.

    Attributes:
        site: the latent.
        sites: whose expected log densities, with the entropy of the latent, make up the value.
        value: ``sum_n log sum_y exp E[log p]``.
        eta: parameters of all factors then.
        weights: probabilities of all discrete latents then.
    """

    site: str
    sites: Collection[str]
    value: Tensor
    eta: Mapping[str, Natural]
    weights: Mapping[str, Tensor]

    def holds(self, eta: Mapping[str, Natural], weights: Mapping[str, Tensor]) -> bool:
        """Tell whether nothing has changed since."""
        same = all(self.eta[name] is parameters for name, parameters in eta.items())
        return same and all(self.weights[site] is table for site, table in weights.items())


@dataclass
class Expectations:
    """Expected log densities on one batch; the program must compute the same in every run.

    Attributes:
        model: Pyro program.
        batch: tensors.
        structure: what is known of the program.
        points: values that stand for each factor, by factor and site, ``(P, ...)``.
        means: expected statistics of each factor, where they are known.
        weights: probabilities of discrete latents, by site, ``(C, 1, ..., N)``.
    """

    model: Program
    batch: Batch
    structure: Factorisation
    points: dict[str, Values] = field(default_factory=dict)
    means: dict[str, Natural] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    _moments: dict[str, Coefficients] = field(default_factory=dict)
    _traced: Traced | None = None

    def weigh_discrete(self, site: str, probabilities: Tensor) -> None:
        """Give a discrete latent its probabilities, ``(C, 1, ..., N)``."""
        self.weights[site] = probabilities
        self._moments.clear()

    def put(self, factor: str, points: Values, mean: Natural | None) -> None:
        """Give a factor its points, and its expected statistics where they are known."""
        self.points[factor] = points
        self.means.pop(factor, None)
        if mean is not None:
            self.means[factor] = mean

    def near(self, factor: str, points: Mapping[str, Sequence[Tensor]], mean: Natural) -> "Expectations":
        """Return expectations with other points and statistics for a factor."""
        points, means = self.points | {factor: points}, self.means | {factor: mean}
        return replace(self, points=points, means=means, _traced=None)

    def terms(self, sites: Collection[str]) -> Terms:
        """Return averages of log densities over every combination of points that these sites can tell apart."""
        at_once = [name for name in sites if name in self.structure.once]
        others = [name for name in sites if name not in self.structure.once]
        found = averaged(self._on_first(at_once)) if at_once else {}
        return found | (averaged(self.each(others)) if others else {})

    def _on_first(self, wanted: Sequence[str]) -> Iterator[Terms]:
        """Yield runs on one datum, the last ones again if nothing has changed that these sites read."""
        read, sizes = self._read(wanted)
        kept = self._traced
        if kept is None or not kept.serves(sizes, {name: self.points[name] for name in read}):
            kept = self._traced = Traced(sizes, dict(self.points), [*self._traces(sizes, 1)])
        return ({name: self._term(name, trace[name]) for name in wanted} for trace in kept.traces)

    def each(self, wanted: Sequence[str]) -> Iterator[Terms]:
        """Yield runs on all data."""
        _, sizes = self._read(wanted)
        return ({name: self._term(name, trace[name]) for name in wanted} for trace in self._traces(sizes, None))

    def count(self, wanted: Sequence[str]) -> int:
        """Return how many runs there are."""
        return math.prod(self._read(wanted)[1].values())

    def _read(self, wanted: Sequence[str]) -> tuple[set[str], dict[int, int]]:
        """Return the factors that sites read, and how many points those of each group take."""
        read = set().union(*(self.structure.reads[name] for name in wanted))
        sizes: dict[int, int] = {}
        for factor in read:
            number, count = self.structure.groups[factor], _count(self.points[factor])
            sizes[number] = math.lcm(sizes.get(number, 1), count)
        if math.prod(sizes.values()) > MOST_RUNS:
            raise ContractError(
                f"{', '.join(sorted(read))}: their product takes {math.prod(sizes.values())} runs of the program, "
                f"and {MOST_RUNS} are allowed; split large latents (a plate for each row of a matrix), or fit a guide"
            )
        return read, sizes

    def _traces(self, sizes: Mapping[int, int], rows: int | None) -> Iterator[Mapping[str, Site]]:
        batch = tuple(part[:rows] for part in self.batch)
        for chosen in itertools.product(*map(range, sizes.values())):
            at = dict(zip(sizes, chosen, strict=True))
            yield run(self.model, batch, self._values(at, rows), self.structure.first_dim)

    def _values(self, at: Mapping[int, int], rows: int | None) -> Values:
        values = {}
        for factor, points in self.points.items():
            number = at.get(self.structure.groups[factor], 0) % _count(points)
            local = rows is not None and self.structure.factors[factor].local
            values |= {site: value[number][:rows] if local else value[number] for site, value in points.items()}
        return values

    def _term(self, name: str, site: Site) -> Term:
        if name in self.structure.observed and (found := natural(site, self.structure.origins.get(name))) is not None:
            form, coefficients, batch = found
            return Term(coefficients, form, batch)
        prior = self._prior(name, site)
        return Term((log_density(site) if prior is None else prior,))

    def table(self, name: str, term: Term) -> Tensor:
        """Return the expected log density of a site for each value of discrete latents and each datum."""
        if term.form is None:
            return term.tensors[0]
        return term.form.table(self._numbers(name, term.tensors), term.tensors).reshape(*term.batch, -1)

    def total(self, name: str, term: Term) -> Tensor:
        """Return the expected log density of a site, summed over data and over discrete latents by their weights."""
        if term.form is not None:
            if name not in self._moments:
                x = self._numbers(name, term.tensors)
                self._moments[name] = term.form.moments(x, self._joint_weights(term.batch, x))
            return term.form.total(self._moments[name], term.tensors)
        table = self.table(name, term)
        if name not in self.structure.in_data:
            return table.sum()
        return self._of_one_row(name, table) if table.shape[-1] == 1 else self.contracted(table).sum()

    def _of_one_row(self, name: str, table: Tensor) -> Tensor:
        """Sum a table that is the same for all data, which meets the sums of their weights alone."""
        if name not in self._moments:
            self._moments[name] = (self._joint_weights(table.shape[:-1], table).sum(-1),)
        return (table.flatten() * self._moments[name][0]).sum()

    def log_densities(self, name: str, term: Term) -> Tensor:
        """Return the expected log density of a site for each datum, ``(N,)``, discrete latents summed out."""
        table, rows = self.table(name, term), len(self.batch[0])
        # It may be given once for all data.
        return self.contracted(table.expand(*table.shape[:-1], rows)).reshape(-1, rows).sum(0)

    def _numbers(self, name: str, coefficients: Coefficients) -> Tensor:
        """Return observed values in the type of the densities."""
        return self.structure.observed[name].to(coefficients[0].dtype)

    def contracted(self, table: Tensor, besides: str | None = None) -> Tensor:
        """Sum discrete latents out of a table by their weights, all but one."""
        for site, dim in self.structure.discrete.items():
            if site != besides and table.dim() >= -dim and table.shape[dim] > 1:
                table = (table * self.weights[site]).sum(dim, keepdim=True)
        return table

    def _joint_weights(self, batch: Size, like: Tensor) -> Tensor:
        """Return the probability of each combination of the values that a site depends on, ``(C, N)``."""
        rows, discrete = len(self.batch[0]), self.structure.discrete.items()
        reading = [self.weights[s] for s, dim in discrete if len(batch) + 1 >= -dim and batch[dim + 1] > 1]
        joint = reduce(torch.mul, reading) if reading else like.new_ones(rows)
        joint = joint.reshape(joint.shape[-1 - len(batch) :])  # others read none of these
        return joint.expand(*batch, rows).reshape(-1, rows)

    def _prior(self, name: str, site: Site) -> Tensor | None:
        """Return the expected log density of a latent from its statistics, where these are known."""
        factor = next((factor for factor in self.structure.factors.values() if name in factor.sites), None)
        if factor is None or factor.name not in self.means or site["mask"] is not None:
            return None
        alone = factor.alone(name, self.means[factor.name])
        return None if alone is None else expected_log_prior(site["fn"], *alone)


def _count(points: Values) -> int:
    return len(next(iter(points.values())))
