"""Programs at the parameters and buffers that they had, wherever training takes them next."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.programs import Program, Programs, modes_and_buffers_kept

__all__ = ["as_it_was", "snapshot"]


def snapshot(program: Program, batch: Batch, placed: Program | None = None) -> dict[str, Tensor]:
    """Return copies of a program's parameters and buffers, those of ``pyro.param`` among them, by name.

    Args:
        program: Pyro program.
        batch: data, on two of which the program runs once, so that its ``pyro.param`` sites are known.
        placed: the program as it is run for that, where draws from its prior might fail; as it is when left out.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> sorted(snapshot(LinearGaussian(x_dim=6, z_dim=2), (torch.zeros(3, 6),)))
        ['model.bias', 'model.log_scale', 'model.weight']
    """
    programs, run = Programs(program, program), placed or program
    with modes_and_buffers_kept(programs, training=False), pyro.validation_enabled(False):
        programs.run_once(run, run, tuple(part[:2] for part in batch))
    return {name: tensor.detach().clone() for name, tensor in programs.tensors().items()}


@contextmanager
def as_it_was(program: Program, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Run a program inside with the parameters and buffers of a `snapshot`, in evaluation mode.

    Afterwards parameters, buffers, modes and Pyro's parameter store are as they were found.

    Args:
        program: Pyro program.
        tensors: of the snapshot.

    Raises:
        ValueError: parameters or buffers have come or gone since, or were tied or untied.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.zeros(3, 6)
        >>> before, kept = model.log_px(x), snapshot(model, (x,))
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> with as_it_was(model, kept):
        ...     torch.equal(model.log_px(x), before)
        True
        >>> bool((model.weight == 1).all())
        True
    """
    programs, swapped, store = Programs(program, program), Swapped(), pyro.get_param_store()
    _check_names(programs, tensors)
    try:
        for name, tensor in programs.tensors().items():
            if name in tensors:
                swapped.swap(tensor, tensors[name])
        # In a store of its own, since the program may have to declare again what is gone from the caller's.
        with (
            store.scope(store.get_state()),
            _AtSites(tensors, swapped),
            modes_and_buffers_kept(programs, training=False),
        ):
            yield
    finally:
        swapped.restore()


def _check_names(programs: Programs, tensors: Mapping[str, Tensor]) -> None:
    now = {name for name in programs.tensors() if not name.startswith("param.")}
    then = {name for name in tensors if any(name.startswith(f"{owner}.") for owner in programs.modules)}
    if changed := sorted(now ^ then):
        raise ValueError(
            f"model: {', '.join(changed[:3])} {'is' if len(changed) == 1 else 'are'} new, gone, tied or untied since "
            "this result was found, which speaks of the model as it was; make it so again, or fit anew"
        )


class Swapped:
    """Tensors that hold other numbers for a while.

    Not a number is copied: gradients that somebody is about to compute would find that their tensors were written to.
    """

    def __init__(self) -> None:
        self._own: dict[int, tuple[Tensor, Tensor]] = {}

    def swap(self, tensor: Tensor, other: Tensor) -> None:
        """Let a tensor have the numbers of another, which stay as they are should somebody write to it."""
        self._own.setdefault(id(tensor), (tensor, tensor.data))
        tensor.data = other.clone()

    def restore(self) -> None:
        """Give all tensors their own back."""
        for tensor, own in self._own.values():
            tensor.data = own


class _AtSites(Messenger):
    """Give the tensors of ``pyro.param`` sites the numbers of a snapshot as they are met."""

    def __init__(self, tensors: Mapping[str, Tensor], swapped: Swapped):
        super().__init__()
        self.tensors, self.swapped = tensors, swapped

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        kept = self.tensors.get(f"param.{msg['name']}")
        if kept is not None:
            self.swapped.swap(msg["value"].unconstrained(), kept)
            msg["value"] = pyro.get_param_store()[msg["name"]]
