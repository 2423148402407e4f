"""Errors of torch and Pyro that say what is wrong, in words that say how to mend it."""

import re

import torch

from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError

__all__ = ["refuse_in_other_words", "refuse_types"]

# What Pyro says where no site has been reached, or one is not to blame, and what a person is told instead.
PYROS_WORDS = {
    r"Multiple sample sites named '(.*)'": "site '{0}' stands in it twice; give each statement a name of its own",
    r'at plates "(.*)" and "(.*)", collide at dim=(.*)': (
        "the plates '{0}' and '{1}' both have dim={2}; the batch plate 'data' is the only one, make the rest an event "
        "with .to_event"
    ),
    r"subsample_size does not match len\(subsample\), (\d+) vs (\d+)": (
        "plate 'data' is said to hold {1} data, but the batch has {0} rows; write pyro.plate('data', N, x.shape[0], "
        "dim=-1) with the size N of the whole data set, or pyro.plate('data', x.shape[0], dim=-1)"
    ),
}
# torch's words for operations on two types of number, and for those that a type lacks.
OF_TYPES = ("same dtype", "bool tensor", "expected scalar type", "not implemented for", "must match, but got")
HALVES = (torch.float16, torch.bfloat16)


def refuse_types(role: str, batch: Batch, error: Exception) -> None:
    """Raise if an error came of the type of the data; otherwise return."""
    x, reason = batch[0], (str(error).splitlines() or [""])[0]
    if not isinstance(error, RuntimeError) or not any(words in reason for words in OF_TYPES):
        return
    if not x.is_floating_point():
        raise ContractError(
            f"data: x is {x.dtype}, with which the {role} does not compute ({reason}); give it numbers of the type of "
            "the parameters, such as x.to(torch.float32)"
        ) from error
    if x.dtype in HALVES:
        raise ContractError(
            f"data: x is {x.dtype}, in which the {role} cannot be computed on {x.device.type} ({reason}); "
            "take data and programs in torch.float32 (model.float()), and precision=torch.bfloat16 for mixed precision"
        ) from error


def refuse_in_other_words(error: Exception, role: str) -> None:
    """Raise for what Pyro says without saying how to mend it; return where it is something else."""
    for pattern, words in PYROS_WORDS.items():
        if found := re.search(pattern, str(error)):
            raise ContractError(f"{role}: {words.format(*found.groups())}") from error
