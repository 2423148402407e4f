"""Draws of the posterior and of new data, made again from an evaluation's particles when somebody asks for them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.importance import probe
from ppl_vae.noise import Keyed, datum_keys
from ppl_vae.particles import Particles, total
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.sampling import sample
from ppl_vae.weighing import weigh

__all__ = ["Redraw", "fingerprint"]


def fingerprint(programs: Programs) -> str:
    """Return a fingerprint of all parameters and buffers.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> before = fingerprint(Programs(net, net))
        >>> torch.nn.init.zeros_(net.weight).sum(), fingerprint(Programs(net, net)) == before
        (tensor(0., grad_fn=<SumBackward0>), False)
    """
    found = sha256()
    for name, tensor in programs.tensors().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(flat.view(torch.uint8).numpy().data if len(flat) else b"")
    return found.hexdigest()


class Draws(NamedTuple):
    """Particles of data, axes ``(n, N, *event)``.

    Attributes:
        latents: by site, those that were summed out drawn given the others.
        data: new ones given these, by site.
        statistics: ``"lp"``, log p(x, z), and ``"log_weight"``, ``(n, N)``; means over what the guide enumerates.
    """

    latents: dict[str, Tensor]
    data: dict[str, Tensor]
    statistics: dict[str, Tensor]


class Redraw:
    """The particles of an evaluation by their numbers.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        programs: both.
        batches: makes an iterator over batches and their keys, those of the evaluation.
        keys: of the data that were evaluated, ``(N,)``.
        then: fingerprint of the programs when they were evaluated.
        probed: their `probe` then.
        seed: for new data.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> evaluation = pv.evaluate(model, Exact(model), x, particles=50)
        >>> evaluation.redraw.posterior(evaluation.resampled).latents["z"].shape
        torch.Size([50, 10, 2])
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        programs: Programs,
        batches: Callable[[], Iterator[tuple[Batch, Tensor]]],
        keys: Tensor,
        then: str,
        probed: float,
        seed: int = 0,
    ):
        self.model, self.guide, self.programs = model, guide, programs
        self.batches, self.keys, self.then, self.probed, self.seed = batches, keys, then, probed, seed

    def posterior(self, numbers: Tensor) -> "Draws":
        """Return these particles, and new data given them.

        Args:
            numbers: of particles, ``(N, n)``; the first data, where they are fewer.

        Raises:
            RuntimeError: the programs or the data have changed since the evaluation.
        """
        parts = list(self._drawn(numbers))
        return Draws(*(_joined(columns) for columns in zip(*parts, strict=True)))

    def observed(self, rows: int) -> dict[str, Tensor]:
        """Return the values of the observed sites of the first data, ``(rows, *event)``."""
        found: list[dict[str, Tensor]] = []
        with undisturbed(self.programs, self.seed, training=False), own_parameters(), torch.no_grad():
            for batch, _ in self.batches():
                sites = _observed(poutine.trace(self.model).get_trace(*batch))
                found.append({name: site["value"] for name, site in sites.items()})
                if sum(len(next(iter(values.values()))) for values in found) >= rows:
                    break
        return {name: value[:rows] for name, value in _joined(found, axis=0).items()}

    def prior(self, draws: int, rows: int) -> dict[str, Tensor]:
        """Return latents and data of the model itself, ``(draws, rows, *event)`` by site."""
        ((first, _),) = islice(self.batches(), 1)
        drawn = sample(self.model, like=first, n=draws * rows, seed=self.seed)
        return {name: value.unflatten(0, (draws, rows)) for name, value in drawn.items()}

    def _drawn(self, numbers: Tensor) -> Iterator["Draws"]:
        done = 0
        with undisturbed(self.programs, self.seed, training=False), torch.no_grad():
            for batch, keys in self.batches():
                self._check_unchanged(batch, done)
                own = numbers[done : done + len(keys)].long().to(keys.device)
                done += len(keys)
                if len(own) == 0:
                    return
                batch = tuple(part[: len(own)] for part in batch)
                particles = weigh(self.model, self.guide, batch, own.shape[1], draw=Keyed(keys[: len(own)], own))
                yield self._of(batch, particles)

    def _check_unchanged(self, batch: Batch, done: int) -> None:
        """Raise unless programs and data are those that were evaluated: particles have numbers for these alone."""
        if not torch.equal(datum_keys(batch).cpu(), self.keys[done : done + len(batch[0])]):
            raise RuntimeError("the data have changed since the evaluation; call pv.evaluate again")
        if done:
            return
        probed = probe(self.model, self.guide, batch)
        if fingerprint(self.programs) != self.then or not math.isclose(probed, self.probed, rel_tol=1e-4, abs_tol=1e-4):
            raise RuntimeError("the programs have changed since the evaluation; call pv.evaluate again")

    def _of(self, batch: Batch, particles: Particles) -> "Draws":
        shape = torch.Size([len(particles), len(batch[0])])
        with own_parameters():
            guides = contract.latents(poutine.trace(self.guide).get_trace(*batch))
        chosen = _chosen(particles, shape, {name: site["fn"].event_dim for name, site in guides.items()})
        rows = tuple(part.repeat(len(particles), *[1] * (part.dim() - 1)) for part in batch)
        conditioned = poutine.condition(self.model, data={name: v.flatten(0, 1) for name, v in chosen.items()})
        with own_parameters(), pyro.validation_enabled(False):
            full = infer_discrete(conditioned, first_available_dim=-2) if particles.summed else conditioned
            trace = poutine.trace(full).get_trace(*rows)
        summed = {name: trace.nodes[name]["value"].unflatten(0, shape) for name in particles.summed}
        new = {name: site["fn"].sample().unflatten(0, shape) for name, site in _observed(trace).items()}
        log_w = particles.log_per_draw(particles.log_w)
        statistics = {"lp": particles.log_per_draw(total(particles.log_p)), "log_weight": log_w}
        return Draws({**chosen, **summed}, {n: value for n, value in new.items() if n not in chosen}, statistics)


def _chosen(particles: Particles, shape: torch.Size, event_dims: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the drawn values ``(K, B, *event)``; of those that the guide enumerates one each, by its weight."""
    if not particles.enumerated:
        return dict(particles.values)
    log_w = (particles.log_w + particles.log_mass).flatten(0, -3)  # (V, K, B)
    values = particles.log_w.shape[:-2]
    index = torch.distributions.Categorical(logits=log_w.movedim(0, -1)).sample()  # (K, B)
    chosen = {}
    for name, value in particles.values.items():
        event = value.shape[value.dim() - event_dims[name] :]
        each = value.expand(*values, *shape, *event).flatten(0, len(values) - 1)
        at = index.reshape(1, *shape, *[1] * len(event)).expand(1, *shape, *event)
        chosen[name] = each.gather(0, at).squeeze(0)
    return chosen


def _observed(trace: Any) -> dict[str, contract.Site]:
    return {name: site for name, site in contract.observed(trace).items() if not contract.is_factor(site)}


def _joined(parts: Iterable[Mapping[str, Tensor]], axis: int = 1) -> dict[str, Tensor]:
    parts = [{name: value.cpu() for name, value in part.items()} for part in parts]
    return {name: torch.cat([part[name] for part in parts], axis) for name in parts[0]}
