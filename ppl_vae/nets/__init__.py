"""Networks and the heads that turn their outputs into distributions.

A model's decoder and a guide's encoder are networks that *return a distribution*; put a
network and a head in an ``nn.Sequential`` and you have one. Everything here accepts any
number of leading axes (particles, enumerated values, data), convolutions too.
"""

from ppl_vae.nets.convolutions import ConvDecoder, ConvEncoder
from ppl_vae.nets.dense import MLP
from ppl_vae.nets.heads import ToBernoulli, ToNormal, ToNormalOneScale
from ppl_vae.nets.transformers import CausalTransformer
from ppl_vae.nets.words import Characters

__all__ = [
    "MLP",
    "CausalTransformer",
    "Characters",
    "ConvDecoder",
    "ConvEncoder",
    "ToBernoulli",
    "ToNormal",
    "ToNormalOneScale",
]
