"""Transforms of normalising flows, built of zuko's, and the head that makes a flow of an encoder's output.

A transform here is a module that is called with a context ``(..., context)``, or with none, and returns an
invertible function from noise to values. Two choices make one: which dimensions follow which
(`autoregressive`, `coupling`), and the monotonic function of one dimension (`affine`, `spline`), whose
parameters a masked network computes. It begins near the identity. Its attribute ``inv`` is the transform the
other way round, which trades fast draws for fast densities of any value.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import _InverseTransform

from ppl_vae.distributions import NormalizingFlow
from ppl_vae.nets.heads import ToNormal

__all__ = ["ToFlow", "affine", "autoregressive", "coupling", "spline"]

Elementwise = Callable[[], Mapping[str, Any]]


def affine() -> Mapping[str, Any]:
    """Return the function ``u -> exp(a) u + b``, with ``|a| < log 1000``.

    Reference: D. P. Kingma et al. 2016, as `autoregressive`; L. Dinh et al. 2017, as `coupling`.

    Example:
        >>> autoregressive(z_dim=3, elementwise=affine)()(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """
    return {"univariate": _zuko().transforms.MonotonicAffineTransform, "shapes": [(), ()]}


def spline(bins: int = 8, bound: float = 5.0) -> Mapping[str, Any]:
    """Return the monotonic rational-quadratic spline on ``[-bound, bound]``, the identity outside.

    Values far outside are left as they are, so that noise belongs on a scale of one.

    Args:
        bins: number of pieces; each has a width, a height, and a slope where it meets the next.
        bound: half the side of the square that the spline maps to itself.

    Reference: C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, "Neural Spline Flows", NeurIPS 2019,
    https://arxiv.org/abs/1906.04032.

    Example:
        >>> transform = autoregressive(z_dim=3, elementwise=spline)()
        >>> transform(torch.full((1, 3), 7.0))
        tensor([[7., 7., 7.]], ...)
    """
    function = partial(_zuko().transforms.MonotonicRQSTransform, bound=bound)
    return {"univariate": function, "shapes": [(bins,), (bins,), (bins - 1,)]}


def autoregressive(
    z_dim: int,
    context: int = 0,
    hidden: Sequence[int] = (64,),
    layers: int = 2,
    elementwise: Elementwise = affine,
) -> nn.Module:
    """Return a transform in which each dimension follows those before it, in alternating order.

    In each layer, with a masked network's parameters h::

        z_i = f(u_i; h_i(u_1, ..., u_(i-1), context))

    One pass draws and scores the draw; to take a value back takes ``z_dim`` passes a layer. This is the
    inverse autoregressive flow with `affine`, the neural spline flow with `spline`; its ``inv`` is the
    masked autoregressive flow, whose density takes one pass.

    Args:
        z_dim: number of dimensions.
        context: size of the context, which all dimensions see; 0 for none.
        hidden: widths of the hidden layers of each layer's network; empty for linear maps.
        layers: number of layers.
        elementwise: the function of one dimension, `affine` or `spline`.

    Reference: D. P. Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow",
    NeurIPS 2016, https://arxiv.org/abs/1606.04934; M. Germain et al., "MADE", ICML 2015,
    https://arxiv.org/abs/1502.03509; G. Papamakarios, T. Pavlakou, I. Murray, "Masked Autoregressive
    Flow for Density Estimation", NeurIPS 2017, https://arxiv.org/abs/1705.07057.

    Example:
        >>> transform = autoregressive(z_dim=3, context=4)(torch.zeros(5, 4))
        >>> transform(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """
    return _layers(z_dim, context, hidden, layers, elementwise, passes=None)


def coupling(
    z_dim: int,
    context: int = 0,
    hidden: Sequence[int] = (64,),
    layers: int = 4,
    elementwise: Elementwise = affine,
) -> nn.Module:
    """Return a transform in which one half of the dimensions follows the other, in turns.

    In each layer, with halves a and b that change places from layer to layer::

        z_a = f(u_a; h_a(context)),    z_b = f(u_b; h_b(u_a, context))

    One pass either draws or scores a draw, and two a layer take a value back. (A layer of two halves of a
    masked network; RealNVP leaves ``z_a = u_a``.)

    Args:
        z_dim: number of dimensions.
        context: size of the context, which all dimensions see; 0 for none.
        hidden: widths of the hidden layers of each layer's network; empty for linear maps.
        layers: number of layers.
        elementwise: the function of one dimension, `affine` or `spline`.

    Reference: L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density Estimation Using Real NVP", ICLR 2017,
    https://arxiv.org/abs/1605.08803.

    Example:
        >>> coupling(z_dim=3, elementwise=spline)()(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """
    return _layers(z_dim, context, hidden, layers, elementwise, passes=2)


def _layers(
    z_dim: int, context: int, hidden: Sequence[int], layers: int, elementwise: Elementwise, passes: int | None
) -> nn.Module:
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, found {layers}; without any, the noise itself is the draw")
    shape = {"transforms": layers, "passes": passes, "hidden_features": hidden}
    transform = _zuko().flows.MAF(z_dim, context, **shape, **elementwise()).transform
    for layer in transform.transforms:
        _begin_near_the_identity(layer)
    return transform


def _begin_near_the_identity(layer: nn.Module) -> None:
    """Make what a layer's network says small: a guide begins as its noise, and a prior as a standard normal."""
    outputs = [part for part in layer.modules() if isinstance(part, nn.Linear)][-1:]
    for parameter in (parameter for linear in outputs for parameter in linear.parameters()):
        parameter.data.mul_(0.1)


class ToFlow(nn.Module):
    """Numbers ``(..., 2 z_dim + context)`` to a normalising flow with event shape ``(z_dim,)``.

    The first ``2 z_dim`` make the normal noise (see `ToNormal`), the rest is what the transform is given::

        u ~ N(mu, diag(sigma^2)),    z = f(u; context)

    Args:
        z_dim: number of dimensions.
        context: size of the context.
        hidden: widths of the hidden layers of the transform's networks.
        layers: number of layers of the transform.
        transform: makes the transform: `autoregressive`, `coupling`, or a function like them.
        elementwise: the function of one dimension, `affine` or `spline`.

    Raises:
        ValueError: the numbers are of another size.

    Reference: D. P. Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow",
    NeurIPS 2016, https://arxiv.org/abs/1606.04934, algorithm 1.

    Example:
        >>> encoder = nn.Sequential(pv.nets.MLP(784, (8,), 2 * 3 + 4), ToFlow(z_dim=3, context=4))
        >>> encoder(torch.zeros(5, 784)).rsample((2,)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        z_dim: int,
        context: int,
        hidden: Sequence[int] = (64,),
        layers: int = 2,
        transform: Callable[..., nn.Module] = autoregressive,
        elementwise: Elementwise = affine,
    ):
        super().__init__()
        self.sizes = (2 * z_dim, context)
        self.noise = ToNormal()
        self.transform = transform(z_dim, context, hidden, layers, elementwise)

    def forward(self, h: Tensor) -> NormalizingFlow:
        """Return the distribution."""
        if h.shape[-1] != sum(self.sizes):
            raise ValueError(
                f"h: expected a last axis of {sum(self.sizes)} = 2 z_dim + context, found shape {tuple(h.shape)}; let "
                "the network before this head have so many outputs"
            )
        normal, context = h.split(self.sizes, dim=-1)
        noise = self.noise(normal)
        return NormalizingFlow(noise, self.transform(context.to(noise.base_dist.loc.dtype) if self.sizes[1] else None))


def _zuko() -> Any:
    """Import zuko without what its import does to torch: it turns the validation of all distributions off."""
    places = [(Distribution, "_validate_args"), (Distribution, "arg_constraints"), (_InverseTransform, "__name__")]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    import zuko

    for owner, name, value in kept:
        setattr(owner, name, value)
    return zuko
