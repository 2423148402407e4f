"""Replays, as far as a machine without a GPU can show them: the bookkeeping around a recording."""

import pytest
import torch

from ppl_vae.replaying import Replayed, record


class Recorder:
    """Keep inputs and outputs in place, as a CUDA graph does."""

    def __init__(self):
        self.recordings = 0

    def __call__(self, run, inputs):
        self.recordings += 1
        outputs = [output.clone() for output in run(*inputs)]

        def replay():
            for output, new in zip(outputs, run(*inputs), strict=True):
                output.copy_(new)

        return replay, outputs


def loss_and_gradient(weight, x):
    return (weight * x).sum(), x * torch.ones_like(weight)


def test_new_batches_and_updated_parameters_are_seen():
    recorder, weight = Recorder(), torch.ones(2, 3)
    replayed = Replayed(loss_and_gradient, 1, recorder)
    first, _ = replayed(weight, torch.ones(2, 3))
    weight += 1.0
    second, gradient = replayed(weight, 3 * torch.ones(2, 3))
    assert (first, second) == (6.0, 36.0)
    assert torch.equal(gradient, 3 * torch.ones(2, 3))
    assert recorder.recordings == 1


def test_a_parameter_that_moved_is_recorded_anew():
    recorder, weight = Recorder(), torch.nn.Parameter(torch.ones(2, 3))
    replayed = Replayed(loss_and_gradient, 1, recorder)
    replayed(weight.detach(), torch.ones(2, 3))
    weight.data = torch.full((2, 3), 2.0)
    assert replayed(weight.detach(), torch.ones(2, 3))[0] == 12.0
    assert recorder.recordings == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_it_recorded():
    weight, seen = torch.ones(2, 3, device="cuda"), torch.zeros((), device="cuda")

    def run(weight, seen, x):
        seen += 1
        return (weight * x).sum(), torch.rand((), device="cuda")

    replayed = Replayed(run, 2, record)
    torch.manual_seed(0)
    draws = [replayed(weight, seen, torch.full((2, 3), float(i), device="cuda")) for i in range(3)]
    assert [float(total) for total, _ in draws] == [0.0, 6.0, 12.0]
    assert seen == 3
    assert len({float(draw) for _, draw in draws}) == 3
