"""Probabilistic programming for deep latent-variable models, on Pyro.

Running a guide against a model gives K weighted particles per datum; every bound, gradient
estimator, diagnostic and log-likelihood is a small function of those particles.
"""

from ppl_vae import data, nets, objectives
from ppl_vae.annealing import ais, bdmc
from ppl_vae.checking import check
from ppl_vae.contract import ContractError
from ppl_vae.evaluation import Evaluation, evaluate
from ppl_vae.interop import ELBO, registered
from ppl_vae.laboratory import exact_gradient, gradient_statistics
from ppl_vae.particles import Particles, Path
from ppl_vae.sampling import decode, reconstruct, sample
from ppl_vae.steps import svi_step
from ppl_vae.svi import Info
from ppl_vae.training import Fit, fit, restore
from ppl_vae.weighing import weigh

__all__ = [
    "ELBO",
    "ContractError",
    "Evaluation",
    "Fit",
    "Info",
    "Particles",
    "Path",
    "ais",
    "bdmc",
    "check",
    "data",
    "decode",
    "evaluate",
    "exact_gradient",
    "fit",
    "gradient_statistics",
    "nets",
    "objectives",
    "reconstruct",
    "registered",
    "restore",
    "sample",
    "svi_step",
    "weigh",
]

__version__ = "0.1.0"
