"""Networks treat every leading axis alike."""

import pytest
import torch

from ppl_vae import nets

NETS = {
    "mlp": (nets.MLP(35, (8,), 3), 35),
    "conv encoder": (nets.ConvEncoder((7, 5), 3), 35),
    "conv decoder": (nets.ConvDecoder(4, (7, 5)), 4),
}


@pytest.mark.parametrize("name", NETS)
def test_leading_axes_are_rows(name):
    """Row by row gives what all at once gives: nothing is permuted or mixed."""
    net, width = NETS[name]
    x = torch.randn(2, 3, width)
    rows = torch.stack([torch.stack([net(row) for row in block]) for block in x])
    torch.testing.assert_close(net(x), rows)
    assert net(x).shape[:2] == (2, 3)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected a last axis of 35 = 7 x 5 pixels, found shape \(2, 36\)"):
        NETS["conv encoder"][0](torch.zeros(2, 36))
