"""Coordinate ascent on the factors of a mean-field posterior.

The optimal factor given the others is ``q_j(v) ~ exp E[log p]``. For a conjugate program ``E log p`` is linear in
the statistics of v, so its natural parameters are a gradient::

    eta_j = d E[log p(x, z)] / d E[t(z_j)]

and autograd finds it, whatever the program computes. Nothing is derived by hand for a model. The gradient of a linear
function is the same everywhere; it is taken near the factor as it is, where rounding is small.

Reference: D. Blei, A. Kucukelbir, J. McAuliffe, "Variational Inference: A Review for Statisticians", JASA 2017,
https://arxiv.org/abs/1601.00670; updates as gradients in expected statistics as in M. E. Khan, W. Lin,
"Conjugate-Computation Variational Inference", AISTATS 2017, https://arxiv.org/abs/1703.04265, and M. Hoffman,
M. Johnson, D. Tran, "Autoconj", NeurIPS 2018, https://arxiv.org/abs/1811.11926; minibatches as in M. Hoffman,
D. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference", JMLR 2013, https://jmlr.org/papers/v14/hoffman13a.html.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.densities import normalised
from ppl_vae.expectations import Expectations, Summed, Terms
from ppl_vae.factorisation import (
    Factorisation,
    Joint,
    drawn,
    factorisation_of,
    factorisation_on,
)
from ppl_vae.factors import Factor, Values, where
from ppl_vae.families import Natural
from ppl_vae.probes import Probe, alike
from ppl_vae.programs import Program

__all__ = ["Factorised", "factorised"]

LOOKS = 5  # that a gradient is taken until two agree


class Factorised:
    """A mean-field posterior over the latents of a program, and its coordinate updates on one batch.

    Args:
        model: Pyro program.
        batch: tensors.
        structure: what is known of the program on this batch.
        point: names of the factors that are a point mass at the mode of the optimal factor.
        scale: N / B, how many data each datum of the batch stands for.
    """

    def __init__(
        self, model: Program, batch: Batch, structure: Factorisation, point: frozenset[str], scale: float = 1.0
    ):
        self.model, self.batch, self.structure, self.point, self.scale = model, batch, structure, point, scale
        self.eta: dict[str, Natural] = {}
        self.expected = Expectations(model, batch, self.structure)
        self._summed: Summed | None = None
        self._checked: set[str] = set()
        self._probes: dict[str, Probe] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept for the next update, whose graphs no copy has."""
        expected = replace(self.expected, _moments={}, _traced=None)
        return {**self.__dict__, "expected": expected, "_probes": {}, "_summed": None}

    @property
    def factors(self) -> Mapping[str, Factor]:
        """The factors of continuous latents, by name."""
        return self.structure.factors

    def begin(self) -> None:
        """Start near the prior: means where it draws them, and no factor wider than a few data leave it."""
        self._checked, self._probes = set(), {}
        self._begin(self.factors, drawn(self.model, self.batch))

    def _begin(self, names: Iterable[str], priors: Mapping[str, Site]) -> None:
        """Start some factors near their priors, and discrete latents with all values as probable."""
        for name in names:
            self.set(name, self.factors[name].beginning({site: priors[site] for site in self.factors[name].sites}))
        for site, dim in self.structure.discrete.items():
            values = self.structure.values[site]
            even = self._like().new_full([values] + [1] * (-dim - 1), 1 / values)
            self.expected.weigh_discrete(site, even.expand(*even.shape[:-1], len(self.batch[0])))

    def _like(self) -> Tensor:
        etas = [eta[0] for eta in self.eta.values()]
        return etas[0] if etas else torch.zeros((), dtype=torch.get_default_dtype())

    @torch.no_grad()
    def set(self, name: str, eta: Natural) -> None:
        """Give a factor its natural parameters.

        Raises:
            ContractError: they belong to no distribution of the family.
        """
        factor = self.factors[name]
        if not bool((valid := factor.family.valid(eta)).all()):
            raise ContractError(
                f"site '{factor.name}': its optimal factor has no finite mass{where(~valid)}; the data may be "
                "constant, or the prior improper: give it a proper prior"
            )
        self.eta[name] = eta
        if name in self.point:
            factor.check_peak(eta)
            self.expected.put(name, factor.mode(eta), factor.statistics_at_mode(eta))
        else:
            mean = factor.family.mean(eta)
            self.expected.put(name, factor.points(mean), mean)

    @torch.no_grad()
    def update_discrete(self, site: str) -> None:
        """Give a discrete latent its optimal probabilities, given the other factors."""
        dim, readers = self.structure.discrete[site], [*self.structure.in_data]
        shape = self.expected.weights[site].shape
        if shape[dim] == 1:
            return
        self._summed = None
        tables = {name: self.expected.table(name, term) for name, term in self.expected.terms(readers).items()}
        reading = [name for name, table in tables.items() if table.dim() >= -dim and table.shape[dim] > 1]
        logits = reduce(torch.add, (self.expected.contracted(tables.pop(name), besides=site) for name in reading))
        everywhere = logits.expand(torch.broadcast_shapes(logits.shape, shape))  # sums leave axes of one in front
        weights, totals = normalised(everywhere.reshape(shape), dim)
        self.expected.weigh_discrete(site, weights)
        self._summed = Summed(site, reading, totals.sum(), dict(self.eta), dict(self.expected.weights))

    def update(self, name: str, rate: float = 1.0) -> None:
        """Move a factor to its optimum given the others, or a share of the way in natural parameters."""
        optimal = self.optimal(name)
        self.set(name, self.factors[name].family.blend(self.eta[name], optimal, rate) if rate < 1 else optimal)

    def optimal(self, name: str) -> Natural:
        """Return the natural parameters of the best factor, given the others.

        Raises:
            ContractError: the program is not conjugate in it.
        """
        family = self.factors[name].family
        found = self._optimum(name, self._kept_probe(name))
        if name in self._checked:
            return found
        for k in range(1, LOOKS):
            # At the optimum itself numbers have its size, and rounding is small.
            at = found if bool(family.valid(found).all()) else self.eta[name]
            before, found = found, self._optimum(name, self._probe(name, at, k % 2))
            if alike(family, before, found):
                self._checked.add(name)
                return found
        kind = contract.kind(next(iter(self.factors[name].distributions(self.eta[name]).values())))
        raise ContractError(
            f"site '{name}': the log density is not linear in the statistics of its factor ({kind}) given the others, "
            "since its gradient depends on where it is taken, so that the factor has no closed form; write the model "
            "with a conjugate prior, or fit a guide to it (pv.variational_em, Pyro's SVI). Rounding may look so, too: "
            "compute in float64, and bring data and priors to one scale. So do elements of a plate that one site reads "
            "together: make them one vector, by .to_event(1) in place of the plate"
        )

    def _optimum(self, name: str, probe: Probe) -> Natural:
        """Return the best parameters of a factor by the slopes of the expected log joint."""
        factor = self.factors[name]
        total = partial(self._total, scale=1.0 if factor.local else self.scale)
        slopes = probe.slopes(name, self.expected, total)
        return tuple(part.detach() for part in factor.family.optimum(slopes, probe.mean))

    def _kept_probe(self, name: str) -> Probe:
        """Return a place near the factor as it is, where the program has run already if possible."""
        kept = self._probes.get(name)
        if kept and kept.serves(self.eta[name], self.expected.points):
            return kept
        made = self._probe(name, self.eta[name], 0)
        # Local factors are as many as data, which another batch does not share.
        if not made.on_all and not self.factors[name].local:
            self._probes[name] = made
        return made

    def _probe(self, name: str, eta: Natural, k: int) -> Probe:
        """Run the program with a factor near given parameters."""
        factor, readers = self.factors[name], self.structure.readers(name)
        at_once = [site for site in readers if site in self.structure.once]
        with torch.enable_grad():
            near = factor.family.mean(factor.family.near(eta, k))
            mean = tuple(m.detach().clone().requires_grad_() for m in near)
            points = factor.points(mean)
            terms = self.expected.near(name, points, mean).terms(at_once)
        read = set().union(*(self.structure.reads[site] for site in readers)) - {name}
        others = {other: self.expected.points[other] for other in read}
        on_all = [site for site in readers if site not in at_once]
        return Probe(mean, points, terms, on_all, self.eta[name], len(factor.family.batch), others)

    def _total(self, terms: Terms, scale: float) -> Tensor:
        in_data, total = self.structure.in_data, self.expected.total
        return sum(total(name, term) * (scale if name in in_data else 1.0) for name, term in terms.items())

    def update_local(self, sweeps: int = 1) -> None:
        """Bring the factors of each datum to their optimum, given the global ones and each other."""
        several = len(self.structure.discrete) + sum(factor.local for factor in self.factors.values()) > 1
        for _ in range(sweeps if several else 1):
            for site in self.structure.discrete:
                self.update_discrete(site)
            self.update_continuous()

    def update_continuous(self) -> None:
        """Bring the factors of each datum's continuous latents to their optimum, one after the other."""
        for name, factor in self.factors.items():
            if factor.local:
                self.update(name)

    def update_global(self, rate: float = 1.0) -> None:
        """Bring the factors that all data share to their optimum, or a share of the way, one after the other."""
        for name, factor in self.factors.items():
            if not factor.local:
                self.update(name, rate)

    def on(self, batch: Batch, scale: float = 1.0) -> "Factorised":
        """Return the posterior of other data, with the global factors of this one; local ones begin anew."""
        structure, priors = factorisation_on(self.structure, self.model, batch)
        return self._continued(Factorised(self.model, batch, structure, self.point, scale), priors)

    def part(self, rows: Tensor) -> "Factorised":
        """Return the same on some of the data, which stand for all; it shares what is kept of runs."""
        batch = tuple(part[rows.to(part.device)] for part in self.batch)
        structure, priors = factorisation_on(self.structure, self.model, batch)
        structure = replace(structure, origins=self.structure.origins)  # from which kept runs measure data
        other = Factorised(self.model, batch, structure, self.point, len(self.batch[0]) / len(rows))
        other._probes = self._probes
        return self._continued(other, priors)

    def _continued(self, other: "Factorised", priors: Mapping[str, Site]) -> "Factorised":
        other._checked = self._checked
        other.take(self)
        other._begin([name for name, factor in other.factors.items() if factor.local], priors)
        return other

    def take(self, other: "Factorised") -> None:
        """Take up the global factors of the same posterior on other data."""
        for name, factor in self.factors.items():
            if not factor.local:
                self.eta[name] = other.eta[name]
                self.expected.put(name, other.expected.points[name], other.expected.means.get(name))

    def load(self, eta: Mapping[str, Natural], weights: Mapping[str, Tensor]) -> None:
        """Take up natural parameters, and probabilities of discrete latents."""
        for name, parameters in eta.items():
            self.set(name, parameters)
        for site, probabilities in weights.items():
            self.expected.weigh_discrete(site, probabilities)

    def probabilities(self) -> dict[str, Tensor]:
        """Return the probabilities of each discrete latent, ``(N, C)``."""
        weights = self.expected.weights
        return {site: weights[site].movedim(dim, 0).flatten(1).mT for site, dim in self.structure.discrete.items()}

    def distributions(self) -> dict[str, Any]:
        """Return the marginal distribution of each continuous latent; `Delta` of a point mass."""
        found = {}
        for name, factor in self.factors.items():
            found |= factor.distributions(self.eta[name])
            if name in self.point:
                modes = factor.mode(self.eta[name])
                found |= {site: dist.Delta(v[0], event_dim=len(found[site].event_shape)) for site, v in modes.items()}
        return found

    @property
    def uncertain(self) -> bool:
        """Whether any global latent has more than one value."""
        return any(not factor.local and name not in self.point for name, factor in self.factors.items())

    def sample(self, n: int) -> Values:
        """Draw the continuous latents, ``(n, ...)``."""
        found = {}
        for name, factor in self.factors.items():
            if name in self.point:
                found |= {site: mode.expand(n, *mode.shape[1:]) for site, mode in factor.mode(self.eta[name]).items()}
            else:
                found |= factor.sample(self.eta[name], n)
        return found

    @torch.no_grad()
    def elbo(self) -> Tensor:
        """Return the evidence lower bound of all data, in nats; the entropy of point masses is left out."""
        weights = self.expected.weights
        known = self._summed if self._summed and self._summed.holds(self.eta, weights) else None
        sites = [site for site in self.structure.reads if known is None or site not in known.sites]
        value = self._total(self.expected.terms(sites), self.scale)
        for name, factor in self.factors.items():
            if name not in self.point:
                value = value + factor.family.entropy(self.eta[name]).sum() * (self.scale if factor.local else 1.0)
        for site, table in weights.items():
            own = known.value if known and site == known.site else torch.special.entr(table).sum()
            value = value + own * self.scale
        return value


def factorised(model: Program, batch: Batch, joint: Joint | None = None, point: Collection[str] = ()) -> Factorised:
    """Return the posterior of a program, near its prior.

    Args:
        model: Pyro program.
        batch: tensors.
        joint: pairs of a mean and its precision that share a factor; None finds them.
        point: sites whose factor is a point mass at the mode of the optimal factor.

    Raises:
        ContractError: the program has a latent that no factor fits, or none of a name.
    """
    structure = factorisation_of(model, batch, joint)
    made = Factorised(model, batch, structure, _points(structure, point))
    made.begin()
    return made


def _points(structure: Factorisation, point: Collection[str]) -> frozenset[str]:
    owner = {site: factor for factor in structure.factors.values() for site in factor.sites}
    point = frozenset(point)
    for site in point:
        if site not in owner:
            raise ContractError(
                f"point: '{site}' is no continuous latent of the program; there are {', '.join(owner) or 'none'}"
            )
        if not set(owner[site].sites) <= set(point):
            raise ContractError(
                f"point: '{owner[site].name}' is one factor, which is a point mass or none; name both, or take them "
                "apart by joint=()"
            )
    return frozenset(owner[site].name for site in point)
