"""What coordinate ascent found: the factors of a posterior, and what they say of new data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vae.batches import Batch, as_batch
from ppl_vae.clusters import Clusters, responsibilities
from ppl_vae.conditioning import posterior
from ppl_vae.exporting import from_arrays
from ppl_vae.latent_structure import structure_of
from ppl_vae.mean_field import Factorised
from ppl_vae.point_estimate import check_finite
from ppl_vae.programs import Programs, forked_random_state
from ppl_vae.snapshots import as_it_was

__all__ = ["MeanField"]


@dataclass(frozen=True, repr=False, eq=False)
class MeanField(Clusters):
    """A factorised posterior. Printing it gives a sentence.

    Attributes:
        q: site name to the marginal of each continuous latent under q, as a distribution; a point mass is a `Delta`.
        history: ``"elbo"``, nats per datum; ``[0]`` is at the start, ``[i]`` after i iterations. The entropy of point
            masses is left out.
        converged: whether the last iteration changed it by less than the tolerance.
        iterations: how many there were.
        runs: the ELBO at the end of each restart, of which the best was kept.
        discrete: site name to the probabilities of the values of each discrete latent, ``(N, C)``.
        warnings: what speaks against the result, in sentences.
        subject: which model, in words.
        factorised: the posterior itself, to compute with.
        tensors: the model's parameters and buffers at the end, at which new data are met wherever training takes them.
    """

    q: Mapping[str, Any]
    history: Mapping[str, list[float]]
    converged: bool
    iterations: int
    runs: tuple[float, ...]
    discrete: Mapping[str, Tensor]
    warnings: tuple[str, ...]
    subject: str
    factorised: Factorised = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)

    def __len__(self) -> int:
        """The number of data N."""
        return len(self.factorised.batch[0])

    @property
    def elbo(self) -> float:
        """The evidence lower bound of all data together, in nats: at most log p(x)."""
        return self.history["elbo"][-1] * len(self)

    def sample(self, n: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Draw the continuous latents from q, ``(n, ...)`` by site.

        Args:
            n: how many draws.
            seed: of the draws; the caller's random state does not move.

        Example:
            >>> from ppl_vae.models.normal_gamma import NormalGamma
            >>> found = pv.cavi(NormalGamma(), torch.randn(20, 1))
            >>> {name: draws.shape for name, draws in found.sample(100).items()}
            {'mean': torch.Size([100...]), 'precision': torch.Size([100...])}
        """
        with forked_random_state(seed), torch.no_grad():
            return self.factorised.sample(n)

    def log_density(self, x: Any, draws: int = 500, seed: int = 0) -> Tensor:
        """Return the predictive log density of new data, ``(M,)``, in nats.

        ::

            log 1/S sum_s p(x | theta_s),    theta_s ~ q

        The latents of a new datum are summed and integrated out exactly; with point masses alone, nothing is drawn. The
        logarithm of a mean over draws is too low on average, by half its relative variance: the fewer draws, the more.

        Args:
            x: a batch ``(M, ...)``.
            draws: S, of the global latents.
            seed: of the draws.

        Raises:
            ContractError: the latents of a datum are neither discrete nor Gaussian given the global ones.

        Example:
            >>> from ppl_vae.models.beta_bernoulli import BetaBernoulli
            >>> found = pv.cavi(BetaBernoulli(), torch.tensor([[1.0], [1.0], [0.0]]))
            >>> bool((found.log_density(torch.ones(1, 1)).exp() - 3 / 5).abs() < 0.05)
            True
        """
        model = self.factorised.model
        names = [s for f in self.factorised.factors.values() if not f.local for s in f.sites]
        drawn = self.sample(draws if self.factorised.uncertain else 1, seed)
        with forked_random_state(seed), as_it_was(model, self.tensors), torch.no_grad():
            batch = self._taken(x)
            structure, _ = structure_of(model, batch)
            count = len(next(iter(drawn.values()))) if names else 1
            at = ({name: drawn[name][s] for name in names} for s in range(count))
            densities = torch.stack([posterior(structure, batch, points).log_px for points in at])
        return densities.logsumexp(0) - math.log(count)

    def predict(self, x: Any) -> Tensor:
        """Return responsibilities of the components for new data, ``(M, C)``.

        The optimal factor of each new datum, given the global ones.

        Args:
            x: a batch ``(M, ...)``.

        Raises:
            ValueError: the model does not have exactly one discrete latent for each datum.
        """
        with forked_random_state(), as_it_was(self.factorised.model, self.tensors), torch.no_grad():
            other = self.factorised.on(self._taken(x))
            other.update_local(sweeps=20)
        return responsibilities(other.probabilities())

    def _taken(self, x: Any) -> Batch:
        """Return new data where the model is, which may have gone elsewhere since."""
        batch = as_batch(x)
        check_finite(batch)
        return Programs(self.factorised.model, self.factorised.model).on_device(batch)

    def to_arviz(self, draws: int = 1000, seed: int = 0) -> Any:
        """Return draws from q in the form of ArviZ.

        ``posterior`` has one chain of independent draws of the latents that all data share; ``constant_data`` has the
        responsibilities and the history.

        Args:
            draws: how many.
            seed: of the draws.

        Reference: R. Kumar, C. Carroll, A. Hartikainen, O. Martin, "ArviZ", JOSS 2019,
        https://doi.org/10.21105/joss.01143.

        Example:
            >>> from ppl_vae.models.normal_gamma import NormalGamma
            >>> found = pv.cavi(NormalGamma(), torch.randn(20, 1))
            >>> found.to_arviz(draws=50)["posterior"].sizes["draw"]
            50
        """
        local = {s for f in self.factorised.factors.values() if f.local for s in f.sites}
        sampled = {name: value for name, value in self.sample(draws, seed).items() if name not in local}
        dims = {("posterior", n): [f"{n}_dim_{i}" for i in range(t.dim() - 1)] for n, t in sampled.items()}
        tables = self._tables()
        dims |= {("constant_data", table): ["datum", name] for table, name in tables.items()}
        arrays = {
            "posterior": {name: value.cpu().numpy()[None] for name, value in sampled.items()},
            "constant_data": {
                "elbo": torch.tensor(self.history["elbo"], dtype=torch.float64).numpy(),
                **{table: self.discrete[name].cpu().numpy() for table, name in tables.items()},
            },
        }
        return from_arrays(arrays, {**dims, ("constant_data", "elbo"): ["iteration"]}, {"subject": self.subject})

    def __str__(self) -> str:
        return self._told(
            f"CAVI on {self.subject}: ELBO {self.history['elbo'][-1]:.4f} nats per datum, {self.elbo:.2f} for all "
            f"(N = {len(self):,})"
        )

    __repr__ = __str__
