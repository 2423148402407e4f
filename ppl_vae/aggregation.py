"""The aggregated posterior, and how far it is from a prior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.checking import check_arguments
from ppl_vae.contract import ContractError
from ppl_vae.crossing import (
    check_densities,
    check_guide,
    check_one_prior,
    in_memory,
    latent_sites,
    log_given,
    log_prior,
    several,
    spread,
    trace_given,
)
from ppl_vae.figures import Densities, Figure, Plan, over_data
from ppl_vae.indexing import alike
from ppl_vae.programs import Program, Programs, undisturbed
from ppl_vae.progress import progress_bar
from ppl_vae.supports import check_pair_shapes

__all__ = ["AggregateKL", "aggregate_kl", "divergences"]


@dataclass(frozen=True, repr=False, eq=False)
class AggregateKL:
    """KL divergence of the aggregated posterior from a prior, in nats.

    Attributes:
        value: that of the mixture over the data given; in expectation an upper bound on that of the
            population.
        lower: the same with each datum's own component left out, in expectation a lower bound.
        n: number of data N.
        draws: latents per datum.
        seed: what the draws were seeded with.
    """

    value: Figure
    lower: Figure
    n: int
    draws: int
    seed: int

    def __float__(self) -> float:
        return self.value.mean

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        figures = {"value": self.value.to_dict(), "lower": self.lower.to_dict()}
        return {**figures, "n": self.n, "draws": self.draws, "seed": self.seed}

    def __str__(self) -> str:
        return (
            f"KL of the aggregated posterior from the prior: {self.value!r} nats (mean and standard error over "
            f"N = {self.n:,} data, {self.draws:,} draw{'s' * (self.draws > 1)} each); that of the population lies "
            f"between {self.lower.mean:.3f} and {self.value.mean:.3f}, in expectation."
        )

    __repr__ = __str__


def aggregate_kl(
    guide: Program,
    data: Any,
    prior: Program | Distribution,
    *,
    draws: int = 1,
    batch_size: int = 100,
    chunk: int = 300,
    seed: int = 0,
    progress: bool | None = None,
) -> AggregateKL:
    """Estimate the KL divergence of the aggregated posterior from a prior.

    With the mixture of the posteriors of all N data, each draw z from q(z | x_n)::

        KL(q || p) = E_q[log q(z) - log p(z)],    q(z) = 1/N sum_j q(z | x_j)

    All latents together are z. Every draw is scored at every datum, which costs N^2 densities per draw.

    Args:
        guide: Pyro program. Sites that it marks for enumeration are drawn.
        data: as for `ppl_vae.elbo_surgery`.
        prior: a Pyro program with the guide's arguments that draws its latents under the same names (a
            model; its data are left out, and what else it marks is summed out), or, for a guide with
            one latent site, a distribution of the shape of its event.
        draws: latents per datum.
        batch_size: data at a time against which draws are scored.
        chunk: draws at a time that are scored; ``chunk x batch_size`` densities are in memory.
        seed: seeds the draws.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `AggregateKL`, whose two figures bracket that of the population in expectation.

    Raises:
        ContractError: guide and prior do not fit, or the guide has no density at other data.
        TypeError, ValueError: an argument cannot be used; the message says which and why.

    Reference: M. Hoffman, M. Johnson, "ELBO surgery: yet another way to carve up the variational
    evidence lower bound", NIPS workshop on Advances in Approximate Bayesian Inference 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf; bracket as in
    B. Poole et al., "On Variational Bounds of Mutual Information", ICML 2019, https://arxiv.org/abs/1905.06922.

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_vae.guides.normal import Normal
        >>> guide, x = Normal(x_dim=6, z_dim=2, hidden=(8,)), torch.randn(50, 6)
        >>> wide = pv.aggregate_kl(guide, x, dist.Normal(torch.zeros(2), 10.0).to_event(1), draws=10)
        >>> float(pv.aggregate_kl(guide, x, dist.Normal(torch.zeros(2), 1.0).to_event(1), draws=10)) < float(wide)
        True
    """
    plan = Plan(draws, batch_size, chunk).checked()
    if not isinstance(prior, Distribution):
        prior, guide = alike(prior, guide)
    programs = Programs(guide, guide if isinstance(prior, Distribution) else prior)
    rows = several(programs.on_device(in_memory(data, batch_size)))
    with undisturbed(programs, seed, training=False):
        log_p = _log_prior(guide, prior, spread(rows, batch_size))

    def score(batch: Batch, k: int) -> tuple[Mapping[str, Tensor], Densities]:
        values = {name: site["value"] for name, site in latent_sites(guide, batch, k).items()}
        return values, {"log_q": log_given(guide, batch, values), "log_prior": log_p(batch, values)}

    n = len(rows[0])
    with undisturbed(programs, seed, training=False), progress_bar("Scoring", plan.passes(n), progress) as bar:
        found = over_data(guide, rows, score, divergences, plan, bar)
    return AggregateKL(found["marginal_kl"], found["marginal_kl_lower"], n, draws, seed)


def divergences(densities: Densities) -> Densities:
    """Return what each draw contributes to the divergence, with its datum's own component and without.

    Example:
        >>> zero = torch.zeros(1)
        >>> divergences({"log_aggregate": zero, "log_rest": zero - 1, "log_prior": zero - 2})
        {'marginal_kl': tensor([2.]), 'marginal_kl_lower': tensor([1.])}
    """
    prior = densities["log_prior"]
    return {
        "marginal_kl": densities["log_aggregate"] - prior,
        "marginal_kl_lower": densities["log_rest"] - prior,
    }


def _log_prior(guide: Program, prior: Any, batch: Batch) -> Callable[[Batch, Mapping[str, Tensor]], Tensor]:
    """Return the log density of a prior that fits a guide, as a function of a batch and latents."""
    check_arguments(guide, "guide", batch)
    guide_trace = check_guide(guide, batch)
    check_densities(guide_trace)
    if isinstance(prior, Distribution):
        name = _only_latent(guide_trace, prior)
        return lambda batch, values: _log_prob(name, prior, values[name])
    check_arguments(prior, "prior", batch)
    prior_trace = trace_given(prior, batch, {}, 1)
    contract.check_names(prior_trace, guide_trace)
    check_pair_shapes(prior_trace, guide_trace)
    sites = latent_sites(guide, batch, 1)
    check_one_prior(prior, batch, {name: site["value"] for name, site in sites.items()})
    return partial(log_prior, prior)


def _log_prob(name: str, prior: Distribution, value: Tensor) -> Tensor:
    try:
        return prior.log_prob(value).double()
    except ValueError as error:  # of torch's validation
        raise ValueError(
            f"prior: the guide draws '{name}' outside its support ({prior.support}), where the divergence is infinite; "
            "give a prior with a density everywhere that the guide reaches"
        ) from error


def _only_latent(guide_trace: Any, prior: Distribution) -> str:
    """Return the name of a guide's one latent, which has the prior's shape."""
    sites = contract.latents(guide_trace)
    if len(sites) > 1:
        raise TypeError(
            f"prior: one distribution for the latents {', '.join(sites)} of the guide; give a Pyro program that draws "
            "all of them"
        )
    ((name, site),) = sites.items()
    found, wanted = prior.event_shape, site["fn"].event_shape
    if found != wanted or prior.batch_shape:
        raise ContractError(
            f"prior: it has batch shape {tuple(prior.batch_shape)} and event shape {tuple(found)}, but site '{name}' "
            f"has event shape {tuple(wanted)}; declare all of its axes an event with .to_event"
        )
    return name
