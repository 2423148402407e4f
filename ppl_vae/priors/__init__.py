"""Priors p(z) for any model that takes one: modules that are called without arguments and return a distribution.

Parameters of a learned prior are the model's. (Conjugate priors of parameters: `ppl_vae.conjugate_priors`.)
"""

from ppl_vae.priors.autoregressive import AutoregressiveCodes
from ppl_vae.priors.codes import RelaxedUniformCodes, UniformCodes
from ppl_vae.priors.normal import StandardNormal

__all__ = ["AutoregressiveCodes", "RelaxedUniformCodes", "StandardNormal", "UniformCodes"]
