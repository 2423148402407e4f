"""Token transformer: sequences of whole numbers, each drawn given those before it.

Generative process, for each datum::

    x_t ~ Categorical(softmax(transformer(x_1, ..., x_(t-1)))),    t = 1, ..., T

There are no latents, so that a weight under `guides/empty.py` is p(x) exactly. Its data are texts, or the codes that a
guide has drawn of images, row by row. Its transformer is then the prior of the codes in the model of the images: what
the bound there loses by the uniform prior, it gains here.

| symbol | site | shape    |
| ------ | ---- | -------- |
| x      | "x"  | (x_dim,) |

Reference: A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762; for codes of
images A. Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, https://arxiv.org/abs/2102.12092.

Example:
    >>> from ppl_vae.guides.empty import Empty
    >>> from ppl_vae.models.token_transformer import TokenTransformer
    >>> model, c = TokenTransformer(x_dim=16, y_dim=32), torch.randint(32, (200, 16))    # c: codes of 200 images
    >>> result = pv.fit(model, Empty(), c, epochs=2)
    >>> prior = pv.priors.AutoregressiveCodes(positions=16, codes=32, transformer=model.transformer)
    >>> prior().log_prob(torch.nn.functional.one_hot(c, 32).float()).shape
    torch.Size([200])
"""

import pyro
from torch import Tensor, nn

from ppl_vae import nets
from ppl_vae.distributions import Autoregressive, allowed_tokens


class TokenTransformer(nn.Module):
    """Causal transformer over tokens ``0, ..., y_dim - 1``.

    Args:
        x_dim: number of tokens in a sequence.
        y_dim: how many different ones there are.
        width: of the transformer's vectors, a multiple of ``heads``.
        layers: number of its blocks.
        heads: of each attention.
    """

    def __init__(self, x_dim: int = 784, y_dim: int = 10, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.transformer = nets.CausalTransformer(y_dim, x_dim, width, layers, heads)
        self.register_buffer("allowed", allowed_tokens([range(y_dim)] * x_dim, y_dim), persistent=False)

    def forward(self, x: Tensor) -> None:
        """Generate x, whole numbers ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", Autoregressive(self.transformer, self.allowed), obs=x)
