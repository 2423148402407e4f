"""Digits from their names: discrete codes of images, a transformer over them, and one over words and codes.

    python benchmarks/words.py

A discrete VAE gives each 8 x 8 digit a grid of 4 x 4 codes. Its bound on log p(x) is taken with the uniform prior of
the codes, with a transformer trained on the codes that the guide draws, and with all of it trained on together. Another
transformer reads the letters of a digit's name before its codes, and generates a digit from a word. The command prints
the bounds on test data, and leaves a CSV of them and a PNG of images from nothing and from each word; ``--quick`` shows
only that everything runs.

Reference: A. Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, https://arxiv.org/abs/2102.12092; A. van
den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
https://arxiv.org/abs/1711.00937.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from figures import canvas, save, show
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.guides.categorical import Categorical
from ppl_vae.guides.empty import Empty
from ppl_vae.models.dvae import DVAE
from ppl_vae.models.text_to_image import TextToImage
from ppl_vae.models.token_transformer import TokenTransformer

app = typer.Typer(help="Digits from their names.", add_completion=False)

RESULTS = Path(__file__).parent / "results"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHAPE, CHANNELS, CODES, POSITIONS = (8, 8), (64,), 16, 16
SHOWN = 10  # images of each row


def adam(rate: float) -> Any:
    """Return what makes an optimizer of parameters."""
    return lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], lr=rate)


def discrete_vae(data: pv.data.Splits, epochs: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Train a discrete VAE under the uniform prior, codes relaxed for the gradient."""
    torch.manual_seed(seed)
    uniform = pv.priors.UniformCodes(POSITIONS, CODES)
    model = DVAE(codes=CODES, shape=SHAPE, channels=CHANNELS, prior=uniform)
    encoder = nn.Sequential(pv.nets.GridEncoder(SHAPE, CODES, CHANNELS), pv.nets.ToCodes())
    guide = Categorical(encoder=encoder)
    pv.fit(model, guide, data, pv.objectives.Concrete(0.7), epochs=epochs, optimizer=adam(3e-3), seed=seed)
    return model, guide


@torch.no_grad()
def codes_of(guide: nn.Module, x: Tensor) -> Tensor:
    """Draw the codes of images, whole numbers ``(N, POSITIONS)``."""
    return guide.encoder(x).sample().argmax(-1)


def transformer_of(guide: nn.Module, data: pv.data.Splits, epochs: int, seed: int) -> nn.Module:
    """Train a transformer on codes that the guide draws of the training images."""
    torch.manual_seed(seed)
    model = TokenTransformer(x_dim=POSITIONS, y_dim=CODES)
    train, valid = codes_of(guide, data.train), codes_of(guide, data.valid)
    pv.fit(model, Empty(), train, epochs=epochs, valid=valid, optimizer=adam(2e-3), seed=seed)
    return model.transformer


def texts(letters: pv.nets.Characters, labels: Tensor) -> Tensor:
    """Return the words of digits, ``(N, letters.length)``."""
    return letters.encode([WORDS[label] for label in labels.tolist()])


def text_to_image(model: nn.Module, guide: nn.Module, data: pv.data.Splits, epochs: int, seed: int) -> nn.Module:
    """Train a transformer on words and codes, which the guide draws anew for each batch; the decoder is the VAE's."""
    torch.manual_seed(seed)
    letters = pv.nets.Characters(WORDS)
    sizes = {"y_dim": letters.size, "text_length": letters.length, "positions": POSITIONS, "codes": CODES}
    joint = TextToImage(x_dim=SHAPE[0] * SHAPE[1], decoder=model.decoder, **sizes)
    for part in (model.decoder, guide):
        part.requires_grad_(False)
    parts = {"train": data.train, "valid": data.valid}
    given = {split: (x, texts(letters, data.info.labels[split][: len(x)])) for split, x in parts.items()}
    pv.fit(joint, guide, given["train"], epochs=epochs, valid=given["valid"], optimizer=adam(2e-3), seed=seed)
    return joint


@torch.no_grad()
def images(joint: nn.Module, model: nn.Module) -> Tensor:
    """Return a row of images from the prior of the codes, and one from each word, ``(11, SHOWN, pixels)``."""
    letters = pv.nets.Characters(WORDS)
    rows = [model.prior().sample((SHOWN,))]
    rows += [joint.codes_given(letters.encode([word] * SHOWN)).sample() for word in WORDS]
    return torch.stack([model.decoder(c).mean for c in rows])


def picture(drawn: Tensor) -> Figure:
    """Draw a row of images for each word, and one without a word."""
    figure, grid = canvas(len(drawn), SHOWN, width=6.0, height=6.6)
    for row, name, places in zip(drawn, ["(no word)", *WORDS], grid, strict=True):
        for image, axes in zip(row, places, strict=True):
            axes.imshow(1 - image.reshape(SHAPE).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(False)
        places[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def bounded(name: str, model: nn.Module, guide: nn.Module, data: pv.data.Splits, particles: int) -> dict[str, Any]:
    """Return the bounds of a model on the test data, nats per datum."""
    found = pv.evaluate(model, guide, data, particles=particles)
    return {"prior": name, "elbo": found.elbo.mean().item(), f"L_{particles}": found.log_px.mean().item()}


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the CSV and the PNG.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly trained, to see that it runs.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the digits, of a training.")] = 60,
    particles: Annotated[int, typer.Option(help="Draws for each bound.")] = 100,
    seed: Annotated[int, typer.Option(help="Seeds parameters, training and draws.")] = 0,
) -> None:
    """Train a discrete VAE, transformers over its codes, and draw digits from their names."""
    data = pv.data.load("digits", binarize="threshold")
    data = pv.data.Splits(*(part[:60] for part in data[:3]), info=data.info) if quick else data
    epochs, particles = (1, 5) if quick else (epochs, particles)
    model, guide = discrete_vae(data, epochs, seed)
    rows = [bounded("uniform", model, guide, data, particles)]
    transformer = transformer_of(guide, data, max(1, epochs // 3), seed)
    model.prior = pv.priors.AutoregressiveCodes(POSITIONS, CODES, transformer=transformer)
    rows.append(bounded("transformer, trained on the codes", model, guide, data, particles))
    longer = epochs * 3 // 2  # a learned prior lets codes say more
    pv.fit(model, guide, data, pv.objectives.Concrete(0.5), epochs=longer, optimizer=adam(1e-3), seed=seed)
    rows.append(bounded("transformer, all trained together", model, guide, data, particles))
    joint = text_to_image(model, guide, data, epochs, seed)
    show(f"Bounds on log p(x), {len(data.test)} test images of binary digits, nats", rows, list(rows[0]))
    save(out, "words", rows, picture(images(joint, model)))


if __name__ == "__main__":
    app()
