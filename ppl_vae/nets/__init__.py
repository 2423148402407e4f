"""Networks and the heads that turn their outputs into distributions.

A model's decoder and a guide's encoder are networks that *return a distribution*; put a
network and a head in an ``nn.Sequential`` and you have one. Everything here accepts any
number of leading axes (particles, enumerated values, data), convolutions too.
"""

from ppl_vae.nets import flows
from ppl_vae.nets.codebooks import AveragedCodebook, LearnedCodebook, ToCodes, ToRelaxedCodes
from ppl_vae.nets.convolutions import ConvDecoder, ConvEncoder, grid_of
from ppl_vae.nets.correlated_heads import ToLowRankNormal, ToMultivariateNormal
from ppl_vae.nets.dense import MLP
from ppl_vae.nets.embeddings import OneHot, held_to
from ppl_vae.nets.flows import ToFlow
from ppl_vae.nets.grids import GridDecoder, GridEncoder, image_shape
from ppl_vae.nets.heads import (
    ToBernoulli,
    ToContinuousBernoulli,
    ToDelta,
    ToDiscretisedLogistic,
    ToNormal,
    ToNormalFixedScale,
    ToNormalOneScale,
    ToNormalPixelScale,
)
from ppl_vae.nets.mixture_heads import ToNormalMixture
from ppl_vae.nets.several import Joined, JoinedMLP, Reads
from ppl_vae.nets.transformers import CausalTransformer
from ppl_vae.nets.words import Characters

__all__ = [
    "MLP",
    "AveragedCodebook",
    "CausalTransformer",
    "Characters",
    "ConvDecoder",
    "ConvEncoder",
    "GridDecoder",
    "GridEncoder",
    "Joined",
    "JoinedMLP",
    "LearnedCodebook",
    "OneHot",
    "Reads",
    "ToBernoulli",
    "ToCodes",
    "ToContinuousBernoulli",
    "ToDelta",
    "ToDiscretisedLogistic",
    "ToFlow",
    "ToLowRankNormal",
    "ToMultivariateNormal",
    "ToNormal",
    "ToNormalFixedScale",
    "ToNormalMixture",
    "ToNormalOneScale",
    "ToNormalPixelScale",
    "ToRelaxedCodes",
    "flows",
    "grid_of",
    "held_to",
    "image_shape",
]
