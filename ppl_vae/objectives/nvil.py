"""NVIL: the score function with a learned baseline that sees the data."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.gradients import gap, zero_with_gradient
from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.options import checked, whole
from ppl_vae.objectives.vocabulary import Estimate, moving_scores, objective
from ppl_vae.weighing import weigh

__all__ = ["NVIL"]


class _Rows(nn.Module):
    """Flatten each datum, numbers without an axis of their own too; whole numbers become real."""

    def __init__(self, x_dim: int):
        super().__init__()
        self.x_dim = x_dim
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], -1)
        if rows.shape[1] != self.x_dim:
            raise ValueError(
                f"objective: NVIL's baseline takes {self.x_dim} elements, found {rows.shape[1]} in a datum; make it "
                f"NVIL(x_dim={rows.shape[1]})"
            )
        return rows if rows.is_floating_point() else rows.to(self.like.dtype)


@objective(
    formula="sum_k m log w_k",
    reference="A. Mnih, K. Gregor 2014, arXiv:1402.0030",
    linear=True,
    discrete=True,
    exempt={"unbiased": "it is divided by a running standard deviation, unless normalise=False"},
)
class NVIL(nn.Module):
    """The ELBO by the score function, with NVIL's baselines and variance normalisation.

    For sites drawn without reparameterisation (of any kind), others follow the path::

        signal_k = (log w_k - c) / s - C(x),    s = max(1, sqrt(v))

    c and v are running mean and variance of log w over earlier batches, C a network of the data that
    is trained to predict the rest. (In the paper C comes first; a network that predicts numbers of
    order one learns as fast whatever the size of the data.) Baselines leave the gradient unbiased; the
    division rescales the part of it that goes through the score. The first batch of a training has
    no earlier ones and takes its own mean and variance: far off the mean, its gradient would fill an
    optimizer's moments, and training would crawl until they have faded.

    Args:
        x_dim: elements of a datum x, the first tensor of a batch.
        hidden: width of the baseline's hidden layer.
        baseline: a network ``(B, ...) -> (B, 1)`` or ``(B,)`` of x, instead of the one that is made.
        decay: of the running mean and variance, from 0 to 1.
        normalise: whether the gradient is divided by s; else the signal is multiplied by it again.

    Raises:
        ValueError: decay is outside [0, 1); x has another number of elements than the baseline takes.

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
    started: Tensor

    def __init__(
        self,
        x_dim: int = 784,
        hidden: int = 100,
        baseline: nn.Module | None = None,
        decay: float = 0.8,
        normalise: bool = True,
    ):
        super().__init__()
        checked("decay", decay, "a number from 0 to 1, 1 excluded", lambda d: 0 <= d < 1)
        if baseline is not None and not isinstance(baseline, nn.Module):
            raise TypeError(f"baseline: expected a network of x, (B, ...) -> (B, 1), found {baseline!r}")
        whole("hidden", hidden)
        made = nn.Sequential(_Rows(x_dim), nn.Linear(x_dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.baseline = made if baseline is None else baseline
        self.decay, self.normalise = decay, normalise
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the ELBO, ``(B,)``, and what to differentiate."""
        record = weigh(model, guide, batch, particles, linear=True)
        x = batch[0] if isinstance(batch, tuple) else batch
        earned = record.log_w + sum(record.penalties.values())
        per_draw = record.per_draw(earned).detach()
        mean, variance = self._moments(per_draw)
        scale = variance.sqrt().clamp_min(1.0)
        predicted = self._predicted(x)
        residual = gap(per_draw, mean) / scale - predicted
        # Values that the guide enumerates have signals of their own, around the baseline of their draw.
        signal = gap(earned, mean) / scale - predicted.detach()
        weight = signal * (1.0 if self.normalise else scale)
        moving = earned
        for score in moving_scores(record):
            # One more cancels the zero-mean gradient of -log q in log w.
            moving = moving + (weight + 1) * zero_with_gradient(score)
        if self.training:
            self._update(per_draw, mean, variance)
        penalties = {name: record.mean(penalty).detach() for name, penalty in record.penalties.items()}
        surrogate = record.mean(moving) - residual.square().mean(0)
        return Estimate(self.bound(record).detach(), surrogate, penalties, record.scale)

    def _predicted(self, x: Tensor) -> Tensor:
        rows = x.shape[0]  # not len(x), see as_batch
        try:
            predicted = self.baseline(x)
        except RuntimeError as error:
            error.add_note(f"(objective: NVIL's baseline on x of shape {tuple(x.shape)}, {x.dtype})")
            raise
        if predicted.shape not in ((rows,), (rows, 1)):
            raise ValueError(
                f"baseline: expected one number per datum, shape ({rows},) or ({rows}, 1), found "
                f"{tuple(predicted.shape)}; let its last layer have one output"
            )
        return predicted.reshape(-1)

    def _moments(self, earned: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance over earlier batches, or those of the first."""
        if not self.training:
            return self.mean, self.variance
        mean, variance = _mean_and_variance(earned, self.mean)
        return torch.where(self.started, self.mean, mean), torch.where(self.started, self.variance, variance)

    @torch.no_grad()
    def _update(self, earned: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Take this batch into the averages, for the batches after it."""
        for running, before, new in zip(
            (self.mean, self.variance), (mean, variance), _mean_and_variance(earned, mean), strict=True
        ):
            running.copy_(before.lerp(new, 1 - self.decay))
        self.started.fill_(True)


def _mean_and_variance(earned: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Over what is finite: one impossible draw must not undo the averages."""
    possible = earned.isfinite()
    count = possible.sum().clamp_min(1)
    mean = earned.masked_fill(~possible, 0.0).sum() / count
    variance = (earned - mean).masked_fill(~possible, 0.0).square().sum() / count
    return mean.to(like), variance.to(like)
