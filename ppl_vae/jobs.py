"""What the command line does: train, evaluate and draw from programs named by strings.

Here, and only here, strings become functions.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppl_vae import callbacks, choices, evaluation_plots, nets, pictures, plots, runs, zoo
from ppl_vae.checking import supports
from ppl_vae.choices import CHOSEN, COMPILE, LIKELIHOODS, PRECISION, PRIORS
from ppl_vae.comparing import Comparison, compare
from ppl_vae.data import binarized, load
from ppl_vae.data.splits import on_data
from ppl_vae.evaluating import evaluate
from ppl_vae.evaluation import Evaluation
from ppl_vae.exporting import write_netcdf
from ppl_vae.fitted import Fit
from ppl_vae.optimizers import adam
from ppl_vae.parallel import workers
from ppl_vae.pictures import PICTURES, Subject
from ppl_vae.programs import Programs, forked_random_state, program_name
from ppl_vae.reporting import report_run
from ppl_vae.sampling import sample
from ppl_vae.settings import Settings, check_own
from ppl_vae.training import fit

__all__ = ["Job", "Settings", "compared", "evaluation_files", "latest", "versions", "write_comparison"]


class Job:
    """Programs and data made from settings.

    Args:
        settings: what to make.
        root: folder of the data (see `ppl_vae.data.load`).
        device: where to compute; ``auto`` is a GPU if torch finds one.

    Raises:
        ValueError: the device cannot be used.
    """

    def __init__(self, settings: Settings, root: str | None = None, device: str = "auto"):
        self.device = _device(device)
        published = load(settings.data, root)
        self.x_dim = published.train.shape[1]
        self.options = {"x_dim": self.x_dim, "z_dim": settings.z_dim, "hidden": (settings.hidden,)}
        classes = [zoo.find("models", settings.model), zoo.find("guides", settings.guide)]
        # Whose constructors name an option decides whether it means anything.
        self.taken = {name for name in (*self.options, *CHOSEN.values()) for c in classes if zoo.takes(c, name)}
        if zoo.takes(classes[0], "codes"):  # its latents are no vectors, which these parts are made for
            self.taken -= {*CHOSEN.values()}
        settings = replace(settings, **{part: None for part, name in CHOSEN.items() if name not in self.taken})
        with forked_random_state(settings.seed):
            self.model, self.guide = map(self._moved, self._made(settings, *classes, published.train))
        grey = published.info.binarization == "grey"
        wants_bits = grey and settings.binarize is None and not supports(self.model, published.test[:2])
        binarize = "dynamic" if wants_bits else settings.binarize
        self.splits = binarized(published, binarize, settings.seed)
        self.settings = replace(settings, binarize=binarize)

    def _made(self, settings: Settings, model: Any, guide: Any, exemplars: torch.Tensor) -> tuple[Any, Any]:
        """Return the programs; where a prior is made of the guide's encoder, the guide is first."""
        chosen = self._decoder(settings)
        prior = PRIORS.get(settings.prior)
        if not zoo.takes(prior, "encoder"):
            chosen |= {"prior": zoo.build(prior, self.options)} if prior else {}
            made = zoo.build(model, self.options | chosen)
            return made, zoo.build(guide, self.options | {"model": made})
        q = None if zoo.takes(guide, "model") else zoo.build(guide, self.options)
        if not hasattr(q, "encoder"):
            raise ValueError(
                f"prior: {settings.prior} is made of a guide's encoder, and {settings.guide} has none before the model "
                "is made; take another prior or another guide, such as normal"
            )
        chosen["prior"] = zoo.build(prior, self.options | {"encoder": q.encoder, "exemplars": exemplars})
        return zoo.build(model, self.options | chosen), q

    def _decoder(self, settings: Settings) -> dict[str, nn.Module]:
        """Return the decoder with the likelihood that was chosen; without a choice the model makes its own."""
        if settings.likelihood is None:
            return {}
        head = zoo.build(LIKELIHOODS[settings.likelihood], self.options)
        outputs = head.outputs * self.x_dim
        return {"decoder": nn.Sequential(nets.MLP(settings.z_dim, (settings.hidden,), outputs), head)}

    def ignored(self) -> set[str]:
        """Return the settings that neither program's constructor takes."""
        untaken = {"z_dim", "hidden"} - self.taken
        return untaken | {setting for setting, argument in CHOSEN.items() if argument not in self.taken}

    @classmethod
    def recorded(
        cls, folder: Path, root: str | None, model: str | None, guide: str | None, device: str | None = None
    ) -> "Job":
        """Make the programs of a run again, as they were before training.

        Args:
            folder: of the run.
            root: folder of the data.
            model: the model, if it came from somebody's own file.
            guide: likewise.
            device: where to compute; where the run did, if left out.

        Raises:
            ValueError: a program came from somebody's own file, which is only executed when the
                person names it again.
        """
        recorded = runs.read_config(folder)
        if "data" not in recorded:
            raise ValueError(f"{folder}: made by pv.fit, not by ppl-vae fit; load it in Python with pv.restore")
        own = {role: program for role, program in (("model", model), ("guide", guide)) if program}
        check_own(folder, recorded, own)
        known = {name: recorded[name] for name in Settings.__dataclass_fields__ if name in recorded}
        return cls(Settings(**known | own), root, device or recorded["device"])

    @classmethod
    def from_run(
        cls, folder: Path, root: str | None, model: str | None, guide: str | None, device: str = "auto"
    ) -> "Job":
        """Make the programs of a run again, with its best parameters; otherwise as `recorded`."""
        job = cls.recorded(folder, root, model, guide, device)
        job.programs().load_state_dict(runs.read_programs(folder))
        return job

    def programs(self) -> Programs:
        """Return the pair's parameters and buffers, those made on the way included."""
        return Programs(self.model, self.guide).run_once(self.model, self.guide, (self.splits.valid[:2],))

    def train(self, out: Path, resume: bool = False, overwrite: bool = False) -> Fit:
        """Train into a run folder; go on with the run that is in it, or replace that, where it is said."""
        s = self.settings
        return fit(
            self.model,
            self.guide,
            self.splits,
            objective=self._moved(self.objective()),
            particles=s.particles,
            epochs=s.epochs,
            batch_size=s.batch_size,
            optimizer=partial(adam, lr=s.learning_rate),
            out=out,
            seed=s.seed,
            compile=COMPILE[s.compile],
            precision=PRECISION[s.precision],
            clip_norm=s.clip_norm,
            accumulate=s.accumulate,
            config=self.record(),
            **self._asked_for(out),
            **{name: True for name, said in (("resume", resume), ("overwrite", overwrite)) if said},
        )

    def objective(self) -> Any:
        """Return the objective that the settings name, with the warm-up or the floor that they ask for."""
        s = self.settings
        if s.free_bits is not None:
            return choices.floored(choices.WITH_FLOOR[s.objective], s.free_bits)
        if s.warm_up is None and s.warm_up_cycles is None:
            return choices.objective(s.objective, {"x_dim": self.x_dim})
        updates = self._updates(s.warm_up or s.epochs)
        return choices.annealed(choices.WITH_WEIGHT[s.objective], updates, s.warm_up_cycles)

    def _updates(self, epochs: int) -> int:
        batches = -(-len(self.splits.train) // self.settings.batch_size)
        return epochs * batches // self.settings.accumulate

    def _asked_for(self, out: Path) -> dict[str, Any]:
        """Return the options of `fit` that are left out where nobody asks for them."""
        s = self.settings
        leads = (together := workers()) is None or together.leads
        chosen = {
            "scheduler": choices.scheduler(s.lr_schedule, s.epochs, self._updates(s.epochs), s.learning_rate),
            "ema": s.ema,
            "patience": s.patience,
            "on_fault": choices.ON_FAULT[s.on_fault],
            "callbacks": [callbacks.tensorboard(out / "tensorboard")] if s.tensorboard and leads else None,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def evaluate(self, folder: Path, particles: int, seed: int) -> Evaluation:
        """Estimate the log-likelihood of the test data; what is finished is kept in the run folder."""
        out, *_ = evaluation_files(folder, particles, seed)
        options = {"particles": particles, "seed": seed, "compile": COMPILE[self.settings.compile]}
        return evaluate(self.model, self.guide, self.splits, curve=True, out=out, **options)

    def write_evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        """Write an evaluation, as JSON or for ArviZ, as the names of the files say."""
        for path in files:
            if path.suffix == ".json":
                runs.write_json(path, evaluation.to_dict())
            else:
                write_netcdf(evaluation, path)

    def training_images(self, seed: int) -> torch.Tensor:
        """Return the training images as training sees them, binarized once where it binarizes every time."""
        transform = self.splits.info.transform
        with forked_random_state(seed):
            return self.splits.train if transform is None else transform(self.splits.train)

    def report(self, folder: Path, evaluation: Evaluation) -> Path:
        """Write a page about the run."""
        return report_run(folder, evaluation, self.model, self.guide, self.splits, title=self.title())

    def draw_learning_curve(self, history: Mapping[str, Any], folder: Path) -> Path:
        """Draw the bound against the epoch."""
        return _save(plots.learning_curve(history, self.title()), folder / "learning_curve.png")

    def draw(self, names: Sequence[str], folder: Path, seed: int = 0) -> dict[str, Path | str]:
        """Draw pictures by name; return the file of each, or why it cannot be drawn.

        Raises:
            ValueError: a name is unknown.
        """
        if unknown := [name for name in names if name not in PICTURES]:
            raise ValueError(f"pictures: unknown name {unknown[0]!r}; there are {', '.join(PICTURES)}")
        subject = Subject(self.model, self.guide, self.splits, seed)
        return {name: _tried(partial(PICTURES[name], subject), folder / f"{name}.png") for name in names}

    def sample(self, n: int, seed: int) -> dict[str, torch.Tensor]:
        """Draw from the prior."""
        return sample(self.model, like=self.splits.test, n=n, seed=seed)

    def draw_samples(self, path: Path, n: int, seed: int) -> Path | str:
        """Show the means of the data given the latents of such draws; return the file, or why there is none."""
        subject = Subject(self.model, self.guide, self.splits, seed)
        return _tried(partial(pictures.samples, subject, n), path)

    def subject(self) -> str:
        """Return what a report calls the model and its data."""
        return f"{program_name(self.model)}{on_data(self.splits)}"

    def title(self) -> str:
        """Name the job in a line."""
        s = self.settings
        parts = [getattr(s, name) for name in CHOSEN if name not in self.ignored() and getattr(s, name)]
        likelihood = f" ({', '.join(parts)})" if parts else ""
        how = self.splits.info.binarization
        return f"{s.model}{likelihood} and {s.guide} on {s.data} ({how}), {s.objective} with K = {s.particles}"

    def line(self) -> str:
        """Say in a line what is trained, on how many data, and where."""
        sizes = (("training", self.splits.train), ("validation", self.splits.valid), ("test", self.splits.test))
        data = ", ".join(f"{len(part):,} {name}" for name, part in sizes)
        return f"{self.title()}; {data} data; {self.device}"

    def record(self) -> dict[str, Any]:
        """Return what the run folder is to tell of how it came about."""
        meant = {name: value for name, value in asdict(self.settings).items() if name not in self.ignored()}
        return meant | {"device": str(self.device), "versions": versions()}

    def _moved(self, program: Any) -> Any:
        """Return a program or an objective on the device; functions have nothing to move."""
        return program.to(self.device) if isinstance(program, nn.Module) else program


def evaluation_files(folder: Path, particles: int, seed: int) -> list[Path]:
    """Return the files of an evaluation: datum by datum, as JSON, and for ArviZ."""
    name = runs.evaluation_name(particles, seed)
    return [folder / f"{name}{suffix}" for suffix in (".pt", ".json", ".nc")]


def compared(folders: Sequence[Path], particles: int | None = None, seed: int | None = None) -> Comparison:
    """Compare the evaluations of finished runs.

    Args:
        folders: of the runs.
        particles: which evaluation of a run to take; that with most draws if left out.
        seed: likewise; any if left out.

    Raises:
        FileNotFoundError: a run has no such evaluation.
    """
    names = [str(folder) for folder in folders]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"runs: {', '.join(sorted(repeated))} is named more than once")
    return compare({str(folder): latest(folder, particles, seed) for folder in folders})


def latest(folder: Path, particles: int | None, seed: int | None) -> Evaluation:
    """Return the evaluation of a run that has most draws, of those that fit."""
    runs.read_config(folder)  # a folder of something else is told so
    wanted = runs.evaluation_name("*" if particles is None else particles, "*" if seed is None else seed)
    found = [Evaluation.load(path) for path in sorted(folder.glob(f"{wanted}.pt"))]
    if not found:
        which = "" if particles is None else f" --particles {particles}"
        raise FileNotFoundError(f"{folder}: it has no {wanted}.pt; run ppl-vae evaluate {folder}{which} first")
    return max(found, key=lambda evaluation: evaluation.particles)


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write a comparison as Markdown and JSON into a new folder; return the files."""
    folder = runs.new_folder(out)
    files = [folder / f"comparison.{suffix}" for suffix in ("md", "json", "png")]
    runs.write_text(files[0], comparison.to_markdown() + "\n")
    runs.write_json(files[1], comparison.to_dict())
    rows = [(str(row.name), row.difference, row.difference_se) for row in comparison.rows]
    _save(evaluation_plots.comparison(rows), files[2])
    return files


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which a device without memory, as meta, refuses
    except (RuntimeError, AssertionError) as error:  # torch built without the device asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {name!r} cannot be used here ({reason}); choose auto or cpu") from error
    return device


def _tried(draw: Callable[[], Any], path: Path) -> Path | str:
    """Draw and save a picture; where this model, guide or data set has none, return why."""
    try:
        figure = draw()
    except ValueError as error:
        return str(error)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    runs.write_atomically(path, lambda file: figure.savefig(file, format="png"))
    return path


def versions() -> dict[str, str]:
    """Return the versions of what numbers depend on."""
    found = {package: version(package) for package in ("ppl-vae", "pyro-ppl", "torch")}
    return found | {"python": platform.python_version()}
