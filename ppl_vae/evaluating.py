"""Estimate log-likelihoods by importance sampling, a chunk of particles of a batch of data at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae import contract
from ppl_vae.arguments import whole, whole_seed
from ppl_vae.batches import Batch, Source
from ppl_vae.checking import check
from ppl_vae.compiling import check_compile
from ppl_vae.crossing import to_evaluate
from ppl_vae.data.splits import on_data
from ppl_vae.estimates import curve_sizes, estimates
from ppl_vae.evaluation import Evaluation
from ppl_vae.importance import Weights, can_be_keyed, probe
from ppl_vae.indexing import alike
from ppl_vae.noise import datum_keys, told_apart
from ppl_vae.parallel import Workers, workers
from ppl_vae.programs import Program, Programs, own_parameters, program_name, undisturbed
from ppl_vae.progress import Bar, progress_bar
from ppl_vae.recording import Record
from ppl_vae.redrawing import Redraw, fingerprint

__all__ = ["evaluate"]


def evaluate(
    model: Program,
    guide: Program,
    data: Any,
    particles: int = 5000,
    seed: int = 0,
    *,
    batch_size: int = 100,
    chunk: int = 50,
    curve: bool = False,
    out: str | Path | None = None,
    subject: str | None = None,
    progress: bool | None = None,
    compile: bool | str = "auto",  # noqa: A002 - the public name
) -> Evaluation:
    """Estimate log p(x) of each datum by importance sampling from the guide.

    For each datum, with K draws z_k from q(z | x)::

        log p(x) ~ L_K = log 1/K sum_k p(x, z_k) / q(z_k | x)

    whose expectation is a lower bound on log p(x) that rises with K. The programs run in evaluation
    mode without gradients; parameters, buffers, modes and the caller's random state stay as they
    were. What a datum's particles draw depends on its content and the seed: batches, chunks, processes, the order of
    the data and the device change the result by rounding alone.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        data: `Splits` (its test set), a tensor ``(N, ...)``, a tuple of them, a Dataset or a
            DataLoader in a fixed order.
        particles: K, draws per datum.
        seed: seeds the draws; two calls with one seed agree exactly.
        batch_size: data at a time. Several processes (``torchrun``) share batches out whose size is a
            multiple of their number.
        chunk: draws per datum at a time. Memory beyond the ``(K, batch_size)`` log-weights does
            not grow with K. What the guide computes of the data alone, its encoder's work, is done once.
        curve: whether to give the bounds on 1, 2, 5, 10, ... of the K particles too, as ``Evaluation.curve``.
        out: file for the results of each datum, written as they come. If it exists, finished data are taken
            from it: an interrupted call goes on, one that had ended returns at once.
        subject: what the report calls the programs and the data; made from their names if left out.
        progress: whether to show a bar; by default where a terminal or notebook shows it.
        compile: see `ppl_vae.svi_step`; ``"auto"`` goes by the work to do. The first chunk of each size
            is run as it is too: where a compiler's numbers differ, they are not used, and a warning says so.

    Returns:
        `Evaluation`.

    Raises:
        ContractError: model, guide and the first batch do not fit.
        FloatingPointError: a log-weight is NaN, or all of a datum's are minus infinity; the message
            names the datum and the site.
        ValueError: a number is out of range, there are no data, or ``out`` is of another evaluation.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR
    2016, https://arxiv.org/abs/1509.00519; Monte Carlo error by the delta method, A. Owen, "Monte
    Carlo theory, methods and examples", chapter 9, https://artowen.su.domains/mc/.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> evaluation = pv.evaluate(model, Exact(model), x, particles=100)
        >>> torch.allclose(evaluation.log_px.float(), model.log_px(x), atol=1e-3)
        True
    """
    whole("particles", particles)
    whole("chunk", chunk)
    whole_seed(seed)
    check_compile(compile)
    if subject is None:
        subject = f"{program_name(model)} (guide {program_name(guide)}){on_data(data)}"
    model, guide = alike(model, guide)
    batches = to_evaluate(data, batch_size)
    programs, together = Programs(model, guide), workers()
    planned = batches.batches and batches.batches * -(-particles // chunk)
    progress = progress if together is None or together.leads else False
    with undisturbed(programs, seed, training=False), progress_bar("Evaluating", planned, progress) as bar:
        stream = iter(batches)
        first = programs.on_device(_first(stream))
        check(model, guide, first)
        programs.run_once(model, guide, first)
        _check_alike(programs, together)
        keyed = can_be_keyed(model, guide, first)
        settings = {
            "particles": particles,
            "seed": seed,
            "curve": bool(curve),
            "first": int(datum_keys(first)[0]),
            "programs": fingerprint(programs),
            "probe": probe(model, guide, first) if keyed else None,
        }
        record = Record(out, settings, together)
        record.facts |= {
            "subject": subject,
            "sizes": curve_sizes(particles) if curve else [],
            **_measures(model, first),
        }
        weights = Weights(model, guide, programs, particles, chunk, compile, planned, keyed)
        with record.kept():
            for batch in chain([first], map(programs.on_device, stream)):
                _take(record, weights, batch, curve, together, bar)
    again = partial(_numbered, batches, programs, seed)
    columns = record.columns()
    redraw = Redraw(model, guide, programs, again, columns["keys"], settings["programs"], settings["probe"])
    return Evaluation.of(settings, record.facts, columns, redraw if keyed else None)


def _measures(model: Program, batch: Batch) -> dict[str, Any]:
    """Return the number of dimensions of a datum, if it has one, and whether its likelihood is a mass function."""
    with own_parameters(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*batch)
    sites = [site for site in contract.observed(trace).values() if not contract.is_factor(site)]
    if len(sites) != 1 or sites[0]["mask"] is not None or contract.has_mask(sites[0]["fn"]):
        return {"dims": None, "mass": False}
    (site,) = sites
    return {"dims": site["fn"].event_shape.numel(), "mass": site["fn"].support.is_discrete}


def _numbered(batches: Source, programs: Programs, seed: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches with the keys of their data."""
    times: Counter = Counter()
    for batch in map(programs.on_device, batches):
        yield batch, told_apart(datum_keys(batch), times, seed)


def _first(stream: Iterator[Batch]) -> Batch:
    for batch in stream:
        return batch
    raise ValueError("data: there are none; check the split or the filter that made them")


def _check_alike(programs: Programs, together: Workers | None) -> None:
    if together and (name := together.different(programs.tensors())):
        raise RuntimeError(
            f"{name} is not the same in all processes; evaluate one state of the programs in all of them"
        )


def _take(record: Record, weights: Weights, batch: Batch, curve: bool, together: Workers | None, bar: Bar) -> None:
    """Take what is not finished of the next batch into a record."""
    start, keys = record.met, datum_keys(batch)
    done, apart = record.meet(keys), told_apart(keys, record.times, record.settings["seed"])
    if done == len(keys):
        bar.advance(by=-(-weights.particles // weights.chunk))
        return
    left = tuple(part[done:] for part in (*batch, apart))
    mine = together and together.part(left)
    rank = together.rank * len(mine[0]) if mine else 0
    columns = _columns(weights, mine or left, start + done + rank, curve, lambda: bar.advance(record.note))
    record.add(keys[done:], {name: together.gathered(c) for name, c in columns.items()} if mine else columns)


def _columns(
    weights: Weights, batch: Batch, start: int, curve: bool, advance: Callable[[], None]
) -> Mapping[str, Tensor]:
    *data, keys = batch
    log_w, means = weights(tuple(data), keys, start, advance)
    return {**estimates(log_w, keys, curve), **means}
