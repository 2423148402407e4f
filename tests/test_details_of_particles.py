"""Sums over particles and over values that a guide enumerates, written out."""

from math import exp, inf, log

import pytest
import torch

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.objectives.discrete import log_sum_of_others
from ppl_vae.particles import finite_mass, log_sum, shares
from ppl_vae.tracing import first

DOUBLE = torch.float64
MASS = torch.tensor([0.0, 0.25, 0.75], dtype=DOUBLE)


def enumerated(particles=2, rows=3):
    """Values y = 0, 1, 2 with these masses, on an axis left of the particles, and draws z below them."""
    log_q = {"y": MASS.log().reshape(3, 1, 1), "z": torch.randn(3, particles, rows, dtype=DOUBLE)}
    log_p = {"x": torch.randn(3, particles, rows, dtype=DOUBLE), "b": torch.randn(particles, rows, dtype=DOUBLE)}
    return pv.Particles(log_p=log_p, log_q=log_q, enumerated=("y",))


def test_weights_are_ratios_of_all_densities():
    drawn = enumerated()
    wanted = drawn.log_p["x"] + drawn.log_p["b"] - drawn.log_q["y"] - drawn.log_q["z"]
    torch.testing.assert_close(drawn.log_w, wanted)


def test_means_weigh_enumerated_values_by_their_masses():
    drawn, f = pv.Particles(**{**vars(enumerated()), "log_p": {"x": torch.zeros(2, 3)}}), torch.randn(3, 2, 3).double()
    f[0] = inf  # where there is no mass
    each = 0.25 * f[1] + 0.75 * f[2]
    torch.testing.assert_close(drawn.per_draw(f), each)
    torch.testing.assert_close(drawn.mean(f), each.mean(0))
    torch.testing.assert_close(drawn.log_mass.exp(), (MASS / 2).reshape(3, 1, 1))
    f[0] = 0.0
    each = 0.25 * f[1].exp() + 0.75 * f[2].exp()
    torch.testing.assert_close(drawn.log_per_draw(f), each.log())
    torch.testing.assert_close(drawn.log_mean(f), each.mean(0).log())


def test_without_enumerated_values_a_draw_is_its_own_mean():
    drawn, f = pv.Particles(log_p={"x": torch.zeros(4, 3)}, log_q={}), torch.randn(4, 3)
    assert drawn.per_draw(f) is f
    assert drawn.log_per_draw(f) is f
    assert drawn.log_mass == -log(4)
    torch.testing.assert_close(drawn.log_mean(f), f.exp().mean(0).log())


def test_groups_hold_their_own_particles():
    drawn = enumerated(particles=6)
    groups = drawn.split(3)
    assert [len(group) for group in groups] == [2, 2, 2]
    for i, group in enumerate(groups):
        assert torch.equal(group.log_p["x"], drawn.log_p["x"][:, 2 * i : 2 * i + 2])
        assert torch.equal(group.log_p["b"], drawn.log_p["b"][2 * i : 2 * i + 2])
        assert torch.equal(group.log_q["y"], drawn.log_q["y"])
        assert group.enumerated == ("y",)
    assert [len(group) for group in drawn.split(1)] == [6]
    for groups in (0, -1, 4, 7, True, 2.0):
        with pytest.raises(ValueError, match="groups"):
            drawn.split(groups)


def test_sums_in_logarithms_with_infinities():
    values = torch.tensor([[0.0, -inf, inf, 1.0], [1.0, -inf, 0.0, -inf]], dtype=DOUBLE, requires_grad=True)
    found = log_sum(values)
    torch.testing.assert_close(found, torch.tensor([log(1 + torch.e), -inf, inf, 1.0], dtype=DOUBLE))
    (slope,) = torch.autograd.grad(found.masked_fill(found.isinf(), 0.0).sum(), values)
    assert slope.isfinite().all()
    assert torch.equal(slope[:, 1:3], torch.zeros(2, 2))


def test_sums_over_others_of_which_none_is_possible():
    log_f = torch.tensor([[1.0, -inf, 2.0], [-inf, -inf, 0.0], [-inf, -inf, 1.0]], dtype=DOUBLE)
    others = torch.tensor([[-inf, -inf, log(1 + exp(1))], [1.0, -inf, log(exp(2) + exp(1))]], dtype=DOUBLE)
    torch.testing.assert_close(log_sum_of_others(log_f)[:2], others)
    assert log_sum_of_others(log_f - 5e29)[1, 0] == -5e29  # far down, and possible


def test_shares_of_zero_and_infinite_weights():
    log_w = torch.tensor([[log(3), -inf, inf, inf], [0.0, -inf, 0.0, inf]], dtype=DOUBLE, requires_grad=True)
    found = shares(log_w, 0)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.5, 1.0, 0.5], [0.25, 0.5, 0.0, 0.5]], dtype=DOUBLE))
    torch.testing.assert_close(shares(log_w.T, 1), found.T)


def test_masses_of_nothing_are_a_thousand_nats_down():
    assert finite_mass(torch.tensor([-inf, -1001.0, -999.0])).tolist() == [-1000.0, -1000.0, -999.0]


def test_the_first_of_particles_and_data():
    value = torch.arange(24).reshape(2, 3, 4)
    assert first(value).tolist() == [[[0]], [[12]]]  # what stands left of the particles stays
    assert first(value, event_dim=1).tolist() == [[[0, 1, 2, 3]]]
    assert first(value[0, 0]).tolist() == [0]
    assert first(value[0], event_dim=1).tolist() == [[0, 1, 2, 3]]
    assert first(value[0, 0], event_dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "betas",
    [(), (0,), (1,), (0.1, 1.0), (0.0, 0.9), (0.0, 0.5, 0.5, 1.0), (0.0, 0.7, 0.3, 1.0), (-0.1, 1.0), (0.0, 1.1)],
)
@pytest.mark.parametrize("bound", [objectives.tvo, objectives.tvo_upper])
def test_inverse_temperatures_rise_from_zero_to_one(bound, betas):
    drawn = pv.Particles(log_p={"x": torch.randn(3, 2, dtype=DOUBLE)}, log_q={})
    with pytest.raises(ValueError, match="betas"):
        bound(drawn, betas=betas)
    end = drawn.log_w.mean(0) if bound is objectives.tvo else (drawn.log_w.softmax(0) * drawn.log_w).sum(0)
    torch.testing.assert_close(bound(drawn, betas=(0, 1)), end)


def test_impossible_draws_have_no_part_in_thermodynamic_sums():
    log_w = torch.tensor([[-inf], [1.0], [3.0]], dtype=DOUBLE)
    drawn = pv.Particles(log_p={"x": log_w}, log_q={})
    (rest,) = log_w[1:].softmax(0).mul(log_w[1:]).sum(0)
    assert objectives.tvo_upper(drawn, betas=(0.0, 1.0)).item() == pytest.approx(rest.item())
    assert objectives.tvo(drawn, betas=(0.0, 1.0)).item() == -inf
