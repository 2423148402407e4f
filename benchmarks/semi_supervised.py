"""What unlabelled images and the classifier's own loss are worth: test accuracy of M2 from a hundred labels.

    python benchmarks/semi_supervised.py [--data mnist] [--labels N]

The same programs are trained four times: on the labelled images alone and on all of them, with and without the term
alpha log q(y | x) of labelled rows, as many updates each. Two classifiers are read off each: the network q(y | x), and
p(y | x) from importance weights, log p(x, y) by K draws of the style for each class. From the bound of labelled
images alone q(y | x) learns nothing and stays at chance; p(y | x) is a classifier all the same. By default alpha is N
over the number of labels, with which the term counts as if every image had a label; the paper's is a tenth of that,
which beside the bounds of 64 pixels is too little. On MNIST pass its own (``--alpha 50``) to compare.

The command prints a table, and leaves a CSV and a PNG; ``--quick`` shows only that everything runs.

Reference: D. P. Kingma, D. J. Rezende, S. Mohamed, M. Welling, "Semi-Supervised Learning with Deep Generative
Models", NeurIPS 2014, https://arxiv.org/abs/1406.5298. (M2 with 100 labels of MNIST: 88.0 % +- 1.7.)
"""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from figures import BLUE, RED, Rows, canvas, save, show
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from ppl_vae.guides.semi_supervised import SemiSupervised as Guide
from ppl_vae.models.semi_supervised import SemiSupervised

app = typer.Typer(help="Accuracy from a few labels.", add_completion=False)

RESULTS = Path(__file__).parent / "results"
CLASSES = 10
# Updates, and widths of the networks, by data set.
SIZES = {"digits": (1000, 200), "mnist": (20_000, 500)}
BATCH = 100
WAYS = [(False, False), (False, True), (True, False), (True, True)]
READ_OFF = {"network": "network q(y | x)", "weights": "weights p(y | x)"}


def some(y: Tensor, labels: int, seed: int) -> Tensor:
    """Return the rows that keep their label, as many of each class, ``(labels,)``."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    of_class = [order[y[order] == c][: labels // CLASSES] for c in range(CLASSES)]
    return torch.cat(of_class)


def trained(x: Tensor, y: Tensor, alpha: float, updates: int, width: int, seed: int) -> tuple[SemiSupervised, Guide]:
    """Train for so many updates on images and labels, -1 where there is none."""
    torch.manual_seed(seed)
    sizes = {"x_dim": x.shape[1], "z_dim": 20, "y_dim": CLASSES, "hidden": (width,)}
    model, guide = SemiSupervised(**sizes), Guide(**sizes, alpha=alpha)
    epochs = max(1, round(updates / math.ceil(len(x) / BATCH)))
    adam = partial(torch.optim.Adam, lr=1e-3)
    pv.fit(model, guide, (x, y), epochs=epochs, batch_size=BATCH, seed=seed, optimizer=adam, progress=False)
    return model, guide


@torch.no_grad()
def accuracies(model: SemiSupervised, guide: Guide, x: Tensor, y: Tensor, particles: int) -> dict[str, float]:
    """Return the shares of images whose class is found, by the network and by importance weights."""
    found = []
    for part in x.split(BATCH):
        drawn = pv.weigh(model, guide, (part, torch.full((len(part),), -1)), particles=particles)
        found.append((drawn.log_w + drawn.log_mass).logsumexp(-2).argmax(0))
    classes = {"network": guide.classify(x).argmax(-1), "weights": torch.cat(found)}
    return {name: float((chosen == y).double().mean()) for name, chosen in classes.items()}


def measured(
    data: pv.data.Splits, labels: int, alpha: float, updates: int, width: int, particles: int, seeds: int
) -> list[dict[str, Any]]:
    """Return a row for each way of training, with the mean over seeds and its standard error."""
    y, test, rows = data.info.labels["train"], data.info.labels["test"], []
    for with_images, with_loss in WAYS:
        found = []
        for seed in range(seeds):
            kept = some(y, labels, seed)
            given = torch.full_like(y, -1).index_copy(0, kept, y[kept])
            x = data.train if with_images else data.train[kept]
            given = given if with_images else given[kept]
            model, guide = trained(x, given, alpha if with_loss else 0.0, updates, width, seed)
            found.append(accuracies(model, guide, data.test, test, particles))
            typer.echo(f"{described(with_images, with_loss)}, seed {seed}: {found[-1]}", err=True)
        row = {"images": len(x), "labels": labels, "alpha": alpha if with_loss else 0.0, "seeds": seeds}
        for name in READ_OFF:
            values = torch.tensor([each[name] for each in found])
            error = float(values.std()) / math.sqrt(seeds) if seeds > 1 else math.nan
            row |= {name: float(values.mean()), f"{name}_error": error}
        rows.append({"trained on": described(with_images, with_loss), **row})
    return rows


def described(with_images: bool, with_loss: bool) -> str:
    """Return a way of training in words.

    Example:
        >>> described(True, False)
        'all images, bound alone'
    """
    return f"{'all' if with_images else 'labelled'} images, bound {'and classifier loss' if with_loss else 'alone'}"


def stated(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as the printed table has it."""
    figures = {}
    for name, words in READ_OFF.items():
        error = row[f"{name}_error"]
        figures[words] = f"{row[name]:.1%}" + ("" if math.isnan(error) else f" ± {error:.1%}")
    return {"trained on": row["trained on"], **figures}


def picture(rows: Rows) -> Figure:
    """Draw the accuracies of all ways of training."""
    figure, ((axes,),) = canvas(1, 1, width=7.0, height=3.0)
    for (name, words), colour, shift in zip(READ_OFF.items(), (BLUE, RED), (-0.12, 0.12), strict=True):
        at = [i + shift for i in range(len(rows))]
        errors = [0.0 if math.isnan(row[f"{name}_error"]) else row[f"{name}_error"] for row in rows]
        axes.errorbar([row[name] for row in rows], at, xerr=errors, fmt="o", color=colour, capsize=2, label=words)
    axes.set_yticks(range(len(rows)), [row["trained on"] for row in rows])
    axes.set(xlabel="accuracy on the test images", ylim=(len(rows) - 0.5, -0.5))
    axes.legend(frameon=False, fontsize=8)
    return figure


@app.command()
def main(
    name: Annotated[str, typer.Option("--data", help="digits (no download) or mnist.")] = "digits",
    labels: Annotated[int, typer.Option(help="Labelled training images, as many of each class.")] = 100,
    alpha: Annotated[float | None, typer.Option(help="Of the classifier's loss; N over labels if left out.")] = None,
    updates: Annotated[int | None, typer.Option(help="Of each training, of 100 images each.")] = None,
    particles: Annotated[int, typer.Option(help="Styles drawn for each class in weights.")] = 50,
    seeds: Annotated[int, typer.Option(help="Trainings of each kind, with other labels each.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the CSV and the PNG.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly trained, to see that it runs.")] = False,
) -> None:
    """Train on labelled images and on all, with and without the classifier's loss, and compare accuracies."""
    data = pv.data.load(name, binarize="threshold")
    most, width = SIZES[name]
    alpha = len(data.train) / labels if alpha is None else alpha
    rows = measured(data, labels, alpha, 30 if quick else updates or most, width, 2 if quick else particles, seeds)
    title = f"{labels} labels among {len(data.train):,} images of {name}, alpha = {alpha:.3g}"
    printed = [stated(row) for row in rows]
    show(title, printed, list(printed[0]))
    save(out, f"semi_supervised_{name}", rows, picture(rows))


if __name__ == "__main__":
    app()
