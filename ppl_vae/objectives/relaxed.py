"""Biased estimators that let gradients through a relaxation, or straight through the draw."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.drawing import Rule, relaxed_from
from ppl_vae.objectives.relaxations import Variable, variable
from ppl_vae.objectives.schedules import Schedule, Temperature, reported
from ppl_vae.objectives.vocabulary import Estimate, Objective, advance, around, facts, mean_penalties, objective
from ppl_vae.particles import Particles, Path
from ppl_vae.weighing import weigh

__all__ = ["Concrete", "StraightThrough", "StraightThroughGumbel"]


@objective(
    formula="sum_k m log w_k (or another bound)",
    reference="C. Maddison et al. 2017, arXiv:1611.00712; E. Jang et al. 2017, arXiv:1611.01144",
    discrete=True,
    exempt={"unbiased": "it is that of the relaxed bound, at another place than the value"},
)
class Concrete(nn.Module):
    """A bound trained with discrete sites relaxed: Concrete, or Gumbel-softmax.

    With temperature t, logits a, and logistic or Gumbel noise g::

        relaxed z = sigmoid((a + g) / t)    or    softmax((a + g) / t)

    takes the draw's place in model and guide, whose discrete log densities are continued linearly
    between the corners, as Jang et al. do; what is trained is no bound. (Maddison et al. put densities
    of relaxed variables in their place.) The gradient is biased, the more the higher the temperature,
    and its variance grows as the temperature falls. The value that is reported is the bound on the
    discrete model, from the same noise (one more pass, without gradients), which no temperature anneals.

    Args:
        temperature: a positive number, or a schedule such as ``exponential(1.0, 0.5, rate=1e-4)``.
        bound: any bound whose gradients follow the path, such as `elbo`, `elbo_kl`, `iwae`.

    Raises:
        TypeError, ValueError: the bound needs other gradients; the temperature is not positive.

    Reference: C. Maddison, A. Mnih, Y. W. Teh, "The Concrete Distribution", ICLR 2017,
    https://arxiv.org/abs/1611.00712; E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with
    Gumbel-Softmax", ICLR 2017, https://arxiv.org/abs/1611.01144.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> value, surrogate = pv.objectives.Concrete(0.5).estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    def __init__(self, temperature: float | Schedule = 0.5, bound: Objective = elbo):
        super().__init__()
        self.bound, self.temperature = supported(bound), Temperature(temperature)
        self.facts = around(type(self).facts, bound)

    def advance(self) -> None:
        """Take note that an update has been made."""
        advance(self.bound, self.temperature)

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the bound on the discrete model, ``(B,)``, and what to differentiate.

        Raises:
            ValueError: a discrete site is neither Bernoulli nor one-hot.
        """
        noise: dict[str, Tensor] = {}
        options = facts(self.bound).weighing
        relaxed = weigh(model, guide, batch, particles, draw=relaxed_from(noise, self.temperature()), **options)
        with torch.no_grad():
            hard = weigh(model, guide, batch, particles, draw=_hard_from(noise), **options)
        return _estimate(self.bound, relaxed, hard)


def _hard_from(noise: dict[str, Tensor]) -> Rule:
    def draw(name: str, fn: Any) -> Tensor | None:
        if fn.has_rsample:
            return None
        site = variable(name, fn)
        return site.hard(site.latent(noise[name]))

    return draw


@objective(
    formula="sum_k m log w_k (or another bound)",
    reference="Y. Bengio et al. 2013, arXiv:1308.3432",
    discrete=True,
    exempt={"unbiased": "draws are taken for their means"},
)
class StraightThrough(nn.Module):
    """A bound whose gradient goes straight through discrete draws, as if each were its mean.

    ::

        z = b + mean - stop(mean)

    The value is exact, the gradient biased.

    Args:
        bound: any bound whose gradients follow the path, such as `elbo`, `elbo_kl`, `iwae`.

    Raises:
        TypeError: the bound needs other gradients.

    Reference: Y. Bengio, N. Léonard, A. Courville, "Estimating or Propagating Gradients Through
    Stochastic Neurons for Conditional Computation", 2013, https://arxiv.org/abs/1308.3432.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> straight = pv.objectives.StraightThrough()
        >>> value, surrogate = straight.estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    def __init__(self, bound: Objective = elbo):
        super().__init__()
        self.bound = supported(bound)
        self.facts = around(type(self).facts, bound)

    def advance(self) -> None:
        """Take note that an update has been made."""
        advance(self.bound)

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the bound, ``(B,)``, and what to differentiate.

        Raises:
            ValueError: a discrete site is neither Bernoulli nor one-hot.
        """
        drawn = weigh(model, guide, batch, particles, draw=self._draw, **facts(self.bound).weighing)
        return _estimate(self.bound, drawn, drawn)

    def _draw(self, name: str, fn: Any) -> Tensor | None:
        if fn.has_rsample:
            return None
        site = variable(name, fn)
        latent = site.latent(site.noise())
        soft = self.stand_in(site, latent)
        return site.hard(latent).detach() + soft - soft.detach()

    def stand_in(self, site: Variable, latent: Tensor) -> Tensor:
        """Return the value whose gradient the draw takes on."""
        return site.mean


@objective(
    formula="sum_k m log w_k (or another bound)",
    reference="E. Jang et al. 2017, arXiv:1611.01144",
    discrete=True,
    exempt={"unbiased": "draws are taken for their relaxations"},
)
class StraightThroughGumbel(StraightThrough):
    """A bound whose gradient goes through the relaxation of discrete draws: straight-through Gumbel.

    ::

        z = b + relaxed z - stop(relaxed z),    with b the corner that the relaxed z is nearest to

    The value is exact, the gradient biased.

    Args:
        temperature: a positive number, or a schedule.
        bound: any bound whose gradients follow the path, such as `elbo`, `elbo_kl`, `iwae`.

    Raises:
        TypeError, ValueError: the bound needs other gradients; the temperature is not positive.

    Reference: E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR
    2017, https://arxiv.org/abs/1611.01144.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> straight = pv.objectives.StraightThroughGumbel(temperature=1.0)
        >>> value, surrogate = straight.estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    def __init__(self, temperature: float | Schedule = 0.5, bound: Objective = elbo):
        super().__init__(bound)
        self.temperature = Temperature(temperature)

    def advance(self) -> None:
        """Take note that an update has been made."""
        advance(self.bound, self.temperature)

    def stand_in(self, site: Variable, latent: Tensor) -> Tensor:
        """Return the value whose gradient the draw takes on."""
        return site.relaxed(latent, self.temperature())


def _estimate(bound: Objective, moving: Particles, exact: Particles) -> Estimate:
    surrogate = bound(moving) + mean_penalties(moving)[0]
    detached = {name: exact.mean(penalty).detach() for name, penalty in exact.penalties.items()}
    value, annealed = reported(bound, exact, bound(exact))
    return Estimate(value, surrogate, detached, exact.scale, annealed)


def supported(bound: Objective) -> Objective:
    """Return a bound that can be trained through relaxed draws, or say why it cannot.

    Example:
        >>> supported(elbo).facts.name
        'elbo'
    """
    known = facts(bound)
    if not callable(bound) or hasattr(bound, "estimate"):
        raise TypeError(f"bound: expected a function of Particles, such as objectives.elbo, found {bound!r}")
    if known.path is not Path.TOTAL or known.upper:
        raise TypeError(f"bound: {known.name} needs gradients of its own; choose one such as elbo, elbo_kl or iwae")
    return bound
