"""What coordinate ascent keeps of one update for the next, held to what it would compute anew."""

import weakref

import pytest
import torch

from ppl_vae import mean_field
from ppl_vae.densities import normalised
from ppl_vae.mean_field import Factorised
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.bayesian_linear_regression import BayesianLinearRegression
from ppl_vae.models.normal_gamma import NormalGamma
from ppl_vae.models.probabilistic_pca import ProbabilisticPCA

N = 30
MODELS = {
    "Gaussian mixture": lambda: (BayesianGaussianMixture(2, 3), numbers(2)),
    "diagonal mixture": lambda: (BayesianDiagonalMixture(2, 3), numbers(2)),
    "Bernoulli mixture": lambda: (BayesianBernoulliMixture(4, 2), (numbers(4)[0] > 0).double()),
    "linear regression": lambda: (BayesianLinearRegression(2), (numbers(1)[0][:, 0], *numbers(2))),
    "normal and gamma": lambda: (NormalGamma(), numbers(1)),
    "principal components": lambda: (ProbabilisticPCA(3, 2), numbers(3)),
}


def numbers(dims):
    torch.manual_seed(0)
    return (torch.randn(N, dims).double() + 3 * (torch.arange(N) % 3).double().unsqueeze(1),)


@pytest.fixture(params=MODELS)
def factorised(request):
    return made(*MODELS[request.param]())


def made(model, batch, joint=None):
    torch.manual_seed(1)
    return mean_field.factorised(model.double(), batch if isinstance(batch, tuple) else (batch,), joint)


def anew(factorised):
    """Return the same posterior without anything kept."""
    other = Factorised(factorised.model, factorised.batch, factorised.structure, factorised.point)
    other.load(factorised.eta, factorised.expected.weights)
    return other


def iterations(factorised, n):
    for _ in range(n):
        factorised.update_global()
        factorised.update_local()
        yield


def agree(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_kept_runs_give_the_optimum_of_new_ones(factorised):
    for _ in iterations(factorised, 7):
        fresh = anew(factorised)
        for name in factorised.factors:
            agree(factorised.optimal(name), fresh.optimal(name))


def test_the_bound_after_a_local_update_is_that_of_the_posterior(factorised):
    for _ in iterations(factorised, 3):
        torch.testing.assert_close(factorised.elbo(), anew(factorised).elbo(), rtol=1e-11, atol=1e-11)


def test_what_is_kept_does_not_outlive_a_change():
    factorised = made(*MODELS["diagonal mixture"](), joint=())  # the mean's update reads the precision's points
    for _ in iterations(factorised, 2):
        pass
    for change in (lambda: factorised.update("mean"), lambda: factorised.update("weights"), uneven(factorised)):
        change()
        torch.testing.assert_close(factorised.elbo(), anew(factorised).elbo(), rtol=1e-11, atol=1e-11)
        agree(factorised.optimal("precision"), anew(factorised).optimal("precision"))


def uneven(factorised):
    """Return what gives a discrete latent other probabilities than its best."""
    weights = torch.rand(3, N).double()
    return lambda: factorised.expected.weigh_discrete("y", weights / weights.sum(0))


def counted():
    """Return a mixture, and a list that gets the number of data of each run of its program."""
    runs = []

    class Counted(BayesianGaussianMixture):
        def forward(self, x):
            runs.append(len(x))
            super().forward(x)

    return made(Counted(2, 3), numbers(2)), runs


def test_an_iteration_of_a_mixture_runs_its_program_twice():
    factorised, runs = counted()
    for _ in iterations(factorised, 20):  # until parameters move by less than half their size
        pass
    runs.clear()
    for _ in iterations(factorised, 3):
        factorised.elbo()
    assert runs == [1] * 6  # on a single datum, for each of two points


def test_a_step_on_a_minibatch_runs_its_program_thrice():
    factorised, runs = counted()
    for _ in iterations(factorised, 20):
        pass

    def step(rows):
        part = factorised.part(rows)
        part.update_local()
        part.update_global(0.01)
        factorised.take(part)

    step(torch.arange(6))
    runs.clear()
    step(torch.arange(5, 12))
    assert runs == [7, 1, 1]  # for what the batch observes, then on a datum of it for each of two points


def test_a_part_is_the_posterior_of_these_data(factorised):
    for _ in iterations(factorised, 2):
        pass
    rows = torch.arange(3, 20)
    part, other = factorised.part(rows), factorised.on(tuple(x[rows] for x in factorised.batch), scale=N / len(rows))
    other.load({n: eta for n, eta in part.eta.items() if part.factors[n].local}, part.expected.weights)
    for one in (part, other):
        one.update_local()
        one.update_global(0.3)
    for name, eta in part.eta.items():
        agree(eta, other.eta[name])


def test_runs_on_all_data_are_in_memory_one_at_a_time():
    alive, most = weakref.WeakSet(), []

    class Watched(ProbabilisticPCA):
        def forward(self, x):
            if len(x) == N:
                most.append(len(alive))
                alive.add(mark := torch.zeros(N, 1).double().requires_grad_())
                return super().forward(x + mark.detach() * mark)  # the graph of whatever reads x holds it
            return super().forward(x)

    factorised = made(Watched(6, 5), numbers(6))
    most.clear()
    for _ in iterations(factorised, 2):
        factorised.elbo()
    assert len(most) > 10
    assert max(most) <= 2  # the one before goes when the next is there


def test_restarts_share_nothing():
    factorised = made(*MODELS["Gaussian mixture"]())
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        factorised.begin()
        for _ in iterations(factorised, 4):
            pass
        states.append(dict(factorised.eta))
    for name, eta in states[0].items():
        assert all(map(torch.equal, eta, states[1][name])), name


def test_probabilities_are_zero_where_no_arithmetic_could_tell():
    log_p = torch.tensor([0.0, -1.0, -690.0, -720.0, -1e5]).double()
    found, total = normalised(log_p, 0)
    assert (found > 0).tolist() == [True, True, False, False, False]
    torch.testing.assert_close(found, log_p.softmax(0), rtol=0, atol=1e-290)
    torch.testing.assert_close(total, log_p.logsumexp(0))
