"""One-hot codes: all alike, relaxed to the simplex, or the one that lies nearest to a vector."""

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import OneHotCategorical, constraints, register_kl

__all__ = ["NearestCode", "OneHotCodes", "OneHotUniform", "RelaxedOneHot"]


class OneHotCodes(dist.OneHotCategorical):
    """A ``OneHotCategorical`` whose draws read no number off a tensor; they are those of torch's at the same seed.

    Torch looks at the smallest and the largest index of a draw before it makes a one-hot vector of it.

    Args:
        logits: or ``probs``, ``(*batch, C)``.

    Example:
        >>> OneHotCodes(logits=torch.tensor([0.0, 99.0])).sample()
        tensor([0., 1.])
    """

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return codes, ``(*sample, *batch, C)``."""
        drawn, like = self._categorical.sample(torch.Size(sample_shape)), self._categorical._param
        return corner(drawn, like.shape[-1]).to(like.dtype)


class OneHotUniform(dist.TorchDistribution):
    """One of C codes, all equally probable, as a one-hot vector.

    ::

        log p(c) = -log C

    A ``OneHotCategorical`` with equal logits has the same probabilities, but where a code is relaxed, or carries a
    gradient straight through, its density is continued between the corners and pulls at the code. This one is a
    constant that pulls at nothing.

    Args:
        like: ``(*batch, C)``, of the type and on the device of the draws; its numbers are not looked at.

    Example:
        >>> OneHotUniform(torch.zeros(4)).log_prob(torch.eye(4)).exp()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.one_hot
    has_enumerate_support = True

    def __init__(self, like: Tensor, validate_args: bool | None = None):
        self.like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "OneHotUniform":
        """Return the distribution with more batch axes."""
        return type(self)(self.like.expand(*batch_shape, *self.event_shape), validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """The probabilities, ``(*batch, C)``."""
        return torch.full_like(self.like, 1 / self.event_shape[0])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return codes, ``(*sample, *batch, C)``."""
        with torch.no_grad():
            return OneHotCodes(self.mean, validate_args=False).sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the constant, in nats, ``(*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.like.shape)[:-1]
        return self.like.new_zeros(shape) - log(self.event_shape[0])

    def entropy(self) -> Tensor:
        """Return log C, ``(*batch,)``."""
        return self.like.new_zeros(self.batch_shape) + log(self.event_shape[0])

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return every code, ``(C, *batch, C)``."""
        return _corners(self, self.like, expand)


class NearestCode(dist.TorchDistribution):
    """All mass on the code whose vector is nearest to a given one, with a gradient straight through.

    ::

        c = onehot(j),    j = argmin_j |z - e_j|^2,    log q(c) = 0

    Its draws carry a gradient: to first order they are ``c + dz E^+``, with ``E^+`` the pseudo-inverse of the codebook,
    so that a looked-up vector ``c @ E`` moves as z moves. Where the vectors span the whole space (at least as
    many codes as dimensions), ``E^+ E = I``, and what reaches z is the gradient at the looked-up vector, unchanged;
    elsewhere it is the part of it that lies in the span, along which alone codes differ.

    Args:
        z: vectors, ``(*batch, D)``.
        codebook: ``(C, D)``; gets no gradient.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
    https://arxiv.org/abs/1711.00937.

    Example:
        >>> NearestCode(torch.tensor([0.9, 0.2]), torch.eye(2)).rsample()
        tensor([1., 0.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"z": constraints.real_vector}
    support = constraints.one_hot
    has_rsample = True
    has_enumerate_support = True

    def __init__(self, z: Tensor, codebook: Tensor, validate_args: bool | None = None):
        self.z, self.codebook = z, codebook.detach()
        super().__init__(z.shape[:-1], codebook.shape[:1], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "NearestCode":
        """Return the distribution with more batch axes."""
        return type(self)(self.z.expand(*batch_shape, -1), self.codebook, validate_args=self._validate_args)

    @property
    def code(self) -> Tensor:
        """The code without gradient, ``(*batch, C)``."""
        with torch.no_grad(), torch.autocast(self.z.device.type, enabled=False):
            # |z|^2 is the same for all codes. Far from the origin the difference of what is left has no digits.
            centre = self.codebook.mean(0)
            codebook = self.codebook - centre
            distances = codebook.square().sum(-1) - 2 * (self.z - centre) @ codebook.T
            return corner(distances.argmin(-1), distances.shape[-1]).to(self.z.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the code, ``(*sample, *batch, C)``, with its gradient."""
        code = self.code
        if self.z.requires_grad:
            with torch.autocast(self.z.device.type, enabled=False):
                code = code + (self.z - self.z.detach()) @ pseudo_inverse(self.codebook)
        return code.expand(*sample_shape, *code.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 for the code and minus infinity for others, ``(*sample, *batch)``, without gradient."""
        if self._validate_args:
            self._validate_sample(value)
        mass = (value.detach() * self.code).sum(-1)
        return torch.where(mass > 0.5, 0.0, -torch.inf).to(mass.dtype)

    def entropy(self) -> Tensor:
        """Return 0, ``(*batch,)``."""
        return self.z.new_zeros(self.batch_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return every code, ``(C, *batch, C)``."""
        return _corners(self, self.z, expand)


class RelaxedOneHot(dist.RelaxedOneHotCategorical):
    """The Concrete distribution on the simplex, drawn so that no coordinate is rounded to zero.

    ::

        c = softmax((logits + g) / temperature),    g_j ~ Gumbel(0, 1)

    Torch's own draws reach zero, where the density has no logarithm; here a coordinate is at least the smallest normal
    number, ``e^-87`` in single precision. It is held there, in place of where it was drawn, if ``logits + g`` is more
    than ``87 temperature`` below that of another one, and then the density is not that of the draws: at a temperature
    of 0.1 in about one draw of a thousand, and in more where logits are far apart. Bounds at temperatures of 0.1
    and less are to be had in double precision, which reaches ``e^-708``.

    Args:
        temperature: a positive number, a tensor.
        logits: or ``probs``, ``(*batch, C)``.

    Reference: C. Maddison, A. Mnih, Y. W. Teh, "The Concrete Distribution", ICLR 2017,
    https://arxiv.org/abs/1611.00712; E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with
    Gumbel-Softmax", ICLR 2017, https://arxiv.org/abs/1611.01144.

    Example:
        >>> relaxed = RelaxedOneHot(torch.tensor(0.01), logits=torch.tensor([50.0, 0.0]))
        >>> bool(relaxed.log_prob(relaxed.rsample()).isfinite())
        True
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return points of the simplex, ``(*sample, *batch, C)``."""
        drawn = self.base_dist.rsample(sample_shape).softmax(-1)
        return drawn.clamp_min(torch.finfo(drawn.dtype).tiny)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return points of the simplex without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def pseudo_inverse(matrix: Tensor, steps: int = 24) -> Tensor:
    """Return the Moore-Penrose inverse of a matrix ``(C, D)``, by matrix products alone.

    A factorisation would make a GPU wait. Each step squares what is left of the error; directions in which the
    matrix is thousands of times smaller than in all together count as none.

    Reference: A. Ben-Israel, D. Cohen, "On Iterative Computation of Generalized Inverses and Associated
    Projections", SIAM Journal on Numerical Analysis 1966, https://doi.org/10.1137/0703035.

    Example:
        >>> pseudo_inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.2500, 0.0000]])
    """
    inverse = matrix.T / matrix.square().sum().clamp_min(torch.finfo(matrix.dtype).tiny)
    for _ in range(steps):
        inverse = 2 * inverse - inverse @ matrix @ inverse
    return inverse @ matrix @ inverse  # which takes out rounding where the matrix is zero; each step doubles it


def corner(indices: Tensor, codes: int) -> Tensor:
    """Return indices ``(...)`` as one-hot vectors ``(..., codes)`` of bool, without reading numbers off a tensor.

    Example:
        >>> corner(torch.tensor([1, 0]), 2)
        tensor([[False,  True],
                [ True, False]])
    """
    return indices.unsqueeze(-1) == torch.arange(codes, device=indices.device)


def _corners(fn: Any, like: Tensor, expand: bool) -> Tensor:
    codes = fn.event_shape[0]
    values = torch.eye(codes, dtype=like.dtype, device=like.device)
    values = values.reshape(codes, *[1] * len(fn.batch_shape), codes)
    return values.expand(codes, *fn.batch_shape, codes) if expand else values


@register_kl(OneHotCategorical, OneHotUniform)
def _kl_categorical_uniform(q: OneHotCategorical, p: OneHotUniform) -> Tensor:
    return p.entropy() - q.entropy()


@register_kl(NearestCode, OneHotUniform)
def _kl_nearest_uniform(q: NearestCode, p: OneHotUniform) -> Tensor:
    return p.entropy() - q.entropy()
