"""Exact sums over the model's enumerated sites: variable elimination on log densities."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from pyro.ops import packed
from torch import Size, Tensor

from ppl_vae.contract import ContractError, Site
from ppl_vae.particles import log_sum

__all__ = ["enumerated_by", "summed_out"]

Term = tuple[tuple[str, ...], Tensor]


def enumerated_by(sites: Mapping[str, Site]) -> tuple[str, ...]:
    """Return the names of the sites whose values are enumerated along an axis of their own."""
    return tuple(name for name, site in sites.items() if site["infer"].get("_enumerate_dim") is not None)


def summed_out(
    trace: Any, log_p: Mapping[str, Tensor], summed: Iterable[str], penalties: Collection[str] = ()
) -> dict[str, Tensor]:
    """Sum latents out of a model's densities.

    For each set of sites that hang together through the latents y::

        log sum_y prod_i p_i(..., y)

    One latent is eliminated after the other, in logarithms throughout, so that factors which
    favour different values by hundreds of nats do not underflow.

    Args:
        trace: the model's trace, run with parallel enumeration.
        log_p: log density of each site, with the trace's axes.
        summed: names of the latents to sum out.
        penalties: names of factors that no sum may reach.

    Returns:
        Site name to log density. Sites that were summed together share an entry, ``"y, x"``.

    Raises:
        ContractError: a penalty depends on a summed latent.
    """
    trace.symbolize_dims()
    symbols = {trace.nodes[name]["infer"]["_enumerate_symbol"] for name in summed}
    apart: dict[str, Tensor] = {}
    terms: list[Term] = []
    for name, density in log_p.items():
        term = packed.pack(density, trace.nodes[name]["infer"]["_dim_to_symbol"])
        if symbols.isdisjoint(term._pyro_dims):
            apart[name] = packed.unpack(term, trace.symbol_to_dim)  # less axes of a single value
        elif name in penalties:
            raise ContractError(
                f"factor '{name}': it depends on a latent that is summed out of the model, where a penalty has no "
                "meaning; enumerate that latent in the guide"
            )
        else:
            terms.append(((name,), term))
    for symbol in sorted(symbols):
        terms = _eliminate(terms, symbol)
    return apart | {", ".join(names): packed.unpack(term, trace.symbol_to_dim) for names, term in terms}


def _eliminate(terms: list[Term], symbol: str) -> list[Term]:
    """Join the terms along one axis and sum it out."""
    joined = [term for term in terms if symbol in term[1]._pyro_dims]
    if not joined:  # an axis of size one needs no sum
        return terms
    factors = packed.broadcast_all(*(tensor for _, tensor in joined))
    dims = factors[0]._pyro_dims
    result = log_sum(sum(factors[1:], start=factors[0]).movedim(dims.index(symbol), 0))
    result._pyro_dims = dims.replace(symbol, "")
    names = tuple(name for names, _ in joined for name in names)
    return [term for term in terms if symbol not in term[1]._pyro_dims] + [(names, result)]


def expanded(density: Tensor, shape: Size) -> Tensor:
    """Return a density with its particle and data axes in full; enumerated axes stay as they are.

    Example:
        >>> expanded(torch.zeros(2), Size([3, 2])).shape
        torch.Size([3, 2])
    """
    return density.expand(torch.broadcast_shapes(density.shape, shape))
