"""The loop: what it keeps, what it leaves alone, what it accepts, and how it fails."""

import copy
from functools import partial

import pairs
import pytest
import torch
from pyro.infer import Trace_ELBO
from small import Bits, BitsGuide
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae as pv
from ppl_vae import runs
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE
from ppl_vae.programs import forked_random_state


@pytest.fixture
def digits():
    return pv.data.load("digits", binarize="static")


@pytest.fixture
def pair():
    return pairs.make("vae", "normal")


class Scripted:
    """A step whose validation bounds are given, with one parameter that counts epochs."""

    def __init__(self, bounds):
        self.bounds = bounds
        self.epochs_done = torch.tensor(0)

    def __call__(self, x):
        self.epochs_done = self.epochs_done + 1
        return pv.Info(bound=torch.tensor(-1.0))

    def bound(self, x):
        return torch.full((len(x[0]),), self.bounds[int(self.epochs_done) - 1])

    def state_dict(self):
        return {"epochs_done": self.epochs_done}

    def load_state_dict(self, state):
        self.epochs_done = state["epochs_done"]


def test_the_best_epoch_is_kept_not_the_last():
    step = Scripted([-5.0, -2.0, -4.0])
    result = pv.fit(step=step, data=torch.zeros(4, 1), valid=torch.zeros(4, 1), epochs=3)
    assert result.best == {"epoch": 2, "bound": -2.0}
    assert step.epochs_done == 2
    assert result.history["valid_bound"] == [-5.0, -2.0, -4.0]


def test_without_validation_data_the_last_epoch_is_kept():
    step = Scripted([])
    assert pv.fit(step=step, data=torch.zeros(4, 1), epochs=3).best["epoch"] == 3
    assert step.epochs_done == 3


def test_the_restored_parameters_are_those_evaluated(digits):
    """Overfit until the validation bound falls; the bound of the programs afterwards is the best one."""
    model, guide = pairs.digits_vae()
    small = (digits.train[:40], digits.valid, digits.test)
    data = pv.data.Splits(*small, digits.info)
    result = pv.fit(model, guide, data, epochs=60, batch_size=10, optimizer=partial(torch.optim.Adam, lr=1e-2))
    assert result.best["epoch"] < 60
    assert result.best["bound"] > result.history["valid_bound"][-1]
    with forked_random_state(0), torch.no_grad():
        batches = digits.valid.split(10)
        now = torch.cat([pv.objectives.elbo(pv.weigh(model, guide, x)) for x in batches])
    assert now.double().mean().item() == pytest.approx(result.best["bound"], rel=1e-6)
    # and evaluate speaks of the same parameters: its ELBO agrees within Monte Carlo error
    assert pv.evaluate(model, guide, digits.valid, particles=100).elbo.mean().item() == pytest.approx(
        result.best["bound"], abs=0.5
    )


def test_training_bound_is_a_sum_over_data(pair):
    """The mean over an epoch weighs the short last batch by its rows."""

    class PerRow(Scripted):
        def __call__(self, x):
            return pv.Info(bound=x[0].mean())

    x = torch.arange(5.0).unsqueeze(-1)
    result = pv.fit(step=PerRow([]), data=x, epochs=1, batch_size=2)
    assert result.history["train_bound"] == [pytest.approx(2.0)]


@pytest.mark.parametrize("bound", pv.objectives.every().values(), ids=pv.objectives.every())
def test_training_raises_the_bound(digits, bound):
    model, guide = pairs.digits_vae()
    result = pv.fit(model, guide, digits, objective=bound, particles=3, epochs=8)
    first, last = result.history["valid_bound"][0], result.history["valid_bound"][-1]
    if bound.facts.upper and "unbiased" in bound.facts.exempt:
        # Its gradient is that of the limit of many particles; with few the estimate may rise as the guide improves.
        assert result.best["bound"] == min(result.history["valid_bound"])
        assert last != first
    elif bound.facts.upper:  # trains the guide alone, which lowers it
        assert result.best["bound"] == min(result.history["valid_bound"]) < first
    else:
        assert last > first + 3
    assert "nats per datum" in str(result)


def test_one_seed_gives_one_result_and_the_callers_state_stays(pair):
    x = pair.data(20)
    results = []
    for seed in (0, 0, 1):
        again = pairs.make("vae", "normal")
        before = torch.get_rng_state()
        pv.fit(again.model, again.guide, x, epochs=2, batch_size=8, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(torch.cat([p.flatten() for p in again.parameters().values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dataset", "loader"])
def test_data_come_in_every_form(pair, kind):
    x = pair.data(10)
    dataset = TensorDataset(x)
    forms = {"tensor": x, "tuple": (x,), "dataset": dataset, "loader": DataLoader(dataset, batch_size=4)}
    result = pv.fit(pair.model, pair.guide, forms[kind], valid=forms[kind], epochs=2, batch_size=4)
    assert len(result.history["valid_bound"]) == 2


def test_dynamic_binarization_draws_every_batch_anew():
    seen = []

    class Watching(Scripted):
        def __call__(self, x):
            seen.append(x[0])
            return pv.Info(bound=torch.tensor(-1.0))

    digits = pv.data.load("digits", binarize="dynamic")
    pv.fit(step=Watching([-1.0] * 2), data=digits._replace(valid=digits.valid[:1]), epochs=2, batch_size=2000)
    first, second = (x.sum(0) for x in seen)
    assert {0.0, 1.0} == set(seen[0].unique().tolist())
    assert not torch.equal(first, second)
    torch.testing.assert_close(first / 1257, digits.train.mean(0), atol=0.1, rtol=0)


def test_a_torch_optimizer_may_be_passed(pair):
    optimizer = torch.optim.SGD(pair.guide.parameters(), lr=1e-3)
    before = [p.clone() for p in pair.model.parameters()]
    pv.fit(pair.model, pair.guide, pair.data(), optimizer=optimizer, epochs=1)
    assert all(torch.equal(p, b) for p, b in zip(pair.model.parameters(), before, strict=True))


def test_a_run_folder_can_be_read_again(pair, tmp_path):
    out = tmp_path / "run"
    result = pv.fit(pair.model, pair.guide, pair.data(10), valid=pair.data(10), epochs=3, out=out)
    assert result.out == out
    assert runs.read_metrics(out) == result.history
    assert runs.read_config(out)["epochs"] == 3
    fresh = pairs.make("vae", "normal")
    state = runs.read_best(out)["state"]["programs"]
    pv.programs.Programs(fresh.model, fresh.guide).load_state_dict(state)
    for name, parameter in fresh.parameters().items():
        assert torch.equal(parameter, pair.parameters()[name])


def test_a_run_folder_is_never_overwritten(pair, tmp_path):
    pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path / "run")
    saved = (tmp_path / "run" / "best.pt").read_bytes()
    with pytest.raises(FileExistsError, match=r"out: .*run exists and is not an empty folder"):
        pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path / "run")
    assert (tmp_path / "run" / "best.pt").read_bytes() == saved


def test_a_refused_pair_leaves_no_folder(pair, tmp_path):
    with pytest.raises(pv.ContractError):
        pv.fit(pair.model, pair.guide, pair.data() + 0.5, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    runs.write_text(path, "before")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.write_atomically(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_checkpoints_are_refused(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        runs.read_best(tmp_path)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this library"):
        runs.read_best(tmp_path)


def test_a_state_that_does_not_fit_changes_nothing(pair):
    programs = pv.programs.Programs(pair.model, pair.guide)
    state = {name: torch.zeros_like(t) for name, t in programs.state_dict().items()}
    last = list(state)[-1]
    state[last] = torch.zeros(99)
    before = {name: t.clone() for name, t in programs.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{last} has shape \(99,\), expected"):
        programs.load_state_dict(state)
    assert all(torch.equal(t, before[name]) for name, t in programs.state_dict().items())


def test_a_bound_that_is_no_number_stops_and_gives_the_best_parameters_back(pair):
    steps = []  # one look at the first batch before training, then two batches an epoch

    def sometimes(particles):
        steps.append(1)
        return pv.objectives.elbo(particles) + (float("nan") if len(steps) > 5 else 0.0)

    with pytest.raises(FloatingPointError, match=r"the train_bound became nan in epoch 3.*best parameters so far"):
        pv.fit(pair.model, pair.guide, pair.data(10), objective=sometimes, epochs=5, batch_size=5)
    assert all(p.isfinite().all() for p in pair.parameters().values())


@pytest.mark.parametrize("verb", [pv.fit, pv.variational_em])
def test_rows_that_are_no_numbers_are_named_beyond_the_first_batch_too(verb):
    model, x = LinearGaussian(x_dim=3, z_dim=2), torch.randn(40, 3)
    guide = Normal(x_dim=3, z_dim=2, hidden=(4,))
    x[[17, 31], 1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"became nan in epoch 1.*data: rows 17, 31 of part 0 hold NaN or inf"):
        verb(model, guide, x, epochs=2, batch_size=10)
    x[[17, 31], 1] = 0.0
    valid = x.clone()
    valid[35] = torch.inf
    with pytest.raises(FloatingPointError, match=r"the valid_bound became.*valid: row 35 of part 0 holds NaN or inf"):
        verb(model, guide, x, valid=valid, epochs=2, batch_size=10)


class Masked(LinearGaussian):
    def forward(self, x, observed):
        return super().forward(x.masked_fill(~observed, 0.0))


class MaskedGuide(Normal):
    def forward(self, x, observed):
        return super().forward(x.masked_fill(~observed, 0.0))


def test_values_that_a_mask_covers_are_not_blamed():
    model, guide = Masked(x_dim=3, z_dim=2), MaskedGuide(x_dim=3, z_dim=2, hidden=(4,))
    x, observed = torch.randn(40, 3), torch.ones(40, 3, dtype=torch.bool)
    observed[4, 1] = False
    x[4, 1] = x[17, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="data: row 17 of part 0 holds"):
        pv.fit(model, guide, (x, observed), epochs=1, batch_size=10)
    x[17, 2], hot = 0.0, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=torch.inf)
    with pytest.raises(FloatingPointError, match=r"back\. Look at the data, try a smaller learning rate"):
        pv.fit(model, guide, (x, observed), epochs=1, batch_size=10, optimizer=hot)


WRONG = {
    "no data": ({"data": None}, "data: nothing to train on"),
    "no guide": ({"guide": None}, "model, guide: pass both"),
    "no epochs": ({"epochs": 0}, "epochs: expected a whole number of at least 1, found 0"),
    "half an epoch": ({"epochs": 0.5}, "epochs: expected a whole number"),
    "no batch": ({"batch_size": 0}, "batch_size: expected a whole number of at least 1"),
    "no particles": ({"particles": 0}, "particles: expected a whole number of at least 1"),
    "a bound by name": ({"objective": "elbo"}, "objective: expected a function of Particles"),
    "particles for one of Pyro's objectives": (
        {"objective": Trace_ELBO(), "particles": 5},
        r"particles: Trace_ELBO brings its own \(it has 1\), found 5",
    ),
    "another compiler": ({"compile": "always"}, "compile: expected 'auto', True or False"),
    "a step beside programs": ({"step": Scripted([])}, "step: it brings its own model, guide, objective"),
    "a step beside its options": (
        {"model": None, "guide": None, "step": Scripted([]), "clip_norm": 1.0},
        "its own chunk, accumulate",
    ),
    "too few batches for an update": (
        {"epochs": 2, "batch_size": 1000, "accumulate": 500},
        r"accumulate: \d+ batches in 2 epochs are too few for one update of 500",
    ),
    "an optimizer by name": ({"optimizer": "adam"}, "optimizer: expected a torch optimizer, or a function"),
    "an optimizer of something else": (
        {"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)},
        "optimizer: it holds no parameter of model or guide",
    ),
    "a bound over data": (
        {"objective": lambda p: p.log_w.mean(1)},
        r"one number per datum, shape \(5,\), found \(1,\)",
    ),
    "a bound without data": ({"objective": lambda p: p.log_w.mean()}, r"one number per datum.*found \(\)"),
    "no bound at all": ({"objective": lambda p: None}, "one number per datum.*found NoneType"),
    "the name of a data set": ({"data": "digits"}, "data: part 0 is a builtins.str"),
    "a class for a program": (
        {"model": VAE},
        r"model: expected a Pyro program, found .*pass an instance, such as VAE\(\)",
    ),
    "labels for a model without": (
        {"data": (torch.ones(4, 6).double(), torch.ones(4))},
        r"model: it takes \(x\), but the batch has 2 tensors of shapes \[\(4, 6\), \(4,\)\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(pair, case):
    change, message = WRONG[case]
    arguments = {"model": pair.model, "guide": pair.guide, "data": pair.data()} | change
    with pytest.raises((ValueError, TypeError), match=message):
        pv.fit(**arguments)


def test_a_bound_that_forgets_the_score_function_is_refused():
    """Its value is right and its gradient would be wrong, which no curve shows."""
    x = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)

    def forgetful(particles):
        return (particles.log_w + particles.log_mass).logsumexp(0)

    def mindful(particles):
        return pv.objectives.with_score(forgetful(particles), particles)

    with pytest.raises(
        ValueError, match=r"objective: the guide draws site 'z' without.*with_score\(bound, particles\)"
    ):
        pv.fit(Bits(), BitsGuide(), x, objective=forgetful, particles=2)
    pv.fit(Bits(), BitsGuide(), x, objective=mindful, particles=2, epochs=1)


def test_a_gradient_that_is_no_number_never_becomes_the_best_state(pair):
    """The bound is finite, its gradient is not: the parameters after the step are NaN."""

    def broken(particles):
        return pv.objectives.elbo(particles) + 0 * (particles.log_w.sum(0) * 0).sqrt()

    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    with pytest.raises(FloatingPointError, match="a parameter became NaN or infinite in epoch 1"):
        pv.fit(pair.model, pair.guide, pair.data(10), objective=broken, epochs=5, batch_size=10)
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())


def test_validation_data_are_checked_too(pair):
    x = pair.data(10)
    with pytest.raises(pv.ContractError, match="outside the support"):
        pv.fit(pair.model, pair.guide, x, valid=x + 0.5)


def test_a_validation_bound_that_is_no_number_stops():
    x = torch.zeros(4, 1)
    with pytest.raises(FloatingPointError, match="the valid_bound became nan in epoch 1"):
        pv.fit(step=Scripted([float("nan")]), data=x, valid=x, epochs=2)


def test_programs_on_another_device_get_their_batches_there(pair):
    """The meta device stands for a GPU: on the CPU's tensors its programs fail."""
    model, guide = pair.model.to("meta"), pair.guide.to("meta")
    batch = pv.programs.Programs(model, guide).on_device((pair_data := torch.ones(4, 6).double(),))
    assert batch[0].is_meta
    assert not pair_data.is_meta


def test_the_order_of_training_data_changes_with_the_epoch():
    seen = []

    class Watching(Scripted):
        def __call__(self, x):
            seen.append(x[0][:, 0].tolist())
            return pv.Info(bound=torch.tensor(-1.0))

    x = torch.arange(6.0).unsqueeze(-1)
    pv.fit(step=Watching([]), data=x, epochs=2, batch_size=6)
    first, second = seen
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4, 5]
    assert first != second


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_the_transform_reaches_streamed_data(kind):
    seen = []

    class Watching(Scripted):
        def __call__(self, x):
            seen.append(x[0])
            return pv.Info(bound=torch.tensor(-1.0))

    dataset = TensorDataset(torch.full((50, 4), 0.5))
    data = dataset if kind == "dataset" else DataLoader(dataset, batch_size=10)
    pv.fit(step=Watching([]), data=data, epochs=1, transform=torch.bernoulli)
    assert set(torch.cat(seen).unique().tolist()) == {0.0, 1.0}


def test_buffers_are_part_of_the_best_state(tmp_path):
    model, guide = pairs.digits_vae()
    guide.encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(64), guide.encoder)
    x = pv.data.load("digits", binarize="static").train[:100]
    pv.fit(model, guide, x, epochs=2, batch_size=50, out=tmp_path / "run")
    trained = guide.encoder[0].running_mean.clone()
    assert trained.abs().max() > 0
    fresh = pairs.digits_vae()
    fresh[1].encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(64), fresh[1].encoder)
    pv.restore(*fresh, tmp_path / "run")
    assert torch.equal(fresh[1].encoder[0].running_mean, trained)


def test_annealing_goes_through_fit_for_linear_bounds_only(pair):
    from pyro import poutine

    model, guide = (poutine.scale(p, scale=0.5) for p in (pair.model, pair.guide))
    pv.fit(model, guide, pair.data(10), epochs=1)
    with pytest.raises(pv.ContractError, match="scale of its own"):
        pv.fit(model, guide, pair.data(10), objective=pv.objectives.iwae, epochs=1)


def test_an_interrupted_run_keeps_its_best_parameters(tmp_path):
    class Interrupted(Scripted):
        def __call__(self, x):
            if self.epochs_done == 2:
                raise KeyboardInterrupt
            return super().__call__(x)

    step, x = Interrupted([-2.0, -5.0, -1.0]), torch.zeros(4, 1)
    with pytest.raises(KeyboardInterrupt):
        pv.fit(step=step, data=x, valid=x, epochs=9, out=tmp_path / "run")
    assert step.epochs_done == 1
    assert runs.read_best(tmp_path / "run")["best"] == {"epoch": 1, "bound": -2.0}


def test_a_bound_that_needs_more_particles_says_so(pair):
    @pv.objectives.objective(formula="", reference="", min_particles=2)
    def leave_one_out(particles):
        return particles.log_w[0]

    with pytest.raises(ValueError, match="particles: leave_one_out needs at least 2, found 1"):
        pv.fit(pair.model, pair.guide, pair.data(), objective=leave_one_out)


def test_programs_without_parameters_are_refused():
    model = pairs.make("linear_gaussian", "exact").model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    guide = pairs.zoo.find("guides", "exact")(model)
    with pytest.raises(ValueError, match="neither has a trainable parameter"):
        pv.fit(model, guide, torch.randn(4, 6).double())


def test_a_step_of_ones_own_loop(pair):
    x = pair.data(20)
    optimizer = torch.optim.Adam(list(pair.parameters().values()), lr=1e-2)
    step = pv.svi_step(pair.model, pair.guide, pv.objectives.iwae, particles=4, optimizer=optimizer)
    bounds = torch.stack([step(x).bound for _ in range(60)])
    assert bounds[-10:].mean() > bounds[:10].mean()
    assert not bounds.requires_grad
    with pytest.raises(ValueError, match="compile: expected 'auto', True or False, found 'always'"):
        pv.svi_step(pair.model, pair.guide, optimizer=optimizer, compile="always")


def test_a_step_resumes_where_it_was(pair):
    x = pair.data(20)

    def make(p):
        return pv.svi_step(p.model, p.guide, optimizer=torch.optim.Adam(list(p.parameters().values()), lr=1e-2))

    step = make(pair)
    step(x)
    other_pair = pairs.make("vae", "normal")
    other = make(other_pair)
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    for each in (step, other):
        torch.manual_seed(5)
        each(x)
    for name, parameter in other_pair.parameters().items():
        assert torch.equal(parameter, pair.parameters()[name])


def test_validation_changes_nothing(pair):
    step = pv.svi_step(pair.model, pair.guide, optimizer=torch.optim.Adam(list(pair.parameters().values())))
    x = pair.data()
    before = {name: p.clone() for name, p in pair.parameters().items()}
    assert step.bound(x).shape == (5,)
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())
    assert not torch.equal(step.bound(x), step.bound(x))  # each call has noise of its own
