"""Train every pair of the zoo on real images: ELBO, log-likelihood, what its latents are used for, and samples.

    python -m benchmarks.zoo [NAME ...] [--grey] [--data digits] [--epochs N] [--quick]

Each model with each guide that fits it, and the VAE with every prior, has the same sizes, the same number of epochs and
the same Adam. Bounds are those of the test images in nats an image; log-likelihoods are importance-weighted, and the
gain of a prior is that over the standard normal, image by image. The first row is the model that has no latents:
independent pixels. Results are written after every pair.

Pixels are zeros and ones. With ``--grey`` they are from 0 to 1, for the models that take those, and the VAE with every
likelihood: log densities, which normals make as large as their smallest scale lets them, and of discretised logistics
log probabilities of 256 values.
"""

import argparse
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro import poutine
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import ppl_vae as pv
from benchmarks.figures import canvas
from benchmarks.speed import commands
from ppl_vae import contract, objectives, pairing, zoo
from ppl_vae.batches import as_batch
from ppl_vae.checking import supports
from ppl_vae.evaluation import standard_error
from ppl_vae.latents import has_units
from ppl_vae.pairing import Names, Pair

SIZES = {"z_dim": 20, "y_dim": 10, "hidden": (200,), "components": 50, "positions": 16, "codes": 32}
FEW_CODES = {"relaxed": {"codes": 8}}  # whose noise between corners costs nats
RISING = objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, steps=1500))
WARM_UP = {"relaxed": RISING, "ladder": RISING}  # whose latents else stay unused, or are found late
TEST, PARTICLES = 1000, 500
SHOWN = 16


@dataclass(frozen=True)
class Row:
    """What became of a pair."""

    pair: str
    objective: str
    elbo: float
    log_px: float
    error: float
    latents: str
    seconds: float
    gain: str = ""


@dataclass(frozen=True)
class Found:
    """What is known of a trained pair: its row, the log-likelihood of each test image, and samples."""

    row: Row
    log_px: Tensor
    samples: Tensor


PLAIN = ("vae", "normal", "StandardNormal")
# Nothing for test images; in other benchmarks: of training images, priors.py; of tokens, words.py; mixtures.py.
ELSEWHERE = {"local", "Exemplar", "token_transformer", "gaussian_mixture"}


def parts(grey: bool) -> list[str]:
    """Return what a VAE may have in place of its own: likelihoods of grey pixels, or priors besides the first."""
    priors = pairing.priors_of_vectors()
    heads = [names[-1] for names in pairing.variants() if names[-1] not in priors]
    return heads if grey else [prior for prior in priors if prior != PLAIN[-1]]


def wanted(chosen: list[str], grey: bool) -> list[Names]:
    """Return the names of the pairs, those that a person named if any; before other priors the standard normal."""
    vaes = [(*PLAIN[:2], part) for part in parts(grey)]
    found = [*(names for names in pairing.names() if names != PLAIN[:2]), PLAIN, *vaes]
    kept = [names for names in found if not ELSEWHERE & set(names) and (not chosen or set(chosen) & set(names))]
    return [PLAIN, *kept] if set(vaes) & set(kept) and PLAIN not in kept else kept


def beside(pair: Pair, x: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Return images with their labels, or with a mask that hides a fifth of the pixels, for programs that take them."""
    generator = torch.Generator().manual_seed(0)
    given = {"y": labels, "observed": torch.rand(x.shape, generator=generator) > 0.2}
    others = tuple(given[name] for name in pair.arguments if name in given)
    return (x, *others) if others else x


def made(names: Names, sizes: Mapping[str, Any]) -> Pair:
    """Return a pair in single precision; both at once, since some priors are made of the guide's encoder."""
    pair = pairing.make(*names, sizes=sizes | FEW_CODES.get(names[1], {}))
    return Pair(pair.model.float(), pair.guide.float())


def takes(names: Names, data: pv.data.Splits, sizes: Mapping[str, Any], grey: bool) -> bool:
    """Tell whether the likelihood of a model is one of grey pixels, or else of zeros and ones alone."""
    pair, labels = made(names, sizes), data.info.labels["test"][:2]
    as_they_are, darker = (supports(pair.model, beside(pair, x, labels)) for x in (data.test[:2], data.test[:2] / 2))
    return as_they_are and (grey or not darker)


def suitable(names: Names, pair: Pair, batch: Any) -> Mapping[str, Any]:
    """Return the bound to train on: the ELBO, its gradient by leave-one-out baselines where draws have no path."""
    scored = pv.weigh(pair.model, pair.guide, batch).score
    if scored:
        return {"objective": objectives.rloo, "particles": 4}
    return {"objective": deepcopy(WARM_UP.get(names[1], objectives.elbo))}  # each pair is warmed up anew


def used(pair: Pair, test: Any) -> str:
    """Say how many units of each latent are active, and in effect how many codes are in use."""
    trace = poutine.trace(pair.guide).get_trace(*as_batch(test))
    sites = dict(contract.latents(trace))
    units = [name for name, site in sites.items() if has_units(site)]
    parts = []
    if units:
        active = pv.active_units(pair.guide, test, sites=units, draws=10, progress=False).to_dict()["sites"]
        parts += [f"{name}: {found['active']} of {found['units']} active" for name, found in active.items()]
    if codes := [name for name in sites if name not in units]:
        found = pv.perplexity(pair.guide, test, sites=codes, progress=False)
        parts += [f"{name}: {value:.1f} of {found.codes[name]} codes" for name, value in found.values.items()]
    return ", ".join(parts)


def fitted(names: Names, pair: Pair, train: Any, epochs: int) -> str:
    """Fit a pair in place, mixtures that are summed out by EM, and say by what."""
    if names[1] == "empty":
        pv.em(pair.model, train, iterations=epochs, progress=False)
        return "EM"
    how = suitable(names, pair, tuple(part[:8] for part in as_batch(train)))
    pv.fit(pair.model, pair.guide, train, epochs=epochs, batch_size=100, optimizer=ADAM, progress=False, **how)
    return how["objective"].facts.name


def trained(names: Names, data: pv.data.Splits, epochs: int, sizes: Mapping[str, Any]) -> Found:
    """Train a pair, and return what became of it."""
    torch.manual_seed(0)
    pair = made(names, sizes)
    train = beside(pair, data.train, data.info.labels["train"])
    test = beside(pair, data.test[:TEST], data.info.labels["test"][:TEST])
    started = time.perf_counter()
    way = fitted(names, pair, train, epochs)
    seconds = time.perf_counter() - started
    found = pv.evaluate(pair.model, pair.guide, test, particles=PARTICLES, progress=False)
    of = (" + ".join(names), way, float(found.elbo.mean()), found.mean, found.se)
    draws = pv.sample(pair.model, like=test, n=SHOWN)
    samples = pv.decode(pair.model, draws, like=test)["x"]
    return Found(Row(*of, used(pair, test), seconds), found.log_px, samples)


def gain(found: Tensor, plain: Tensor) -> str:
    """Say by how many nats an image a log-likelihood is above another, with its standard error over images.

    Example:
        >>> gain(torch.tensor([-80.0, -90.0]), torch.tensor([-81.0, -91.0]))
        '+1.00 ± 0.00'
    """
    difference = found - plain
    return f"{difference.mean():+.2f} ± {standard_error(difference):.2f}"


ADAM = partial(torch.optim.Adam, lr=1e-3)


def without_latents(data: pv.data.Splits, grey: bool) -> Row:
    """Return the log-likelihood of independent pixels; grey ones have one scale."""
    mean = data.train.mean(0).clamp(1e-4, 1 - 1e-4)
    fn = Normal(mean, (data.train - mean).square().mean().sqrt()) if grey else Bernoulli(mean)
    log_px = fn.log_prob(data.test[:TEST]).sum(-1)
    return Row("independent pixels", "", float("nan"), float(log_px.mean()), float(log_px.std() / TEST**0.5), "", 0.0)


def picture(samples: Mapping[str, Tensor], shape: tuple[int, int]) -> Figure:
    """Draw samples of every pair."""
    columns = 6
    figure, grid = canvas(-(-len(samples) // columns), columns, 12.0, 2.3 * -(-len(samples) // columns))
    for axes in grid.flat:
        axes.axis("off")
    side = int(SHOWN**0.5)
    for axes, (name, x) in zip(grid.flat, samples.items(), strict=False):
        tiles = x.reshape(side, side, *shape).permute(0, 2, 1, 3).reshape(side * shape[0], side * shape[1])
        axes.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(name.replace(" + ", "\n"), fontsize=7)
    return figure


def table(rows: list[Row], title: str) -> Table:
    """Return the rows as printed."""
    headings = ("pair", "trained on", "test ELBO", "log p(x)", "gain", "latents", "seconds")
    drawn = Table(*headings, title=title, title_justify="left", box=MARKDOWN)
    for row in rows:
        cells = (f"{row.elbo:.2f}", f"{row.log_px:.2f} ± {row.error:.2f}", row.gain, row.latents, f"{row.seconds:.0f}")
        drawn.add_row(row.pair, row.objective, *cells)
    return drawn


def options() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = commands.parser(__doc__, rounds=1)
    parser.add_argument("names", nargs="*", help="of models, guides, priors or likelihoods; all pairs if left out")
    parser.add_argument("--grey", action="store_true", help="pixels from 0 to 1, for the models that take those")
    parser.add_argument("--data", default="mnist", help="data set with labels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data (default: %(default)s)")
    given = parser.parse_args()
    if unknown := set(given.names) - {*zoo.discover("models"), *zoo.discover("guides"), *parts(given.grey), PLAIN[-1]}:
        parser.error(f"no program is called {', '.join(sorted(unknown))}; see ppl-vae list")
    return given


def main() -> None:
    """Train, print and draw."""
    given = options()
    data = pv.data.load(given.data, binarize=None if given.grey else "static")
    sizes = SIZES | {"x_dim": data.train.shape[1], "size": len(data.train)}
    epochs = 1 if given.quick else given.epochs
    rows, samples, plain = [without_latents(data, given.grey)], {}, None
    name, pixels = ("zoo_grey", "grey") if given.grey else ("zoo", "static binarization")
    for names in wanted(given.names, given.grey):
        if not takes(names, data, sizes, given.grey):
            continue
        found = trained(names, data, epochs, sizes)
        plain = found.log_px if names == PLAIN else plain
        of_prior = plain is not None and len(names) == len(PLAIN) and names != PLAIN
        rows.append(replace(found.row, gain=gain(found.log_px, plain)) if of_prior else found.row)
        samples[found.row.pair] = found.samples
        Console(width=180).print(*asdict(rows[-1]).values())
        commands.write(name, {row.pair: asdict(row) for row in rows}, picture(samples, data.info.shape))
    Console(width=180).print(table(rows, f"{given.data}, {pixels}, epochs: {epochs}"))


if __name__ == "__main__":
    main()
