"""Mixtures, factor analysis and probabilistic PCA beside scikit-learn, to its digits.

Reference: F. Pedregosa et al., "Scikit-learn", JMLR 2011, https://jmlr.org/papers/v12/pedregosa11a.html.
"""

import warnings
from functools import partial
from pathlib import Path
from time import process_time

import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs
from torch import Tensor

import ppl_vae as pv
from benchmarks.published.records import Experiment, Figures
from ppl_vae import covariances
from ppl_vae.models.gaussian_mixture import GaussianMixture
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.probabilistic_pca import ProbabilisticPCA

KINDS = {
    "full": covariances.Full,
    "tied": covariances.Tied,
    "diag": covariances.Diagonal,
    "spherical": covariances.Spherical,
}
ITERATIONS, COMPONENTS, FACTORS = 30, 3, 10
TOLERANCE = 1e-10  # of factor analysis, in nats per datum


def mixture(kind: str, seed: int, folder: Path) -> Figures:
    """Fit both from one start; the largest difference of log-likelihoods after any iteration."""
    x = torch.as_tensor(load_iris().data)
    began = process_time()
    model = GaussianMixture(x.shape[1], COMPONENTS, KINDS[kind]).double()
    ours = pv.em(model, x, iterations=ITERATIONS, tol=0, seed=seed, progress=False).history["log_likelihood"]
    taken = process_time() - began
    theirs = [after(kind, x, i, seed) for i in range(ITERATIONS + 1)]
    largest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    return figures(ours[-1], theirs[-1], largest) | {"steps": ITERATIONS, "seconds": taken}


def after(kind: str, x: Tensor, iterations: int, seed: int) -> float:
    """Return scikit-learn's log-likelihood after so many iterations."""
    fitted = Theirs(COMPONENTS, covariance_type=kind, tol=0, max_iter=iterations + 1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(fitted.fit(x.numpy()).lower_bound_)


def figures(ours: float, theirs: float, largest: float) -> Figures:
    """Return what is reported of each."""
    return {"log-likelihood": ours, "scikit-learn's": theirs, "largest difference": largest}


def digits() -> Tensor:
    """Return pixels of digits that vary: a pixel that does not has no variance to estimate."""
    x = torch.as_tensor(load_digits().data)
    return x[:, x.std(0) > 0.5]


def factor_analysis(seed: int, folder: Path) -> Figures:
    """Fit both to convergence."""
    x, began = digits(), process_time()
    torch.manual_seed(seed)
    model = LinearGaussian(x.shape[1], FACTORS).double()
    history = pv.em(model, x, iterations=20_000, tol=TOLERANCE, seed=seed, progress=False).history["log_likelihood"]
    taken = process_time() - began
    theirs = (
        FactorAnalysis(FACTORS, tol=TOLERANCE, max_iter=20_000, svd_method="lapack").fit(x.numpy()).score(x.numpy())
    )
    return figures(history[-1], theirs, abs(history[-1] - theirs)) | {"steps": len(history) - 1, "seconds": taken}


def probabilistic_pca(seed: int, folder: Path) -> Figures:
    """Maximise the likelihood in closed form; scikit-learn divides variances by N - 1, which is taken back."""
    x, began = digits(), process_time()
    model = ProbabilisticPCA(x.shape[1], FACTORS).double()
    model.maximise_likelihood(x)
    ours, taken = float(model.log_px(x).detach().mean()), process_time() - began
    stretched = (x - x.mean(0)) * ((len(x) - 1) / len(x)) ** 0.5
    fitted = PCA(FACTORS, svd_solver="full").fit(stretched.numpy())
    fitted.mean_ = x.mean(0).numpy()
    theirs = float(fitted.score(x.numpy()))
    return figures(ours, theirs, abs(ours - theirs)) | {"steps": 1, "seconds": taken}


EXPERIMENT = Experiment(
    title="Gaussian mixtures, factor analysis, probabilistic PCA: scikit-learn's numbers",
    recipe=f"Mixtures: iris, {COMPONENTS} components, k-means starts, {ITERATIONS} iterations, all covariance types; "
    f"factor analysis and PCA: digits, pixels that vary, {FACTORS} factors.",
    deviation="None; seeds are starts, and the largest difference is over all iterations.",
    settings={
        **{f"mixture, {kind}": partial(mixture, kind) for kind in KINDS},
        "factor analysis": factor_analysis,
        "probabilistic PCA": probabilistic_pca,
    },
    published={},
    formats={"log-likelihood": ".8f", "scikit-learn's": ".8f", "largest difference": ".0e"},
)
