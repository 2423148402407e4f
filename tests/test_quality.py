"""Two-sample tests, precision and recall, Fréchet distances: against loops, closed forms and enumeration."""

import csv
import doctest
import importlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import odds
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from typer.testing import CliRunner

import ppl_vae as pv
from ppl_vae import quality, two_samples
from ppl_vae.data import Info, Splits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def normal(n, dims, loc=0.0, scale=1.0):
    return loc + scale * torch.randn(n, dims, dtype=torch.float64)


# A test's level and power


def held_to_level(p_values, level=0.2):
    """Rejections at a level are not more frequent than it says, and not rarer than half of that."""
    rejected = (torch.tensor(p_values) <= level).double()
    odds.assert_at_most(rejected, torch.full_like(rejected, level))
    odds.assert_at_most(torch.full_like(rejected, level / 2), rejected)


def test_the_classifiers_p_value_has_its_level():
    classifier = KNeighborsClassifier(3)
    found = [
        pv.quality.classifier_two_sample_test(normal(60, 2), normal(60, 2), seed, classifier) for seed in range(250)
    ]
    held_to_level([test.p_value for test in found])
    accuracy = torch.tensor([test.value for test in found])
    odds.assert_mean(accuracy, torch.tensor(0.5))


def test_the_permutations_p_value_has_its_level():
    found = [pv.quality.mmd(normal(12, 2), normal(17, 2), permutations=19, seed=seed).p_value for seed in range(600)]
    held_to_level(found)
    # Without ties all ranks among the permuted values are equally likely.
    odds.assert_mean(torch.tensor(found), torch.tensor(21 / 40))


@pytest.mark.parametrize("test", [pv.quality.classifier_two_sample_test, pv.quality.mmd])
def test_different_sets_are_found_out(test):
    assert test(normal(300, 5, loc=0.7), normal(300, 5)).p_value < 0.01
    assert test(normal(300, 5, scale=1.6), normal(300, 5)).p_value < 0.01


# Classifier


@pytest.mark.parametrize("each", [1, 7, 30])
def test_the_tail_is_the_hypergeometric_one(each):
    for said in range(2 * each + 1):
        for hits in range(max(0, said - each), min(each, said) + 1):
            exact = scipy.stats.hypergeom.sf(hits - 1, 2 * each, each, said)
            assert two_samples._hypergeometric_tail(hits, said, each) == pytest.approx(exact, rel=1e-9)


def test_sets_that_never_mix_are_told_apart_for_certain():
    found = pv.quality.classifier_two_sample_test(normal(25, 3, loc=50.0), normal(40, 3))
    assert (found.value, found.error) == (1.0, 0.0)
    assert found.p_value == pytest.approx(1 / math.comb(26, 13))  # 13 of each were held out


def test_accuracy_and_error_are_those_of_scikit_learn():
    x, y = normal(50, 2, loc=1.0), normal(50, 2)
    found = pv.quality.classifier_two_sample_test(x, y, seed=3, classifier=LogisticRegression())
    one, other = two_samples.same_size(x, y, torch.Generator().manual_seed(3))
    labels = np.repeat([1, 0], 25)
    fitted = LogisticRegression().fit(torch.cat([one[:25], other[:25]]), labels)
    accuracy = fitted.score(torch.cat([one[25:], other[25:]]), labels)
    assert found.value == pytest.approx(accuracy)
    assert found.error == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 50))


def test_the_callers_classifier_is_not_trained():
    classifier = LogisticRegression()
    pv.quality.classifier_two_sample_test(normal(20, 2), normal(20, 2), classifier=classifier)
    assert not hasattr(classifier, "coef_")


# Kernel means


def kernel(x, y, widths):
    return sum(math.exp(-float((x - y).square().sum()) / (2 * width**2)) for width in widths)


def mmd_by_loops(xs, ys, widths):
    within = [sum(kernel(a, b, widths) for a, b in itertools.permutations(rows, 2)) for rows in (xs, ys)]
    across = sum(kernel(x, y, widths) for x in xs for y in ys)
    n, m = len(xs), len(ys)
    return within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * across / (n * m)


@pytest.mark.parametrize("widths", [[0.7], [0.3, 1.0, 4.0]])
def test_mmd_is_the_sum_over_pairs(widths, monkeypatch):
    monkeypatch.setattr(two_samples, "ROWS", 5)  # several blocks, the last one short
    x, y = normal(7, 3, loc=0.4), normal(11, 3)
    found = pv.quality.mmd(x.view(7, 1, 3), y.view(11, 1, 3), bandwidth=widths, permutations=1)
    assert found.value == pytest.approx(mmd_by_loops(x, y, widths), abs=1e-12)


def test_the_p_value_is_that_of_all_exchanges():
    x, y = normal(4, 1, loc=1.0), normal(3, 1)
    rows, observed = torch.cat([x, y]), mmd_by_loops(x, y, [1.0])
    values = [
        mmd_by_loops(rows[list(chosen)], rows[[i for i in range(7) if i not in chosen]], [1.0])
        for chosen in itertools.combinations(range(7), 4)
    ]
    exact = sum(value >= observed - 1e-12 for value in values) / len(values)
    assert 0.02 < exact < 0.98
    draws = 20_000
    found = pv.quality.mmd(x, y, bandwidth=1.0, permutations=draws).p_value
    error = math.sqrt(exact * (1 - exact) / draws) + 1 / draws
    odds.assert_agree(torch.tensor(found), torch.tensor(error), torch.tensor(exact))


def mmd_of_normals(loc, scale, dims, width):
    """Return MMD^2 of N(loc, scale^2 I) and N(0, I): means of the kernel under normal differences."""

    def mean(difference, variance):
        total = width**2 + variance
        return (width**2 / total) ** (dims / 2) * math.exp(-dims * difference**2 / (2 * total))

    return mean(0, 2 * scale**2) + mean(0, 2) - 2 * mean(loc, 1 + scale**2)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.3, 1.7)])
def test_mmd_is_unbiased_for_that_of_normals(loc, scale):
    draws = [
        pv.quality.mmd(normal(25, 3, loc, scale), normal(20, 3), bandwidth=1.5, permutations=1).value
        for _ in range(500)
    ]
    odds.assert_mean(torch.tensor(draws), torch.tensor(mmd_of_normals(loc, scale, 3, 1.5)))


def agree_in_variance(found):
    """The mean of squared standard errors is the variance of the estimates, at the suite's rate."""
    values, errors = (torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True))
    variance = values.var()
    error = torch.hypot(variance * math.sqrt(2 / (len(found) - 1)), errors.square().std() / math.sqrt(len(found)))
    odds.assert_agree(errors.square().mean(), error, variance)


def test_the_error_of_mmd_is_its_spread():
    tests = [pv.quality.mmd(normal(120, 2, loc=1.0), normal(80, 2), bandwidth=1.0, permutations=1) for _ in range(500)]
    agree_in_variance([(test.value, test.error) for test in tests])


def test_the_bandwidth_is_the_median_distance():
    x, y = normal(4, 2), normal(3, 2)
    width = float(np.median(scipy.spatial.distance.pdist(torch.cat([x, y]))))
    value = pytest.approx(pv.quality.mmd(x, y).value)
    assert pv.quality.mmd(x, y, bandwidth=width).value == value
    assert pv.quality.mmd(x, y, bandwidth=[width]).value == value
    assert pv.quality.mmd(x, y, bandwidth=1.01 * width).value != value


def test_equal_rows_show_nothing():
    ones = torch.ones(6, 2)
    assert pv.quality.mmd(ones, ones, bandwidth=1.0).p_value == 1.0
    with pytest.raises(ValueError, match=r"bandwidth: the median distance is zero.*give one"):
        pv.quality.mmd(ones, ones)


# Precision and recall


def share_by_loops(points, centres, k):
    def squared(a, b):
        return ((a - b) ** 2).sum()

    def covered(point):
        return any(
            squared(point, c) <= sorted(squared(c, d) for j, d in enumerate(centres) if j != i)[k - 1]
            for i, c in enumerate(centres)
        )

    return np.mean([covered(point) for point in points])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("binary", [True, False])
def test_shares_are_those_of_loops(k, binary, monkeypatch):
    monkeypatch.setattr(quality, "ROWS", 7)
    x, y = normal(20, 5, loc=0.5), normal(24, 5)
    x, y = ((x > 0).double(), (y > 0).double()) if binary else (x, y)  # with many ties, or with none
    found = pv.quality.precision_recall(x, y, k)
    assert found.precision.value == pytest.approx(share_by_loops(x.numpy(), y.numpy(), k))
    assert found.recall.value == pytest.approx(share_by_loops(y.numpy(), x.numpy(), k))
    assert 0 < found.precision.value <= 1


def test_precision_and_recall_of_clear_cases():
    data = torch.cat([normal(200, 2, loc=0.0), normal(200, 2, loc=30.0)])
    same = pv.quality.precision_recall(data, data)
    assert (same.precision, same.recall) == ((1.0, 0.0), (1.0, 0.0))
    apart = pv.quality.precision_recall(data + 500, data)
    assert (apart.precision, apart.recall) == ((0.0, 0.0), (0.0, 0.0))
    alike = pv.quality.precision_recall(torch.cat([normal(200, 2, loc=0.0), normal(200, 2, loc=30.0)]), data)
    assert min(alike.precision.value, alike.recall.value) > 0.9
    one_mode = pv.quality.precision_recall(normal(400, 2, loc=0.0), data)
    assert one_mode.precision.value > 0.9
    assert one_mode.recall.value == pytest.approx(0.5, abs=0.03)
    with_noise = pv.quality.precision_recall(torch.cat([data[::2], normal(200, 2, loc=-500.0)]), data)
    assert with_noise.precision.value == pytest.approx(0.5, abs=0.03)
    assert with_noise.recall.value > 0.9


# Fréchet distance


def with_moments(n, mean, covariance):
    """Return rows whose sample moments are exactly these."""
    x = normal(n, len(mean))
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()).T, x - x.mean(0), upper=True, left=False)
    return mean + x @ torch.linalg.cholesky(covariance).T


def test_the_frechet_distance_is_that_of_the_moments():
    dims = 4
    means = normal(2, dims)
    covariances = [normal(9, dims).T.cov() for _ in range(2)]
    sets = [with_moments(n, m, c) for n, m, c in zip((50, 70), means, covariances, strict=True)]
    root = scipy.linalg.sqrtm((covariances[0] @ covariances[1]).numpy()).real
    exact = float((means[0] - means[1]).square().sum() + (covariances[0] + covariances[1]).trace() - 2 * np.trace(root))
    assert pv.quality.frechet_distance(*sets).value == pytest.approx(exact, rel=1e-10)
    assert pv.quality.frechet_distance(sets[0], sets[0]).value == pytest.approx(0, abs=1e-10)


def test_the_frechet_distance_of_normals_with_common_axes_and_a_constant_column():
    scales = torch.tensor([[0.5, 1.0, 2.0], [1.5, 1.0, 0.1]], dtype=torch.float64)
    sets = [with_moments(60, torch.zeros(3).double(), s.square().diag()) for s in scales]
    constant = [torch.cat([rows, torch.full((60, 1), 7.0)], dim=1) for rows in sets]
    exact = float((scales[0] - scales[1]).square().sum())
    assert pv.quality.frechet_distance(*constant).value == pytest.approx(exact, rel=1e-10)


def test_the_bias_of_the_frechet_distance_is_as_documented():
    n, m, dims, scale = 400, 300, 4, 1.7
    found = [
        pv.quality.frechet_distance(normal(n, dims, scale=scale), normal(m, dims, scale=scale)).value
        for _ in range(200)
    ]
    documented = scale**2 * (1 / n + 1 / m) * (dims + dims * (dims + 1) / 4)
    odds.assert_mean(torch.tensor(found), torch.tensor(documented))


def test_the_error_of_the_frechet_distance_is_its_spread():
    agree_in_variance(
        [tuple(pv.quality.frechet_distance(normal(100, 2, 1.0, 1.5), normal(140, 2))) for _ in range(200)]
    )


def test_too_few_rows_for_a_covariance_are_refused():
    with pytest.raises(ValueError, match="data: 30 rows are too few for a covariance in 40 dimensions; give more"):
        pv.quality.frechet_distance(normal(50, 40), normal(30, 40))


# Features


def squares_and_bars(n, labels=True):
    """Return images of 28 x 28 with noise: a square, or a bar."""
    y = torch.arange(n) % 2
    x = 0.1 * torch.rand(n, 28, 28)
    x[y == 0, 8:20, 8:20] += 0.8
    x[y == 1, 4:24, 13:15] += 0.8
    info = Info("shapes", "grey", (28, 28), {split: y for split in ("train", "test") if labels})
    return Splits(*[x.flatten(1)] * 3, info=info)


def test_features_know_the_digits_and_leave_everything_else_alone():
    digits = pv.data.load("digits", binarize="dynamic")
    before = torch.get_rng_state()
    features, again = (pv.quality.train_features(digits, seed=1, epochs=6) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not features.training
    assert torch.equal(features(digits.test), again(digits.test))
    assert features(digits.test).shape == (360, 32)
    found = features.logits(digits.test).argmax(1)
    assert features.accuracy == float((found == digits.info.labels["test"]).double().mean()) > 0.7


def test_features_of_larger_images():
    features = pv.quality.train_features(squares_and_bars(64), epochs=10, dims=5)
    assert features.accuracy == 1.0
    assert features(torch.rand(3, 784)).shape == (3, 5)


def test_sets_without_labels_are_refused():
    with pytest.raises(ValueError, match="data: 'shapes' has no labels for test and train"):
        pv.quality.train_features(squares_and_bars(4, labels=False))
    with pytest.raises(TypeError, match=r"data: expected Splits, .* found Tensor"):
        pv.quality.train_features(torch.ones(3, 64))
    with pytest.raises(ValueError, match="epochs: expected a whole number of at least 1, found 0"):
        pv.quality.train_features(squares_and_bars(4), epochs=0)


# All of them


def test_compare_gives_the_figures_of_each_and_moves_no_random_state():
    x, y = normal(60, 4, loc=0.3), normal(80, 4)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the state that is not to move
    found = pv.quality.compare(x, y, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    rows = two_samples.same_size(x, y, torch.Generator().manual_seed(5))
    assert found.classifier == pv.quality.classifier_two_sample_test(*rows, seed=5)
    assert found.mmd == pv.quality.mmd(*rows, seed=5)
    assert (found.precision, found.recall) == pv.quality.precision_recall(*rows)
    assert found.frechet == pv.quality.frechet_distance(*rows)
    assert (found.n, found.dims) == (60, 4)
    assert found == pv.quality.compare(x, y, seed=5) != pv.quality.compare(x, y, seed=6)


def test_a_report_has_numbers_and_a_sentence():
    found = pv.quality.compare(normal(40, 3), normal(40, 3))
    report = json.loads(json.dumps(found.to_dict()))
    assert report["precision"] == {"value": found.precision.value, "error": found.precision.error}
    assert report["mmd"]["p_value"] == found.mmd.p_value
    assert str(found).startswith(
        "40 samples against 40 data, by 3 numbers: a classifier tells them apart with accuracy"
    )
    few = pv.quality.compare(normal(40, 50), normal(40, 50))
    assert few.frechet is few.to_dict()["frechet"] is None
    assert "the squared Fréchet distance needs more than 50 rows" in str(few)


def test_features_get_images_as_they_came_in_evaluation_mode():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 3))

        def forward(self, x):
            seen.append((tuple(x.shape), x.dtype))
            return self.net(x)

    net, x, y = Net(), torch.rand(30, 1, 4, 4), torch.rand(35, 1, 4, 4)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = pv.quality.compare(x, y, net)
    assert found == pv.quality.compare(x, y, net)
    assert found.dims == 3
    assert set(seen) == {((30, 1, 4, 4), torch.float32)}
    assert net.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(TypeError, match=r"features: expected a function from 30 rows .*found \(\)"):
        pv.quality.compare(x, y, lambda x: x.mean())


@pytest.mark.parametrize(
    ("samples", "data", "error", "message"),
    [
        ([1.0], torch.ones(50, 2), TypeError, "samples: expected a tensor.*found list"),
        (torch.ones(50, 2), pv.data.load("digits"), TypeError, "data: expected a tensor.*found Splits.*data.test"),
        (torch.ones(50, 2), torch.ones(50, 3), ValueError, "samples, data: rows have 2 and 3 numbers"),
        (torch.full((50, 2), torch.nan), torch.ones(50, 2), ValueError, "samples: a number is NaN or infinite"),
        (torch.ones(50, 2), torch.ones(50), ValueError, r"data: expected at least 22 rows .*found shape \(50,\)"),
        (torch.ones(5, 2), torch.ones(50, 2), ValueError, r"samples: expected at least 22 rows .*found shape \(5, 2\)"),
    ],
)
def test_what_cannot_be_compared_is_named(samples, data, error, message):
    with pytest.raises(error, match=message):
        pv.quality.compare(samples, data)


def test_options_are_looked_at():
    x = normal(20, 2)
    with pytest.raises(ValueError, match="k: expected a whole number of at least 1, found 0"):
        pv.quality.precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="permutations: expected a whole number of at least 1, found 0"):
        pv.quality.mmd(x, x, permutations=0)
    for bandwidth in (0.0, [], [1.0, -1.0], math.inf):
        with pytest.raises(ValueError, match="bandwidth: expected positive numbers"):
            pv.quality.mmd(x, x, bandwidth)


# The benchmark


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("likelihood_and_samples")


def test_densities_of_the_counter_examples_are_exact(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "FLIPPED", 0.1)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    table = benchmark.table(every[[3, 3, 20, 41]], every, seed=0)
    coins = benchmark.noise(every, seed=0)
    mixture = benchmark.drowned(table, coins, seed=0)
    for generator in (table, coins, mixture):
        assert float(generator.log_px.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    differing = (every[3] - every[[3, 3, 20, 41]]).abs().sum(1)
    by_hand = sum(0.1**h * 0.9 ** (6 - h) for h in differing.tolist()) / 4
    assert float(table.log_px[3].exp()) == pytest.approx(by_hand)
    assert bool((table.log_px - mixture.log_px <= math.log(100)).all())


def test_examples_of_the_benchmark_run(benchmark):
    found = doctest.testmod(benchmark)
    assert found.attempted > found.failed == 0


def test_the_counter_examples_run(benchmark, tmp_path):
    done = CliRunner().invoke(benchmark.app, ["--quick", "--out", str(tmp_path / "results")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with (tmp_path / "results" / "likelihood_and_samples.csv").open() as file:
        vae, table, in_noise, in_table, noise = csv.DictReader(file)
    for mixture in (in_noise, in_table):
        assert float(mixture["log_px"]) > float(vae["log_px"]) - math.log(100)
    assert float(table["log_px"]) < float(noise["log_px"])
    assert min(float(row["precision"]) for row in (table, in_table)) > 0.8
    assert max(float(row["precision"]) for row in (noise, in_noise)) < 0.1
    assert (tmp_path / "results" / "likelihood_and_samples.png").read_bytes().startswith(b"\x89PNG")
