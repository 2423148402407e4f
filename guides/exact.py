"""The exact posterior, for models that know it in closed form.

Posterior family, for each datum::

    q(z | x) = p(z | x)

With it every bound is tight: each importance weight p(x, z) / q(z | x) equals p(x), whatever z.

| symbol | site | shape                 |
| ------ | ---- | --------------------- |
| z      | "z"  | the model's own of z  |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 10.1.

Example:
    >>> from ppl_vae.guides.exact import Exact
    >>> from ppl_vae.models.linear_gaussian import LinearGaussian
    >>> model = LinearGaussian(x_dim=6, z_dim=2)
    >>> list(Exact(model).parameters())    # the posterior is made of the model's parameters
    []
"""

import pyro
from torch import Tensor, nn


class Exact(nn.Module):
    """Guide that draws z from the model's own posterior and has no parameters.

    Args:
        model: a model with a method ``posterior(x)`` that returns p(z | x) as a distribution.

    Raises:
        TypeError: the model has no such method.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not callable(getattr(model, "posterior", None)):
            raise TypeError(
                f"model: {type(model).__name__} has no method posterior(x) in closed form; "
                "use a learned guide, such as ppl_vae.guides.normal.Normal"
            )
        # The bound method, not the module: parameters belong to the program that owns them.
        self.posterior = model.posterior

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.posterior(x))
