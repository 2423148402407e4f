"""Our Adam is torch's, bit for bit, whatever is done to it."""

import copy
from functools import partial

import pyro
import pytest
import torch
from torch import nn

from ppl_vae.optimizers import FusedAdam, made

OPTIONS = {
    "plain": {},
    "betas": {"betas": (0.5, 0.9), "eps": 1e-6},
    "weight decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "upward": {"maximize": True},
    "two types": {},
}
THEIRS = partial(torch.optim.Adam, fused=True)


def parameters(*types):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(size, dtype=dtype)) for dtype in types for size in ((3, 4), (5,), ())]


def set_gradients(parameters, seed, missing=()):
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(parameters):
        p.grad = None if i in missing else torch.randn(p.shape, generator=generator, dtype=p.dtype)


@pytest.fixture(params=OPTIONS)
def twins(request):
    """Two optimizers over equal parameters: torch's and ours."""
    types = (torch.float32, torch.float64) if request.param == "two types" else (torch.float32,)
    both = [parameters(*types), parameters(*types)]
    return [
        (ps, make(ps, lr=1e-2, **OPTIONS[request.param])) for ps, make in zip(both, (THEIRS, FusedAdam), strict=True)
    ]


def train(twins, seeds, missing=()):
    for ps, optimizer in twins:
        for seed in seeds:
            set_gradients(ps, seed, missing)
            optimizer.step()
    (theirs, _), (ours, _) = twins
    assert all(torch.equal(p, q) for p, q in zip(theirs, ours, strict=True))


def test_updates_are_torchs(twins):
    train(twins, range(5))


def test_gradients_that_come_and_go(twins):
    train(twins, [0], missing=(1,))
    train(twins, [1, 2])
    train(twins, [3], missing=(0, 2))
    train(twins, [4, 5])


def test_another_learning_rate(twins):
    train(twins, [0, 1])
    for _, optimizer in twins:
        torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        optimizer.param_groups[0]["lr"] = 0.3
    train(twins, [2, 3])


def test_states_are_torchs_and_go_both_ways(twins):
    train(twins, [0, 1])
    (theirs, torchs), (ours, our) = twins
    state = copy.deepcopy(torchs.state_dict())
    torchs.load_state_dict(copy.deepcopy(our.state_dict()))
    our.load_state_dict(state)
    train([(theirs, torchs), (ours, our)], [2, 3])


def test_parameters_that_join_later(twins):
    train(twins, [0, 1])
    for ps, optimizer in twins:
        ps.append(nn.Parameter(torch.ones(2)))
        optimizer.add_param_group({"params": [ps[-1]], "lr": 0.5})
    train(twins, [2, 3])


def test_parameters_that_take_others_places(twins):
    train(twins, range(2))
    for ps, optimizer in twins:
        ps[0] = optimizer.param_groups[0]["params"][0] = nn.Parameter(ps[0].detach() + 1)
        ps.append(nn.Parameter(torch.ones(2)))
        optimizer.param_groups[0]["params"].append(ps[-1])
    train(twins, range(2, 4))


def test_moments_that_are_cleared_for_one_parameter(twins):
    train(twins, range(2))
    for ps, optimizer in twins:
        optimizer.state[ps[1]] = {}
    train(twins, range(2, 4))


def test_a_closure_is_called_with_gradients():
    weight = nn.Parameter(torch.ones(2))
    optimizer = FusedAdam([weight])

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert weight[0] < 1


def test_amsgrad_is_refused():
    with pytest.raises(ValueError, match="amsgrad: not part of this form"):
        FusedAdam([nn.Parameter(torch.ones(2))], amsgrad=True)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    before, optimizer = embedding.weight.clone(), FusedAdam(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"no sparse gradients, and a parameter of shape \(5, 2\) has one"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)


def test_gradients_of_any_layout():
    (theirs, plain), (ours, fused) = (
        ([nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(4))], make) for make in (torch.optim.Adam, FusedAdam)
    )
    optimizers = plain(theirs, lr=0.1), fused(ours, lr=0.1)
    for seed in range(3):
        first = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).t()
        for parameters, optimizer in zip((theirs, ours), optimizers, strict=True):
            parameters[0].grad, parameters[1].grad = first, torch.tensor(float(seed)).expand(4)
            optimizer.step()
    for p, q in zip(theirs, ours, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("make", [pyro.optim.Adam, pyro.optim.ClippedAdam])
def test_pyros_are_refused_before_they_take_a_step(make):
    """Called on parameters, they move those that have a gradient."""
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with pytest.raises(TypeError, match=r"model_optimizer: those of pyro\.optim are for.*pass torch\.optim\.Adam"):
        made(make({"lr": 0.1}), [weight], "model_optimizer")
    assert torch.equal(weight, torch.ones(2))


def test_copies_and_cleared_moments():
    weight = nn.Parameter(torch.ones(2))
    optimizer = FusedAdam([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["params"][0].grad = torch.ones(2)
    twin.step()
    optimizer.state.clear()
    optimizer.step()
    assert optimizer.state[weight]["step"] == 1
