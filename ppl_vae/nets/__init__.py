"""Networks and the heads that turn their outputs into distributions.

A model's decoder and a guide's encoder are networks that *return a distribution*; put a
network and a head in an ``nn.Sequential`` and you have one. Everything here accepts any
number of leading axes (particles, enumerated values, data), convolutions too.
"""

from ppl_vae.nets import flows
from ppl_vae.nets.convolutions import ConvDecoder, ConvEncoder
from ppl_vae.nets.correlated_heads import ToLowRankNormal, ToMultivariateNormal
from ppl_vae.nets.dense import MLP
from ppl_vae.nets.embeddings import OneHot, held_to
from ppl_vae.nets.flows import ToFlow
from ppl_vae.nets.heads import (
    ToBernoulli,
    ToContinuousBernoulli,
    ToDiscretisedLogistic,
    ToNormal,
    ToNormalFixedScale,
    ToNormalOneScale,
    ToNormalPixelScale,
)
from ppl_vae.nets.mixture_heads import ToNormalMixture
from ppl_vae.nets.several import Joined, JoinedMLP, Reads

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "Joined",
    "JoinedMLP",
    "OneHot",
    "Reads",
    "ToBernoulli",
    "ToContinuousBernoulli",
    "ToDiscretisedLogistic",
    "ToFlow",
    "ToLowRankNormal",
    "ToMultivariateNormal",
    "ToNormal",
    "ToNormalFixedScale",
    "ToNormalMixture",
    "ToNormalOneScale",
    "ToNormalPixelScale",
    "flows",
    "held_to",
]
