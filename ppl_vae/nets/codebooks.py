"""Codebooks, which name vectors by one-hot codes, and heads that turn logits into distributions over codes."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import distributions
from ppl_vae.arguments import positive, whole
from ppl_vae.nets.precision import at_least_single

__all__ = ["AveragedCodebook", "LearnedCodebook", "ToCodes", "ToRelaxedCodes"]


class AveragedCodebook(nn.Module):
    """Code vectors that follow the vectors that are assigned to them, by moving averages.

    In each training step, n_j vectors of the batch are nearest to code j, and s_j is their sum::

        N_j <- decay N_j + (1 - decay) n_j
        e_j <- e_j + (1 - decay) (s_j - n_j e_j) / N_j

    so that e_j is the average of the vectors of past batches with weights that fall by ``decay`` from batch to batch
    (with a decay of 0, their mean in the last batch). A code whose N_j is less than ``restart`` of the
    average over codes starts again from a vector of the batch, drawn at random.

    The averages belong to the batches that have been seen; a step looks its codes up in the codebook that it assigned
    them by, and evaluation in the newest. Nothing moves in evaluation mode.

    Args:
        codes: C, number of vectors.
        z_dim: D, their size.
        decay: from 0 to less than 1.
        commitment: weight of the squared distance between a vector and its code, in nats.
        restart: share of average use below which a code starts again; 0 for never.

    Raises:
        ValueError: an argument is outside its range.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
    https://arxiv.org/abs/1711.00937, appendix A.1; A. Razavi, A. van den Oord, O. Vinyals, "Generating Diverse
    High-Fidelity Images with VQ-VAE-2", NeurIPS 2019, https://arxiv.org/abs/1906.00446; restarts as in P. Dhariwal et
    al., "Jukebox", 2020, https://arxiv.org/abs/2005.00341.

    Example:
        >>> codebook = AveragedCodebook(codes=8, z_dim=2)
        >>> c = codebook.nearest(torch.zeros(5, 4, 2)).rsample()
        >>> c.shape, codebook(c).shape
        (torch.Size([5, 4, 8]), torch.Size([5, 4, 2]))
    """

    def __init__(
        self, codes: int = 32, z_dim: int = 8, decay: float = 0.99, commitment: float = 0.25, restart: float = 0.05
    ):
        super().__init__()
        for name, value in (("decay", decay), ("restart", restart)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number from 0 to less than 1, found {value!r}")
        self.decay, self.commitment, self.restart = decay, _weight(commitment), restart
        self.register_buffer("newest", torch.randn(whole("codes", codes), whole("z_dim", z_dim)))
        self.register_buffer("vectors", self.newest.clone())  # those of the step at hand
        self.register_buffer("counts", torch.zeros(codes))

    def in_use(self) -> Tensor:
        """Return the code vectors, ``(C, D)``, without gradient."""
        # A copy, since the next run of a guide changes them while the graph of this one may still be needed.
        return self.vectors.clone() if self.training else self.newest

    def forward(self, c: Tensor) -> Tensor:
        """Return the vectors ``(..., D)`` of codes ``(..., C)``."""
        return _vectors(c, self.in_use())

    def nearest(self, z: Tensor) -> dist.TorchDistribution:
        """Return the distribution over codes ``(positions, C)`` of vectors ``(..., positions, D)``, and learn."""
        z = at_least_single(z)
        if self.training:
            with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
                self.vectors.copy_(self.newest)
                self._follow(z.flatten(0, -2))
        return distributions.NearestCode(z, self.in_use()).to_event(1)

    def penalties(self, z: Tensor) -> dict[str, Tensor]:
        """Return what training is to make small, by name, in nats ``(...)``."""
        z = at_least_single(z)
        return {"commitment": self.commitment * _gap(z, _nearest_vectors(z, self.in_use()))}

    def _follow(self, z: Tensor) -> None:
        """Average in the vectors ``(N, D)`` of a batch."""
        code = distributions.NearestCode(z, self.vectors).code
        uses = code.sum(0)
        counts = self.decay * self.counts + (1 - self.decay) * uses
        steps = (1 - self.decay) * (code.T @ z - uses.unsqueeze(-1) * self.vectors) / _positive(counts)
        few = counts < self.restart * counts.mean()
        drawn = z[(torch.rand_like(counts) * z.shape[0]).long().clamp_max(z.shape[0] - 1)]
        self.newest.copy_(torch.where(few.unsqueeze(-1), drawn, self.vectors + steps))
        self.counts.copy_(torch.where(few, counts.mean(), counts))


class LearnedCodebook(nn.Module):
    """Code vectors that an optimizer moves towards the vectors that are assigned to them.

    The likelihood does not move them: the penalty ``penalty_codebook``, the squared distance of each vector from its
    code, does.

    Args:
        codes: C, number of vectors.
        z_dim: D, their size.
        commitment: weight of the squared distance by which vectors move towards codes, in nats.

    Raises:
        ValueError: the weight is negative.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
    https://arxiv.org/abs/1711.00937, equation 3.

    Example:
        >>> codebook = LearnedCodebook(codes=8, z_dim=2)
        >>> sorted(codebook.penalties(torch.zeros(5, 4, 2)))
        ['codebook', 'commitment']
    """

    def __init__(self, codes: int = 32, z_dim: int = 8, commitment: float = 0.25):
        super().__init__()
        self.commitment = _weight(commitment)
        self.vectors = nn.Parameter(torch.randn(whole("codes", codes), whole("z_dim", z_dim)))

    def in_use(self) -> Tensor:
        """Return the code vectors, ``(C, D)``, without gradient."""
        return self.vectors.detach()

    def forward(self, c: Tensor) -> Tensor:
        """Return the vectors ``(..., D)`` of codes ``(..., C)``."""
        return _vectors(c, self.in_use())

    def nearest(self, z: Tensor) -> dist.TorchDistribution:
        """Return the distribution over codes ``(positions, C)`` of vectors ``(..., positions, D)``."""
        return distributions.NearestCode(at_least_single(z), self.in_use()).to_event(1)

    def penalties(self, z: Tensor) -> dict[str, Tensor]:
        """Return what training is to make small, by name, in nats ``(...)``."""
        z = at_least_single(z)
        found = _nearest_vectors(z, self.vectors)
        return {"commitment": self.commitment * _gap(z, found.detach()), "codebook": _gap(z.detach(), found)}


class ToCodes(nn.Module):
    """Logits ``(..., positions, C)`` to independent one-hot codes with event shape ``(positions, C)``.

    Example:
        >>> ToCodes()(torch.zeros(5, 4, 16)).event_shape
        torch.Size([4, 16])
    """

    def forward(self, logits: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return distributions.OneHotCodes(logits=at_least_single(logits)).to_event(1)


class ToRelaxedCodes(nn.Module):
    """Logits ``(..., positions, C)`` to independent relaxed codes with event shape ``(positions, C)``.

    Args:
        temperature: a positive number.

    Raises:
        ValueError: it is not positive.

    Example:
        >>> ToRelaxedCodes(0.5)(torch.zeros(5, 4, 16)).event_shape
        torch.Size([4, 16])
    """

    def __init__(self, temperature: float = 2 / 3):
        super().__init__()
        self.register_buffer("temperature", torch.tensor(positive("temperature", temperature)))

    def forward(self, logits: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return distributions.RelaxedOneHot(self.temperature, logits=at_least_single(logits)).to_event(1)


def _vectors(c: Tensor, codebook: Tensor) -> Tensor:
    if c.shape[-1] != len(codebook):
        raise ValueError(
            f"codebook: has {len(codebook)} vectors, found codes of shape {tuple(c.shape)}, of which each is one of "
            f"{c.shape[-1]}; give the model, or its prior, codes={len(codebook)}"
        )
    return c @ codebook


def _weight(commitment: float) -> float:
    if not commitment >= 0:
        raise ValueError(f"commitment: expected a number of at least 0, found {commitment!r}")
    return commitment


def _nearest_vectors(z: Tensor, codebook: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        return distributions.NearestCode(z, codebook).code @ codebook


def _gap(z: Tensor, vectors: Tensor) -> Tensor:
    """Return the squared distance, summed over positions."""
    return (z - vectors).square().sum((-1, -2))


def _positive(counts: Tensor) -> Tensor:
    # Without a vector ever assigned there is nothing to average: the step is zero, whatever it is divided by.
    return counts.clamp_min(torch.finfo(counts.dtype).tiny).unsqueeze(-1)
