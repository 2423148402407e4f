"""Distributions that torch and Pyro lack, or have without what deep latent-variable models ask of them.

Each is a Pyro distribution: batch and event shapes, draws, log densities in nats.
"""

from ppl_vae.distributions.cubature import sign_points

__all__ = ["sign_points"]
