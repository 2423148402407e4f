"""Published results run again: each experiment runs, at small sizes; its table is that of its results."""

import json

import pytest
import torch
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from benchmarks.published import records, table
from benchmarks.published.concrete import Between, LogitConcrete
from ppl_vae.data import Info, Splits

EXPERIMENTS = table.experiments()
# What makes each of them small, by the constants of its module.
SMALL = {
    "concrete": {"EPOCHS": 1, "TEST_PARTICLES": 3},
    "gradient_variance": {"TRAINED": 48},
    "iwae": {"STAGES": 1, "TEST_PARTICLES": 3},
    "mean_field_vae": {"STEPS_AN_EPOCH": 20_000},
    "scikit_learn": {"ITERATIONS": 2, "FACTORS": 2, "TOLERANCE": 1e-2},
    "semi_supervised": {"EPOCHS": 1, "LABELS": 20, "BATCH": 10, "EVERY": 3},
    "sigmoid_belief_network": {},
    "vampprior": {"EPOCHS": 1, "COMPONENTS": 3, "TEST_PARTICLES": 3},
}


def images(name, **options):
    """Return a data set of the shape of MNIST, of which there is not much."""
    torch.manual_seed(0)
    parts = [torch.rand(n, 784) for n in (200, 20, 20)]
    labels = {part: torch.arange(len(x)) % 10 for part, x in zip(("train", "valid", "test"), parts, strict=True)}
    grey = options.get("binarize") is None and name == "mnist"
    return Splits(*(x if grey else x.round() for x in parts), Info(name, None, (28, 28), labels, ""))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Little data and small sizes, with results in a folder of the test's."""

    def made(name):
        module = __import__(f"benchmarks.published.{name}", fromlist=["EXPERIMENT"])
        monkeypatch.setattr("ppl_vae.data.load", images)
        monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
        for constant, value in SMALL[name].items():
            monkeypatch.setattr(module, constant, value)
        return module.EXPERIMENT

    return made


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_once_and_is_kept(name, small):
    experiment = small(name)
    for setting in experiment.settings:
        figures = records.make(name, experiment, setting, seed=0)
        assert {figure for (of, figure) in experiment.published if of == setting} <= set(figures)
        assert {"steps", "seconds"} <= set(figures)
        file = records.result_file(name, setting, 0)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"figures": {"kept": 1.0}}))
        assert records.make(name, experiment, setting, seed=0) == {"kept": 1.0}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_published_and_compared_is_there(name):
    experiment = EXPERIMENTS[name]
    assert {setting for setting, _ in experiment.published} <= set(experiment.settings)
    assert {setting for each in experiment.differences for setting in (each.of, each.minus)} <= set(experiment.settings)
    assert len({records.slug(setting) for setting in experiment.settings}) == len(experiment.settings)


def test_the_page_is_that_of_the_results():
    assert table.PAGE.read_text() == table.page(EXPERIMENTS), "run `python -m benchmarks.published table`"


def test_rows_state_means_spreads_and_numbers_of_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    figures = iter([{"bound": value, "steps": 10, "seconds": 60.0} for value in (-2.0, -1.0, -1.5, -3.0)])
    printed = records.Published("-1.0", "someone")
    experiment = records.Experiment(
        *("An experiment", "as there", "nothing"),
        settings=dict.fromkeys(("one", "other"), lambda seed, folder: next(figures)),
        published={("one", "bound"): printed},
        differences=[records.Difference("one", "other", "bound", printed)],
        seeds=2,
    )
    for setting, seed in (("one", 0), ("one", 1), ("other", 0)):
        records.make("made", experiment, setting, seed)
    text = table.section("made", experiment)
    assert "| one | bound | -1.0 | -1.50 ± 0.71 | someone | 10 | 1.0 |" in text
    assert "| other | bound |  | -1.50 (1 seed) |  | 10 | 1.0 |" in text
    assert "| one minus other | bound | -1.0 | -0.50 (1 seed) | someone |" in text
    records.make("made", experiment, "other", 1)
    assert "| one minus other | bound | -1.0 | +0.75 ± 1.77 | someone |" in table.section("made", experiment)


def test_relaxed_units_have_a_path_and_a_density_wherever_they_are_drawn():
    units = Between(0.5).units(torch.tensor([-2.0, 0.0, 3.0]))
    assert units.has_rsample
    logits = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    y = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None].expand(-1, 3) / 0.3
    density = LogitConcrete(torch.tensor(0.3, dtype=torch.float64), logits=logits).log_prob(y)
    torch.testing.assert_close(density, LogitRelaxedBernoulli(torch.tensor(0.3).double(), logits=logits).log_prob(y))
    torch.testing.assert_close(torch.trapezoid(density.exp(), y, dim=0), torch.ones(3).double(), atol=1e-3, rtol=0)
    assert LogitConcrete(torch.tensor(1.0), logits=torch.tensor(0.0)).log_prob(torch.tensor(-500.0)) == -500
