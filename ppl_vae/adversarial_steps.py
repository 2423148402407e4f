"""Adversarial variational Bayes as a step that the training loop drives."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from ppl_vae import contract
from ppl_vae.adversarial import logistic
from ppl_vae.batches import Batch
from ppl_vae.checking import check_arguments, check_dtype, check_leading_axes, check_values, paired_structure
from ppl_vae.contract import ContractError
from ppl_vae.gan_steps import check_differentiable
from ppl_vae.indexing import alike
from ppl_vae.objectives import Facts
from ppl_vae.objectives.options import whole
from ppl_vae.players import AdversarialStep, Turn, check_critic, logits_of
from ppl_vae.programs import Program, Programs, own_parameters
from ppl_vae.supports import check_likelihood, check_reach_of_draws
from ppl_vae.tracing import paired_traces, trace_with_particles
from ppl_vae.weighing import scaled

__all__ = ["adversarial_step"]

# From draws of a latent, (M, B, *event), to r(z | x).
Contrast = Callable[[Tensor], TorchDistribution]
Draws = Mapping[str, Tensor]


class InferenceGame:
    """A model and an implicit guide; the critic tells the guide's latents from others. See `adversarial_step`."""

    facts = Facts(formula="E log p(x, z) - log r(z) - T(x, z)", name="adversarial estimate of the ELBO")

    def __init__(
        self,
        model: Program,
        guide: Program,
        critic: nn.Module,
        particles: int,
        contrast: Contrast | None,
        contrast_draws: int,
    ):
        self.model, self.guide = alike(model, guide)
        self.programs = {"model": self.model, "guide": self.guide}
        self.critic, self.particles = critic, particles
        self.contrast, self.contrast_draws = contrast, contrast_draws
        self.hint = (
            " (parameters of a prior have a part with a contrast alone: contrast=pv.adversarial.adaptive_contrast)"
            if contrast is None
            else ""
        )

    def check(self, batch: Batch) -> None:
        """Hold both programs to the contract, but for a density of the guide."""
        for role, program in self.programs.items():
            check_arguments(program, role, batch)
        check_values(self.model, batch)
        check_dtype(Programs(self.model, self.guide), batch)
        with pyro.validation_enabled(True), own_parameters():
            model_trace, guide_trace = paired_structure(self.model, self.guide, batch)
            check_likelihood(model_trace)
            check_reach_of_draws(model_trace, guide_trace)
            check_drawn(model_trace, guide_trace)
            check_leading_axes(self.model, self.guide, batch)
            check_differentiable(contract.latents(trace_with_particles(self.guide, batch, 1)), "guide")
            for name, r in self._contrasted(batch).items():
                check_contrast(name, r, batch[0].shape[:1], contract.latents(guide_trace)[name]["fn"].event_shape)

    def critics_turn(self, batch: Batch) -> Turn:
        """Return the loss of the logistic regression between the guide's draws and the others."""
        with torch.no_grad():
            drawn = self._draws_of(self.guide, batch, self.particles)
            r = self._contrasted(batch)
            others = (
                {name: fn.sample((self.particles,)) for name, fn in r.items()}
                if r
                else self._draws_of(self.model, batch, self.particles)
            )
        ratio, against = (self._logits(batch, latents, r) for latents in (drawn, others))
        loss = logistic(ratio, against)
        return loss, ratio.mean(0), {"critic_loss": loss}

    def programs_turn(self, batch: Batch) -> Turn:
        """Return minus the critic's estimate of the ELBO."""
        r = self._contrasted(batch)
        with own_parameters():
            model_trace, _ = paired_traces(self.model, self.guide, batch, self.particles)
        sites, drawn = dict(contract.sample_sites(model_trace)), contract.latents(model_trace)
        values = {name: site["value"] for name, site in drawn.items()}
        log_p = sum(scaled(name, site, linear=True) for name, site in sites.items() if r or name not in drawn)
        log_r = sum(fn.log_prob(values[name]) for name, fn in r.items())
        found = (log_p - log_r - self._logits(batch, values, r)).mean(0)
        return -found.mean(), found, {}

    def _draws_of(self, program: Program, batch: Batch, particles: int) -> Draws:
        with own_parameters():
            trace = trace_with_particles(program, batch, particles)
        sites = contract.latents(trace).items()
        return {name: site["value"] for name, site in sites if not contract.is_auxiliary(site)}

    @torch.no_grad()
    def _contrasted(self, batch: Batch) -> dict[str, TorchDistribution]:
        """Return r(z | x) of each latent; nothing where the prior is what stands against."""
        if self.contrast is None:
            return {}
        draws = self._draws_of(self.guide, batch, self.contrast_draws)
        return {name: self.contrast(values) for name, values in draws.items()}

    def _logits(self, batch: Batch, latents: Draws, r: Mapping[str, TorchDistribution]) -> Tensor:
        """Return T(x, z), ``(K, B)``, of latents as r has them: at zero, of unit scale."""
        # By name, as model and guide may draw in different orders.
        seen = [(latents[n] - r[n].mean) / r[n].stddev if r else latents[n] for n in sorted(latents)]
        return logits_of(self.critic, *batch, *seen, shape=(self.particles, batch[0].shape[0]))


def check_drawn(model_trace: Any, guide_trace: Any) -> None:
    """Every latent is drawn, and nothing but densities of the model counts.

    Raises:
        ContractError: the message names the site.
    """
    drawn = contract.latents(guide_trace)
    if not contract.latents(model_trace):
        raise ContractError("model: it has no latent for a guide to draw; give it pyro.sample('z', ...)")
    for name, site in {**contract.latents(model_trace), **drawn}.items():
        if contract.is_marked(site):
            raise ContractError(
                f"site '{name}' is marked for enumeration, and a critic sees draws alone; draw it from a relaxed "
                "distribution (infer without 'enumerate'), or train on a bound, by pv.fit"
            )
    for name in contract.observed(model_trace):
        contract.check_no_penalty(name)
    for name in contract.observed(guide_trace):
        raise ContractError(f"factor '{name}': a critic does not see the factors of a guide; leave it out")


def check_contrast(name: str, r: Any, batch_shape: Size, event_shape: Size) -> None:
    """Raise unless a contrast gives each datum a distribution of a latent.

    Example:
        >>> check_contrast("z", torch.distributions.Normal(torch.zeros(5, 2), 1.0), torch.Size([5]), torch.Size([2]))
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: contrast: for site 'z' expected a distribution of batch shape (5,) and event ...
    """
    known = isinstance(r, Distribution)
    if not known or (r.batch_shape, r.event_shape) != (batch_shape, event_shape):
        found = f"shapes {tuple(r.batch_shape)} and {tuple(r.event_shape)}" if known else type(r).__name__
        raise ContractError(
            f"contrast: for site '{name}' expected a distribution of batch shape {tuple(batch_shape)} and event shape "
            f"{tuple(event_shape)}, found {found}; declare events by .to_event"
        )


def adversarial_step(
    model: Program,
    guide: Program,
    critic: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    particles: int = 1,
    critic_steps: int = 1,
    contrast: Contrast | None = None,
    contrast_draws: int = 32,
    compile: bool | str = "auto",  # noqa: A002 - the public name
) -> AdversarialStep:
    """Return one step of adversarial variational Bayes, for `ppl_vae.fit` or a loop of your own.

    For guides that can be drawn from and have no density, such as `ppl_vae.guides.implicit.Implicit`. A critic T(x, z)
    tells the guide's latents from those of r, by logistic regression. The best one is the logarithm of the ratio that
    an ELBO asks for, T* = log q(z | x) - log r(z | x), and the programs move up::

        E_q[log p(x, z) - log r(z | x) - T(x, z)]

    With r = p(z), the default, two of the terms cancel. With the best critic this is the ELBO, and so is its gradient,
    although T is held fixed: the expectation of T* changes with the guide as if its own dependence were not there,
    since E_q[grad log q] = 0.

    With ``contrast`` (adaptive contrast) r is a distribution near the guide's own, made of draws of it, and the critic
    is shown ``(z - mean of r) / scale of r``: it then has little to learn, and errs less. r takes no gradient.
    From M draws it is uncertain, and since the critic is not shown r itself, the divergence that it finds is too
    small, by about 1 / M nats for each latent dimension of a Gaussian guide. Each update runs the guide M times more.

    Args:
        model: Pyro program with continuous latents.
        guide: Pyro program with the same arguments, its latents drawn by reparameterisation, with or without density.
        critic: module that takes the tensors of a batch, then latents ``(K, B, *event)`` in the order of their names,
            and returns logits ``(K, B)`` or ``(K, B, 1)``, such as ``nets.JoinedMLP((x_dim, z_dim), hidden, 1)``.
        optimizer: a torch optimizer over the parameters of model and guide.
        critic_optimizer: likewise, over the critic's. It is to be the faster
            one, since the estimate is as good as the critic.
        particles: K, draws per datum, of the guide and of what it is told from.
        critic_steps: updates of the critic for one of the programs.
        contrast: from draws of a latent, ``(M, B, *event)``, to a distribution r(z | x) with a mean, a scale and a
            density, such as `ppl_vae.adversarial.adaptive_contrast`; the model's prior when left out.
        contrast_draws: M.
        compile: see `ppl_vae.svi_step`.

    Returns:
        A `Step`. ``info.bound`` is the critic's *estimate* of the ELBO, in nats per datum: no bound. A critic that has
        learnt too little makes it too large, above log p(x) even. Do not report it: `ppl_vae.ais` estimates log p(x)
        of the model without any guide. ``info.penalties`` has ``"critic_loss"``, at the critic's last update; near
        2 log 2 the critic tells nothing apart.

    Raises:
        ContractError: on the first batch: programs and data do not fit; a latent is enumerated, or drawn without
            reparameterisation; the likelihood is deterministic; the critic's output has another shape; a parameter
            has no part in what its optimizer makes small (those of a prior, without contrast).
        ValueError: an optimizer holds what the other moves, or nothing; a number is out of range.
        TypeError: one is no torch optimizer, the critic no module, or the contrast no function.

    Reference: L. Mescheder, S. Nowozin, A. Geiger, "Adversarial Variational Bayes", ICML 2017,
    https://arxiv.org/abs/1701.04722.

    Example:
        >>> from ppl_vae.guides.implicit import Implicit
        >>> from ppl_vae.models.vae import VAE
        >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
        >>> model, guide, critic = VAE(**sizes), Implicit(**sizes), pv.nets.JoinedMLP((6, 2), (8,), 1)
        >>> optimizers = {
        ...     "optimizer": torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3),
        ...     "critic_optimizer": torch.optim.Adam(critic.parameters(), lr=1e-2),
        ... }
        >>> step = pv.adversarial_step(model, guide, critic, contrast=pv.adversarial.adaptive_contrast, **optimizers)
        >>> fit = pv.fit(step=step, data=torch.ones(40, 6), epochs=2)
        >>> annealing = pv.ais(model, torch.ones(5, 6), distributions=10)  # log p(x), which needs no guide
    """
    check_critic(critic)
    if not (contrast is None or callable(contrast)):
        raise TypeError(
            f"contrast: expected a function of draws, such as pv.adversarial.adaptive_contrast, found {contrast!r}"
        )
    whole("particles", particles)
    whole("contrast_draws", contrast_draws, least=2)
    game = InferenceGame(model, guide, critic, particles, contrast, contrast_draws)
    return AdversarialStep(game, optimizer, critic_optimizer, critic_steps, compile)
