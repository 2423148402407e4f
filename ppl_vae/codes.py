"""How many codes a guide uses: the perplexity of its discrete latents."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import RelaxedOneHotCategorical

from ppl_vae import contract
from ppl_vae.contract import ContractError, Site
from ppl_vae.latents import take_latents
from ppl_vae.objectives.options import whole
from ppl_vae.programs import Program

__all__ = ["Perplexity", "perplexity"]


@dataclass(frozen=True, repr=False, eq=False)
class Perplexity:
    """How many codes a guide uses, in effect.

    Attributes:
        values: site name to the perplexity of its codebook, which all positions of the event share.
        positions: site name to the perplexity at each position, of the positions' shape.
        used: site name to the number of codes that are the most probable one somewhere.
        codes: site name to the number of codes that there are.
        n: number of data N.
    """

    values: Mapping[str, float]
    positions: Mapping[str, Tensor]
    used: Mapping[str, int]
    codes: Mapping[str, int]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values."""
        return {
            name: {"perplexity": value, "used": self.used[name], "codes": self.codes[name], "n": self.n}
            for name, value in self.values.items()
        }

    def __str__(self) -> str:
        sites = "; ".join(
            f"'{name}' {value:.1f} ({self.used[name]} of {self.codes[name]} codes used)"
            for name, value in self.values.items()
        )
        return f"Perplexity of the codes over N = {self.n:,} data: {sites}."

    __repr__ = __str__


def perplexity(
    guide: Program,
    data: Any,
    *,
    sites: Collection[str] | None = None,
    draws: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> Perplexity:
    """Measure how evenly a guide uses the codes of its discrete latents.

    With the average over N data (and over the positions of an event, which share a codebook)::

        exp(-sum_c q(c) log q(c)),    q(c) = 1/N sum_n q(c | x_n)

    It is 1 where all data get one code, and the number of codes where all are used alike. Relaxed codes count as the
    corner that is nearest, which has the probability of the categorical with the same logits.

    Args:
        guide: Pyro program with discrete latents, such as Categorical or OneHotCategorical, which may
            have further event axes: several codes per datum.
        data: as for `ppl_vae.active_units`.
        sites: names of the latents to look at; all when left out.
        draws: draws per datum of latents on which a code's distribution depends besides x.
        batch_size: data at a time.
        seed: seeds the draws.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `Perplexity`.

    Raises:
        ContractError: a latent is continuous, or its values cannot be listed (the message names it).
        TypeError, ValueError: an argument cannot be used; the message says which and why.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning",
    NeurIPS 2017, https://arxiv.org/abs/1711.00937.

    Example:
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> pv.perplexity(Bernoulli(x_dim=6, z_dim=4), torch.ones(50, 6)).codes
        {'z': 2}
    """
    whole("draws", draws)
    found: dict[str, _Codes] = {}

    def take(name: str, site: Site) -> None:
        found.setdefault(name, _Codes()).add(_probabilities(name, site))

    take_latents(guide, data, take, sites, draws, batch_size, seed, progress)
    if not found:
        raise ValueError("data: empty (no rows); check the split or the filter that made it")
    return Perplexity(
        values={name: float(_exp_entropy(codes.shared)) for name, codes in found.items()},
        positions={name: _exp_entropy(codes.mean).cpu() for name, codes in found.items()},
        used={name: int(codes.used.sum()) for name, codes in found.items()},
        codes={name: len(codes.used) for name, codes in found.items()},
        n=next(iter(found.values())).n,
    )


class _Codes:
    """Running mean of code probabilities, and which codes were the most probable."""

    def __init__(self) -> None:
        self.n, self.sum, self.used = 0, 0.0, torch.zeros((), dtype=torch.bool)

    def add(self, probabilities: Tensor) -> None:
        """Take in one batch ``(codes, B, *positions)``."""
        self.n += probabilities.shape[1]
        self.sum = self.sum + probabilities.sum(1)
        chosen = torch.bincount(probabilities.argmax(0).flatten(), minlength=len(probabilities)) > 0
        self.used = self.used.to(chosen.device) | chosen

    @property
    def mean(self) -> Tensor:
        """Mean over data, ``(codes, *positions)``."""
        return self.sum / self.n

    @property
    def shared(self) -> Tensor:
        """Mean over data and positions, ``(codes,)``."""
        return self.mean.reshape(len(self.used), -1).mean(1)


def _probabilities(name: str, site: Site) -> Tensor:
    """Return the probability of each code, averaged over draws, ``(codes, B, *positions)``."""
    inner = contract.innermost(site["fn"])
    if isinstance(inner, RelaxedOneHotCategorical):  # the largest of logits + Gumbel noise, at any temperature
        return inner.logits.double().softmax(-1).movedim(-1, 0).mean(1)
    if not inner.has_enumerate_support:
        raise ContractError(
            f"site '{name}': a {type(inner).__name__} gives no finite list of codes; perplexity is for discrete "
            "latents such as Categorical or OneHotCategorical, so name these with sites="
        )
    codes = inner.enumerate_support(expand=False)
    return inner.log_prob(codes).double().exp().mean(1)


def _exp_entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(0).exp()
