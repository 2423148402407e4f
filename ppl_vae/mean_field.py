"""Coordinate ascent on the factors of a mean-field posterior.

The optimal factor given the others is ``q_j(v) ~ exp E[log p]``. For a conjugate program ``E log p`` is linear in
the statistics of v, so its natural parameters are a gradient::

    eta_j = d E[log p(x, z)] / d E[t(z_j)]

and autograd finds it, whatever the program computes. Nothing is derived by hand for a model.

Reference: D. Blei, A. Kucukelbir, J. McAuliffe, "Variational Inference: A Review for Statisticians", JASA 2017,
https://arxiv.org/abs/1601.00670; updates as gradients in expected statistics as in M. E. Khan, W. Lin,
"Conjugate-Computation Variational Inference", AISTATS 2017, https://arxiv.org/abs/1703.04265, and M. Hoffman,
M. Johnson, D. Tran, "Autoconj", NeurIPS 2018, https://arxiv.org/abs/1811.11926; minibatches as in M. Hoffman,
D. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference", JMLR 2013, https://jmlr.org/papers/v14/hoffman13a.html.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError
from ppl_vae.expectations import Expectations
from ppl_vae.factors import Factor
from ppl_vae.families import Dirichlet, Natural, Wishart, symmetric
from ppl_vae.programs import Program
from ppl_vae.structure import Joint, Structure, run, structure_of

__all__ = ["Posterior"]

# How far two gradients of a linear function may differ, in parts of the larger.
LINEAR = {torch.float64: 1e-6, torch.float32: 1e-2}


class Posterior:
    """A mean-field posterior over the latents of a program, and its coordinate updates on one batch.

    Args:
        model: Pyro program.
        batch: tensors.
        joint: pairs of a mean and its precision that share a factor; None finds them.
        point: factors, by a site's name, that are a point mass at the mode of the optimal factor.
        scale: N / B, how many data each datum of the batch stands for.
    """

    def __init__(
        self, model: Program, batch: Batch, joint: Joint | None = None, point: Collection[str] = (), scale: float = 1.0
    ):
        self.model, self.batch, self.scale = model, batch, scale
        self.structure: Structure = structure_of(model, batch, joint)
        self.point = self._named(point)
        self.eta: dict[str, Natural] = {}
        self.expected = Expectations(model, batch, self.structure)
        self._checked: set[str] = set()
        self._begin()

    @property
    def factors(self) -> Mapping[str, Factor]:
        """The factors of continuous latents, by name."""
        return self.structure.factors

    def _named(self, point: Collection[str]) -> frozenset[str]:
        owner = {site: name for name, factor in self.factors.items() for site in factor.sites}
        for site in point:
            if site not in owner:
                raise ContractError(
                    f"point: '{site}' is no continuous latent of the program; there are {', '.join(owner) or 'none'}"
                )
        return frozenset(owner[site] for site in point)

    def _begin(self) -> None:
        """Start from the prior, made no wider than a single observation leaves it, means where the prior draws them."""
        sites = run(self.model, self.batch, {}, self.structure.first_dim)
        for name, factor in self.factors.items():
            self.set(name, beginning(factor, sites))
        for site, dim in self.structure.discrete.items():
            values = len(sites[site]["value"].movedim(dim, 0))
            shape = [values] + [1] * (-dim - 2) + [len(self.batch[0])]
            self.expected.weigh_discrete(site, torch.full(shape, 1 / values).to(self._like()))

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
        if not bool(factor.family.valid(eta).all()):
            wrong = (~factor.family.valid(eta)).nonzero().tolist()[:3]
            raise ContractError(
                f"site '{factor.name}': its optimal factor has no finite mass (elements {wrong}); the data may be "
                "constant, or the prior improper: give it a proper prior"
            )
        self.eta[name] = eta
        if name in self.point:
            self.expected.points[name] = factor.mode(eta)
            self.expected.means.pop(name, None)
            if (mean := at_point(factor, factor.family.mode(eta))) is not None:
                self.expected.means[name] = mean
        else:
            mean = factor.family.mean(eta)
            self.expected.means[name], self.expected.points[name] = mean, factor.points(mean)

    @torch.no_grad()
    def update_discrete(self, site: str) -> None:
        """Give a discrete latent its optimal probabilities, given the other factors."""
        dim = self.structure.discrete[site]
        readers = list(self.structure.in_data)
        runs = self.expected.runs(readers)
        tables = (self.expected.table(name, runs) for name in readers)
        reading = (table for table in tables if table.dim() >= -dim and table.shape[dim] > 1)
        logits = sum(self.expected.contracted(table, besides=site) for table in reading)
        self.expected.weigh_discrete(site, logits.softmax(dim))

    def update(self, name: str, rate: float = 1.0) -> None:
        """Move a factor to its optimum given the others, or a share of the way in natural parameters."""
        optimal = self.optimal(name)
        if rate < 1:
            optimal = tuple((1 - rate) * old + rate * new for old, new in zip(self.eta[name], optimal, strict=True))
        self.set(name, optimal)

    def optimal(self, name: str) -> Natural:
        """Return the natural parameters of the best factor, given the others.

        Raises:
            ContractError: the program is not conjugate in it.
        """
        found = self._gradient(name, 0)
        if name not in self._checked:
            other = self._gradient(name, 1)
            if any(not alike(a, b) for a, b in zip(found, other, strict=True)):
                raise ContractError(
                    f"site '{name}': the log density is not linear in the statistics of "
                    f"{type(self.factors[name].family).__name__} given the other factors (its gradient depends on "
                    "where it is taken), so that its factor has no closed form; write it with a conjugate prior, or fit "
                    "a guide to it (pv.variational_em, Pyro's SVI)"
                )
            self._checked.add(name)
        return found

    def _gradient(self, name: str, reference: int) -> Natural:
        """Return the gradient of the expected log joint in a factor's expected statistics, at a harmless place."""
        factor = self.factors[name]
        with torch.enable_grad():
            mean = tuple(
                m.detach().clone().requires_grad_() for m in factor.family.mean(factor.family.reference(reference))
            )
            moved = Expectations(
                self.model,
                self.batch,
                self.structure,
                self.expected.points | {name: factor.points(mean)},
                self.expected.means | {name: mean},
                self.expected.weights,
                self.expected._moments,
            )
            total = self._total(moved, self.structure.readers(name), 1.0 if factor.local else self.scale)
            slopes = torch.autograd.grad(total, mean, allow_unused=True, materialize_grads=True)
        # Of families with a matrix among their statistics, it is the second.
        return tuple(symmetric(slope) if i == 1 else slope for i, slope in enumerate(slopes))

    def _total(self, expected: Expectations, sites: Collection[str], scale: float) -> Tensor:
        runs = expected.runs(sites)
        return sum(expected.total(name, runs) * (scale if name in self.structure.in_data else 1.0) for name in sites)

    @torch.no_grad()
    def elbo(self) -> Tensor:
        """Return the evidence lower bound of all data, in nats; the entropy of point masses is left out."""
        value = self._total(self.expected, list(self.structure.reads), self.scale)
        for name, factor in self.factors.items():
            if name not in self.point:
                value = value + factor.family.entropy(self.eta[name]).sum() * (self.scale if factor.local else 1.0)
        for weights in self.expected.weights.values():
            value = value + torch.special.entr(weights).sum() * self.scale
        return value


def beginning(factor: Factor, sites: Mapping[str, Any]) -> Natural:
    """Return harmless natural parameters near a prior; see `Posterior`."""
    return factor.family.reference(0)


def at_point(factor: Factor, values: tuple[Tensor, ...]) -> Natural | None:
    """Return the statistics of a value, where `Expectations` asks for them."""
    if isinstance(factor.family, Dirichlet):
        return (values[0].log(),)
    if isinstance(factor.family, Wishart):
        return values[0].logdet(), values[0]
    return None


def alike(a: Tensor, b: Tensor) -> bool:
    """Tell whether two gradients agree, as those of a linear function do."""
    size = torch.maximum(a.abs().max(), b.abs().max()).clamp_min(1.0)
    return bool((a - b).abs().max() <= LINEAR.get(a.dtype, 1e-2) * size)
