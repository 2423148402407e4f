"""NVIL: the score function with a learned baseline that sees the data."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.gradients import zero_with_gradient
from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.vocabulary import Estimate, moving_scores, objective
from ppl_vae.weighing import weigh

__all__ = ["NVIL"]


class _Rows(nn.Module):
    """Flatten each datum, numbers without an axis of their own too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1)


@objective(
    formula="sum_k m log w_k",
    reference="A. Mnih, K. Gregor 2014, arXiv:1402.0030",
    linear=True,
)
class NVIL(nn.Module):
    """The ELBO by the score function, with NVIL's baselines and variance normalisation.

    For sites drawn without reparameterisation (of any kind), others follow the path::

        signal_k = (log w_k - C(x) - c) / max(1, sqrt(v))

    C is a network of the data, trained to predict log w; c and v are running mean and variance of
    ``log w - C(x)`` over batches. Baselines leave the gradient unbiased; the division rescales the part
    of it that goes through the score.

    Args:
        x_dim: elements of a datum x, the first tensor of a batch.
        hidden: width of the baseline's hidden layer.
        baseline: a network ``(B, ...) -> (B, 1)`` or ``(B,)`` of x, instead of the one that is made.
        decay: of the running mean and variance.
        normalise: whether to divide by the running standard deviation.

    Reference: A. Mnih, K. Gregor, "Neural Variational Inference and Learning in Belief Networks",
    ICML 2014, https://arxiv.org/abs/1402.0030. (Without its signals local to a layer.)

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": ()}
        >>> nvil = pv.objectives.NVIL(x_dim=6)
        >>> value, surrogate = nvil.estimate(VAE(**sizes), Normal(**sizes), torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    bound = staticmethod(elbo)
    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        x_dim: int = 784,
        hidden: int = 100,
        baseline: nn.Module | None = None,
        decay: float = 0.8,
        normalise: bool = True,
    ):
        super().__init__()
        made = nn.Sequential(_Rows(), nn.Linear(x_dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.baseline = made if baseline is None else baseline
        self.decay, self.normalise = decay, normalise
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the ELBO, ``(B,)``, and what to differentiate."""
        record = weigh(model, guide, batch, particles, linear=True)
        x = batch[0] if isinstance(batch, tuple) else batch
        earned = record.log_w + sum(record.penalties.values())
        signal = earned.detach() - self.baseline(x).reshape(-1) - self.mean
        weight = signal.detach() / self._scale()
        moving = earned
        for score in moving_scores(record):
            # One more cancels the zero-mean gradient of -log q in log w.
            moving = moving + (weight + 1) * zero_with_gradient(score)
        if self.training:
            self._update(signal.detach())
        penalties = {name: record.mean(penalty).detach() for name, penalty in record.penalties.items()}
        surrogate = record.mean(moving) - record.mean(signal.square())
        return Estimate(self.bound(record).detach(), surrogate, penalties, record.scale)

    def _scale(self) -> Tensor | float:
        return self.variance.sqrt().clamp_min(1.0) if self.normalise else 1.0

    @torch.no_grad()
    def _update(self, signal: Tensor) -> None:
        """Take this batch into the averages, for the batches after it."""
        residual = signal + self.mean
        self.variance.lerp_(residual.var(correction=0).to(self.variance), 1 - self.decay)
        self.mean.lerp_(residual.mean().to(self.mean), 1 - self.decay)
