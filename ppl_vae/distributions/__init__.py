"""Distributions that torch and Pyro lack, or have without what deep latent-variable models ask of them.

Each is a Pyro distribution: batch and event shapes, draws, log densities in nats.
"""

from ppl_vae.distributions.codes import NearestCode, OneHotCodes, OneHotUniform, RelaxedOneHot
from ppl_vae.distributions.sequences import Autoregressive, OneHotAutoregressive, allowed_tokens

__all__ = [
    "Autoregressive",
    "NearestCode",
    "OneHotAutoregressive",
    "OneHotCodes",
    "OneHotUniform",
    "RelaxedOneHot",
    "allowed_tokens",
]
