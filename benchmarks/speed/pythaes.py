"""pythae's models on the same networks, driven as its trainer drives them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.programs import X_DIM, Z_DIM, Workload
from benchmarks.speed.timing import Contender


def contenders(workload: Workload, x: Tensor) -> list[Contender]:
    """Return pythae's step, where it has the model."""
    if workload.make.__name__ not in ("vae", "convolutional"):
        return []
    net, still = model_of(workload), model_of(workload)
    # Its trainer's default optimizer.
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def run() -> None:
        output = net({"data": x})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        output.loss.item()  # as its trainer does in every step

    # Its IWAE reports sum_k w_k log w_k, which is not the bound.
    return [Contender("pythae", run, loss=loss_of(still, x) if workload.particles == 1 else None)]


def loss_of(net: Any, x: Tensor) -> Callable[[], float]:
    """Return what computes a loss once."""

    @torch.no_grad()
    def loss() -> float:
        return float(net({"data": x}).loss)

    return loss


def model_of(workload: Workload) -> Any:
    """Return pythae's model around the networks of a workload."""
    from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    model, guide = workload.plain_pair()

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            loc, raw = self.net(x).chunk(2, dim=-1)
            return ModelOutput(embedding=loc, log_covariance=2 * (F.softplus(raw) + 1e-4).log())

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    parts = Encoder(guide.encoder[0]), Decoder(model.decoder[0])
    options = {"input_dim": (X_DIM,), "latent_dim": Z_DIM, "reconstruction_loss": "bce"}
    if workload.particles > 1:
        return IWAE(IWAEConfig(**options, number_samples=workload.particles), *parts)
    return VAE(VAEConfig(**options), *parts)
