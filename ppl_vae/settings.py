"""The options of ``ppl-vae fit``, from the command line and from a file, and what is wrong with them."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

from ppl_vae.arguments import check_fields, check_kind, whole_seed
from ppl_vae.choices import (
    CHOSEN,
    COMPILE,
    LIKELIHOODS,
    LR_SCHEDULES,
    OBJECTIVES,
    ON_FAULT,
    PRECISION,
    PRIORS,
    WITH_FLOOR,
    WITH_WEIGHT,
)

__all__ = ["PLACES", "Settings", "check_own", "merged", "other_versions", "read"]

NAMES = {
    "objective": OBJECTIVES,
    "likelihood": LIKELIHOODS,
    "prior": PRIORS,
    "compile": COMPILE,
    "precision": PRECISION,
    "lr_schedule": LR_SCHEDULES,
    "on_fault": ON_FAULT,
}
POSITIVE = (
    *("particles", "epochs", "batch_size", "z_dim", "hidden", "eval_particles", "learning_rate", "accumulate"),
    *("clip_norm", "warm_up", "warm_up_cycles", "patience"),
)
# Options that are no settings of a run: where it is computed and written, and where its data are.
PLACES = {"device": str, "root": str, "out": str}
LARGEST_MATRIX = 10**9  # numbers


@dataclass(frozen=True)
class Settings:
    """The options of ``ppl-vae fit``, as its run folder records them.

    Raises:
        ValueError: one has a value that it cannot have.
        TypeError: one is no number, text or truth value where it should be.
    """

    model: str = "vae"
    guide: str = "normal"
    data: str = "digits"
    binarize: str | None = None
    likelihood: str | None = None
    prior: str | None = None
    objective: str = "elbo"
    particles: int = 1
    epochs: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    z_dim: int = 20
    hidden: int = 200
    seed: int = 0
    eval_particles: int = 1000
    compile: str = "auto"
    precision: str = "float32"
    clip_norm: float | None = None
    accumulate: int = 1
    warm_up: int | None = None
    warm_up_cycles: int | None = None
    free_bits: float | None = None
    lr_schedule: str = "none"
    ema: float | None = None
    patience: int | None = None
    on_fault: str = "stop"
    tensorboard: bool = False
    seeds: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        whole_seed(self.seed)
        for name, known in NAMES.items():
            value = getattr(self, name)
            if value not in known and not (name in CHOSEN and value is None):
                raise ValueError(f"{name}: unknown name {value!r}; there are {', '.join(known)}{_meant(value, known)}")
        self._check_numbers()
        self._check_objective()

    def _check_numbers(self) -> None:
        given = {name: value for name in POSITIVE if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if not 0 < value < inf:
                raise ValueError(f"{name}: expected a positive number, found {value}")
        if self.z_dim * self.hidden > LARGEST_MATRIX:
            raise ValueError(f"z_dim, hidden: {self.z_dim} x {self.hidden} are too many weights; give smaller numbers")
        if self.free_bits is not None and not 0 <= self.free_bits < inf:
            raise ValueError(f"free_bits: expected a number of nats, 0 or more, found {self.free_bits}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: expected a decay between 0 and 1, such as 0.999, found {self.ema}")
        if self.seeds is not None and self.seeds < 2:
            raise ValueError(f"seeds: expected at least 2, found {self.seeds}; --seed chooses a single one")
        if self.warm_up is not None and self.warm_up > self.epochs:
            raise ValueError(
                f"warm_up: {self.warm_up} epochs are more than the {self.epochs} of training, in which the weight of "
                "the KL divergence would not reach 1"
            )

    def _check_objective(self) -> None:
        warmed = "warm_up" if self.warm_up is not None else "warm_up_cycles"
        if getattr(self, warmed) is not None and self.objective not in WITH_WEIGHT:
            raise ValueError(
                f"{warmed}: {self.objective} has no weight of its KL divergence that could rise; "
                f"{' and '.join(WITH_WEIGHT)} have"
            )
        if self.free_bits is not None and self.objective not in WITH_FLOOR:
            raise ValueError(
                f"free_bits: {self.objective} has no KL divergences with a floor; {' and '.join(WITH_FLOOR)} have"
            )
        if self.free_bits is not None and getattr(self, warmed) is not None:
            raise ValueError(f"free_bits: it goes without {warmed}; both keep a posterior from collapsing, choose one")


def _meant(name: Any, known: Iterable[str]) -> str:
    near = get_close_matches(str(name), known, 1)
    return f". Did you mean {near[0]}?" if near else ""


def read(path: Path) -> dict[str, Any]:
    r"""Return the options that a TOML file gives, by the names that they have on the command line, with underscores.

    What run folders record besides, ``versions``, comes along.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, or an option is unknown.
        TypeError: ``device``, ``root`` or ``out`` is no text, or ``versions`` no table.

    Example:
        >>> _ = (tmp_path / "vae.toml").write_text('objective = "iwae"\nparticles = 5')
        >>> read(tmp_path / "vae.toml")
        {'objective': 'iwae', 'particles': 5}
    """
    if path.suffix in (".yaml", ".yml"):
        raise ValueError(f"config: {path}: YAML is not read; write it as TOML, a line per option: epochs = 100")
    if not path.is_file():
        raise FileNotFoundError(f"config: {path}: no such file")
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"config: {path}: not TOML ({error})") from error
    known = [*Settings.__dataclass_fields__, *PLACES]
    for name in found.keys() - {*known, "versions"}:
        raise ValueError(f"{path}: unknown option {name!r}; there are {', '.join(known)}{_meant(name, known)}")
    try:
        for name in found.keys() & PLACES:
            check_kind(name, found[name], (PLACES[name],))
        if not isinstance(recorded := found.get("versions", {}), Mapping):
            raise TypeError(f"versions: expected a table of packages, found {recorded!r}")
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error
    return found


def merged(path: Path | None, found: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """Return the settings of a file, or the defaults, with those that were given on the command line in their place.

    Raises:
        ValueError, TypeError: of a value; the message names the file where it came from there.

    Example:
        >>> merged(Path("vae.toml"), {"epochs": 50, "seed": 3}, {"epochs": 100}).epochs
        100
        >>> merged(Path("vae.toml"), {"epochs": -1}, {})
        Traceback (most recent call last):
        ...
        ValueError: vae.toml: epochs: expected a positive number, found -1
    """
    read_there = {name: value for name, value in found.items() if name in Settings.__dataclass_fields__}
    try:
        return Settings(**read_there | dict(given))
    except (ValueError, TypeError) as error:
        if str(error).partition(":")[0] in read_there.keys() - given.keys():
            raise type(error)(f"{path}: {error}") from error
        raise


def check_own(where: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise if a file names a program of somebody's own that is not named again: to load one executes it.

    Raises:
        ValueError: likewise.

    Example:
        >>> check_own(Path("run"), {"model": "own.py:Model"}, {})
        Traceback (most recent call last):
        ...
        ValueError: model: this run used 'own.py:Model' (in run); name it again with --model FILE:Name
    """
    for role in ("model", "guide"):
        if role not in given and ":" in str(found.get(role, "")):
            raise ValueError(
                f"{role}: this run used {found[role]!r} (in {where}); name it again with --{role} FILE:Name"
            )


def other_versions(found: Mapping[str, Any], here: Mapping[str, str]) -> str:
    """Say in a line which packages were others when a run was recorded; nothing where none was.

    Example:
        >>> other_versions({"versions": {"torch": "2.6", "python": "3.11"}}, {"torch": "2.15", "python": "3.11"})
        'recorded with torch 2.6, here is 2.15: numbers may differ'
    """
    recorded = found.get("versions", {})
    other = {name: version for name, version in here.items() if recorded.get(name, version) != version}
    changes = [f"{name} {recorded[name]}, here is {version}" for name, version in other.items()]
    return f"recorded with {'; '.join(changes)}: numbers may differ" if changes else ""
