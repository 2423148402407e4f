"""What M-steps are made of: components chosen for data, and moments that keep their digits."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_vae import components, conjugate_priors, covariances

DOUBLE = torch.float64


def normals(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def responsibilities(n, y_dim):
    return normals(n, y_dim).softmax(1)


def about_own_means(x, r):
    """Return counts, means and outer products, one component after the other."""
    found = []
    for weight in r.unbind(1):
        mean = (weight.unsqueeze(-1) * x).sum(0) / weight.sum()
        centred = x - mean
        found.append((weight.sum(), mean, torch.einsum("n,ni,nj->ij", weight, centred, centred)))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


# One dimension, features, features in several chunks, a product for each component.
@pytest.mark.parametrize(("n", "x_dim"), [(50, 1), (50, 3), (3000, 20), (400, 40)])
def test_moments_are_those_of_each_component(n, x_dim):
    x, r = 5 + normals(n, x_dim), responsibilities(n, 4)
    counts, mean, scatter = about_own_means(x, r)
    found = components.moments(x, r)
    torch.testing.assert_close(found[0], counts)
    torch.testing.assert_close(found[1], mean)
    matrices = components.scatter_matrices(x, r)
    torch.testing.assert_close(matrices, scatter, rtol=1e-11, atol=1e-9)
    assert torch.equal(matrices, matrices.mT)
    squares = components.scatter_squares(x, r)
    torch.testing.assert_close(squares, scatter.diagonal(dim1=-2, dim2=-1), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("apart", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("x_dim", [2, 40])
def test_narrow_components_far_apart_keep_their_digits(apart, offset, x_dim):
    y = torch.arange(600) % 3
    x = offset + apart * normals(3, x_dim)[y] + 0.1 * normals(600, x_dim)
    r = torch.nn.functional.one_hot(y).to(DOUBLE)
    _, _, scatter = about_own_means(x, r)
    largest = scatter.diagonal(dim1=-2, dim2=-1).amax()
    found = components.scatter_matrices(x, r)
    assert (found - scatter).abs().max() < 1e-10 * largest
    squares = components.scatter_squares(x, r)
    assert (squares - scatter.diagonal(dim1=-2, dim2=-1)).abs().max() < 1e-10 * largest
    tied = covariances.Tied(3, x_dim).double()
    tied.m_step(x, r, *components.moments(x, r))
    assert (tied.matrices()[0] - scatter.sum(0) / 600).abs().max() < 1e-10 * largest / 200


def test_moments_in_single_precision_agree_with_double():
    x = 100 + normals(5000, 4)
    r = responsibilities(5000, 3)
    wanted = components.scatter_matrices(x, r)
    single = (x.float(), r.float())
    found = components.scatter_matrices(*single)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_component_without_data_has_the_mean_of_all():
    x, r = normals(20, 2), torch.tensor([[1.0, 0.0]]).double().expand(20, 2)
    counts, mean = components.moments(x, r)
    assert counts.tolist() == [20, 0]
    torch.testing.assert_close(mean, x.mean(0).expand(2, 2))
    assert components.scatter_squares(x, r)[1].tolist() == [0, 0]


def test_bad_data_are_refused():
    x, r = normals(20, 2), responsibilities(20, 3)
    with pytest.raises(ValueError, match=r"responsibilities: expected a row for each of the 20 data, found.*\(19, 3\)"):
        components.moments(x, r[1:])
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="x: it has values that are infinite or nan"):
        components.moments(x, r)


@pytest.mark.parametrize("structure", [covariances.Full, covariances.Tied, covariances.Diagonal, covariances.Spherical])
def test_structures_are_the_normal_of_their_matrices(structure):
    module, mean, x = structure(3, 4).double(), normals(3, 4), normals(7, 4)
    for parameter in module.parameters():
        parameter.data.normal_()
    y = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    wanted = dist.MultivariateNormal(mean[y], module.matrices()[y]).log_prob(x)
    torch.testing.assert_close(module.normal(mean, y).log_prob(x), wanted)
    every = torch.arange(3).unsqueeze(-1)  # as enumerated
    wanted = dist.MultivariateNormal(mean.unsqueeze(1), module.matrices().unsqueeze(1)).log_prob(x)
    torch.testing.assert_close(module.normal(mean, every).log_prob(x), wanted)


def test_particles_of_components_stay_left_of_the_data():
    means, matrices, y = normals(5, 3, 2), normals(5, 3, 2, 2), torch.tensor([2, 0, 1, 1])
    assert torch.equal(components.select(means, y), means[:, y])
    assert torch.equal(components.select(matrices, y, event_dim=2), matrices[:, y])
    every = torch.arange(3).reshape(3, 1, 1)
    assert torch.equal(components.select(means, every), means.transpose(0, 1).unsqueeze(2))
    own = torch.randint(3, (5, 4))
    assert torch.equal(components.select(means, own), means[torch.arange(5).unsqueeze(-1), own])


def test_wishart_draws_are_wishart_and_come_without_warnings(recwarn):
    scale = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
    wishart = conjugate_priors.Wishart(torch.tensor(5.0).double(), scale).expand((3,))
    draws = wishart.sample((4000,))
    assert not recwarn.list
    traces = torch.linalg.solve(scale, draws).diagonal(dim1=-2, dim2=-1).sum(-1)  # chi-squared, 2 * 5 degrees
    assert stats.kstest(traces.flatten().numpy(), stats.chi2(10).cdf).pvalue > 1e-5
    torch.testing.assert_close(
        wishart.log_prob(draws[0]), torch.as_tensor(stats.wishart(5, scale.numpy()).logpdf(draws[0].permute(1, 2, 0)))
    )
