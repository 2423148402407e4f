"""Distributions that torch and Pyro lack, or have without what deep latent-variable models ask of them.

Each is a Pyro distribution: batch and event shapes, draws, log densities in nats.
"""

from ppl_vae.distributions.codes import NearestCode, OneHotCodes, OneHotUniform, RelaxedOneHot

__all__ = ["NearestCode", "OneHotCodes", "OneHotUniform", "RelaxedOneHot"]
