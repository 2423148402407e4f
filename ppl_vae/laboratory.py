"""A laboratory for gradients: bias, variance and signal-to-noise ratio of what an objective gives a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.arguments import whole
from ppl_vae.batches import Batch, as_batch
from ppl_vae.estimation import estimate
from ppl_vae.indexing import alike
from ppl_vae.listing import expected_bound
from ppl_vae.objectives import Objective, elbo, facts
from ppl_vae.programs import Program, Programs, undisturbed
from ppl_vae.svi import check_options

__all__ = ["GradientStatistics", "GroupStatistics", "exact_gradient", "gradient_statistics"]


@dataclass(frozen=True)
class GroupStatistics:
    """What was measured for one group of parameters.

    Attributes:
        mean: mean gradient by parameter name, each of the parameter's shape, in nats per unit.
        error: standard error of each mean.
        variance: trace of the covariance of one draw of the gradient: the sum over elements.
        snr: signal-to-noise ratio, ``|mean| / std`` of an element, averaged over the elements whose
            std is not zero. Noise alone reads as ``0.8 / sqrt(draws)``.
        bias: length of mean less exact; None where no exact gradient was given.
        noise: length that this difference would have from noise alone, ``sqrt(variance / draws)``.
        z: standard errors between mean and exact gradient, about N(0, 1) without bias, and large
            with it. The first half of the draws chooses a direction (that of their own difference),
            the second half is compared along it.
    """

    mean: Mapping[str, Tensor]
    error: Mapping[str, Tensor]
    variance: float
    snr: float
    bias: float | None
    noise: float
    z: float | None


@dataclass(frozen=True)
class GradientStatistics:
    """Gradients of an objective, measured. Printing it gives a table.

    Attributes:
        groups: group name to its statistics.
        subject: the objective's name.
        particles: K.
        draws: how many gradients were drawn.
        seconds: wall-clock time of one draw.
    """

    groups: Mapping[str, GroupStatistics]
    subject: str
    particles: int
    draws: int
    seconds: float

    def __getitem__(self, group: str) -> GroupStatistics:
        """Return the statistics of a group."""
        if group not in self.groups:
            raise KeyError(f"group: expected one of {', '.join(self.groups)}, found {group!r}")
        return self.groups[group]

    def __str__(self) -> str:
        rows = [f"gradient of {self.subject}, K = {self.particles}: {self.draws:,} draws, {self.seconds:.2g} s each"]
        rows.append(f"{'group':<12}{'signal/noise':>14}{'variance':>12}{'bias':>12}{'by noise':>12}{'bias z':>9}")
        for name, g in self.groups.items():
            known = f"{g.bias:>12.3g}{g.noise:>12.3g}{g.z:>9.1f}" if g.z is not None else f"{'unknown':>12}"
            rows.append(f"{name:<12}{g.snr:>14.3g}{g.variance:>12.3g}{known}")
        return "\n".join(rows)


def gradient_statistics(
    model: Program,
    guide: Program,
    x: Any,
    objective: Any = elbo,
    particles: int = 1,
    draws: int = 1000,
    *,
    exact: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    groups: Callable[[str], str] | None = None,
) -> GradientStatistics:
    """Draw an objective's gradient many times on one batch, and measure it.

    A gradient is that of the surrogate's mean over the batch, upward (an upper bound, which is made
    small, has its sign turned), in the parameters of model and guide as they are. The programs run in
    evaluation mode, in which estimators do not adapt; nothing is changed, and memory does not grow with
    the draws.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        x: a batch.
        objective: a function of Particles, or a module with ``estimate``.
        particles: K.
        draws: number of gradients, at least 4.
        exact: gradient to compare with, by parameter name: that of an exactly known mean over the
            batch, as `exact_gradient` gives it.
        seed: seeds the draws.
        groups: from a parameter's name to its group; ``"model"`` and ``"guide"`` when left out.

    Returns:
        `GradientStatistics`.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message says which and why.

    Reference: signal-to-noise ratio as in T. Rainforth et al., "Tighter Variational Bounds are Not
    Necessarily Better", ICML 2018, https://arxiv.org/abs/1802.04537; running moments as in B. P.
    Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products",
    Technometrics 1962; split test as in D. R. Cox, "A Note on Data-Splitting for the Evaluation of
    Significance Levels", Biometrika 1975, https://doi.org/10.1093/biomet/62.2.441.

    Example:
        >>> from ppl_vae.laboratory import exact_gradient, gradient_statistics
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> model, guide = SigmoidBeliefNetwork(x_dim=6, z_dim=2), Bernoulli(x_dim=6, z_dim=2)
        >>> x = torch.ones(4, 6)
        >>> exact = exact_gradient(model, guide, x)
        >>> found = gradient_statistics(model, guide, x, pv.objectives.rloo, particles=2, draws=50, exact=exact)
        >>> abs(found["guide"].z) < 5, found["model"].snr > 0
        (True, True)
    """
    check_options(objective, particles, False)
    whole("draws", draws, least=4)
    model, guide = alike(model, guide)
    programs, parameters, batch = _prepared(model, guide, x, objective)
    layout = _Layout(parameters, groups or _role)
    reference = None if exact is None else layout.flat(exact)
    draw = partial(_draw, objective, model, guide, batch, particles, list(parameters.values()))
    with undisturbed(programs, seed, training=False), pyro.validation_enabled(False), torch.enable_grad():
        draw()  # what a first call sets up is not timed
        measured = _measured(draw, draws, reference, layout)
    return GradientStatistics(
        groups=measured.by_group(layout, reference),
        subject=facts(objective).name,
        particles=particles,
        draws=draws,
        seconds=measured.seconds / draws,
    )


def _prepared(
    model: Program, guide: Program, x: Any, objective: Any = None
) -> tuple[Programs, dict[str, Tensor], Batch]:
    """Return the programs, the parameters of model and guide, and the batch on their device."""
    programs = Programs(model, guide, objective)
    batch = programs.on_device(as_batch(x))
    found = programs.run_once(model, guide, batch).parameters()
    parameters = {name: p for name, p in found.items() if not name.startswith("objective.")}
    if not parameters:
        raise ValueError("model, guide: neither has a parameter that requires a gradient; unfreeze what to measure")
    return programs, parameters, batch


def _role(name: str) -> str:
    return name.split(".")[0]


def _draw(
    objective: Any, model: Program, guide: Program, batch: Batch, particles: int, parameters: list[Tensor]
) -> Tensor:
    """Return one gradient of the mean over data, all parameters in one vector."""
    surrogate = estimate(objective, model, guide, batch, particles).surrogate.mean()
    if not surrogate.requires_grad:
        raise ValueError(
            f"objective: {facts(objective).name} has no gradient in any parameter; take .detach() and no_grad out"
        )
    return _flat(torch.autograd.grad(surrogate, parameters, materialize_grads=True))


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


class _Layout:
    """Where each parameter stands in a vector of all of them, and to which group it belongs."""

    def __init__(self, parameters: Mapping[str, Tensor], groups: Callable[[str], str]):
        self.parameters = parameters
        self.groups: dict[str, list[str]] = {}
        for name in parameters:
            self.groups.setdefault(groups(name), []).append(name)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each parameter's part, in its shape."""
        parts = flat.split([p.numel() for p in self.parameters.values()])
        return {name: part.view_as(p) for part, (name, p) in zip(parts, self.parameters.items(), strict=True)}

    def sums(self, flat: Tensor) -> Tensor:
        """Return the sum over each group."""
        sums = {name: part.sum() for name, part in self.split(flat).items()}
        return torch.stack([sum(sums[name] for name in members) for members in self.groups.values()])

    def flat(self, exact: Mapping[str, Tensor]) -> Tensor:
        """Return an exact gradient as a vector."""
        for name, p in self.parameters.items():
            if name not in exact or exact[name].shape != p.shape:
                found = f"shape {tuple(exact[name].shape)}" if name in exact else "none"
                raise ValueError(
                    f"exact: expected a tensor of shape {tuple(p.shape)} for '{name}', found {found}; names are those "
                    "of Programs(model, guide).parameters()"
                )
            if not exact[name].isfinite().all():
                raise ValueError(f"exact: expected finite numbers for '{name}', found others")
        return _flat(exact[name].to(p.device) for name, p in self.parameters.items())


class _Moments:
    """Running mean and variance, element by element."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in one draw."""
        self.count += 1
        step = x - self.mean
        self.mean = self.mean + step / self.count
        self.squares = self.squares + step * (x - self.mean)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of one draw."""
        return self.squares / (self.count - 1)


@dataclass
class _Measured:
    """Moments of a gradient, and those of its second half along the first half's difference."""

    gradient: _Moments
    direction: Tensor | None
    projected: _Moments
    seconds: float

    def by_group(self, layout: _Layout, reference: Tensor | None) -> dict[str, GroupStatistics]:
        """Return the statistics of each group."""
        mean, variance = self.gradient.mean, self.gradient.variance
        error = (variance / self.gradient.count).sqrt()
        ratio = torch.where(variance > 0, mean.abs() / variance.sqrt(), 0.0)
        noisy = layout.sums((variance > 0).double()).clamp_min(1)
        columns = {"variance": layout.sums(variance), "snr": layout.sums(ratio) / noisy}
        columns["noise"] = (columns["variance"] / self.gradient.count).sqrt()
        if reference is not None:
            columns |= {"bias": layout.sums((mean - reference).square()).sqrt(), "z": self._z(layout, reference)}
        means, errors = layout.split(mean), layout.split(error)
        return {
            group: GroupStatistics(
                mean={name: means[name] for name in members},
                error={name: errors[name] for name in members},
                **{"bias": None, "z": None} | {column: float(values[i]) for column, values in columns.items()},
            )
            for i, (group, members) in enumerate(layout.groups.items())
        }

    def _z(self, layout: _Layout, reference: Tensor) -> Tensor:
        """Return the standard errors of each group's difference, with room for rounding."""
        lengths = [layout.sums(v.square()).sqrt() for v in (self.direction, reference.abs() + self.gradient.mean.abs())]
        precision = max(torch.finfo(p.dtype).eps for p in layout.parameters.values())
        rounding = 10 * precision * lengths[0] * lengths[1]
        error = (self.projected.variance / self.projected.count + rounding.square()).sqrt()
        return torch.where(error > 0, self.projected.mean / error, 0.0)


def _measured(draw: Callable[[], Tensor], draws: int, reference: Tensor | None, layout: _Layout) -> _Measured:
    gradient, projected, direction, seconds = _Moments(), _Moments(), None, 0.0
    for i in range(draws):
        start = perf_counter()
        drawn = draw()
        seconds += perf_counter() - start
        if reference is not None and i == draws // 2:
            direction = gradient.mean - reference
        gradient.add(drawn)
        if direction is not None:
            projected.add(layout.sums((drawn - reference) * direction))
    return _Measured(gradient, direction, projected, seconds)


def exact_gradient(
    model: Program, guide: Program, x: Any, bound: Objective = elbo, particles: int = 1, nodes: int = 24
) -> dict[str, Tensor]:
    """Differentiate an expected bound, by listing every value of the guide's latents.

    With z running over all values that K draws of all latents can take together::

        grad E[L] = grad sum_z q(z_1 | x) ... q(z_K | x) L(w(z_1), ..., w(z_K))

    Normal latents take the nodes of a Gauss-Hermite rule for their noise, with its weights for
    q: no sum, yet as good as exact for smooth models of a few dimensions; more nodes tell. Sites that
    the programs mark for enumeration stay as marked. Penalties are part of what is differentiated, as
    in a step.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments; each latent has finitely many values, or is Normal.
        x: a batch.
        bound: a function of Particles; its value counts, not the gradient that it estimates. Give
            `elbo` for all estimators of the ELBO, and `iwae` for those of the importance-weighted bound.
        particles: K; with K > 1 the cost grows as a power.
        nodes: of the rule, for each dimension of a normal latent.

    Returns:
        Parameter name to the gradient of the mean over data, upward, of the parameter's shape.

    Raises:
        ValueError: a site cannot be listed (the message names it), or there are more than 2^16 values.

    Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning", Machine Learning 1992, https://doi.org/10.1007/BF00992696, whose
    expectations are summed here.

    Example:
        >>> from ppl_vae.laboratory import exact_gradient
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> model, guide = SigmoidBeliefNetwork(x_dim=6, z_dim=2), Bernoulli(x_dim=6, z_dim=2)
        >>> {name: gradient.shape for name, gradient in exact_gradient(model, guide, torch.ones(4, 6)).items()}
        {'model.prior_logits': torch.Size([2]), ..., 'guide.encoders.0.0.bias': torch.Size([2])}
    """
    model, guide = alike(model, guide)
    programs, parameters, batch = _prepared(model, guide, x)
    with undisturbed(programs, training=False):
        expected = expected_bound(bound, model, guide, batch, particles, nodes).mean()
        gradients = torch.autograd.grad(expected, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))
