"""The factors of a mean-field posterior: sites of a program, each or in pairs, with their family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Independent

from ppl_vae.contract import ContractError, Site
from ppl_vae.families import Dirichlet, Family, Gaussian, Natural, NormalWishart, Wishart, inner

__all__ = ["Factor", "factor_of", "joint_factor_of"]

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Factor:
    """One factor q_j: its sites, its family, and how the family's tensors lie in the sites' values.

    Attributes:
        sites: one name; mean and precision, if they are joint.
        family: what it knows of statistics, points and entropy.
        local: whether there is one for each datum.
        unpack: from the family's values ``(..., batch, D)`` to those of the sites.
        wrap: from natural parameters to the distributions of the sites, by marginals.
        start: from the sites' priors and draws to natural parameters near them.
    """

    sites: tuple[str, ...]
    family: Family
    local: bool
    unpack: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    wrap: Callable[[Natural], tuple[Any, ...]]
    start: Callable[[Sequence[Site]], Natural]

    @property
    def name(self) -> str:
        """What messages call it."""
        return ", ".join(self.sites)

    def points(self, mean: Natural) -> Values:
        """Return values of the sites whose statistics average to given ones, ``(P, ...)``."""
        return dict(zip(self.sites, self.unpack(self.family.points(mean)), strict=True))

    def alone(self, site: str, mean: Natural) -> tuple[Family, Natural] | None:
        """Return the family of a site by itself, with its expected statistics, if it has one."""
        if len(self.sites) == 1:
            return self.family, mean
        return (self.family.of_precision, mean[:2]) if site == self.sites[1] else None

    def beginning(self, sites: Mapping[str, Site]) -> Natural:
        """Return parameters near the prior of a trace, with means where it drew them."""
        eta = self.start([sites[name] for name in self.sites])
        return tuple(part.detach().clone() for part in eta)

    def mode(self, eta: Natural) -> Values:
        """Return the value of highest density, as one point ``(1, ...)``."""
        values = tuple(value.unsqueeze(0) for value in self.family.mode(eta))
        return dict(zip(self.sites, self.unpack(values), strict=True))

    def statistics_at_mode(self, eta: Natural) -> Natural | None:
        """Return the statistics of the value of highest density, of families whose prior is averaged by them."""
        values = self.family.mode(eta)
        if isinstance(self.family, Dirichlet):
            return (values[0].log(),)
        return (values[0].logdet(), values[0]) if isinstance(self.family, Wishart) else None

    def check_peak(self, eta: Natural) -> None:
        """Raise if the density has no highest value."""
        peaked = self.family.peaked(eta)
        if not bool(peaked.all()):
            raise ContractError(
                f"point: the density of '{self.name}' rises without end towards an edge{where(~peaked)}, so that it "
                "has no mode; give a prior with a larger shape, concentration or number of degrees of freedom, or "
                "leave the site out of point"
            )

    def sample(self, eta: Natural, n: int) -> Values:
        """Draw the sites' values, ``(n, ...)``."""
        return dict(zip(self.sites, self.unpack(self.family.sample(eta, n)), strict=True))

    def distributions(self, eta: Natural) -> dict[str, Any]:
        """Return the marginal distribution of each site."""
        return dict(zip(self.sites, self.wrap(eta), strict=True))


def where(wrong: Tensor) -> str:
    """Say which elements of a batch, in a parenthesis.

    Example:
        >>> where(torch.tensor([False, True]))
        ' (elements [[1]])'
    """
    return f" (elements {wrong.nonzero().tolist()[:3]})" if wrong.dim() else ""


def factor_of(name: str, fn: Any, local: bool) -> Factor:
    """Return the factor of one site, of the family of its prior.

    Raises:
        ContractError: no family here has this prior.
    """
    base, axes = unwrapped(fn)
    maker = {
        dist.Normal: _normal,
        dist.MultivariateNormal: _normal,
        dist.Gamma: _gamma,
        dist.Wishart: _wishart,
        dist.Beta: _beta,
        dist.Dirichlet: _dirichlet,
    }.get(kind(base))
    if maker is None or (kind(base) in (dist.MultivariateNormal, dist.Wishart, dist.Dirichlet) and axes):
        raise ContractError(
            f"site '{name}': its prior is {type(base).__name__}, and mean-field factors in closed form are normal, "
            "multivariate normal, gamma, beta, Dirichlet, Wishart, or categorical for each datum; write the model with "
            "one of these, or fit a guide to it (pv.variational_em, Pyro's SVI)"
        )
    return maker((name,), fn, local)


def joint_factor_of(mean: str, mean_fn: Any, precision: str, precision_fn: Any) -> Factor:
    """Return the factor of a normal mean together with its precision.

    Raises:
        ContractError: the two are not a normal and a gamma, or a multivariate normal and a Wishart, of one shape.
    """
    kinds = kind(unwrapped(mean_fn)[0]), kind(unwrapped(precision_fn)[0])
    shapes = mean_fn.batch_shape + mean_fn.event_shape, precision_fn.batch_shape + precision_fn.event_shape
    if kinds == (dist.MultivariateNormal, dist.Wishart) and shapes[0] + mean_fn.event_shape == shapes[1]:
        family = NormalWishart(mean_fn.batch_shape, mean_fn.event_shape[0], mean_fn.loc)
        wrap = partial(_mean_and_precision, family)
        return Factor((mean, precision), family, False, tuple, wrap, partial(_start_joint, family))
    if kinds == (dist.Normal, dist.Gamma) and shapes[0] == shapes[1]:
        family = NormalWishart(shapes[0], 1, unwrapped(mean_fn)[0].loc)
        wrap = partial(_numbers_mean_and_precision, family, len(mean_fn.event_shape))
        start = partial(_start_joint, family)
        return Factor((mean, precision), family, False, _numbers_in_pairs, wrap, start)
    raise ContractError(
        f"joint: expected a normal mean with a gamma precision, or a multivariate normal with a Wishart, of one shape, "
        f"found '{mean}' {type(mean_fn).__name__} {tuple(shapes[0])} and '{precision}' {type(precision_fn).__name__} "
        f"{tuple(shapes[1])}; leave the pair out of joint, and they are two factors"
    )


def natural_of(fn: Any, family: Family) -> Natural | None:
    """Return the natural parameters of a prior in the family of its factor; None where they are not needed."""
    base, _ = unwrapped(fn)
    if isinstance(base, dist.Gamma):
        return base.concentration - 1, -base.rate[..., None, None]
    if isinstance(base, dist.Beta):
        return (torch.stack([base.concentration1 - 1, base.concentration0 - 1], -1),)
    if isinstance(base, dist.Dirichlet | dist.Wishart):
        return family.natural(base)
    return None


def expected_log_prior(fn: Any, family: Family, mean: Natural) -> Tensor | None:
    """Return ``E_q log p`` of a latent, whose expected statistics are ``mean``, under its own prior.

    None for those whose log density is averaged over points. (A gamma or a Dirichlet that is nearly certain of zero
    has expected logarithms that no point in floating point reaches.)
    """
    eta = natural_of(fn, family)
    if eta is None:
        return None
    each = inner(eta, mean, STATISTIC_AXES[type(family)]) - log_normalizer(family, eta)
    return each.flatten(each.dim() - unwrapped(fn)[1]).sum(-1) if unwrapped(fn)[1] else each


STATISTIC_AXES = {Wishart: (0, 2), Dirichlet: (1,)}


def log_normalizer(family: Family, eta: Natural) -> Tensor:
    """Return A(eta)."""
    if isinstance(family, Wishart):
        return family.log_normalizer(eta)
    concentration = eta[0] + 1
    return torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))


def unwrapped(fn: Any) -> tuple[Any, int]:
    """Return what an ``Independent`` holds, and how many axes of its batch count as event."""
    axes = 0
    while isinstance(fn, Independent):
        axes += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return fn, axes


def kind(fn: Any) -> type | None:
    """Return which of Pyro's distributions this is."""
    known = (dist.Normal, dist.MultivariateNormal, dist.Gamma, dist.Wishart, dist.Beta, dist.Dirichlet)
    return next((one for one in known if isinstance(fn, one)), None)


def _normal(sites: tuple[str, ...], fn: Any, local: bool) -> Factor:
    event = fn.event_shape
    family = Gaussian(fn.batch_shape, event.numel(), unwrapped(fn)[0].loc)
    wrap = partial(_as_normal, family, bool(event))
    return Factor(sites, family, local, partial(_shaped, event), wrap, partial(_start_normal, family))


def _as_normal(family: Gaussian, event: bool, eta: Natural) -> tuple[Any]:
    q = family.distribution(eta)
    return (q if event else dist.Normal(q.loc[..., 0], q.covariance_matrix[..., 0, 0].sqrt()),)


def _gamma(sites: tuple[str, ...], fn: Any, local: bool) -> Factor:
    family = Wishart(fn.batch_shape + fn.event_shape, 1, unwrapped(fn)[0].rate)
    wrap = partial(_as_gamma, len(fn.event_shape))
    return Factor(sites, family, local, _numbers, wrap, partial(_start_wishart, family))


def _as_gamma(axes: int, eta: Natural) -> tuple[Any]:
    return (dist.Gamma(eta[0] + 1, -eta[1][..., 0, 0]).to_event(axes),)


def _wishart(sites: tuple[str, ...], fn: Any, local: bool) -> Factor:
    family = Wishart(fn.batch_shape, fn.event_shape[0], fn.scale_tril)
    return Factor(sites, family, local, tuple, partial(_itself, family), partial(_start_wishart, family))


def _beta(sites: tuple[str, ...], fn: Any, local: bool) -> Factor:
    family = Dirichlet(fn.batch_shape + fn.event_shape, 2, unwrapped(fn)[0].concentration1)
    wrap = partial(_as_beta, len(fn.event_shape))
    return Factor(sites, family, local, _first, wrap, partial(_start_dirichlet, family))


def _as_beta(axes: int, eta: Natural) -> tuple[Any]:
    return (dist.Beta(eta[0][..., 0] + 1, eta[0][..., 1] + 1).to_event(axes),)


def _dirichlet(sites: tuple[str, ...], fn: Any, local: bool) -> Factor:
    family = Dirichlet(fn.batch_shape, fn.event_shape[0], fn.concentration)
    return Factor(sites, family, local, tuple, partial(_itself, family), partial(_start_dirichlet, family))


def _itself(family: Family, eta: Natural) -> tuple[Any]:
    return (family.distribution(eta),)


# Functions with names, so that what was found can be pickled.


def _shaped(event: Size, values: Sequence[Tensor]) -> tuple[Tensor]:
    """Take vectors as events of a shape."""
    return (values[0].reshape(values[0].shape[:-1] + event),)


def _first(values: Sequence[Tensor]) -> tuple[Tensor]:
    """Take the first of two probabilities, such that both are above zero for a program that is given one."""
    limits = torch.finfo(values[0].dtype)
    return (values[0][..., 0].clamp(limits.tiny, 1 - limits.eps / 2),)


def _numbers(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Take matrices of size one as numbers."""
    return (values[0][..., 0, 0],)


def _numbers_in_pairs(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Take means and precisions of size one as numbers."""
    return values[0][..., 0], values[1][..., 0, 0]


def _mean_and_precision(family: NormalWishart, eta: Natural) -> tuple[Any, Any]:
    """Return the marginals of both: a Student t and a Wishart."""
    kappa, loc, df, scale_inverse = eta
    freedom = df - family.size + 1
    spread = torch.linalg.cholesky(scale_inverse / (kappa * freedom)[..., None, None])
    return dist.MultivariateStudentT(freedom, loc, spread), family.of_precision.distribution(family.wishart(eta))


def _numbers_mean_and_precision(family: NormalWishart, axes: int, eta: Natural) -> tuple[Any, Any]:
    """Return the marginals of both: a Student t and a gamma for each number."""
    kappa, loc, df, scale_inverse = eta
    rate = scale_inverse[..., 0, 0]
    mean = dist.StudentT(df, loc[..., 0], (rate / (kappa * df)).sqrt())
    return mean.to_event(axes), dist.Gamma(df / 2, rate / 2).to_event(axes)


def _start_normal(family: Gaussian, sites: Sequence[Site]) -> Natural:
    """Begin at a draw, with the prior's variances."""
    drawn, fn = sites[0]["value"], sites[0]["fn"]
    shape = family.batch + Size([family.size])
    precision = (1 / fn.variance.expand(fn.batch_shape + fn.event_shape)).reshape(shape)
    loc = drawn.expand(fn.batch_shape + fn.event_shape).reshape(shape)
    return precision * loc, -precision.diag_embed() / 2


def _start_wishart(family: Wishart, sites: Sequence[Site]) -> Natural:
    """Begin at the prior's mean, with more degrees of freedom than dimensions."""
    excess, half_inverse = natural_of(sites[0]["fn"], family)
    df = 2 * excess + family.size + 1
    more = df.clamp_min(family.size + 2.0)
    half_inverse = half_inverse * (more / df)[..., None, None]
    shape = (*family.batch, family.size, family.size)
    return (more - family.size - 1).expand(family.batch) / 2, half_inverse.expand(shape)


def _start_dirichlet(family: Dirichlet, sites: Sequence[Site]) -> Natural:
    """Begin at the prior, but where it is sparse."""
    (eta,) = natural_of(sites[0]["fn"], family)
    return (eta.clamp_min(0.0).expand(family.batch + Size([family.size])),)


def _start_joint(family: NormalWishart, sites: Sequence[Site]) -> Natural:
    """Begin at a draw of the mean, and at the prior's precision."""
    mean, precision = sites
    shape = family.batch + Size([family.size])
    loc = mean["value"].expand(mean["fn"].batch_shape + mean["fn"].event_shape).reshape(shape)
    centre = precision["fn"].mean.expand(precision["fn"].batch_shape + precision["fn"].event_shape)
    one = family.zeros.sum(-1) + 1.0
    df = family.size + 2.0
    return one, loc, one * df, df * torch.linalg.inv(centre.reshape(*shape, family.size))
