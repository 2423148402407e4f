"""What evaluation promises to those who publish: the same numbers however it is cut, resumed and ordered."""

import math

import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.batches import as_batch
from ppl_vae.estimates import curve_sizes, pooled
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.importance import Weights
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
from ppl_vae.models.vae import VAE
from ppl_vae.programs import Programs
from ppl_vae.recording import read_record
from ppl_vae.remembering import Remembered

COLUMNS = ("log_px", "elbo", "ess", "khat", "log_px_error", "debiased", "distortion", "rise", "resampled")
PAIRS = pairs.with_every_program()


def same(first, other, rows=slice(None), but=()):
    for name in set(COLUMNS) - set(but):
        torch.testing.assert_close(getattr(first, name)[rows], getattr(other, name), rtol=1e-6, atol=1e-6, msg=name)


class Prior(nn.Module):
    """A guide that ignores the data: its weights vary as much as the likelihood."""

    def __init__(self, z_dim=2):
        super().__init__()
        self.register_buffer("zeros", torch.zeros(z_dim))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))


@pytest.mark.parametrize("cut", [{"chunk": 7}, {"batch_size": 2}, {"batch_size": 3, "chunk": 11}], ids=str)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_no_cut_changes_the_result_beyond_rounding(names, cut):
    pair = pairs.make(*names)
    x = pair.data(5)
    # Weights of few codes are equal, and rounding decides which of them are in the tail.
    same(
        pv.evaluate(pair.model, pair.guide, x, particles=40),
        pv.evaluate(pair.model, pair.guide, x, particles=40, **cut),
        but=("khat",) if names[1] == "categorical" else (),
    )


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_the_order_of_the_data_does_not_matter(names):
    pair = pairs.make(*names)
    # The last two equal the first: their draws differ all the same.
    x = tuple(torch.cat(parts) for parts in zip(as_batch(pair.data(5)), as_batch(pair.data(2)), strict=True))
    order = torch.tensor([3, 0, 4, 2, 1, 5, 6])
    straight = pv.evaluate(pair.model, pair.guide, x, particles=30, batch_size=4)
    same(straight, pv.evaluate(pair.model, pair.guide, pairs.part(x, order), particles=30, batch_size=3), order)


def test_equal_data_are_drawn_apart():
    pair = pairs.make("linear_gaussian", "normal")
    x = pair.data(1).expand(500, -1)
    evaluation = pv.evaluate(pair.model, Prior().double(), x, particles=20)
    assert len(evaluation.log_px.unique()) == 500
    assert evaluation.log_px.std() > 0.5 * evaluation.log_px_error.mean()


def test_fewer_particles_are_the_first_of_more():
    """Particle k of a datum is the same, however many there are."""
    pair = pairs.make("vae", "normal")
    x = pair.data(4)
    few, many = (pv.evaluate(pair.model, pair.guide, x, particles=k, curve=True) for k in (1, 2))
    assert not torch.equal(few.log_px, many.log_px)
    torch.testing.assert_close(many.curve[1], many.elbo)
    torch.testing.assert_close(many.curve[2], many.log_px)


class Counting(nn.Module):
    """Counts the rows that go through an encoder."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x):
        self.rows += 1
        return self.inner(x)


class Layers(nn.Module):
    """Two layers; the upper one reads the draw of the lower."""

    def __init__(self, below, above):
        super().__init__()
        self.below, self.above = below, above

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Normal(self.below(x), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(self.above(z1), 1.0).to_event(1))


def test_what_depends_on_the_data_alone_is_computed_once():
    """Counted in matrix products: those of the encoder once, those after a draw for every chunk."""

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        done: list

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "mm" in func.overloadpacket.__name__:
                self.done.append(tuple(args[-1].shape))
            return func(*args, **(kwargs or {}))

    guide = Layers(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2)), nn.Linear(2, 4))
    x, counted = torch.randn(5, 6), Products()
    counted.done, settled, found = [], {"x": x, **dict(guide.named_parameters())}, {}
    with torch.no_grad(), counted:
        for _ in range(7):
            with Remembered(settled, found) as remembered:
                guide(x)
            found = remembered.found
    assert counted.done.count((6, 9)) == counted.done.count((9, 2)) == 1
    assert counted.done.count((2, 4)) == 7


@pytest.mark.parametrize("rows", [5, 1])
def test_graphs_do_not_encode_again(rows, uncompiled):
    """What is compiled for every chunk takes the encoder's work as an input: no product by its weights is left."""
    pair = pairs.make("vae", "normal")
    programs = Programs(pair.model, pair.guide)
    weights = Weights(pair.model, pair.guide, programs, particles=20, chunk=4, compile=True)
    x = pair.data(rows)
    found, means = weights((x,), torch.arange(rows))
    (graphs,) = weights.drawn.graphs.values()
    products = [node for node in graphs[0].module.graph.nodes if "mm" in str(node.target)]
    assert len(products) == 2  # the decoder's
    eager = Weights(pair.model, pair.guide, programs, particles=20, chunk=4, compile=False)
    torch.testing.assert_close(found, eager((x,), torch.arange(rows))[0])
    other = pair.data(rows + 3)[3:]
    torch.testing.assert_close(weights((other,), torch.arange(rows))[0], eager((other,), torch.arange(rows))[0])
    assert weights.drawn.count == 1
    assert (means["elbo"] < 0).all()


def test_what_is_remembered_is_what_is_computed():
    pair = pairs.make("vae", "normal")
    x = pair.data(4)

    class Changing(nn.Module):
        """Changes in place what it has computed of the data."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            self.inner((x + 1).sub_(1))

    plain = pv.evaluate(pair.model, pair.guide, x, particles=60, chunk=20)
    same(plain, pv.evaluate(pair.model, Changing(pair.guide), x, particles=60, chunk=20))


class Interrupted(Exception):
    pass


class Stopping(nn.Module):
    """A guide that somebody interrupts after so many runs."""

    def __init__(self, inner, runs):
        super().__init__()
        self.inner, self.runs = inner, runs

    def forward(self, x):
        self.runs -= 1
        if self.runs < 0:
            raise Interrupted
        self.inner(x)


def stopping_before_the_end(pair, x, **options):
    """Return a guide that is interrupted when most of an evaluation is done."""
    counting = Stopping(pair.guide, 10**6)
    pv.evaluate(pair.model, counting, x, **options)
    return Stopping(pair.guide, 10**6 - counting.runs - 5)


def test_an_interrupted_evaluation_goes_on(tmp_path):
    pair, out = pairs.make("vae", "normal"), tmp_path / "evaluation.pt"
    x = pair.data(11)
    options = {"particles": 30, "chunk": 3, "batch_size": 2}
    stopping = stopping_before_the_end(pair, x, **options)
    with pytest.raises(Interrupted):
        pv.evaluate(pair.model, stopping, x, **options, out=out)
    assert 0 < len(read_record(out)["columns"]["log_px"]) < 11
    stopping.runs = 10**6
    # With other cuts, at that.
    resumed = pv.evaluate(pair.model, stopping, x, particles=30, chunk=10, batch_size=4, out=out)
    same(pv.evaluate(pair.model, pair.guide, x, particles=30), resumed)
    left = stopping.runs
    same(resumed, pv.evaluate(pair.model, stopping, x, particles=30, out=out))
    assert left - stopping.runs < 25  # it was checked, and not drawn from again
    same(resumed, pv.Evaluation.load(out))
    assert str(pv.Evaluation.load(out)) == str(resumed)


@pytest.mark.parametrize("change", ["particles", "seed", "parameters", "data", "later data", "fewer"])
def test_a_file_of_another_evaluation_is_refused_and_kept(change, tmp_path):
    pair, out = pairs.make("vae", "normal"), tmp_path / "evaluation.pt"
    x, options = pair.data(5), {"particles": 20, "seed": 0, "out": out}
    pv.evaluate(pair.model, pair.guide, x, **options)
    before = out.read_bytes()
    messages = {
        "particles": "particles = 20, not 21",
        "seed": "seed = 0, not 1",
        "parameters": "other parameters of the programs",
        "data": "is of an evaluation with other data",
        "later data": "is of other data than those from row 0 on",
        "fewer": "is of 5 data, and there are 4",
    }
    if change in options:
        options[change] += 1
    if change == "parameters":
        next(pair.model.parameters()).data.add_(1e-3)
    other = {"data": pair.data(6)[1:], "later data": x[[0, 2, 1, 3, 4]], "fewer": x[:4]}.get(change, x)
    with pytest.raises(ValueError, match=messages[change]):
        pv.evaluate(pair.model, pair.guide, other, **options)
    assert out.read_bytes() == before


def test_files_that_are_none_are_refused(tmp_path):
    pair, other = pairs.make("vae", "normal"), tmp_path / "notes.txt"
    other.write_text("not an evaluation")
    with pytest.raises(ValueError, match=r"notes\.txt: not a file of this library: it begins with"):
        pv.evaluate(pair.model, pair.guide, pair.data(), particles=3, out=other)
    assert other.read_text() == "not an evaluation"
    with pytest.raises(ValueError, match="out: there is no folder"):
        pv.evaluate(pair.model, pair.guide, pair.data(), particles=3, out=tmp_path / "none" / "e.pt")


def test_an_unfinished_file_is_no_evaluation(tmp_path):
    pair, out = pairs.make("vae", "normal"), tmp_path / "evaluation.pt"
    x, options = pair.data(9), {"particles": 4, "batch_size": 1}
    with pytest.raises(Interrupted):
        pv.evaluate(pair.model, stopping_before_the_end(pair, x, **options), x, **options, out=out)
    with pytest.raises(ValueError, match="unfinished"):
        pv.Evaluation.load(out)


def test_an_empty_test_set_is_refused():
    pair = pairs.make("vae", "normal")
    with pytest.raises(ValueError, match="data: empty"):
        pv.evaluate(pair.model, pair.guide, torch.zeros(0, 6).double(), particles=3)
    empty = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(0, 6)), batch_size=3)
    with pytest.raises(ValueError, match="data: there are none"):
        pv.evaluate(pair.model, pair.guide, empty, particles=3)


def variance_of_weights(model, scale, x):
    """Return var(w) / p(x)^2 of a Gaussian guide around the posterior, ``scale`` times as wide in each direction.

    With q = N(m, s^2 S) and posterior N(m, S): w = p(x) N(z; m, S) / N(z; m, s^2 S), of second moment
    p(x)^2 (s^2 / sqrt(2 s^2 - 1))^d.
    """
    d = model.posterior(x).event_shape.numel()
    return (scale**2 / math.sqrt(2 * scale**2 - 1)) ** d - 1


class Widened(nn.Module):
    def __init__(self, model, scale):
        super().__init__()
        self.posterior, self.scale = model.posterior, scale

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            q = self.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=self.scale * q.scale_tril))


@pytest.fixture
def wide():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = pv.sample(model, shape=(6,), n=1)["x"]
    return model, Widened(model, 1.3), x


def test_the_bound_follows_its_expansion(wide):
    """E[L_K] = log p(x) - v / (2 K) + O(1 / K^2), and the jackknife's bias is of second order."""
    model, guide, x = wide
    runs = x.expand(20_000, -1)
    evaluation = pv.evaluate(model, guide, runs, particles=20, curve=True)
    exact, v = model.log_px(x).item(), variance_of_weights(model, 1.3, x)
    gaps = {k: bound - exact for k, bound in evaluation.curve.items()}
    for k in (10, 20):
        expected, error = -v / (2 * k), gaps[k].std() / len(runs) ** 0.5
        second = v**2 / k**2  # what the expansion leaves out, generously
        assert abs(gaps[k].mean() - expected) < odds.limit(4) * error + second
    debiased = evaluation.debiased - exact
    assert abs(debiased.mean()) < odds.limit(4) * debiased.std() / len(runs) ** 0.5 + v**2 / 20**2
    assert abs(debiased.mean()) < abs(gaps[20].mean()) / 3
    rise, halves = evaluation.rise, gaps[20].mean() - gaps[10].mean()
    assert rise.min() >= -1e-9
    assert abs(rise.mean() - halves) < 1e-9


def test_the_stated_intervals_cover(wide):
    """Of 200 replications, 95 % intervals for the exact mean of these data, and for the mean over all data."""
    model, guide, _ = wide
    marginal = dist.LowRankMultivariateNormal(model.bias, model.weight, (2 * model.log_scale).exp())
    expected = -marginal.entropy().item()
    x = pv.sample(model, shape=(6,), n=200 * 50)["x"]
    together = pv.evaluate(model, guide, x, particles=100, batch_size=500)
    inside = torch.zeros(2)
    for rows in torch.arange(len(x)).split(50):
        columns = {name: getattr(together, name)[rows] for name in ("log_px", "elbo", "ess", "khat", "log_px_error")}
        evaluation = pv.Evaluation(**columns, particles=100, seed=0)
        exact = model.log_px(x[rows]).mean().item()
        inside[0] += abs(evaluation.mean - exact) < 1.96 * evaluation.mc_se
        inside[1] += abs(evaluation.mean - expected) < 1.96 * evaluation.se
    allowed = odds.limit(2) * math.sqrt(200 * 0.95 * 0.05)
    assert ((inside - 190).abs() < allowed).all(), inside


def test_monte_carlo_errors_have_the_size_that_they_state(wide):
    model, guide, x = wide
    evaluation = pv.evaluate(model, guide, x.expand(3000, -1), particles=200)
    z = (evaluation.log_px - model.log_px(x).item()) / evaluation.log_px_error
    odds.assert_mean(z.square().unsqueeze(-1), torch.tensor([1.02]).double())  # Student-like, a little above one


def test_rate_and_distortion_are_those_of_the_closed_form():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = pv.sample(model, shape=(6,), n=4)["x"]
    evaluation = pv.evaluate(model, Exact(model), x, particles=20_000)
    posterior = model.posterior(x)
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    rate = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(evaluation.rate, rate.detach(), rtol=0.03, atol=0.03)
    torch.testing.assert_close(evaluation.rate + evaluation.distortion, -evaluation.elbo)


def test_sums_over_the_guides_values_are_part_of_the_weights():
    """A guide that enumerates, beside one that leaves the sum to the model: the same log p(x)."""
    mark = {"enumerate": "parallel"}

    class Mixture(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7]).to(x)), infer=mark)
                z = pyro.sample("z", dist.Normal(torch.tensor([-1.0, 2.0]).to(x)[y], 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    class Enumerating(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("y", dist.Categorical(logits=torch.stack([-x, x], -1)), infer=mark)
                pyro.sample("z", dist.Normal(x, 0.6))

    x = torch.linspace(-2, 3, 6).double()
    evaluation = pv.evaluate(Mixture(), Enumerating(), x, particles=20_000, chunk=1000)
    components = torch.stack([dist.Normal(loc, 1.25**0.5).log_prob(x) for loc in (-1.0, 2.0)])
    exact = (components + torch.tensor([[0.3], [0.7]]).log()).logsumexp(0)
    odds.assert_agree(evaluation.log_px, evaluation.log_px_error, exact)
    assert (evaluation.elbo < evaluation.log_px).all()


def test_bits_per_dimension():
    digits = pv.data.load("digits", binarize="static")
    evaluation = pv.evaluate(*pairs.digits_vae(), digits.test[:20], particles=30)
    assert evaluation.bits_per_dim() == pytest.approx(-evaluation.mean / 64 / math.log(2))
    assert evaluation.to_dict()["bits_per_dim"] == evaluation.bits_per_dim()
    with pytest.raises(ValueError, match="levels: the likelihood is a mass function"):
        evaluation.bits_per_dim(levels=256)
    pair = pairs.make("linear_gaussian", "normal")
    density = pv.evaluate(pair.model, pair.guide, pair.data(), particles=30)
    with pytest.raises(ValueError, match="levels: the likelihood is a density; give levels=256"):
        density.bits_per_dim()
    assert density.bits_per_dim(256) == pytest.approx(-density.mean / 6 / math.log(2) + 8)


def test_a_uniform_density_of_grey_values_costs_all_its_bits():
    """p = 1 on [0, 1] gives each of 256 levels the same mass: 8 bits."""
    zeros = torch.zeros(3)
    evaluation = pv.Evaluation(zeros, zeros, zeros, zeros, zeros, 1, 0, dims=10)
    assert evaluation.bits_per_dim(256) == 8.0


def test_good_guides_pass_and_poor_ones_are_told(wide):
    model, _, _ = wide
    x = pv.sample(model, shape=(6,), n=40)["x"]
    good = pv.evaluate(model, Widened(model, 1.1), x, particles=1000)
    assert good.warnings == ()
    assert good.untrusted == 0
    narrow = pv.evaluate(model, Widened(model, 0.3), x, particles=1000)
    tail = narrow.warnings[0]
    assert narrow.untrusted > 0.6
    assert "Pareto k-hat above 0.7" in tail
    assert "pv.ais" in tail
    assert "Warning: " in str(narrow)
    far = pv.evaluate(model, Prior().double(), 6 * x, particles=1000)
    assert any("effective sample size below 10" in warning for warning in far.warnings)
    assert any("still rising" in warning for warning in far.warnings)
    assert far.to_dict()["warnings"] == list(far.warnings)
    few = pv.evaluate(model, Exact(model), x, particles=3)
    assert "no Pareto k-hat can be computed" in few.warnings[0]


def test_resampled_particles_are_draws_of_the_posterior():
    log_w = torch.tensor([0.5, 0.3, 0.2, 0.0]).double().log().unsqueeze(-1).expand(4, 50)
    from ppl_vae.estimates import _resampled

    many = log_w.repeat_interleave(100, 0)  # four kinds of particles, a hundred each
    numbers = _resampled(many, torch.arange(50)).long() // 100
    shares = torch.stack([(numbers == kind).double().mean(1) for kind in range(4)], 1)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2, 0.0]).double().expand(50, 4), atol=0.011, rtol=0)


def test_the_curve_is_the_mean_of_the_bounds_on_fewer():
    log_w = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    assert curve_sizes(20) == [1, 2, 5, 10, 20]
    torch.testing.assert_close(pooled(log_w, 1), log_w.mean(0))
    by_hand = torch.stack([log_w[i : i + 5].exp().mean(0).log() for i in range(0, 20, 5)]).mean(0)
    torch.testing.assert_close(pooled(log_w, 5), by_hand)


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes how large the memory behind each new tensor is."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                self.seen.add(part.untyped_storage().nbytes())
        return result


def test_memory_does_not_grow_with_particles_beyond_the_weights():
    """Of what is allocated, the log-weights of the batch alone are larger than one datum's, or than a chunk's work."""
    pair = pairs.make("linear_gaussian", "normal")
    x, sizes = pair.data(50), Sizes()
    with sizes:
        pv.evaluate(pair.model, pair.guide, x, particles=10_000, chunk=100, compile=False, progress=False)
    weights, chunk, datum = 10_000 * 50 * 8, 100 * 50 * 6 * 8, 10_000 * 8
    assert weights in sizes.seen
    assert max(sizes.seen - {weights}) <= max(chunk, 6 * datum)


def test_a_small_sigmoid_belief_network_is_summed_over_by_draws():
    pair = pairs.make("sigmoid_belief_network", "bernoulli")
    x = pair.data(6)
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 2)
    with torch.no_grad():
        log_p = dist.Bernoulli(logits=pair.model.prior_logits).log_prob(bits).sum(-1)
        pixels = dist.Bernoulli(logits=pair.model.decoders[0](2 * bits - 1)).log_prob(x.unsqueeze(1)).sum(-1)
        exact = (log_p + pixels).logsumexp(1)
    evaluation = pv.evaluate(pair.model, pair.guide, x, particles=20_000, chunk=2000)
    odds.assert_agree(evaluation.log_px, evaluation.log_px_error, exact)


def test_a_file_of_a_model_that_differs_in_no_tensor_is_refused(tmp_path):
    pair, out = pairs.make("vae", "normal"), tmp_path / "evaluation.pt"

    class Wider(nn.Module):
        def __init__(self, decoder, scale):
            super().__init__()
            self.decoder, self.scale = decoder, scale

        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2).to(x), self.scale).to_event(1))
                pyro.sample("x", self.decoder(z), obs=x)

    evaluation = pv.evaluate(model := Wider(pair.model.decoder, 1.0), pair.guide, pair.data(), particles=20, out=out)
    with pytest.raises(ValueError, match="another model or guide, though their parameters are equal"):
        pv.evaluate(Wider(pair.model.decoder, 3.0), pair.guide, pair.data(), particles=20, out=out)
    model.scale = 3.0
    with pytest.raises(RuntimeError, match="the programs have changed"):
        evaluation.to_arviz()


def test_a_finished_file_that_grows_is_unfinished_until_it_ends(tmp_path):
    pair, out = pairs.make("vae", "normal"), tmp_path / "evaluation.pt"
    x, options = pair.data(12), {"particles": 4, "batch_size": 1}
    pv.evaluate(pair.model, Stopping(pair.guide, 10**6), x[:4], **options, out=out)
    stopping = stopping_before_the_end(pair, x[4:], **options)
    with pytest.raises(Interrupted):
        pv.evaluate(pair.model, stopping, x, **options, out=out)
    assert 4 < len(read_record(out)["columns"]["keys"]) < 12
    with pytest.raises(ValueError, match="unfinished"):
        pv.Evaluation.load(out)


def test_files_that_cannot_be_kept_are_told_before_any_work(tmp_path):
    pair = pairs.make("vae", "normal")
    (tmp_path / "empty.pt").touch()
    empty = (tmp_path / "empty.pt", "it is empty; give the evaluation's file")
    for out, why in (empty, (tmp_path, "a folder or a device")):
        with pytest.raises(ValueError, match=why) as caught:
            pv.evaluate(pair.model, pair.guide, pair.data(), particles=3, out=out)
        assert "weights_only" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be written"):
        pv.evaluate(pair.model, pair.guide, pair.data(), particles=3, out="/proc/evaluation.pt")


class Angles(nn.Module):
    """A guide that draws by rejection, again and again until all of a batch are accepted."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.VonMises(x, 3.0))


class Bearing(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.VonMises(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z.sin(), 0.5), obs=x)


def test_draws_that_depend_on_those_beside_them_are_told():
    x = torch.linspace(-1, 1, 5).double()
    with pytest.warns(UserWarning, match="depends on what is drawn beside it, so that results depend on batch_size"):
        evaluation = pv.evaluate(Bearing(), Angles(), x, particles=5000, chunk=1000)
    assert evaluation.redraw is None
    grid = torch.linspace(-math.pi, math.pi, 4001).double()
    joint = dist.VonMises(0.0, 1.0).log_prob(grid) + dist.Normal(grid.sin(), 0.5).log_prob(x.unsqueeze(-1))
    exact = joint[:, :-1].logsumexp(1) + math.log(2 * math.pi / 4000)
    odds.assert_agree(evaluation.log_px, evaluation.log_px_error, exact)


def test_small_concentrations_are_evaluated_right():
    """Their gamma variables underflow, and what is made of them must not be found in the middle."""

    class Simplex(nn.Module):
        def __init__(self, observe):
            super().__init__()
            self.observe = observe

        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Dirichlet(torch.tensor([0.03, 0.03]).to(x)))
                if self.observe:
                    pyro.sample("x", dist.Normal(z[..., 0], 0.1), obs=x)

    x = torch.full((3,), 0.5)
    evaluation = pv.evaluate(Simplex(True), Simplex(False), x, particles=50_000, chunk=5000)
    # Between the ends by the midpoint rule; at the ends, which have most of the mass, the likelihood is constant.
    edge, n = 1e-3, 10_000
    z = edge + (1 - 2 * edge) * (torch.arange(n).double() + 0.5) / n
    density = dist.Beta(0.03, 0.03).log_prob(z).exp()
    inside = (density * dist.Normal(z, 0.1).log_prob(x[0]).exp()).mean() * (1 - 2 * edge)
    at_ends = (1 - density.mean() * (1 - 2 * edge)) * dist.Normal(0.0, 0.1).log_prob(x[0]).exp()
    exact = (inside + at_ends).log().double().expand(3)
    odds.assert_agree(evaluation.log_px.double(), evaluation.log_px_error, exact)


@pytest.mark.parametrize("role", ["model", "guide"])
def test_programs_that_write_into_the_data_are_refused(role):
    pair = pairs.make("vae", "normal")

    class Writing(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            self.inner(x.clamp_(0, 1))

    x = pair.data()
    before = x.clone()
    programs = {"model": pair.model, "guide": pair.guide}
    programs[role] = Writing(programs[role])
    with pytest.raises(pv.ContractError, match="a program changes part 0 of its batch in place"):
        pv.evaluate(programs["model"], programs["guide"], x, particles=3)
    assert torch.equal(x, before)


@pytest.mark.parametrize("particles", [2, 3, 5, 11])
def test_the_rise_is_never_below_zero(particles):
    pair = pairs.make("linear_gaussian", "normal")
    evaluation = pv.evaluate(pair.model, Prior().double(), 3 * pair.data(50), particles=particles)
    assert evaluation.rise.min() > -1e-9


@pytest.mark.parametrize(("name", "value"), [("particles", True), ("seed", 1.5), ("seed", None), ("seed", 2**70)])
def test_numbers_that_are_none_are_refused(name, value):
    pair = pairs.make("vae", "normal")
    with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
        pv.evaluate(pair.model, pair.guide, pair.data(), **{name: value})


@pytest.mark.parametrize("levels", [0, -1, 2.5, "a", True])
def test_levels_that_are_none_are_refused(levels):
    zeros = torch.zeros(3)
    with pytest.raises(ValueError, match="levels: expected a whole number of at least 2"):
        pv.Evaluation(zeros, zeros, zeros, zeros, zeros, 1, 0, dims=10).bits_per_dim(levels)


@pytest.mark.parametrize(
    "programs",
    [
        (VAE(x_dim=6, z_dim=40, hidden=()), Normal(x_dim=6, z_dim=40, hidden=())),
        (SigmoidBeliefNetwork(x_dim=6, z_dim=20), Bernoulli(x_dim=6, z_dim=20)),
    ],
    ids=["normals", "bits"],
)
def test_many_dimensions_are_drawn_alike_compiled_and_not(programs):
    """More than a vector of the processor holds, and no multiple of it."""
    x = (torch.rand(5, 6) < 0.5).float()
    compiled, eager = (
        pv.evaluate(*programs, x, particles=30, compile=how, progress=False).log_px for how in (True, False)
    )
    assert torch.allclose(compiled, eager, atol=1e-4)
