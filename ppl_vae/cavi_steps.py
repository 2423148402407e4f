"""Coordinate ascent as a step that the training loop drives, on all data or on minibatches."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae import starts
from ppl_vae.batches import Batch, as_batch
from ppl_vae.coordinate_ascent import LOCAL_SWEEPS, Ascent, Rate, robbins_monro
from ppl_vae.factorisation import Joint
from ppl_vae.families import Natural
from ppl_vae.mean_field import Factorised, factorised
from ppl_vae.point_estimate import check_finite
from ppl_vae.programs import Program, Programs, forked_random_state, modes_and_buffers_kept
from ppl_vae.svi import Info

__all__ = ["CAVIStep", "cavi_step"]


class CAVIStep:
    """One natural-gradient step on the global factors of a mean-field posterior; made by `cavi_step`.

    Attributes:
        eta: natural parameters of the global factors, by name.
        steps: how many there were.
    """

    def __init__(
        self,
        model: Program,
        data_size: int | None,
        start: Any,
        joint: Joint | None,
        point: Collection[str],
        rate: Rate,
        seed: int,
    ):
        self.model, self.data_size, self.start = model, data_size, start
        self.joint, self.point, self.rate, self.seed = joint, tuple(point), rate, seed
        self.programs = Programs(model, model)
        self.eta: dict[str, Natural] = {}
        self.steps = 0
        self._known: Factorised | None = None

    def __call__(self, x: Any) -> Info:
        """Bring local factors to their optimum, then move global ones; what is reported is at those before."""
        share = 1.0 if self.data_size is None else self.rate(self.steps)
        if not 0 < share <= 1:
            raise ValueError(f"rate: expected numbers in (0, 1], found {share!r} at step {self.steps}")
        with forked_random_state(self.seed), modes_and_buffers_kept(self.programs, training=False), torch.no_grad():
            found = self._on(self._batch(x))
            bound = datum_bounds(found).mean()
            found.update_global(share)
        self.eta = {name: found.eta[name] for name, factor in found.factors.items() if not factor.local}
        self.steps += 1
        return Info(bound)

    def bound(self, x: Any) -> Tensor:
        """Return the ELBO of each datum, ``(B,)``, in nats; the divergence of global factors is shared out evenly."""
        with forked_random_state(self.seed), modes_and_buffers_kept(self.programs, training=False), torch.no_grad():
            return datum_bounds(self._on(self._batch(x)))

    def _batch(self, x: Any) -> Batch:
        batch = self.programs.on_device(as_batch(x))
        check_finite(batch)
        return batch

    def _on(self, batch: Batch) -> Factorised:
        """Return the posterior of a batch, its local factors at their optimum."""
        rows = len(batch[0])
        scale = (self.data_size or rows) / rows
        if self._known is None:
            self._known = factorised(self.model, batch, self.joint, self.point)
        found = self._known.on(batch, scale)
        if self.eta:
            for name, eta in self.eta.items():
                found.set(name, eta)
            found.update_local(sweeps=LOCAL_SWEEPS)
            return found
        ascent = Ascent(found, self.start)
        ascent.check_start(restarts=1)
        ascent.begin(self.seed)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the global factors and the number of steps."""
        return {"eta": {name: list(eta) for name, eta in self.eta.items()}, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.eta = {name: tuple(eta) for name, eta in state["eta"].items()}
        self.steps = state["steps"]


def datum_bounds(found: Factorised) -> Tensor:
    """Return the ELBO of each datum, ``(B,)``; what all data share is divided by how many these stand for."""
    structure, expected, rows = found.structure, found.expected, len(found.batch[0])
    terms = expected.terms(list(structure.reads))
    shared = sum(expected.total(name, term) for name, term in terms.items() if name not in structure.in_data)
    own = sum(expected.log_densities(name, terms[name]) for name in structure.in_data)
    for name, factor in found.factors.items():
        if name not in found.point:
            entropy = factor.family.entropy(found.eta[name])
            own, shared = (own + by_datum(entropy), shared) if factor.local else (own, shared + entropy.sum())
    for weights in expected.weights.values():
        own = own + torch.special.entr(weights).reshape(-1, rows).sum(0)
    return own + shared / (found.scale * rows)


def by_datum(values: Tensor) -> Tensor:
    """Sum what stands right of the axis of data."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def cavi_step(
    model: Program,
    *,
    data_size: int | None = None,
    start: Any = None,
    joint: Joint | None = None,
    point: Collection[str] = (),
    rate: Rate | None = None,
    seed: int = 0,
) -> CAVIStep:
    """Return one update of a mean-field posterior as a step, for `ppl_vae.fit` or a loop of your own.

    On all data a step is an iteration of `ppl_vae.cavi`. With ``data_size`` it is one of stochastic variational
    inference, which takes any batch: ``pv.fit(step=step, data=x, batch_size=100)``.

    Args:
        model: Pyro program, as for `ppl_vae.cavi`.
        data_size: N, all the data that batches are drawn from; when left out, each batch is all data.
        start: as for `ppl_vae.cavi`, of the first batch.
        joint: as for `ppl_vae.cavi`.
        point: likewise.
        rate: step sizes on minibatches, `ppl_vae.robbins_monro` when left out.
        seed: of the start.

    Returns:
        A `ppl_vae.steps.Step` with ``eta``, the natural parameters of the global factors; ``info.bound`` is the ELBO
        before the update, in nats per datum.

    Raises:
        TypeError: ``start`` is a tensor of responsibilities, whose rows need not be those of a later batch.

    Reference: M. Hoffman, D. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference", JMLR 2013,
    https://jmlr.org/papers/v14/hoffman13a.html.

    Example:
        >>> from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
        >>> model, x = BayesianGaussianMixture(2, 3).double(), torch.randn(60, 2).double()
        >>> fit = pv.fit(step=pv.cavi_step(model, data_size=60), data=x, batch_size=20, epochs=5)
        >>> fit.history["train_bound"][-1] > fit.history["train_bound"][0]
        True
    """
    starts.check_for_step(start, "pv.cavi")
    return CAVIStep(model, data_size, start, joint, point, rate or robbins_monro(), seed)
