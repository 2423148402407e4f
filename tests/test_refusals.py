"""What is refused, on each subject by name, with what was found and the repair; and nothing has moved then."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from small import BitsGuide
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, Dataset, IterableDataset
from unchanged import assert_same, tensors

import ppl_vae as pv
from ppl_vae import traversing
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

F64 = torch.float64
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
X = torch.ones(20, 6)
COINS = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)


def pair():
    return VAE(**SIZES), Normal(**SIZES)


# Data.


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, row):
        raise IndexError(row)


class Stream(IterableDataset):
    def __iter__(self):
        yield from X


VERBS = {
    "fit": lambda model, guide, data: pv.fit(model, guide, data, epochs=1),
    "evaluate": lambda model, guide, data: pv.evaluate(model, guide, data, particles=2),
    "surgery": pv.elbo_surgery,
    "perplexity": lambda model, guide, data: pv.perplexity(guide, data),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_data_set_without_rows_is_refused(verb):
    model, guide = pair()
    for data in (Empty(), torch.zeros(0, 6)):
        with pytest.raises(ValueError, match=r"data: .*empty \(no rows\); check the split or the filter that made it"):
            VERBS[verb](model, guide, data)


def test_a_loader_without_rows_is_refused_where_none_was_looked_at_before():
    loader = DataLoader(Empty(), batch_size=2)
    with pytest.raises(ValueError, match=r"data: empty \(no rows\); check the split"):
        pv.perplexity(BitsGuide(), loader)
    with pytest.raises(ValueError, match=r"data: empty \(no rows\); check the split"):
        pv.elbo_surgery(*pair(), loader)


def test_a_stream_is_taken_in_a_loader_alone():
    model, guide = pair()
    before = tensors(model)
    with pytest.raises(TypeError, match=r"data: an IterableDataset has no epoch of its own; wrap it in a DataLoader"):
        pv.fit(model, guide, Stream(), epochs=1)
    assert_same(model, before)
    pv.fit(model, guide, DataLoader(Stream(), batch_size=5), epochs=1)


class Named(Dataset):
    """Data with a name where a row might stand."""

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return X[row], f"datum {row}"


class ByRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, x, index):
        with pyro.plate("data", x.shape[0], dim=-1):
            loc, log_scale = self.table(index).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class OfPairs(ByRow):
    def forward(self, x, y, index):
        super().forward(x, index)


class Looks(ByRow):
    """It looks something up that it has not for a datum of another kind, whatever its row."""

    def forward(self, x, index):
        for number in x[:, 0].tolist():
            (1.0, 2.0)[int(number)]
        super().forward(x, index)


def test_what_stands_in_the_place_of_rows_and_is_none_is_refused():
    with pytest.raises(
        pv.ContractError, match=r"data: part 1 stands in the place of index.*found list; name labels as"
    ):
        pv.fit(VAE(**SIZES), ByRow(), Named(), epochs=1)


def test_a_model_of_fewer_arguments_than_come_before_the_rows_is_refused():
    with pytest.raises(
        pv.ContractError, match=r"model, guide: they take \(x\) and \(x, y, index\), but index is the la"
    ):
        pv.fit(VAE(**SIZES), OfPairs(), (X, torch.ones(20)), epochs=1)


def test_an_error_of_a_persons_own_look_up_is_not_taken_for_a_lack_of_rows():
    x = X.clone()
    x[-1, 0] = 2.0  # the last datum, which is tried beforehand
    with pytest.raises(IndexError, match="tuple index out of range"):
        pv.fit(VAE(**SIZES), Looks(), x, batch_size=5, epochs=1)


# Distributions of a person's own.


class Own(dist.TorchDistribution):
    """A normal of which nothing is said but how to draw and to score."""

    arg_constraints = {}  # noqa: RUF012 - torch's own form
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008 - torch's own default
        return self.loc + torch.randn(torch.Size(sample_shape) + self.loc.shape)

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape))


class Stated(Own):
    support = constraints.real


class Numbers(nn.Module):
    """z ~ N(0, 1), x ~ N(z + bias, 1), by distributions that are given."""

    def __init__(self, prior=Stated, likelihood=Stated):
        super().__init__()
        self.bias, self.prior, self.likelihood = nn.Parameter(torch.zeros(())), prior, likelihood

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(torch.zeros(x.shape[0])))
            pyro.sample("x", self.likelihood(z + self.bias), obs=x)


class NumbersGuide(nn.Module):
    def __init__(self, kind=Stated):
        super().__init__()
        self.slope, self.kind = nn.Parameter(torch.zeros(())), kind

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.kind(self.slope * x))


@pytest.mark.parametrize(
    ("model", "guide", "site"),
    [
        (Numbers(prior=Own), NumbersGuide(), "z"),
        (Numbers(), NumbersGuide(Own), "z"),
        (Numbers(likelihood=Own), NumbersGuide(), "x"),
    ],
)
def test_a_distribution_that_does_not_state_its_support_is_refused(model, guide, site):
    message = rf"site '{site}': its distribution \(Own\) does not state its support; .*support = constraints.real"
    for verb in (pv.check, lambda *given: pv.fit(*given, epochs=1)):
        with pytest.raises(pv.ContractError, match=message):
            verb(model, guide, torch.zeros(8))
    pv.check(Numbers(), NumbersGuide(), torch.zeros(8))


def test_a_latent_without_a_centre_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"site 'z': its distribution \(Stated\) knows neither .* values of your own"
    ) as e:
        traversing.embedding(NumbersGuide(), torch.zeros(8))
    assert "\n" not in str(e.value)


class Breaks(Numbers):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("the person's own")


def test_a_persons_own_error_is_heard_when_data_are_reconstructed():
    with pytest.raises(RuntimeError, match="the person's own"):
        pv.reconstruct(Breaks(), NumbersGuide(), torch.zeros(8))


class Mixing(nn.Module):
    """Its likelihood is a mass function, and follows the other data."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 6)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z)
            logits = logits - logits.mean(-2, keepdim=True) if logits.dim() > 1 else logits
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def test_mixing_is_told_of_whole_numbers_as_of_others():
    with pytest.raises(pv.ContractError, match=r"model: site 'x' has log density .* something mixes particles or data"):
        pv.check(Mixing(), Normal(**SIZES), X)


# Numbers and objects.


@pytest.mark.parametrize("n", [0, True, 2.0, "2"])
def test_counts_are_whole_numbers(n):
    model, guide = pair()
    for call in (
        lambda: pv.sample(model, like=X, n=n),
        lambda: traversing.manifold(model, X, n=n),
        lambda: pv.quality.precision_recall(X, X, k=n),
    ):
        with pytest.raises(ValueError, match=rf"[nk]: expected a whole number of at least 1, found {n!r}"):
            call()
    with pytest.raises(ValueError, match=rf"particles: expected a whole number of at least 1, found {n!r}"):
        pv.reconstruct(model, guide, X, particles=n)


def test_an_optimizer_is_made_already_where_a_step_takes_it():
    model, guide = pair()
    with pytest.raises(
        TypeError, match=r"optimizer: expected a torch optimizer over the parameters of both, found <cla"
    ):
        pv.svi_step(model, guide, optimizer=torch.optim.Adam)


def test_dimensions_that_are_not_fixed_are_not_divided_by():
    class Twice(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                for name in ("x", "y"):
                    pyro.sample(name, dist.Normal(z, 1.0), obs=x)

    evaluation = pv.evaluate(Twice(), NumbersGuide(), torch.zeros(4), particles=5)
    for levels in (None, 256):
        with pytest.raises(
            ValueError, match=r"bits_per_dim: the data have no fixed number of dimensions \(masked, or sev"
        ):
            evaluation.bits_per_dim(levels=levels)


class EnumeratedBetween(nn.Module):
    """A guide: z, then a coin that it enumerates, then w that follows both."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.a[0] * x, 1.0))
            c = pyro.sample("c", dist.Categorical(logits=self.a), infer={"enumerate": "parallel"})
            pyro.sample("w", dist.Normal(z * self.a[1] + c.float(), 1.0))


class ThreeLatents(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            c = pyro.sample("c", dist.Categorical(logits=self.b))
            w = pyro.sample("w", dist.Normal(c.float(), 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)


@pytest.mark.parametrize("objective", [pv.objectives.stl, pv.objectives.dreg])
def test_gradients_are_not_stopped_draw_by_draw_around_what_is_enumerated(objective):
    model, guide = ThreeLatents(), EnumeratedBetween()
    before = tensors(guide)
    with pytest.raises(pv.ContractError, match=r"site 'w' has a density for each value of an enumerated site.*on elbo"):
        pv.fit(model, guide, torch.ones(4), objective=objective, particles=3, epochs=1)
    assert_same(guide, before)


class Holds(nn.Module):
    """A model that holds a guide's network, and reads no parameter."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Network(Holds):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.network(x.unsqueeze(-1)).squeeze(-1), 1.0))


def test_a_model_that_only_holds_the_guides_network_has_no_m_step():
    network = nn.Linear(1, 1)
    before = tensors(network)
    with pytest.raises(
        ValueError, match=r"model: it has no trainable parameters of its own, so that there is no M-step"
    ):
        pv.variational_em(Holds(network), Network(network), torch.ones(4), epochs=1)
    assert_same(network, before)


def test_a_program_that_raises_once_is_heard_when_data_are_reconstructed():
    class Once(Numbers):
        runs = 0

        def forward(self, x):
            self.runs += 1
            super().forward(x)
            if self.runs == 1:
                raise RuntimeError("once alone")

    with pytest.raises(RuntimeError, match="once alone"):
        pv.reconstruct(Once(), NumbersGuide(), torch.zeros(8))
