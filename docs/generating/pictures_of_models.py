"""What each model looks like: draws of it, once it is trained, or the posterior of a textbook's model."""

import importlib
import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks import zoo as measured
from docs.generating import textbook
from docs.generating.writing import ROOT
from ppl_vae import plots, zoo
from ppl_vae.pairing import Pair

Picture = tuple[Figure, str]
SIZES = {"x_dim": 64, "z_dim": 8, "y_dim": 10, "hidden": (200,), "components": 10, "positions": 8, "codes": 16}
EPOCHS, SHAPE, SHOWN = 60, (8, 8), 40
LONGER = 200  # for bits and codes
TEN = "Ten columns of four draws"


@cache
def digits(binarize: str | None = "static") -> pv.data.Splits:
    """Return the embedded digits."""
    return pv.data.load("digits", binarize=binarize)


def drawn(name: str) -> Picture:
    """Return the picture of a model and what it shows."""
    return PICTURES[name]()


@cache
def trained(model: str, guide: str, grey: bool = False, epochs: int = EPOCHS) -> Pair:
    """Return a pair, trained on digits as the benchmark of the zoo trains it."""
    data = digits(None if grey else "static")
    torch.manual_seed(0)
    pair = measured.made((model, guide), SIZES | {"size": len(data.train)})
    measured.fitted((model, guide), pair, measured.beside(pair, data.train, data.info.labels["train"]), epochs)
    return pair


def samples(model: str, guide: str, grey: bool = False, epochs: int = EPOCHS) -> Picture:
    """Draw digits of a trained model, in order of their component where it has one."""
    pair, data = trained(model, guide, grey, epochs), digits()
    like = measured.beside(pair, data.test[:SHOWN], torch.arange(SHOWN) % 10)
    found = pv.sample(pair.model, like=like, n=SHOWN)
    if "y" in found:
        found = {name: value[found["y"].argsort(stable=True)] for name, value in found.items()}
    means = pv.decode(pair.model, found, like=like)["x"]
    order = " in the order of their components" if "y" in found else ""
    caption = f"Draws from the model, trained for {epochs} epochs on {len(data.train):,} digits of 8 x 8 pixels"
    return plots.image_grid(means, SHAPE, columns=10), f"{caption}{order}: the mean of x given the latents."


def by_label(model: str, guide: str) -> Picture:
    """Draw digits of each class."""
    pair, data = trained(model, guide), digits()
    like = (data.test[:SHOWN], torch.arange(SHOWN) % 10)
    found = pv.sample(pair.model, like=like, n=SHOWN)
    means = pv.decode(pair.model, found | ({"y": like[1]} if "y" in found else {}), like=like)["x"]
    caption = f"{TEN}, given the class 0 to 9, from the model trained for {EPOCHS} epochs on digits of 8 x 8 pixels."
    return plots.image_grid(means, SHAPE, columns=10), caption


def missing() -> Picture:
    """Fill in the lower halves of digits."""
    pair, x = trained("missing", "missing"), digits().test[:10]
    filled = pv.impute(pair.model, pair.guide, (x, torch.ones_like(x, dtype=torch.bool)), observed=UPPER)
    figure = plots.inpainting(x, UPPER, filled.mean, filled.draws[:2], SHAPE)
    return figure, "Digits, their upper halves, and the lower halves filled in: the mean and two draws."


UPPER = torch.arange(64) < 32


def components(bayesian: bool) -> Picture:
    """Draw the probabilities of pixels of a mixture's components."""
    from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
    from ppl_vae.models.bernoulli_mixture import BernoulliMixture

    x = digits().train
    if bayesian:
        found = pv.cavi(BayesianBernoulliMixture(x_dim=64, y_dim=20).double(), x.double(), progress=False)
        by = "mean field: posterior means"
        probability = found.q["probability"].mean
    else:
        model = BernoulliMixture(x_dim=64, y_dim=20).double()
        pv.em(model, x.double(), progress=False)
        probability, by = torch.sigmoid(model.pixel_logits.detach()), "EM"
    caption = f"The pixels' probabilities in twenty components, fitted to digits by {by}."
    caption += " Grey ones are not used." if bayesian else ""
    return plots.image_grid(probability.float(), SHAPE, columns=10), caption


def gan() -> Picture:
    """Draw digits of a generator that was trained against a critic."""
    from ppl_vae.models.gan import GAN

    torch.manual_seed(0)
    model = GAN(x_dim=64, z_dim=8, hidden=(200, 200), generator=None, likelihood=pv.nets.ToDelta())
    critic = pv.nets.MLP(64, (200,), 1)
    adams = [torch.optim.Adam(part.parameters(), lr=5e-4, betas=(0.5, 0.9)) for part in (model, critic)]
    step = pv.gan_step(model, critic, optimizer=adams[0], critic_optimizer=adams[1])
    pv.fit(step=step, data=digits(None).train, epochs=600, progress=False)
    found = pv.sample(model, shape=(64,), n=SHOWN)["x"]
    return plots.image_grid(found, SHAPE, columns=10), "Draws from a generator after 600 epochs against a critic."


def words() -> ModuleType:
    """Return the benchmark of digits and their names, a script beside its figures."""
    sys.path.append(str(ROOT / "benchmarks"))
    return importlib.import_module("words")


def transformer() -> Picture:
    """Draw sequences of tokens: the names of digits, letter by letter."""
    from ppl_vae.models.token_transformer import TokenTransformer

    names = words().WORDS
    letters = pv.nets.Characters(names)
    x = letters.encode(names * 20)
    model = TokenTransformer(x_dim=letters.length, y_dim=letters.size)
    pair = Pair(model, zoo_guide("empty"))
    pv.fit(model, pair.guide, x, epochs=40, optimizer=partial(torch.optim.Adam, lr=3e-3), progress=False)
    with torch.no_grad():
        probability = model.transformer(x[:10]).softmax(-1)
    given = probability.gather(-1, x[:10, :, None])[..., 0]
    figure, axes = plots.canvas(width=4.6, height=3.4)
    axes.imshow(given, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, word in enumerate(names):
        for column, letter in enumerate(word.ljust(letters.length, "·")):
            axes.text(column, row, letter, ha="center", va="center")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    return figure, (
        "The names of the digits, letter by letter: the darker, the more probable given the letters before, "
        "after 40 epochs on names alone. Beginnings of names are what is left to chance."
    )


def zoo_guide(name: str) -> nn.Module:
    """Return a guide that needs no options."""
    return zoo.build(zoo.find("guides", name), {})


def text_to_image() -> Picture:
    """Draw digits from their names, trained as the benchmark of words trains them."""
    data = pv.data.load("digits", binarize="threshold")
    by_names, adam = words(), partial(torch.optim.Adam, lr=1e-3)
    model, guide = by_names.discrete_vae(data, 60, 0)
    transformer = by_names.transformer_of(guide, data, 20, 0)
    model.prior = pv.priors.AutoregressiveCodes(by_names.POSITIONS, by_names.CODES, transformer=transformer)
    pv.fit(model, guide, data, pv.objectives.Concrete(0.5), epochs=90, optimizer=adam, progress=False)
    joint = by_names.text_to_image(model, guide, data, 60, 0)
    found = by_names.images(joint, model)[1:, :4].transpose(0, 1).flatten(0, 1)
    return plots.image_grid(found, SHAPE, columns=10), f"{TEN}, from the words “zero” to “nine”."


def relaxed_grid() -> Picture:
    """Draw digits of codes on a grid."""
    return samples("dvae", "relaxed", epochs=LONGER)


def scatter(points: Tensor, labels: Tensor | None, width: float = 4.2) -> tuple[Figure, object]:
    """Draw points in the plane, by colour where they have labels."""
    figure, axes = plots.canvas(width=width, height=3.4)
    colour = [plots.COLOURS[int(k) % len(plots.COLOURS)] for k in labels] if labels is not None else plots.COLOURS[-1]
    axes.scatter(*points.T, s=6, c=colour, alpha=0.7, linewidths=0)
    axes.set(xlabel="x1", ylabel="x2", aspect="equal")
    return figure, axes


def clouds(spread: float = 0.6) -> Tensor:
    """Return four clouds of a hundred points."""
    torch.manual_seed(1)
    centres = torch.tensor([[-2.0, -1.5], [2.2, -1.0], [-1.2, 2.0], [2.0, 2.4]])
    axes = [[[1.4, 0.0], [0.6, 0.5]], [[0.7, 0.0], [0.0, 1.2]], [[1.0, 0.0], [-0.8, 0.5]], [[0.8, 0.0], [0.0, 0.8]]]
    shapes = torch.tensor(axes)
    return (centres[:, None] + spread * torch.randn(4, 100, 2) @ shapes.mT).flatten(0, 1).double()


def ellipse(axes: object, mean: Tensor, covariance: Tensor, colour: str) -> None:
    """Draw where a normal density is two standard deviations from its mean."""
    angle = torch.linspace(0, 2 * torch.pi, 100, dtype=mean.dtype)
    circle = torch.stack([angle.cos(), angle.sin()])
    axes.plot(*(mean[:, None] + 2 * torch.linalg.cholesky(covariance) @ circle).detach(), color=colour, linewidth=1.5)


def gaussian_mixture() -> Picture:
    """Draw a mixture that EM fitted."""
    from ppl_vae.models.gaussian_mixture import GaussianMixture

    model, x = GaussianMixture(x_dim=2, y_dim=4).double(), clouds()
    found = pv.em(model, x, restarts=3, progress=False)
    figure, axes = scatter(x, found.labels)
    grid, density = densities(found.log_density, x)
    axes.contour(*grid, density.exp(), levels=8, colors="#555555", linewidths=0.6)
    return figure, "Points in the plane, coloured by the component that `pv.em` finds, with the density p(x)."


def densities(of: Callable[[Tensor], Tensor], x: Tensor, n: int = 80) -> tuple[list[Tensor], Tensor]:
    """Return a grid over data in the plane, and a log density there."""
    low, high = x.min(0).values - 1, x.max(0).values + 1
    axes = [torch.linspace(float(a), float(b), n, dtype=x.dtype) for a, b in zip(low, high, strict=True)]
    grid = [*torch.meshgrid(*axes, indexing="xy")]
    return grid, of(torch.stack(grid, -1).flatten(0, 1)).detach().reshape(n, n)


def bayesian_mixture(name: str) -> Picture:
    """Draw the posterior of a mixture, which mean field found."""
    model, x = zoo.build(zoo.find("models", name), {"x_dim": 2, "y_dim": 8}).double(), clouds()
    found = pv.cavi(model, x, iterations=500, progress=False)
    figure, axes = scatter(x, found.labels)
    draws = found.sample(20)
    used = {k for k, n in enumerate(found.labels.bincount().tolist()) if n >= 10}
    for means, precisions in zip(draws["mean"], draws["precision"], strict=True):
        for k in used:
            precision = precisions[k] if precisions[k].dim() == 2 else precisions[k].diag()
            ellipse(axes, means[k], precision.inverse(), plots.COLOURS[k % len(plots.COLOURS)] + "40")
    axes.set(xlim=(-6, 5), ylim=(-5, 5))
    return figure, (
        f"Eight components offered, {len(used)} with ten points or more: points coloured by their component, with "
        "twenty draws of means and precisions from the posterior that `pv.cavi` finds (ellipses of two standard "
        "deviations)."
    )


PICTURES: dict[str, Callable[[], Picture]] = {
    "bayesian_bernoulli_mixture": partial(components, bayesian=True),
    "bayesian_diagonal_mixture": partial(bayesian_mixture, "bayesian_diagonal_mixture"),
    "bayesian_gaussian_mixture": partial(bayesian_mixture, "bayesian_gaussian_mixture"),
    "bayesian_linear_regression": textbook.regression,
    "bernoulli_mixture": partial(components, bayesian=False),
    "beta_bernoulli": textbook.probability,
    "conditional": partial(by_label, "conditional", "conditional"),
    "correlated_gaussian": textbook.correlated,
    "discrete_vae": partial(samples, "discrete_vae", "categorical", epochs=LONGER),
    "dvae": relaxed_grid,
    "gan": gan,
    "gaussian_mixture": gaussian_mixture,
    "gmvae": partial(samples, "gmvae", "normal"),
    "hierarchical": partial(samples, "hierarchical", "hierarchical"),
    "linear_gaussian": partial(samples, "linear_gaussian", "normal", grey=True),
    "missing": missing,
    "normal_gamma": textbook.normal_gamma,
    "probabilistic_pca": partial(samples, "probabilistic_pca", "normal", grey=True),
    "semi_supervised": partial(by_label, "semi_supervised", "semi_supervised"),
    "sigmoid_belief_network": partial(samples, "sigmoid_belief_network", "bernoulli", epochs=LONGER),
    "text_to_image": text_to_image,
    "token_transformer": transformer,
    "vae": partial(samples, "vae", "normal"),
    "vq_vae": partial(samples, "vq_vae", "nearest_code"),
}
