"""What must be as it was before."""

import torch


def tensors(model):
    """Return copies of a model's parameters and buffers, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, before):
    """Assert that they are still these."""
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
