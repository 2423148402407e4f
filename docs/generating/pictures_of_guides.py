"""What each guide looks like: its draws, upon the exact posterior where that can be listed."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks import zoo as measured
from docs.generating.pictures_of_models import LONGER, SHAPE, SIZES, Picture, digits, gaussian_mixture, trained
from ppl_vae import plots, zoo
from ppl_vae.batches import as_batch
from ppl_vae.pairing import Pair

PLANE = SIZES | {"z_dim": 2, "components": 3}
EPOCHS, DRAWS, POINTS, REACH = 40, 150, 110, 5.0
ORANGE = plots.COLOURS[1]


def drawn(name: str) -> Picture:
    """Return the picture of a guide and what it shows."""
    return PICTURES[name]()


class Values(dist.TorchDistribution):
    """Particles at given places, each of density one, so that a weight is the joint density there."""

    support = dist.constraints.real_vector
    has_rsample = True
    arg_constraints: ClassVar[dict] = {}

    def __init__(self, values: Tensor, batch_shape: Any = ()):
        self.values = values
        super().__init__(torch.Size(batch_shape), values.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: None = None) -> "Values":
        """Return the same for a batch."""
        return Values(self.values, batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the places, one a particle."""
        places = self.values[:, None] if len(self.batch_shape) > 1 else self.values
        return places.expand(*self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros."""
        return value.new_zeros(value.shape[:-1])


class Places(nn.Module):
    """A guide that draws given places at a site."""

    def __init__(self, sites: dict[str, Tensor]):
        super().__init__()
        self.sites = sites

    def forward(self, x: Tensor, *_: Tensor) -> None:
        """Draw them for each datum."""
        with pyro.plate("data", x.shape[0], dim=-1):
            for name, values in self.sites.items():
                pyro.sample(name, Values(values))


def grid() -> Tensor:
    """Return places in the plane, row by row."""
    line = torch.linspace(-REACH, REACH, POINTS)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)


@torch.no_grad()
def exact(model: nn.Module, batch: Any, sites: dict[str, Tensor]) -> Tensor:
    """Return the posterior density on the grid, ``(B, POINTS, POINTS)``, its largest value being one."""
    log_joint = pv.weigh(model, Places(sites), batch, particles=POINTS**2).log_w
    return (log_joint - log_joint.max(0).values).exp().mT.reshape(-1, POINTS, POINTS)


def fitted(model: str, guide: str, sizes: dict[str, Any], epochs: int = EPOCHS, grey: bool = False) -> Pair:
    """Return a pair with latents in the plane, trained on digits."""
    data = digits(None if grey else "static")
    torch.manual_seed(3)
    pair = measured.made((model, guide), sizes | {"size": len(data.train)})
    if "index" in pair.arguments:  # it has something for training data alone
        pv.fit(pair.model, pair.guide, data.train, epochs=epochs, progress=False)
    else:
        measured.fitted((model, guide), pair, measured.beside(pair, data.train, data.info.labels["train"]), epochs)
    return pair


def three(pair: Pair, grey: bool = False) -> Any:
    """Return three training digits, with what else the programs take of them."""
    data = digits(None if grey else "static")
    rows = torch.tensor([0, 4, 8])
    batch = as_batch(measured.beside(pair, data.train, data.info.labels["train"]))
    batch = tuple(part[rows] for part in batch)
    return (*batch, rows) if "index" in pair.arguments else batch


def plane(model: str, guide: str, grey: bool = False, sizes: dict[str, Any] = PLANE) -> Picture:
    """Draw a guide's draws upon the exact posteriors of three digits."""
    pair = fitted(model, guide, sizes, grey=grey)
    batch = three(pair, grey)
    torch.manual_seed(0)
    values = pv.weigh(pair.model, pair.guide, batch, particles=DRAWS).values["z"]
    known = tuple(part for name, part in zip(pair.arguments, batch, strict=True) if name != "index")
    return panels(batch[0], exact(pair.model, known, {"z": grid()}), values, model, guide)


def panels(x: Tensor, density: Tensor, draws: Tensor, model: str, guide: str, names: tuple = ("z1", "z2")) -> Picture:
    """Draw one panel for each of three digits, and each digit in the corner of its own."""
    figure, axes = plots.canvas(1, 3, width=8.0, height=2.9)
    line = torch.linspace(-REACH, REACH, POINTS)
    for place, image, p, z in zip(axes, x, density, draws.unbind(-2), strict=True):
        place.contourf(line, line, p, levels=[0.02, 0.1, 0.25, 0.5, 0.75, 1.01], cmap="Greys", alpha=0.8)
        place.plot(*z.detach().reshape(-1, 2).T, ".", color=ORANGE, markersize=2.5, alpha=0.8)
        middle = (p.unsqueeze(-1) * grid().reshape(POINTS, POINTS, 2)).sum((0, 1)) / p.sum()
        place.set(xlim=around(middle[0]), ylim=around(middle[1]), aspect="equal", xlabel=names[0])
        corner = place.inset_axes((0.02, 0.76, 0.22, 0.22))
        corner.imshow(image.reshape(SHAPE), cmap="gray_r", vmin=0, vmax=1)
        corner.set(xticks=[], yticks=[])
    axes[0].set_ylabel(names[1])
    caption = (
        f"Draws from the guide (orange) upon the exact posterior (grey) of three digits, after {EPOCHS} epochs with "
        f"`models/{model}.py` and two latents."
    )
    return figure, caption


def around(middle: Tensor) -> tuple[float, float]:
    """Return the ends of an axis."""
    at = min(max(float(middle), -REACH + 1.6), REACH - 1.6)
    return at - 1.6, at + 1.6


def layers(guide: str) -> Picture:
    """Draw both layers of a hierarchy, of one unit each."""
    pair = fitted("hierarchical", guide, PLANE | {"z_dim": 1})
    batch = three(pair)
    torch.manual_seed(0)
    found = pv.weigh(pair.model, pair.guide, batch, particles=DRAWS).values
    draws = torch.cat([found["z1"], found["z2"]], -1)
    density = exact(pair.model, batch, {"z2": grid()[:, 1:], "z1": grid()[:, :1]})
    return panels(batch[0], density, draws, "hierarchical", guide)


def implicit() -> Picture:
    """Draw a guide without a density, trained against a critic."""
    torch.manual_seed(3)
    data = digits()
    pair = fitted("vae", "normal", PLANE)
    model, guide = pair.model, zoo.build(zoo.find("guides", "implicit"), PLANE | {"noise_dim": 8})
    critic = pv.nets.JoinedMLP((64, 2), (200, 200), 1)
    adams = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (guide, critic)]
    step = pv.adversarial_step(model, guide, critic, optimizer=adams[0], critic_optimizer=adams[1], critic_steps=5)
    pv.fit(step=step, data=data.train, epochs=150, progress=False)
    batch = three(pair)
    with torch.no_grad():
        draws = guide.encoder(batch[0], torch.randn(DRAWS, 3, 8))
    figure, caption = panels(batch[0], exact(model, batch, {"z": grid()}), draws, "vae", "implicit")
    return figure, f"{caption} The model was trained with `guides/normal.py` and held fixed."


def component() -> Picture:
    """Draw components of a mixture by colour."""
    figure, caption = plane("gmvae", "component", sizes=PLANE | {"y_dim": 4})
    return figure, f"{caption} Draws for all four values of y are shown, whatever their probability."


def styles() -> Picture:
    """Draw digits that a class and a style make, for classes that the guide finds."""
    pair, data = trained("semi_supervised", "semi_supervised"), digits()
    x = data.test[:10]
    with torch.no_grad():
        probability = pair.guide.classify(x)
    figure, axes = plots.canvas(2, 10, width=8.0, height=1.9)
    for column, (image, q) in enumerate(zip(x, probability, strict=True)):
        axes[0, column].imshow(image.reshape(SHAPE), cmap="gray_r")
        axes[1, column].bar(range(10), q, color=ORANGE)
        axes[1, column].set(ylim=(0, 1), yticks=[], xticks=[0, 9])
        axes[0, column].set(xticks=[], yticks=[])
    return figure, "Ten test digits without a label, and the classes q(y | x) that the guide gives them."


def codes(model: str, guide: str, epochs: int = LONGER) -> Picture:
    """Draw digits, and what the model makes of the guide's draws."""
    pair = trained(model, guide, False, epochs)
    batch = as_batch(measured.beside(pair, digits().test[:10], digits().info.labels["test"][:10]))
    torch.manual_seed(0)
    values = pv.weigh(pair.model, pair.guide, batch, particles=3).values
    rows = {"data": batch[0]}
    for k in range(1 if guide == "nearest_code" else 3):
        drawn = {site: value[k].detach() for site, value in values.items()}
        rows[f"draw {k + 1}"] = pv.decode(pair.model, drawn, like=batch)["x"]
    caption = "Test digits, and the mean of x given each of some draws from the guide"
    return plots.image_rows(rows, SHAPE), f"{caption}, after {epochs} epochs with `models/{model}.py`."


def empty() -> Picture:
    """Draw the density of a mixture, which is all that is left of it under this guide."""
    figure: Figure
    figure, _ = gaussian_mixture()
    return figure, (
        "Nothing is drawn: with `models/gaussian_mixture.py` the weight of a datum is p(x), whose contours these are, "
        "since its component is summed out."
    )


PICTURES: dict[str, Callable[[], Picture]] = {
    "bernoulli": partial(codes, "sigmoid_belief_network", "bernoulli"),
    "categorical": partial(codes, "discrete_vae", "categorical"),
    "component": component,
    "conditional": partial(plane, "conditional", "conditional"),
    "empty": empty,
    "exact": partial(plane, "linear_gaussian", "exact", grey=True),
    "flow": partial(plane, "vae", "flow"),
    "full_covariance": partial(plane, "vae", "full_covariance"),
    "hierarchical": partial(layers, "hierarchical"),
    "implicit": implicit,
    "ladder": partial(layers, "ladder"),
    "local": partial(plane, "vae", "local"),
    "low_rank": partial(plane, "vae", "low_rank", sizes=PLANE | {"rank": 1}),
    "missing": partial(plane, "missing", "missing"),
    "mixture": partial(plane, "vae", "mixture"),
    "nearest_code": partial(codes, "vq_vae", "nearest_code", epochs=60),
    "normal": partial(plane, "vae", "normal"),
    "relaxed": partial(codes, "dvae", "relaxed"),
    "semi_amortized": partial(plane, "vae", "semi_amortized"),
    "semi_supervised": styles,
}
