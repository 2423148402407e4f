"""Bad options and bad files for the command line, drawn by hypothesis, and what must become of them."""

import contextlib
import io
import shutil
import sys
import tomllib
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import tomli_w
import torch
from hypothesis import strategies as st

from ppl_vae import archive, cli, recording, runs

MAKE = ["fit", "--epochs", "1", "--hidden", "4", "--z-dim", "2", "--eval-particles", "3", "--compile", "false"]
WORDS = st.sampled_from(["", " ", "nan", "x", "é", "1 x", "0x1", "--", "None", "[]", "1e", "../..", "a\nb", "💥"])
NOT_COUNTS = st.one_of(WORDS, st.sampled_from(["0", "-1", "1.5", "inf", "-99999999999999999999"]))
NOT_POSITIVE = st.one_of(WORDS, st.sampled_from(["0", "-1e-9", "-inf", "inf"]))
NOT_SEEDS = st.one_of(WORDS, st.sampled_from([str(2**63), str(-(2**64)), "1.0"]))
NO_NAMES = st.one_of(WORDS, st.sampled_from(["VAE", "vae ", "__class__", "elbo.py", "digits/../digits"]))
PROGRAMS = st.one_of(
    NO_NAMES,
    st.sampled_from([":", "::", ":VAE", "none.py:VAE", "run:VAE", "run/config.toml:VAE", "vae:VAE", "good.py:", "/:x"]),
    st.sampled_from(["good.py:Missing", "good.py:good.missing", "good.py:Needy", "good.py:number", "latin.txt:x"]),
)
# Option of `fit` to values that it must refuse.
OPTIONS = {
    **dict.fromkeys(["--epochs", "--batch-size", "--particles", "--eval-particles", "--accumulate"], NOT_COUNTS),
    **dict.fromkeys(["--z-dim", "--hidden"], st.one_of(NOT_COUNTS, st.sampled_from([str(10**13), str(10**30)]))),
    **dict.fromkeys(["--learning-rate", "--clip-norm"], NOT_POSITIVE),
    **dict.fromkeys(["--objective", "--data", "--likelihood", "--prior", "--binarize", "--compile"], NO_NAMES),
    **dict.fromkeys(["--model", "--guide"], PROGRAMS),
    "--precision": NO_NAMES,
    "--seed": NOT_SEEDS,
    "--device": st.one_of(NO_NAMES, st.sampled_from(["gpu", "cuda:99", "meta", "xla", "cpu:-1"])),
    "--out": st.sampled_from(["run", "run/config.toml", "run/config.toml/x", "x" * 300, ".", "good.py"]),
    "--no-such": WORDS,
}
GOOD = "number = 3\n\n\nclass Needy:\n    def __init__(self, colour):\n        pass\n"
READERS = ["evaluate", "report", "sample", "draw", "ais", "surgery", "quality"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    traceback: str
    changed: list[str]


def attempt(arguments: list[str], folder: Path) -> Outcome:
    """Run a command in a folder, in this process."""
    before, out, err, code, trace = _tree(folder), io.StringIO(), io.StringIO(), 0, ""
    argv, sys.argv = sys.argv, ["ppl-vae", *arguments]
    try:
        with contextlib.chdir(folder), _quiet(out, err):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except Exception:
        trace = traceback.format_exc()
    finally:
        sys.argv = argv
    after = _tree(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0))
    return Outcome(code, out.getvalue(), err.getvalue(), trace, changed)


@contextlib.contextmanager
def _quiet(out, err):
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if p.suffix != ".pyc"}


def assert_refused(found: Outcome) -> None:
    """A usage error, or one line; nothing written; no traceback."""
    assert not found.traceback, found.traceback
    assert found.code in (1, 2), f"exit status {found.code}: {found.out[-300:]}"
    assert not found.changed, found.changed
    if found.code == 1:
        (line,) = found.err.strip().splitlines()
        assert line.startswith("Error: "), line
        assert len(line) > len("Error: ") + 10, line


@st.composite
def bad_fits(draw) -> list[str]:
    """Draw the arguments of a fit, one of which, or two, it must refuse."""
    chosen = draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=2, unique=True))
    return [*MAKE, *(word for option in chosen for word in (option, draw(OPTIONS[option])))]


def prepare(folder: Path) -> None:
    """Leave a finished run, and other files, in a folder."""
    found = attempt([*MAKE, "--out", "run"], folder)
    assert found.code == 0, found.err + found.traceback
    (folder / "good.py").write_text(GOOD)
    (folder / "latin.txt").write_bytes("é".encode("latin1"))


# Spoilt runs. A way is a name, with what it does to a folder; commands that must then refuse it go with it.

RUBBISH = {
    "gone": None,
    "empty": b"",
    "bytes": bytes(range(256)),
    "zeros": b"\0" * 64,
    "latin": "a = 'é'".encode("latin1"),
    "words": b"hello world",
}


def replaced(name: str, content: bytes | None):
    def spoil(run: Path) -> None:
        (run / name).unlink()
        if content is not None:
            (run / name).write_bytes(content)

    return spoil


def folder_for_file(name: str):
    def spoil(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return spoil


def cut(name: str, share: float):
    def spoil(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(share * len(content))])

    return spoil


def setting(name: str, value):
    def spoil(run: Path) -> None:
        settings = tomllib.loads((run / "config.toml").read_text())
        (run / "config.toml").write_text(tomli_w.dumps({**settings, name: value}))

    return spoil


def saved(name: str, path: tuple[str, ...], value):
    """Put another value into a file of tensors; None takes it out."""

    def spoil(run: Path) -> None:
        form = FORMS[name]
        content = inner = archive.read(run / name, *form)
        for key in path[:-1]:
            inner = inner[key if key != "*" else min(inner)]
        last = path[-1] if path[-1] != "*" else min(inner)
        inner.pop(last) if value is None else inner.update({last: value})
        archive.write(run / name, *form, content)

    return spoil


WRONG = st.sampled_from([[], ["x"], {"a": 1}, "", "x", 1.5, "/etc/passwd:X", -(10**18)])
NO_TENSORS = st.sampled_from([None, [1], "x", 3, torch.zeros(2, 3, 5)])
EVALUATION = "evaluation_K3_seed0.pt"
FORMS = {"best.pt": ("best_state", runs.FORMAT), EVALUATION: (recording.KIND, recording.VERSION)}
COUNTS = ["z_dim", "hidden", "seed", "particles", "epochs", "batch_size", "eval_particles"]
NAMED = ["model", "guide", "data", "objective", "likelihood", "prior", "compile", "precision"]


def reading(command: str) -> list[str]:
    """Return a command on the run, which is not to be content with what is there already."""
    return [command, "run", *(() if command == "compare" else ("--overwrite",))]


@st.composite
def spoilt_runs(draw):
    """Draw a way to spoil a run, in words, what does it, and a command that must refuse what is left."""
    way = draw(st.sampled_from(["file", "folder", "cut", "setting", "checkpoint", "evaluation", "metrics"]))
    name = draw(st.sampled_from(["config.toml", "best.pt", EVALUATION]))
    reader = "compare" if name == EVALUATION else draw(st.sampled_from(READERS))
    if way == "file":
        kind = draw(st.sampled_from(sorted(RUBBISH)))
        return f"{name} {kind}", replaced(name, RUBBISH[kind]), reading(reader)
    if way == "folder":
        return f"{name} is a folder", folder_for_file(name), reading(reader)
    if way == "cut":
        share = draw(st.floats(0.05, 0.9))
        name = name if name != "config.toml" else "best.pt"  # half a TOML may be a TOML
        return f"{name} cut at {share}", cut(name, share), reading("compare" if name == EVALUATION else reader)
    if way == "setting":
        name = draw(st.sampled_from([*COUNTS, *NAMED]))
        value = draw(WRONG if name != "seed" else st.sampled_from([[], "x", 1.5, {"a": 1}]))
        return f"{name} = {value!r}", setting(name, value), reading(draw(st.sampled_from(READERS)))
    if way == "checkpoint":
        paths = [("state",), ("state", "programs"), ("state", "programs", "*"), ("best",)]
        path, value = draw(st.sampled_from(paths)), draw(NO_TENSORS)
        return (
            f"checkpoint {path} = {value}",
            saved("best.pt", path, value),
            reading(draw(st.sampled_from(READERS))),
        )
    if way == "evaluation":
        paths = [("settings",), ("facts",), ("columns",), ("columns", "khat"), ("columns", "keys"), ("facts", "sizes")]
        path = draw(st.sampled_from([*paths, ("settings", "seed"), ("complete",)]))
        value = None if path[-1] in ("complete", "seed", "sizes") else draw(NO_TENSORS)
        return f"evaluation {path} = {value}", saved(EVALUATION, path, value), reading("compare")
    kind = draw(st.sampled_from(["bytes", "latin", "table"]))
    content = {**RUBBISH, "latin": "é,b\n1,2\n".encode("latin1"), "table": b"epoch,train_bound\n1,a\n2\n"}[kind]
    return f"metrics {kind}", replaced("metrics.csv", content), reading("report")


def copied(made: Path, folder: Path) -> Path:
    """Return a fresh copy of a prepared folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    return folder
