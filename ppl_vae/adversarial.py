"""What adversarial steps are made of: losses of generators, the critic's own, and distributions to contrast with.

A critic T gives a logit to each datum. D = sigmoid(T) is the probability that it is real, or, for the steps of
implicit guides, that latents came from the guide.
"""

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

__all__ = ["adaptive_contrast", "logistic", "minimax", "non_saturating"]


def minimax(logits: Tensor) -> Tensor:
    """What a generator makes small in the game of minimax.

        log (1 - sigmoid(T))

    Its slope in T is -sigmoid(T), which vanishes where a critic is sure that a datum is generated: the better the
    critic, the less a generator learns.

    Args:
        logits: T at generated data, ``(B,)``.

    Returns:
        Nats for each, ``(B,)``.

    Reference: I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014,
    https://arxiv.org/abs/1406.2661, equation 1.

    Example:
        >>> minimax(torch.tensor([0.0, -20.0]))
        tensor([-6.9315e-01, -2.0612e-09])
    """
    return logsigmoid(-logits)


def non_saturating(logits: Tensor) -> Tensor:
    """What a generator makes small so that its gradient does not vanish.

        -log sigmoid(T)

    Its slope in T is sigmoid(T) - 1, nearly -1 where a critic is sure that a datum is generated. With the best critic
    the generator follows the gradient of KL(p || pi) - 2 JSD(pi, p), and not of 2 JSD(pi, p); both are at rest at
    p = pi.

    Args:
        logits: T at generated data, ``(B,)``.

    Returns:
        Nats for each, ``(B,)``.

    Reference: I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014,
    https://arxiv.org/abs/1406.2661, section 3; M. Arjovsky, L. Bottou, "Towards Principled Methods for Training
    Generative Adversarial Networks", ICLR 2017, https://arxiv.org/abs/1701.04862, theorem 2.5.

    Example:
        >>> non_saturating(torch.tensor([0.0, -20.0]))
        tensor([ 0.6931, 20.0000])
    """
    return -logsigmoid(logits)


def logistic(positive: Tensor, negative: Tensor) -> Tensor:
    """What a critic makes small: the loss of a logistic regression between draws of two distributions.

        mean softplus(-T(positive)) + mean softplus(T(negative))

    It is least for ``T = log r_+ - log r_-``, the logarithm of the ratio of their densities, where it is
    ``2 log 2 - 2 JSD(r_+, r_-)``.

    Args:
        positive: T at draws that it should be large at, any shape.
        negative: T at the others.

    Returns:
        Nats, ``()``.

    Reference: I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014,
    https://arxiv.org/abs/1406.2661, proposition 1.

    Example:
        >>> logistic(torch.zeros(3), torch.zeros(5))  # a critic that knows nothing: 2 log 2
        tensor(1.3863)
    """
    return softplus(-positive).mean() + softplus(negative).mean()


def adaptive_contrast(draws: Tensor) -> dist.TorchDistribution:
    """Return the normal distribution with the moments of a guide's draws, to contrast these with.

        r(z | x) = N(mu(x), diag(sigma(x)^2))

    A guide is nearer to it than to the prior, so that the critic has less to learn: the shape of q(z | x) alone, not
    its place and scale.

    Args:
        draws: of one latent, ``(M, B, *event)``, M at least 2.

    Returns:
        r, with batch shape ``(B,)``.

    Reference: L. Mescheder, S. Nowozin, A. Geiger, "Adversarial Variational Bayes", ICML 2017,
    https://arxiv.org/abs/1701.04722, section 3.3.

    Example:
        >>> adaptive_contrast(torch.tensor([[[1.0]], [[3.0]]])).mean
        tensor([[2.]])
    """
    scale = draws.std(0).clamp_min(SMALLEST_SCALE)
    return dist.Normal(draws.mean(0), scale).to_event(draws.dim() - 2)


# Of a guide that has collapsed onto a point, in whose scale nothing could be told apart.
SMALLEST_SCALE = 1e-3
