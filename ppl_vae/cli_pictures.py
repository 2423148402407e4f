"""``ppl-vae sample``."""

from typing import Annotated

import typer

from ppl_vae.cli_shared import Device, OwnProgram, Root, Run, app, say

__all__ = ["sample"]


@app.command()
def sample(
    run: Run,
    n: Annotated[int, typer.Option(min=1, help="Number of draws.")] = 64,
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Draw from the prior of a finished run: a picture, and every site as an .npz file."""
    import numpy as np

    from ppl_vae import jobs, runs

    path = run / f"samples_n{n}_seed{seed}.png"
    draws = jobs.Job.from_run(run, root, model, guide, device).draw_samples(path, n, seed)
    arrays = {name: value.cpu().numpy() for name, value in draws.items()}
    runs.write_atomically(path.with_suffix(".npz"), lambda file: np.savez(file, **arrays))
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items())
    say(f"Drew {shapes}\nWritten to {path} and {path.with_suffix('.npz')}")
