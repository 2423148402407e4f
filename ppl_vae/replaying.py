"""Replay what a function launched on a GPU, all at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Replayed", "record"]

Run = Callable[..., Sequence[Tensor]]
Replay = Callable[[], None]

WARM_UPS = 3


class Replayed:
    """A function of tensors that is recorded at its first call and replayed after that.

    A replay reads its inputs, and leaves its outputs, where they lay when it was recorded. Parameters
    and buffers stay where they are; batches are copied in. Outputs of at most one axis (bounds,
    penalties) are copied out. Larger ones (gradients) are overwritten by the next call.

    Args:
        run: launches the same kernels in every call.
        fixed: how many of its inputs, the first ones, stay where they are. If one has moved all the
            same, the function is recorded again.
        record: how to record; see `record`.

    Reference: A. Gray, "Getting Started with CUDA Graphs", NVIDIA 2019,
    https://developer.nvidia.com/blog/cuda-graphs/.
    """

    def __init__(self, run: Run, fixed: int, record: Callable[[Run, Sequence[Tensor]], tuple[Replay, Any]]):
        self.run, self.fixed, self.record = run, fixed, record
        self._addresses: list[int] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return what the function returns."""
        fixed, batch = inputs[: self.fixed], inputs[self.fixed :]
        addresses = [tensor.data_ptr() for tensor in fixed]
        if addresses != self._addresses:
            self._batch = [part.clone() for part in batch]
            self._replay, self._outputs = self.record(self.run, [*fixed, *self._batch])
            self._addresses = addresses
        for still, part in zip(self._batch, batch, strict=True):
            still.copy_(part)
        self._replay()
        return [output.clone() if output.dim() < 2 else output for output in self._outputs]


def record(run: Run, inputs: Sequence[Tensor]) -> tuple[Replay, Sequence[Tensor]]:
    """Record a function on the current GPU as a CUDA graph; inputs and random state stay as they were.

    Returns:
        What replays it, and its outputs, filled by each replay.
    """
    before, state = [tensor.clone() for tensor in inputs], torch.cuda.get_rng_state()
    # Libraries make their workspaces, and kernels are tuned, in the first calls, which cannot be recorded.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run(*inputs)
        for tensor, kept in zip(inputs, before, strict=True):
            tensor.copy_(kept)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_rng_state(state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*inputs)
    return graph.replay, outputs
