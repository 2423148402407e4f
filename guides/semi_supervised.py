"""Amortised guide of a class and a style: all classes that a label leaves open, and for each a style.

Posterior family, for each datum::

    q(y | x)    = Categorical(softmax(classifier(x))), a point mass where y is labelled
    q(z | x, y) = N(z; mu(x, y), diag(sigma(x, y)^2)) = encoder(x, one-hot y)

y is enumerated, so that the ELBO is the paper's, L(x, y) with a label and U(x) without::

    L(x, y) = E_q(z|x,y)[log p(x, y, z) - log q(z | x, y)]
    U(x)    = sum_y q(y | x) L(x, y) + H(q(y | x))

A labelled row adds ``alpha log q(y | x)`` to what is maximised, from which q(y | x) learns: the factor
"penalty_classifier", with the opposite sign, as a guide's factors are taken off.

| symbol              | site                 | shape    |
| ------------------- | -------------------- | -------- |
| y                   | "y" (enumerated)     | ()       |
| z                   | "z"                  | (z_dim,) |
| -alpha log q(y | x) | "penalty_classifier" | ()       |

Reference: D. P. Kingma, D. J. Rezende, S. Mohamed, M. Welling, "Semi-Supervised Learning with Deep Generative
Models", NeurIPS 2014, https://arxiv.org/abs/1406.5298.

Example:
    >>> from ppl_vae.guides.semi_supervised import SemiSupervised as Guide
    >>> from ppl_vae.models.semi_supervised import SemiSupervised
    >>> model, guide, x = SemiSupervised(), Guide(), torch.ones(4, 784)
    >>> drawn = pv.weigh(model, guide, (x, torch.full((4,), -1)), particles=5)
    >>> log_pxy = (drawn.log_w + drawn.log_mass).logsumexp(-2)    # of each class, (10, 4)
    >>> log_pxy.softmax(0).shape, guide.classify(x).shape    # p(y | x), from weights, and q(y | x)
    (torch.Size([10, 4]), torch.Size([4, 10]))
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import nets


class SemiSupervised(nn.Module):
    """Guide for models with a class "y", given where it is not -1, and a continuous latent vector "z".

    Args:
        x_dim: number of pixels.
        z_dim: number of dimensions of the style.
        y_dim: number of classes.
        hidden: widths of the hidden layers of both networks.
        alpha: weight of log q(y | x) in nats of a labelled row; the paper's is a tenth of N over the number of labels.
        classifier: module from ``(B, x_dim)`` to logits ``(B, y_dim)``; an MLP when left out.
        encoder: module from x ``(B, x_dim)`` and one-hot y ``(..., y_dim)`` to a distribution with event shape
            ``(z_dim,)``, such as `nets.Joined`; an MLP with a diagonal normal when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        y_dim: int = 10,
        hidden: Sequence[int] = (400,),
        alpha: float = 1.0,
        classifier: nn.Module | None = None,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.alpha = alpha
        self.one_hot = nets.OneHot(y_dim)
        self.classifier = classifier or nets.MLP(x_dim, hidden, y_dim)
        self.encoder = encoder or nets.JoinedMLP((x_dim, y_dim), hidden, 2 * z_dim, nets.ToNormal())

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Enumerate y and draw z given x ``(B, x_dim)`` and labels ``(B,)``, -1 where there is none."""
        label, log_q = self.one_hot(y), self.classifier(x).log_softmax(-1)
        with pyro.plate("data", x.shape[0], dim=-1):
            # A guide's terms count with a minus.
            pyro.factor("penalty_classifier", -self.alpha * (label * log_q).sum(-1), has_rsample=True)
            q = dist.Categorical(logits=nets.held_to(log_q, label))
            y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(x, self.one_hot(y)))

    def classify(self, x: Tensor) -> Tensor:
        """Return q(y | x) ``(B, y_dim)`` of x ``(B, x_dim)``."""
        return self.classifier(x).softmax(-1)
