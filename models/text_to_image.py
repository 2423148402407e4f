"""Text to image: characters, codes and pixels, the first two as one sequence of tokens.

Generative process, for each datum::

    y_l ~ Categorical(softmax(transformer(y_1, ..., y_(l-1)))),         l = 1, ..., L, among tokens of text
    c_t ~ Categorical(softmax(transformer(y, c_1, ..., c_(t-1)))),      t = 1, ..., T, among codes of images
    x   ~ p(x | c) = decoder(c)

Texts are data, so that log p(x, y) is what is bounded; its guide reads the image alone. A text makes an image by
`codes_given`, as below. `ppl_vae.sample` draws both, since a text is observed like any other data.

| symbol | site | shape              |
| ------ | ---- | ------------------ |
| y      | "y"  | (text_length,)     |
| c      | "c"  | (positions, codes) |
| x      | "x"  | (x_dim,)           |

Reference: A. Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, https://arxiv.org/abs/2102.12092.

Example:
    >>> from ppl_vae.models.text_to_image import TextToImage
    >>> letters = pv.nets.Characters(["zero", "one"])
    >>> model = TextToImage(x_dim=64, y_dim=letters.size, text_length=letters.length)
    >>> c = model.codes_given(letters.encode(["zero", "one", "one"])).sample()
    >>> model.decoder(c).mean.shape    # three images
    torch.Size([3, 64])
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import nets
from ppl_vae.distributions import Autoregressive, OneHotAutoregressive, allowed_tokens


class TextToImage(nn.Module):
    """One causal transformer over tokens of text, then codes of an image, and a decoder of the codes.

    Args:
        x_dim: number of pixels.
        y_dim: how many different tokens of text there are, such as `nets.Characters.size`.
        text_length: L, number of tokens in a text. A label ``(B,)`` is a text of one.
        positions: T, number of codes of an image.
        codes: how many different ones there are.
        hidden: widths of the decoder's hidden layers.
        width: of the transformer's vectors, a multiple of ``heads``.
        layers: number of its blocks.
        heads: of each attention.
        decoder: module from one-hot codes ``(..., positions, codes)`` to a distribution with event shape ``(x_dim,)``,
            such as that of a trained `DiscreteVAE`; an MLP with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        y_dim: int = 10,
        text_length: int = 1,
        positions: int = 4,
        codes: int = 32,
        hidden: Sequence[int] = (400,),
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.image_tokens, vocabulary = range(y_dim, y_dim + codes), y_dim + codes
        self.transformer = nets.CausalTransformer(vocabulary, text_length + positions, width, layers, heads)
        flat = nets.MLP(positions * codes, hidden, x_dim)
        self.decoder = decoder or nn.Sequential(nn.Flatten(-2), flat, nets.ToBernoulli())
        for name, places in (("text", [range(y_dim)] * text_length), ("image", [self.image_tokens] * positions)):
            self.register_buffer(name, allowed_tokens(places, vocabulary), persistent=False)

    def codes_given(self, y: Tensor) -> dist.TorchDistribution:
        """Return p(c | y) for texts ``(..., L)``."""
        return OneHotAutoregressive(Autoregressive(self.transformer, self.image, prefix=y), self.image_tokens)

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Generate texts y, whole numbers ``(B, L)``, and images x ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", Autoregressive(self.transformer, self.text), obs=y.reshape(y.shape[0], -1))
            c = pyro.sample("c", self.codes_given(y))
            pyro.sample("x", self.decoder(c), obs=x)
