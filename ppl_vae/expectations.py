"""Expected log densities of a program's sites under a mean-field posterior, exactly.

A program computes with values, and a mean-field update needs ``E log p``. Each factor of the posterior is
replaced by a few values with the same expected statistics (`ppl_vae.families`); the program runs on each
combination of them, and log densities are averaged. For a program that is conjugate this is no approximation: its log
densities are linear in the statistics of each factor, given the others.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor

from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.factors import Values, expected_log_prior
from ppl_vae.families import Natural
from ppl_vae.natural import Coefficients, Form, natural_form
from ppl_vae.programs import Program
from ppl_vae.structure import Structure, run

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
    structure: Structure
    points: dict[str, Values] = field(default_factory=dict)
    means: dict[str, Natural] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    _moments: dict[str, Coefficients] = field(default_factory=dict)

    def weigh_discrete(self, site: str, probabilities: Tensor) -> None:
        """Give a discrete latent its probabilities, ``(C, 1, ..., N)``."""
        self.weights[site] = probabilities
        self._moments.clear()

    def runs(self, sites: Iterable[str]) -> Runs:
        """Run the program on every combination of points that these sites can tell apart."""
        wanted = list(sites)
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
            traced = run(self.model, self.batch, self._values(at), self.structure.first_dim)
            for name in wanted:
                found[name].append(traced[name])
        return found

    def _values(self, at: Mapping[int, int]) -> Values:
        values = {}
        for factor, points in self.points.items():
            number = at.get(self.structure.groups[factor], 0) % _count(points)
            values |= {site: value[number] for site, value in points.items()}
        return values

    def table(self, name: str, runs: Runs) -> Tensor:
        """Return the expected log density of a site for each value of discrete latents and each datum."""
        sites = runs[name]
        if (found := _natural(sites)) is not None:
            form, coefficients, batch = found
            return form.table(_numbers(sites[0], coefficients), coefficients).reshape(*batch, -1)
        if (prior := self._prior(name, sites)) is not None:
            return prior
        return sum(_log_prob(site) for site in sites) / len(sites)

    def total(self, name: str, runs: Runs) -> Tensor:
        """Return the expected log density of a site, summed over data and over discrete latents by their weights."""
        sites = runs[name]
        if (found := _natural(sites)) is not None:
            form, coefficients, batch = found
            if name not in self._moments:
                x = _numbers(sites[0], coefficients)
                self._moments[name] = form.moments(x, self._joint_weights(batch, x))
            return form.total(self._moments[name], coefficients)
        table = self.table(name, runs)
        if name in self.structure.in_data:  # it may be given once for all data
            table = table.expand(*table.shape[:-1], len(self.batch[0]))
        return self.contracted(table).sum()

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
        """Return the expected log density of a latent that is a factor alone, from its statistics."""
        factor = self.structure.factors.get(name)
        if factor is None or name not in self.means or _masked(sites[0]):
            return None
        found = [expected_log_prior(site["fn"], factor.family, self.means[name]) for site in sites]
        return None if found[0] is None else sum(found) / len(found)


def _count(points: Values) -> int:
    return len(next(iter(points.values())))


def _masked(site: Site) -> bool:
    return site["mask"] is not None


def _natural(sites: Sequence[Site]) -> tuple[Form, Coefficients, Size] | None:
    """Return the natural form of an observed site, its coefficients averaged over runs."""
    first = sites[0]
    rows = first["fn"].batch_shape[-1:]
    if not first["is_observed"] or _masked(first) or not rows or first["value"].shape[:1] != rows:
        return None
    found = [natural_form(site["fn"]) for site in sites]
    if found[0] is None:
        return None
    batch = first["fn"].batch_shape[:-1]
    averaged = (sum(many) / len(many) for many in zip(*(c for _, c in found), strict=True))
    return found[0][0], tuple(c.reshape(batch.numel(), *c.shape[len(batch) :]) for c in averaged), batch


def _numbers(site: Site, coefficients: Coefficients) -> Tensor:
    """Return observed values in the type of the densities."""
    return site["value"].to(coefficients[0].dtype)


def _log_prob(site: Site) -> Tensor:
    fn = site["fn"]
    if isinstance(fn, dist.Categorical) and not site["is_observed"] and "probs" in fn.__dict__:
        return _log_mass(fn, site["value"])
    return scale_and_mask(fn.log_prob(site["value"]), 1.0, site["mask"])


def _log_mass(fn: Any, values: Tensor) -> Tensor:
    """Return log probabilities as they were given; torch's stop at the machine's smallest step from zero."""
    log = _once(fn.probs).log()
    values, log = torch.broadcast_tensors(values.unsqueeze(-1), log)
    return log.gather(-1, values[..., :1]).squeeze(-1)


def _once(probs: Tensor) -> Tensor:
    """Return probabilities that are the same for all data with one row."""
    return probs.narrow(-2, 0, 1) if probs.dim() > 1 and probs.stride(-2) == 0 else probs
