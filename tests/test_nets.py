"""Networks treat every leading axis alike."""

import pytest
import torch

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

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


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected a last axis of 35 = 7 x 5 pixels, found shape \(2, 36\)"):
        NETS["conv encoder"][0](torch.zeros(2, 36))


def test_a_convolutional_pair_fits_the_contract():
    decoder = torch.nn.Sequential(nets.ConvDecoder(4, (8, 8)), nets.ToBernoulli())
    encoder = torch.nn.Sequential(nets.ConvEncoder((8, 8), 8), nets.ToNormal())
    model, guide = VAE(x_dim=64, z_dim=4, decoder=decoder), Normal(x_dim=64, z_dim=4, encoder=encoder)
    digits = pv.data.load("digits", binarize="static")
    result = pv.fit(model, guide, digits, objective=pv.objectives.iwae, particles=3, epochs=3)
    assert result.history["valid_bound"][-1] > result.history["valid_bound"][0]
    assert pv.sample(model, like=digits.test, n=3)["x"].shape == (3, 64)
