"""How a training run goes, and what is wrong with what somebody asks of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppl_vae.arguments import whole
from ppl_vae.batches import Source
from ppl_vae.guarding import Policy, stop

__all__ = ["Row", "Rules", "check_rules"]

Row = Mapping[str, float]


@dataclass(frozen=True)
class Rules:
    """How a run goes; see `ppl_vae.fit`."""

    epochs: int
    seed: int
    patience: int | None = None
    ema: float | None = None
    scheduler: Any = None
    callbacks: Sequence[Callable[[Row], Any]] = ()
    on_fault: Policy = stop


def check_rules(rules: Rules, valid: Source | None, resume: bool, overwrite: bool, out: Any) -> None:
    """Raise if rules contradict each other, or ask for what is not there."""
    if rules.patience is not None:
        whole("patience", rules.patience)
        if valid is None:
            raise ValueError("patience: it looks at the bound of validation data, and there are none; pass valid=")
    if unknown := [callback for callback in rules.callbacks if not callable(callback)]:
        raise TypeError(f"callbacks: expected functions of a row of the history, found {unknown[0]!r}")
    for name, wanted in (("resume", resume), ("overwrite", overwrite)):
        if wanted and out is None:
            raise ValueError(f"{name}: it is about the run in a folder, and there is none; pass out=")
    if resume and overwrite:
        raise ValueError("resume, overwrite: one goes on with the run in out, the other replaces it; choose one")
