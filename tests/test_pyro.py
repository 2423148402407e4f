"""Against Pyro at the same seed, and the defects of its own parts that this library must not inherit."""

import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from small import Bits, BitsGuide, PenalisedBits

import ppl_vae as pv
from ppl_vae.batches import as_batch

# Pyro gives both programs the same arguments, rows of the data set included.
PAIRS = [names for names in pairs.with_every_program() if "index" not in pairs.make(*names).arguments]
VECTORISED = {"vectorize_particles": True, "max_plate_nesting": 1}


def value_and_gradients(loss, model, guide, x):
    """Return a Pyro loss and its gradients, seeded."""
    modules = (model, guide)
    for module in modules:
        module.zero_grad()
    # Pyro's classes call backward only if they meet param sites.
    programs = [pv.registered(m) if list(m.parameters()) else m for m in modules]
    torch.manual_seed(7)
    value = loss.loss_and_grads(*programs, *as_batch(x))
    pyro.clear_param_store()
    return value, {(i, n): p.grad.clone() for i, m in enumerate(modules) for n, p in m.named_parameters()}


def assert_same(ours, theirs, model, guide, x):
    value, gradients = value_and_gradients(ours, model, guide, x)
    wanted, wanted_gradients = value_and_gradients(theirs, model, guide, x)
    assert value == pytest.approx(wanted, rel=1e-12)
    for name, gradient in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_elbo_is_trace_elbo(names, particles):
    pair = pairs.make(*names)
    pair.model.eval(), pair.guide.eval()  # running means, as of a codebook, would move between the two
    theirs = (TraceEnum_ELBO if sums_exactly(pair) else Trace_ELBO)(num_particles=particles, **VECTORISED)
    assert_same(pv.ELBO(pv.objectives.elbo, particles), theirs, pair.model, pair.guide, pair.data())


def sums_exactly(pair):
    """Tell whether either program enumerates a latent, for which Pyro has an ELBO of its own."""
    particles = pv.weigh(pair.model, pair.guide, pair.data())
    return bool(particles.summed or particles.enumerated)


def is_reparameterised(names):
    pair = pairs.make(*names)
    particles = pv.weigh(pair.model, pair.guide, pair.data())
    # Pyro has a penalty inside the logarithm of the mean, and no importance weights of enumerated values.
    return bool(particles.values) and not (particles.score or particles.enumerated or particles.penalties)


@pytest.mark.parametrize("particles", [2, 5])
@pytest.mark.parametrize("names", [n for n in PAIRS if is_reparameterised(n)], ids="-".join)
def test_iwae_is_renyi_elbo_with_alpha_zero(names, particles):
    pair = pairs.make(*names)
    theirs = RenyiELBO(alpha=0, num_particles=particles, **VECTORISED)
    assert_same(pv.ELBO(pv.objectives.iwae, particles), theirs, pair.model, pair.guide, pair.data())


@pytest.mark.parametrize("particles", [1, 5])
def test_elbo_of_discrete_latents_is_trace_elbo(particles):
    x = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    theirs = Trace_ELBO(num_particles=particles, **VECTORISED)
    assert_same(pv.ELBO(pv.objectives.elbo, particles), theirs, Bits(), BitsGuide(), x)


class Subsampled(torch.nn.Module):
    """A normal model whose plate is a batch out of ``size`` data, as in Pyro's Lightning example."""

    def __init__(self, size, role):
        super().__init__()
        self.size, self.role = size, role
        self.loc = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", self.size, len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, torch.ones_like(self.loc)))
            if self.role == "model":
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_the_plates_scale_stays_outside_the_weights():
    x = torch.randn(4, dtype=torch.float64)
    sub = [Subsampled(40, role) for role in ("model", "guide")]
    full = [Subsampled(4, role) for role in ("model", "guide")]
    torch.manual_seed(3)
    drawn = pv.weigh(*sub, x, particles=5)
    with_scale = pv.objectives.iwae(drawn)
    values = drawn.values["z"]
    by_hand = dist.Normal(values, 1.0).log_prob(x)  # prior and guide agree and cancel
    assert drawn.scale == 10
    torch.testing.assert_close(with_scale, by_hand.logsumexp(0) - torch.tensor(5.0).double().log())
    assert pv.weigh(*full, x).scale == 1


def test_pv_elbo_scales_its_total_as_trace_elbo():
    x = torch.randn(4, dtype=torch.float64)
    ours, theirs = pv.ELBO(pv.objectives.elbo, 5), Trace_ELBO(num_particles=5, **VECTORISED)
    assert_same(ours, theirs, Subsampled(40, "model"), Subsampled(40, "guide"), x)


def annealed(pair, beta):
    def around(program):
        def scaled(x):
            with poutine.scale(scale=beta):
                return program(x)

        return scaled

    return around(pair.model), around(pair.guide)


def test_a_scale_of_its_own_is_for_linear_bounds_only():
    pair = pairs.make("vae", "normal")
    x = pair.data()
    with pytest.raises(pv.ContractError, match=r"site 'z' has a scale of its own.*linear.*such as elbo"):
        pv.weigh(*annealed(pair, 0.5), x, particles=2)
    with pytest.raises(pv.ContractError, match="scale of its own"):
        pv.ELBO(pv.objectives.iwae, 2).loss(*annealed(pair, 0.5), x)
    torch.manual_seed(0)
    half = pv.ELBO(pv.objectives.elbo, 2).loss(*annealed(pair, 0.5), x)
    torch.manual_seed(0)
    assert half == pytest.approx(0.5 * pv.ELBO(pv.objectives.elbo, 2).loss(pair.model, pair.guide, x))


@pytest.mark.parametrize("bound", pv.objectives.every().values(), ids=lambda b: b.facts.name)
def test_pv_elbo_works_as_a_module_and_without_gradients(bound):
    pair = pairs.make("vae", "normal")
    x = pair.data()
    loss = pv.ELBO(bound, num_particles=3)(pair.model, pair.guide)
    assert len(list(loss.parameters())) == len(pair.parameters())
    with torch.no_grad():
        assert loss(x).isfinite()


def test_pv_elbo_trains_registered_programs_under_svi():
    pair = pairs.make("vae", "normal")
    x = pair.data(20)
    svi = SVI(
        pv.registered(pair.model),
        pv.registered(pair.guide),
        pyro.optim.Adam({"lr": 1e-2}),
        pv.ELBO(pv.objectives.iwae, num_particles=5),
    )
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def bits_and(objective, particles=3, seed=0):
    """Return an SVI over the two bits, whose own parameters come along."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    model, guide = pv.registered(Bits()), pv.registered(BitsGuide())
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pv.ELBO(objective, particles)), objective


BITS = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


def test_pv_elbo_trains_an_estimators_own_parameters_and_advances_its_schedules():
    svi, nvil = bits_and(pv.objectives.NVIL(x_dim=1, hidden=4).double())
    before = [p.detach().clone() for p in nvil.parameters()]
    svi.step(BITS)
    svi.step(BITS)
    assert all(not torch.equal(p, old) for p, old in zip(nvil.parameters(), before, strict=True))
    warm_up = pv.objectives.Scheduled(pv.objectives.beta_elbo, beta=pv.objectives.linear(0.0, 1.0, steps=4))
    svi, _ = bits_and(warm_up)
    for _ in range(3):
        svi.step(BITS)
    assert warm_up.step == 3
    svi.evaluate_loss(BITS)
    assert warm_up.step == 3  # no gradients, no update


def test_as_a_module_pv_elbo_holds_an_estimators_own_parameters():
    rebar = pv.objectives.REBAR().double()
    loss = pv.ELBO(rebar, 2)(Bits(), BitsGuide())
    assert {id(p) for p in rebar.parameters()} <= {id(p) for p in loss.parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    before = rebar.scale.item()
    loss(BITS).backward()
    optimizer.step()
    assert rebar.scale.item() != before


def test_pv_elbo_never_trains_a_model_by_an_upper_bound():
    """One object for two pairs, as a module and under SVI: the model stays, and is said to."""
    loss, before = pv.ELBO(pv.objectives.cubo, 100), Bits().weight
    for _ in range(2):
        model, guide = Bits(), BitsGuide()
        with pytest.warns(UserWarning, match="cubo is an upper bound, which fits the guide alone"):
            loss(model, guide)(BITS).backward()
        assert guide.logits.grad.abs().max() > 0
        assert model.weight.grad is None
        assert model.weight.requires_grad
        SVI(pv.registered(model), pv.registered(guide), pyro.optim.Adam({"lr": 0.1}), loss).step(BITS)
        assert torch.equal(model.weight, before)
    pyro.clear_param_store()


def test_as_a_module_pv_elbo_leaves_pyros_store_alone():
    pyro.clear_param_store()
    pv.ELBO(pv.objectives.REBAR().double(), 2)(Bits(), BitsGuide())(BITS).backward()
    assert not list(pyro.get_param_store())


def test_pv_elbo_refuses_a_bound_that_forgets_the_score():
    def forgetful(particles):
        return particles.log_mean(particles.log_w)

    with pytest.raises(ValueError, match="site 'z' without reparameterisation, and this bound does not use"):
        pv.ELBO(forgetful, 3)(Bits(), BitsGuide())(BITS)


@pytest.mark.parametrize("bound", [pv.objectives.elbo, pv.objectives.cubo], ids=lambda b: b.facts.name)
def test_the_loss_is_what_goes_down(bound):
    """Minus a lower bound or plus an upper one, less penalties: minus the surrogate's value."""
    model, guide = PenalisedBits().requires_grad_(False), BitsGuide()
    torch.manual_seed(3)
    loss = pv.ELBO(bound, 100)(model, guide)(BITS)
    torch.manual_seed(3)
    found = pv.estimation.estimate(bound, model, guide, BITS, 100)
    sign = 1 if bound.facts.upper else -1
    wanted = sign * found.value - found.penalties["penalty_z"]
    torch.testing.assert_close(loss.detach(), wanted.sum())


def test_a_plain_module_under_svi_trains_nothing_without_registered():
    pair = pairs.make("vae", "normal")
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(pair.data())
    with pytest.warns(UserWarning, match=r"wrap programs in pv.registered"):
        SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), pv.ELBO(pv.objectives.elbo)).step(pair.data())
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())


def test_registered_refuses_a_program_without_modules():
    def model(x):
        pyro.param("loc", torch.zeros(()))

    with pytest.raises(TypeError, match="model has no modules"):
        pv.registered(model)


def test_registered_instances_never_share_tensors():
    first, second = pairs.make("vae", "normal"), pairs.make("vae", "normal")
    x = first.data()
    for pair in (first, second):
        before = {name: p.detach().clone() for name, p in pair.parameters().items()}
        svi = SVI(pv.registered(pair.model), pv.registered(pair.guide), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        svi.step(x)
        assert not any(torch.equal(p, before[name]) for name, p in pair.parameters().items())


class Penalised(torch.nn.Module):
    """A normal model with one penalty, and one factor that counts."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, torch.ones_like(self.loc)))
            pyro.factor("penalty_size", -(z**2))
            pyro.factor("evidence", -0.5 * z**2)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class PenalisedGuide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, torch.ones_like(self.loc)))
            pyro.factor("penalty_guide", z**4, has_rsample=True)


def test_penalties_train_and_are_reported_but_are_no_likelihood():
    model, guide, x = Penalised(), PenalisedGuide(), torch.randn(4, dtype=torch.float64)
    drawn = pv.weigh(model, guide, x, particles=3)
    z = drawn.values["z"]
    torch.testing.assert_close(drawn.penalties["penalty_size"], -(z**2))
    torch.testing.assert_close(drawn.penalties["penalty_guide"], -(z**4))
    by_hand = dist.Normal(model.loc, 1.0).log_prob(z) - 0.5 * z**2 + dist.Normal(z, 1.0).log_prob(x)
    torch.testing.assert_close(drawn.log_w, by_hand - dist.Normal(guide.loc, 1.0).log_prob(z))
    history = pv.fit(model, guide, x, epochs=2).history
    assert len(history["penalty_size"]) == len(history["penalty_guide"]) == 2
    assert history["penalty_size"][0] < 0


def test_a_step_moves_up_the_penalties():
    """With the penalty, the gradient that a step takes is that of Trace_ELBO, which counts the factor."""
    x = torch.randn(4, dtype=torch.float64)
    model, guide = Penalised(), PenalisedGuide()
    step = pv.svi_step(model, guide, optimizer=torch.optim.SGD([model.loc, guide.loc], lr=0.0))
    step.prepare(x)
    torch.manual_seed(7)
    step(x)
    ours = guide.loc.grad.clone()
    _, gradients = value_and_gradients(Trace_ELBO(**VECTORISED), model, guide, x)
    torch.testing.assert_close(ours, gradients[1, "loc"] / len(x))


def test_masks_of_the_batch_leave_data_out():
    pair = pairs.make("vae", "normal")
    x, mask = pair.data(4), torch.tensor([True, False, True, False])

    def masked(x):
        with poutine.mask(mask=mask):
            pair.model(x)

    with torch.no_grad():
        torch.manual_seed(0)
        some = pv.weigh(masked, pair.guide, x, particles=2).log_p["x"]
        torch.manual_seed(0)
        everything = pv.weigh(pair.model, pair.guide, x, particles=2).log_p["x"]
    torch.testing.assert_close(some, everything * mask)


def masked(program, mask):
    """Mask the latent of a program, and nothing else."""
    if mask is None:
        return program

    def run(x):
        with Masking("z", mask):
            return program(x)

    return run


class Masking(poutine.messenger.Messenger):
    """Mask one site."""

    def __init__(self, name, mask):
        super().__init__()
        self.name, self.mask = name, mask

    def _pyro_sample(self, msg):
        if msg["name"] == self.name:
            msg["mask"] = self.mask


SOME = torch.tensor([True, False, True])


def test_masked_distributions_have_no_closed_form():
    """Pyro's covers what either masks, and the difference of the log densities does not."""

    class Hidden(poutine.messenger.Messenger):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def _pyro_sample(self, msg):
            if msg["name"] == "z":
                msg["fn"] = msg["fn"].mask(self.mask)

    pair = pairs.make("vae", "normal")
    with pyro.validation_enabled(False):
        drawn = pv.weigh(Hidden(SOME)(pair.model), Hidden(~SOME)(pair.guide), pair.data(3), particles=5, kl=True)
    assert not drawn.kl
    torch.testing.assert_close(pv.objectives.elbo_kl(drawn), pv.objectives.elbo(drawn))


@pytest.mark.parametrize("masks", [(SOME, None), (None, SOME), (SOME, SOME), (SOME, ~SOME), (False, None)])
def test_closed_forms_heed_the_masks_of_both_programs(masks):
    """Where only one is masked there is no divergence left to know in closed form."""
    pair = pairs.make("vae", "normal")
    programs, x = [masked(p, m) for p, m in zip((pair.model, pair.guide), masks, strict=True)], pair.data(3)
    torch.manual_seed(0)
    drawn = pv.weigh(*programs, x, particles=40_000, kl=True)
    _, divergences = pv.objectives.parts(drawn)
    odds.assert_mean(divergences["z"], drawn.kl["z"].mean(0))
    torch.testing.assert_close(
        pv.objectives.elbo_kl(drawn) - pv.objectives.elbo(drawn), (divergences["z"] - drawn.kl["z"]).mean(0)
    )


def test_pv_elbo_maximises_penalties_as_trace_elbo_does():
    x = torch.randn(4, dtype=torch.float64)
    theirs = Trace_ELBO(num_particles=3, **VECTORISED)
    assert_same(pv.ELBO(pv.objectives.elbo, 3), theirs, Penalised(), PenalisedGuide(), x)


def test_vimco_trains_the_guide_of_a_belief_network_that_renyi_elbo_leaves_untouched():
    """RenyiELBO gives a discrete guide a gradient of exactly zero at alpha = 0, so nothing would move."""
    torch.manual_seed(0)
    pair = pairs.make("sigmoid_belief_network", "bernoulli")
    x = pair.data(20)
    _, theirs = value_and_gradients(RenyiELBO(alpha=0, num_particles=5, **VECTORISED), pair.model, pair.guide, x)
    _, ours = value_and_gradients(pv.ELBO(pv.objectives.vimco, 5), pair.model, pair.guide, x)
    assert all(gradient.abs().max() == 0 for (program, _), gradient in theirs.items() if program == 1)
    assert all(gradient.abs().max() > 0 for (program, _), gradient in ours.items() if program == 1)
    before = pv.evaluate(pair.model, pair.guide, x, particles=200)
    for parameter in pair.model.parameters():
        parameter.requires_grad_(False)
    pv.fit(pair.model, pair.guide, x, objective=pv.objectives.vimco, particles=5, epochs=150, batch_size=20)
    after = pv.evaluate(pair.model, pair.guide, x, particles=200)
    gaps = [float((e.log_px - e.elbo).mean()) for e in (before, after)]
    assert gaps[1] < 0.7 * gaps[0]
