"""Coordinate-ascent variational inference for conjugate programs, on all data at once or on minibatches."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae import starts
from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking import check_arguments
from ppl_vae.clusters import nearly_empty
from ppl_vae.factorisation import Joint, Placing
from ppl_vae.families import Natural
from ppl_vae.iterating import Iterated, check_iterations, check_seed, iterated
from ppl_vae.mean_field import Factorised, factorised
from ppl_vae.mean_field_posterior import MeanField
from ppl_vae.point_estimate import check_finite
from ppl_vae.programs import Program, Programs, forked_random_state, modes_and_buffers_kept, program_name
from ppl_vae.snapshots import snapshot

__all__ = ["cavi", "robbins_monro"]

Rate = Callable[[int], float]
State = tuple[dict[str, Natural], dict[str, Tensor]]
# Local factors that read each other are iterated so often on a minibatch.
LOCAL_SWEEPS = 10


def robbins_monro(delay: float = 1.0, forgetting: float = 0.7) -> Rate:
    """Return step sizes ``(t + delay)^-forgetting`` for t = 0, 1, ..., under which noisy updates converge.

    Args:
        delay: at least 1; larger ones make early steps smaller.
        forgetting: in (0.5, 1]; how fast old minibatches are forgotten.

    Raises:
        ValueError: the steps would not converge.

    Reference: H. Robbins, S. Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 1951,
    https://doi.org/10.1214/aoms/1177729586.

    Example:
        >>> [round(pv.robbins_monro()(t), 2) for t in range(3)]
        [1.0, 0.62, 0.46]
    """
    if not delay >= 1:
        raise ValueError(f"delay: expected at least 1, found {delay!r}")
    if not 0.5 < forgetting <= 1:
        raise ValueError(f"forgetting: expected a number in (0.5, 1], found {forgetting!r}")
    return lambda t: (t + delay) ** -forgetting


def cavi(
    model: Program,
    x: Any,
    *,
    iterations: int = 100,
    tol: float = 1e-6,
    restarts: int = 1,
    start: Any = None,
    joint: Joint | None = None,
    point: Collection[str] = (),
    batch_size: int | None = None,
    rate: Rate | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MeanField:
    """Approximate the posterior of a conjugate program by independent factors, each in turn at its optimum.

    ::

        q(z) = prod_j q_j(z_j),    q_j(z_j) <- exp E_{-j}[log p(x, z)] / normaliser

    until the ELBO stops rising. The model is any program whose log density is linear in the sufficient statistics of
    each factor given the others, which is checked. Its latents are normal, multivariate normal, gamma, beta, Dirichlet
    or Wishart, in the plate "data" or outside, and discrete ones in the plate. A latent is a factor; each element of a
    plate has its own, and a normal vector has a covariance. A normal mean whose prior reads its precision shares a
    factor with it (normal-gamma, normal-Wishart).

    Args:
        model: Pyro program.
        x: all the data, a tensor ``(N, ...)`` or a tuple of them; float64 is best.
        iterations: at most so many; of minibatches, passes through the data.
        tol: nats per datum; an iteration that changes the ELBO by less is the last. With 0 none stops early.
        restarts: how many times to start, with seeds ``seed``, ``seed + 1``, ...; the best is kept.
        start: as for `ppl_vae.em`: responsibilities ``(N, C)``, or a function of `ppl_vae.starts`. When left out,
            k-means where the model has exactly one discrete latent. Otherwise factors begin near the prior, normal ones
            at a draw from it.
        joint: pairs (mean, precision) of sites that share a factor. When left out, all that can; ``()`` for none.
        point: sites whose factor is a point mass at its mode, in the model's own parametrisation. With all global
            latents of them this is EM.
        batch_size: data of a minibatch, for stochastic variational inference: natural parameters of global factors
            move by a share of the way that a minibatch tells them. Each step runs the program again, whatever the
            size of its batch: for mixtures of up to some hundred thousand data, all at once are faster.
        rate: the share, of each step's number; `robbins_monro` when left out.
        seed: of starts and minibatches. The caller's random state does not move.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `MeanField`: ``.q`` by site, ``.history["elbo"]`` in nats per datum.

    Raises:
        ContractError: a latent has no conjugate factor; the message names it and says what to do instead.
        ValueError: data are NaN or infinite, or an option is out of range.

    Reference: D. Blei, A. Kucukelbir, J. McAuliffe, "Variational Inference: A Review for Statisticians", JASA 2017,
    https://arxiv.org/abs/1601.00670; M. Hoffman, D. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference",
    JMLR 2013, https://jmlr.org/papers/v14/hoffman13a.html.

    Example:
        >>> from ppl_vae.models.beta_bernoulli import BetaBernoulli
        >>> found = pv.cavi(BetaBernoulli(), torch.tensor([[1.0], [1.0], [0.0]]))
        >>> found.q["probability"].mean    # of Beta(3, 2), with Beta(1, 1) a priori
        tensor([0.6000])
    """
    check_iterations(iterations, tol, restarts)
    check_seed(seed)
    batch = as_batch(x)
    check_finite(batch)
    check_arguments(model, "model", batch)
    joint = None if joint is None else check_pairs(joint)
    if isinstance(point, str):
        raise TypeError(f"point: expected names of sites such as [{point!r}], found {point!r}")
    programs = Programs(model, model)
    batch = programs.on_device(batch)
    with forked_random_state(seed), modes_and_buffers_kept(programs, training=False), torch.no_grad():
        ascent = Ascent(factorised(model, batch, joint, point), start)
        if batch_size is not None:
            ascent = StochasticAscent(ascent.factorised, start, check_batch_size(batch_size, batch), rate)
        elif rate is not None:
            raise ValueError("rate: it is of minibatches; give batch_size too, or leave it out")
        ascent.check_start(restarts)
        options = {"iterations": iterations, "tol": tol, "restarts": restarts, "seed": seed}
        done = iterated(ascent, "elbo", **options, title=f"CAVI on {program_name(model)}", progress=progress)
    return result(model, ascent.factorised, done, tol)


def check_pairs(joint: Any) -> Joint:
    """Return pairs of names, if they are.

    Example:
        >>> check_pairs(("mean", "precision"))
        Traceback (most recent call last):
            ...
        TypeError: joint: expected pairs of sites such as [('mean', 'precision')], found ('mean', 'precision')
    """
    pairs = [tuple(pair) if not isinstance(pair, str) else (pair,) for pair in joint]
    if isinstance(joint, str) or any(len(pair) != 2 for pair in pairs):
        raise TypeError(f"joint: expected pairs of sites such as [('mean', 'precision')], found {joint!r}")
    return pairs


def check_batch_size(size: int, batch: Batch) -> int:
    """Return the number of data in a minibatch, if it is one."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(batch[0]):
        raise ValueError(f"batch_size: expected a whole number from 1 to {len(batch[0])}, found {size!r}")
    return size


class Ascent:
    """Coordinate ascent on all data: an `ppl_vae.iterating.Algorithm`."""

    def __init__(self, factorised: Factorised, start: Any):
        self.factorised = factorised
        self.start = starts.or_default(start, factorised.structure.discrete)

    def check_start(self, restarts: int) -> None:
        """Raise if a start does not fit the model, or restarts would all be the same."""
        starts.check(self.start, self.factorised.structure.discrete, restarts)

    def begin(self, seed: int) -> Mapping[str, float]:
        """Start, from responsibilities or near the prior."""
        torch.manual_seed(seed)
        self.factorised.begin()
        if self.start is not starts.as_they_are:
            self._take_responsibilities(seed)
        self.factorised.update_local()
        return self.value()

    def _take_responsibilities(self, seed: int) -> None:
        ((site, dim),) = self.factorised.structure.discrete.items()
        weights = self.factorised.expected.weights[site]
        x = self.factorised.batch[0]
        given = starts.responsibilities(self.start, x, weights.shape[dim], seed)
        self.factorised.expected.weigh_discrete(site, given.mT.to(weights).reshape(weights.shape))
        self.factorised.update_continuous()
        self.factorised.update_global()

    def update(self) -> Mapping[str, float]:
        """Bring each global factor to its optimum, then each local one."""
        self.factorised.update_global()
        self.factorised.update_local()
        return self.value()

    def value(self) -> dict[str, float]:
        """Return the ELBO in nats per datum."""
        return {"elbo": float(self.factorised.elbo()) / len(self.factorised.batch[0])}

    def state(self) -> State:
        """Return natural parameters and probabilities."""
        return dict(self.factorised.eta), dict(self.factorised.expected.weights)

    def load(self, state: State) -> None:
        """Go back to a state."""
        self.factorised.load(*state)


class StochasticAscent(Ascent):
    """Natural gradients on minibatches; the ELBO is that of all data after each pass."""

    def __init__(self, factorised: Factorised, start: Any, batch_size: int, rate: Rate | None):
        super().__init__(factorised, start)
        self.batch_size, self.rate, self.steps = batch_size, rate or robbins_monro(), 0

    def begin(self, seed: int) -> Mapping[str, float]:
        """Start as on all data, at the first step size."""
        self.steps = 0
        return super().begin(seed)

    def update(self) -> Mapping[str, float]:
        """Pass through the data once."""
        rows = len(self.factorised.batch[0])
        for chosen in torch.randperm(rows).split(self.batch_size):
            self._step(self.factorised.part(chosen))
        self.factorised.update_local()
        return self.value()

    def _step(self, part: Factorised) -> None:
        share = self.rate(self.steps)
        if not 0 < share <= 1:
            raise ValueError(f"rate: expected numbers in (0, 1], found {share!r} at step {self.steps}")
        part.update_local(sweeps=LOCAL_SWEEPS)
        part.update_global(share)
        self.factorised.take(part)
        self.steps += 1


def result(model: Program, factorised: Factorised, done: Iterated, tol: float) -> MeanField:
    """Return what was found."""
    discrete = factorised.probabilities()
    return MeanField(
        q=factorised.distributions(),
        history=done.history,
        converged=done.converged,
        iterations=done.iterations,
        runs=done.runs,
        discrete=discrete,
        warnings=(
            *_unfinished(done, tol),
            *_held_fixed(model),
            # With a posterior of their own, components that the data do not need are at their prior.
            *(() if factorised.uncertain else nearly_empty(discrete)),
        ),
        subject=program_name(model),
        factorised=factorised,
        tensors=snapshot(model, factorised.batch, Placing({})(model)),
    )


def _unfinished(done: Iterated, tol: float) -> Iterator[str]:
    if tol and not done.converged:
        before, last = done.history["elbo"][-2:]
        yield (
            f"not converged: the last of {done.iterations} iterations changed the ELBO by {last - before:.2g} nats per "
            "datum; allow more (iterations=)"
        )


def _held_fixed(model: Program) -> Iterator[str]:
    if trainable := Programs(model, model).parameters():
        names = ", ".join(name.removeprefix("model.") for name in list(trainable)[:3])
        yield (
            f"trainable parameters of the model were held as they are ({names}{', ...' * (len(trainable) > 3)}); pv.em "
            "fits them, or give them priors as latents"
        )
