"""Which units of the latents follow the data, and posterior collapse in words."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, RelaxedOneHotCategorical, constraints

from ppl_vae import contract
from ppl_vae.checking import check_arguments
from ppl_vae.contract import ContractError, Site
from ppl_vae.crossing import check_guide, latent_sites, to_evaluate
from ppl_vae.objectives.options import checked, positive, whole
from ppl_vae.programs import Program, Programs, undisturbed
from ppl_vae.progress import progress_bar

__all__ = ["ActiveUnits", "active_units", "collapse", "has_units", "take_latents"]


@dataclass(frozen=True, repr=False, eq=False)
class ActiveUnits:
    """Which units of the latents follow the data.

    Attributes:
        variances: site name to the variance over data of each unit's posterior mean, of the event's
            shape, in float64. Without bias, so that one of about zero may come out slightly below.
        threshold: the variance above which a unit is active.
        n: number of data N.
    """

    variances: Mapping[str, Tensor]
    threshold: float
    n: int

    @property
    def active(self) -> dict[str, Tensor]:
        """Site name to which of its units are active."""
        return {name: variance > self.threshold for name, variance in self.variances.items()}

    @property
    def count(self) -> int:
        """How many units are active, of all sites."""
        return sum(int(active.sum()) for active in self.active.values())

    @property
    def units(self) -> int:
        """How many units there are, of all sites."""
        return sum(variance.numel() for variance in self.variances.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values."""
        sites = {name: {"active": int(a.sum()), "units": a.numel()} for name, a in self.active.items()}
        return {"sites": sites, "threshold": self.threshold, "n": self.n}

    def __str__(self) -> str:
        counts = ", ".join(f"{int(a.sum())} of {a.numel()} of '{name}'" for name, a in self.active.items())
        return (
            f"Active units: {counts} (those whose posterior mean has a variance above {self.threshold:g} over "
            f"N = {self.n:,} data)."
        )

    __repr__ = __str__


def active_units(
    guide: Program,
    x: Any,
    *,
    sites: Collection[str] | None = None,
    threshold: float = 0.01,
    draws: int = 100,
    batch_size: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> ActiveUnits:
    """Count the units of the latents whose posterior mean changes with the data.

    Unit u is active if, over data::

        A_u = Var_x(E_q[z_u | x]) > threshold

    Means are those of the guide's distributions where these have one in closed form, averaged over what
    they depend on besides x (layers drawn before), and otherwise means of draws. Their Monte Carlo variance
    is estimated and subtracted, so that neither biases A_u; where a mean is a function of x alone, it is exact.

    Args:
        guide: Pyro program.
        x: `Splits` (its test set), a tensor ``(N, ...)``, a tuple of them, a Dataset or a DataLoader.
        sites: names of the latents to look at; all when left out.
        threshold: variance above which a unit is active, in units of the latent squared.
        draws: draws of all latents per datum, at least two.
        batch_size: data at a time.
        seed: seeds the draws.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `ActiveUnits`.

    Raises:
        ContractError: the guide draws nothing, or a latent has no mean (the message names it).
        TypeError, ValueError: an argument cannot be used; the message says which and why.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
    section 5.3, https://arxiv.org/abs/1509.00519; running moments as in T. Chan, G. Golub, R. LeVeque,
    "Algorithms for Computing the Sample Variance", American Statistician 1983,
    https://doi.org/10.1080/00031305.1983.10483115.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> pv.active_units(Normal(x_dim=6, z_dim=2, hidden=(8,)), 10 * torch.randn(50, 6)).count
        2
    """
    checked("threshold", threshold, "a positive number", positive)
    whole("draws", draws, least=2)
    moments: dict[str, _Moments] = {}
    noise: dict[str, _Moments] = {}

    def take(name: str, site: Site) -> None:
        means = _posterior_means(name, site).double()
        moments.setdefault(name, _Moments()).add(means.mean(0))
        noise.setdefault(name, _Moments()).add(means.var(0) / draws)

    take_latents(guide, x, take, sites, draws, batch_size, seed, progress)
    n = next((m.count for m in moments.values()), 0)
    if n < 2:
        raise ValueError(f"data: found {n} rows, which have no variance; give at least two")
    variances = {name: (moments[name].variance - noise[name].mean).cpu() for name in moments}
    return ActiveUnits(variances, threshold, n)


def take_latents(
    guide: Program,
    data: Any,
    take: Callable[[str, Site], None],
    sites: Collection[str] | None,
    draws: int,
    batch_size: int,
    seed: int,
    progress: bool | None,
) -> None:
    """Give a guide's latents, or those asked for, by name to a function, drawn on one batch after the other."""
    programs, batches = Programs(guide, guide), to_evaluate(data, batch_size)
    with undisturbed(programs, seed, training=False), progress_bar("Latents", batches.batches, progress) as bar:
        for i, batch in enumerate(map(programs.on_device, batches)):
            if i == 0:
                check_arguments(guide, "guide", batch)
                check_guide(guide, batch)
            found = latent_sites(guide, batch, draws)
            for name in found if sites is None else _asked(sites, found):
                take(name, found[name])
            bar.advance()


def _asked(sites: Collection[str], found: Collection[str]) -> Collection[str]:
    missing = [name for name in sites if name not in found]
    if missing or not sites:
        raise ValueError(f"sites: expected some of {', '.join(found)}, found {', '.join(missing) or 'none'}")
    return sites


class _Moments:
    """Running mean and variance over data, element by element."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take in one batch."""
        before, self.count = self.count, self.count + len(rows)
        centre = rows.mean(0)
        step = centre - self.mean.to(centre)
        self.squares = self.squares.to(centre) + (rows - centre).square().sum(0)
        self.squares = self.squares + step.square() * (before * len(rows) / self.count)
        self.mean = self.mean.to(centre) + step * (len(rows) / self.count)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of one row."""
        return self.squares / (self.count - 1)


def has_units(site: Site) -> bool:
    """Tell whether a latent has means that can be looked at one by one; those of codes share a sum of one.

    Example:
        >>> import pyro.distributions as dist
        >>> [has_units({"fn": fn, "value": fn.sample()}) for fn in (dist.Normal(0.0, 1.0), dist.Cauchy(0.0, 1.0))]
        [True, False]
    """
    inner = contract.innermost(site["fn"])
    codes = isinstance(inner, (Categorical, RelaxedOneHotCategorical)) or inner.support is constraints.one_hot
    return not codes and bool(_mean_or_draw(site).isfinite().all())


def _mean_or_draw(site: Site) -> Tensor:
    try:
        return site["fn"].mean
    except NotImplementedError:
        return site["value"]


def _posterior_means(name: str, site: Site) -> Tensor:
    """Return the mean of each draw's distribution, or, where none is known, the draw: ``(K, B, *event)``."""
    mean = _mean_or_draw(site)
    if not mean.isfinite().all():
        kind = contract.kind(site["fn"])
        what = "its values are labels; look at it with pv.perplexity" if kind == "Categorical" else "so it has no units"
        raise ContractError(f"site '{name}': a {kind} has no mean, {what}, and name the other latents with sites=")
    return mean


# Latents that narrow the data down by less than a tenth say nothing about them.
LEAST_INFORMATION = math.log(1.1)


def collapse(active: Mapping[str, Tensor], information: float, rates: Mapping[str, float]) -> str:
    """Say in words that the latents do not follow the data, and what to do; nothing if they do.

    That is so where more than half of a site's units are inactive, or all latents together
    carry less than log 1.1 nats about which datum they belong to.

    Args:
        active: site name to which of its units are active.
        information: mutual information of latents and data, in nats.
        rates: site name to its mean log q - log p, in nats, where known.

    Reference: S. R. Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016,
    https://arxiv.org/abs/1511.06349, for the warm-up; D. P. Kingma et al., "Improved Variational Inference
    with Inverse Autoregressive Flow", NeurIPS 2016, https://arxiv.org/abs/1606.04934, for free bits.

    Example:
        >>> collapse({"z": torch.tensor([True, False, False])}, information=2.0, rates={"z": 1.5})
        "posterior collapse: 2 of 3 units of 'z' are inactive (rate 1.50 nats); try ..."
        >>> collapse({"z": torch.tensor([True, True])}, information=2.0, rates={})
        ''
    """
    problems = [_inactive(name, a, rates) for name, a in active.items() if 2 * int(a.sum()) < a.numel()]
    if information < LEAST_INFORMATION:
        problems.append(f"the latents carry {information:.2f} nats about the data")
    if not problems:
        return ""
    return (
        f"posterior collapse: {'; '.join(problems)}; try KL warm-up (Scheduled(beta_elbo, beta=linear(0.0, 1.0, "
        "steps=...))), free_bits, or a weaker decoder"
    )


def _inactive(name: str, active: Tensor, rates: Mapping[str, float]) -> str:
    rate = f" (rate {rates[name]:.2f} nats)" if name in rates else ""
    return f"{active.numel() - int(active.sum())} of {active.numel()} units of '{name}' are inactive{rate}"
