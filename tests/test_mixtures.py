"""Mixtures and their M-steps: against scikit-learn iteration by iteration, and against gradients."""

import warnings

import pytest
import torch
from pyro import poutine
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference

import ppl_vae as pv
from ppl_vae import covariances
from ppl_vae.guides.empty import Empty
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.bernoulli_mixture import BernoulliMixture
from ppl_vae.models.gaussian_mixture import GaussianMixture

DOUBLE = torch.float64
STRUCTURES = {
    "full": covariances.Full,
    "tied": covariances.Tied,
    "diag": covariances.Diagonal,
    "spherical": covariances.Spherical,
}
# Precisions as scikit-learn keeps them.
KEPT = {
    "full": lambda precision: precision,
    "tied": lambda precision: precision[0],
    "diag": lambda precision: precision.diagonal(dim1=-2, dim2=-1),
    "spherical": lambda precision: precision[:, 0, 0],
}
N, X_DIM, Y_DIM = 300, 3, 4


def normals(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def clusters():
    """Return overlapping clusters, and responsibilities of all shapes to start from."""
    torch.manual_seed(3)
    y = torch.randint(Y_DIM, (N,))
    centres, widths = 2 * normals(Y_DIM, X_DIM), normals(Y_DIM, X_DIM, X_DIM)
    x = centres[y] + (widths[y] @ normals(N, X_DIM, 1)).squeeze(-1)
    return x, (4 * normals(N, Y_DIM)).softmax(1)


def pixels():
    """Return binary data of two classes, and responsibilities."""
    torch.manual_seed(4)
    probability = torch.tensor([[0.2, 0.7, 0.5], [0.9, 0.3, 0.6]], dtype=DOUBLE)
    return torch.bernoulli(probability[torch.randint(2, (N,))]), normals(N, Y_DIM).softmax(1)


def joint(model, x, given=None):
    """Return log p(x, y | globals) for each y, ``(N, C)``, and the trace of the last."""
    columns = []
    for k in range(Y_DIM):
        data = {**(given or {}), "y": torch.full((len(x),), k)}
        trace = poutine.trace(poutine.condition(model, data=data)).get_trace(x)
        trace.compute_log_prob()
        columns.append(trace.nodes["y"]["log_prob"] + trace.nodes["x"]["log_prob"])
    return torch.stack(columns, 1), trace


def expected(model, x, responsibilities, given=None):
    """Return E[log p(x, y | globals)] + log p(globals)."""
    log_p, trace = joint(model, x, given)
    return (responsibilities * log_p).sum() + sum(trace.nodes[name]["log_prob"].sum() for name in given or {})


def em(model, x, responsibilities, iterations):
    """Yield mean log p(x) after the first M-step, and after each iteration."""
    model.m_step({"y": responsibilities}, x)
    for _ in range(iterations):
        log_p = joint(model, x)[0].detach()
        yield log_p.logsumexp(1).mean().item()
        model.m_step({"y": log_p.softmax(1)}, x)


def gaussian(kind, regularization=1e-6):
    torch.manual_seed(0)
    return GaussianMixture(X_DIM, Y_DIM, STRUCTURES[kind], regularization).double()


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("regularization", [0.0, 1e-6, 0.1])
def test_em_is_scikit_learns_iteration_by_iteration(kind, regularization):
    x, start = clusters()
    model, iterations = gaussian(kind, regularization), 25
    model.m_step({"y": start}, x)
    reference = Reference(
        Y_DIM,
        covariance_type=kind,
        reg_covar=regularization,
        tol=0,
        max_iter=iterations,
        init_params="random",
        weights_init=model.logits.exp().detach().numpy(),
        means_init=model.mean.detach().numpy(),
        precisions_init=KEPT[kind](torch.linalg.inv(model.covariance.matrices().detach())).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference.fit(x.numpy())
    found = torch.tensor(list(em(model, x, start, iterations)), dtype=DOUBLE)
    torch.testing.assert_close(found, torch.as_tensor(reference.lower_bounds_), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.mean.detach(), torch.as_tensor(reference.means_), rtol=0, atol=1e-8)
    assert found[-1] > found[0]
    if not regularization:
        assert found.diff().min() > -1e-12


@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_m_step_is_a_maximum(kind):
    assert_maximal(gaussian(kind, regularization=0.0), *clusters())


def test_the_bernoulli_m_step_is_a_maximum():
    assert_maximal(BernoulliMixture(X_DIM, Y_DIM).double(), *pixels())


def assert_maximal(model, x, r):
    """Assert that its M-step finds a stationary point, and that nothing near it is larger."""
    model.m_step({"y": r}, x)
    best = expected(model, x, r)
    for gradient in torch.autograd.grad(best, list(model.parameters())):
        assert gradient.abs().max() < 1e-9 * N
    for parameter in model.parameters():
        parameter.data += 1e-3 * normals(*parameter.shape)
        assert expected(model, x, r) < best


def test_em_of_a_bernoulli_mixture_never_falls():
    x, r = pixels()
    found = torch.tensor(list(em(BernoulliMixture(X_DIM, Y_DIM).double(), x, r, 30)), dtype=DOUBLE)
    assert found.diff().min() > -1e-12
    assert found[-1] > found[0]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_probabilities_of_zero_and_one_stay_finite_and_cost_the_data_nothing(dtype):
    x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]], dtype=dtype)
    model = BernoulliMixture(X_DIM, 1).to(dtype)
    model.m_step({"y": torch.ones(2, 1, dtype=dtype)}, x)
    contradicting = 1 - x
    log_px = pv.weigh(model, Empty(), torch.cat([x, contradicting])).log_w[0]
    torch.testing.assert_close(log_px[:2].detach(), torch.full((2,), 0.5, dtype=dtype).log())
    assert log_px[2:].isfinite().all()
    assert (log_px[2:] < -170).all()
    gradients = torch.autograd.grad(log_px.sum(), list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


PRIORS = {
    "full": (BayesianGaussianMixture, clusters, {"prior_mean": 0.3, "mean_precision": 2.0, "degrees_of_freedom": 4.5}),
    "diagonal": (BayesianDiagonalMixture, clusters, {"prior_mean": 0.3, "mean_precision": 2.0, "rate": 0.7}),
    "pixels": (BayesianBernoulliMixture, pixels, {"on": 1.5, "off": 3.0}),
}


def bayesian(kind):
    """Return a program with priors, data, responsibilities and what its M-step returns for them."""
    program, data, options = PRIORS[kind]
    model = program(X_DIM, Y_DIM, concentration=torch.tensor([1.0, 2.0, 1.5, 3.0]), **options).double()
    x, r = data()
    return model, x, r, model.m_step({"y": r}, x)


@pytest.mark.parametrize("kind", PRIORS)
def test_the_m_step_with_priors_is_the_mode(kind):
    """No gradient remains, but for weights along the simplex's normal, where they cannot move."""
    model, x, r, values = bayesian(kind)
    values = {name: value.requires_grad_() for name, value in values.items()}
    gradients = torch.autograd.grad(expected(model, x, r, values), list(values.values()))
    for name, gradient in zip(values, gradients, strict=True):
        left = gradient - gradient.mean() if name == "weights" else gradient
        assert left.abs().max() < 1e-9 * N, name


@pytest.mark.parametrize("kind", PRIORS)
def test_the_mode_is_a_maximum(kind):
    model, x, r, values = bayesian(kind)
    best = expected(model, x, r, values)
    for name, value in values.items():
        for step in (0.98, 1.02):
            moved = value**step
            moved = moved / moved.sum() if name == "weights" else (moved if value.min() > 0 else value * step)
            assert expected(model, x, r, values | {name: moved}) < best, name


@pytest.mark.parametrize("kind", PRIORS)
def test_a_component_without_data_takes_its_priors_mode(kind):
    model, x, r, _ = bayesian(kind)
    r = torch.cat([torch.zeros(N, 1), r[:, 1:] / r[:, 1:].sum(1, keepdim=True)], 1)
    values = model.m_step({"y": r}, x)
    assert all(value.isfinite().all() for value in values.values())
    assert values["weights"][0] == 0
    if "mean" in values:
        torch.testing.assert_close(values["mean"][0], model.prior_mean)
    assert expected(model, x, r, values).isfinite()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (BayesianGaussianMixture(X_DIM, Y_DIM, concentration=0.5), "concentration: the posterior has a mode if.*0.5"),
        (BayesianGaussianMixture(X_DIM, Y_DIM, degrees_of_freedom=2.5), "degrees_of_freedom: too small"),
        (BayesianDiagonalMixture(X_DIM, Y_DIM, shape=0.3), "shape: too small"),
        (BayesianBernoulliMixture(X_DIM, Y_DIM, on=0.9), "on and off: the posterior has a mode if.*0.9"),
        (BayesianBernoulliMixture(X_DIM, Y_DIM, on=1.0, off=1.0), "on and off: at 1 it leaves a component"),
    ],
)
def test_a_mode_that_does_not_exist_is_refused(model, message):
    r = torch.zeros(N, Y_DIM, dtype=DOUBLE)
    r[:, 0] = 1
    with pytest.raises(ValueError, match=message):
        model.double().m_step({"y": r}, pixels()[0])


def kept(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model, before):
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_component_without_data_is_named(kind):
    (x, r), model = clusters(), gaussian(kind)
    before = kept(model)
    r[:, 2] = 0
    with pytest.raises(ValueError, match=r"component 2 holds no data.*use fewer components, another start"):
        model.m_step({"y": r}, x)
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_covariance_that_is_not_positive_definite_is_named(kind):
    (x, r), model = clusters(), gaussian(kind, regularization=0.0)
    before = kept(model)
    if kind == "tied":
        x[:, 1] = 0.1 * x[:, 0] + 7
    else:
        r[:, 1] = 0
        r[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    which = "the covariance that all components share" if kind == "tied" else "component 1: its covariance"
    with pytest.raises(ValueError, match=f"{which} is not positive definite.*larger regularization"):
        model.m_step({"y": r}, x)
    assert_untouched(model, before)
    model.regularization = 1e-3
    model.m_step({"y": r}, x)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_a_constant_dimension_is_found_wherever_it_lies(kind):
    (x, r), model = clusters(), gaussian(kind, regularization=0.0)
    x[:, 2] = 1234.5678901
    with pytest.raises(ValueError, match="not positive definite"):
        model.m_step({"y": r}, x)


def test_the_bernoulli_mixture_names_a_component_without_data():
    (x, r), model = pixels(), BernoulliMixture(X_DIM, Y_DIM).double()
    before = kept(model)
    r[:, 3] = 0
    with pytest.raises(ValueError, match="component 3 holds no data"):
        model.m_step({"y": r}, x)
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_weights_under_the_empty_guide_are_the_likelihood(kind):
    (x, r), model = clusters(), gaussian(kind)
    model.m_step({"y": r}, x)
    log_w = pv.weigh(model, Empty(), x, particles=2).log_w
    torch.testing.assert_close(log_w, joint(model, x)[0].logsumexp(1).expand(2, -1))


def test_the_bernoulli_mixtures_weights_are_its_likelihood():
    (x, _), model = pixels(), BernoulliMixture(X_DIM, Y_DIM).double()
    log_w = pv.weigh(model, Empty(), x).log_w
    torch.testing.assert_close(log_w[0], joint(model, x)[0].logsumexp(1))


def by_ascent(x):
    model = BernoulliMixture(X_DIM, 2)
    return pv.em(model, x, iterations=3, log_prior=pv.normal_prior(model))


BITS = {
    "em": lambda x: pv.em(BernoulliMixture(X_DIM, 2), x, iterations=3),
    "em by ascent": by_ascent,
    "em of modes": lambda x: pv.em(BayesianBernoulliMixture(X_DIM, 2), x, iterations=3),
    "cavi": lambda x: pv.cavi(BayesianBernoulliMixture(X_DIM, 2), x, iterations=3),
}


@pytest.mark.parametrize("fitted", BITS.values(), ids=BITS.keys())
def test_bits_may_be_truth_values_or_whole_numbers(fitted):
    histories, (x, _) = [], pixels()
    for data in (x.float(), x.bool(), x.long()):
        torch.manual_seed(0)
        histories.append(fitted(data).history)
    assert histories[0] == histories[1] == histories[2]
