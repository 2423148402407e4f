"""A run from its first line to its report, of one seed or several, begun or gone on with."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from ppl_vae import repeating, runs
from ppl_vae.cli_shared import check_free, console, free_folder, leads, next_command, note, say, stoppable, table
from ppl_vae.jobs import Job, evaluation_files, versions
from ppl_vae.settings import PLACES, Settings, check_own, merged, other_versions, read

__all__ = ["Plan", "go_on", "start"]


class Plan(NamedTuple):
    """What is to be run.

    Attributes:
        settings: of the run.
        given: the settings that somebody asked for, here or in a file.
        root: folder of the data.
        device: where to compute.
        folder: of the run.
        resume: whether to go on with what is there.
        overwrite: whether to replace it.
    """

    settings: Settings
    given: frozenset[str]
    root: str | None
    device: str
    folder: Path
    resume: bool = False
    overwrite: bool = False

    @classmethod
    def of(cls, config: Path | None, given: Mapping[str, Any], overwrite: bool) -> "Plan":
        """Put a file and the options of a command line together."""
        found = read(config) if config else {}
        check_own(config or Path(), found, given)
        if line := other_versions(found, versions()):
            note(f"{config}: {line}")
        chosen = {name: value for name, value in given.items() if name not in PLACES}
        places = {name: found.get(name) for name in PLACES} | {n: v for n, v in given.items() if n in PLACES}
        settings = merged(config, found, chosen)
        if overwrite and not places["out"]:
            raise ValueError("overwrite: name the run that is to be replaced, with --out")
        program = Path(settings.model).name.replace(":", "-")
        name = f"{program}-{settings.data}-{settings.objective}{'-seeds' if settings.seeds else ''}"
        folder = Path(places["out"]) if places["out"] else free_folder(Path("runs"), name)
        asked = frozenset(found) | frozenset(given)
        return cls(settings, asked, places["root"], places["device"] or "auto", folder, overwrite=overwrite)

    def known_not(self) -> dict[str, str | None]:
        """Return the options that commands on the run need, as it does not remember them or may not trust them."""
        own = {role: getattr(self.settings, role) for role in ("model", "guide")}
        return {role: program for role, program in own.items() if ":" in program} | {"root": self.root}

    def job(self) -> Job:
        """Make programs and data.

        Raises:
            ValueError: an option that was asked for means nothing to these programs.
        """
        job = Job(self.settings, self.root, self.device)
        if ignored := self.given & job.ignored():
            raise ValueError(f"{', '.join(sorted(ignored))}: neither program's constructor takes it; leave it out")
        return job


def start(plan: Plan) -> None:
    """Run what is planned, in a folder that is free or may be overwritten."""
    if not plan.overwrite and leads():
        how = "go on with it (ppl-vae resume), replace it (--overwrite) or choose another name"
        check_free(plan.folder, how)
    run(plan)


def go_on(folder: Path, model: str | None, guide: str | None, device: str | None, root: str | None) -> None:
    """Go on with an interrupted run, or with several seeds of which one is not finished."""
    found = runs.read_config(folder)
    if "data" not in found:
        raise ValueError(f"{folder}: made by pv.fit, not by ppl-vae fit; go on in Python with pv.fit(..., resume=True)")
    own = {role: program for role, program in (("model", model), ("guide", guide)) if program}
    check_own(folder, found, own)
    if line := other_versions(found, versions()):
        note(f"{folder}: {line}")
    settings = merged(folder / runs.CONFIG, found, own)
    plan = Plan(settings, frozenset(), root, device or found.get("device", "auto"), folder, resume=True)
    done = repeating.finished(folder) if not settings.seeds else (folder / "seeds.json").exists()
    if done:
        say(f"{folder}: this run is finished; there is nothing to go on with")
    else:
        run(plan)


def run(plan: Plan) -> None:
    """Run one seed or several, and print what came of it."""
    if plan.settings.seeds:
        return several(plan)
    with stoppable(partial(_stopped, plan, plan.folder)):
        job = plan.job()
        trained, evaluation = carry_out(job, plan)
        if leads():
            report(job.title(), trained, evaluation, plan.folder)
            say("\nNext:  " + next_command("evaluate", plan.folder, plan.known_not(), "--particles", "5000"))
            say("       " + next_command("draw", plan.folder, plan.known_not()))
    return None


def carry_out(job: Job, plan: Plan) -> tuple[Any, Any]:
    """Train, evaluate, draw and report; what is there of it already is gone on with."""
    folder, s, began = plan.folder, job.settings, time.monotonic()
    note(f"{'Going on with' if plan.resume else 'Training'} {job.line()}; {folder}")
    before = _epochs(folder) if plan.resume else 0
    trained = job.train(folder, resume=plan.resume, overwrite=plan.overwrite)
    if leads() and plan.resume and len(trained.history["epoch"]) > before:
        _remove_derived(folder)
    evaluation = job.evaluate(folder, s.eval_particles, s.seed)
    if leads():
        job.write_evaluation(evaluation, evaluation_files(folder, s.eval_particles, s.seed)[1:])
        job.draw_learning_curve(trained.history, folder)
        job.draw(("reconstructions", "samples"), folder, s.seed)
        job.report(folder, evaluation)
        repeating.write_outcome(folder, s.seed, trained, evaluation)
    note(f"Finished in {time.monotonic() - began:.0f} s: {folder}")
    return trained, evaluation


def _stopped(plan: Plan, folder: Path) -> str:
    if not (plan.folder / runs.CONFIG).exists():
        return "Stopped before training; nothing was written."
    command = next_command("resume", plan.folder, plan.known_not())
    return f"Stopped. What is finished of the run is in {folder}; go on with:  {command}"


def _epochs(folder: Path) -> int:
    return len(runs.read_metrics(folder).get("epoch", [])) if (folder / runs.METRICS).exists() else 0


def _remove_derived(folder: Path) -> None:
    """Remove what was made of the parameters before training went on, and say so."""
    old = sorted(path for pattern in runs.DERIVED for path in folder.glob(pattern))
    for path in old:
        path.unlink()
    if old:
        note(f"Removed {', '.join(path.name for path in old)}, made before training went on")


def several(plan: Plan) -> None:
    """Run every seed that is not finished, then say how results vary."""
    out, settings = plan.folder, plan.settings
    folders = {seed: repeating.seed_folder(out, seed) for seed in range(settings.seed, settings.seed + settings.seeds)}
    for seed, folder in folders.items():
        with stoppable(partial(_stopped, plan, folder)):
            if plan.resume and repeating.finished(folder):
                note(f"Kept {folder}, finished already")
                continue
            one = plan._replace(settings=replace(settings, seed=seed, seeds=None), folder=folder, overwrite=False)
            job = one.job()
            if not plan.resume and seed == settings.seed:
                _record(plan, job)
            carry_out(job, one._replace(resume=plan.resume and (folder / runs.CONFIG).exists()))
    if leads():
        _tell(plan, [repeating.read_outcome(folder) for folder in folders.values()])


def _record(plan: Plan, job: Job) -> None:
    """Write what all seeds have in common, in place of an earlier run if that may be."""
    if not leads():
        return
    out = plan.folder
    if plan.overwrite and out.exists():
        _remove_several(out)
    out.mkdir(parents=True, exist_ok=True)
    runs.write_config(out, job.record() | {"seed": plan.settings.seed, "seeds": plan.settings.seeds})


def _remove_several(out: Path) -> None:
    if any(out.iterdir()) and "seeds" not in runs.read_config(out):
        raise FileExistsError(f"out: {out} holds a run of a single seed; choose another name or remove it")
    for path in out.iterdir():
        if path.name.startswith("seed-") and (path / runs.CONFIG).exists():
            shutil.rmtree(path)
    for name in ("seeds.json", "seeds.md"):
        (out / name).unlink(missing_ok=True)


def _tell(plan: Plan, rows: list[dict[str, float]]) -> None:
    """Print how results vary over seeds, and write it."""
    found, out, s = repeating.summary(rows), plan.folder, plan.settings
    title = f"{s.model} and {s.guide} on {s.data}, {s.objective} with K = {s.particles}, {len(rows)} seeds"
    runs.write_text(out / "seeds.md", repeating.to_markdown(found, title))
    runs.write_json(out / "seeds.json", found)  # last: it tells that all are finished
    header, *cells = repeating.cells(found)
    shown = Table(*header, title=f"{title}, nats per datum", title_justify="left")
    for row in cells:
        shown.add_row(*row, end_section=row is cells[len(rows) - 1])
    console().print(shown)
    say(f"Written to {out / 'seeds.md'}, {out / 'seeds.json'}")


def report(title: str, trained: Any, evaluation: Any, folder: Path) -> None:
    """Print the short table at the end of a run."""
    from ppl_vae.evaluation import stated

    epochs, seconds = len(trained.history["epoch"]), trained.history["seconds"][-1]
    rows = table(title)
    how = ", compiled" if trained.graphs else ""
    rows.add_row("training", f"{epochs} epoch{'s' * (epochs != 1)} in {seconds:.1f} s{how}")
    kept = trained.best
    rows.add_row("kept", f"epoch {kept['epoch']}, bound {kept['bound']:.2f} nats per datum on the validation data")
    rows.add_row("test ELBO", f"{float(evaluation.elbo.mean()):.2f} nats per datum")
    rows.add_row("test log-likelihood", f"{evaluation.mean:.2f} ± {stated(evaluation.se, 2)} nats per datum")
    rows.add_row(
        "", f"K = {evaluation.particles:,}, N = {len(evaluation):,}, Monte Carlo error {stated(evaluation.mc_se, 3)}"
    )
    rows.add_row("not to be trusted", evaluation.verdict)
    rows.add_row("run folder", str(folder))
    rows.add_row("", ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))))
    console().print(rows)
