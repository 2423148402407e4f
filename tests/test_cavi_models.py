"""Laws of coordinate ascent, over every program of the zoo with latents that all data share.

The bound and its slopes are held to draws from the posterior that was found, which share no code with the updates: a
trace of the program, torch's densities, and reparameterised gradients.
"""

import copy
import pickle

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import SHARED, drawn
from pyro import poutine

import ppl_vae as pv
from ppl_vae import conjugate_priors, densities
from ppl_vae.families import Dirichlet, Gaussian, NormalWishart

F64 = torch.float64
DRAWS = 2000


@pytest.fixture(params=SHARED)
def name(request):
    return request.param


def run(name, **options):
    """Return a model, its own data, and what was found."""
    model, batch = drawn(name)
    return model, batch, pv.cavi(model, batch, **{"iterations": 3, "tol": 0, **options})


# q, with parameters for each draw.


def parameters(factor, eta):
    """Return a factor's parameters as torch has them."""
    if isinstance(factor.family, Gaussian):
        q = factor.family.distribution(eta)
        return {"loc": q.loc, "tril": q.scale_tril}
    if isinstance(factor.family, NormalWishart):
        return {"kappa": eta[0], "loc": eta[1], "df": eta[2], "tril": torch.linalg.cholesky(torch.linalg.inv(eta[3]))}
    if isinstance(factor.family, Dirichlet):
        return {"alpha": eta[0] + 1}
    return {"shape": eta[0] + 1, "rate": -eta[1][..., 0, 0]}


def draw(factor, held):
    """Return values of the sites, and their log density for each draw, with paths through the parameters."""
    if isinstance(factor.family, Gaussian):
        q = dist.MultivariateNormal(held["loc"], scale_tril=held["tril"].tril())
        values = (q.rsample(),)
        log_q = q.log_prob(*values)
    elif isinstance(factor.family, NormalWishart):
        wishart = conjugate_priors.Wishart(held["df"], scale_tril=held["tril"].tril())
        precision = wishart.rsample()
        normal = dist.MultivariateNormal(held["loc"], precision_matrix=held["kappa"][..., None, None] * precision)
        values = normal.rsample(), precision
        log_q = normal.log_prob(values[0]) + wishart.log_prob(precision)
    elif isinstance(factor.family, Dirichlet):
        q = dist.Dirichlet(held["alpha"])
        values = (q.rsample(),)
        log_q = q.log_prob(*values)
    else:
        q = dist.Gamma(held["shape"], held["rate"])
        values = (q.rsample(),)
        log_q, values = q.log_prob(*values), (values[0][..., None, None],)
    return factor.unpack(values), log_q.reshape(DRAWS, -1).sum(-1)


def bounds(model, batch, found, held):
    """Return one draw of the bound for each row of the parameters."""
    values, log_q = {}, 0
    sites = dict(poutine.trace(model).get_trace(*batch).nodes)
    for name, factor in found.factorised.factors.items():
        drawn, log = draw(factor, held[name])
        values |= dict(zip(factor.sites, drawn, strict=True))
        log_q = log_q + log
    # A plate of draws stands left of the programs' own.
    for site, value in values.items():
        plated = any(frame.vectorized for frame in sites[site]["cond_indep_stack"])
        values[site] = value if plated else value.unsqueeze(1)
    if not found.discrete:
        return log_joint(model, batch, values) - log_q
    ((y, r),) = found.discrete.items()
    total = -log_q
    for k in range(r.shape[1]):
        chosen = {y: torch.full((1, len(r)), k)}
        total = (
            total
            + log_joint(model, batch, values | chosen, (y, "x"), r[:, k])
            - torch.special.entr(r[:, k]).neg().sum()
        )
    return total + log_joint(model, batch, values | chosen, tuple(values))


def log_joint(model, batch, values, sites=None, weights=1.0):
    """Return the summed log density for each draw, data by their weights."""
    total = 0
    with pyro.plate("draws", DRAWS, dim=-2), pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*batch)
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name != "draws" and (sites is None or name in sites):
            local = any(frame.name == "data" for frame in site["cond_indep_stack"])
            total = total + (site["log_prob"] * (weights if local else 1.0)).sum(-1)
    return total


def held_by(found, grow=1.0):
    """Return the parameters of q, a leaf for each draw."""
    each = {}
    for name, factor in found.factorised.factors.items():
        own = parameters(factor, found.factorised.eta[name])
        each[name] = {n: (grow * p).expand(DRAWS, *p.shape).clone().requires_grad_() for n, p in own.items()}
    return each


def test_there_are_programs():
    assert len(SHARED) >= 7


def test_the_bound_never_falls(name):
    model, batch = drawn(name)
    for start in (None, pv.starts.random) if hasattr(model, "concentration") else (None,):
        found = pv.cavi(model, batch, iterations=12, tol=0, start=start)
        assert torch.tensor(found.history["elbo"], dtype=F64).diff().min() >= -1e-10
        assert len(found.history["elbo"]) == 13


def test_the_bound_is_a_mean_over_draws(name):
    """At any place, not at its maximum alone."""
    model, batch, found = run(name, iterations=1)
    torch.manual_seed(3)
    draws = bounds(model, batch, found, held_by(found)).detach()
    assert draws.shape == (DRAWS,)
    odds.assert_mean(draws, torch.tensor(found.elbo, dtype=F64))


def slopes(model, batch, found, grow=1.0):
    """Return the slope of the bound in each parameter of q, one for each draw, ``(draws, numbers)``."""
    torch.manual_seed(4)
    held = held_by(found, grow)
    leaves = [p for own in held.values() for p in own.values()]
    gradients = torch.autograd.grad(bounds(model, batch, found, held).sum(), leaves)
    return torch.cat([g.reshape(DRAWS, -1) for g in gradients], 1)


def test_at_its_end_the_bound_has_no_slope(name):
    model, batch, found = run(name, iterations=2000, tol=1e-13)
    assert found.converged
    odds.assert_mean(slopes(model, batch, found), torch.zeros((), dtype=F64))
    with pytest.raises(AssertionError):  # and elsewhere it has
        odds.assert_mean(slopes(model, batch, found, grow=1.3), torch.zeros((), dtype=F64))


def test_probabilities_are_those(name):
    model, batch, found = run(name)
    for table in found.discrete.values():
        assert table.shape[0] == len(batch[0])
        torch.testing.assert_close(table.sum(1), torch.ones(len(table), dtype=F64))
        assert (table >= 0).all()
        torch.testing.assert_close(found.predict(batch), found.responsibilities, rtol=0, atol=1e-12)
    assert bool(found.discrete) == hasattr(model, "concentration")


def test_restarts_keep_the_best(name):
    model, batch = drawn(name)
    options = {"iterations": 2, "tol": 0, "start": pv.starts.random if hasattr(model, "concentration") else None}
    found = pv.cavi(model, batch, restarts=3, **options)
    alone = [pv.cavi(model, batch, seed=seed, **options) for seed in range(3)]
    assert found.runs == tuple(one.history["elbo"][-1] for one in alone)
    best = max(alone, key=lambda one: one.elbo)
    assert found.history == best.history
    torch.testing.assert_close(found.sample(3), best.sample(3), rtol=0, atol=0)
    assert found.factorised.elbo().item() == pytest.approx(found.elbo, abs=1e-9)
    assert "the best of 3 restarts" in str(found)


def test_nothing_of_the_callers_moves(name):
    model, batch = drawn(name)
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = pv.cavi(model, batch, iterations=3)
    found.sample(2)
    found.log_density(batch, draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert set(model.state_dict()) == set(before)
    assert not pyro.get_param_store()._params


def test_a_seed_gives_the_same(name):
    _, _, one = run(name, seed=5)
    torch.randn(3)
    _, _, other = run(name, seed=5)
    assert one.history == other.history


def test_it_can_be_kept_and_told(name, tmp_path):
    model, batch, found = run(name)
    back = pickle.loads(pickle.dumps(found))
    assert back.history == found.history
    assert str(back) == str(found)
    torch.testing.assert_close(back.sample(3), found.sample(3), rtol=0, atol=0)
    assert str(found).startswith(f"CAVI on {type(model).__name__}: ELBO {found.history['elbo'][-1]:.4f} nats per datum")
    assert f"N = {len(batch[0])}" in str(found)
    inference = found.to_arviz(draws=20)
    draws = found.sample(20)
    for site in found.q:
        kept = torch.tensor(inference["posterior"][site].values)
        torch.testing.assert_close(kept[0], draws[site], rtol=0, atol=0)
    assert inference["constant_data"]["elbo"].values.tolist() == found.history["elbo"]
    if found.discrete:
        kept = torch.tensor(inference["constant_data"]["responsibilities"].values)
        torch.testing.assert_close(kept, found.responsibilities, rtol=0, atol=0)


def test_rows_at_a_time_are_nobodys_business(name, monkeypatch):
    _, _, whole = run(name)
    for numbers in (1, 30):
        monkeypatch.setattr(densities, "IN_CACHE", numbers)
        _, _, cut = run(name)
        torch.testing.assert_close(cut.history, whole.history, rtol=0, atol=1e-11)


def test_draws_are_those_of_the_marginals(name):
    _, _, found = run(name)
    draws = found.sample(DRAWS, seed=1)
    assert set(draws) == set(found.q)
    for site, q in found.q.items():
        assert draws[site].shape[1:] == q.batch_shape + q.event_shape
        odds.assert_mean(draws[site], q.mean)
        again = q.sample((DRAWS,))
        error = ((draws[site].var(0) + again.var(0)) / DRAWS).sqrt()
        odds.assert_agree(draws[site].mean(0) - again.mean(0), error, torch.zeros((), dtype=F64))


def test_minibatches_of_all_data_are_coordinate_ascent(name):
    model, batch = drawn(name)
    whole = pv.cavi(model, batch, iterations=4, tol=0)
    at_once = pv.cavi(model, batch, iterations=4, tol=0, batch_size=len(batch[0]), rate=lambda step: 1.0)
    torch.testing.assert_close(at_once.history, whole.history, rtol=0, atol=1e-9)


def test_pieces_of_the_data_stand_for_all(name):
    """Each datum twice, in halves that are alike, is all data twice."""
    model, batch = drawn(name)
    part = pv.cavi(model, batch, iterations=3, tol=0).factorised
    twice = tuple(torch.cat([tensor, tensor]) for tensor in batch)
    whole, half = part.on(twice), part.on(batch, scale=2.0)
    for one in (whole, half):
        one.update_local()
        one.update_global()
    assert whole.elbo().item() == pytest.approx(half.elbo().item(), abs=1e-9)


def test_one_datum_is_enough(name):
    model, batch = drawn(name)
    options = {"start": pv.starts.random} if hasattr(model, "concentration") else {}
    found = pv.cavi(model, tuple(part[:1] for part in batch), iterations=5, tol=0, **options)
    assert torch.tensor(found.history["elbo"], dtype=F64).diff().min() >= -1e-10


def test_single_precision_is_near(name):
    model, batch = drawn(name)
    wide = pv.cavi(model, batch, iterations=5, tol=0)
    narrow = pv.cavi(model.float(), tuple(part.float() for part in batch), iterations=5, tol=0)
    assert narrow.history["elbo"][-1] == pytest.approx(wide.history["elbo"][-1], abs=1e-3)
    for site, q in narrow.q.items():
        assert q.mean.dtype == torch.float32
        torch.testing.assert_close(q.mean.double(), wide.q[site].mean, rtol=1e-2, atol=1e-2)
