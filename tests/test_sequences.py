"""Autoregressive distributions: exact probabilities, draws that follow them, texts that make images."""

import importlib
import itertools
from pathlib import Path

import odds
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from typer.testing import CliRunner

import ppl_vae as pv
from ppl_vae import distributions, nets, priors
from ppl_vae.guides.categorical import Categorical
from ppl_vae.guides.empty import Empty
from ppl_vae.models.discrete_vae import DiscreteVAE
from ppl_vae.models.text_to_image import TextToImage
from ppl_vae.models.token_transformer import TokenTransformer

DOUBLE = torch.float64
# Two texts of two places, then three codes in each of three places.
TEXT, IMAGE, VOCABULARY = range(2), range(2, 5), 5


def network(vocabulary=VOCABULARY, positions=5, spread=0.6):
    """Return a network whose tokens are far from equally probable."""
    torch.manual_seed(0)
    net = nets.CausalTransformer(vocabulary, positions, width=8, layers=2, heads=2).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, spread)
    return net


def tokens(net, *places, prefix=None):
    allowed = distributions.allowed_tokens(places, VOCABULARY)
    return distributions.Autoregressive(net, allowed, prefix)


def every(*places):
    return torch.tensor(list(itertools.product(*places)))


def test_a_token_changes_no_logits_up_to_its_own():
    net = network(vocabulary=7, positions=6)
    x = torch.randint(7, (3, 2, 6))
    before = net(x)
    for t in range(6):
        changed = x.clone()
        changed[..., t] = (changed[..., t] + 1) % 7
        after = net(changed)
        assert torch.equal(after[..., : t + 1, :], before[..., : t + 1, :])
        assert t == 5 or ((after - before)[..., t + 1 :, :].abs() > 1e-6).any()


def test_what_is_remembered_gives_the_logits_of_the_parallel_pass():
    net = network(positions=6)
    x = torch.randint(VOCABULARY, (3, 2, 6))
    together = net(x)
    for first in (0, 1, 4):
        logits, past = net.following(x[..., :first])
        torch.testing.assert_close(logits, together[..., first, :])
        for t in range(first, 5):
            logits, past = net.following(x[..., t : t + 1], past)
            torch.testing.assert_close(logits, together[..., t + 1, :])
    _, past = net.following(x[..., :2])
    torch.testing.assert_close(net.following(x[..., 2:4], past)[0], together[..., 4, :])


def test_leading_axes_are_rows_and_shorter_sequences_beginnings():
    net, x = network(), torch.randint(VOCABULARY, (2, 3, 5))
    rows = torch.stack([torch.stack([net(row) for row in block]) for block in x])
    torch.testing.assert_close(net(x), rows)
    torch.testing.assert_close(net(x[..., :3]), rows[..., :3, :])


def test_tokens_given_as_weights_mean_what_numbers_mean():
    net, x = network(), torch.randint(VOCABULARY, (3, 5))
    weights = torch.nn.functional.one_hot(x, VOCABULARY).double()
    torch.testing.assert_close(net(weights), net(x))
    torch.testing.assert_close(net(weights.requires_grad_()), net(x))  # by attention that may be differentiated twice
    assert torch.autograd.gradgradcheck(lambda w: net(w.softmax(-1))[..., -1, 0], weights.detach()[:1].requires_grad_())


def test_networks_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="heads: 3 do not divide the width 8"):
        nets.CausalTransformer(2, 2, width=8, heads=3)
    net, x = network(), torch.zeros(1, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="a sequence of 6, but this network has 5 positions"):
        net(x)
    net.following(x[:, :4])
    with pytest.raises(ValueError, match="a sequence of 6, but this network has 5 positions"):
        net.following(x[:, :5])


PLACES = {
    "codes": [IMAGE] * 3,
    "text, then codes": [TEXT, TEXT, IMAGE, IMAGE],
    "all": [range(VOCABULARY)] * 3,
    "one token": [range(1, 2), IMAGE],
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_probabilities_sum_to_one_over_all_sequences(places):
    d = tokens(network(), *places)
    assert d.log_prob(every(*places)).logsumexp(0).item() == pytest.approx(0, abs=1e-12)
    listed = every(*[range(VOCABULARY)] * len(places))
    log_p = distributions.Autoregressive(d.network, d.allowed, validate_args=False).log_prob(listed)
    assert torch.equal(log_p.isfinite(), d.support.check(listed))
    assert log_p.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


def test_probabilities_of_all_one_hot_codes_of_a_grid_sum_to_one():
    prior = priors.AutoregressiveCodes(positions=4, codes=3, transformer=network(vocabulary=3)).double()
    grids = torch.eye(3, dtype=DOUBLE)[every(*[range(3)] * 4)]
    assert prior().log_prob(grids).logsumexp(0).item() == pytest.approx(0, abs=1e-12)
    assert prior().support.check(grids).all()


def test_draws_follow_the_probabilities():
    d = tokens(network(), TEXT, IMAGE, IMAGE)
    sequences = every(TEXT, IMAGE, IMAGE)
    torch.manual_seed(1)
    drawn = d.sample((20_000,))
    assert d.support.check(drawn).all()
    hits = (drawn.unsqueeze(1) == sequences).all(-1).double()
    odds.assert_mean(hits, d.log_prob(sequences).exp().detach())


def test_draws_given_a_prefix_follow_their_conditional_probabilities():
    prefix, codes = torch.tensor([[0, 1], [1, 1]]), every(IMAGE, IMAGE)
    d = tokens(network(), IMAGE, IMAGE, prefix=prefix)
    torch.manual_seed(2)
    hits = (d.sample((10_000,)).unsqueeze(2) == codes).all(-1).double()
    odds.assert_mean(hits, d.log_prob(codes.unsqueeze(1)).exp().T.detach())


def test_a_prefix_conditions_the_joint_distribution():
    net = network()
    joint, text = tokens(net, TEXT, TEXT, IMAGE, IMAGE), tokens(net, TEXT, TEXT)
    whole = every(TEXT, TEXT, IMAGE, IMAGE)
    prefix, codes = whole.split(2, -1)
    given = tokens(net, IMAGE, IMAGE, prefix=prefix)
    torch.testing.assert_close(given.log_prob(codes), joint.log_prob(whole) - text.log_prob(prefix))
    # The marginal of the text is the sum over codes.
    summed = joint.log_prob(whole).unflatten(0, (4, 9)).logsumexp(1)
    torch.testing.assert_close(summed, text.log_prob(every(TEXT, TEXT)))


@pytest.mark.parametrize("prefixed", [False, True])
def test_shapes_broadcast_and_expand(prefixed):
    prefix = torch.tensor([[0, 1], [1, 1], [0, 0]]) if prefixed else None
    d = tokens(network(), IMAGE, IMAGE, prefix=prefix).expand((4, 3))
    assert (d.batch_shape, d.event_shape) == ((4, 3), (2,))
    x = d.sample((7,))
    assert x.shape == (7, 4, 3, 2)
    assert d.log_prob(x).shape == (7, 4, 3)
    torch.testing.assert_close(d.log_prob(x[0, 0, 0]), d.log_prob(x[0, 0, 0].expand(4, 3, 2)))
    one_hot = distributions.OneHotAutoregressive(tokens(d.network, IMAGE, IMAGE, prefix=prefix), IMAGE).expand((4, 3))
    assert one_hot.sample((7,)).shape == (7, 4, 3, 2, 3)
    assert one_hot.log_prob(one_hot.sample((7,))).shape == (7, 4, 3)


@pytest.mark.parametrize("prefixed", [False, True])
def test_one_hot_codes_are_the_same_as_numbers(prefixed):
    prefix = torch.tensor([[0, 1]]).expand(9, 2) if prefixed else None
    d = tokens(network(), IMAGE, IMAGE, prefix=prefix)
    one_hot = distributions.OneHotAutoregressive(d, IMAGE)
    codes = every(IMAGE, IMAGE)
    corners = torch.eye(3, dtype=DOUBLE)[codes - IMAGE.start]
    assert torch.equal(one_hot.numbers(corners), codes)
    torch.testing.assert_close(one_hot.log_prob(corners), d.log_prob(codes))
    relaxed = one_hot.log_prob(corners.clone().requires_grad_())
    torch.testing.assert_close(relaxed, d.log_prob(codes))
    torch.manual_seed(3)
    drawn = one_hot.sample()
    torch.manual_seed(3)
    assert torch.equal(one_hot.numbers(drawn), d.sample())
    assert drawn.dtype is DOUBLE
    for dtype in (torch.long, torch.float32, DOUBLE):
        assert torch.equal(one_hot.log_prob(drawn.to(dtype)), one_hot.log_prob(drawn))


def test_densities_between_corners_have_their_gradient():
    one_hot = distributions.OneHotAutoregressive(tokens(network(), IMAGE, IMAGE), IMAGE, validate_args=False)
    inside = torch.randn(2, 2, 3, dtype=DOUBLE).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(one_hot.log_prob, inside)
    with torch.no_grad():
        without = one_hot.log_prob(inside.detach())
    torch.testing.assert_close(without, one_hot.log_prob(inside).detach())


def test_ranges_that_a_table_would_not_hold_are_refused():
    for place in (range(0, 5, 2), range(6), range(-1, 3), range(2, 2)):
        with pytest.raises(ValueError, match=r"places: expected ranges of successive tokens from 0 to 4, found range"):
            distributions.allowed_tokens([TEXT, place], 5)


def test_a_change_of_probabilities_changes_draws_alone():
    d = tokens(network(), IMAGE, IMAGE)
    likeliest = d.sample((5,), change=lambda log_p: log_p / 1e-9)
    first = d.conditionals(likeliest)[:, 0].argmax(-1)
    assert torch.equal(likeliest[:, 0], first)
    assert len(likeliest.unique(dim=0)) == 1
    assert d.log_prob(likeliest)[0] < 0


def test_what_is_outside_the_support_is_refused():
    d = tokens(network(), TEXT, IMAGE)
    for wrong in ([[2, 2]], [[0, 0]], [[0, 5]], [[-1, 2]], [[0.5, 2.0]]):
        assert not d.support.check(torch.tensor(wrong)).any()
        with pytest.raises(ValueError, match="within the support"):
            d.log_prob(torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"codes: .* are not the tokens"):
        distributions.OneHotAutoregressive(d, IMAGE)
    with pytest.raises(ValueError, match="layers, heads: expected at least 1 of each, found 0 and 4"):
        nets.CausalTransformer(5, 2, layers=0)
    with pytest.raises(ValueError, match=r"allowed: expected a table of bool.*found shape \(3,\)"):
        distributions.Autoregressive(d.network, torch.ones(3))
    with pytest.raises(ValueError, match="expected 4 tokens and at least 2 positions, found 5 and 5"):
        priors.AutoregressiveCodes(positions=2, codes=4, transformer=d.network)


def test_every_parameter_gets_a_gradient():
    net = network()
    d = tokens(net, *[range(VOCABULARY)] * 5)
    d.log_prob(d.sample((50,))).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_captured_with_any_number_of_rows_densities_are_the_eager_ones():
    net = network()
    parameters = list(net.parameters())

    def run(prefix, codes):
        d = distributions.OneHotAutoregressive(tokens(net, IMAGE, IMAGE, prefix=prefix), IMAGE, validate_args=False)
        log_p = d.log_prob(codes)
        return log_p, *torch.autograd.grad(log_p.sum(), parameters, materialize_grads=True)

    def batch(rows):
        return torch.randint(2, (rows, 2)), torch.eye(3, dtype=DOUBLE)[torch.randint(3, (4, rows, 2))]

    graph, other = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*batch(7)), batch(11)
    for captured, eager in zip(graph(*other), run(*other), strict=True):
        torch.testing.assert_close(captured, eager)


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.float32], ids=str)
def test_tokens_of_any_type_train_and_evaluate(dtype):
    x = torch.randint(3, (200, 4))
    x[:, 2] = x[:, 0]
    model = TokenTransformer(x_dim=4, y_dim=3, width=16, layers=1)
    result = pv.fit(model, Empty(), x.to(dtype), valid=x[:50].to(dtype), epochs=12, batch_size=50)
    assert result.history["valid_bound"][-1] > result.history["valid_bound"][0] + 0.3
    evaluation = pv.evaluate(model, Empty(), x[:50].to(dtype), particles=2)
    weighed = pv.weigh(model, Empty(), x[:50]).log_w[0].double()
    torch.testing.assert_close(evaluation.log_px, weighed.detach(), atol=1e-5, rtol=1e-5)


def tiny(**options):
    return {"x_dim": 4, "positions": 2, "codes": 3, "hidden": (8,), **options}


def exact_log_px(model, x, log_prior):
    """Return log p(x) by the sum over all codes of a grid."""
    grids = torch.eye(3, dtype=DOUBLE)[every(range(3), range(3))].unsqueeze(1)
    return (log_prior(grids) + model.decoder(grids).log_prob(x)).logsumexp(0).detach()


def test_bounds_with_the_transformer_prior_are_those_of_the_sum_over_all_codes():
    torch.manual_seed(0)
    trained = TokenTransformer(x_dim=2, y_dim=3, width=8)
    prior = priors.AutoregressiveCodes(positions=2, codes=3, transformer=trained.transformer)
    assert {id(p) for p in prior.parameters()} == {id(p) for p in trained.parameters()}
    model, guide = DiscreteVAE(**tiny(prior=prior)).double(), Categorical(**tiny()).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.5)
    x = torch.randint(2, (5, 4)).to(DOUBLE)
    exact = exact_log_px(model, x, prior().log_prob)
    log_w = pv.weigh(model, guide, x, particles=4000).log_w.detach()
    odds.assert_mean((log_w - exact).exp(), torch.ones(5, dtype=DOUBLE))
    odds.assert_at_most(log_w.mean(1), exact.mean().expand(4000))


def test_a_relaxed_prior_trains_the_guide():
    prior = priors.AutoregressiveCodes(positions=2, codes=3, width=8)
    model, guide = DiscreteVAE(**tiny(prior=prior)), Categorical(**tiny())
    x = torch.randint(2, (30, 4)).float()
    for objective in (pv.objectives.Concrete(0.7), pv.objectives.REBAR(), pv.objectives.vimco):
        pv.fit(model, guide, x, objective=objective, particles=2, epochs=1)


WORDS = ["on", "off"]


def text_to_image():
    letters = nets.Characters(WORDS)
    torch.manual_seed(0)
    sizes = tiny(y_dim=letters.size, text_length=letters.length, width=16)
    return letters, TextToImage(**sizes), Categorical(**tiny(hidden=(16,)))


def test_words_become_numbers_and_words_again():
    letters = nets.Characters(["zero", "one", ""])
    assert letters.decode(letters.encode(["one", "", "zero"])) == ["one", "", "zero"]
    assert letters.encode([]).shape == (0, letters.length)
    assert letters.encode(["one"]).shape == (1, letters.length)
    assert letters.encode(["zero"]).max() < letters.size
    with pytest.raises(ValueError, match="words: 'none' has 4 characters"):
        nets.Characters(["one"]).encode(["none"])
    with pytest.raises(ValueError, match="'two' has 3 characters, 3 at most, of 'eno' alone"):
        nets.Characters(["one"]).encode(["two"])


def test_a_word_generates_its_image():
    letters, model, guide = text_to_image()
    which = torch.arange(200) % 2
    x, y = which.unsqueeze(-1).repeat(1, 4).float(), letters.encode([WORDS[w] for w in which])
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-2)
    pv.fit(
        model, guide, (x, y), objective=pv.objectives.vimco, particles=4, epochs=25, batch_size=50, optimizer=optimizer
    )
    for which, word in enumerate(WORDS):
        c = model.codes_given(letters.encode([word] * 50)).sample()
        assert (model.decoder(c).mean.mean() - which).abs() < 0.2
    draws = pv.sample(model, like=(x, y), n=50)
    assert set(letters.decode(draws["y"])) == set(WORDS)
    means = pv.decode(model, draws, like=(x, y))["x"].mean(1)
    agrees = [(mean > 0.5) == (word == "off") for mean, word in zip(means, letters.decode(draws["y"]), strict=True)]
    assert sum(agrees) > 45


def test_a_texts_probability_and_its_codes_make_the_joint():
    letters, model, _ = text_to_image()
    model = model.double()
    y = letters.encode(["off", "on"])
    x = torch.randint(2, (2, 4)).to(DOUBLE)
    guide = Categorical(**tiny()).double()
    found = pv.weigh(model, guide, (x, y), particles=3)
    numbers = model.codes_given(y).numbers(found.values["c"])
    sequence = torch.cat([y.expand(3, -1, -1), numbers], -1)
    whole = distributions.Autoregressive(model.transformer, torch.cat([model.text, model.image]))
    torch.testing.assert_close(found.log_p["y"] + found.log_p["c"], whole.log_prob(sequence))


def test_a_label_is_a_text_of_one_token():
    model, guide = TextToImage(**tiny(y_dim=3)), Categorical(**tiny())
    x, y = torch.randint(2, (6, 4)).float(), torch.arange(6) % 3
    pv.check(model, guide, (x, y))
    torch.manual_seed(0)
    labels = pv.weigh(model, guide, (x, y)).log_w
    torch.manual_seed(0)
    assert torch.equal(pv.weigh(model, guide, (x, y.unsqueeze(-1))).log_w, labels)


def test_the_benchmark_runs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    app = importlib.import_module("words").app
    done = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
