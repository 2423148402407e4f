"""Expected log densities of a program's sites under a mean-field posterior, exactly.

A program computes with values, and a mean-field update needs ``E log p``. Each factor of the posterior is
replaced by a few values with the same expected statistics (`ppl_vae.families`); the program runs on each
combination of them, and log densities are averaged. For a program that is conjugate this is no approximation: its log
densities are linear in the statistics of each factor, given the others.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Size, Tensor

from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.factorisation import Factorisation, run
from ppl_vae.factors import Values, expected_log_prior
from ppl_vae.families import Natural
from ppl_vae.natural import Coefficients, log_density, natural
from ppl_vae.programs import Program

__all__ = ["Expectations"]

Runs = Mapping[str, Sequence[Site]]
# Beyond it the combinations of points take longer than anybody waits.
MOST_RUNS = 4096


@dataclass
class Expectations:
    """Expected log densities on one batch.

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

    def weigh_discrete(self, site: str, probabilities: Tensor) -> None:
        """Give a discrete latent its probabilities, ``(C, 1, ..., N)``."""
        self.weights[site] = probabilities
        self._moments.clear()

    def runs(self, sites: Collection[str]) -> Runs:
        """Run the program on every combination of points that these sites can tell apart."""
        at_once = [name for name in sites if name in self.structure.once]
        others = [name for name in sites if name not in self.structure.once]
        return (self._runs(at_once, rows=1) if at_once else {}) | (self._runs(others) if others else {})

    def _runs(self, wanted: Sequence[str], rows: int | None = None) -> Runs:
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
        found: dict[str, list[Site]] = {name: [] for name in wanted}
        for chosen in itertools.product(*map(range, sizes.values())):
            at = dict(zip(sizes, chosen, strict=True))
            batch = tuple(part[:rows] for part in self.batch)
            traced = run(self.model, batch, self._values(at, rows), self.structure.first_dim)
            for name in wanted:
                found[name].append(traced[name])
        return found

    def _values(self, at: Mapping[int, int], rows: int | None) -> Values:
        values = {}
        for factor, points in self.points.items():
            number = at.get(self.structure.groups[factor], 0) % _count(points)
            local = rows is not None and self.structure.factors[factor].local
            values |= {site: value[number][:rows] if local else value[number] for site, value in points.items()}
        return values

    def table(self, name: str, runs: Runs) -> Tensor:
        """Return the expected log density of a site for each value of discrete latents and each datum."""
        sites = runs[name]
        if name in self.structure.observed and (found := natural(sites, self.structure.origins.get(name))) is not None:
            form, coefficients, batch = found
            return form.table(self._numbers(name, coefficients), coefficients).reshape(*batch, -1)
        if (prior := self._prior(name, sites)) is not None:
            return prior
        return sum(log_density(site) for site in sites) / len(sites)

    def total(self, name: str, runs: Runs) -> Tensor:
        """Return the expected log density of a site, summed over data and over discrete latents by their weights."""
        sites = runs[name]
        if name in self.structure.observed and (found := natural(sites, self.structure.origins.get(name))) is not None:
            form, coefficients, batch = found
            if name not in self._moments:
                x = self._numbers(name, coefficients)
                self._moments[name] = form.moments(x, self._joint_weights(batch, x))
            return form.total(self._moments[name], coefficients)
        return (self.log_densities(name, runs) if name in self.structure.in_data else self.table(name, runs)).sum()

    def log_densities(self, name: str, runs: Runs) -> Tensor:
        """Return the expected log density of a site for each datum, ``(N,)``, discrete latents summed out."""
        table, rows = self.table(name, runs), len(self.batch[0])
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

    def _joint_weights(self, batch: Size, x: Tensor) -> Tensor:
        """Return the probability of each combination of the values that a site depends on, ``(C, N)``."""
        joint = x.new_ones(*(1 for _ in batch), len(x))
        for site, dim in self.structure.discrete.items():
            if len(batch) + 1 >= -dim and batch[dim + 1] > 1:
                joint = joint * self.weights[site]
        return joint.expand(*batch, len(x)).reshape(-1, len(x))

    def _prior(self, name: str, sites: Sequence[Site]) -> Tensor | None:
        """Return the expected log density of a latent from its statistics, where these are known."""
        factor = next((factor for factor in self.structure.factors.values() if name in factor.sites), None)
        if factor is None or factor.name not in self.means or _masked(sites[0]):
            return None
        if (alone := factor.alone(name, self.means[factor.name])) is None:
            return None
        found = [expected_log_prior(site["fn"], *alone) for site in sites]
        return None if found[0] is None else sum(found) / len(found)


def _count(points: Values) -> int:
    return len(next(iter(points.values())))


def _masked(site: Site) -> bool:
    return site["mask"] is not None
