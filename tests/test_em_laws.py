"""Laws of expectation maximisation over every model with exact posteriors, new files in models/ included."""

import inspect
from functools import cache

import pairs
import pytest
import torch

import ppl_vae as pv
from ppl_vae import covariances, zoo
from ppl_vae.conditioning import expected_log_joint, posterior
from ppl_vae.latent_structure import log_prior, structure_of
from ppl_vae.models.gaussian_mixture import GaussianMixture
from ppl_vae.pairing import GIVEN

N = 60


def made(name, seed=0):
    torch.manual_seed(seed)
    return zoo.build(zoo.find("models", name), pairs.SMALL | {"regularization": 0.0}).double()


def drawn(name):
    """Return a batch whose data another model of the kind has drawn."""
    model = made(name, seed=1)
    given = list(inspect.signature(model.forward).parameters)[1:]
    shape = (N,) if "covariates" in given else (N, pairs.SMALL["x_dim"])
    others = {"covariates": lambda n, x_dim: torch.randn(n, x_dim).double(), **GIVEN}
    batch = (torch.zeros(shape).double(), *(others[name](N, pairs.SMALL["x_dim"]) for name in given))
    return (pv.sample(model, like=batch, n=N, seed=2)["x"], *batch[1:])


@cache
def refusal(name):
    """Return why a model has no exact posterior; None where it has one."""
    try:
        pv.em(made(name), drawn(name), iterations=1)
    except pv.ContractError as error:
        return str(error)
    return None


NAMES = [name for name in zoo.discover("models") if refusal(name) is None]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_only_networks_between_latent_and_data_are_refused():
    refused = set(zoo.discover("models")) - set(NAMES)
    assert len(NAMES) >= 10
    programs = zoo.discover("models").items()
    decoded = {name for name, model in programs if zoo.takes(model, "decoder") or zoo.takes(model, "generator")}
    assert refused == decoded | {"sigmoid_belief_network"}
    assert all("site '" in refusal(name) for name in refused)


def test_no_iteration_falls(name):
    found = pv.em(made(name), drawn(name), iterations=20, tol=0)
    rising = found.history["log_posterior" if "log_posterior" in found.history else "log_likelihood"]
    assert torch.tensor(rising, dtype=torch.float64).diff().min() > -1e-10
    assert len(rising) == 21


def test_an_m_step_of_the_models_own_is_a_maximum(name):
    """No gradient of the expected log joint density is left in any parameter or latent that all data share."""
    model, batch = made(name), drawn(name)
    if not hasattr(model, "m_step"):
        pytest.skip("by ascent")
    structure, points = structure_of(model, batch)
    found = posterior(structure, batch, points)
    new = model.m_step(found.sites(), *batch) or {}
    free = {site: torch.distributions.biject_to(structure.supports[site]).inv(value) for site, value in new.items()}
    tensors = [value.detach().requires_grad_() for value in free.values()] + [*model.parameters()]
    at = {
        site: torch.distributions.biject_to(structure.supports[site])(value)
        for site, value in zip(free, tensors, strict=False)
    }
    value = sum(expected_log_joint(structure, batch, found, at)) + log_prior(structure, batch, at)
    for slope in torch.autograd.grad(value, tensors):
        assert slope.abs().max() < 1e-6 * N


def test_the_model_is_left_at_what_is_told(name):
    model, batch = made(name), drawn(name)
    found = pv.em(model, batch, iterations=5)
    assert torch.equal(found.log_density(batch), found.log_px)
    for parameter, value in model.named_parameters():
        assert torch.equal(found.parameters[parameter], value)
    if found.discrete:
        torch.testing.assert_close(found.responsibilities.sum(1), torch.ones(N).double())
        assert torch.equal(found.predict(batch), found.responsibilities)


STRUCTURES = {
    "full": covariances.Full,
    "tied": covariances.Tied,
    "diag": covariances.Diagonal,
    "spherical": covariances.Spherical,
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_likelihood_of_a_mixture_is_scikit_learns(kind):
    from sklearn.mixture import GaussianMixture as Reference

    torch.manual_seed(0)
    x = torch.randn(200, 3).double() + 3 * torch.randn(4, 3).double()[torch.randint(4, (200,))]
    start = pv.starts.random(x, 4, seed=5)

    class Started(Reference):
        def _initialize_parameters(self, data, *args, **kwargs):
            self._initialize(data, start.numpy())

    model = GaussianMixture(3, 4, STRUCTURES[kind]).double()
    ours = pv.em(model, x, start=start, iterations=15, tol=0).history["log_likelihood"]
    for i in range(1, 16, 7):
        theirs = Started(n_components=4, covariance_type=kind, tol=0, max_iter=i).fit(x.numpy())
        assert abs(theirs.score(x.numpy()) - ours[i]) < 1e-8
