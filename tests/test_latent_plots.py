"""Places in latent spaces, the images found there, and their pictures."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import stats
from small import Choice, Layers, LayersGuide
from torch import nn

import ppl_vae as pv
from ppl_vae import latent_plots, plots, traversing
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE
from ppl_vae.places import AT_ONCE

ROOT = Path(__file__).parents[1]
DOUBLE = torch.float64


def linear_pair(x_dim=5, z_dim=3):
    """A model whose mean image of z is W z + b, and the guide that knows its posterior."""
    torch.manual_seed(0)
    model = LinearGaussian(x_dim, z_dim).double()
    model.bias.data.normal_()
    return model, Exact(model)


def image(model, z):
    return (z @ model.weight.mT + model.bias).detach()


def data(n=20, x_dim=5):
    return torch.randn(n, x_dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def test_posterior_means_are_the_guides():
    guide = Normal(6, 3, (8,))
    x = torch.rand(AT_ONCE + 7, 6)
    means = traversing.posterior_means(guide, x)
    assert means.keys() == {"z"}
    torch.testing.assert_close(means["z"], guide.encoder(x).mean.detach())
    assert not means["z"].requires_grad


def test_posterior_means_of_layers_follow_each_other():
    guide, x = LayersGuide(), torch.tensor([0.0, 1.0, 1.0], dtype=DOUBLE)
    means = traversing.posterior_means(guide, x)
    below = (guide.logits * x.unsqueeze(-1)).sigmoid()
    torch.testing.assert_close(means["z1"], below.detach())
    torch.testing.assert_close(means["z2"], (below @ guide.up + 0.2).sigmoid().detach())


def test_a_latent_without_a_mean_is_at_its_mode():
    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=x), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(10.0 * y, 1.0))

    means = traversing.posterior_means(guide, torch.eye(3).flip(0))
    assert means["y"].tolist() == [2, 1, 0]
    assert means["z"].tolist() == [20, 10, 0]


def test_prior_means_are_the_models():
    layers = Layers()
    means = traversing.prior_means(layers, torch.zeros(4, dtype=DOUBLE))
    above = layers.prior.sigmoid().unsqueeze(0)
    torch.testing.assert_close(means["z2"], above.detach())
    torch.testing.assert_close(means["z1"], (above @ layers.middle - 0.3).sigmoid().detach())
    torch.testing.assert_close(
        traversing.prior_means(Choice(), torch.zeros(2, dtype=DOUBLE))["c"][0], Choice().prior.softmax(-1).detach()
    )


def test_the_most_active_dimensions_come_first():
    class Known(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("z", dist.Normal(x * torch.tensor([0.1, 3.0, 0.0, 1.0]), 5.0).to_event(1))

    x = torch.randn(50, 4)
    assert traversing.most_active(Known(), x) == [1, 3, 0, 2]
    assert traversing.most_active(Known(), x, n=2) == [1, 3]


def test_quantiles_are_scipys():
    scores = torch.tensor([-2.5, 0.0, 1.0], dtype=DOUBLE)
    for torchs, scipys in (
        (dist.Normal(torch.tensor([[1.0, -2.0]], dtype=DOUBLE), 3.0), stats.norm(np.array([1.0, -2.0]), 3.0)),
        (dist.Laplace(torch.tensor([[1.0, -2.0]], dtype=DOUBLE), 0.5), stats.laplace(np.array([1.0, -2.0]), 0.5)),
        (dist.Uniform(torch.zeros(1, 2, dtype=DOUBLE), 2.0), stats.uniform(np.zeros(2), 2.0)),
    ):
        found = traversing.quantiles("z", torchs.to_event(1), scores)
        exact = scipys.ppf(stats.norm.cdf(scores.numpy())[:, None])
        torch.testing.assert_close(found, torch.as_tensor(exact))


def mixture_prior(x):
    parts = dist.Normal(torch.tensor([[-1.0, 1.0], [3.0, 2.0]]), 1.0).to_event(1)
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def mixture_guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def test_a_prior_without_quantiles_is_measured_in_deviations():
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"site 'z': its prior, a MixtureSameFamily, has no.*deviations"):
        traversing.manifold(mixture_prior, x)
    found = traversing.manifold(mixture_prior, x, n=3, ruler=traversing.deviations)
    torch.testing.assert_close(found.across[1], torch.tensor(1.0))
    torch.testing.assert_close(found.up[1], torch.tensor(1.5))
    moved = traversing.traversals(mixture_prior, mixture_guide, x, dims=[0], ruler=traversing.deviations, scores=[0, 1])
    torch.testing.assert_close(moved.values, torch.tensor([[1.0, 1.0 + 5**0.5]]))


def test_a_traversal_moves_one_dimension_alone():
    model, guide = linear_pair()
    found = traversing.traversals(model, guide, data(), dims=[2, 0])
    assert found.dims == (2, 0)
    assert found.scores == (-3, -2, -1, 0, 1, 2, 3)
    torch.testing.assert_close(found.values, torch.tensor([found.scores] * 2, dtype=DOUBLE))
    for row, j in enumerate(found.dims):
        for column, score in enumerate(found.scores):
            z = torch.zeros(3, dtype=DOUBLE)
            z[j] = score
            torch.testing.assert_close(found.images[row, column], image(model, z))


def test_a_traversal_starts_where_it_is_told():
    model, guide = linear_pair()
    start = traversing.posterior_means(guide, data()[4:5])
    found = traversing.traversals(model, guide, data(), start=start, dims=[1], scores=[-1.5, 0.0])
    z = start["z"].repeat(2, 1)
    z[:, 1] = torch.tensor([-1.5, 0.0])
    torch.testing.assert_close(found.images[0], image(model, z))


def test_a_traversal_takes_the_most_active_dimensions():
    model, guide = linear_pair()
    found = traversing.traversals(model, guide, data())
    assert list(found.dims) == traversing.most_active(guide, data())
    assert found.images.shape == (3, 7, 5)


def test_a_traversal_of_layers_holds_the_others():
    class Two(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z2 = pyro.sample("z2", dist.Normal(torch.ones(1), 1.0).to_event(1))
                z1 = pyro.sample("z1", dist.Normal(2 * z2, 3.0).to_event(1))
                pyro.sample("x", dist.Normal(torch.cat([z1, z2], -1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Normal(x[:, :1], 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(0.5 * z1, 1.0).to_event(1))

    found = traversing.traversals(Two(), guide, torch.randn(3, 2), site="z1", scores=[-1, 0])
    torch.testing.assert_close(found.images[0], torch.tensor([[-1.0, 1.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="site: expected one of 'z2', 'z1', found None"):
        traversing.traversals(Two(), guide, torch.randn(3, 2))
    means = traversing.interpolations(Two(), guide, torch.ones(1, 2), torch.full((1, 2), 3.0), steps=3)
    torch.testing.assert_close(means[0], torch.tensor([[1.0, 0.5], [2.0, 1.0], [3.0, 1.5]]))


@pytest.mark.parametrize("path", [traversing.linear, traversing.spherical])
def test_interpolations_end_at_the_reconstructions(path):
    model, guide = linear_pair()
    first, last = data(4), data(8)[4:]
    found = traversing.interpolations(model, guide, first, last, path=path, steps=5)
    ends = [image(model, traversing.posterior_means(guide, x)["z"]) for x in (first, last)]
    torch.testing.assert_close(found[:, 0], ends[0])
    torch.testing.assert_close(found[:, -1], ends[1])
    if path is traversing.linear:
        torch.testing.assert_close(found[:, 2], (ends[0] + ends[1]) / 2)


def test_a_spherical_path_turns_evenly_and_keeps_its_length():
    torch.manual_seed(0)
    a, b = (nn.functional.normalize(torch.randn(6, 10, dtype=DOUBLE), dim=1) for _ in range(2))
    way = torch.stack([traversing.spherical(a, b, t) for t in torch.linspace(0, 1, 9, dtype=DOUBLE)])
    torch.testing.assert_close(way.norm(dim=-1), torch.ones(9, 6, dtype=DOUBLE))
    steps = (way[1:] * way[:-1]).sum(-1).acos()
    torch.testing.assert_close(steps, ((a * b).sum(-1).acos() / 8).expand(8, 6))


def test_a_spherical_path_of_one_direction_is_straight():
    a, t = torch.tensor([[1.0, 2.0]]), torch.tensor(0.25)
    for b in (3 * a, a):
        torch.testing.assert_close(traversing.spherical(a, b, t), traversing.linear(a, b, t))
    with pytest.raises(ValueError, match="opposite each other"):
        traversing.spherical(a, -2 * a, t)


def test_pairs_keep_their_labels():
    def model(x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 100 * y.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    first = (torch.tensor([[0.0], [1.0]]), torch.tensor([3.0, 4.0]))
    found = traversing.interpolations(model, guide, first, first, steps=3)
    assert found.squeeze(-1).tolist() == [[300.0] * 3, [401.0] * 3]


def test_a_manifold_is_a_map():
    model = LinearGaussian(x_dim=2, z_dim=2)
    model.weight.data = torch.eye(2)
    found = traversing.manifold(model, torch.zeros(3, 2), n=4)
    exact = torch.as_tensor(stats.norm.ppf((np.arange(4) + 0.5) / 4)).float()
    torch.testing.assert_close(found.across, exact)
    torch.testing.assert_close(found.up, exact.flip(0))
    for i, j in itertools.product(range(4), range(4)):  # row, column
        torch.testing.assert_close(found.images[i, j], torch.stack([found.across[j], found.up[i]]))
    assert found.up[0] > found.up[-1]


def test_a_manifold_needs_two_dimensions():
    model, _ = linear_pair()
    with pytest.raises(ValueError, match=r"site 'z': a manifold has two dimensions.*\(3,\).*train with z_dim=2"):
        traversing.manifold(model, data())


def test_positions_are_the_guides_means():
    guide, x = Normal(6, 2, (8,)), torch.rand(30, 6)
    found = traversing.embedding(guide, x)
    torch.testing.assert_close(found.positions, guide.encoder(x).mean.detach())


def test_more_dimensions_are_projected_on_the_first_two_principal_components():
    guide, x = Normal(6, 5, (8,)), torch.rand(30, 6)
    means = guide.encoder(x).mean.detach()
    found = traversing.embedding(guide, x)
    left, scales, _ = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    exact = (left * scales)[:, :2]
    torch.testing.assert_close(found.positions.abs(), exact.abs(), atol=1e-4, rtol=1e-3)
    shares = scales.square() / scales.square().sum()
    assert found.axes[0] == f"posterior mean of z, principal component 1 ({shares[0]:.0%} of the variance)"
    with pytest.raises(ValueError, match="site 'z': a plane needs two dimensions"):
        traversing.embedding(Normal(6, 1, (8,)), x)


def test_nothing_changes():
    model, guide = VAE(6, 2, (8,)), Normal(6, 2, (8,))
    guide.encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), guide.encoder)
    x, state = torch.rand(10, 6), torch.get_rng_state()
    before = {name: t.clone() for name, t in pv.programs.Programs(model, guide).tensors().items()}
    runs = [
        (
            traversing.traversals(model, guide, x).images,
            traversing.interpolations(model, guide, x[:2], x[2:4]),
            traversing.manifold(model, x, n=3).images,
            traversing.embedding(guide, x).positions,
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert guide.training
    for name, tensor in pv.programs.Programs(model, guide).tensors().items():
        assert torch.equal(tensor, before[name])


BAD = {
    "a dimension that is not there": (lambda m, g, x: traversing.traversals(m, g, x, dims=[3]), "dims: .* from 0 to 2"),
    "no dimension": (lambda m, g, x: traversing.traversals(m, g, x, dims=[]), "dims: expected numbers"),
    "a latent that is not there": (lambda m, g, x: traversing.embedding(g, x, site="y"), "site: expected one of 'z'"),
    "pairs of one": (lambda m, g, x: traversing.interpolations(m, g, x, x[:2]), "first, last: .*20 and 2"),
    "one step": (lambda m, g, x: traversing.interpolations(m, g, x, x, steps=1), "steps: expected a whole number"),
    "no images": (lambda m, g, x: traversing.manifold(m, x, n=0), "n: expected a whole number"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_named(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call(*linear_pair(), data())


def test_a_likelihood_without_a_mean_has_no_images():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Categorical(logits=z.unsqueeze(-1) * torch.ones(2, 3)).to_event(1), obs=x)

    with pytest.raises(ValueError, match="model: expected one observed site with a mean"):
        traversing.manifold(model, torch.zeros(3, 2).long())


# Pictures


def drawn(figure):
    """What a figure of images shows, as numbers."""
    return figure.axes[0].images[0].get_array()


def texts(labels):
    return [label.get_text() for label in labels]


def test_a_traversal_is_drawn_row_by_row():
    images = torch.rand(2, 3, 20)
    figure = latent_plots.traversal(images, [4, 0], [-1.0, 0.0, 1.0], (5, 4), title="T")
    axes = figure.axes[0]
    assert isinstance(figure, Figure)
    assert (texts(axes.get_yticklabels()), texts(axes.get_xticklabels())) == (["4", "0"], ["$-1$", "$0$", "$1$"])
    assert axes.get_xlabel()
    assert axes.get_ylabel() == "latent dimension, from 0"
    assert axes.get_title() == "T"
    # Row 1, column 2, below a white line and right of two.
    np.testing.assert_allclose(drawn(figure)[6:11, 10:14], images[1, 2].reshape(5, 4))
    assert axes.get_yticks().tolist() == [2.0, 8.0]
    assert axes.get_xticks().tolist() == [1.5, 6.5, 11.5]


def test_an_interpolation_is_drawn_between_its_data():
    first, images, last = torch.rand(2, 16), torch.rand(2, 3, 16), torch.rand(2, 16)
    figure = latent_plots.interpolation(first, images, last, (4, 4))
    picture = drawn(figure)
    np.testing.assert_allclose(picture[5:9, :4], first[1].reshape(4, 4))
    np.testing.assert_allclose(picture[5:9, 10:14], images[1, 1].reshape(4, 4))
    np.testing.assert_allclose(picture[:4, 20:], last[0].reshape(4, 4))
    assert texts(figure.axes[0].get_xticklabels()) == ["data", "0", "½", "1", "data"]
    assert figure.axes[0].get_xlabel()


def test_a_manifold_is_drawn_as_a_map():
    images, values = torch.rand(3, 3, 16), torch.tensor([-1.0, 0.0, 1.0])
    figure = latent_plots.manifold(images, values, values.flip(0), (4, 4))
    np.testing.assert_allclose(drawn(figure)[:4, 10:], images[0, 2].reshape(4, 4))
    axes = figure.axes[0]
    assert texts(axes.get_xticklabels()) == ["$-1.00$", "$0.00$", "$1.00$"]
    assert texts(axes.get_yticklabels()) == ["$1.00$", "$0.00$", "$-1.00$"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")
    many = latent_plots.manifold(torch.rand(20, 20, 4), torch.randn(20), torch.randn(20), (2, 2))
    shown = [bool(text) for text in texts(many.axes[0].get_xticklabels())]
    assert sum(shown) == 6
    assert shown == shown[::-1]


def test_points_are_drawn_where_they_are_in_the_colour_of_their_label():
    points, labels = torch.randn(40, 2), torch.arange(40) % 3 + 5
    figure = latent_plots.embedding(points, labels, ("a", "b"), names={5: "five"}, legend="digit")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), points)
    colours = axes.collections[0].get_facecolors()[:, :3]
    for row, label in enumerate(labels.tolist()):
        np.testing.assert_allclose(colours[row], to_rgb(latent_plots.TEN[label - 5]))
    assert texts(figure.legends[0].get_texts()) == ["five", "6", "7"]
    assert figure.legends[0].get_title().get_text() == "digit"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")
    assert {t.get_text() for t in axes.texts} == {"five", "6", "7"}


@pytest.mark.parametrize("labels", [torch.arange(40), torch.rand(40)], ids=["many", "real"])
def test_more_labels_than_colours_have_a_bar(labels):
    figure = latent_plots.embedding(torch.randn(40, 2), labels, legend="age")
    assert not figure.legends
    assert figure.axes[1].get_ylabel() == "age"


def test_labels_of_close_clusters_do_not_overlap():
    points = torch.randn(60, 2) * 1e-3 + torch.tensor([[1.0, 1.0]])
    points[0] = -5.0  # so that there is something around
    figure = latent_plots.embedding(points, torch.arange(60) % 3)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_an_embedding_of_other_shapes_is_refused():
    for points, labels in ((torch.randn(4, 3), torch.zeros(4)), (torch.randn(4, 2), torch.zeros(3))):
        with pytest.raises(ValueError, match=r"positions, labels: expected shapes \(N, 2\) and \(N,\)"):
            latent_plots.embedding(points, labels)


# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", IEEE Transactions on Visualization and Computer Graphics 2009: full deficiency, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, vision):
    """CIE L*a*b* of an sRGB colour as somebody sees it."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    seen = np.clip(np.asarray(vision) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    f = [
        c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116 for c in to_xyz @ seen / np.array([0.95047, 1, 1.08883])
    ]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_ten_colours_are_told_apart_with_any_colour_vision(vision):
    seen = [lab(colour, VISION[vision]) for colour in latent_plots.TEN]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15  # 2 is just noticeable


def test_missing_pixels_are_drawn_in_a_tint():
    x, observed = torch.rand(3, 16), torch.arange(16) < 8
    draws = torch.rand(2, 3, 16)
    figure = plots.inpainting(x, observed, x, draws, (4, 4), title="T")
    picture = drawn(figure)
    assert texts(figure.axes[0].get_yticklabels()) == ["data", "observed", "mean", "draw 1", "draw 2"]
    np.testing.assert_allclose(picture[:4, :4], x[0].reshape(4, 4))
    assert picture.mask[7:9, :4].all()
    assert picture.mask.sum() == 3 * 8
    np.testing.assert_allclose(picture[5:7, :4], x[0].reshape(4, 4)[:2])
    np.testing.assert_allclose(picture[20:24, 10:], draws[1, 2].reshape(4, 4))
    tint = figure.axes[0].images[0].cmap.get_bad()[:3]
    assert len({round(float(c), 3) for c in tint}) > 1  # no grey


def test_noise_and_unknown_pixels_are_drawn_too():
    x, observed = torch.rand(3, 16), torch.arange(16) < 8
    figure = plots.inpainting(x, observed, None, x.unsqueeze(0), (4, 4), noisy=1 - x)
    assert texts(figure.axes[0].get_yticklabels()) == ["data", "noisy", "observed", "draw 1"]
    np.testing.assert_allclose(drawn(figure)[10:12, :4], 1 - x[0].reshape(4, 4)[:2])
    unknown = plots.inpainting(x.masked_fill(~observed, torch.nan), observed, x, x.unsqueeze(0), (4, 4))
    assert drawn(unknown).mask[:4, :4].sum() == 8


def test_an_imputation_can_be_drawn_as_it_is():
    pair = pairs.make("vae", "normal")
    x, observed = pair.data(), torch.arange(6) < 3
    found = pv.impute(pair.model, pair.guide, x, observed, draws=2)
    assert isinstance(plots.inpainting(x, found.observed, found.mean, found.draws, (2, 3)), Figure)


@pytest.mark.parametrize("ink", [True, False])
def test_rows_have_no_empty_space_around(ink):
    rows = {"data": torch.rand(9, 28 * 20), "reconstruction": torch.rand(9, 28 * 20)}
    figure = plots.image_rows(rows, (28, 20), ink=ink)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    for size, extent in zip(figure.get_size_inches(), (box.width, box.height), strict=True):
        assert extent > size - 0.3
        assert extent <= size


@pytest.mark.parametrize("module", ["latents", "traversing", "plots", "latent_plots", "filling", "missing", "imputing"])
def test_heavy_packages_are_imported_where_they_are_used(module):
    top = ast.parse((ROOT / "ppl_vae" / f"{module}.py").read_text()).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"matplotlib", "sklearn", "scipy"}
