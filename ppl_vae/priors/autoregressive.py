"""Priors of discrete codes, drawn one after another."""

import pyro.distributions as dist
from torch import nn

from ppl_vae.distributions import Autoregressive, OneHotAutoregressive, allowed_tokens
from ppl_vae.nets import CausalTransformer

__all__ = ["AutoregressiveCodes"]


class AutoregressiveCodes(nn.Module):
    """A causal transformer over a grid of one-hot codes, read row by row.

        p(c) = prod_t softmax(transformer(c_1, ..., c_(t-1)))[c_t]

    It may be trained along with a model, whose `elbo` has log p(c) in it, or after it on codes that a guide drew, by
    `ppl_vae.models.token_transformer`, which is faster.

    Args:
        positions: number of codes of a datum.
        codes: how many different ones there are.
        width: of the transformer's vectors.
        layers: number of its blocks.
        heads: of each attention.
        transformer: in place of a new one, such as that of a trained `TokenTransformer`, with ``vocabulary`` and
            ``positions`` of at least these sizes.

    Raises:
        ValueError: the transformer has fewer positions, or another vocabulary.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
    https://arxiv.org/abs/1711.00937; A. Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021,
    https://arxiv.org/abs/2102.12092.

    Example:
        >>> prior = AutoregressiveCodes(positions=16, codes=32)
        >>> prior().event_shape, prior().sample((3,)).shape
        (torch.Size([16, 32]), torch.Size([3, 16, 32]))
    """

    def __init__(
        self,
        positions: int = 4,
        codes: int = 32,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        transformer: nn.Module | None = None,
    ):
        super().__init__()
        self.transformer = transformer or CausalTransformer(codes, positions, width, layers, heads)
        if self.transformer.vocabulary != codes or self.transformer.positions < positions:
            raise ValueError(
                f"transformer: expected {codes} tokens and at least {positions} positions, found "
                f"{self.transformer.vocabulary} and {self.transformer.positions}"
            )
        allowed = allowed_tokens([range(codes)] * positions, codes)
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(c)."""
        return OneHotAutoregressive(Autoregressive(self.transformer, self.allowed))
