"""Wrong programs and wrong data, each with the message that a person gets."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

D = 6
X = torch.ones(8, D)


def normal(shape, loc=0.0):
    return dist.Normal(torch.full(shape, float(loc)), 1.0)


def vae():
    return VAE(x_dim=D, z_dim=2, hidden=(4,))


def guide():
    return Normal(x_dim=D, z_dim=2, hidden=(4,))


def data_plate(x):
    return pyro.plate("data", x.shape[0], dim=-1)


def model_of(z, likelihood):
    """Make a model from a function that draws z and one that gives the likelihood of x."""

    def model(x):
        with data_plate(x):
            latent = z(x)
            pyro.sample("x", likelihood(latent), obs=x)

    return model


def guide_of(z):
    def program(x):
        with data_plate(x):
            z(x)

    return program


def latent(name="z", event=1, size=2, make=normal):
    def draw(x):
        d = make((x.shape[0], size))
        return pyro.sample(name, d.to_event(event) if event else d)

    return draw


def bernoulli(z):
    return dist.Bernoulli(logits=z[..., :1].expand(*z.shape[:-1], D)).to_event(1)


def nothing(x):
    pass


def second_plate(x):
    with data_plate(x), pyro.plate("pixels", 2, dim=-2):
        return pyro.sample("z", normal((2, x.shape[0])))


def misnamed_plate(x):
    with pyro.plate("batch", x.shape[0], dim=-1):
        return pyro.sample("z", normal((x.shape[0], 2)).to_event(1))


def sized_plate(x):
    with pyro.plate("data", 5, dim=-1):
        return pyro.sample("z", normal((5, 2)).to_event(1))


def left_plate(x):
    with pyro.plate("data", x.shape[0], dim=-2):
        return pyro.sample("z", normal((x.shape[0], 1)))


def unplated(x):
    return pyro.sample("z", normal((x.shape[0], 2)).to_event(1))


def unplated_likelihood(x):
    with data_plate(x):
        z = pyro.sample("z", normal((x.shape[0], 2)).to_event(1))
    pyro.sample("x", dist.Bernoulli(logits=z[..., :1].expand(*z.shape[:-1], D)).to_event(2), obs=x)


def global_latent(x):
    pyro.sample("theta", normal((3,)).to_event(1))
    with data_plate(x):
        z = pyro.sample("z", normal((x.shape[0], 2)).to_event(1))
        pyro.sample("x", bernoulli(z), obs=x)


def global_guide(x):
    pyro.sample("theta", normal((3,)).to_event(1))
    latent_guide(x)


def sequential_plate(x):
    for i in pyro.plate("data", x.shape[0]):
        pyro.sample(f"z_{i}", normal((2,)).to_event(1))


def scaled_plate(x, size, observe):
    with pyro.plate("data", size, x.shape[0], dim=-1):
        z = pyro.sample("z", normal((x.shape[0], 2)).to_event(1))
        if observe:
            pyro.sample("x", bernoulli(z), obs=x)


def marked(x, prior, how, **options):
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", prior, infer={"enumerate": how, **options})
        pyro.sample("x", bernoulli((y if y.dim() > 1 else y.unsqueeze(-1)) * torch.ones_like(x)), obs=x)


def categories(n):
    return latent(event=0, make=lambda shape: dist.Categorical(torch.ones(shape[0], n)))


def hidden_guide():
    """Return a guide that keeps its network where nobody finds it, and does not declare it."""
    network = nn.Linear(D, 2)
    hidden = (lambda: network,)

    def program(x, find=hidden):
        with data_plate(x):
            pyro.sample("z", dist.Normal(find[0]()(x), 1.0).to_event(1))

    return program


class Unused(VAE):
    def __init__(self):
        super().__init__(x_dim=D, z_dim=2, hidden=(4,))
        self.classifier = nn.Linear(2, 10)


class Flattening(nn.Module):
    """A decoder that takes the batch to be the first axis."""

    def forward(self, z):
        return dist.Bernoulli(logits=z.sum(-1).reshape(len(z), 1).expand(-1, D)).to_event(1)


latent_guide = guide_of(latent())
latent_model = model_of(latent(), bernoulli)

WRONG = {
    "a latent that the guide forgets": (
        latent_model,
        nothing,
        X,
        r"site 'z' is latent in the model, but the guide never samples it \(it samples none\); add pyro.sample\('z'",
    ),
    "a guide site that the model lacks": (
        latent_model,
        guide_of(lambda x: (latent()(x), latent("y")(x))),
        X,
        r"site 'y' is sampled by the guide, but the model has no such latent \(it has 'z'\); remove it",
    ),
    "a guide site that the model observes": (
        latent_model,
        guide_of(lambda x: (latent()(x), latent("x", size=D)(x))),
        X,
        r"site 'x' is sampled by the guide, but the model observes it; remove it",
    ),
    "a missing to_event in the guide": (
        latent_model,
        guide_of(latent(event=0)),
        X,
        r"guide: site 'z' has batch shape \(8, 2\) and event shape \(\).*add .to_event\(1\)",
    ),
    "a missing to_event in the model": (
        model_of(latent(event=0), bernoulli),
        latent_guide,
        X,
        r"model: site 'z' has batch shape \(8, 2\).*add .to_event\(1\)",
    ),
    "a missing to_event where the batch has the event's size": (
        model_of(latent(event=0, size=8), bernoulli),
        guide_of(latent(event=0, size=8)),
        X,
        r"site 'z' has batch shape \(., 8\).*add .to_event\(1\)",
    ),
    "a prior without to_event that happens to be as long as the batch": (
        model_of(lambda x: pyro.sample("z", normal((8,))), lambda z: bernoulli(z.unsqueeze(-1))),
        guide_of(lambda x: pyro.sample("z", normal((8,)))),
        X,
        r"site 'z' has batch shape \(8,\).*\(7 rows\) must be an event: add .to_event\(1\)",
    ),
    "a likelihood without to_event": (
        model_of(latent(), lambda z: dist.Bernoulli(logits=z[..., :1].expand(*z.shape[:-1], D))),
        latent_guide,
        X,
        r"model: site 'x' has batch shape \(8, 6\).*add .to_event\(1\)",
    ),
    "a second plate": (
        second_plate,
        second_plate,
        X,
        r"site 'z' is inside the plate 'pixels' \(size 2\), a second plate; .*\.to_event",
    ),
    "a misnamed plate": (
        lambda x: pyro.sample("x", bernoulli(misnamed_plate(x)).to_event(1), obs=x),
        misnamed_plate,
        X,
        r"site 'z' is inside the plate 'batch' \(size 8\), a misnamed batch plate; name it 'data'",
    ),
    "a plate of a fixed size": (
        sized_plate,
        sized_plate,
        X,
        r"the plate 'data' has size 5, but the batch has 8 rows; write pyro.plate\('data', x.shape\[0\]",
    ),
    "a plate at another dim": (left_plate, left_plate, X, r"the plate 'data' has dim=-2; it needs dim=-1"),
    "a sequential plate": (latent_model, sequential_plate, X, r"site 'z_0'.*dim=None; it needs dim=-1"),
    "an unplated latent": (
        unplated,
        unplated,
        X,
        r"site 'z' has one value per datum \(shape \(8, 2\)\) but stands outside the plate 'data'; put it inside",
    ),
    "an unplated likelihood": (
        unplated_likelihood,
        latent_guide,
        X,
        r"model: site 'x' has one value per datum.*outside the plate 'data'",
    ),
    "a global latent": (
        global_latent,
        global_guide,
        X,
        r"site 'theta' is a global latent \(outside the plate 'data'\).*make it a parameter",
    ),
    "another event shape": (
        vae(),
        Normal(x_dim=D, z_dim=3, hidden=(4,)),
        X,
        r"site 'z' has event shape \(2,\) in the model and \(3,\) in the guide; give both the same size",
    ),
    "a guide outside the prior's support": (
        model_of(latent(make=lambda s: dist.Gamma(torch.ones(s), 1.0)), bernoulli),
        latent_guide,
        X,
        r"site 'z' has support .* in the model \(Gamma\) and .* in the guide \(Normal\); choose a guide",
    ),
    "a guide that reaches less than the prior": (
        latent_model,
        guide_of(latent(make=lambda s: dist.Gamma(torch.ones(s), 1.0))),
        X,
        r"site 'z' has support .* in the model \(Normal\) and .* in the guide \(Gamma\)",
    ),
    "a discrete guide for a continuous latent": (
        latent_model,
        guide_of(latent(make=lambda s: dist.Bernoulli(torch.full(s, 0.5)))),
        X,
        r"site 'z' has support .*\(Normal\).*\(Bernoulli\)",
    ),
    "a guide that is a point": (
        latent_model,
        guide_of(latent(make=lambda s: dist.Delta(torch.zeros(s)))),
        X,
        r"site 'z' is a point mass \(Delta\) in the guide, which has no density",
    ),
    "a deterministic likelihood": (
        model_of(latent(), lambda z: dist.Delta(z[..., :1].expand(*z.shape[:-1], D)).to_event(1)),
        latent_guide,
        X,
        r"site 'x' is a deterministic likelihood \(Delta\).*give it noise",
    ),
    "model and guide swapped": (
        guide(),
        vae(),
        X,
        r"guide: site 'x' is observed, but a guide only draws latents; are model and guide swapped\?",
    ),
    "a model that observes nothing": (guide_of(latent()), latent_guide, X, "model: it observes nothing; give the data"),
    "a factor outside the plate": (
        lambda x: (latent_model(x), pyro.factor("penalty_weights", torch.tensor(-1.0))),
        latent_guide,
        X,
        r"site 'penalty_weights' is a factor outside the plate 'data'.*weight_decay",
    ),
    "fewer tensors than arguments": (
        lambda x, y: latent_model(x),
        lambda x, y: latent_guide(x),
        X,
        r"model: it takes \(x, y\), but the batch has 1 tensors",
    ),
    "a factor that is not summed": (
        model_of(latent(), lambda z: (pyro.factor("penalty_z", z), bernoulli(z))[1]),
        latent_guide,
        X,
        r"model: factor 'penalty_z' has shape \(8, 2\); it is one number per datum, so sum the rest: .sum\(-1\)",
    ),
    "a data set for a batch": (vae(), guide(), pv.data.load("digits"), "expected a batch, found the three parts"),
    "a softmax over the wrong axis once there are particles": (
        model_of(latent(), lambda z: dist.Normal(torch.softmax(z, 1).repeat_interleave(3, -1), 1.0).to_event(1)),
        latent_guide,
        torch.randn(8, D),
        r"model: site 'x' has log density .* for the first datum alone and .* beside others.*dim=-1",
    ),
    "a guide that mixes data": (
        latent_model,
        guide_of(lambda x: pyro.sample("z", dist.Normal((x - x.mean(0) + 1)[:, :2] * x.sum(), 1.0).to_event(1))),
        X,
        r"guide: site 'z' has log density .* beside others: something mixes particles or data",
    ),
    "a guide that reaches past a prior on one side": (
        model_of(latent(make=lambda s: dist.HalfNormal(torch.ones(s))), bernoulli),
        guide_of(latent(make=lambda s: dist.Normal(torch.full(s, 9.0), 0.01))),
        X,
        r"site 'z' has support .*\(HalfNormal\).*\(Normal\)",
    ),
    "one category too few": (
        model_of(
            latent(event=0, size=1, make=lambda s: dist.Categorical(torch.ones(s[0], 10))),
            lambda z: bernoulli(z[..., None].float()),
        ),
        guide_of(latent(event=0, size=1, make=lambda s: dist.Categorical(torch.ones(s[0], 9)))),
        X,
        r"site 'z' has support .*\(Categorical\).*\(Categorical\)",
    ),
    "a likelihood of another size than the data": (
        VAE(x_dim=D + 4, z_dim=2, hidden=(4,)),
        guide(),
        X,
        r"site 'x': data of shape \(8, 6\) meet a likelihood of shape \(8, 10\)",
    ),
    "a likelihood of one pixel for six": (
        VAE(x_dim=1, z_dim=2, hidden=(4,)),
        guide(),
        X,
        r"site 'x': data of shape \(8, 6\) meet a likelihood of shape \(8, 1\)",
    ),
    "another scale in the model than in the guide": (
        lambda x: scaled_plate(x, 80, observe=True),
        lambda x: scaled_plate(x, 8, observe=False),
        X,
        r"plate 'data': model and guide scale it differently \(1.0, 10.0\)",
    ),
    "networks that nothing shows": (
        latent_model,
        hidden_guide(),
        X,
        r"a trainable tensor of shape .* belongs to no module.*pyro.module\('name', network\)",
    ),
    "enumeration of a continuous site": (
        lambda x: marked(x, normal((x.shape[0],)), "parallel"),
        nothing,
        X,
        r"site 'y' is marked for enumeration, but its distribution \(Normal.*draw it in the guide",
    ),
    "enumeration of a discrete vector": (
        lambda x: marked(x, bernoulli(torch.zeros(x.shape[0], 2)), "parallel"),
        nothing,
        X,
        r"site 'y' is marked.*\(Bernoulli, event shape \(6,\)\).*a site of its own",
    ),
    "one value after the other": (
        lambda x: marked(x, dist.Bernoulli(torch.full((x.shape[0],), 0.5)), "sequential"),
        nothing,
        X,
        r"site 'y' is marked enumerate='sequential'; only 'parallel'",
    ),
    "enumeration by drawing": (
        lambda x: marked(x, dist.Bernoulli(torch.full((x.shape[0],), 0.5)), "parallel", num_samples=3),
        nothing,
        X,
        r"site 'y' is marked for enumeration with num_samples.*remove num_samples",
    ),
    "grey pixels into a Bernoulli": (
        vae(),
        guide(),
        torch.full((8, D), 0.4),
        r"site 'x': data from 0.4 to 0.4 are outside the support .*\(Bernoulli.*binarize them \(pv.data.load",
    ),
    "NaN data": (
        vae(),
        guide(),
        torch.tensor([[1.0] * D, [float("nan")] * D]),
        r"data: part 0 of the batch has 6 NaN or infinite values \(first in row 1\).*'observed'",
    ),
    "infinite data": (vae(), guide(), torch.full((2, D), float("inf")), r"12 NaN or infinite values \(first in row 0"),
    "empty data": (vae(), guide(), torch.zeros(0, D), r"data: empty \(no rows\)"),
    "data that are no tensor": (vae(), guide(), [[1.0]], r"data: part 0 is a builtins.list; pass a tensor"),
    "tensors of unequal length": (vae(), guide(), (X, X[:3]), r"differ in their number of rows: \[8, 3\]"),
    "a scalar": (vae(), guide(), torch.tensor(1.0), r"found a scalar"),
    "data of another dtype": (vae(), guide(), X.double(), r"x is torch.float64 but the parameters are torch.float32"),
    "a parameter absent from the graph": (
        Unused(),
        guide(),
        X,
        r"parameter model.classifier.weight, model.classifier.bias: trainable, but absent.*requires_grad_\(False\)",
    ),
    "a network that does not take particles": (
        VAE(x_dim=D, z_dim=2, decoder=Flattening()),
        guide(),
        X,
        r"fail with two particles.*Let networks act on the last axes only",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_programs_are_explained(case):
    model, q, x, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        pv.check(model, q, x)


@pytest.mark.parametrize("case", [c for c in WRONG if isinstance(WRONG[c][2], torch.Tensor)])
@pytest.mark.parametrize("verb", [pv.fit, pv.evaluate], ids=["fit", "evaluate"])
def test_fit_and_evaluate_check_the_first_batch_and_change_nothing(case, verb):
    model, q, x, message = WRONG[case]
    modules = [m for m in (model, q) if isinstance(m, nn.Module)]
    before = [p.clone() for m in modules for p in m.parameters()]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        verb(model, q, x)
    assert all(torch.equal(p, b) for p, b in zip([p for m in modules for p in m.parameters()], before, strict=True))


def test_structural_errors_are_contract_errors():
    model, q, x, _ = WRONG["a second plate"]
    with pytest.raises(pv.ContractError):
        pv.check(model, q, x)
    assert issubclass(pv.ContractError, ValueError)


def test_weigh_alone_refuses_what_pyro_warns_about():
    with pytest.raises(pv.ContractError, match="the guide never samples it"):
        pv.weigh(latent_model, nothing, X)
    with pytest.raises(pv.ContractError, match="a misnamed batch plate"):
        pv.weigh(*WRONG["a misnamed plate"][:3])


def test_check_changes_nothing():
    model, q = vae(), guide()
    q.encoder = nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(), q.encoder)
    buffers = [b.clone() for b in q.buffers()]
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.check(model, q, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, c) for b, c in zip(q.buffers(), buffers, strict=True))
    assert all(t.grad is None for t in (*model.parameters(), *q.parameters()))
    assert q.training


def test_an_error_inside_a_network_keeps_its_type_and_says_where():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        pv.check(vae(), Normal(x_dim=D + 1, z_dim=2, hidden=(4,)), X)
    assert "guide on a batch of (8, 6) torch.float32" in caught.value.__notes__[0]


class Missing(nn.Module):
    """A model of data of which a part is not observed."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(pv.nets.MLP(2, (4,), D), pv.nets.ToNormalOneScale())

    def forward(self, x, observed):
        with data_plate(x):
            z = pyro.sample("z", normal((x.shape[0], 2)).to_event(1))
            pixel = self.decoder(z).base_dist.mask(observed).to_event(1)
            pyro.sample("x", pixel, obs=x.nan_to_num())


class MissingGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = guide().encoder

    def forward(self, x, observed):
        with data_plate(x):
            pyro.sample("z", self.encoder(x.nan_to_num()))


def test_missing_data_that_are_masked_pass_and_weigh_only_what_is_there():
    x = torch.randn(4, D)
    observed = torch.rand(4, D) > 0.3
    x[~observed] = float("nan")
    model, q = Missing(), MissingGuide()
    pv.check(model, q, (x, observed))
    torch.manual_seed(0)
    log_w = pv.weigh(model, q, (x, observed), particles=2).log_p["x"]
    torch.manual_seed(0)
    z = pv.weigh(model, q, (x, observed), particles=2).values["z"]
    by_hand = (model.decoder(z).base_dist.log_prob(x.nan_to_num()) * observed).sum(-1)
    torch.testing.assert_close(log_w, by_hand)
    with pytest.raises(pv.ContractError, match="that no mask covers"):
        pv.check(model, q, (x, torch.ones_like(observed)))


@pytest.mark.parametrize("says", [False, True])
def test_a_distribution_that_hides_its_path_is_remarked_on(says):
    """As torch's own: it has a method rsample, but does not say so, and Pyro then trains it by its score."""
    bases = LogitRelaxedBernoulli, dist.TorchDistribution
    relaxed = type("Relaxed", bases, {"has_rsample": True} if says else {})
    model, q = vae(), nn.Linear(D, 2)

    def guided(x):
        with data_plate(x):
            pyro.sample("z", relaxed(torch.tensor(0.5), logits=q(x)).to_event(1))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        pv.check(model, guided, X)
    told = "the guide's site 'z' is trained by its score, of high variance, since Relaxed has a method rsample"
    assert [told in str(each.message) for each in caught] == [True] * (not says)
    assert ("z" in pv.weigh(model, guided, X).score) is not says


def test_a_flow_without_inverse_passes():
    """It can score its own draws only, so it cannot be held to draws made elsewhere."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow, self.encoder = dist.transforms.conditional_planar(2, D), nn.Linear(D, 2)

        def forward(self, x):
            with data_plate(x):
                base = dist.Normal(self.encoder(x), 1.0).to_event(1)
                pyro.sample("z", dist.TransformedDistribution(base, [self.flow.condition(x)]))

    pv.check(vae(), Flow(), X)


def test_a_guide_of_autoregressive_flows_passes():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow, self.encoder = dist.transforms.affine_autoregressive(2), nn.Linear(D, 2)

        def forward(self, x):
            with data_plate(x):
                base = dist.Normal(self.encoder(x), 1.0).to_event(1)
                pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))

    pv.check(vae(), Flow(), X)


def two_layers(x):
    """A model with two layers of latents, and its guide from the bottom up."""
    with data_plate(x):
        z2 = pyro.sample("z2", normal((x.shape[0], 2)).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
        pyro.sample("x", bernoulli(z1), obs=x)


def two_layers_guide(x):
    with data_plate(x):
        z1 = pyro.sample("z1", dist.Normal(x[:, :2], 1.0).to_event(1))
        features = torch.cat([z1, x.expand(*z1.shape[:-1], D)], -1)
        pyro.sample("z2", dist.Normal(features[..., :2], 1.0).to_event(1))


def test_hierarchies_pass_and_their_weights_are_the_joint_density():
    pv.check(two_layers, two_layers_guide, X)
    drawn = pv.weigh(two_layers, two_layers_guide, X, particles=3)
    z1, z2 = drawn.values["z1"], drawn.values["z2"]
    by_hand = dist.Normal(0.0, 1.0).log_prob(z2).sum(-1) + dist.Normal(z2, 1.0).log_prob(z1).sum(-1)
    by_hand = by_hand + bernoulli(z1).log_prob(X) - dist.Normal(X[:, :2], 1.0).log_prob(z1).sum(-1)
    torch.testing.assert_close(drawn.log_w, by_hand - dist.Normal(z1, 1.0).log_prob(z2).sum(-1))


def test_a_parameter_whose_gradient_happens_to_be_zero_passes():
    class Zero(VAE):
        def forward(self, x):
            with data_plate(x):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.decoder(0.0 * z), obs=x)

    pv.check(Zero(x_dim=D, z_dim=2, hidden=(4,)), guide(), X)


def test_frozen_parameters_pass():
    model = Unused()
    model.classifier.requires_grad_(False)
    pv.check(model, guide(), X)


def test_an_error_without_words_is_named_by_its_kind():
    runs = []

    class Second(Normal):
        def forward(self, x):
            runs.append(x)
            if len(runs) > 2:
                raise AssertionError
            super().forward(x)

    with pytest.raises(pv.ContractError, match=r"fail with two particles.*: AssertionError\. Let"):
        pv.check(vae(), Second(x_dim=D, z_dim=2, hidden=(4,)), X)
