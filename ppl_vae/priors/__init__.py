"""Priors p(z) for any model that takes one: modules that are called without arguments and return a distribution.

Parameters of a learned prior are the model's. (Conjugate priors of parameters: `ppl_vae.conjugate_priors`.)
"""

from ppl_vae.priors.autoregressive import AutoregressiveCodes
from ppl_vae.priors.codes import RelaxedUniformCodes, UniformCodes
from ppl_vae.priors.exemplar import Exemplar, OneScale
from ppl_vae.priors.flows import AutoregressiveFlow, CouplingFlow
from ppl_vae.priors.mixture import FixedMixtureOfNormals, MixtureOfNormals
from ppl_vae.priors.normal import StandardNormal
from ppl_vae.priors.vamp import VampPrior

__all__ = [
    "AutoregressiveCodes",
    "AutoregressiveFlow",
    "CouplingFlow",
    "Exemplar",
    "FixedMixtureOfNormals",
    "MixtureOfNormals",
    "OneScale",
    "RelaxedUniformCodes",
    "StandardNormal",
    "UniformCodes",
    "VampPrior",
]
