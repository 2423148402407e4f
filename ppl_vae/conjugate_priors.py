"""What programs with priors share: hyper-parameters, modes of posteriors, the Wishart distribution."""

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from ppl_vae.positive_definite import POSITIVE_DEFINITE

__all__ = ["Wishart", "dirichlet_mode", "hyper_parameter", "positive", "with_prior_mean"]


def hyper_parameter(value: float | Tensor, *shape: int) -> Tensor:
    """Return a prior's parameter in full: a number or a tensor that broadcasts to the shape.

    A number has the digits of torch's default dtype, and keeps these in ``model.double()``: 0.1 is 0.10000000149 there.
    Give a tensor of doubles where that matters.

    Example:
        >>> hyper_parameter(2.0, 3)
        tensor([2., 2., 2.])
    """
    return (1.0 * torch.as_tensor(value)).expand(shape).clone()


def with_prior_mean(x: Tensor, responsibilities: Tensor, mean: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the data with a prior's mean as one more datum, which every component holds with the prior's weight.

    A normal prior whose precision is that of the data, times a weight, acts as so many data at its mean.

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.
        mean: ``(D,)``.
        weight: a number of data.

    Returns:
        Data ``(N + 1, D)`` and weights ``(N + 1, C)``.

    Example:
        >>> from ppl_vae import components
        >>> components.moments(*with_prior_mean(torch.ones(3, 1), torch.ones(3, 1), torch.zeros(1), torch.tensor(1.0)))
        (tensor([4.]), tensor([[0.7500]]))
    """
    row = weight.expand(1, responsibilities.shape[1])
    return torch.cat([x, mean.unsqueeze(0)]), torch.cat([responsibilities, row])


def dirichlet_mode(concentration: Tensor, counts: Tensor, name: str = "concentration") -> Tensor:
    """Return the mode of a Dirichlet distribution after counts.

    ::

        pi_k = (alpha_k + N_k - 1) / sum_j (alpha_j + N_j - 1)

    Args:
        concentration: alpha, ``(..., C)``.
        counts: N, ``(..., C)``.
        name: what a message calls alpha.

    Returns:
        Probabilities ``(..., C)``.

    Raises:
        ValueError: alpha is below one, where the density is infinite at the simplex's edge; or it is
            one, and there are no counts, so that every point is a mode.

    Example:
        >>> dirichlet_mode(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
        tensor([0.7500, 0.2500])
    """
    if not (concentration >= 1).all():
        raise ValueError(
            f"{name}: the posterior has a mode if it is at least 1 everywhere, found {concentration.min():.3g}; give a "
            "larger one, or average over the posterior (cavi) instead of maximising"
        )
    excess = concentration - 1 + counts
    total = excess.sum(-1, keepdim=True)
    if not (total > 0).all():
        raise ValueError(f"{name}: at 1 it leaves a component without data undecided; give a larger one")
    return excess / total


def positive(value: Tensor, name: str) -> Tensor:
    """Return a value that must be above zero for a precision to have a mode.

    Raises:
        ValueError: it is not; the name is the prior's parameter that would make it so.

    Example:
        >>> positive(torch.tensor([0.5]), "shape")
        tensor([0.5000])
    """
    if not (value > 0).all():
        raise ValueError(
            f"{name}: too small for a component that holds hardly any data, whose precision has its mode at zero; give "
            "a larger one"
        )
    return value


class Wishart(dist.Wishart):
    """Wishart distribution for Pyro: with a bijection to its support, and draws taken as they come.

    Without the first no autoguide learns it; torch's own takes regular draws for singular ones, and draws them again.

    Reference: W. B. Smith, R. R. Hocking, "Algorithm AS 53: Wishart Variate Generator", Applied Statistics 1972,
    https://doi.org/10.2307/2346290.

    Example:
        >>> Wishart(torch.tensor(5.0), precision_matrix=torch.eye(2)).sample((3,)).shape
        torch.Size([3, 2, 2])
    """

    support = POSITIVE_DEFINITE

    def rsample(self, sample_shape: Size = Size(), max_try_correction: int | None = None) -> Tensor:  # noqa: B008
        """Draw by Bartlett's decomposition, once."""
        return self._bartlett_sampling(sample_shape)
