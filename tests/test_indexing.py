"""Programs that name `index` are called with the rows of a batch in its data set, the others without."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

import ppl_vae as pv
from ppl_vae import laboratory, traversing
from ppl_vae.indexing import alike, signature_of, with_index
from ppl_vae.models.linear_gaussian import LinearGaussian

N = 12


class Local(nn.Module):
    """A mean and a scale for each datum; it takes its rows."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = (nn.Parameter(torch.zeros(N, 2).double()) for _ in range(2))

    def forward(self, x, index):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc[index], self.log_scale[index].exp()).to_event(1))


def make():
    torch.manual_seed(0)
    return LinearGaussian(x_dim=4, z_dim=2).double(), Local()


@pytest.fixture
def pair():
    return make()


@pytest.fixture
def x():
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).double()


class Rows(Dataset):
    """Data that are read one by one, as tensors or as tuples."""

    def __init__(self, x, alone):
        self.x, self.alone = x, alone

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row] if self.alone else (self.x[row],)


FORMS = {
    "a tensor": lambda x: x,
    "a tuple": lambda x: (x,),
    "a list": lambda x: [x],
    "tensors as a data set": TensorDataset,
    "a data set": partial(Rows, alone=True),
    "a data set of tuples": partial(Rows, alone=False),
    "with rows": lambda x: (x, torch.arange(N)),
    "a loader with rows": lambda x: DataLoader(TensorDataset(x, torch.arange(N)), batch_size=5),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_datum_meets_its_own_parameters(form, pair, x):
    """Only rows of the data that are far off move far."""
    model, guide = pair
    model.requires_grad_(False)
    x = x.clone()
    x[[2, 7]] += 20 * model.weight.sum(1)  # where z is far from zero
    optimizer = torch.optim.SGD(guide.parameters(), lr=0.05)
    pv.fit(model, guide, FORMS[form](x), epochs=1, batch_size=5, optimizer=optimizer)
    moved = guide.loc.abs().amax(1)
    assert sorted(moved.topk(2).indices.tolist()) == [2, 7]
    assert moved[[2, 7]].min() > 3 * moved.sort().values[-3]
    assert moved.min() > 0


def test_rows_stay_with_their_data_in_any_order():
    seen = []

    def guide(x, index):
        seen.append((x[:, 0], index))
        scale = pyro.param("scale", lambda: torch.ones(()))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    pyro.clear_param_store()
    numbers = torch.arange(float(N)).unsqueeze(-1)
    pv.fit(model, guide, numbers, epochs=2, batch_size=5)
    assert len(seen) > 6
    assert all(torch.equal(x, index.float()) for x, index in seen)
    pyro.clear_param_store()


@pytest.mark.parametrize("objective", [pv.objectives.iwae, Trace_ELBO()], ids=["ours", "Pyro's"])
def test_steps_take_rows(objective, pair, x):
    model, guide = pair
    optimizer = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.1)
    step = pv.svi_step(model, guide, objective, optimizer=optimizer)
    rows = torch.tensor([3, 1])
    assert step((x[rows], rows)).bound.isfinite()
    assert guide.loc.abs().amax(1).nonzero().flatten().tolist() == [1, 3]
    assert step.bound((x[rows], rows)).shape == (2,)


def test_captured_steps_are_the_eager_ones(x, uncompiled):
    eager, captured = twins(make)
    batches = [(x[rows], rows) for rows in (torch.arange(5), torch.arange(3, 8), torch.arange(2))]
    steps = step_on(*alike(*eager), batches[0]), step_on(*alike(*captured), batches[0], compile=True)
    assert_steps_agree(*steps, batches)
    assert steps[1].ascent.count == 1
    assert steps[1].ascent.reason is None


def test_other_verbs_take_rows_with_the_data(pair, x):
    model, guide = pair
    data = (x, torch.arange(N))
    pv.check(model, guide, data)
    assert pv.weigh(model, guide, data, particles=3).log_w.shape == (3, N)
    evaluation = pv.evaluate(model, guide, data, particles=2000)
    torch.testing.assert_close(evaluation.log_px, model.log_px(x).detach(), rtol=0, atol=0.5)
    assert "LinearGaussian (guide Local" in str(evaluation)
    fit = pv.fit(model, guide, x, epochs=1)
    assert set(fit.to_arviz(particles=20, rows=3)["posterior"].data_vars) >= {"z"}


class Taking(nn.Module):
    """A model that takes rows and does not look at them."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x, index):
        return self.inner(x)


VERBS = {
    "reconstruct": lambda model, guide, data: pv.reconstruct(model, guide, data, particles=3)["x"],
    "elbo_surgery": lambda model, guide, data: pv.elbo_surgery(model, guide, data).elbo.per_datum,
    "gradient_statistics": lambda model, guide, data: laboratory.gradient_statistics(model, guide, data, draws=4)[
        "guide"
    ].mean["guide.loc"],
    "exact_gradient": lambda model, guide, data: laboratory.exact_gradient(model, guide, data, nodes=4)[
        "guide.log_scale"
    ],
    "impute": lambda model, guide, data: pv.impute(model, guide, data, torch.arange(4) < 2, draws=2).draws,
    "ais": lambda model, guide, data: pv.ais(model, data, guide, distributions=3, chains=4, leapfrog=2).log_px,
    "bdmc": lambda model, guide, data: (
        pv.bdmc(model, data, n=5, guide=guide, distributions=3, chains=4, leapfrog=2).upper
    ),
    "aggregate_kl": lambda model, guide, data: pv.aggregate_kl(guide, data, model).value.per_datum,
    "traversals": lambda model, guide, data: traversing.traversals(model, guide, data).images,
    "interpolations": lambda model, guide, data: traversing.interpolations(model, guide, data, data),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_names_no_rows_is_as_good_as_one_that_takes_them(verb, pair, x):
    model, guide = pair
    with torch.no_grad():
        guide.loc.copy_(model.posterior(x).mean)
    given = x, torch.arange(N)
    found, wanted = VERBS[verb](model, guide, given), VERBS[verb](Taking(model), guide, given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found.abs().sum() > 0


def test_a_run_of_such_a_guide_is_restored_on_a_batch_with_rows(pair, x):
    trained, (model, guide) = pair, make()
    pv.fit(*trained, x, epochs=1, out="run")
    pv.restore(model, guide, "run", like=(x, torch.arange(N)))
    assert torch.equal(guide.loc, trained[1].loc)
    assert guide.loc.abs().sum() > 0


@pytest.mark.parametrize("verb", [pv.check, pv.evaluate, pv.elbo_surgery])
def test_without_rows_such_a_guide_is_refused_with_the_repair(verb, pair, x):
    with pytest.raises(
        pv.ContractError, match=r"data: a program names index.*1 tensor and no rows; pass \(x, torch\.ar"
    ):
        verb(*pair, x)


LABELS = torch.arange(N) % 3
OTHER_FORMS = {
    "tensors": lambda x, y: (x, y),
    "tensors as a data set": TensorDataset,
    "a data set": lambda x, y: Subset(TensorDataset(x, y), range(N)),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
}
NO_ROWS = {
    "labels": (LABELS, "found 0, 1, 2 more than once"),
    "fractions": (torch.arange(N).double(), r"found torch.float64 of shape \(\d+,\)"),
    "a column": (torch.arange(N).unsqueeze(-1), r"found torch.int64 of shape \(\d+, 1\)"),
    "nothing known": (torch.arange(N) - 1, "found -1"),
}


@pytest.mark.parametrize("verb", [pv.fit, pv.variational_em])
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_labels_are_not_taken_for_rows(form, verb, pair, x):
    """They come in the place of rows where both programs leave them out."""
    data = OTHER_FORMS[form](x, LABELS if form != "a loader" else LABELS[[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]])
    with pytest.raises(
        pv.ContractError, match=r"data: part 1 stands in the place of index.*more than once; name labels"
    ):
        verb(*pair, data, epochs=1, batch_size=5)
    assert pair[1].loc.abs().sum() == 0


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_is_no_row_is_named(kind, form, pair, x):
    rows, found = NO_ROWS[kind]
    if (kind, form) == ("labels", "a loader"):
        found = "found 0, 1 more than once"  # in its first batch
    with pytest.raises(
        pv.ContractError, match=rf"{found}; name labels as an argument before index, or pass torch\.arange"
    ):
        pv.fit(*pair, OTHER_FORMS[form](x, rows), epochs=1, batch_size=5)


def test_many_repeated_values_are_counted(pair, x):
    with pytest.raises(pv.ContractError, match="found 0, 1, 2, 3, 4 and 1 others more than once"):
        pv.fit(*pair, (x, torch.arange(N) // 2), epochs=1)


def test_a_batch_with_no_rows_in_their_place_is_refused(pair, x):
    with pytest.raises(
        pv.ContractError, match=r"part 1 stands in the place of index.*found torch.float64 of shape \(12,\)"
    ):
        pv.evaluate(*pair, (x, torch.arange(N).double()))


def test_a_sampler_may_repeat_data(pair, x):
    data, sampler = TensorDataset(x, torch.arange(N)), WeightedRandomSampler(torch.ones(N), 40)
    pv.fit(*pair, DataLoader(data, batch_size=20, sampler=sampler), epochs=1)
    pv.fit(*pair, DataLoader(data, batch_sampler=BatchSampler(sampler, 20, False)), epochs=1)
    assert pair[1].loc.abs().sum() > 0


class WithDefault(Local):
    """New data, which have no row, begin at zero."""

    def forward(self, x, index=None):
        return super().forward(x, torch.zeros(len(x), dtype=torch.int64) if index is None else index)


def test_rows_may_be_left_out_where_they_have_a_default(x):
    model, guide = Taking(LinearGaussian(4, 2).double()), WithDefault()
    model.forward = lambda x, index=None: model.inner(x)
    pv.check(model, guide, x)
    assert len(pv.active_units(guide, x).variances["z"]) == 2


class Labelled(Local):
    """Rows come behind the labels."""

    def forward(self, x, y, index):
        return super().forward(x, index)


class Between(Local):
    def forward(self, x, index, y):
        return super().forward(x, index)


class ByName(Local):
    def forward(self, x, *, index):
        return super().forward(x, index)


class Supervised(LinearGaussian):
    def forward(self, x, y):
        return super().forward(x)


class SupervisedRows(LinearGaussian):
    def forward(self, x, y, index):
        return super().forward(x)


APART = {
    "a model with one tensor more": (Supervised, Local, r"they take \(x, y\) and \(x, index\)"),
    "a model with one tensor less": (LinearGaussian, Labelled, r"they take \(x\) and \(x, y, index\)"),
    "two places": (SupervisedRows, Local, r"they take \(x, y, index\) and \(x, index\)"),
    "not the last": (Supervised, Between, r"they take \(x, y\) and \(x, index, y\)"),
    "by name": (LinearGaussian, ByName, r"they take \(x\) and \(x, index\)"),
}


@pytest.mark.parametrize("case", APART)
def test_rows_come_after_the_same_tensors_in_both(case, x):
    model, guide, found = APART[case]
    model, guide = model(x_dim=4, z_dim=2).double(), guide()
    for run in (
        lambda: pv.check(model, guide, x),
        lambda: pv.fit(model, guide, x, epochs=1),
        lambda: pv.fit(model, guide, (x, LABELS), epochs=1),
        lambda: pv.weigh(model, guide, (x, LABELS, torch.arange(N))),
    ):
        with pytest.raises(pv.ContractError, match=rf"model, guide: {found}, but index is the last.*move it there"):
            run()


def test_rows_come_behind_labels(x):
    model, guide = Supervised(x_dim=4, z_dim=2).double(), Labelled()
    pv.fit(model, guide, (x, LABELS), epochs=1, batch_size=5)
    assert guide.loc.abs().amax(1).min() > 0
    with pytest.raises(pv.ContractError, match=r"2 tensors and no rows; pass \(x, y, torch\.arange\(len\(x\)\)\)"):
        pv.check(model, guide, (x, LABELS))


class Embedded(Local):
    def __init__(self, rows=N):
        nn.Module.__init__(self)
        self.rows = nn.Embedding(rows, 2).double()

    def forward(self, x, index):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.rows(index), 1.0).to_event(1))


class Sparse(Local):
    """Mean and scale of each datum, of which a batch moves its own."""

    def __init__(self):
        nn.Module.__init__(self)
        self.rows = nn.Embedding(N, 2, sparse=True).double()
        nn.init.zeros_(self.rows.weight)

    def forward(self, x, index):
        loc, log_scale = self.rows(index).chunk(2, -1)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


SPARSE_ADAM = partial(torch.optim.SparseAdam, lr=0.05)


@pytest.mark.parametrize("captured", [False, True])
def test_sparse_rows_stay_where_they_are_in_steps_of_others(captured, x, uncompiled):
    guide = Sparse()
    optimizer = SPARSE_ADAM(guide.parameters())
    step = pv.svi_step(LinearGaussian(4, 1).double(), guide, optimizer=optimizer, compile=captured)
    mine, others = torch.arange(4), torch.arange(4, 8)
    step((x[mine], mine))
    before = guide.rows.weight.detach().clone()
    for _ in range(3):
        step((x[others], others))
    moved = (guide.rows.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == others.tolist()


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("verb", [pv.fit, pv.variational_em])
def test_sparse_rows_find_the_posterior_of_their_datum(verb, captured, x, uncompiled):
    model, guide = LinearGaussian(4, 1).double(), Sparse()
    exact = model.posterior(x)
    still = partial(torch.optim.SGD, lr=0.0)
    how = {"optimizer": SPARSE_ADAM} if verb is pv.fit else {"guide_optimizer": SPARSE_ADAM, "model_optimizer": still}
    model.requires_grad_(verb is pv.variational_em)
    how |= {"objective": pv.objectives.stl, "particles": 10, "epochs": 150, "batch_size": 6, "compile": captured}
    verb(model, guide, x, **how)
    loc, log_scale = guide.rows.weight.detach().chunk(2, -1)
    torch.testing.assert_close(loc, exact.mean.detach(), rtol=0, atol=5e-3)
    torch.testing.assert_close(log_scale.exp(), exact.stddev.detach().expand_as(loc), rtol=0, atol=5e-3)


MORE = {
    "a tensor": lambda x: x,
    "a data set": partial(Rows, alone=False),
    "in one batch": lambda x: (x, torch.arange(len(x))),
    "rows in any order": lambda x: (x, torch.arange(len(x)).roll(3)),
    "rows beside a data set": lambda x: TensorDataset(x, torch.arange(len(x)).flip(0)),
}


@pytest.mark.parametrize("verb", [pv.fit, pv.variational_em])
@pytest.mark.parametrize("guide", [Local, Embedded])
@pytest.mark.parametrize("form", MORE)
def test_a_guide_with_too_few_rows_is_told_how_many_it_needs(form, guide, verb, x):
    model, guide = make()[0], guide()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(
        pv.ContractError, match=r"guide: it has nothing for row 15 of the data \(ind.*give it at least 16 rows"
    ):
        verb(model, guide, MORE[form](torch.cat([x, x[:4]])), epochs=1, batch_size=16 if form == "in one batch" else 4)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


class ByLabel(Local):
    """It has something for each label too."""

    def __init__(self):
        super().__init__()
        self.of_label = nn.Parameter(torch.zeros(2, 2).double())

    def forward(self, x, y, index):
        self.of_label[y]
        return super().forward(x, index)


def test_a_label_out_of_range_is_no_row_out_of_range(x):
    with pytest.raises(IndexError, match="index 2 is out of bounds for dimension 0 with size 2"):
        pv.fit(Supervised(x_dim=4, z_dim=2).double(), ByLabel(), (x, LABELS), epochs=1)


class Noisy(Rows):
    """Data that are drawn as they are read."""

    def __init__(self, x, rows):
        super().__init__(x, alone=False)
        self.rows = rows

    def __getitem__(self, row):
        x = self.x[row] + torch.randn(4).double()
        return (x, row) if self.rows else x


@pytest.mark.parametrize("rows", [True, False])
def test_the_random_state_stays_where_it_was(rows, pair, x):
    before = torch.get_rng_state()
    pv.fit(*pair, Noisy(x, rows), epochs=1, batch_size=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_data_are_refused(pair, x):
    with pytest.raises(ValueError, match=r"valid: a program names index.*nothing for other data"):
        pv.fit(*pair, x, valid=x)
    digits = pv.data.load("digits", binarize="static")
    with pytest.raises(ValueError, match=r"leave valid out, and pass data\.train"):
        pv.fit(*pair, digits)
    with pytest.raises(TypeError, match="data: a program names index, and a DataLoader does not tell which rows"):
        pv.fit(*pair, DataLoader(x, batch_size=5))


def plain(x):
    return "plain", x


def indexed(x, index):
    return "indexed", x, index


def test_only_who_names_rows_gets_them():
    batch = torch.zeros(2), torch.tensor([1, 0])
    for order in ((plain, indexed), (indexed, plain)):
        for program, own in zip(alike(*order), order, strict=True):
            found = program(*batch)
            assert found[0] == own.__name__
            assert len(found) == (3 if own is indexed else 2)
    assert alike(plain, plain) == (plain, plain)
    assert alike(indexed, indexed) == (indexed, indexed)
    data = torch.zeros(3)
    assert with_index(data, None, plain, None) is data


def with_default(x, scale=2.0):
    return x


def with_any(*batch):
    return batch


def test_the_arguments_are_shown():
    found, _ = alike(plain, indexed)
    assert [*signature_of(found).parameters] == ["x", "index"]
    assert found.__qualname__ == "plain"
    found, _ = alike(with_default, indexed)
    assert found(1, 2) == 1
    assert [*signature_of(found).parameters] == ["x", "index", "scale"]
    assert alike(with_any, indexed)[0] is with_any
    with pytest.raises(pv.ContractError, match="model: expected a Pyro program, found 'plain'"):
        pv.check("plain", Local(), torch.zeros(2, 4))
