"""Places in a latent space: posterior means, the prior's centre and quantiles, and ways between two places."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch, as_batch, source
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.sampling import mean_of
from ppl_vae.tracing import Drawing

__all__ = ["deviations", "linear", "most_active", "posterior_means", "prior_means", "quantiles", "spherical"]

Latents = Mapping[str, Tensor]

# From both ends and a share of the way to a place between them.
Way = Callable[[Tensor, Tensor, Tensor], Tensor]

# From a site's name, its prior and standard normal scores to values.
Ruler = Callable[[str, Any, Tensor], Tensor]

AT_ONCE = 500  # data that a guide sees together


def posterior_means(guide: Program, x: Any) -> dict[str, Tensor]:
    """Return where a guide sees its data: each latent at its mean, given the means of those drawn before.

    Args:
        guide: Pyro program.
        x: data ``(N, ...)``, or a tuple of tensors.

    Returns:
        Site name to values ``(N, *event)``. A site without a mean (a Categorical) is at its mode.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> posterior_means(Normal(x_dim=6, z_dim=2), torch.ones(3, 6))["z"].shape
        torch.Size([3, 2])
    """
    programs = Programs(guide, guide)
    drawn = poutine.infer_config(guide, lambda site: {"enumerate": None})
    parts = [_centres(drawn, programs, as_batch(batch)) for batch in source(x, AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def prior_means(model: Program, like: Any) -> dict[str, Tensor]:
    """Return the prior's centre: each latent at its mean, given the means of those drawn before.

    Args:
        model: Pyro program.
        like: a batch, for the form of x.

    Returns:
        Site name to values ``(1, *event)``.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> prior_means(VAE(x_dim=6, z_dim=2), torch.ones(3, 6))
        {'z': tensor([[0., 0.]])}
    """
    drawn = poutine.infer_config(model, lambda site: {"enumerate": None})
    return _centres(drawn, Programs(model, model), tuple(part[:1] for part in as_batch(like)))


def _centres(program: Program, programs: Programs, batch: Any) -> dict[str, Tensor]:
    without: dict[str, Any] = {}

    def centre(name: str, fn: Any) -> Tensor:
        found = _centre(fn)
        if found is None:  # said after the run, as Pyro would write its own words behind
            without.setdefault(name, fn)
        return fn.sample() if found is None else found

    with undisturbed(programs, training=False), own_parameters(), torch.no_grad(), Drawing(centre):
        trace = poutine.trace(program).get_trace(*programs.on_device(batch))
    if without:
        name, fn = next(iter(without.items()))
        raise ValueError(
            f"site '{name}': its distribution ({contract.kind(fn)}) knows neither its mean nor its mode; pass values "
            "of your own instead"
        )
    return {name: site["value"] for name, site in contract.latents(trace).items()}


def _centre(fn: Any) -> Tensor | None:
    mean = mean_of(fn)
    if mean is not None:
        return mean
    try:
        return fn.mode
    except NotImplementedError:
        return None


def most_active(guide: Program, x: Any, n: int = 10, site: str | None = None) -> list[int]:
    """Return the dimensions of a latent that tell most about the data, most telling first.

    By the variance over data of their posterior means::

        a_j = var_x(E_q[z_j | x])

    Args:
        guide: Pyro program.
        x: data ``(N, ...)``.
        n: at most so many.
        site: the latent; needed where there are several.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
    section 5.2, https://arxiv.org/abs/1509.00519.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> sorted(most_active(Normal(x_dim=6, z_dim=3), torch.rand(10, 6)))
        [0, 1, 2]
    """
    means = posterior_means(guide, x)
    activity = means[one_site(means, site)].flatten(1).var(0)
    return activity.argsort(descending=True)[:n].tolist()


def quantiles(name: str, prior: Any, scores: Tensor) -> Tensor:
    """Return the quantiles of a factorised prior at standard normal scores: those of a standard normal one as they are.

    ``F_j^-1(Phi(s))``, with F_j the distribution function of dimension j.

    Args:
        name: the site, for messages.
        prior: its distribution, of batch shape ``(1,)``.
        scores: s, ``(V,)``.

    Returns:
        ``(V, *event)``.

    Raises:
        ValueError: the prior does not know them.

    Example:
        >>> from pyro import distributions as dist
        >>> quantiles("z", dist.Normal(torch.ones(1, 2), 2.0).to_event(1), torch.tensor([-1.0, 0.0]))
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """
    share = torch.distributions.Normal(0.0, 1.0).cdf(scores.double()).to(prior.mean.device)
    try:
        values = contract.innermost(prior).icdf(share.reshape(-1, *[1] * len(prior.event_shape)))
    except NotImplementedError:
        raise ValueError(
            f"site '{name}': its prior, a {contract.kind(prior)}, has no inverse distribution function by dimension; "
            "measure in standard deviations instead: ruler=traversing.deviations"
        ) from None
    return values.to(prior.mean.dtype).expand(len(scores), *prior.event_shape)


def deviations(name: str, prior: Any, scores: Tensor) -> Tensor:
    """Return values so many standard deviations from a prior's mean, ``(V, *event)``; otherwise as `quantiles`.

    Example:
        >>> deviations("z", torch.distributions.Normal(torch.ones(1), 2.0), torch.tensor([-1.0, 0.0]))
        tensor([-1.,  1.])
    """
    scores = scores.reshape(-1, *[1] * len(prior.event_shape)).to(prior.mean)
    return (prior.mean + scores * prior.stddev).expand(len(scores), *prior.event_shape)


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return ``(1 - t) a + t b``.

    Example:
        >>> linear(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor(0.25))
        tensor([[0.2500, 0.2500]])
    """
    return (1 - t) * a + t * b


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return a point of the great circle from a to b, whose lengths change evenly.

    With w the angle between the two::

        (sin((1 - t) w) a + sin(t w) b) / sin w

    and its limit, `linear`, where they point the same way. In many dimensions a normal prior has its
    mass near a sphere, which a straight line leaves.

    Args:
        a: ``(P, *event)``.
        b: of the same shape.
        t: between 0 and 1.

    Raises:
        ValueError: two points lie opposite each other, so that no great circle is the shortest.

    Reference: K. Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985,
    https://doi.org/10.1145/325334.325242; T. White, "Sampling Generative Networks", 2016,
    https://arxiv.org/abs/1609.04468.

    Example:
        >>> spherical(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor(0.5))
        tensor([[1.4142, 1.4142]])
    """
    directions = [torch.nn.functional.normalize(v.flatten(1).double(), dim=1) for v in (a, b)]
    # Half the chord, and half the chord to the opposite point: accurate at small angles, as acos is not.
    angle = 2 * torch.atan2((directions[1] - directions[0]).norm(dim=1), (directions[1] + directions[0]).norm(dim=1))
    angle = angle.reshape(-1, *[1] * (a.dim() - 1))
    if (angle > torch.pi - 1e-6).any():
        raise ValueError("a, b: two latents lie opposite each other, so that many great circles join them; take linear")
    far = angle > 1e-6
    angle = torch.where(far, angle, 1.0)
    curved = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    return torch.where(far, curved, linear(a, b, t)).to(a.dtype)


def prior_of(model: Program, start: Latents, site: str, like: Batch) -> Any:
    """Return the distribution of a latent given the values of those before it, of batch shape ``(1,)``."""
    with undisturbed(Programs(model, model), training=False), own_parameters(), torch.no_grad():
        return poutine.trace(poutine.condition(model, data=dict(start))).get_trace(*like).nodes[site]["fn"]


def one_site(latents: Latents, site: str | None) -> str:
    """Return the latent that is meant.

    Example:
        >>> one_site({"z1": torch.zeros(1, 2), "z2": torch.zeros(1, 2)}, None)
        Traceback (most recent call last):
        ...
        ValueError: site: expected one of 'z1', 'z2', found None
    """
    if site is None and len(latents) == 1:
        return next(iter(latents))
    if site not in latents:
        names = ", ".join(f"'{name}'" for name in latents) or "no latent"
        raise ValueError(f"site: expected one of {names}, found {site!r}")
    return site
