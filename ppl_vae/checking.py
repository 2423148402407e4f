"""`check`: hold a model, its guide and one batch to the contract before anything is trained on them."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import constraints
from torch.nn.parameter import is_lazy

from ppl_vae import contract
from ppl_vae.batches import Batch, as_batch
from ppl_vae.contract import ContractError
from ppl_vae.enumeration import enumerated_by
from ppl_vae.indexing import alike, check_rows, refuse_rows, signature_of
from ppl_vae.noise_transforms import check_noise
from ppl_vae.objectives import elbo
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.supports import check_data_support, check_densities, check_pair_shapes, check_supports, check_types
from ppl_vae.tracing import first, paired_traces, trace_of_first
from ppl_vae.weighing import weigh
from ppl_vae.wording import refuse_in_other_words, refuse_types

__all__ = ["check", "explained_trace", "paired_structure", "supports"]


def check(model: Program, guide: Program, x: Any, log_prior: Callable[[], Tensor] | None = None) -> None:
    """Hold a pair of programs to the contract, on one batch; return if it holds.

    Runs both programs a few times with Pyro's validation on, without particles and with two.
    Nothing is changed: parameters, gradients, buffers, random state.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        x: a batch: a tensor or a tuple of tensors.
        log_prior: as for `fit`. Parameters that it alone depends on, such as the scale of a prior, train too.

    Raises:
        ContractError: what does not hold, naming the site or argument, what was found and the
            repair.
        TypeError: x is not made of tensors.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> pv.check(VAE(), Normal(z_dim=10), torch.ones(4, 784))
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: site 'z' has event shape (20,) in the model and (10,) in the guide; ...
    """
    batch = tuple(part.clone() for part in as_batch(x))
    model, guide = alike(model, guide)
    check_arguments(model, "model", batch)
    check_arguments(guide, "guide", batch)
    check_values(model, batch)
    programs = Programs(model, guide)
    check_dtype(programs, batch)
    check_parameters(programs)
    with unwritten(batch), pyro.validation_enabled(True), undisturbed(programs, training=False):
        # Two batch sizes, since one may equal an event's size by chance and hide a missing .to_event.
        check_structure(model, guide, batch, programs)
        check_structure(model, guide, _resized(batch), programs)
        check_leading_axes(model, guide, batch)
        programs.run_once(model, guide, batch)
        check_noise(*paired_structure(model, guide, batch), guide, programs, batch)
        check_gradients(model, guide, batch, programs, log_prior)


@contextmanager
def unwritten(batch: Batch) -> Iterator[None]:
    """Raise if what runs inside writes into a batch, whatever else it may have led to."""
    before = [part._version for part in batch]
    try:
        yield
    finally:
        if changed := [i for i, part in enumerate(batch) if part._version != before[i]]:
            raise ContractError(
                f"data: a program changes part {changed[0]} of its batch in place, and so the data themselves; write "
                "x = x - 0.5 for x.sub_(0.5), and likewise"
            )


def check_values(model: Program, batch: Batch) -> None:
    """Data are finite wherever the argument ``observed`` does not say that they are missing."""
    for i, part in enumerate(unmasked(model, batch)):
        bad = ~part.isfinite()
        if bad.any():
            rows = bad.reshape(len(part), -1).any(1).nonzero().flatten().tolist()
            raise ContractError(
                f"data: part {i} of the batch has {int(bad.sum())} NaN or infinite values (first in row {rows[0]}) "
                "that no mask covers; drop or fill them, or give the model an argument 'observed' that is False there"
            )


def unmasked(model: Program, batch: Batch) -> Batch:
    """Return a batch with zeros where the argument ``observed`` of a model says that values are missing.

    Example:
        >>> unmasked(lambda x, observed: None, (torch.tensor([1.0, torch.nan]), torch.tensor([True, False])))[0]
        tensor([1., 0.])
    """
    present = _argument(model, "observed", batch)
    if present is None:
        return batch
    return tuple(part.masked_fill(~present.bool(), 0) if _covers(present, part) else part for part in batch)


def _covers(present: Tensor, part: Tensor) -> bool:
    """Tell whether what says which values are there speaks of these."""
    sizes = zip(present.shape, part.shape, strict=False)
    return part.dim() == present.dim() and all(size in (1, other) for size, other in sizes)


def supports(model: Program, x: Any) -> bool:
    """Tell whether a model's likelihood gives these data a density (a Bernoulli gives grey values none)."""
    batch = as_batch(x)
    check_arguments(model, "model", batch)
    with undisturbed(Programs(model, model)), own_parameters(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*batch)
    try:
        check_data_support(trace)
    except ContractError:
        return False
    return True


def _resized(batch: Batch) -> Batch:
    """Return a batch with one row less, or with its only row twice."""
    if len(batch[0]) > 1:
        return tuple(part[:-1] for part in batch)
    return tuple(torch.cat([part, part]) for part in batch)


def check_arguments(program: Program, role: str, batch: Batch) -> None:
    """The program can be called with the tensors of a batch."""
    if inspect.isclass(program) or not callable(program):
        raise ContractError(f"{role}: expected a Pyro program, found {program!r}; pass an instance, such as VAE()")
    check_rows(program, batch)
    try:
        signature_of(program).bind(*batch)
    except TypeError as error:
        raise ContractError(
            f"{role}: it takes ({', '.join(signature_of(program).parameters)}), but the batch has {len(batch)} tensors "
            f"of shapes {[tuple(part.shape) for part in batch]} ({error}); give both programs the same arguments, "
            "and data as a tuple of as many tensors"
        ) from error


def _argument(program: Program, name: str, batch: Batch) -> Tensor | None:
    """Return the tensor of the batch that goes to the named argument of a program."""
    names = list(signature_of(program).parameters)
    return batch[names.index(name)] if name in names and names.index(name) < len(batch) else None


def check_dtype(programs: Programs, batch: Batch) -> None:
    """The data's floating type is the parameters'."""
    found, x = _types(programs), batch[0]
    if x.is_floating_point() and found and x.dtype not in found:
        wanted = found.pop()
        raise ContractError(f"data: x is {x.dtype} but the parameters are {wanted}; convert one: x.to({wanted})")


def _types(programs: Programs) -> set[torch.dtype]:
    return {p.dtype for p in programs.parameters().values() if p.is_floating_point()}


def check_parameters(programs: Programs) -> None:
    """No parameter is NaN, as after a training that went wrong."""
    for name, p in programs.parameters().items():
        if not is_lazy(p) and p.isnan().any():
            raise ContractError(
                f"parameter {name}: {int(p.isnan().sum())} of its {p.numel()} values are NaN; make the programs anew, "
                "or take back a state from before (pv.restore)"
            )


def check_structure(model: Program, guide: Program, batch: Batch, programs: Programs) -> None:
    """Sites, plates, shapes, types, densities and supports, without particles."""
    model_trace, guide_trace = paired_structure(model, guide, batch)
    check_types(model_trace, _types(programs))
    contract.check_known(guide_trace)
    check_densities(model_trace, guide_trace)
    check_supports(model_trace, guide_trace)


def paired_structure(model: Program, guide: Program, batch: Batch) -> tuple[Any, Any]:
    """Return a trace of each, sites, plates and shapes of which are held to the contract."""
    guide_trace = explained_trace(guide, "guide", batch)
    model_trace = explained_trace(model, "model", batch)
    contract.check_roles(model_trace, guide_trace)
    contract.check_names(model_trace, guide_trace)
    check_pair_shapes(model_trace, guide_trace)
    return model_trace, guide_trace


def explained_trace(program: Program, role: str, batch: Batch) -> Any:
    """Trace a program alone and hold its sites to the plate, even those before a failure."""
    rows = len(batch[0])
    tracer = poutine.trace()
    try:
        with own_parameters(), torch.no_grad(), tracer:
            program(*batch)
    except Exception as error:
        for name, site in [*contract.sample_sites(tracer.trace), *_failed_site(error)]:
            contract.check_site(name, site, role, rows)
        refuse_rows(program, role, batch, error)
        refuse_types(role, batch, error)
        refuse_in_other_words(error, role)
        shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in batch)
        error.add_note(f"({role} on a batch of {shapes}; sites so far: {', '.join(tracer.trace.nodes) or 'none'})")
        if "shapes cannot be multiplied" in str(error):  # torch's words for a linear layer
            error.add_note(
                "(a network was given another size than it takes: are x_dim, z_dim and y_dim alike in both?)"
            )
        raise
    for name, site in contract.sample_sites(tracer.trace):
        contract.check_site(name, site, role, rows)
    return tracer.trace


def _failed_site(error: Exception) -> Iterator[tuple[str, contract.Site]]:
    """Yield the sample site at which Pyro raised, if it was at one (it is then in no trace)."""
    for frame, _ in walk_tb(error.__traceback__):
        message = frame.f_locals.get("msg")
        if isinstance(message, dict) and message.get("type") == "sample" and hasattr(message["fn"], "batch_shape"):
            yield message["name"], message
            return


def check_leading_axes(model: Program, guide: Program, batch: Batch) -> None:
    """The networks accept an axis of particles to the left of the batch, and mix neither."""
    try:
        with own_parameters(), torch.no_grad():
            together = paired_traces(model, guide, batch, particles=2)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ContractError(
            "the programs run on a batch but fail with two particles, where each latent has a leading axis of size 2: "
            f"{reason}. Let networks act on the last axes only (those of ppl_vae.nets do), and "
            "index from the right (x.expand(*z.shape[:-1], -1) gives x the axes of z)"
        ) from error
    check_data_support(together[0])
    model_trace, guide_trace = together
    drawn = contract.latents(guide_trace)
    _check_independence(guide, "guide", guide_trace, batch, drawn.keys() - set(enumerated_by(drawn)))
    _check_independence(model, "model", model_trace, batch, contract.latents(model_trace).keys() & drawn.keys())


def _check_independence(program: Program, role: str, trace: Any, batch: Batch, given: Iterable[str]) -> None:
    """A datum's density with one particle is the same beside other particles and other data."""
    with own_parameters(), torch.no_grad():
        alone = trace_of_first(program, trace, batch, given)
    for name, site in contract.sample_sites(alone):
        try:
            ours = _over_values(_log_density(site))
        except (KeyError, NotImplementedError):  # a flow without inverse scores its own draws only
            continue
        together = _over_values(first(_log_density(trace.nodes[name])))
        if not _alike(together, ours):
            _check_digits(role, name, site, ours)
            raise ContractError(
                f"{role}: site '{name}' has log density {ours.item():.4f} for the first datum alone and "
                f"{together.item():.4f} beside others: something mixes particles or data (a mean, softmax or index "
                "over dim 0 or 1). Count axes from the right: dim=-1 is the last axis of an event"
            )


def _alike(density: Tensor, other: Tensor) -> bool:
    """Tell whether densities are one, rounding apart; a sum that mixes particles or data is off by far more."""
    return not ((density - other).abs() > 1e-3 * (1 + other.abs())).any()


def _check_digits(role: str, name: str, site: contract.Site, density: Tensor) -> None:
    """Densities follow numbers, and not their rounding."""
    value = site["value"]
    if not value.is_floating_point() or contract.innermost(site["fn"]).support is not constraints.real:
        return
    last_digits = 4 * torch.finfo(value.dtype).eps * value
    rounded = [_over_values(_log_density({**site, "value": value + digits})) for digits in (last_digits, -last_digits)]
    if not all(_alike(other, density) for other in rounded):
        raise ContractError(
            f"{role}: site '{name}' has numbers as large as {value.abs().max().item():.1e}, of which {value.dtype} "
            "keeps no digit that its scale could tell, so that its density is rounding alone; standardise the data, "
            "whose largest numbers it follows, or take more digits (torch.float64)"
        )


def _over_values(density: Tensor) -> Tensor:
    """Return the sum over enumerated values, whose axes may lie elsewhere in another trace."""
    return density.reshape(-1).sum()


def _log_density(site: contract.Site) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])


def check_gradients(
    model: Program,
    guide: Program,
    batch: Batch,
    programs: Programs,
    log_prior: Callable[[], Tensor] | None = None,
) -> None:
    """Every trainable parameter is in the graph of the bound or the log prior (its gradient may be zero)."""
    parameters = programs.parameters()
    with torch.inference_mode(False), torch.enable_grad():
        particles = weigh(model, guide, batch, linear=True)
        total = sum((p.sum() for p in particles.penalties.values()), start=elbo(particles).sum())
        _check_leaves(total, parameters)
        prior = log_prior() if log_prior is not None else None
        if isinstance(prior, Tensor):  # what it should be is another check's to say
            total = total + prior.sum()
        inputs = list(parameters.values())
        found = torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else [None] * len(inputs)
    unused = [name for name, gradient in zip(parameters, found, strict=True) if gradient is None]
    if unused:
        raise ContractError(
            f"parameter {', '.join(unused)}: trainable, but absent from the graph of the bound, so it would never "
            "train on batches like this one; use it in the model or the guide, or in the log_prior of training, freeze "
            "it with requires_grad_(False), or, if other batches use it (such as those without labels), let the first "
            "be one of them"
        )


def _check_leaves(total: Tensor, parameters: dict[str, Tensor]) -> None:
    """Everything trainable in the graph of the bound is known, so that it will train."""
    known, seen, queue = {id(p) for p in parameters.values()}, set(), [total.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [parent for parent, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ContractError(
                f"a trainable tensor of shape {tuple(leaf.shape)} is used by the programs but belongs to no module "
                "that they show, so it would never train; declare its network with pyro.module('name', network), or "
                "make the program an nn.Module that has it"
            )
