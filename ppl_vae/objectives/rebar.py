"""REBAR and RELAX: control variates from a relaxation, conditioned on the draw."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.gradients import along, zero_with_gradient
from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.drawing import Hard, earnings, estimate_elbo, following, relaxed_from
from ppl_vae.objectives.options import checked, finite, positive
from ppl_vae.objectives.relaxations import Variable
from ppl_vae.objectives.vocabulary import Estimate, objective
from ppl_vae.particles import Particles
from ppl_vae.weighing import weigh

__all__ = ["REBAR", "RELAX"]


@objective(
    formula="sum_k m log w_k",
    reference="G. Tucker et al. 2017, arXiv:1703.07370",
    linear=True,
    discrete=True,
)
class REBAR(nn.Module):
    """The ELBO with the REBAR gradient for Bernoulli and one-hot sites; unbiased.

    With f the log-weight, b the draw, z the noise that gave it, z' noise that gives the same, and
    ``c(z) = scale f(relaxed z)``, the gradient in a site's logits a is::

        (f(b) - c(z')) d log q(b)/da + dc(z)/da - dc(z')/da

    Scale and temperature are trained for the smallest variance of this gradient; they are parameters
    of the objective, and join the optimizer. Each layer of a hierarchy costs two more passes: layers
    above it are kept, those below drawn relaxed.

    Args:
        temperature: of the relaxation, at the start.
        scale: of the control variate, at the start.

    Reference: G. Tucker, A. Mnih, C. Maddison, D. Lawson, J. Sohl-Dickstein, "REBAR: Low-variance,
    unbiased gradient estimates for discrete latent variable models", NeurIPS 2017,
    https://arxiv.org/abs/1703.07370.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> value, surrogate = pv.objectives.REBAR().estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    bound = staticmethod(elbo)

    def __init__(self, temperature: float = 0.5, scale: float = 1.0):
        super().__init__()
        checked("temperature", temperature, "a positive number", positive)
        checked("scale", scale, "a finite number", finite)
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the ELBO, ``(B,)``, and what to differentiate.

        Raises:
            ValueError: a discrete site is neither Bernoulli nor one-hot.
        """

        def slopes(drawn: Hard, record: Particles, earned: Tensor) -> Tensor:
            self.check_sites(drawn.variables)
            surrogate, squares = torch.zeros_like(earned), torch.zeros_like(earned)
            for name, site in drawn.variables.items():
                if not site.logits.requires_grad:
                    continue
                slope = self._slope(model, guide, batch, particles, drawn, name, earned)
                surrogate = surrogate + along(site.logits, slope)
                squares = squares + slope.square().flatten(2).sum(-1)
            return surrogate - self._own(squares.mean())

        return estimate_elbo(model, guide, batch, particles, slopes)

    def check_sites(self, sites: Mapping[str, Variable]) -> None:
        """Raise if the discrete sites are not those that this estimator was made for."""

    def control(self, name: str, latent: Tensor, earned: Tensor) -> Tensor:
        """Return the control variate, ``(K, B)``, at a site's latent, where the relaxation earns so much."""
        return self.scale * earned

    def _slope(
        self, model: Any, guide: Any, batch: Any, particles: int, drawn: Hard, name: str, earned: Tensor
    ) -> Tensor:
        """Return the gradient in the logits of a site, itself differentiable in our own parameters."""
        site: Variable = drawn.variables[name]
        temperature = self.log_temperature.exp()
        noise: dict[str, Tensor] = {}  # for the layers below, the same in both passes

        def controlled(latent: Tensor) -> Tensor:
            rule = following(drawn, name, site.relaxed(latent, temperature), relaxed_from(noise, temperature))
            relaxed = weigh(model, guide, batch, particles, linear=True, draw=rule)
            return self.control(name, latent, earnings(relaxed))

        free = controlled(site.latent(drawn.noise[name]))
        held = controlled(site.conditional(drawn.values[name], site.noise()))
        (score,) = torch.autograd.grad(drawn.log_q[name].sum(), site.logits, retain_graph=True)
        (path,) = torch.autograd.grad((free - held).sum(), site.logits, create_graph=True)
        # What is impossible, drawn or relaxed, teaches nothing.
        possible = earned.isfinite() & free.isfinite() & held.isfinite()
        shape = earned.shape + (1,) * (score.dim() - 2)
        signal = (earned - held).masked_fill(~possible, 0.0).reshape(shape)
        return signal * score + path.masked_fill(~possible.reshape(shape), 0.0)

    def _own(self, variance: Tensor) -> Tensor:
        """Return a zero whose gradient lowers the variance, for our own parameters alone."""
        own = [p for p in self.parameters() if p.requires_grad]
        if not variance.requires_grad or not own:
            return torch.zeros_like(variance)
        slopes = torch.autograd.grad(variance, own, allow_unused=True, retain_graph=True)
        found = [(p, slope) for p, slope in zip(own, slopes, strict=True) if slope is not None]
        return sum((zero_with_gradient(p) * slope).sum() for p, slope in found)


@objective(
    formula="sum_k m log w_k",
    reference="W. Grathwohl et al. 2018, arXiv:1711.00123",
    linear=True,
    discrete=True,
)
class RELAX(REBAR):
    """The ELBO with the RELAX gradient for Bernoulli and one-hot sites; unbiased.

    As `REBAR`, with a network of each site's latent added to the control variate::

        c(z) = scale f(relaxed z) + r(z)

    The networks are trained, with scale and temperature, for the smallest variance.

    Args:
        networks: for each discrete site, ``(..., z_dim) -> (..., 1)``.
        temperature: of the relaxation, at the start.
        scale: of the control variate, at the start.

    Reference: W. Grathwohl, D. Choi, Y. Wu, G. Roeder, D. Duvenaud, "Backpropagation through the Void:
    Optimizing control variates for black-box gradient estimation", ICLR 2018,
    https://arxiv.org/abs/1711.00123.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> relax = pv.objectives.RELAX(z=pv.nets.MLP(2, (8,), 1))
        >>> value, surrogate = relax.estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    def __init__(self, temperature: float = 0.5, scale: float = 1.0, **networks: nn.Module):
        super().__init__(temperature, scale)
        for name, network in networks.items():
            if not isinstance(network, nn.Module):
                raise TypeError(f"{name}: expected a network, (..., z_dim) -> (..., 1), found {network!r}")
        self.networks = nn.ModuleDict(networks)

    def check_sites(self, sites: Mapping[str, Variable]) -> None:
        """Raise if there is not one network for each discrete site."""
        found = ", ".join(self.networks) or "none"
        for name, site in sites.items():
            if name not in self.networks:
                raise ValueError(
                    f"objective: RELAX has no network for site '{name}' (it has {found}); pass one from its size to 1, "
                    f"RELAX({name}=nets.MLP({site.logits.shape[-1]}, (100,), 1)), or use REBAR"
                )
        if strange := [name for name in self.networks if name not in sites]:
            raise ValueError(
                f"objective: RELAX has a network for '{strange[0]}', which is no discrete site of the guide (those are "
                f"{', '.join(sites) or 'none'}); leave it out"
            )

    def control(self, name: str, latent: Tensor, earned: Tensor) -> Tensor:
        """Return the control variate, ``(K, B)``, at a site's latent, where the relaxation earns so much."""
        found = self.networks[name](latent)
        if found.shape not in (earned.shape, (*earned.shape, 1)):
            raise ValueError(
                f"objective: RELAX's network for site '{name}' gives shape {tuple(found.shape)}, expected "
                f"{(*earned.shape, 1)}: one number for each draw and datum"
            )
        return super().control(name, latent, earned) + found.reshape(earned.shape)
