"""``ppl-vae sample`` and ``ppl-vae draw``."""

from pathlib import Path
from typing import Annotated

import typer

from ppl_vae.cli_shared import Device, OwnProgram, Root, Run, checked_seed, say

__all__ = ["draw", "sample"]


def sample(
    run: Run,
    n: Annotated[int, typer.Option(min=1, help="Number of draws.")] = 64,
    seed: Annotated[int, typer.Option(callback=checked_seed, help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Draw from the prior of a finished run: a picture, and every site as an .npz file."""
    import numpy as np

    from ppl_vae import jobs, runs

    job = jobs.Job.from_run(run, root, model, guide, device)
    path = run / f"samples_n{n}_seed{seed}.png"
    arrays = {name: value.cpu().numpy() for name, value in job.sample(n, seed).items()}
    runs.write_atomically(path.with_suffix(".npz"), lambda file: np.savez(file, **arrays))
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items())
    picture = job.draw_samples(path, n, seed)
    say(f"Drew {shapes}\nWritten to {path.with_suffix('.npz')}")
    say(f"Written to {picture}" if isinstance(picture, Path) else f"No picture: {picture}")


def draw(
    run: Run,
    pictures: Annotated[
        list[str] | None,
        typer.Argument(
            help="reconstructions, samples, traversals, interpolations, manifold, embedding, inpainting, denoising; "
            "all that there are if left out.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(callback=checked_seed, help="Seeds what is drawn at random.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Draw pictures of a finished run: of its latent space, its reconstructions, of missing pixels filled in."""
    from ppl_vae import jobs

    job = jobs.Job.from_run(run, root, model, guide, device)
    found = job.draw(pictures or list(jobs.PICTURES), run, seed)
    missing = {name: why for name, why in found.items() if isinstance(why, str)}
    if pictures and missing:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in missing.items()))
    for name, where in found.items():
        say(f"{name}: no picture, since {where}" if name in missing else f"Written to {where}")
