"""What imputation asks of a model and its guide: weights by the observed pixels alone, and the distribution of all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError
from ppl_vae.distributions import partly_observed
from ppl_vae.particles import Particles
from ppl_vae.programs import Program, own_parameters
from ppl_vae.sampling import mean_of
from ppl_vae.tracing import Draw, Unobserved, plated
from ppl_vae.weighing import weigh

__all__ = ["Conditional", "Pixels", "data_site", "given"]

Latents = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pixels:
    """The data's distribution given latents, ``(K, B)`` of them, in the form of x.

    Attributes:
        fn: the likelihood's distribution, no pixel masked.
        form: shape of a datum of x.
    """

    fn: Any
    form: torch.Size

    def sample(self) -> Tensor:
        """Draw the data, ``(K, B, *form)``."""
        return self._formed(self.fn.sample())

    @property
    def mean(self) -> Tensor | None:
        """Mean of the data, ``(K, B, *form)``; None where the distribution has none (a Categorical)."""
        mean = mean_of(self.fn)
        return None if mean is None else self._formed(mean)

    def _formed(self, value: Tensor) -> Tensor:
        return value.reshape(*value.shape[: value.dim() - self.fn.event_dim], *self.form)


@dataclass(frozen=True)
class Conditional:
    """A model given some of the pixels: what a method of imputation works on.

    Attributes:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        batch: tensors; the first is x, of which unobserved pixels may hold anything.
        observed: which pixels count, True for those present; of the shape of x.
        site: the model's site that observes x.
        initial: values with which the missing pixels begin, of the shape of x.
        first: number of the first datum, for messages.
        copies: how often each datum is there.
        summed: whether the model has latents to sum out.
    """

    model: Program
    guide: Program
    batch: Batch
    observed: Tensor
    site: str
    initial: Tensor
    first: int = 0
    copies: int = 1
    summed: bool = False

    @property
    def rows(self) -> int:
        """Number of data B."""
        return self.batch[0].shape[0]

    def filled(self, values: Tensor) -> Tensor:
        """Return x with these values, or an axis of them at the left, where no pixel is observed."""
        x = self.batch[0]
        return torch.where(self.observed, x, values.to(x.dtype))

    def part(self, first: int, size: int) -> "Conditional":
        """Return so many data from this one on."""
        rows = slice(first, first + size)
        batch = tuple(part[rows] for part in self.batch)
        return replace(self, batch=batch, observed=self.observed[rows], initial=self.initial[rows], first=first)

    def repeated(self, times: int) -> "Conditional":
        """Return the same with every datum that many times, ``times`` whole copies one after the other."""
        batch = tuple(part.repeat(times, *[1] * (part.dim() - 1)) for part in self.batch)
        observed, initial = (t.repeat(times, *[1] * (t.dim() - 1)) for t in (self.observed, self.initial))
        return replace(self, batch=batch, observed=observed, initial=initial, copies=times)

    def weigh(
        self, x: Tensor, particles: int = 1, draw: Draw | None = None, counted: Tensor | None = None
    ) -> tuple[Particles, Pixels]:
        """Weigh draws of the guide given a filled x.

        Args:
            x: filled data.
            particles: K.
            draw: see `ppl_vae.weigh`.
            counted: the pixels that the weights count; all when left out.

        Returns:
            The record, and the distribution of the data given its latents.

        Raises:
            ContractError: the likelihood is no product over pixels, or the guide cannot score values
                that it has not drawn.
            FloatingPointError: a density is NaN.
        """
        likelihood = _Likelihood(self.site, counted)
        # Enumerated values are drawn: what is wanted are draws.
        guide = poutine.infer_config(self.guide, lambda site: {"enumerate": None})
        try:
            record = weigh(_under(likelihood, self.model), guide, (x, *self.batch[1:]), particles, draw=draw)
        except (KeyError, NotImplementedError) as error:
            if draw is None:
                raise
            raise ContractError(
                f"guide: it cannot score values that it has not drawn itself ({type(error).__name__}: {error}), as "
                "flows without an inverse cannot; choose a method that asks for none: method=partial("
                "pv.imputing.resampled, defensive=0), or pv.imputing.pseudo_gibbs"
            ) from error
        self._check(record)
        if self.summed:
            return record, self.pixels(record.values, x, particles)
        return record, self._pixels(likelihood.fn, particles)

    def pixels(self, latents: Latents, x: Tensor, particles: int) -> Pixels:
        """Return the data's distribution given latents ``(K, B, *event)``.

        What the model sums out is drawn from its posterior given these latents and the observed pixels.
        """
        likelihood = _Likelihood(self.site, self.observed)
        program = poutine.condition(plated(_under(likelihood, self.model), particles), data=dict(latents))
        if self.summed:
            program = infer_discrete(program, first_available_dim=-3, temperature=1, strict_enumeration_warning=False)
        with own_parameters():
            program(x, *self.batch[1:])
        return self._pixels(likelihood.fn, particles)

    def prior(self, particles: int) -> Latents:
        """Draw latents from the model, ``(K, B, *event)``."""
        with own_parameters():
            trace = poutine.trace(plated(self.model, particles)).get_trace(self.filled(self.initial), *self.batch[1:])
        return {name: site["value"] for name, site in contract.latents(trace).items()}

    def log_prior(self, x: Tensor, record: Particles) -> Tensor:
        """Return the log density of a record's latents under the model, data apart, ``(K, B)``."""
        if not record.summed:
            entries = (record.log_p[name] for name in record.values if name in record.log_p)
            return sum(entries, start=torch.zeros_like(record.log_w))
        with Unobserved():  # what is summed out hangs together with the data
            return sum(self.weigh(x, len(record), given(record.values))[0].log_p.values())

    def _pixels(self, fn: Any, particles: int) -> Pixels:
        """Return a likelihood in full, were it the same for all particles."""
        shape = torch.broadcast_shapes(fn.batch_shape, (particles, self.rows))
        return Pixels(fn if fn.batch_shape == shape else fn.expand(shape), self.batch[0].shape[1:])

    def _check(self, record: Particles) -> None:
        for name, density in (*record.log_p.items(), *record.log_q.items()):
            bad = density.isnan().reshape(-1, self.rows)
            if bad.any():
                datum = self.first + int(bad.any(0).nonzero()[0]) % (self.rows // self.copies)
                raise FloatingPointError(
                    f"site '{name}': log density is NaN for datum {datum}; look at the parameters of its distribution "
                    "there (a scale of zero, an overflow)"
                )


def given(latents: Latents) -> Draw:
    """Return the rule by which the guide's latents take these values.

    Example:
        >>> given({"z": torch.ones(2)})("z", None)
        tensor([1., 1.])
    """

    def draw(name: str, fn: Any) -> Tensor:
        if name not in latents:
            raise ContractError(
                f"site '{name}': the guide draws it and the model does not have it, so that the guide cannot score the "
                "model's draws; use method=partial(pv.imputing.resampled, defensive=0), or pv.imputing.pseudo_gibbs"
            )
        return latents[name]

    return draw


def data_site(model: Program, batch: Batch) -> tuple[str, bool]:
    """Return the name of the site that observes the first tensor of a batch, and whether latents are summed out.

    Raises:
        ContractError: no site observes it, or several do; or its likelihood is no product over pixels.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> data_site(VAE(), (torch.ones(3, 784),))
        ('x', False)
    """
    with own_parameters(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*batch)
    sites = {name: site for name, site in contract.observed(trace).items() if not contract.is_factor(site)}
    found = [name for name, site in sites.items() if _is_view(site["value"], batch[0])]
    if len(found) != 1:
        names = ", ".join(f"'{name}'" for name in (found or sites)) or "none"
        raise ContractError(
            f"model: expected one site that observes x itself, the first tensor of the batch; {names} "
            + (
                "observe it"
                if found
                else "observe something else, or something made from it (observe obs=x, scaled before it is given)"
            )
        )
    _check_product(found[0], sites[found[0]]["fn"])
    return found[0], any(contract.is_marked(site) for site in contract.latents(trace).values())


def _is_view(value: Tensor, x: Tensor) -> bool:
    """Tell whether a tensor is x, or x in another shape."""
    same = value.data_ptr() == x.data_ptr() and value.numel() == x.numel()
    return same and value.dtype == x.dtype and value.is_contiguous()


def _check_product(name: str, fn: Any) -> None:
    inner = contract.innermost(fn)
    if inner.event_shape:
        raise ContractError(
            f"site '{name}': a {contract.kind(fn)} with event shape {tuple(inner.event_shape)} is no product over "
            "pixels, so that none of them can be left out; write the likelihood as independent pixels, "
            ".to_event(1), or marginalise it yourself"
        )


class _Likelihood(Messenger):
    """Keep the distribution of the data as the model has it, and let only counted pixels be scored."""

    def __init__(self, site: str, counted: Tensor | None):
        super().__init__()
        self.site, self.counted, self.fn = site, counted, None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == self.site:
            self.fn = msg["fn"]
            if self.counted is not None:
                msg["fn"] = partly_observed(self.fn, self.counted.reshape(-1, *self.fn.event_shape))


def _under(messenger: Messenger, program: Program) -> Program:
    def run(*batch: Tensor) -> Any:
        with messenger:
            return program(*batch)

    return run
