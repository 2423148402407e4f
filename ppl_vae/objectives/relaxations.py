"""Bernoulli and one-hot variables as thresholds of continuous noise: hard, relaxed, and conditioned."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, OneHotCategorical

__all__ = ["Binary", "OneHot", "Variable", "variable"]


class Binary:
    """A Bernoulli as the sign of logistic noise around its logits.

    Args:
        fn: a Bernoulli, of any shape.

    Reference: C. Maddison, A. Mnih, Y. W. Teh, "The Concrete Distribution", ICLR 2017, appendix B,
    https://arxiv.org/abs/1611.00712.
    """

    def __init__(self, fn: Bernoulli):
        self.logits, self.mean = fn.logits, fn.probs

    def noise(self) -> Tensor:
        """Return uniform draws, one for each variable."""
        return uniform_like(self.logits)

    def latent(self, u: Tensor) -> Tensor:
        """Return the continuous variable whose sign decides."""
        return self.logits + u.logit()

    def hard(self, latent: Tensor) -> Tensor:
        """Return the value that a latent decides for."""
        return (latent > 0).to(latent.dtype)

    def relaxed(self, latent: Tensor, temperature: Tensor | float) -> Tensor:
        """Return a value between the corners, differentiable in the latent."""
        return (latent / temperature).sigmoid()

    def conditional(self, value: Tensor, v: Tensor) -> Tensor:
        """Return a latent drawn from those that decide for this value, from uniform noise v."""
        off = (-self.logits).sigmoid()  # the share of u that decides for 0
        u = torch.where(value > 0.5, off + v * (1 - off), v * off)
        return self.latent(inside(u))


class OneHot:
    """A one-hot categorical as the arg-max of Gumbel noise on its logits.

    Args:
        fn: a OneHotCategorical, of any shape.

    Reference: C. Maddison, D. Tarlow, T. Minka, "A* Sampling", NeurIPS 2014,
    https://arxiv.org/abs/1411.0030; conditional draws as in G. Tucker et al. 2017,
    https://arxiv.org/abs/1703.07370, appendix C.
    """

    def __init__(self, fn: OneHotCategorical):
        self.logits, self.mean = fn.logits, fn.probs  # torch normalises both

    def noise(self) -> Tensor:
        """Return uniform draws, one for each corner."""
        return uniform_like(self.logits)

    def latent(self, u: Tensor) -> Tensor:
        """Return the Gumbel variables whose largest decides."""
        return self.logits - (-u.log()).log()

    def hard(self, latent: Tensor) -> Tensor:
        """Return the corner that a latent decides for."""
        # Without torch's one_hot, which reads numbers off the tensor.
        corners = torch.arange(latent.shape[-1], device=latent.device)
        return (latent.argmax(-1, keepdim=True) == corners).to(latent.dtype)

    def relaxed(self, latent: Tensor, temperature: Tensor | float) -> Tensor:
        """Return a point of the simplex, differentiable in the latent."""
        return (latent / temperature).softmax(-1)

    def conditional(self, value: Tensor, v: Tensor) -> Tensor:
        """Return a latent drawn from those that decide for this corner, from uniform noise v."""
        chosen = value > 0.5
        # The largest is a Gumbel around log sum exp(logits) = 0; the others lie below it.
        top = -v.log()
        top_of_all = torch.where(chosen, top, torch.zeros_like(top)).sum(-1, keepdim=True)
        below = -(top / self.logits.exp().clamp_min(tiny(v)) + top_of_all).log()
        return torch.where(chosen, -top.log(), below)


Variable = Binary | OneHot


def variable(name: str, fn: Any) -> Variable:
    """Return a site's distribution as a threshold of noise.

    Raises:
        ValueError: it is none; the message names the site.

    Example:
        >>> from torch.distributions import Bernoulli, Poisson
        >>> type(variable("z", Bernoulli(torch.tensor(0.5)))).__name__
        'Binary'
        >>> variable("z", Poisson(torch.tensor(0.5)))
        Traceback (most recent call last):
        ...
        ValueError: objective: site 'z' is a Poisson, for which there is no relaxation; ...
    """
    inner = fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    for kind, made in ((Bernoulli, Binary), (OneHotCategorical, OneHot)):
        if isinstance(inner, kind):
            return made(inner)
    raise ValueError(
        f"objective: site '{name}' is a {type(inner).__name__}, for which there is no relaxation; make it a Bernoulli "
        "or a OneHotCategorical in model and guide, or train it with vimco, rloo or NVIL"
    )


def uniform_like(x: Tensor) -> Tensor:
    """Return uniform draws in the open interval from 0 to 1, shaped and typed as x.

    Example:
        >>> uniform_like(torch.zeros(3)).shape
        torch.Size([3])
    """
    return inside(torch.rand_like(x))


def inside(u: Tensor) -> Tensor:
    """Keep away from 0 and 1, where logarithms end.

    Example:
        >>> bool(inside(torch.tensor([0.0, 1.0])).logit().isfinite().all())
        True
    """
    return u.clamp(tiny(u), 1 - torch.finfo(u.dtype).eps)


def tiny(x: Tensor) -> float:
    """Return the smallest normal number of a type.

    Example:
        >>> tiny(torch.zeros(1)) > 0
        True
    """
    return torch.finfo(x.dtype).tiny
