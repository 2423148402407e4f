"""ELBO surgery: what a bound is made of, over a whole data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vae.aggregation import divergences
from ppl_vae.batches import Batch
from ppl_vae.checking import check
from ppl_vae.crossing import (
    check_densities,
    check_guide,
    check_one_prior,
    in_memory,
    latent_sites,
    log_prior,
    several,
    spread,
    unmarked,
)
from ppl_vae.figures import Densities, Figure, Plan, over_data
from ppl_vae.indexing import alike
from ppl_vae.latents import ActiveUnits, active_units, collapse, has_units
from ppl_vae.particles import Particles, total
from ppl_vae.programs import Program, Programs, undisturbed
from ppl_vae.progress import progress_bar
from ppl_vae.weighing import weigh

__all__ = ["Surgery", "elbo_surgery"]


@dataclass(frozen=True, repr=False, eq=False)
class Surgery:
    """The ELBO over a data set, cut into parts. Printing it gives a table.

    Each figure has ``mean``, ``per_datum``, and the standard errors ``se`` (over data) and ``mc_se`` (by draws;
    NaN for one draw per datum). All in nats per datum.

    Attributes:
        elbo: ``reconstruction - mutual_information - marginal_kl``, draw by draw.
        reconstruction: ``E_q[log p(x | z)]``.
        mutual_information: of the latents and the index of a datum, at most log N.
        marginal_kl: KL divergence of the aggregated posterior from the prior.
        mutual_information_upper: the same with each datum's own component left out.
        marginal_kl_lower: likewise.
        terms: the terms of the ELBO, whose sum it is: ``"log p(x)"``, ... of the model's sites (those
            that are summed out together share one), ``"-log q(z)"``, ... of the guide's.
        rates: latent site to its mean ``log q - log p``, where the model has a density for it alone.
        units: the active units of latents that are no codes; None where all are.
        n: number of data N.
        draws: latents per datum.
        seed: what the draws were seeded with.
    """

    elbo: Figure
    reconstruction: Figure
    mutual_information: Figure
    marginal_kl: Figure
    mutual_information_upper: Figure
    marginal_kl_lower: Figure
    terms: Mapping[str, Figure]
    rates: Mapping[str, Figure]
    units: ActiveUnits | None
    n: int
    draws: int
    seed: int

    @property
    def log_n(self) -> float:
        """The most that the mutual information with the index of a datum can be."""
        return math.log(self.n)

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is so near to log N that it says little but N.

        The gap is the entropy of the index given the latents, and its exponential the number of data
        from which latents could come. Below two, most of the sum over data is the datum's own term.
        """
        return self.log_n - self.mutual_information.mean < math.log(2)

    @property
    def alarm(self) -> str:
        """Posterior collapse in words, or nothing."""
        active = self.units.active if self.units else {}
        rates = {name: rate.mean for name, rate in self.rates.items()}
        return collapse(active, self.mutual_information.mean, rates)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        return {
            "n": self.n,
            "draws": self.draws,
            "seed": self.seed,
            **{name: getattr(self, name).to_dict() for name in FIGURES},
            "log_n": self.log_n,
            "saturated": self.saturated,
            "terms": {name: figure.to_dict() for name, figure in self.terms.items()},
            "rates": {name: figure.to_dict() for name, figure in self.rates.items()},
            "active_units": self.units and self.units.to_dict(),
            "alarm": self.alarm,
        }

    def __str__(self) -> str:
        rows = [
            f"ELBO surgery on N = {self.n:,} data, {self.draws:,} draw{'s' * (self.draws > 1)} each; nats per datum"
        ]
        rows.append(f"{'':<22}{'mean':>12}{'over data ±':>13}{'by draws ±':>12}")
        rows += [_row(label, getattr(self, name), formula) for name, (label, formula) in TABLE.items()]
        rows += [_row(name, figure) for name, figure in self.terms.items()]
        rows.append(
            "These are the figures of the data given. For the population, in expectation, the mutual information lies "
            f"between {self.mutual_information.mean:.3f} and {self.mutual_information_upper.mean:.3f}, the marginal KL "
            f"between {self.marginal_kl_lower.mean:.3f} and {self.marginal_kl.mean:.3f}."
        )
        return "\n".join([*rows, *filter(None, [self._limit(), self.units and str(self.units), self.alarm])])

    def _limit(self) -> str:
        """Say that the mutual information says little, if so."""
        if not self.saturated:
            return ""
        return (
            f"The mutual information is within log 2 of log N = {self.log_n:.3f}: each latent tells from which datum "
            "it is, so that the figure says little but N. What it lacks, the marginal KL has too much; more data tell."
        )

    __repr__ = __str__


TABLE = {
    "reconstruction": ("reconstruction", "E_q[log p(x | z)]"),
    "mutual_information": ("- mutual information", "I_q(n; z), at most log N"),
    "marginal_kl": ("- marginal KL", "KL(q(z) || p(z))"),
    "elbo": ("= ELBO", "which is the sum of:"),
}
FIGURES = (*TABLE, "mutual_information_upper", "marginal_kl_lower")


def _row(label: str, figure: Figure, formula: str = "") -> str:
    errors = (f"{e:.4f}" if math.isfinite(e) else "unknown" for e in (figure.se, figure.mc_se))
    return f"{label:<22}{figure.mean:>12.4f}{next(errors):>13}{next(errors):>12}   {formula}".rstrip()


def elbo_surgery(
    model: Program,
    guide: Program,
    data: Any,
    *,
    draws: int = 1,
    batch_size: int = 100,
    chunk: int = 300,
    seed: int = 0,
    progress: bool | None = None,
) -> Surgery:
    """Cut the ELBO of a data set into reconstruction, mutual information and marginal KL.

    With the aggregated posterior ``q(z) = 1/N sum_j q(z | x_j)``, means over n and over z from q(z | x_n)::

        ELBO = E[log p(x_n | z)] - E[log q(z | x_n) - log q(z)] - E[log q(z) - log p(z)]

    which are the reconstruction, the mutual information I(n; z) of latents and the index of a datum,
    and KL(q(z) || p(z)). All latents together are z. The same draws make all terms, so that the sum is an
    identity. Over the data given, sums over j are exact; there is an error by draws alone.

    As figures of the population from which the data are, the mutual information is a lower bound in
    expectation and cannot exceed log N; with the datum's own term left out of the sum over j, it is an upper
    bound. The marginal KL is bracketed the other way round.

    Every draw is scored at every datum: N^2 densities for each draw per datum, while the encoder runs over the
    data N / chunk times. Of 10,000 data, a VAE with 20 latents takes some 20 seconds on one core. For more
    data, give a random part of them: the figures are then those of that part, and the bracket says what
    the others could change.

    Args:
        model: Pyro program whose latents have one prior for all data. Factors that are no penalties
            belong to the reconstruction.
        guide: Pyro program with the same arguments. Sites that it marks for enumeration are drawn.
        data: `Splits` (its test set), a tensor ``(N, ...)``, a tuple of them, a Dataset or a DataLoader
            (which is read once and kept in memory).
        draws: latents per datum; with two or more, errors by draws are known.
        batch_size: data at a time against which draws are scored.
        chunk: draws at a time that are scored; ``chunk x batch_size`` densities are in memory.
        seed: seeds the draws.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `Surgery`.

    Raises:
        ContractError: model, guide and data do not fit, the prior reads the data, or the guide has no
            density at other data; the message names the site.
        FloatingPointError: a density is NaN; the message names the site or the datum.
        TypeError, ValueError: an argument cannot be used; the message says which and why.

    Reference: M. Hoffman, M. Johnson, "ELBO surgery: yet another way to carve up the variational
    evidence lower bound", NIPS workshop on Advances in Approximate Bayesian Inference 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf; bounds for the population (InfoNCE,
    leave-one-out) in B. Poole et al., "On Variational Bounds of Mutual Information", ICML 2019,
    https://arxiv.org/abs/1905.06922.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(100, 6)
        >>> surgery = pv.elbo_surgery(model, Exact(model), x)
        >>> rate = surgery.mutual_information.mean + surgery.marginal_kl.mean
        >>> abs(surgery.reconstruction.mean - rate - float(model.log_px(x).detach().mean())) < 1e-4
        True
        >>> 0 < surgery.mutual_information.mean < surgery.log_n
        True
    """
    plan = Plan(draws, batch_size, chunk).checked()
    model, guide = alike(model, guide)
    programs = Programs(model, guide)
    rows = several(programs.on_device(in_memory(data, batch_size)))
    with undisturbed(programs, seed, training=False):
        names = _checked(model, guide, spread(rows, batch_size))

    def score(batch: Batch, k: int) -> tuple[Mapping[str, Tensor], Densities]:
        record = weigh(model, unmarked(guide), batch, k)
        return record.values, _log_densities(record, log_prior(model, batch, record.values))

    n = len(rows[0])
    with undisturbed(programs, seed, training=False), progress_bar("Surgery", plan.passes(n), progress) as bar:
        found = over_data(guide, rows, score, _cut, plan, bar)
    units = active_units(guide, rows, sites=names, batch_size=batch_size, seed=seed, progress=False) if names else None
    figures = {name: found[name] for name in FIGURES} | {kind: _of(kind, found) for kind in ("terms", "rates")}
    return Surgery(**figures, units=units, n=n, draws=draws, seed=seed)


def _checked(model: Program, guide: Program, batch: Batch) -> list[str]:
    """Raise unless the bound of a pair can be cut; return the latents that have units."""
    check(model, guide, batch)
    check_densities(check_guide(guide, batch))
    sites = latent_sites(guide, batch, 1)
    check_one_prior(model, batch, {name: site["value"] for name, site in sites.items()})
    return [name for name, site in sites.items() if has_units(site)]


def _log_densities(record: Particles, log_prior: Tensor) -> Densities:
    """Return log densities of draws, ``(K, B)`` in float64, and the terms that they are sums of."""
    log_p, log_q = ({n: d.double() for n, d in densities.items()} for densities in (record.log_p, record.log_q))
    return {
        "log_p": total(log_p),
        "log_q": total(log_q),
        "log_prior": log_prior,
        **{f"terms: log p({name})": density for name, density in log_p.items()},
        **{f"terms: -log q({name})": -density for name, density in log_q.items()},
        **{f"rates: {name}": log_q[name] - log_p[name] for name in log_q if name in log_p},
    }


def _cut(densities: Densities) -> Densities:
    """Return what each draw contributes to each figure."""
    log_p, log_q = densities["log_p"], densities["log_q"]
    return {
        "elbo": log_p - log_q,
        "reconstruction": log_p - densities["log_prior"],
        "mutual_information": log_q - densities["log_aggregate"],
        "mutual_information_upper": log_q - densities["log_rest"],
        **divergences(densities),
        **{name: density for name, density in densities.items() if ": " in name},
    }


def _of(kind: str, found: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name.split(": ", 1)[1]: figure for name, figure in found.items() if name.startswith(f"{kind}: ")}
