"""Hamiltonian Monte Carlo: reversible, of second order, and with its target left as it was."""

import odds
import pytest
import torch

from ppl_vae.hmc import leapfrog, transition


def correlated():
    """Return a Gaussian in three dimensions as `transition` takes it, and its covariance."""
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.4, 1.5]]).double()
    precision = torch.linalg.inv(root @ root.mT)

    def density(point):
        slope = -(point[0] @ precision)
        return 0.5 * (point[0] * slope).sum(-1), slope

    return root, density


def test_transitions_leave_their_target_invariant():
    root, density = correlated()
    torch.manual_seed(0)
    start = (torch.randn(20_000, 1, 3).double() @ root.mT,)
    point, rates = start, []
    for _ in range(10):
        point, acceptance = transition(point, lambda u: (u,), density, torch.tensor([0.6]).double(), 4)
        rates.append(acceptance.mean())
    assert 0.5 < sum(rates) / 10 < 0.9  # moves are rejected, and it matters which
    u = point[0][:, 0]
    odds.assert_mean(u, torch.zeros(3).double())
    odds.assert_mean((u.unsqueeze(-1) * u.unsqueeze(-2)).flatten(1), (root @ root.mT).flatten())
    assert (point[0] != start[0]).all()


def test_without_rejections_the_target_is_missed():
    """The comparison above can fail."""
    root, density = correlated()
    torch.manual_seed(0)
    point = (torch.randn(20_000, 1, 3).double() @ root.mT,)
    for _ in range(10):
        point, _ = leapfrog(point, torch.randn_like(point[0]), lambda u: (u,), density, torch.tensor([0.6]), 4)
    u = point[0][:, 0]
    with pytest.raises(AssertionError, match="standard errors off"):
        odds.assert_mean((u.unsqueeze(-1) * u.unsqueeze(-2)).flatten(1), (root @ root.mT).flatten())


def test_leapfrog_leads_back():
    _, density = correlated()
    torch.manual_seed(0)
    start, momentum = (torch.randn(5, 2, 3).double(),), torch.randn(5, 2, 3).double()
    step = torch.rand(5, 2).double()
    there, last = leapfrog(start, momentum, lambda u: (u,), density, step, 7)
    back, first = leapfrog(there, -last, lambda u: (u,), density, step, 7)
    assert (there[0] - start[0]).abs().max() > 0.1
    torch.testing.assert_close(back[0], start[0])
    torch.testing.assert_close(-first, momentum)


def test_the_error_in_the_energy_falls_with_the_square_of_the_step():
    _, density = correlated()
    torch.manual_seed(0)
    start, momentum = (torch.randn(500, 1, 3).double(),), torch.randn(500, 1, 3).double()

    def error(step, steps):
        point, last = leapfrog(start, momentum, lambda u: (u,), density, torch.tensor(step).double(), steps)
        energies = [0.5 * r.square().sum(-1) - density(u)[0] for u, r in ((start, momentum), (point, last))]
        return (energies[1] - energies[0]).abs().mean()

    assert error(0.02, 50) / error(0.01, 100) == pytest.approx(4, rel=0.05)
    assert error(0.01, 100) / error(0.005, 200) == pytest.approx(4, rel=0.02)


def test_what_is_no_number_is_rejected():
    def cliff(point):
        u = point[0][..., 0]
        return torch.where(u > 0, torch.nan, torch.where(u < -1, torch.inf, 0.0)), torch.zeros_like(point[0])

    start = (torch.full((2000, 1, 1), -0.5),)
    point, acceptance = transition(start, lambda u: (u,), cliff, torch.tensor([1.0]), 3)
    inside = (point[0] <= 0) & (point[0] >= -1)
    assert inside.all()
    assert 0 < (acceptance == 0).double().mean() < 1
