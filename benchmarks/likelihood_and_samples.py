"""High likelihood and good samples are different things: the counter-examples of Theis, van den Oord and Bethge.

    python benchmarks/likelihood_and_samples.py

A small VAE of binary digits is compared with models made from it, whose densities are exact but for the VAE's
own estimate. A table of the training images repeats them, and gives other images next to nothing. The VAE
drowned in noise draws noise, and loses at most log 100 nats. Drowned in the table, it repeats training images,
and loses as little. The command prints a table, and leaves a CSV and a PNG; ``--quick`` shows only that
everything runs.

Reference: L. Theis, A. van den Oord, M. Bethge, "A Note on the Evaluation of Generative Models", ICLR 2016,
https://arxiv.org/abs/1511.01844.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from figures import BLUE, GREEN, GREY, PINK, RED, Rows, save, show
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

app = typer.Typer(help="Likelihood beside the quality of samples.", add_completion=False)

RESULTS = Path(__file__).parent / "results"
SHARE = 0.01  # of the VAE in what it is drowned in
FLIPPED = 1e-6  # probability that a pixel is wrong in the table's copies
SHOWN = 11  # images of each model in the picture
FRAME = 0.15  # grey between images
COLOURS = (BLUE, GREEN, RED, PINK, GREY)


@dataclass(frozen=True)
class Generator:
    """A model, as far as this comparison knows it.

    Attributes:
        name: in words.
        log_px: log density of each test image, ``(N,)``, in nats.
        samples: ``(n, pixels)``.
    """

    name: str
    log_px: Tensor
    samples: Tensor


def vae(data: pv.data.Splits, epochs: int, particles: int, seed: int) -> Generator:
    """Train a VAE, estimate its log-likelihoods, and draw from it."""
    torch.manual_seed(seed)
    model, guide = (made(x_dim=data.test.shape[1], z_dim=10, hidden=(200,)) for made in (VAE, Normal))
    pv.fit(model, guide, data, epochs=epochs, seed=seed)
    log_px = pv.evaluate(model, guide, data, particles=particles, seed=seed).log_px
    return Generator("VAE", log_px, pv.sample(model, like=data.test, n=len(data.test), seed=seed)["x"])


def table(train: Tensor, test: Tensor, seed: int) -> Generator:
    """Return the model that repeats training images, hardly ever with a pixel wrong.

    ``p(x) = 1/N sum_n FLIPPED^h_n (1 - FLIPPED)^(D - h_n)``, with h_n the pixels in which x and image n differ.
    """
    differing = torch.cdist(test.double(), train.double(), p=1).round()
    log_p = differing * math.log(FLIPPED) + (test.shape[1] - differing) * math.log1p(-FLIPPED)
    generator = torch.Generator().manual_seed(seed)
    copies = train[torch.randint(len(train), (len(test),), generator=generator)]
    wrong = torch.rand(copies.shape, generator=generator) < FLIPPED
    return Generator("table", log_p.logsumexp(1) - math.log(len(train)), torch.where(wrong, 1 - copies, copies))


def noise(test: Tensor, seed: int) -> Generator:
    """Return the model that tosses a coin for each pixel."""
    log_px = torch.full((len(test),), -test.shape[1] * math.log(2), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return Generator("noise", log_px, torch.randint(2, test.shape, generator=generator).float())


def drowned(rare: Generator, common: Generator, seed: int) -> Generator:
    """Return the mixture ``SHARE * rare + (1 - SHARE) * common``."""
    log_px = torch.logaddexp(math.log(SHARE) + rare.log_px, math.log1p(-SHARE) + common.log_px)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(rare.samples), 1, generator=generator) < SHARE
    others = common.samples[torch.randperm(len(common.samples), generator=generator)]
    samples = torch.where(chosen, rare.samples, others)
    return Generator(f"{SHARE:.0%} {rare.name}, {1 - SHARE:.0%} {common.name}", log_px, samples)


def generators(data: pv.data.Splits, epochs: int, particles: int, seed: int) -> list[Generator]:
    """Return the VAE, what is made of it, and noise, each with as many samples as there are test images."""
    trained = vae(data, epochs, particles, seed)
    copies, coins = table(data.train, data.test, seed), noise(data.test, seed)
    return [trained, copies, drowned(trained, coins, seed), drowned(trained, copies, seed), coins]


def measured(generator: Generator, test: Tensor, seed: int) -> dict[str, Any]:
    """Return the likelihood of a model, and the quality of its samples, as a row."""
    quality = pv.quality.compare(generator.samples, test, seed=seed, progress=False)
    error = float(generator.log_px.std()) / math.sqrt(len(test))
    row = {"model": generator.name, "log_px": float(generator.log_px.mean()), "log_px_error": error}
    for name in ("precision", "recall", "classifier", "mmd", "frechet"):
        figure = getattr(quality, name)
        row |= {name: figure.value, f"{name}_error": figure.error}
    return row


def stated(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as the printed table has it, each figure with its standard error.

    Example:
        >>> stated({"model": "VAE", "log_px": -17.6, "log_px_error": 0.19, "mmd": 0.01, "mmd_error": 0.001})
        {'model': 'VAE', 'log_px': '-17.60 ± 0.19', 'mmd': '0.0100 ± 0.0010'}
    """
    digits = {"log_px": 2, "precision": 2, "recall": 2, "classifier": 2, "mmd": 4, "frechet": 2}
    figures = {
        name: f"{row[name]:.{places}f} ± {row[f'{name}_error']:.{places}f}"
        for name, places in digits.items()
        if name in row
    }
    return {"model": row["model"], **figures}


def picture(found: list[Generator], rows: Rows, data: pv.data.Splits) -> Figure:
    """Draw samples of each model, and the quality of samples against likelihood."""
    figure = Figure(figsize=(11.0, 3.9), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
    strips = [("test images", data.test[:: len(data.test) // SHOWN], "black")]
    strips += [(g.name, g.samples, colour) for g, colour in zip(found, COLOURS, strict=True)]
    _samples(left, strips, data.info.shape)
    _figures(right, rows)
    return figure


def _samples(axes: Axes, strips: list[tuple[str, Tensor, str]], shape: tuple[int, int]) -> None:
    """Draw a row of images for each model, its name in its colour."""
    height, width = (side + 2 for side in shape)
    mosaic = torch.full((len(strips), height, SHOWN, width), FRAME)
    for strip, (_, images, _) in zip(mosaic, strips, strict=True):
        strip[1:-1, :, 1:-1] = images[:SHOWN].view(-1, *shape).transpose(0, 1)
    axes.imshow(mosaic.view(len(strips) * height, -1).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([height * (i + 0.5) - 0.5 for i in range(len(strips))], [_in_lines(name) for name, *_ in strips])
    for label, (_, _, colour) in zip(axes.get_yticklabels(), strips, strict=True):
        label.set_color(colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("what the models draw", fontsize=10)


def _in_lines(name: str) -> str:
    return name.replace(", ", ",\n")


def _figures(axes: Axes, rows: Rows) -> None:
    """Draw precision against the log-likelihood, with standard errors."""
    for row, colour in zip(rows, COLOURS, strict=True):
        x, y = row["log_px"], row["precision"]
        axes.errorbar(x, y, row["precision_error"], row["log_px_error"], fmt="o", color=colour, capsize=2)
        # Right of the VAE's there is room, elsewhere on the left.
        side = 1 if row is rows[0] else -1
        aligned = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": 9}
        axes.annotate(
            _in_lines(row["model"]), (x, y), (10 * side, 0), textcoords="offset points", color=colour, **aligned
        )
    lowest = rows[0]["log_px"] + math.log(SHARE)
    axes.axvline(lowest, color=GREY, linewidth=1.0, linestyle=":", zorder=0)
    axes.annotate(
        f"{-math.log(SHARE):.1f} nats below the VAE:\nno mixture with {SHARE:.0%} of it\nlies left of this",
        (lowest, 0.35),
        (-6, 0),
        textcoords="offset points",
        color=GREY,
        fontsize=8,
        ha="right",
        va="center",
    )
    axes.set(xlabel="test log-likelihood (nats per image)", ylabel="precision of the samples", ylim=(-0.05, 1.05))
    axes.set_title("good samples above, high likelihood to the right", fontsize=10)
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the CSV and the PNG.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly trained, to see that it runs.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes of the VAE's training over the digits.")] = 150,
    particles: Annotated[int, typer.Option(help="Draws for each log-likelihood of the VAE.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seeds parameters, training and draws.")] = 0,
) -> None:
    """Compare a VAE with a table of its training images, with noise, and with itself drowned in either."""
    data = pv.data.load("digits", binarize="threshold")
    data = data._replace(test=data.test[:100]) if quick else data
    found = generators(data, 2 if quick else epochs, 10 if quick else particles, seed)
    rows = [measured(generator, data.test, seed) for generator in found]
    printed = [stated(row) for row in rows]
    show(f"Likelihood and samples, {len(data.test)} test images of binary digits", printed, list(printed[0]))
    save(out, "likelihood_and_samples", rows, picture(found, rows, data))


if __name__ == "__main__":
    app()
