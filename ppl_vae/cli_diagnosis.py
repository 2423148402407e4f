"""``ppl-vae ais``, ``surgery`` and ``quality``: what else there is to know of a finished run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_vae.cli_shared import Device, Overwrite, OwnProgram, Root, Run, checked_seed, kept, leads, say, stoppable

__all__ = ["ais", "quality", "surgery"]

NOTHING = "Stopped; nothing was written."

Rows = Annotated[int | None, typer.Option(min=2, help="How many of the test data, from the first on; all if left out.")]
Seed = Annotated[int, typer.Option(callback=checked_seed, help="Seeds the draws.")]


def ais(
    run: Run,
    rows: Rows = 100,
    distributions: Annotated[int, typer.Option(min=2, help="On the path from the start to the posterior.")] = 1000,
    chains: Annotated[int, typer.Option(min=1, help="Chains per datum.")] = 16,
    leapfrog: Annotated[int, typer.Option(min=1, help="Leapfrog steps of a transition.")] = 10,
    from_guide: Annotated[bool, typer.Option("--from-guide", help="Start at the guide, not at the prior.")] = False,
    seed: Seed = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate log-likelihoods by annealed importance sampling, and how far they may be off (both bounds)."""
    with stoppable(NOTHING):
        from ppl_vae import annealing, jobs

        job = jobs.Job.from_run(run, root, model, guide, device)
        x, start = job.splits.test[:rows], "guide" if from_guide else "prior"
        path = run / f"ais_T{distributions}_K{chains}_L{leapfrog}_{start}_N{len(x)}_seed{seed}.json"
        if kept(path, overwrite):
            return
        options = {"distributions": distributions, "chains": chains, "leapfrog": leapfrog, "seed": seed}
        options["guide"] = job.guide if from_guide else None
        found = annealing.ais(job.model, x, subject=job.subject(), **options)
        between = annealing.bdmc(job.model, like=x, n=len(x), **options)
        _tell(path, {"ais": found, "bdmc": between})


def surgery(
    run: Run,
    rows: Rows = None,
    draws: Annotated[int, typer.Option(min=1, help="Latents per datum.")] = 2,
    seed: Seed = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut the test ELBO into reconstruction, mutual information and marginal KL; count active units."""
    with stoppable(NOTHING):
        from ppl_vae import jobs
        from ppl_vae.surgery import elbo_surgery

        job = jobs.Job.from_run(run, root, model, guide, device)
        x = job.splits.test[:rows]
        path = run / f"surgery_N{len(x)}_K{draws}_seed{seed}.json"
        if not kept(path, overwrite):
            _tell(path, {"surgery": elbo_surgery(job.model, job.guide, x, draws=draws, seed=seed)})


def quality(
    run: Run,
    rows: Rows = None,
    features: Annotated[
        bool, typer.Option(help="Compare features of a classifier trained on the labels, where the data have some.")
    ] = True,
    seed: Seed = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare samples of a run with the test data, and training data with them, as perfect samples would be."""
    with stoppable(NOTHING):
        from ppl_vae import jobs
        from ppl_vae.quality import compare, train_features

        job = jobs.Job.from_run(run, root, model, guide, device)
        test = job.splits.test[:rows]
        labelled = features and "train" in job.splits.info.labels
        path = run / f"quality_{'features' if labelled else 'numbers'}_N{len(test)}_seed{seed}.json"
        if kept(path, overwrite):
            return
        taken = train_features(job.splits, seed=seed) if labelled else None
        samples = next(value for value in job.sample(len(test), seed).values() if value.shape == test.shape)
        sets = {"samples": samples, "training data": job.training_images(seed)}
        _tell(path, {name: compare(images, test, taken, seed) for name, images in sets.items()})


def _tell(path: Path, found: dict[str, Any]) -> None:
    """Print what was found, and write it."""
    from ppl_vae import runs

    if leads():
        runs.write_json(path, {name: result.to_dict() for name, result in found.items()})
        for name, result in found.items():
            say(f"{name}: {result}" if len(found) > 1 else str(result))
        say(f"Written to {path}")
