"""The bijection to positive definite matrices: round trips, its Jacobian by autograd, and torch's registry."""

import pytest
import torch
from torch.distributions import biject_to, transform_to

from ppl_vae.conjugate_priors import Wishart
from ppl_vae.positive_definite import POSITIVE_DEFINITE, PositiveDefiniteFromVector

BIJECTION = PositiveDefiniteFromVector()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_there_and_back(size):
    torch.manual_seed(0)
    vectors = torch.randn(3, 2, size * (size + 1) // 2, dtype=torch.float64)
    matrices = BIJECTION(vectors)
    assert matrices.shape == BIJECTION.forward_shape(vectors.shape) == (3, 2, size, size)
    assert BIJECTION.inverse_shape(matrices.shape) == vectors.shape
    assert POSITIVE_DEFINITE.check(matrices).all()
    torch.testing.assert_close(BIJECTION.inv(matrices), vectors)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_jacobian_is_that_of_autograd(size):
    torch.manual_seed(1)
    vector = torch.randn(size * (size + 1) // 2, dtype=torch.float64)
    i, j = torch.tril_indices(size, size)
    jacobian = torch.autograd.functional.jacobian(lambda v: BIJECTION(v)[i, j], vector)
    volume = BIJECTION.log_abs_det_jacobian(vector, BIJECTION(vector))
    torch.testing.assert_close(volume, torch.linalg.slogdet(jacobian).logabsdet)


def test_a_wishart_of_ours_has_it_and_torchs_own_is_left_as_it_was():
    support = Wishart(torch.tensor(4.0), torch.eye(2)).support
    assert biject_to(support) == transform_to(support) == BIJECTION
    with pytest.raises(NotImplementedError):
        biject_to(torch.distributions.constraints.positive_definite)
