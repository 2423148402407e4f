"""ARM and DisARM: two opposite draws of each Bernoulli site."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.gradients import along, gap
from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.drawing import Hard, earnings, estimate_elbo, following
from ppl_vae.objectives.relaxations import Binary
from ppl_vae.objectives.vocabulary import Estimate, objective
from ppl_vae.particles import Particles
from ppl_vae.weighing import weigh

__all__ = ["ARM", "DisARM"]


@objective(
    formula="sum_k m log w_k",
    reference="M. Yin, M. Zhou 2019, arXiv:1807.11143",
    linear=True,
    discrete=True,
)
class ARM(nn.Module):
    """The ELBO with the augment-REINFORCE-merge gradient for Bernoulli sites; unbiased.

    With logits a, uniform noise u, ``b = 1[u > sigmoid(-a)]`` and its opposite ``b' = 1[u < sigmoid(a)]``::

        d/da = (f(b) - f(b')) (u - 1/2)

    Each layer of a hierarchy costs one more pass: layers above it are kept, those below drawn anew.

    Reference: M. Yin, M. Zhou, "ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary
    Networks", ICLR 2019, https://arxiv.org/abs/1807.11143.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> value, surrogate = pv.objectives.ARM().estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    bound = staticmethod(elbo)

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the ELBO, ``(B,)``, and what to differentiate.

        Raises:
            ValueError: a discrete site is no Bernoulli.
        """

        def slopes(drawn: Hard, record: Particles, earned: Tensor) -> Tensor:
            surrogate = torch.zeros_like(earned)
            for name, site in drawn.variables.items():
                u = drawn.noise[name]
                opposite = _binary(name, site).hard(site.latent(1 - u)).detach()
                rule = following(drawn, name, opposite, later=lambda later, fn: None)
                with torch.no_grad():
                    other = earnings(weigh(model, guide, batch, particles, linear=True, draw=rule))
                difference = gap(earned, other).reshape(earned.shape + (1,) * (u.dim() - 2))
                slope = difference * self.coefficient(u, site.logits.detach(), drawn.values[name], opposite)
                surrogate = surrogate + along(site.logits, slope)
            return surrogate

        return estimate_elbo(model, guide, batch, particles, slopes)

    @staticmethod
    def coefficient(u: Tensor, logits: Tensor, value: Tensor, opposite: Tensor) -> Tensor:
        """Return what the difference of the two draws is multiplied by, for each variable."""
        return u - 0.5


@objective(
    formula="sum_k m log w_k",
    reference="Z. Dong, A. Mnih, G. Tucker 2020, arXiv:2006.10680",
    linear=True,
    discrete=True,
)
class DisARM(ARM):
    """The ELBO with the DisARM gradient for Bernoulli sites: `ARM` with its noise averaged out.

    ::

        d/da = 1/2 (f(b) - f(b')) (b - b') sigmoid(|a|)

    zero for each variable on which the two draws agree. Unbiased.

    Reference: Z. Dong, A. Mnih, G. Tucker, "DisARM: An Antithetic Gradient Estimator for Binary
    Latent Variables", NeurIPS 2020, https://arxiv.org/abs/2006.10680; also M. Yin, N. Ho, B. Yan,
    X. Qian, M. Zhou, "Probabilistic Best Subset Selection via Gradient-Based Optimization" 2020, as U2G.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> value, surrogate = pv.objectives.DisARM().estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    @staticmethod
    def coefficient(u: Tensor, logits: Tensor, value: Tensor, opposite: Tensor) -> Tensor:
        """Return what the difference of the two draws is multiplied by, for each variable."""
        return 0.5 * (value - opposite) * logits.abs().sigmoid()


def _binary(name: str, site: Any) -> Binary:
    if not isinstance(site, Binary):
        raise ValueError(
            f"objective: site '{name}' is one-hot, and opposite draws exist for Bernoulli sites; use MuProp, REBAR, "
            "RELAX, rloo or vimco"
        )
    return site
