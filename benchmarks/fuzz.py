"""Hold generated programs, right and wrong, and bad command lines to what the suite holds a few of them to.

    python -m benchmarks.fuzz [--cases N] [--seed N] [PROPERTY ...]

Properties are those of `tests/test_fuzz.py` and `tests/test_fuzz_cli.py`: agreement with slow loops over particles,
data and values; the right error for each way of spoiling a pair; one line for bad options and spoilt run folders.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzz_laws
import fuzz_refusals
import fuzzing
import fuzzing_cli
import spoiling

# Of all cases, how many a property has: what is slow has fewer.
SHARES = {"weights": 20, "bounds": 8, "gradients": 12, "evaluation": 5, "training": 10, "wrong": 30, "whole_numbers": 5}
SHARES |= {"options": 5, "spoilt_runs": 5}
KINDS = [torch.int64, torch.bool, torch.uint8, torch.complex64]


def properties(folder: Path) -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Return, by name, what generates a case and what it is held to."""
    found = {n: (fuzzing.descriptions(**fuzz_laws.OPTIONS.get(n, {})), law) for n, law in fuzz_laws.LAWS.items()}
    right, made = fuzzing.descriptions(scaled=False), folder / "made"
    made.mkdir()
    fuzzing_cli.prepare(made)
    ways, verbs = st.sampled_from(sorted(spoiling.WAYS)), st.sampled_from(sorted(fuzz_refusals.VERBS))
    (folder / "wrong").mkdir()

    def wrong(case: Any) -> bool:
        way, description, which, verb = case
        return fuzz_refusals.refused(way, description, which, verb, folder / "wrong")

    def spoilt(case: Any) -> None:
        _, spoil, command = case
        copy = fuzzing_cli.copied(made, folder / "spoilt")
        spoil(copy / "run")
        fuzzing_cli.assert_refused(fuzzing_cli.attempt(command, copy))

    return found | {
        "wrong": (st.tuples(ways, right, st.integers(0, 60), verbs), wrong),
        "whole_numbers": (st.tuples(right, st.sampled_from(KINDS)), lambda case: fuzz_refusals.whole_numbers(*case)),
        "options": (
            fuzzing_cli.bad_fits(),
            lambda words: fuzzing_cli.assert_refused(fuzzing_cli.attempt(words, made)),
        ),
        "spoilt_runs": (fuzzing_cli.spoilt_runs(), spoilt),
    }


def tried(strategy: Any, law: Callable[..., Any], cases: int, start: int) -> tuple[int, Counter, dict[str, Any]]:
    """Return how many cases there were, failures by their words, and the first case of each."""
    number, failures, first = 0, Counter(), {}

    @seed(start)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @given(strategy)
    def run(case: Any) -> None:
        nonlocal number
        pyro.clear_param_store()
        try:
            with pyro.validation_enabled(True):
                number += law(case) is not False  # a way that does not apply is no case
        except Exception as error:  # counted, so that the others are tried too
            number += 1
            words = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}"
            failures[words] += 1
            first.setdefault(words, case)

    run()
    return number, failures, first


def main() -> None:
    """Try as many cases as asked, and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the cases; a random one, which is printed")
    parser.add_argument("properties", nargs="*", help=f"of {', '.join(SHARES)}; all if left out")
    asked = parser.parse_args()
    if unknown := set(asked.properties) - SHARES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
    start = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
    names = asked.properties or [*SHARES]
    torch.set_num_threads(1)
    print(f"--seed {start}")
    table = Table(
        "property", "cases", "failures", "seconds", title=f"Generated cases, seed {start}", title_justify="left"
    )
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        known = properties(Path(folder))
        for name in names:
            began = time.perf_counter()
            share = SHARES[name] / sum(SHARES[other] for other in names)
            number, failures, first = tried(*known[name], max(1, round(share * asked.cases)), start)
            table.add_row(name, str(number), str(failures.total()), f"{time.perf_counter() - began:.0f}")
            for words, times in failures.most_common():
                failed = True
                print(f"{name}, {times} times: {words}\n    {first[words]}", flush=True)
    Console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
