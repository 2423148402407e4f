"""Which small faults the tests of the mathematics do not notice: mutation testing of objectives, weighing, evaluation.

    python -m benchmarks.mutants [MODULE ...] [--sample N] [--seed S] [--again]

A mutant is a module with one operator, comparison, condition, number, decorator or loop changed, by the operators of
cosmic-ray (`pip install -e '.[test,bench]'`). It is killed where a test fails, crashes or takes far longer than it did.
cosmic-ray's own runner starts a Python for each mutant, which takes longer than the tests; here each is a fork of one
process that has imported torch and Pyro but not the library. The mutated source takes its module's place as it is
imported: no file is written. A mutant meets the tests of `TESTS` that run its line (coverage tells which), each under
`SLOW` seconds, the quickest within `BUDGET` seconds together, and the doctests of the targets.

Left out, since they flatter or mean nothing: annotations, aliases of types, messages of errors, docstrings, and of the
replacements of an operator all but the one or two that are nearest to it (tensors do not even have the others).
"""

import argparse
import csv
import difflib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OBJECTIVES = sorted(p.stem for p in (ROOT / "ppl_vae/objectives").glob("*.py") if p.stem != "__init__")
ALONE = [
    *("particles", "weighing", "enumeration", "divergences", "tracing", "estimation", "estimates", "diagnostics"),
    *("importance", "evaluation", "evaluating", "noise"),
]
TARGETS = [*(f"ppl_vae/objectives/{name}.py" for name in OBJECTIVES), *(f"ppl_vae/{name}.py" for name in ALONE)]
# Those against closed forms come first: they kill most.
FILES = [
    *("details_of_objectives", "details_of_weights", "details_of_schedules", "details_of_relaxations"),
    *("details_of_estimators", "details_of_evaluation", "details_of_importance", "details_of_noise"),
    *("details_of_particles", "details_of_programs"),
    *("formulas", "exact", "enumeration", "estimators", "relaxations", "noise", "noise_transforms", "objectives"),
    *("evaluate", "evaluating", "pyro_objectives", "objective_state", "extremes", "chunking"),
]
TESTS = [f"tests/test_{name}.py" for name in FILES]
SLOW, BUDGET, LIMIT = 2.0, 6.0, 30.0  # seconds: of a test, of the tests of a mutant, and beyond what those took
MEMORY = 8 * 2**30
KINDS = re.compile(
    r"core/(AddNot|NumberReplacer|RemoveDecorator|ZeroIterationForLoop|ExceptionReplacer"
    r"|Replace(And|Or|True|False|Break|Continue)With\w+|ReplaceUnaryOperator_Delete_\w+"
    r"|ReplaceComparisonOperator_(Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt)|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is"
    r"|In_NotIn|NotIn_In)"
    r"|ReplaceBinaryOperator_(Add_(Sub|Mul)|Sub_(Add|Mul)|Mul_(Add|Div)|Div_(Add|Mul)|FloorDiv_(Div|Mul)"
    r"|Mod_(Mul|FloorDiv)|Pow_(Mul|Div)|BitOr_BitAnd|BitAnd_BitOr))$"
)


class Mutant(NamedTuple):
    """A change of a module: by which operator, at which of its places, and what comes of it."""

    path: str
    line: int
    operator: str
    occurrence: int


def said_or_annotated(node: Any) -> bool:
    """Tell whether code is an annotation, an alias of a type or what an error says."""
    alias = node.type == "operator" and node.value == "|"
    while node.parent is not None:
        parent, place = node.parent, node.parent.children.index(node)
        before = parent.children[place - 1] if place else None
        if parent.type in ("annassign", "tfpdef") and before == ":":
            return True
        if parent.type == "raise_stmt" or before == "->" or parent.type.startswith("fstring"):
            return True
        alias = alias and parent.type != "funcdef"
        node = parent
    return alias


def mutants(path: str) -> list[Mutant]:
    """Return every mutant of a module, in order of operators and places."""
    nodes, found = list(ast_nodes(get_ast((ROOT / path).read_text()))), []
    for name in filter(KINDS.match, operator_names()):
        operator = get_operator(name)()
        places = [(node, start[0]) for node in nodes for start, _ in operator.mutation_positions(node)]
        found += [
            Mutant(path, line, name.removeprefix("core/"), occurrence)
            for occurrence, (node, line) in enumerate(places)
            if not said_or_annotated(node)
        ]
    return found


class InPlaceOf(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Import one module from source other than its file's."""

    def __init__(self, path: str, source: str):
        self.source = source
        super().__init__(path.removesuffix(".py").replace("/", "."), str(ROOT / path))

    def find_spec(self, fullname, path=None, target=None):  # noqa: D102 - as importlib calls it
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return None

    def get_code(self, fullname):  # noqa: D102 - as importlib calls it
        return compile(self.source, self.path, "exec")


class Chosen:
    """Run chosen tests in their order, or with none chosen all; keep times, and what failed first."""

    def __init__(self, chosen: list[str] | None, measured: coverage.Coverage | None = None):
        self.order = None if chosen is None else {name: n for n, name in enumerate(chosen)}
        self.measured, self.seconds, self.failed = measured, {}, ""

    def pytest_collection_modifyitems(self, items):  # noqa: D102 - as pytest calls it
        if self.order is not None:
            items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logstart(self, nodeid):  # noqa: D102 - as pytest calls it
        if self.measured:
            self.measured.switch_context(nodeid)

    def pytest_runtest_logreport(self, report):  # noqa: D102 - as pytest calls it
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self.failed = self.failed or (report.nodeid if report.failed else "")


def pytest_run(files: list[str], plugin: Chosen) -> int:
    """Run tests of files in this process, up to the first that fails."""
    quiet = ["-q", "-x", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"]
    return int(pytest.main([*quiet, *files], plugins=[plugin]))


def forked(work: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    """Return what work says from a process of its own, or ``died`` and how."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    said, end = b"", time.monotonic() + limit
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0] and (part := os.read(reading, 1 << 20)):
        said += part
    late = time.monotonic() >= end
    with suppress(ProcessLookupError):  # what it started goes with it
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    return json.loads(said) if said and not late else {"died": "too long" if late else "crash"}


def digest(*paths: str) -> str:
    """Return a name for the contents of files."""
    return hashlib.sha256(b"\0".join((ROOT / path).read_bytes() for path in paths)).hexdigest()[:16]


def reach(file: str) -> dict[str, Any]:
    """Return seconds and reached lines of each test of a file, from the library as it is; remembered."""
    kept = RESULTS / "reach" / f"{digest(file, *TARGETS)}.json"
    if not kept.exists():

        def measure():
            measured = coverage.Coverage(data_file=None, include=[str(ROOT / path) for path in TARGETS])
            measured.start()
            plugin = Chosen(None, measured)
            code = pytest_run([file], plugin)
            measured.stop()
            data, lines = measured.get_data(), {}
            for path in TARGETS:
                for line, names in data.contexts_by_lineno(str(ROOT / path)).items():
                    for name in filter(None, names):
                        lines.setdefault(name, {}).setdefault(path, []).append(line)
            known = {
                n for n, m in list(sys.modules.items()) if not str(getattr(m, "__file__", ROOT)).startswith(str(ROOT))
            }
            kept.parent.mkdir(parents=True, exist_ok=True)
            tests = {n: [t, lines.get(n, {})] for n, t in plugin.seconds.items()}
            kept.write_text(json.dumps({"failed": plugin.failed, "tests": tests, "modules": sorted(known)}))
            return {"code": code}

        answer = forked(measure, 900.0)
        if answer.get("code") not in (0, 5):
            kept.unlink(missing_ok=True)
            raise SystemExit(f"{file} does not pass without any mutant: {answer}")
    return json.loads(kept.read_text())


def choose(path: str, line: int, reached: dict[str, Any], function: range) -> list[str]:
    """Return the tests that run a line, or else its function, or else its module, within the budget."""
    tests = {n: (t, set(lines.get(path, ()))) for n, (t, lines) in reached.items() if t < SLOW}
    names = [n for n, (_, lines) in tests.items() if line in lines]
    if not names:
        names = [n for n, (_, lines) in tests.items() if lines & set(function)]
        names = names or [n for n, (_, lines) in tests.items() if lines]
        # What runs as a module is imported shows in tables of facts and defaults too, whose tests run no line of it.
        names = list(dict.fromkeys([n for n in tests if n.startswith("tests/test_details")] + names))
    chosen, spent = [], 0.0
    for name in sorted(names, key=lambda n: (not n.startswith("tests/test_details"), tests[n][0])):
        spent += tests[name][0]
        if spent > BUDGET:
            break
        chosen.append(name)
    files = [*TARGETS, *TESTS]
    return sorted(chosen, key=lambda n: (files.index(n.split("::")[0]), tests[n][0]))


def around(path: str, line: int) -> range:
    """Return the lines of the innermost function that holds a line, or what a decorator there is of."""
    leaf = get_ast((ROOT / path).read_text()).get_leaf_for_position((line, 200), include_prefixes=True)
    while leaf is not None and leaf.type not in ("funcdef", "decorated"):
        leaf = leaf.parent
    return range(line, line + 1) if leaf is None else range(leaf.start_pos[0], leaf.end_pos[0] + 1)


def outcome(mutant: Mutant, reached: dict[str, Any]) -> dict[str, Any]:
    """Return whether a mutant lives, what killed it, and how it differs."""
    source = (ROOT / mutant.path).read_text()
    changed = mutate_code(source, get_operator(f"core/{mutant.operator}")(), mutant.occurrence)
    chosen = choose(mutant.path, mutant.line, reached, around(mutant.path, mutant.line))

    def attempt():
        sys.meta_path.insert(0, InPlaceOf(mutant.path, changed))
        plugin = Chosen(chosen)
        code = pytest_run(list(dict.fromkeys(name.split("::")[0] for name in chosen)), plugin)
        return {"code": code, "by": plugin.failed}

    limit = LIMIT + 3 * sum(reached[name][0] for name in chosen)
    answer = forked(attempt, limit) if chosen else {"code": 5}
    diff = [d for d in difflib.ndiff(source.splitlines(), changed.splitlines()) if d[0] in "+-"]
    lives = answer.get("code") in (0, 5)
    by = answer.get("by") or answer.get("died") or ("" if lives else "import")
    return {**mutant._asdict(), "killed": not lives, "by": by, "tests": len(chosen), "diff": "\n".join(diff)}


def prepare() -> dict[str, Any]:
    """Import what the tests need but the library itself, and return what each test reaches."""
    listed = "import sys, ppl_vae; print(*(n for n in sys.modules if not n.startswith('ppl_vae')))"
    names = subprocess.run([sys.executable, "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split():
        with suppress(Exception):
            importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    reached = {}
    for file in [*TARGETS, *TESTS]:
        found = reach(file)
        reached |= found["tests"]
        for name in found["modules"]:
            if not name.startswith(("ppl_vae", "tests", "test_", "models", "guides", "benchmarks", "__", "_pytest")):
                with suppress(Exception, SystemExit):
                    importlib.import_module(name)
    return reached


def sampled(targets: list[str], sample: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Return a random sample of each module's mutants."""
    for path in targets:
        whole = mutants(path)
        some = random.Random(f"{seed} {path}").sample(whole, min(sample or len(whole), len(whole)))
        yield from ({"of": len(whole), **mutant._asdict()} for mutant in sorted(some, key=lambda m: m.line))


def results(tasks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Try mutants but those that were killed before."""
    reached = prepare()
    for task in tasks:
        if task.get("killed") == "True":
            yield task | {"killed": True}
        else:
            mutant = Mutant(task["path"], int(task["line"]), task["operator"], int(task["occurrence"]))
            yield task | outcome(mutant, reached)


def main() -> None:
    """Try mutants, write them down, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="targets, such as weighing or bounds; all if none")
    parser.add_argument("--sample", type=int, help="mutants of each module; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="those of the last run that survived, once more")
    asked = parser.parse_args()
    os.chdir(ROOT)
    targets = [path for path in TARGETS if not asked.modules or Path(path).stem in asked.modules]
    RESULTS.mkdir(parents=True, exist_ok=True)
    tasks = sampled(targets, asked.sample, asked.seed)
    if asked.again:
        with open(RESULTS / "mutants.csv", newline="") as file:
            tasks = [row for row in csv.DictReader(file) if row["path"] in targets]
    table, tally = Table("module", "mutants", "tried", "killed", "share", "standard error"), {}
    with open(RESULTS / "mutants.csv", "w", newline="") as file:
        for row in results(tasks):
            if not tally:
                out = csv.DictWriter(file, row)
                out.writeheader()
            out.writerow(row)
            file.flush()
            of, tried, killed = tally.get(row["path"], (int(row["of"]), 0, 0))
            tally[row["path"]] = (of, tried + 1, killed + row["killed"])
            if not row["killed"]:
                place = f"{row['path']}:{row['line']} {row['operator']} ({row['tests']} tests)"
                print(f"{place}\n{row['diff']}", flush=True)
    for path, (of, tried, killed) in [*tally.items(), ("all", tuple(map(sum, zip(*tally.values(), strict=True))))]:
        share = killed / tried
        error = sqrt(share * (1 - share) / tried * (1 - tried / of))  # of a sample without replacement
        table.add_row(path, str(of), str(tried), str(killed), f"{share:.1%}", f"{error:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
