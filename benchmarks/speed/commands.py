"""What the command lines of the speed benchmarks share."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "results"


def parser(about: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that all have."""
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help="of which a median is taken (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help="little of everything, to see that it runs")
    logging.disable(logging.INFO)  # of compilers
    return made


def write(name: str, results: dict[str, Any], figure: Figure | None = None) -> None:
    """Keep results, and their figure, and say where."""
    RESULTS.mkdir(exist_ok=True)
    written = [RESULTS / f"{name}.json"]
    written[0].write_text(json.dumps(results, indent=2))
    if figure is not None:
        written.append(RESULTS / f"{name}.png")
        figure.savefig(written[1], dpi=150)
    print("Written to", " and ".join(map(str, written)))
