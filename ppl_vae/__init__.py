"""Probabilistic programming for deep latent-variable models, on Pyro.

Running a guide against a model gives K weighted particles per datum; every bound, gradient
estimator, diagnostic and log-likelihood is a small function of those particles.
"""

from ppl_vae import adversarial, covariances, data, distributions, nets, objectives, priors, quality, starts
from ppl_vae.adversarial_steps import adversarial_step
from ppl_vae.aggregation import aggregate_kl
from ppl_vae.alternating import variational_em, variational_em_step
from ppl_vae.annealing import ais, bdmc
from ppl_vae.cavi_steps import cavi_step
from ppl_vae.checking import check
from ppl_vae.codes import perplexity
from ppl_vae.comparing import compare
from ppl_vae.contract import ContractError
from ppl_vae.coordinate_ascent import cavi, robbins_monro
from ppl_vae.em_steps import em_step
from ppl_vae.evaluating import evaluate
from ppl_vae.evaluation import Evaluation
from ppl_vae.expectation_maximization import em
from ppl_vae.fitted import Fit
from ppl_vae.gan_steps import gan_step
from ppl_vae.imputing import impute
from ppl_vae.interop import ELBO, registered
from ppl_vae.laboratory import exact_gradient, gradient_statistics
from ppl_vae.latents import active_units
from ppl_vae.log_priors import normal_prior
from ppl_vae.mean_field_posterior import MeanField
from ppl_vae.particles import Particles, Path
from ppl_vae.point_estimate import PointEstimate
from ppl_vae.sampling import decode, reconstruct, sample
from ppl_vae.steps import svi_step
from ppl_vae.surgery import elbo_surgery
from ppl_vae.svi import Info
from ppl_vae.training import fit, restore
from ppl_vae.weighing import weigh

__all__ = [
    "ELBO",
    "ContractError",
    "Evaluation",
    "Fit",
    "Info",
    "MeanField",
    "Particles",
    "Path",
    "PointEstimate",
    "active_units",
    "adversarial",
    "adversarial_step",
    "aggregate_kl",
    "ais",
    "bdmc",
    "cavi",
    "cavi_step",
    "check",
    "compare",
    "covariances",
    "data",
    "decode",
    "distributions",
    "elbo_surgery",
    "em",
    "em_step",
    "evaluate",
    "exact_gradient",
    "fit",
    "gan_step",
    "gradient_statistics",
    "impute",
    "nets",
    "normal_prior",
    "objectives",
    "perplexity",
    "priors",
    "quality",
    "reconstruct",
    "registered",
    "restore",
    "robbins_monro",
    "sample",
    "starts",
    "svi_step",
    "variational_em",
    "variational_em_step",
    "weigh",
]

__version__ = "0.1.0"
