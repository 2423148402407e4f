"""Expectation maximisation as a step that the training loop drives."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae import starts
from ppl_vae.batches import Batch, as_batch
from ppl_vae.conditioning import posterior
from ppl_vae.expectation_maximization import ExactEM
from ppl_vae.iterating import check_seed
from ppl_vae.latent_structure import structure_of
from ppl_vae.log_priors import LogPrior
from ppl_vae.point_estimate import check_finite
from ppl_vae.programs import Program, Programs, forked_random_state, modes_and_buffers_kept
from ppl_vae.svi import Info

__all__ = ["EMStep", "em_step"]

# Sums over the same data in another order agree to this share of their size.
ROUNDING = 1e-6


class EMStep:
    """One iteration of expectation maximisation on all data; made by `em_step`."""

    def __init__(self, model: Program, start: Any, log_prior: LogPrior | None, seed: int):
        self.model, self.start, self.log_prior, self.seed = model, start, log_prior, seed
        self.programs = Programs(model, model)
        self._em: ExactEM | None = None
        self._points: dict[str, Tensor] = {}
        self._begun = False

    def __call__(self, x: Any) -> Info:
        """Condition on all data, then maximise; what is reported is at the parameters before."""
        batch = as_batch(x)
        check_finite(batch)
        self._take(batch)
        before = self._em.state()
        algorithm, self._em = self._em, None  # so that after an error a step looks at its data anew
        try:
            with forked_random_state(self.seed):
                values = _conditioned(algorithm) if self._begun else algorithm.begin(self.seed)
                algorithm.maximise()
        except BaseException:
            algorithm.load(before)
            raise
        self._em, self._begun, self._points = algorithm, True, algorithm.points
        prior = values.get("log_posterior", values["log_likelihood"]) - values["log_likelihood"]
        penalties = {"log_prior": torch.tensor(prior, dtype=torch.float64)} if "log_posterior" in values else {}
        return Info(torch.tensor(values["log_likelihood"], dtype=torch.float64), penalties)

    def _take(self, batch: Batch) -> None:
        """Look at the data, which are the same each time but for the order of their rows."""
        if self._em is None:
            with forked_random_state(self.seed):
                algorithm = ExactEM(self.model, batch, self.start, self.log_prior)
            algorithm.check_start(restarts=1)
            self._em, self.programs = algorithm, algorithm.programs
            self._em.points = self._points or self._em.points
            return
        if not _same(batch, self._em.batch):
            raise ValueError(
                "x: other data than in the step before; exact EM takes all of them at a time: "
                "pv.fit(step=step, data=x, batch_size=len(x)), without a transform that draws"
            )
        self._em.batch = self.programs.on_device(batch)

    def bound(self, x: Any) -> Tensor:
        """Return log p(x) of each datum at the current parameters, ``(B,)``, in nats: exact."""
        batch = self.programs.on_device(as_batch(x))
        check_finite(batch)
        with forked_random_state(self.seed), modes_and_buffers_kept(self.programs, training=False):
            structure, drawn = structure_of(self.model, batch)
            return posterior(structure, batch, self._points or drawn).log_px

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers and values of the global latents."""
        return {"programs": self.programs.state_dict(), "points": dict(self._points), "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; the programs change only if all of it fits them."""
        # A state from before the first step knows no param sites.
        met = {name: t for name, t in self.programs.state_dict().items() if name.startswith("param.")}
        self.programs.load_state_dict({**met, **state["programs"]})
        self._points, self._begun = dict(state["points"]), state["begun"]
        if self._em is not None:
            self._em.points = self._points or self._em.points


def _conditioned(algorithm: ExactEM) -> Mapping[str, float]:
    algorithm.expect()
    return algorithm.values()


def _same(batch: Batch, other: Batch) -> bool:
    """Tell whether batches hold the same rows in any order, as far as their sums can tell."""
    if [part.shape for part in batch] != [part.shape for part in other]:
        return False
    return all(_same_sums(one.double(), two.to(one.device).double()) for one, two in zip(batch, other, strict=True))


def _same_sums(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).sum(0).abs() <= ROUNDING * (1 + one.abs().sum(0))).all())


def em_step(model: Program, *, start: Any = None, log_prior: LogPrior | None = None, seed: int = 0) -> EMStep:
    """Return one iteration of expectation maximisation as a step, for `ppl_vae.fit` or a loop of your own.

    The first call puts the parameters at their start, as `ppl_vae.em` does. Each call takes *all* data, in any order
    of the rows: ``pv.fit(step=step, data=x, batch_size=len(x))``.

    Args:
        model: Pyro program, as for `ppl_vae.em`.
        start: a function of `ppl_vae.starts`; when left out, k-means where the model has exactly one discrete latent
            for each datum, else the parameters as they are.
        log_prior: as for `ppl_vae.em`.
        seed: of the start.

    Returns:
        A `ppl_vae.steps.Step`: ``info = step(x)`` with the log-likelihood before the update, in nats per datum, as
        ``info.bound``.

    Raises:
        TypeError: ``start`` is a tensor of responsibilities, whose rows need not be those of a later batch, or the
            seed is no whole number.

    Reference: as `ppl_vae.em`.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2).double(), torch.randn(40, 6).double()
        >>> fit = pv.fit(step=pv.em_step(model), data=x, batch_size=40, epochs=5)
        >>> fit.history["train_bound"][-1] > fit.history["train_bound"][0]
        True
    """
    starts.check_for_step(start, "pv.em")
    check_seed(seed)
    return EMStep(model, start, log_prior, seed)
