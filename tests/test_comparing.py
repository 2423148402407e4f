"""Models compared datum by datum."""

import json
import math

import odds
import pairs
import pytest
import torch

import ppl_vae as pv
from ppl_vae.guides.exact import Exact
from ppl_vae.models.linear_gaussian import LinearGaussian


def model(z_dim):
    torch.manual_seed(z_dim)
    return LinearGaussian(x_dim=6, z_dim=z_dim).double()


def evaluated(program, x, **options):
    return pv.evaluate(program, Exact(program), x, **{"particles": 30, **options})


def test_differences_are_paired():
    x = pv.sample(model(2), shape=(6,), n=200)["x"]
    programs = {"one": model(1), "two": model(2), "three": model(3)}
    found = pv.compare({name: evaluated(program, x) for name, program in programs.items()})
    exact = {name: program.log_px(x).detach() for name, program in programs.items()}
    assert found.n == 200
    assert found.rows[0].name == max(exact, key=lambda name: exact[name].mean())
    assert (found.rows[0].difference, found.rows[0].difference_se) == (0.0, 0.0)
    for row in found.rows[1:]:
        d = exact[row.name] - exact[found.rows[0].name]
        assert row.difference == pytest.approx(d.mean().item(), abs=1e-6)
        assert row.difference_se == pytest.approx(d.std().item() / math.sqrt(200), rel=1e-4)
        assert row.difference_se < math.hypot(row.se, found.rows[0].se)


def test_the_order_of_the_data_is_found():
    x = pv.sample(model(2), shape=(6,), n=50)["x"]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    straight = pv.compare({"a": evaluated(model(1), x), "b": evaluated(model(2), x)})
    shuffled = pv.compare({"a": evaluated(model(1), x), "b": evaluated(model(2), x[order], seed=5)})
    for one, other in zip(straight.rows, shuffled.rows, strict=True):
        assert one.difference == pytest.approx(other.difference)
        assert one.difference_se == pytest.approx(other.difference_se, rel=1e-6)


def test_the_error_of_a_difference_is_its_spread():
    differences, errors = [], []
    for seed in range(60):
        x = pv.sample(model(2), shape=(6,), n=40, seed=seed)["x"]
        rows = pv.compare({"a": evaluated(model(1), x), "b": evaluated(model(2), x)}).rows
        sign = 1 if rows[0].name == "b" else -1
        differences.append(sign * rows[1].difference)
        errors.append(rows[1].difference_se)
    spread, stated = torch.tensor(differences).std(), torch.tensor(errors).square().mean().sqrt()
    # The logarithm of an estimated standard deviation has an error of 1 / sqrt(2 (n - 1)).
    assert abs(math.log(spread / stated)) < odds.limit(1) / math.sqrt(2 * 59)


def test_evaluations_of_different_data_are_refused():
    x = pv.sample(model(2), shape=(6,), n=20)["x"]
    first = evaluated(model(1), x)
    with pytest.raises(ValueError, match="a is of 20 data and b of 19"):
        pv.compare({"a": first, "b": evaluated(model(2), x[1:])})
    with pytest.raises(ValueError, match="a and b are of different data"):
        pv.compare({"a": first, "b": evaluated(model(2), x + 1)})
    with pytest.raises(ValueError, match="expected a dict of two or more"):
        pv.compare({"a": first})


def test_what_speaks_against_a_comparison_is_told():
    x = pv.sample(model(2), shape=(6,), n=20)["x"]
    found = pv.compare({"a": evaluated(model(1), x, particles=40), "b": evaluated(model(2), x)})
    assert "different K (30, 40)" in found.warnings[0]
    pair = pairs.make("linear_gaussian", "normal")
    poor = pv.evaluate(pair.model, pair.guide, 10 * x, particles=30)
    assert poor.untrusted > 0.01
    told = pv.compare({"poor": poor, "exact": evaluated(model(2), 10 * x)}).warnings
    assert "k-hat above 0.7 for poor" in told[0]


def test_an_unknown_khat_is_no_bad_one():
    x = pv.sample(model(2), shape=(6,), n=20)["x"]
    found = pv.compare({"a": evaluated(model(1), x, particles=3), "b": evaluated(model(2), x, particles=3)})
    assert "| unknown |" in found.to_markdown()
    assert found.to_dict()["rows"][0]["untrusted"] is None
    names = ", ".join(row.name for row in found.rows)
    assert found.warnings == (f"K is too small for a Pareto k-hat of {names}; draw some thousands of particles",)


def test_tables_and_json_have_the_same_numbers():
    x = pv.sample(model(2), shape=(6,), n=20)["x"]
    found = pv.compare({"a": evaluated(model(1), x), "b": evaluated(model(2), x)})
    content = json.loads(json.dumps(found.to_dict()))
    lines = found.to_markdown().splitlines()
    assert [row["name"] for row in content["rows"]] == [line.split("|")[1].strip() for line in lines[2:4]]
    assert f"{content['rows'][1]['difference']:.3f}" in lines[3]
    assert "best" in lines[2]
