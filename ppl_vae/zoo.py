"""Find programs by name: those in ``ppl_vae.models`` and ``ppl_vae.guides``, and people's own files."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["build", "discover", "find", "summary", "takes"]

KINDS = ("models", "guides")


def discover(kind: str) -> dict[str, type[nn.Module]]:
    """Return the programs of a kind by file name.

    The class of a file is the one whose name is the file's without underscores, whatever the case.

    Args:
        kind: ``"models"`` or ``"guides"``.

    Example:
        >>> discover("guides")["normal"].__name__
        'Normal'
    """
    package = importlib.import_module(f"ppl_vae.{kind}")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"ppl_vae.{kind}.{info.name}")
        found[info.name] = _named_like(module, info.name.replace("_", ""))
    return found


def _named_like(module: Any, name: str) -> type[nn.Module]:
    for attribute, value in vars(module).items():
        if attribute.lower() == name.lower() and inspect.isclass(value):
            return value
    raise ImportError(f"{module.__name__}: expected a class named like the file, {name!r} in CapWords")


def find(kind: str, spec: str) -> Any:
    """Return a program by name, or from a file as ``path/to/file.py:Name``.

    The name may be a class, a function, or dotted: ``vae.model`` of an object that the file makes.
    Loading a file executes it; nothing but the person's own word on the command line does that.

    Raises:
        ValueError: there is no such program; the message lists what there is.
        FileNotFoundError: there is no such file.

    Example:
        >>> find("models", "vae").__name__
        'VAE'
    """
    if ":" in spec:
        return _from_file(*spec.rsplit(":", 1))
    known = discover(kind)
    if spec not in known:
        hint = f"{spec}:Name" if spec.endswith(".py") else "path/to/file.py:Name"
        raise ValueError(f"{kind[:-1]}: unknown name {spec!r}; there are {', '.join(known)}, or {hint}")
    return known[spec]


def _from_file(file: str, name: str) -> Any:
    module = _executed(Path(file).expanduser().resolve())
    try:
        return attrgetter(name)(module)
    except AttributeError as error:
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        raise ValueError(
            f"{file}: it defines no {name!r}; it has {', '.join(own) or 'no classes or functions'}"
        ) from error


@lru_cache  # once a file: its model and its guide may share parameters
def _executed(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_program_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    sys.path.insert(0, str(path.parent))  # so that the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def build(program: Any, options: Mapping[str, Any]) -> Any:
    """Return a program made with those options that its constructor names.

    Anything but a class is returned as it is.

    Example:
        >>> build(find("models", "vae"), {"x_dim": 64, "z_dim": 2, "colour": "red"}).prior.zeros.shape
        torch.Size([2])
    """
    if not inspect.isclass(program):
        return program
    parameters = inspect.signature(program).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if name not in options]:
        raise ValueError(
            f"{program.__name__}: its constructor needs {', '.join(missing)}, and a name alone gives it "
            f"{', '.join(options)}; make it in Python, or, if it is yours, give the rest defaults"
        )
    return program(**{name: value for name, value in options.items() if takes(program, name)})


def takes(program: Any, name: str) -> bool:
    """Tell whether a program's constructor has an argument of this name."""
    return inspect.isclass(program) and name in inspect.signature(program).parameters


def summary(program: Any) -> str:
    """Return the first sentence of a program's file.

    Example:
        >>> summary(find("guides", "exact"))
        'The exact posterior, for models that know it in closed form.'
    """
    return (inspect.getdoc(inspect.getmodule(program)) or "").split("\n\n")[0].replace("\n", " ")
