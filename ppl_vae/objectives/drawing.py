"""Rules by which estimators draw a guide's latents, and what they compute from such draws."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_vae.gradients import zero_with_gradient
from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.relaxations import Variable, variable
from ppl_vae.objectives.vocabulary import Estimate
from ppl_vae.particles import Particles
from ppl_vae.weighing import weigh

__all__ = ["Hard", "Rule", "earnings", "estimate_elbo", "following", "relaxed_from"]

Rule = Callable[[str, Any], Tensor | None]


class Hard:
    """Draw discrete sites from noise that is kept, and record every latent.

    Attributes:
        values: the draws, by site in the guide's order.
        variables: the discrete sites among them.
        noise: their uniform noise.
        log_q: their log densities.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.variables: dict[str, Variable] = {}
        self.noise: dict[str, Tensor] = {}
        self.log_q: dict[str, Tensor] = {}

    def __call__(self, name: str, fn: Any) -> Tensor:
        """Draw a site."""
        if fn.has_rsample:
            self.values[name] = fn.rsample()
            return self.values[name]
        drawn = variable(name, fn)
        self.variables[name], self.noise[name] = drawn, drawn.noise()
        with torch.no_grad():
            value = drawn.hard(drawn.latent(self.noise[name]))
        self.values[name], self.log_q[name] = value, fn.log_prob(value)
        _refuse_enumerated(name, self.log_q[name])
        return value


def _refuse_enumerated(name: str, log_q: Tensor) -> None:
    if log_q.dim() > 2:
        raise ValueError(
            f"objective: site '{name}' is drawn for each value of an enumerated site, which this estimator does not "
            "hold apart; draw it before that site, or use elbo, rloo or vimco"
        )


def following(drawn: Hard, name: str, value: Tensor, later: Rule) -> Rule:
    """Return a rule that repeats all draws before a site, puts a value there, and goes on by another rule.

    Example:
        >>> first = Hard()
        >>> first.values = {"z1": torch.zeros(2), "z2": torch.zeros(2)}
        >>> rule = following(first, "z2", torch.ones(2), later=lambda name, fn: None)
        >>> rule("z1", None), rule("z2", None), rule("z3", None)
        (tensor([0., 0.]), tensor([1., 1.]), None)
    """
    order = list(drawn.values)
    before = {earlier: drawn.values[earlier].detach() for earlier in order[: order.index(name)]}
    given = before | {name: value}
    return lambda site, fn: given[site] if site in given else later(site, fn)


def relaxed_from(noise: dict[str, Tensor], temperature: Tensor | float) -> Rule:
    """Return a rule that draws discrete sites relaxed, from noise that is there or made and kept.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> rule = relaxed_from({}, 0.5)
        >>> bool(rule("z", Bernoulli(torch.tensor(0.5))) == rule("z", Bernoulli(torch.tensor(0.5))))
        True
    """

    def draw(name: str, fn: Any) -> Tensor | None:
        if fn.has_rsample:
            return None
        relaxed = variable(name, fn)
        if name not in noise:
            noise[name] = relaxed.noise()
        return relaxed.relaxed(relaxed.latent(noise[name]), temperature)

    return draw


def earnings(particles: Particles) -> Tensor:
    """Return what a draw earns, ``(K, B)``: log-weight and penalties, enumerated values averaged.

    Example:
        >>> earnings(pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={})).shape
        torch.Size([3, 2])
    """
    return particles.per_draw(particles.log_w + sum(particles.penalties.values()))


def estimate_elbo(
    model: Any,
    guide: Any,
    batch: Any,
    particles: int,
    slopes: Callable[[Hard, Particles, Tensor], Tensor],
) -> Estimate:
    """Estimate the ELBO with a gradient of its own for discrete sites.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        batch: a tensor, or a tuple of tensors.
        particles: K.
        slopes: from the draws, their particles and what they earn (without gradient) to the
            surrogate of the discrete sites, ``(K, B)``: a zero with a gradient.

    Returns:
        `Estimate`: the ELBO, with the path's gradient for all other parameters and sites.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> nothing = lambda drawn, particles, earned: torch.zeros(())
        >>> estimate_elbo(VAE(), Normal(), torch.ones(4, 784), 3, nothing).value.shape
        torch.Size([4])
    """
    drawn = Hard()
    record = weigh(model, guide, batch, particles, linear=True, draw=drawn)
    earned = earnings(record)
    # Inside log w, the gradient of -log q at a given draw has zero mean: it is taken out.
    path = earned + sum(zero_with_gradient(log_q) for log_q in drawn.log_q.values())
    surrogate = (path + slopes(drawn, record, earned.detach())).mean(0)
    penalties = {name: record.mean(penalty).detach() for name, penalty in record.penalties.items()}
    return Estimate(elbo(record).detach(), surrogate, penalties, record.scale)
