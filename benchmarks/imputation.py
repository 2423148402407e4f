"""Fill in missing pixels by each method: their error beside that of the mean image, time, and pictures.

    python -m benchmarks.imputation [--epochs N] [--quick]

A VAE on the built-in digits (no download), then the test images with their lower half missing, and with a
share of their pixels replaced by coin flips, where it is known which. The error of a missing pixel is minus
the logarithm of the probability that its conditional mean gives its true value.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.speed import commands
from ppl_vae import plots
from ppl_vae.guides.normal import Normal
from ppl_vae.imputing import Imputation, Method, gibbs, pseudo_gibbs, resampled
from ppl_vae.models.vae import VAE

NOISE = 0.3  # share of pixels replaced by coin flips
SHOWN, DRAWS = 8, 3


def trained(data: pv.data.Splits, epochs: int) -> tuple[nn.Module, nn.Module]:
    """Train a VAE with eight latents."""
    torch.manual_seed(0)
    sizes = {"x_dim": data.train.shape[1], "z_dim": 8, "hidden": (200,)}
    model, guide = VAE(**sizes), Normal(**sizes)
    pv.fit(model, guide, data, objective=pv.objectives.iwae, particles=5, epochs=epochs, progress=False)
    return model, guide


def error(mean: Tensor, x: Tensor, missing: Tensor) -> dict[str, float]:
    """Return nats of a missing pixel, and the share of missing pixels that rounding gets right."""
    chance = torch.where(x > 0.5, mean, 1 - mean)[missing].clamp_min(1e-3)
    return {"nats a pixel": float(-chance.log().mean()), "right": float((chance > 0.5).double().mean())}


def measured(
    methods: Mapping[str, Method], fill: Callable[..., Imputation], baseline: Tensor, x: Tensor, observed: Tensor
) -> tuple[list[dict[str, Any]], dict[str, Imputation]]:
    """Return a row for each method, and what it found."""
    rows = [{"method": "mean image", "seconds": 0.0, **error(baseline.expand(x.shape), x, ~observed)}]
    found = {}
    for name, method in methods.items():
        started = time.perf_counter()
        found[name] = fill(method=method)
        rows.append({"method": name, "seconds": time.perf_counter() - started, **error(found[name].mean, x, ~observed)})
    return rows, found


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return the rows as printed."""
    made = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        cells = (row["nats a pixel"], row["right"], row["seconds"])
        made.add_row(row["method"], f"{cells[2]:.1f}", f"{cells[0]:.3f}", f"{cells[1]:.1%}")
    return made


def methods(steps: int) -> dict[str, Method]:
    """Return the methods, by name."""
    return {
        "importance resampling": resampled,
        "pseudo-Gibbs": partial(pseudo_gibbs, steps=steps),
        "Metropolis-within-Gibbs": partial(gibbs, steps=steps),
    }


def tasks(x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what is given and which of its pixels count, by name."""
    generator = torch.Generator().manual_seed(0)
    upper = (torch.arange(x.shape[1]) < x.shape[1] // 2).expand(x.shape)
    clean = torch.rand(x.shape, generator=generator) >= NOISE
    flips = torch.randint(0, 2, x.shape, generator=generator).to(x)
    return {"inpainting": (x, upper), "denoising": (torch.where(clean, x, flips), clean)}


def main() -> None:
    """Train, fill in, and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=100, help="of training (default: %(default)s)")
    options.add_argument("--quick", action="store_true", help="little of everything, to see that it runs")
    given = options.parse_args()
    data = pv.data.load("digits", binarize="threshold")
    x = data.test[:20] if given.quick else data.test
    started = time.perf_counter()
    model, guide = trained(data, 1 if given.quick else given.epochs)
    print(f"Trained in {time.perf_counter() - started:.0f} s")
    baseline = (data.train.sum(0) + 1) / (len(data.train) + 2)
    for task, (seen, observed) in tasks(x).items():
        fill = partial(pv.impute, model, guide, seen, observed, draws=5, progress=False)
        rows, found = measured(methods(10 if given.quick else 200), fill, baseline, x, observed)
        missing = float((~observed).double().mean())
        Console(width=100).print(table(f"{task}: {missing:.0%} of the pixels of {len(x)} digits missing", rows))
        for imputation in found.values():
            print(imputation)
        best = found["importance resampling"]
        some = (part[:SHOWN] for part in (x, observed, best.mean))
        noisy = None if seen is x else seen[:SHOWN]
        figure = plots.inpainting(*some, best.draws[:DRAWS, :SHOWN], data.info.shape, noisy=noisy)
        commands.write(task, {"rows": rows}, figure)


if __name__ == "__main__":
    main()
