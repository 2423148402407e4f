"""``ppl-vae sample`` and ``ppl-vae draw``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_vae.cli_shared import Device, Overwrite, OwnProgram, Root, Run, checked_seed, kept, leads, say, stoppable

__all__ = ["draw", "sample"]


def sample(
    run: Run,
    n: Annotated[int, typer.Option(min=1, help="Number of draws.")] = 64,
    seed: Annotated[int, typer.Option(callback=checked_seed, help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw from the prior of a finished run: a picture, and every site as an .npz file."""
    path = run / f"samples_n{n}_seed{seed}.png"
    wanted = [file for file in (path.with_suffix(".npz"), path) if not kept(file, overwrite)]
    with stoppable(f"Stopped; what was written before is in {run}."):
        from ppl_vae import jobs

        if wanted:
            _sample(jobs.Job.from_run(run, root, model, guide, device), wanted, n, seed)


def _sample(job: Any, wanted: list[Path], n: int, seed: int) -> None:
    """Draw, and write those files that are wanted."""
    import numpy as np

    from ppl_vae import runs

    arrays = {name: value.cpu().numpy() for name, value in job.sample(n, seed).items()}
    if not leads():
        return
    say("Drew " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items()))
    for path in wanted:
        if path.suffix == ".npz":
            runs.write_atomically(path, lambda file: np.savez(file, **arrays))
        elif isinstance(why := job.draw_samples(path, n, seed), str):
            say(f"No picture: {why}")
            continue
        say(f"Written to {path}")


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
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures of a finished run: of its latent space, its reconstructions, of missing pixels filled in."""
    with stoppable(f"Stopped; what was drawn before is in {run}."):
        from ppl_vae import jobs

        wanted = [name for name in pictures or jobs.PICTURES if not kept(run / f"{name}.png", overwrite)]
        if not wanted:
            return
        found = jobs.Job.from_run(run, root, model, guide, device).draw(wanted, run, seed)
    missing = {name: why for name, why in found.items() if isinstance(why, str)}
    if pictures and missing:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in missing.items()))
    for name, where in found.items():
        say(f"{name}: no picture, since {where}" if name in missing else f"Written to {where}")
