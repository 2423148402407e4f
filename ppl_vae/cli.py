"""The command line, ``ppl-vae``: its commands, and what becomes of their errors."""

import os
import sys
from traceback import walk_tb

from ppl_vae.cli_diagnosis import ais, quality, surgery
from ppl_vae.cli_evaluation import compare, evaluate, report
from ppl_vae.cli_listing import list_, pairs
from ppl_vae.cli_pictures import draw, sample
from ppl_vae.cli_shared import app, free_folder
from ppl_vae.cli_training import fit, resume
from ppl_vae.interrupting import terminable

__all__ = ["app", "free_folder", "main"]

for command in (fit, resume, evaluate, compare, report, sample, draw, ais, surgery, quality, pairs):
    app.command()(command)
app.command(name="list")(list_)


def main() -> None:
    """Run the command line. What a person can mend is a line; what fails in their program is a traceback."""
    try:
        run()
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, MemoryError) as error:
        if out_of_memory(error):
            why = str(error).partition("\n")[0]  # torch goes on with its own frames
            error = MemoryError(f"there is not enough memory; ask for less at a time, or for smaller programs ({why})")
        elif not (isinstance(error, OSError) or raised_here(error)):
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def run() -> None:
    """Run the command, together with the other processes if torchrun has started several."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        with terminable():
            app()
        return
    from ppl_vae.parallel import launched

    with launched():
        app()


def out_of_memory(error: Exception) -> bool:
    """Tell whether there was no memory for what was asked: of torch's, the GPU's error has a type of its own."""
    kinds = type(error).__mro__
    return "can't allocate memory" in str(error) or any(
        k.__name__ in ("MemoryError", "OutOfMemoryError") for k in kinds
    )


def raised_here(error: Exception) -> bool:
    """Tell whether this library raised an error, rather than something that it ran."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("ppl_vae")
