"""Distributions that torch and Pyro lack, or have without what deep latent-variable models ask of them.

Each is a Pyro distribution: batch and event shapes, draws, log densities in nats.
"""

from ppl_vae.distributions.codes import NearestCode, OneHotCodes, OneHotUniform, RelaxedOneHot
from ppl_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from ppl_vae.distributions.correlated_normals import LowRankNormal, TriangularNormal
from ppl_vae.distributions.cubature import sign_points
from ppl_vae.distributions.discretised_logistic import DiscretisedLogistic, GreyLevels
from ppl_vae.distributions.flows import NormalizingFlow
from ppl_vae.distributions.normal_mixture import NormalMixture, mixture
from ppl_vae.distributions.partly_observed import PartlyObserved, partly_observed, zero_where_missing
from ppl_vae.distributions.pushforwards import Pushforward
from ppl_vae.distributions.sequences import Autoregressive, OneHotAutoregressive, allowed_tokens

__all__ = [
    "Autoregressive",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "GreyLevels",
    "LowRankNormal",
    "NearestCode",
    "NormalMixture",
    "NormalizingFlow",
    "OneHotAutoregressive",
    "OneHotCodes",
    "OneHotUniform",
    "PartlyObserved",
    "Pushforward",
    "RelaxedOneHot",
    "TriangularNormal",
    "allowed_tokens",
    "mixture",
    "partly_observed",
    "sign_points",
    "zero_where_missing",
]
