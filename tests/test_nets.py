"""Networks treat every leading axis alike, and say which sizes do not meet."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import ppl_vae as pv
from ppl_vae import nets, priors
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.guides.categorical import Categorical
from ppl_vae.guides.ladder import Ladder
from ppl_vae.guides.normal import Normal as NormalGuide
from ppl_vae.guides.semi_amortized import SemiAmortized
from ppl_vae.models.dvae import DVAE
from ppl_vae.models.hierarchical import Hierarchical
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
from ppl_vae.models.vae import VAE
from ppl_vae.models.vq_vae import VQVAE

NETS = {
    "mlp": (nets.MLP(35, (8,), 3), 35),
    "conv encoder": (nets.ConvEncoder((7, 5), 3), 35),
    "conv decoder": (nets.ConvDecoder(4, (7, 5)), 4),
    "three convolutions": (nets.ConvEncoder((7, 5), 3, (2, 3, 4)), 35),
    "three transposed convolutions": (nets.ConvDecoder(4, (7, 5), (4, 3, 2), outputs=2), 4),
}


@pytest.mark.parametrize("name", NETS)
def test_leading_axes_are_rows(name):
    """Row by row gives what all at once gives: nothing is permuted or mixed."""
    net, width = NETS[name]
    x = torch.randn(2, 3, width)
    rows = torch.stack([torch.stack([net(row) for row in block]) for block in x])
    torch.testing.assert_close(net(x), rows)
    assert net(x).shape[:2] == (2, 3)


def test_a_convolutional_network_has_all_its_channels():
    encoder, decoder = nets.ConvEncoder((7, 5), 3, (2, 3, 4)), nets.ConvDecoder(4, (7, 5), (4, 3, 2), outputs=2)
    assert [layer.out_channels for layer in encoder.net if isinstance(layer, torch.nn.Conv2d)] == [2, 3, 4]
    found = [layer.out_channels for layer in decoder.net if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert (found, decoder(torch.zeros(5, 4)).shape) == ([3, 2, 2], (5, 70))


@pytest.mark.parametrize(
    ("net", "given", "found"),
    [
        (nets.ConvEncoder((7, 5), 3), (35,), (3,)),
        (nets.ConvDecoder(4, (7, 5), outputs=2), (4,), (70,)),
        (nets.GridEncoder((7, 5), 3), (35,), (4, 3)),
        (nets.GridDecoder(3, (7, 5)), (4, 3), (35,)),
    ],
)
def test_no_data_give_none(net, given, found):
    assert net(torch.zeros(2, 0, *given)).shape == (2, 0, *found)


def test_sizes_that_do_not_meet_are_told():
    """Each with what was found and the repair, not the kernel of a matrix product."""
    model, x = VQVAE(x_dim=6, codes=8, z_dim=4, codebook=nets.LearnedCodebook(16, 4)), torch.ones(3, 6)
    with pytest.raises(ValueError, match=r"codebook: has 16 vectors, found codes of shape .* each is one of 8; give"):
        pv.weigh(model, Categorical(x_dim=6, codes=8), x)
    with pytest.raises(ValueError, match=r"z: expected 4 = 2 x 2 positions of 8 numbers, found .* the prior's codes="):
        pv.check(DVAE(x_dim=64, prior=priors.UniformCodes(4, 16)), Categorical(x_dim=64, codes=16), torch.ones(3, 64))
    model = Hierarchical(x_dim=6, z_dim=4)
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        pv.check(model, Ladder(model, x_dim=6, z_dim=7), x)
    assert "are x_dim, z_dim and y_dim alike in both?" in raised.value.__notes__[-1]


class OfTorch(nn.Module):
    """An encoder that returns torch's distributions."""

    def forward(self, x):
        return Independent(Normal(x[:, :2], torch.ones(2)), 1)


def test_guides_that_move_a_normal_say_so():
    model = VAE(x_dim=6, z_dim=2)
    for encoder in (nn.Sequential(nets.MLP(6, (5,), 2), nets.ToBernoulli()), nets.MLP(6, (5,), 4)):
        with pytest.raises(TypeError, match=r"encoder: expected one that returns a diagonal normal, .* nets.ToNormal"):
            pv.weigh(model, SemiAmortized(model, x_dim=6, z_dim=2, encoder=encoder), torch.ones(3, 6))
    guide = SemiAmortized(model, x_dim=6, z_dim=2, encoder=OfTorch())
    assert pv.weigh(model, guide, torch.ones(3, 6)).log_w.isfinite().all()


SIZED = {
    "in_dim": lambda n: nets.MLP(n, (3,), 2),
    "hidden": lambda n: nets.MLP(2, (3, n), 2),
    "out_dim": lambda n: nets.MLP(2, (3,), n),
    "codes": lambda n: nets.AveragedCodebook(codes=n),
    "z_dim": lambda n: nets.LearnedCodebook(z_dim=n),
    "components": lambda n: nets.ToNormalMixture(n),
    "vocabulary": lambda n: nets.CausalTransformer(n, 3),
    "positions": lambda n: nets.CausalTransformer(3, n),
    "components ": lambda n: priors.MixtureOfNormals(2, n),
    "z_dim ": lambda n: priors.StandardNormal(n),
    "codes ": lambda n: priors.UniformCodes(4, n),
    "positions ": lambda n: priors.RelaxedUniformCodes(n, 4),
    "x_dim": lambda n: priors.VampPrior(nn.Identity(), n, 3),
}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("n", [0, -2, 2.5, True])
def test_sizes_are_whole_numbers_of_at_least_one(name, n):
    with pytest.raises(ValueError, match=f"{name.strip()}: expected a whole number of at least 1, found {n}"):
        SIZED[name](n)


@pytest.mark.parametrize("program", [SigmoidBeliefNetwork, Bernoulli, Hierarchical])
def test_layers_are_at_least_one(program):
    with pytest.raises(ValueError, match="layers: expected at least 1, found 0"):
        program(x_dim=6, layers=0)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected a last axis of 35 = 7 x 5 pixels, found shape \(2, 36\)"):
        NETS["conv encoder"][0](torch.zeros(2, 36))


def test_a_convolutional_pair_fits_the_contract():
    decoder = torch.nn.Sequential(nets.ConvDecoder(4, (8, 8)), nets.ToBernoulli())
    encoder = torch.nn.Sequential(nets.ConvEncoder((8, 8), 8), nets.ToNormal())
    model, guide = VAE(x_dim=64, z_dim=4, decoder=decoder), NormalGuide(x_dim=64, z_dim=4, encoder=encoder)
    digits = pv.data.load("digits", binarize="static")
    result = pv.fit(model, guide, digits, objective=pv.objectives.iwae, particles=3, epochs=3)
    assert result.history["valid_bound"][-1] > result.history["valid_bound"][0]
    assert pv.sample(model, like=digits.test, n=3)["x"].shape == (3, 64)
