"""Priors of a VAE beside each other: likelihood of training and test data, the gap between them, active units.

    python benchmarks/priors.py                # binary digits, two minutes
    python benchmarks/priors.py --data static_mnist --epochs 20

Each prior gets the same networks, seed, batches and steps; none sees validation data, so that nothing stops one that
overfits. The prior made of the training data's own posteriors is the best there is for their mean ELBO; what that is
worth, test data show. The Exemplar VAE leaves each datum's own component out in training.

What a step costs besides the batch: the VampPrior runs the encoder, forward and backward, on its pseudo-inputs, and
exemplars on all training data or ``--subset`` of them. The command prints a table, and leaves a CSV and a PNG;
``--quick`` shows only that everything runs.

Reference: J. Tomczak, M. Welling, "VAE with a VampPrior", AISTATS 2018, https://arxiv.org/abs/1705.07120;
M. Hoffman, M. Johnson, "ELBO surgery", NIPS workshop on Advances in Approximate Bayesian Inference 2016;
S. Norouzi, D. J. Fleet, M. Norouzi, "Exemplar VAE", NeurIPS 2020, https://arxiv.org/abs/2004.04795.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import pyro
import torch
import typer
from figures import BLUE, GREEN, ORANGE, RED, Rows, canvas, save, show
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import priors
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

app = typer.Typer(help="Priors of a VAE beside each other.", add_completion=False)

RESULTS = Path(__file__).parent / "results"
GREYED = 0.1  # how far pseudo-inputs that begin as training images are from black and white
CHUNK = 10  # draws at a time in evaluations, since each of them meets all exemplars
OFF_SCALE = 3.0  # nats left of the first prior's training data that the picture shows
HEADINGS = {
    "train_elbo": "ELBO train",
    "test_elbo": "ELBO test",
    "train_log_px": "log p train",
    "test_log_px": "log p test",
    "gap": "gap",
    "information": "I(x; z)",
    "marginal_kl": "KL(q, p)",
    "seconds": "seconds",
}


class WithoutItself(VAE):
    """A VAE that leaves a datum's own exemplar out of its prior."""

    def forward(self, x: Tensor, index: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``, rows ``index`` of the exemplars."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior.without(index))
            pyro.sample("x", self.decoder(z), obs=x)


@dataclass(frozen=True)
class Setting:
    """What priors are made of.

    Attributes:
        encoder: the guide's.
        train: training images, ``(N, pixels)``.
        z_dim: number of latent dimensions.
        components: number of components and of pseudo-inputs.
        subset: how many exemplars a step takes; all where None.
    """

    encoder: nn.Module
    train: Tensor
    z_dim: int
    components: int
    subset: int | None

    def vamp(self, **options: Any) -> nn.Module:
        """Return a VampPrior."""
        return priors.VampPrior(self.encoder, self.train.shape[1], self.components, **options)


@dataclass(frozen=True)
class Contender:
    """A prior, and the program that trains with it."""

    prior: Callable[[Setting], nn.Module]
    program: type[VAE] = VAE


CONTENDERS = {
    "standard normal": Contender(lambda s: priors.StandardNormal(s.z_dim)),
    "mixture of normals": Contender(lambda s: priors.MixtureOfNormals(s.z_dim, s.components)),
    "VampPrior": Contender(lambda s: s.vamp()),
    "VampPrior, from data": Contender(lambda s: s.vamp(inputs=some(s.train, s.components).clamp(GREYED, 1 - GREYED))),
    "aggregated posterior": Contender(lambda s: priors.Exemplar(s.encoder, s.train, subset=s.subset)),
    "the same without itself": Contender(lambda s: priors.Exemplar(s.encoder, s.train, subset=s.subset), WithoutItself),
    "exemplars without itself": Contender(
        lambda s: priors.Exemplar(s.encoder, s.train, priors.OneScale(), subset=s.subset), WithoutItself
    ),
}


def some(rows: Tensor, n: int) -> Tensor:
    """Return rows drawn without replacement, by the state of torch's generator."""
    return rows[torch.randperm(len(rows))[:n]]


def spaced(rows: Tensor, n: int) -> Tensor:
    """Return rows at equal distances, since data sets may be sorted by their source.

    Example:
        >>> spaced(torch.arange(9), 3)
        tensor([0, 4, 8])
    """
    return rows[torch.linspace(0, len(rows) - 1, min(n, len(rows))).round().long()]


def measured(
    name: str, data: pv.data.Splits, sizes: dict[str, Any], setting: dict[str, Any], training: dict[str, Any], k: int
) -> dict[str, Any]:
    """Train with a prior, and return what it reaches as a row."""
    torch.manual_seed(training["seed"])
    guide, contender = Normal(**sizes), CONTENDERS[name]
    prior = contender.prior(Setting(guide.encoder, data.train, sizes["z_dim"], **setting))
    trained, begun = contender.program(**sizes, prior=prior), perf_counter()
    pv.fit(trained, guide, data.train, **training)
    row: dict[str, Any] = {"prior": name, "seconds": perf_counter() - begun}
    model = VAE(**sizes, prior=prior, decoder=trained.decoder)
    for split, x in (("train", spaced(data.train, len(data.test))), ("test", data.test)):
        found = pv.evaluate(model, guide, x, particles=k, seed=training["seed"], chunk=CHUNK)
        row |= {f"{split}_elbo": float(found.elbo.mean()), f"{split}_log_px": float(found.log_px.mean())}
        row[f"{split}_error"] = float(found.log_px.std()) / len(x) ** 0.5
    row["gap"] = row["train_log_px"] - row["test_log_px"]
    surgery = pv.elbo_surgery(model, guide, data.test)
    row |= {"information": surgery.mutual_information.mean, "marginal_kl": surgery.marginal_kl.mean}
    return row | {"active": pv.active_units(guide, data.test).count, "units": sizes["z_dim"]}


def stated(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as the printed table has it.

    Example:
        >>> stated({"prior": "VampPrior", "gap": 1.26, "active": 8, "units": 10})
        {'prior': 'VampPrior', 'gap': '1.3', 'active': '8 of 10'}
    """
    printed = {heading: f"{row[name]:.1f}" for name, heading in HEADINGS.items() if name in row}
    return {"prior": row["prior"], **printed, "active": f"{row['active']} of {row['units']}"}


MARKS = {
    "train_elbo": ("ELBO, training data", ORANGE, "o"),
    "train_log_px": ("log p(x), training data", RED, "o"),
    "test_elbo": ("ELBO, test data", GREEN, "s"),
    "test_log_px": ("log p(x), test data", BLUE, "s"),
}
BARS = {
    "information": ("information of z about x", GREEN, -0.18),
    "marginal_kl": ("KL of the aggregated posterior from the prior", ORANGE, 0.18),
}


def picture(rows: Rows) -> Figure:
    """Draw likelihoods of training and test data, and what the latents carry."""
    figure, ((left, right),) = canvas(1, 2, width=10.5, height=0.42 * len(rows) + 1.6, sharey=True)
    places = range(len(rows))
    for what, (label, colour, marker) in MARKS.items():
        left.plot([row[what] for row in rows], places, marker, color=colour, label=label, markersize=5)
    for what, (label, colour, shift) in BARS.items():
        right.barh([place + shift for place in places], [row[what] for row in rows], 0.34, color=colour, label=label)
    least = rows[0]["train_elbo"] - OFF_SCALE
    most = max(row[what] for row in rows for what in MARKS)
    left.set(xlabel="nats per image", xlim=(least, most + 0.5), yticks=places, yticklabels=[r["prior"] for r in rows])
    left.invert_yaxis()
    right.set(xlabel="nats, test data", xlim=(0, 1.2 * max(row["information"] for row in rows)))
    for place, row in enumerate(rows):
        if row["test_log_px"] < least:
            text = f" test data far left: {row['test_log_px']:,.0f}"
            left.annotate(text, (least, place), va="center", fontsize=7, color=BLUE)
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the CSV and the PNG.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly trained, to see that it runs.")] = False,
    data: Annotated[str, typer.Option(help="Name of a data set of binary images.")] = "digits",
    only: Annotated[list[str] | None, typer.Option(help="A prior by name; all when left out.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 80,
    components: Annotated[int, typer.Option(help="Components of the mixture, and pseudo-inputs.")] = 50,
    subset: Annotated[int, typer.Option(help="Exemplars that a step takes, from those there are.")] = 2000,
    particles: Annotated[int, typer.Option(help="Draws for each log-likelihood.")] = 500,
    images: Annotated[int, typer.Option(help="Images of each split that are evaluated.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seeds parameters, training and draws.")] = 0,
) -> None:
    """Train a VAE with each prior, and compare what they reach."""
    for name in set(only or ()) - CONTENDERS.keys():
        raise typer.BadParameter(f"unknown prior {name!r}; there are {', '.join(CONTENDERS)}", param_hint="--only")
    splits = pv.data.load(data) if data.startswith("static") else pv.data.load(data, binarize="threshold")
    splits = splits._replace(test=spaced(splits.test, 50 if quick else images))
    sizes = {"x_dim": splits.train.shape[1], "z_dim": 10, "hidden": (200,)}
    setting = {"components": components, "subset": subset if subset < len(splits.train) else None}
    training = {"epochs": 1 if quick else epochs, "seed": seed}
    k = 10 if quick else particles
    rows = [measured(name, splits, sizes, setting, training, k) for name in only or CONTENDERS]
    printed = [stated(row) for row in rows]
    show(f"Priors, {len(splits.test)} images of {data} each for training and test", printed, list(printed[0]))
    save(out, "priors", rows, picture(rows))


if __name__ == "__main__":
    app()
