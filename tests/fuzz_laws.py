"""What holds for every program that `fuzzing` describes: laws, each a function of a description that raises."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import fuzzing
import torch
from fuzz_refusals import unmoved
from fuzzing import FAMILIES, Description, Program, data_of, pair
from slowly import Slow
from torch import Tensor

import ppl_vae as pv
from ppl_vae import applicability, objectives
from ppl_vae.noise import Keyed, datum_keys, told_apart
from ppl_vae.weighing import weigh

BETAS = (0.0, 0.02, 0.1, 0.3, 1.0)


def assert_near(found: Tensor, wanted: Tensor, d: Description, what: str, loose: float = 1.0) -> None:
    tight, all_sizes = (1e-9, 1e-8) if d.double else (1e-4, 2e-3), torch.broadcast_shapes(found.shape, wanted.shape)
    torch.testing.assert_close(
        found.detach().expand(all_sizes).to(wanted.dtype),
        wanted.detach().expand(all_sizes),
        rtol=loose * tight[0],
        atol=loose * tight[1],
        msg=lambda words: f"{what}: {words}",
    )


def weighed(d: Description, **how) -> tuple[Program, Program, tuple[Tensor, ...], pv.Particles]:
    model, guide = pair(d)
    batch = data_of(d)
    torch.manual_seed(d.seed)
    return model, guide, batch, pv.weigh(model, guide, batch, d.particles, **{"linear": bool(d.scaled), **how})


def weights(d: Description) -> None:
    """A right pair passes, and every density of every particle is that of the loops."""
    model, guide, batch, found = weighed(d)
    pv.check(model, guide, batch)
    slow = Slow(d, model, guide, batch, dict(found.values))
    log_p, log_q = slow.densities
    if not d.summed:
        assert found.log_p.keys() == log_p.keys()
        for name, wanted in log_p.items():
            assert_near(found.log_p[name], wanted, d, f"log p of {name}")
    assert found.log_q.keys() == log_q.keys()
    for name, wanted in log_q.items():
        assert_near(found.log_q[name], wanted, d, f"log q of {name}")
    assert_near(found.log_w, slow.log_w, d, "log w")
    assert found.penalties.keys() == slow.penalties.keys()
    for name, wanted in slow.penalties.items():
        assert_near(found.penalties[name], slow.tensor(wanted), d, name)
    assert found.scale == (d.size or d.rows) / d.rows
    assert found.log_w.shape[-2:] == (d.particles, d.rows)
    assert (found.summed, found.enumerated) == (_names(d.summed), _names(d.listed))
    for site in d.scaled[:1]:
        with _refused(pv.ContractError, f"site '{site.name}' has a scale of its own"):
            pv.weigh(model, guide, batch, d.particles)


def _names(sites) -> tuple[str, ...]:
    return tuple(site.name for site in sites)


def _insist(right: bool, error: Exception) -> None:
    if not right:
        raise AssertionError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _refused(kind: type[Exception], words: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        _insist(words in str(error), error)
    else:
        raise AssertionError(f"nothing was raised; expected {kind.__name__}: {words}")


# Bounds, from lists of floats: for a datum, log w and the log mass of each particle.


def log_total(terms: list[float]) -> float:
    largest = max(terms)
    return largest if math.isinf(largest) else largest + math.log(sum(math.exp(t - largest) for t in terms))


def slow_bounds(log_w: list[list[float]], log_q: list[float]) -> dict[str, float]:
    """Return every bound of one datum, by its textbook formula.

    Args:
        log_w: of each listed value and particle.
        log_q: log mass of each listed value, a list alike.
    """
    k = len(log_w[0])
    flat = [(w, m - math.log(k)) for ws, ms in zip(log_w, log_q, strict=True) for w, m in zip(ws, ms, strict=True)]
    elbo = sum(math.exp(m) * w for w, m in flat)
    iwae = log_total([w + m for w, m in flat])
    per_draw = [log_total([ws[i] + ms[i] for ws, ms in zip(log_w, log_q, strict=True)]) for i in range(k)]

    def expected(beta: float) -> float:
        total = log_total([beta * w + m for w, m in flat])
        return sum(math.exp(beta * w + m - total) * w for w, m in flat)

    steps = [(b - a, expected(a), expected(b)) for a, b in pairwise(BETAS)]
    found = dict.fromkeys(("elbo", "score_function", "stl", "reinforce", "rloo"), elbo)
    found |= dict.fromkeys(("iwae", "vimco", "vimco_arithmetic", "ovis", "rws", "piwae", "dreg", "miwae"), iwae)
    found |= {
        "renyi": log_total([0.5 * w + m for w, m in flat]) / 0.5,
        "cubo": log_total([2 * w + m for w, m in flat]) / 2,
        "ciwae": (elbo + iwae) / 2,
        "tvo": sum(width * lower for width, lower, _ in steps),
        "tvo_upper": sum(width * upper for width, _, upper in steps),
    }
    if k > 1:
        left_out = [log_total(per_draw[:i] + per_draw[i + 1 :]) - math.log(k - 1) for i in range(k)]
        found["jackknife"] = k * iwae - (k - 1) * sum(left_out) / k
    return found


def bounds(d: Description) -> None:
    """Every bound has the value of its formula, or refuses what it cannot do."""
    scored = [s.name for s in d.drawn if not s.mark and not _follows(s)]
    upward = [s.name for s in d.drawn] != [s.name for s in d.latents if s not in d.summed]
    cache: list[Slow] = []
    for name, bound in objectives.every().items():
        known = objectives.facts(bound)
        if d.particles < known.min_particles:
            continue
        if d.scaled and not known.linear:
            with _refused(pv.ContractError, f"site '{d.scaled[0].name}' has a scale of its own"):
                weighed(d, **known.weighing)
        elif name == "elbo_kl" and upward:
            with _refused(pv.ContractError, "closed-form KL"):
                weighed(d, **known.weighing)
        elif name == "dreg" and scored:
            with _refused(ValueError, "is drawn without reparameterisation"):
                bound(weighed(d, **known.weighing)[-1])
        elif name in ("dreg", "piwae") and d.listed:
            with _refused(ValueError, "enumerate"):
                bound(weighed(d, **known.weighing)[-1])
        else:
            _value(d, name, bound, cache)


def _follows(site) -> bool:
    return FAMILIES[site.family].moved or site.family in fuzzing.IMPLICIT


def _value(d: Description, name: str, bound, cache: list[Slow]) -> None:
    try:
        model, guide, batch, particles = weighed(d, **objectives.facts(bound).weighing)
    except pv.ContractError as error:
        _insist(name == "stl" and d.listed and "a density for each value of an enumerated site" in str(error), error)
        return None
    if not cache or not all(map(torch.equal, cache[0].values.values(), particles.values.values())):
        cache[:] = [Slow(d, model, guide, batch, dict(particles.values))]
    (slow,) = cache
    if name in ("beta_elbo", "free_bits", "elbo_kl"):
        return _parts(d, name, bound, particles, slow)
    found = bound(particles)
    assert found.shape == (d.rows,), name
    for b, wanted in enumerate(_slowly_bounded(d, slow)):
        assert_near(found[b], torch.tensor(wanted[name], dtype=found.dtype), d, f"{name} of datum {b}", loose=10)
    return None


def _slowly_bounded(d: Description, slow: Slow) -> list[dict[str, float]]:
    """Return the bounds of each datum."""
    log_w, mass = (t.detach().double().reshape(-1, d.particles, d.rows) for t in (slow.log_w, _mass(d, slow)))
    return [slow_bounds(log_w[..., b].tolist(), mass[..., b].tolist()) for b in range(d.rows)]


def _mass(d: Description, slow: Slow) -> Tensor:
    """Return the log masses of listed values, with all axes."""
    return sum((slow.densities[1][s.name] for s in d.listed), start=torch.zeros_like(slow.log_w))


def _parts(d: Description, name: str, bound, particles: pv.Particles, slow: Slow) -> None:
    """The ELBO in parts is the ELBO again; a floor lowers it."""
    try:
        found = bound(particles)
    except ValueError as error:
        _insist(d.summed and "hang together through" in str(error), error)
        return
    whole = objectives.elbo(particles).detach()
    if name == "beta_elbo":
        assert_near(found, whole, d, name, loose=10)
    elif name == "free_bits":
        assert (found <= whole + 1e-3 * (1 + whole.abs())).all()
    elif not particles.kl:
        assert_near(found, whole, d, name, loose=10)
    assert found.isfinite().all()


# Gradients.


def gradients(d: Description) -> None:
    """Gradients of `elbo`, `iwae`, `stl` and `dreg` are those of the loops at the same noise."""
    for name, surrogate in SURROGATES.items():
        if any(site.family in fuzzing.IMPLICIT for site in d.drawn):  # whose noise cannot be read off a draw
            return
        bound = objectives.every()[name]
        if d.scaled and not bound.facts.linear:
            continue
        if any(not FAMILIES[s.family].moved for s in d.drawn) and name in ("stl", "dreg"):
            continue
        if name == "dreg" and any(
            where == "guide" for where, *_ in d.terms
        ):  # with a factor q is not what is drawn from
            continue
        model, guide, batch, particles = weighed(d, **bound.facts.weighing)
        parameters = {f"{p.role}.{n}": w for p in (model, guide) for n, w in p.weights.items()}
        found = torch.autograd.grad(bound(particles).sum(), [*parameters.values()], materialize_grads=True)
        wanted_of = surrogate(d, model, guide, batch, dict(particles.values))
        wanted = torch.autograd.grad(wanted_of, [*parameters.values()], materialize_grads=True)
        for parameter, ours, theirs in zip(parameters, found, wanted, strict=True):
            assert_near(ours, theirs, d, f"gradient of {name} in {parameter}", loose=100)


def _scored(d: Description, slow: Slow) -> Tensor:
    """Return zeros with the gradient of the log densities of what is drawn without a path."""
    sites = [s for s in d.drawn if not s.mark and not FAMILIES[s.family].moved]
    of_sites = (slow.densities[1][s.name] / s.scale for s in sites)  # a scale is the bound's, not the draws'
    scored = sum(of_sites, start=torch.zeros_like(slow.log_w))
    return scored - scored.detach()


def _elbo_surrogate(d, *programs) -> Tensor:
    slow = Slow(d, *programs, follow=True)
    signal = slow.log_w.detach() + 1  # one more cancels the gradient of -log q in log w
    return (_mass(d, slow).exp() * (slow.log_w + signal * _scored(d, slow))).sum() / d.particles


def _iwae_surrogate(d, *programs) -> Tensor:
    slow = Slow(d, *programs, follow=True)
    bound = (slow.log_w + _mass(d, slow)).reshape(-1, d.rows).logsumexp(0) - math.log(d.particles)
    for site in d.drawn:
        if not site.mark and not FAMILIES[site.family].moved:
            value, score = slow.values[site.name], slow.densities[1][site.name]
            axes = value.shape[: value.dim() - len(fuzzing.event(site))]
            of_draws = [
                score.shape[-i] != 1 and axes[-i] == 1 if i <= len(axes) else True for i in range(1, score.dim() + 1)
            ]
            for i in range(3, score.dim() + 1):  # a draw for several listed values is one draw
                score = score.narrow(-i, 0, 1) if of_draws[i - 1] else score
            score = score.reshape(-1, d.rows).sum(0)
            bound = bound + bound.detach() * (score - score.detach())
    return bound.sum()


def _stl_surrogate(d, *programs) -> Tensor:
    return Slow(d, *programs, follow=True, stopped=True).log_w.sum() / d.particles


def _dreg_surrogate(d, *programs) -> Tensor:
    """The model learns from normalised weights, the guide through its draws from their squares."""
    given, followed = Slow(d, *programs), Slow(d, *programs, follow=True, stopped=True)
    v = given.log_w.detach().softmax(-2)
    of_model = (v * sum(given.densities[0].values())).sum()
    model, guide, batch, values = programs
    held = pair(d)[0].requires_grad_(False)
    held.load_state_dict(model.state_dict())
    followed = Slow(d, held, guide, batch, values, follow=True, stopped=True)
    return of_model + (v.square() * followed.log_w).sum()


SURROGATES = {"elbo": _elbo_surrogate, "iwae": _iwae_surrogate, "stl": _stl_surrogate, "dreg": _dreg_surrogate}


# Evaluation.


def evaluation(d: Description) -> None:
    """`pv.evaluate` gives the loops' estimate at its own draws, whatever the batches, chunks and order."""
    model, guide = pair(d)
    batch = data_of(d)
    options = {"particles": d.particles, "seed": d.seed, "compile": False, "progress": False}
    if d.scaled:
        with _refused(pv.ContractError, f"site '{d.scaled[0].name}' has a scale of its own"):
            pv.evaluate(model, guide, batch, **options)
        return
    if any(s.family == "Poisson" for s in d.drawn):  # draws that cannot be given to data one by one: evaluate says so
        return
    with unmoved(model, guide), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.evaluate(model, guide, batch, **options)
        order = torch.randperm(d.rows, generator=torch.Generator().manual_seed(d.seed))
        cut = {"batch_size": 1 + d.seed % 4, "chunk": 1 + d.seed % 3}
        again = pv.evaluate(model, guide, tuple(part[order] for part in batch), **options, **cut)
    keys = told_apart(datum_keys(batch), Counter(), d.seed)
    with torch.no_grad():
        rule = Keyed(keys, torch.arange(d.particles).expand(d.rows, -1))
        values = weigh(model, guide, batch, d.particles, draw=rule).values
    wanted = _slowly_bounded(d, Slow(d, model, guide, batch, dict(values)))
    for name, column in (("iwae", found.log_px), ("elbo", found.elbo)):
        assert_near(column, torch.tensor([w[name] for w in wanted], dtype=column.dtype), d, name, loose=10)
    if len(set(datum_keys(batch).tolist())) == d.rows:  # equal data are told apart by their order
        assert_near(again.log_px, found.log_px[order], d, "in other batches", loose=10)


# Training.


def training(d: Description) -> None:
    """A right pair is trained by each objective that can, and refused with a reason by the others."""
    name = [*objectives.every(), *objectives.estimators()][d.seed % 33]
    model, guide = pair(d)
    batch = data_of(d)
    if name in objectives.estimators() and batch[0].dim() == 1:
        name = "elbo"  # estimators with networks of x take vectors
    made = applicability.objective_for(name, SimpleNamespace(model=model, guide=guide, data=lambda: batch))
    made = made.to(d.dtype) if isinstance(made, torch.nn.Module) else made
    before = [p.clone() for p in (*model.parameters(), *guide.parameters())]
    of_guide = [*guide.parameters()]
    optimizer = torch.optim.SGD(of_guide, lr=1e-3) if of_guide and objectives.facts(made).upper else None
    options = {"epochs": 1, "batch_size": 4, "compile": False, "progress": False, "optimizer": optimizer}
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = pv.fit(model, guide, batch, made, max(d.particles, 2), **options)
        except ValueError as error:
            _insist(str(error).split(":")[0].split(" ")[0] in EXPLAINED, error)
            after = [*model.parameters(), *guide.parameters()]
            assert all(map(torch.equal, before, after)), f"{name} refused, and changed parameters"
        else:
            assert math.isfinite(fit.history["train_bound"][0]), name
            assert all(p.isfinite().all() for p in (*model.parameters(), *guide.parameters())), name
    assert torch.equal(torch.get_rng_state(), state), name


EXPLAINED = {"objective", "site", "guide", "model,", "parameter", "particles", "optimizer"}


LAWS = {law.__name__: law for law in (weights, bounds, gradients, evaluation, training)}
# Descriptions for each, and how many of them the suite takes.
OPTIONS = {"gradients": {"double": True, "most": 4, "implicit": False}, "evaluation": {"double": True}}
EXAMPLES = {"weights": 30, "bounds": 15, "gradients": 15, "evaluation": 7, "training": 15}
