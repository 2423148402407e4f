"""What maximum likelihood or maximum a posteriori found: a point, and exact posteriors of the latents there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vae.batches import as_batch, not_finite
from ppl_vae.clusters import Clusters, responsibilities
from ppl_vae.conditioning import Posterior, posterior
from ppl_vae.exporting import from_arrays
from ppl_vae.latent_structure import Structure
from ppl_vae.programs import Programs
from ppl_vae.snapshots import as_it_was

__all__ = ["Point", "PointEstimate", "check_finite"]


@dataclass(frozen=True, eq=False)
class Point:
    """A program at one place in its parameters.

    Attributes:
        structure: the program's latents.
        programs: its parameters, wherever they are now.
        tensors: what they are at this place, by name.
        points: values of the global latents.
    """

    structure: Structure
    programs: Programs
    tensors: Mapping[str, Tensor]
    points: Mapping[str, Tensor]

    def posterior(self, x: Any) -> Posterior:
        """Condition on data; the program's own parameters stay as they are."""
        batch = self.programs.on_device(as_batch(x))
        check_finite(batch)
        with as_it_was(self.structure.model, self.tensors):
            return posterior(self.structure, batch, self.points)


def check_finite(batch: tuple[Tensor, ...]) -> None:
    """Raise if a number of the data is NaN or infinite.

    Example:
        >>> check_finite((torch.tensor([[1.0], [torch.nan]]),))
        Traceback (most recent call last):
            ...
        ValueError: data: row 1 of part 0 holds NaN or infinite numbers; ...
    """
    if found := not_finite(batch):
        raise ValueError(f"data: {found}")


@dataclass(frozen=True, repr=False, eq=False)
class PointEstimate(Clusters):
    """Parameters that maximise a likelihood, or a posterior density. Printing it gives a sentence.

    Attributes:
        parameters: values of global latents by site name, of the program's parameters by name.
        history: ``"log_likelihood"`` and, where there are priors, ``"log_posterior"`` (log-likelihood plus log density
            of the parameters / N), nats per datum; ``[0]`` is at the start, ``[i]`` after i iterations.
        converged: whether the last iteration changed it by less than the tolerance.
        iterations: how many there were.
        runs: the value at the end of each restart, of which the best was kept.
        discrete: site name to posterior probabilities of the values of each discrete latent, ``(N, C)``.
        log_px: log p(x) of each datum, ``(N,)``, in nats.
        warnings: what speaks against the result, in sentences.
        subject: which model, in words.
        point: the program at these parameters, wherever training takes it next.
    """

    parameters: Mapping[str, Tensor]
    history: Mapping[str, list[float]]
    converged: bool
    iterations: int
    runs: tuple[float, ...]
    discrete: Mapping[str, Tensor]
    log_px: Tensor
    warnings: tuple[str, ...]
    subject: str
    point: Point = field(repr=False)

    def __len__(self) -> int:
        """The number of data N."""
        return len(self.log_px)

    def log_density(self, x: Any) -> Tensor:
        """Return log p(x) of new data at the estimate, ``(M,)``, in nats: exact.

        Args:
            x: a batch ``(M, ...)``.

        Example:
            >>> from ppl_vae.models.linear_gaussian import LinearGaussian
            >>> model, x = LinearGaussian(x_dim=6, z_dim=2).double(), torch.randn(40, 6).double()
            >>> found = pv.em(model, x, iterations=2)
            >>> torch.allclose(found.log_density(x[:3]), model.log_px(x[:3]))
            True
        """
        return self.point.posterior(x).log_px

    def predict(self, x: Any) -> Tensor:
        """Return responsibilities of the components for new data, ``(M, C)``.

        Args:
            x: a batch ``(M, ...)``.

        Raises:
            ValueError: the model does not have exactly one discrete latent for each datum.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> class Sides(torch.nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.loc = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))
            ...
            ...     def forward(self, x):
            ...         with pyro.plate("data", x.shape[0], dim=-1):
            ...             y = pyro.sample("y", dist.Categorical(torch.ones(2)))
            ...             pyro.sample("x", dist.Normal(self.loc[y], 1.0), obs=x)
            >>> found = pv.em(Sides(), torch.tensor([-3.0, -2.9, 3.0, 3.1]))
            >>> found.predict(torch.tensor([-3.0, 3.0])).argmax(1) == found.labels[[0, 2]]
            tensor([True, True])
        """
        return responsibilities(self.point.posterior(x).discrete)

    def to_arviz(self) -> Any:
        """Return the estimate in the form of ArviZ.

        ``posterior`` has one chain with one draw of each parameter, and the responsibilities; ``log_likelihood`` has
        log p(x) of each datum; ``constant_data`` has the history.

        Reference: R. Kumar, C. Carroll, A. Hartikainen, O. Martin, "ArviZ", JOSS 2019,
        https://doi.org/10.21105/joss.01143.

        Example:
            >>> from ppl_vae.models.linear_gaussian import LinearGaussian
            >>> found = pv.em(LinearGaussian(x_dim=6, z_dim=2), torch.randn(40, 6), iterations=2)
            >>> found.to_arviz()["posterior"]["weight"].dims
            ('chain', 'draw', 'weight_dim_0', 'weight_dim_1')
        """
        tables = self._tables()
        sampled = {**self.parameters, **{table: self.discrete[name] for table, name in tables.items()}}
        dims = {("posterior", n): [f"{n}_dim_{i}" for i in range(t.dim())] for n, t in self.parameters.items()}
        dims |= {("posterior", table): ["datum", name] for table, name in tables.items()}
        dims |= {("constant_data", name): ["iteration"] for name in self.history}
        arrays = {
            "posterior": {name: value.detach().cpu().numpy()[None, None] for name, value in sampled.items()},
            "log_likelihood": {"log_px": self.log_px.cpu().numpy()[None, None]},
            "constant_data": {name: torch.tensor(values).double().numpy() for name, values in self.history.items()},
        }
        return from_arrays(arrays, {**dims, ("log_likelihood", "log_px"): ["datum"]}, {"subject": self.subject})

    def __str__(self) -> str:
        prior = f", log-posterior {self.history['log_posterior'][-1]:.4f}" if "log_posterior" in self.history else ""
        return self._told(
            f"EM on {self.subject}: log-likelihood {self.history['log_likelihood'][-1]:.4f}{prior} nats per datum "
            f"(N = {len(self):,})"
        )

    __repr__ = __str__
