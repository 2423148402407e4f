"""M-steps of linear-Gaussian models: against closed forms, scikit-learn and gradients."""

import math

import pyro.distributions as dist
import pytest
import torch
from sklearn.decomposition import PCA, FactorAnalysis

from ppl_vae import regression
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.probabilistic_pca import ProbabilisticPCA

DOUBLE = torch.float64
N, X_DIM, Z_DIM = 400, 6, 2
PROGRAMS = [LinearGaussian, ProbabilisticPCA]


@pytest.fixture
def x():
    """Two strong factors, noise of several scales, and a mean."""
    torch.manual_seed(5)
    weight = 2 * torch.randn(X_DIM, Z_DIM, dtype=DOUBLE)
    noise = torch.tensor([0.3, 0.5, 0.8, 1.0, 0.6, 0.4], dtype=DOUBLE)
    z = torch.randn(N, Z_DIM, dtype=DOUBLE)
    return 3 + z @ weight.mT + noise * torch.randn(N, X_DIM, dtype=DOUBLE)


def em(model, x, iterations):
    """Return mean log p(x) at the start and after each iteration."""
    found = []
    for _ in range(iterations):
        found.append(model.log_px(x).mean().item())
        model.m_step({"z": model.posterior(x)}, x)
    return torch.tensor([*found, model.log_px(x).mean().item()], dtype=DOUBLE)


def expected(model, x, z):
    """Return E[log p(x, z)] under a Gaussian q(z), in closed form, up to the prior's constant."""
    noise = (2 * model.log_scale).exp().expand(X_DIM)
    loc = z.mean @ model.weight.mT + model.bias
    spread = torch.einsum("di,nij,dj->nd", model.weight, z.covariance_matrix, model.weight)
    return -((x - loc).square() / noise + spread / noise + noise.log()).sum() / 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_m_step_is_a_maximum(program, x):
    torch.manual_seed(0)
    model = program(X_DIM, Z_DIM).double()
    root = torch.randn(N, Z_DIM, Z_DIM, dtype=DOUBLE)
    covariance = root @ root.mT + 0.1 * torch.eye(Z_DIM, dtype=DOUBLE)  # one for each datum
    z = dist.MultivariateNormal(torch.randn(N, Z_DIM, dtype=DOUBLE), covariance)
    model.m_step({"z": z}, x)
    for gradient in torch.autograd.grad(expected(model, x, z), list(model.parameters())):
        assert gradient.abs().max() < 1e-9 * N


@pytest.mark.parametrize("program", PROGRAMS)
def test_em_never_falls(program, x):
    torch.manual_seed(0)
    found = em(program(X_DIM, Z_DIM).double(), x, 60)
    assert found.diff().min() > -1e-12
    assert found[-1] > found[0] + 1


def test_probabilistic_pcas_maximum_is_that_of_the_principal_components(x):
    model = ProbabilisticPCA(X_DIM, Z_DIM).double()
    model.maximise_likelihood(x)
    # scikit-learn divides by N - 1; its score on data scaled by this is ours, less the change of volume.
    ratio = math.sqrt(N / (N - 1))
    pca = PCA(Z_DIM).fit(x.numpy())
    scaled = (x - x.mean(0)) * ratio + x.mean(0)
    assert model.log_px(x).mean().item() == pytest.approx(
        pca.score(scaled.numpy()) + X_DIM * math.log(ratio), abs=1e-10
    )
    covariance = model.weight @ model.weight.mT + (2 * model.log_scale).exp() * torch.eye(X_DIM)
    torch.testing.assert_close(covariance.detach(), torch.as_tensor(pca.get_covariance()) / ratio**2)


def test_em_of_probabilistic_pca_reaches_its_maximum(x):
    torch.manual_seed(0)
    model, best = (ProbabilisticPCA(X_DIM, Z_DIM).double() for _ in range(2))
    best.maximise_likelihood(x)
    em(model, x, 1500)
    assert best.log_px(x).mean().item() == pytest.approx(model.log_px(x).mean().item(), abs=1e-10)
    torch.testing.assert_close(model.weight @ model.weight.mT, best.weight @ best.weight.mT, rtol=1e-6, atol=1e-6)
    kept = {name: tensor.clone() for name, tensor in best.state_dict().items()}
    best.m_step({"z": best.posterior(x)}, x)
    for name, tensor in best.state_dict().items():
        torch.testing.assert_close(tensor, kept[name])  # a fixed point


def test_em_of_factor_analysis_reaches_scikit_learns(x):
    torch.manual_seed(0)
    model = LinearGaussian(X_DIM, Z_DIM).double()
    em(model, x, 1500)
    reference = FactorAnalysis(Z_DIM, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    assert model.log_px(x).mean().item() == pytest.approx(reference.score(x.numpy()), abs=1e-8)
    covariance = model.weight @ model.weight.mT + (2 * model.log_scale).exp().diag()
    torch.testing.assert_close(covariance.detach(), torch.as_tensor(reference.get_covariance()), rtol=1e-4, atol=1e-4)


def test_probabilistic_pcas_posterior_obeys_bayes_rule(x):
    torch.manual_seed(0)
    model = ProbabilisticPCA(X_DIM, Z_DIM).double()
    model.log_scale.data.fill_(-0.4)
    z = torch.randn(N, Z_DIM, dtype=DOUBLE)
    likelihood = dist.Normal(z @ model.weight.mT + model.bias, model.log_scale.exp()).log_prob(x).sum(-1)
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + likelihood
    torch.testing.assert_close(joint - model.posterior(x).log_prob(z), model.log_px(x))


def test_small_noise_keeps_its_digits():
    """The line through both clouds is known, and so is what it leaves."""
    torch.manual_seed(0)
    latent = torch.randn(500, 1, dtype=DOUBLE)
    z = dist.MultivariateNormal(latent, 1e-18 * torch.eye(1, dtype=DOUBLE))
    noise = 1e-7 * torch.randn(500, 1, dtype=DOUBLE)
    noise = noise - noise.mean() - latent * (latent * noise).mean() / latent.var(correction=0)
    weight, bias, variance = regression.regress(5 + 3 * latent + noise, z)
    torch.testing.assert_close(weight.item(), 3.0, rtol=1e-8, atol=0)
    torch.testing.assert_close(bias.item(), 5.0, rtol=1e-8, atol=0)
    assert variance.item() == pytest.approx(noise.var(correction=0).item(), rel=0.02)


def test_what_has_no_maximum_is_refused_and_changes_nothing(x):
    model = LinearGaussian(X_DIM, Z_DIM).double()
    constant = x.clone()
    constant[:, 4] = 0.1
    cases = [
        (lambda: model.m_step({"z": model.posterior(constant)}, constant), "x: dimension 4 is constant or follows"),
        (lambda: pca.maximise_likelihood(x[:, :3] @ x[:3]), r"x: 4 axes leave no noise.*give fewer \(z_dim\)"),
        (lambda: narrow.maximise_likelihood(x[:, :2]), "x: 2 axes leave no noise"),
    ]
    pca, narrow = ProbabilisticPCA(X_DIM, 4).double(), ProbabilisticPCA(2, 2).double()
    for program, (step, message) in zip((model, pca, narrow), cases, strict=True):
        before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict().items())
