"""Captured steps against eager ones, where programs do more than the zoo's; and when graphs are made."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from test_enumeration import PAIRS
from test_styles import STYLES
from torch import nn

import ppl_vae as pv
from ppl_vae import compiling, nets
from ppl_vae.capture import CannotCapture, capture
from ppl_vae.compiling import MOST_GRAPHS, Compiled
from ppl_vae.guides.normal import Normal
from ppl_vae.lowering import lower
from ppl_vae.models.vae import VAE
from ppl_vae.parallel import LostWorker
from ppl_vae.programs import Programs

D = 6
SIZES = {"x_dim": D, "z_dim": 2, "hidden": (8,)}


def test_a_stop_is_not_mistaken_for_a_failure(monkeypatch):
    """The launcher's signal may come at any time, while a graph is made too."""

    def stopped(*args, **kwargs):
        raise LostWorker("stopped")

    net, x = nn.Linear(2, 1), (torch.ones(3, 2),)
    with pytest.raises(LostWorker):
        capture(lambda tensors, batch: stopped(), Programs(net, net), x)
    monkeypatch.setattr("torch._inductor.compile", stopped)
    with pytest.raises(LostWorker):
        lower(capture(lambda tensors, batch: net(batch[0]), Programs(net, net), x))


def bits(n=8):
    return torch.bernoulli(torch.full((n, D), 0.4), generator=torch.Generator().manual_seed(n))


class Eventful(nn.Module):
    """An encoder with everything that a layer may do besides: batch norm, dropout, a buffer replaced."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.last, self.head = nn.Linear(8, 4), nets.ToNormal()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(D), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.largest = torch.maximum(self.largest, x.detach().amax(0))
        return self.head(self.last(self.drop(torch.relu(self.norm(self.first(x))))))


def eventful():
    torch.manual_seed(0)
    return VAE(**SIZES), Normal(**SIZES, encoder=Eventful())


def small():
    torch.manual_seed(0)
    return VAE(**SIZES), Normal(**SIZES)


def pair_of_steps(make, x, **options):
    """Return an eager and a captured step on equal programs, and the programs of the second."""
    first, second = twins(make)
    return step_on(*first, x, **options), step_on(*second, x, compile=True, **options)


class TestAsEager:
    def test_batch_norm_dropout_and_replaced_buffers(self, uncompiled):
        eager, captured = pair_of_steps(eventful, bits())
        assert_steps_agree(eager, captured, [bits(8), bits(5), bits(12)])
        encoder = captured.guide.encoder
        assert encoder.seen == 3
        assert encoder.norm.num_batches_tracked == 3
        assert encoder.norm.running_mean.abs().max() > 0
        assert encoder.largest.max() == 1

    def test_capturing_changes_and_draws_nothing(self):
        model, guide = eventful()
        programs = Programs(model, guide)
        before = {name: t.clone() for name, t in programs.tensors().items()}
        state = torch.get_rng_state()
        capture(lambda tensors, batch: pv.weigh(model, guide, batch).log_w, programs, (bits(),))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(t, before[name]) for name, t in programs.tensors().items())

    def test_evaluation_mode_is_another_graph(self, uncompiled):
        eager, captured = pair_of_steps(eventful, bits())
        for mode in (True, False, True):
            for step in (eager, captured):
                step.programs.train(mode)
            assert_steps_agree(eager, captured, [bits(), bits()])
        assert captured.ascent.count == 2
        assert captured.guide.encoder.seen == 4

    def test_validation_leaves_modes_and_buffers(self, uncompiled):
        eager, captured = pair_of_steps(eventful, bits())
        for x in (bits(8), bits(5)):
            found = []
            for step in (eager, captured):
                torch.manual_seed(1)
                found.append(step.bound(x))
            torch.testing.assert_close(found[1], found[0])
        assert captured.validation.count == 1
        assert captured.guide.training
        assert captured.guide.encoder.seen == 0

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_types_of_numbers(self, dtype, uncompiled):
        eager, captured = pair_of_steps(lambda: tuple(program.to(dtype) for program in small()), bits().to(dtype))
        assert_steps_agree(eager, captured, [bits(8).to(dtype), bits(5).to(dtype)])

    def test_autocast_in_between(self, uncompiled):
        eager, captured = pair_of_steps(small, bits())
        for enabled in (True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                assert_steps_agree(eager, captured, [bits(), bits()])
        assert captured.ascent.count == 2

    def test_parameters_that_are_frozen_and_thawed(self, uncompiled):
        eager, captured = pair_of_steps(small, bits())
        for frozen in (True, False):
            for step in (eager, captured):
                step.model.decoder.requires_grad_(not frozen)
            before = {name: p.clone() for name, p in captured.model.named_parameters()}
            assert_steps_agree(eager, captured, [bits(), bits(5)])
            moved = {name for name, p in captured.model.named_parameters() if not torch.equal(p, before[name])}
            assert bool(moved) is not frozen

    def test_a_parameter_in_another_group_later(self, uncompiled):
        eager, captured = twins(small)
        eager, captured = (
            pv.svi_step(*pair, optimizer=torch.optim.SGD(pair[0].parameters(), lr=1e-2), compile=mode)
            for pair, mode in ((eager, False), (captured, True))
        )
        assert_steps_agree(eager, captured, [bits()])
        for step in (eager, captured):
            step.optimizer.add_param_group({"params": [*step.guide.parameters()]})
        before = next(captured.guide.parameters()).clone()
        assert_steps_agree(eager, captured, [bits()])
        assert not torch.equal(next(captured.guide.parameters()), before)

    def test_a_module_that_takes_anothers_place(self, uncompiled):
        eager, captured = pair_of_steps(small, bits())
        assert_steps_agree(eager, captured, [bits()])
        for step in (eager, captured):
            step.model.decoder[1] = Constant()
        assert_steps_agree(eager, captured, [bits(), bits(), bits()])
        assert captured.ascent.count == 2

    @pytest.mark.parametrize("style", STYLES)
    def test_programs_of_every_style(self, style, uncompiled):
        torch.manual_seed(0)
        eager = STYLES[style]()
        x = bits()
        first = step_on(*eager, x)
        second = step_on(*eager, x, compile=True)
        for step in (first, second):
            step.prepare(x)
        state = [t.clone() for t in first.programs.tensors().values()]
        bounds = []
        for step in (first, second):
            with torch.no_grad():
                for tensor, before in zip(step.programs.tensors().values(), state, strict=True):
                    tensor.copy_(before)
            torch.manual_seed(1)
            bounds.append([step(x).bound for x in (bits(8), bits(5), bits(8))])
        torch.testing.assert_close(torch.stack(bounds[1]), torch.stack(bounds[0]))
        assert second.ascent.count == 1

    @pytest.mark.parametrize("pair", PAIRS)
    def test_enumerated_sites(self, pair, uncompiled):
        def make():
            torch.manual_seed(0)
            return tuple(program() for program in PAIRS[pair])

        x = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        eager, captured = pair_of_steps(make, x)
        assert_steps_agree(eager, captured, [x, x[:3]])

    def test_two_tensors_and_penalties(self, uncompiled):
        class Weighted(VAE):
            def forward(self, x, weight):
                with pyro.plate("data", x.shape[0], dim=-1):
                    z = pyro.sample("z", self.prior())
                    pyro.sample("x", self.decoder(z), obs=x)
                    pyro.factor("penalty_size", -weight * z.square().sum(-1))

        class Reads(Normal):
            def forward(self, x, weight):
                super().forward(x)

        def make():
            torch.manual_seed(0)
            return Weighted(**SIZES), Reads(**SIZES)

        batches = [(bits(n), torch.linspace(0, 1, n)) for n in (8, 5)]
        eager, captured = pair_of_steps(make, batches[0])
        assert_steps_agree(eager, captured, batches)
        assert captured.ascent.count == 1


class Constant(nn.Module):
    def forward(self, h):
        return dist.Bernoulli(logits=torch.zeros_like(h)).to_event(1)


class Tempered(VAE):
    """Its likelihood has a number that Python holds."""

    sharpness = 1.0

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.sharpness = 1.0

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=self.sharpness * self.decoder[0](z)).to_event(1), obs=x)


SLOPE = 1.0


class UsesAGlobal(VAE):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=SLOPE * self.decoder[0](z)).to_event(1), obs=x)


class TestNumbersOfPython:
    def test_a_changed_attribute_is_seen(self, uncompiled):
        def make():
            torch.manual_seed(0)
            return Tempered(**SIZES), Normal(**SIZES)

        eager, captured = pair_of_steps(make, bits())
        for sharpness in (1.0, 3.0, 1.0):
            for step in (eager, captured):
                step.model.sharpness = sharpness
            assert_steps_agree(eager, captured, [bits(), bits(), bits()])
        assert captured.ascent.count == 2

    def test_a_changed_global_is_seen(self, uncompiled, monkeypatch):
        def make():
            torch.manual_seed(0)
            return UsesAGlobal(**SIZES), Normal(**SIZES)

        eager, captured = pair_of_steps(make, bits())
        assert_steps_agree(eager, captured, [bits()])
        monkeypatch.setitem(globals(), "SLOPE", 3.0)
        assert_steps_agree(eager, captured, [bits(), bits()])

    def test_a_changed_closure_is_seen(self, uncompiled):
        slope, net = 1.0, nn.Linear(2, D)

        def model(x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=slope * net(z)).to_event(1), obs=x)

        guide = Normal(**SIZES)
        optimizer = torch.optim.SGD(guide.parameters(), lr=0.0)
        eager, captured = (pv.svi_step(model, guide, optimizer=optimizer, compile=mode) for mode in (False, True))
        for slope in (1.0, 3.0):  # noqa: B007 - the model reads it
            assert_steps_agree(eager, captured, [bits(), bits()])

    def test_a_number_that_becomes_a_tensor_and_one_that_goes(self, uncompiled):
        def make():
            torch.manual_seed(0)
            return Tempered(**SIZES), Normal(**SIZES)

        eager, captured = pair_of_steps(make, bits())
        assert_steps_agree(eager, captured, [bits()])
        for step in (eager, captured):
            step.model.sharpness = torch.linspace(1, 2, D)
        assert_steps_agree(eager, captured, [bits(), bits()])
        for step in (eager, captured):
            del step.model.sharpness  # the class has one of its own
        assert_steps_agree(eager, captured, [bits(), bits()])

    def test_one_that_changes_all_the_time_runs_eagerly_and_says_which(self, uncompiled):
        model, guide = Tempered(**SIZES), Normal(**SIZES)
        step = step_on(model, guide, bits(), compile=True)

        def train():
            for i in range(30):
                model.sharpness = 1.0 + i / 30
                step(bits())

        with pytest.warns(UserWarning, match="what the graphs hold fixed has changed: sharpness of Tempered; a number"):
            train()
        assert step.ascent.count == 1


class ByLength(VAE):
    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)


class TestSizes:
    def test_any_number_of_rows_has_one_graph_but_a_single_row(self, uncompiled):
        eager, captured = pair_of_steps(small, bits())
        assert_steps_agree(eager, captured, [bits(n) for n in (8, 3, 200, 2, 1, 1, 8)])
        assert captured.ascent.count == 2

    def test_programs_that_ask_for_the_length_have_a_graph_for_each(self, uncompiled):
        def make():
            torch.manual_seed(0)
            return ByLength(**SIZES), Normal(**SIZES)

        eager, captured = pair_of_steps(make, bits())
        batches = [bits(n) for n in range(2, 22 + MOST_GRAPHS) for _ in range(2)]
        with pytest.warns(UserWarning, match="has changed: the number of rows, which the programs read"):
            assert_steps_agree(eager, captured, batches)
        assert captured.ascent.count == MOST_GRAPHS

    def test_what_a_size_decides_holds_for_that_size_alone(self, uncompiled):
        class Decides(VAE):
            def forward(self, x):
                with pyro.plate("data", x.shape[0], dim=-1):
                    z = pyro.sample("z", self.prior())
                    pyro.sample("x", self.decoder(z + 0.0 if x.shape[0] > 6 else z), obs=x)

        def make():
            torch.manual_seed(0)
            return Decides(**SIZES), Normal(**SIZES)

        eager, captured = pair_of_steps(make, bits())
        assert_steps_agree(eager, captured, [bits(n) for n in (8, 4, 4, 9, 5)])
        assert captured.ascent.count == 2


class Branches(VAE):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            if z.sum() > 0:
                z = z + 0.0
            pyro.sample("x", self.decoder(z), obs=x)


class TestWhatCannotBeCaptured:
    @pytest.mark.parametrize("mode", [True, "auto"])
    def test_it_runs_eagerly_and_says_where_and_why_once(self, mode, monkeypatch):
        monkeypatch.setattr(compiling, "SECONDS_TO_COMPILE", 0.0)

        def make():
            torch.manual_seed(0)
            return Branches(**SIZES), Normal(**SIZES)

        first, second = twins(make)
        eager, captured = step_on(*first, bits()), step_on(*second, bits(), compile=mode)
        with pytest.warns(UserWarning, match=r"test_capture.py, line \d+, 'if z.sum\(\) > 0:': it asks for the value"):
            assert_steps_agree(eager, captured, [bits(), bits()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_steps_agree(eager, captured, [bits(), bits(5)])
        assert captured.ascent.count == 0

    def test_without_a_compiler_graphs_run_uncompiled(self, monkeypatch):
        def fail(*args, **options):
            raise RuntimeError("No working C++ compiler found\nand more")

        monkeypatch.setattr("torch._inductor.compile", fail)
        eager, captured = pair_of_steps(small, bits())
        with pytest.warns(UserWarning, match="run uncompiled.*No working C.. compiler found. On a CPU it needs"):
            assert_steps_agree(eager, captured, [bits(), bits(5)])
        assert captured.ascent.count == 1

    def test_a_parameter_that_nobody_holds_is_no_constant(self):
        net, hidden = nn.Linear(2, 1), nn.Linear(2, 1)
        store = [None]
        store[0] = hidden.weight

        def function(tensors, batch):
            return (net(batch[0]) + batch[0] @ store[0].T).sum()

        with pytest.raises(CannotCapture, match=r"a parameter of shape \(1, 2\) is used that was not found"):
            capture(function, Programs(net, net), (torch.ones(3, 2),))


class TestWhenItPays:
    """Compiling costs 15 s, and a run of these small programs saves 3 ms: 5000 runs pay for it."""

    def runs(self, function, n):
        for _ in range(n):
            function((torch.ones(3, 2),))

    def make(self, **options):
        net = nn.Linear(2, 1)
        return Compiled(lambda tensors, batch: net(batch[0]).sum(), Programs(net, net), compile="auto", **options)

    def test_a_long_plan_makes_a_graph_after_the_first_run(self, uncompiled):
        function = self.make(planned=5500)
        self.runs(function, 1)
        assert function.count == 0
        self.runs(function, 1)
        assert function.count == 1

    def test_a_short_plan_makes_none(self, uncompiled):
        function = self.make(planned=4500)
        self.runs(function, 4600)
        assert function.count == 0

    def test_without_a_plan_a_graph_is_made_once_it_would_have_paid(self, uncompiled):
        function = self.make()
        self.runs(function, 4900)
        assert function.count == 0
        self.runs(function, 200)
        assert function.count == 1

    def test_heavier_work_pays_sooner(self, uncompiled):
        net = nn.Linear(1000, 1000)
        function = Compiled(lambda t, batch: net(batch[0]).sum(), Programs(net, net), planned=1500)
        for _ in range(2):
            function((torch.ones(1000, 1000),))
        assert function.count == 1

    def test_work_is_counted_with_gradients(self, monkeypatch):
        """A product of (5, 3) and (3, 4) takes 2 * 5 * 3 * 4 operations; so do the gradients in both of them."""
        net, x = nn.Linear(3, 4), (torch.ones(5, 3),)

        def function(tensors, batch):
            hidden = batch[0].clone().requires_grad_()
            return torch.autograd.grad(net(hidden).square().sum(), [hidden, net.weight])

        saved = compiling.SECONDS_TO_COMPILE / 100
        monkeypatch.setattr(compiling, "SECONDS_SAVED", 0.0)
        monkeypatch.setattr(compiling, "SECONDS_SAVED_PER_FLOP", saved / (3 * 2 * 5 * 3 * 4))
        found = Compiled(function, Programs(net, net))
        found(x)
        assert found._patience == pytest.approx(100)


class Vamp(VAE):
    """A prior that is the guide's, which it holds, at pseudo-inputs that are parameters."""

    def __init__(self, guide):
        super().__init__(**SIZES)
        self.guide, self.inputs = guide, nn.Parameter(torch.rand(1, D))

    def prior(self):
        base = self.guide.encoder(self.inputs).base_dist
        return dist.Normal(base.loc[0], base.scale[0]).to_event(1)


@pytest.mark.parametrize("mode", ["auto", True, False])
def test_modules_may_be_called_on_parameters(mode, uncompiled):
    """torch's own counter of work would follow them by hooks, with which a leaf has no gradient."""
    guide = Normal(**SIZES)
    model = Vamp(guide)
    before = model.inputs.clone()
    pv.fit(model, guide, bits(), epochs=2, compile=mode)
    assert not torch.equal(model.inputs, before)
    # Both programs hold them, and stand-ins took their place for a while.
    assert {type(p) for p in guide.parameters()} == {nn.Parameter}


COMPILED = {
    "elbo": (small, pv.objectives.elbo, [8, 5, 8]),
    "batch norm, dropout, iwae": (eventful, pv.objectives.iwae, [8, 5, 12]),
    "nvil": (small, pv.objectives.NVIL(x_dim=D, hidden=4), [8, 5]),
}


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_steps_are_the_eager_ones(case):
    make, objective, sizes = COMPILED[case]
    eager, captured = pair_of_steps(make, bits(), objective=objective)
    if isinstance(objective, nn.Module):
        captured = step_on(*twins(make)[0], bits(), objective=type(objective)(x_dim=D, hidden=4), compile=True)
        captured.objective.load_state_dict(objective.state_dict())
    assert_steps_agree(eager, captured, [bits(n) for n in sizes], rtol=1e-3, atol=1e-5)
    assert captured.ascent.count == 1
    assert captured.ascent.reason is None
    (graph,) = next(iter(captured.ascent.graphs.values()))
    assert graph.run is not graph.module
