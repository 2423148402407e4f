"""A run in one page of HTML that needs no other file: numbers with errors, pictures, how to make them again."""

import io
import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import isnan, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppl_vae import runs
from ppl_vae.data.splits import Splits
from ppl_vae.evaluation import Evaluation
from ppl_vae.programs import Program
from ppl_vae.sampling import reconstruct
from ppl_vae.tabulating import gaps, khat_shares, lowest, numbers, spreads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["commands", "report_run", "write_report"]

REPORT = "report.html"
# Enough for paper, and for screens with two dots to a pixel.
DOTS_PER_INCH, PIXELS_PER_INCH = 200, 96
# Pictures that are in a run folder already, by what a report calls them.
KEPT = {"samples": "samples.png", "reconstructions": "reconstructions.png"}
# Drawings on white. Others may be photographs, whose light and dark stay.
DRAWINGS = {"learning_curve", "bound_curve", "khat", "log_px", "rate_distortion"}
DETAILS = {"title", "settings", "history", "commands"}
WORST = 10
CONTENTS = {
    "config.toml": "settings and versions",
    "metrics.csv": "a row per epoch",
    "best.pt": "the best parameters; ppl_vae.restore loads them",
    "last.pt": "what ppl-vae resume goes on from",
    "previous.pt": "the same, saved before it",
    "learning_curve.png": "the bound against the epoch",
    "samples.png": "the mean of x given latents from the prior",
    "reconstructions.png": "test data above their reconstructions",
}
EVALUATIONS = {
    ".json": "the test log-likelihood, as numbers",
    ".pt": "the same of each datum; ppl_vae.Evaluation.load reads it",
    ".nc": "the same for ArviZ, with draws; arviz.from_netcdf reads it",
}


class Picture(NamedTuple):
    """A picture inside the page.

    Attributes:
        uri: all of its bytes.
        width: in pixels, as a browser counts them.
        height: likewise.
        alt: what it shows, in words.
        drawn: whether it is a drawing on white, whose light and dark may be exchanged.
    """

    uri: str
    width: int
    height: int
    alt: str
    drawn: bool


def write_report(
    folder: Path,
    evaluation: Evaluation,
    pictures: Mapping[str, "Figure | Path"] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``report.html`` into a folder, whole or not at all.

    The page is one file: pictures are inside, nothing is loaded, nothing is executed. What is not given
    is left out, heading and all.

    Args:
        folder: of the run; its files are listed.
        evaluation: the numbers.
        pictures: matplotlib figures or paths of PNG files, by name. ``"learning_curve"``, ``"samples"``,
            ``"reconstructions"``, ``"bound_curve"``, ``"khat"``, ``"log_px"``, ``"rate_distortion"`` and ``"worst"``
            have their places; others come after them, under their names.
        details: ``"title"``; ``"settings"``, a mapping, of which each mapping inside has a table of its own;
            ``"history"`` as `Fit.history`; ``"commands"``, the lines that make it all again.

    Returns:
        The path of the page.

    Raises:
        ValueError: a detail has another name, or a picture is no PNG.
        FileNotFoundError: there is no such folder or picture.

    Example:
        >>> zeros = torch.zeros(3)
        >>> evaluation = pv.Evaluation(zeros, zeros, zeros, zeros, zeros, particles=100, seed=0, subject="a & b")
        >>> path = write_report(tmp_path, evaluation, details={"commands": ["ppl-vae list"]})
        >>> path.name, "Log-likelihood of a &amp; b: 0.00" in path.read_text()
        ('report.html', True)
    """
    folder, details = Path(folder), dict(details or {})
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {folder}; give that of a run")
    if unknown := details.keys() - DETAILS:
        raise ValueError(f"details: unknown name {', '.join(sorted(unknown))}; there are {', '.join(sorted(DETAILS))}")
    alts = _alts(evaluation, details.get("history"))
    page = _template().render(
        evaluation=evaluation,
        title=details.get("title") or evaluation.subject or folder.resolve().name,
        headline=str(evaluation).split("\nWarning: ")[0],
        numbers=numbers(evaluation),
        spreads=spreads(evaluation),
        gaps=gaps(evaluation) if evaluation.curve else [],
        worst=lowest(evaluation, WORST),
        pictures={name: _picture(name, found, alts) for name, found in (pictures or {}).items()},
        training=_training(details.get("history")),
        settings=_tables(details.get("settings") or {}),
        commands=list(details.get("commands") or []),
        contents=_contents(folder),
    )
    # A file's name may hold bytes that are no text.
    runs.write_text(folder / REPORT, page.encode(errors="replace").decode())
    return folder / REPORT


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"fixed": fixed}
    return environment.from_string(files("ppl_vae").joinpath("templates", "report.html.j2").read_text("utf-8"))


def fixed(value: float, digits: int = 2) -> str:
    """Return a number for a table: with a hyphen as its minus sign, so that a spreadsheet takes it.

    Example:
        >>> fixed(-1234.5), fixed(float("nan")), fixed(float("-inf"))
        ('-1234.50', 'unknown', '-inf')
    """
    return "unknown" if isnan(value) else f"{value:.{digits}f}"


def _picture(name: str, found: "Figure | Path", alts: Mapping[str, str]) -> Picture:
    if isinstance(found, (str, Path)):
        content, scale = Path(found).read_bytes(), 1.5
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"pictures: {name!r} is {found}, which is no PNG; give one, or a matplotlib figure")
    else:
        file = io.BytesIO()
        found.savefig(file, format="png", dpi=DOTS_PER_INCH)
        content, scale = file.getvalue(), DOTS_PER_INCH / PIXELS_PER_INCH
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))  # of the header, first in the file
    return Picture(
        uri="data:image/png;base64," + b64encode(content).decode(),
        width=round(width / scale),
        height=round(height / scale),
        alt=alts.get(name, name),
        drawn=name in DRAWINGS,
    )


def _alts(evaluation: Evaluation, history: Mapping[str, Sequence[float]] | None) -> dict[str, str]:
    """Return what each picture shows, in words."""
    good, middle, bad = khat_shares(evaluation)
    log_px, rows = evaluation.log_px, lowest(evaluation, 1)
    rises = "" if not evaluation.curve else ", ".join(f"{g.bound:.2f} for {g.particles:,}" for g in gaps(evaluation))
    return {
        "learning_curve": f"Curve of the bound against the epoch. {_training(history)}".strip(),
        "samples": "Grid of images: the mean of the data given latents that were drawn from the prior.",
        "reconstructions": "Two rows of images: test data, and below each its reconstruction.",
        "bound_curve": f"Curve of the bound in nats per datum against the number of particles: {rises}.",
        "khat": f"Histogram of k-hat: {good:.1%} of the data up to 0.5, {middle:.1%} to 0.7, {bad:.1%} above.",
        "log_px": f"Histogram of log p(x) over data, from {float(log_px.min()):.1f} (row {rows[0]}) to "
        f"{float(log_px.max()):.1f}, with mean {evaluation.mean:.2f}.",
        "rate_distortion": f"Scatter of distortion against rate: on average {float(evaluation.distortion.mean()):.2f} "
        f"against {float(evaluation.rate.mean()):.2f} nats.",
        "worst": "Images of the data of lowest log p(x); the table below has their rows and numbers.",
    }


def _training(history: Mapping[str, Sequence[float]] | None) -> str:
    """Say in words what training did."""
    if not history or not history.get("epoch"):
        return ""
    n, held_out = len(history["epoch"]), "valid_bound" in history
    bounds = history["valid_bound" if held_out else "train_bound"]
    kept = max(range(n), key=bounds.__getitem__) if held_out else n - 1
    took = f" in {history['seconds'][-1]:.1f} s" if "seconds" in history else ""
    return (
        f"{n} epoch{'s' * (n != 1)}{took}; kept epoch {history['epoch'][kept]:.0f}, with a bound of {bounds[kept]:.2f} "
        f"nats per datum on the {'validation' if held_out else 'training'} data."
    )


def _tables(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings as tables: one of those that are no mapping, and one for each mapping."""
    inner = {name: dict(value) for name, value in settings.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in settings.items() if name not in inner}
    return ({"settings": own} if own else {}) | {name: table for name, table in inner.items() if table}


def _contents(folder: Path) -> list[tuple[str, str, str]]:
    """Return name, size and meaning of what a folder holds, but for the report and what is half written."""
    paths = sorted(path for path in folder.iterdir() if path.name != REPORT and not path.name.startswith("."))
    return [(path.name + "/" * path.is_dir(), "" if path.is_dir() else _size(path), _meaning(path)) for path in paths]


def _meaning(path: Path) -> str:
    if path.name.startswith("evaluation_"):
        return EVALUATIONS.get(path.suffix, "")
    return CONTENTS.get(path.name, "")


def _size(path: Path) -> str:
    size = path.lstat().st_size  # a link may lead nowhere
    return f"{size:,} B" if size < 10_000 else f"{size / 1000:,.0f} kB" if size < 10**7 else f"{size / 1e6:,.0f} MB"


def commands(settings: Mapping[str, Any], folder: Path, evaluation: Evaluation) -> list[str]:
    r"""Return the lines that train, evaluate and sample again, of a run that ``ppl-vae fit`` made; of others nothing.

    The first names all settings, so that it stays the same when defaults change, and no folder: a free one is taken.

    Example:
        >>> zeros = torch.zeros(3)
        >>> evaluation = pv.Evaluation(zeros, zeros, zeros, zeros, zeros, particles=100, seed=1)
        >>> lines = commands({"model": "vae", "data": "digits", "z_dim": 2, "seed": 0}, Path("my run"), evaluation)
        >>> print(*lines, sep="\n")
        ppl-vae fit --model vae --data digits --z-dim 2 --seed 0
        ppl-vae evaluate 'my run' --particles 100 --seed 1
        ppl-vae sample 'my run' --n 64 --seed 0
    """
    if "data" not in settings:  # made by pv.fit: a program of somebody's own
        return []
    plain = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    own = {name: plain[name] for name in ("model", "guide") if ":" in str(plain.get(name, ""))}
    drawn = {"particles": evaluation.particles, "seed": evaluation.seed}
    sampled = {"n": 64, "seed": settings.get("seed", 0)}
    return [
        shlex.join(["ppl-vae", *words])
        for words in (
            ["fit", *_options(plain)],
            ["evaluate", str(folder), *_options(drawn | own)],
            ["sample", str(folder), *_options(sampled | own)],
        )
    ]


def _options(values: Mapping[str, Any]) -> list[str]:
    said = {f"--{name.replace('_', '-')}": value for name, value in values.items() if value is not False}
    return [word for name, value in said.items() for word in ((name,) if value is True else (name, str(value)))]


def report_run(
    folder: Path,
    evaluation: Evaluation,
    model: Program | None = None,
    guide: Program | None = None,
    data: Splits | None = None,
    title: str = "",
) -> Path:
    """Write ``report.html`` into a run folder, from what the folder has and what can be drawn of an evaluation.

    Args:
        folder: as `ppl_vae.fit` and ``ppl-vae fit`` leave it.
        evaluation: of the test data.
        model: to reconstruct the data of lowest log p(x), beside which their reconstructions are drawn.
        guide: likewise.
        data: whose test set was evaluated; its images are drawn. Without it, their numbers alone are told.
        title: of the page.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the evaluation is of another number of data.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> sizes = {"x_dim": 64, "z_dim": 2, "hidden": (8,)}
        >>> model, guide, data = VAE(**sizes), Normal(**sizes), pv.data.load("digits", binarize="threshold")
        >>> fit = pv.fit(model, guide, data, epochs=1, out=tmp_path / "run")
        >>> evaluation = pv.evaluate(model, guide, data, particles=20, curve=True)
        >>> report_run(fit.out, evaluation, model, guide, data).name
        'report.html'
    """
    from ppl_vae.plots import learning_curve

    folder = Path(folder)
    settings = runs.read_config(folder)
    history = runs.read_metrics(folder) if (folder / runs.METRICS).exists() else {}
    pictures = {name: folder / file for name, file in KEPT.items() if (folder / file).is_file()}
    pictures |= {"learning_curve": learning_curve(history)} if history else {}
    pictures |= _drawings(evaluation)
    if data is not None:
        pictures |= _worst(evaluation, model, guide, data)
    lines = commands(settings, folder, evaluation)
    details = {"title": title, "settings": settings, "history": history, "commands": lines}
    return write_report(folder, evaluation, pictures, details)


def _drawings(evaluation: Evaluation) -> dict[str, "Figure"]:
    """Draw what can be drawn of an evaluation alone."""
    from ppl_vae import datum_plots, evaluation_plots

    drawings = {"khat": evaluation_plots.khat_plot(evaluation)}
    drawings["log_px"] = evaluation_plots.log_px_histogram(evaluation)
    if evaluation.curve:
        drawings["bound_curve"] = evaluation_plots.bound_curve(evaluation)
    if evaluation.rate.isfinite().any():
        drawings["rate_distortion"] = datum_plots.rate_distortion(evaluation)
    return drawings


def _worst(evaluation: Evaluation, model: Program | None, guide: Program | None, data: Splits) -> dict[str, "Figure"]:
    """Draw the data of lowest log p(x), if they are images."""
    from ppl_vae.datum_plots import worst_data

    if len(data.test) != len(evaluation):
        raise ValueError(f"evaluation: it is of {len(evaluation)} data, and the test set has {len(data.test)}")
    if data.test.shape[1:] != (prod(data.info.shape),):
        return {}
    x, means = data.test[lowest(evaluation, WORST)], {}
    if model is not None and guide is not None:
        means = reconstruct(model, guide, x, seed=evaluation.seed)
    mean = next((mean.cpu() for mean in means.values() if mean.shape == x.shape), None)
    return {"worst": worst_data(evaluation, x, data.info.shape, mean, data.info.ink)}
