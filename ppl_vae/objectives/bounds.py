"""Lower bounds on log p(x), computed from the log-weights alone."""

from torch import Tensor

from ppl_vae.objectives.vocabulary import objective, with_score, zero_with_gradient
from ppl_vae.particles import Particles

__all__ = ["elbo", "iwae"]


@objective(
    formula="sum_k m log w_k",
    reference="M. Jordan et al. 1999, doi:10.1023/A:1007665907178; D. Kingma, M. Welling 2014, arXiv:1312.6114",
    linear=True,
)
def elbo(particles: Particles) -> Tensor:
    """Evidence lower bound, always by Monte Carlo: the mean log-weight.

    With m = 1/K the mass of a particle::

        ELBO = sum_k m log w_k,    log w_k = log p(x, z_k) - log q(z_k | x)

    The gradient is that of the path for reparameterised sites, and the score function times the
    log-weight for the others (as Pyro's ``Trace_ELBO`` has it).

    Args:
        particles: any K >= 1.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: M. Jordan, Z. Ghahramani, T. Jaakkola, L. Saul, "An Introduction to Variational
    Methods for Graphical Models", 1999, https://doi.org/10.1023/A:1007665907178.

    Example:
        >>> elbo(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    log_w = particles.log_w
    if not particles.log_q_score.requires_grad:
        return log_w.mean(0)
    # The score of q has zero mean: adding it once cancels the -log q of the same sites in log_w.
    weight = (log_w.detach() + 1).nan_to_num(neginf=0.0, posinf=0.0)
    return (log_w + weight * zero_with_gradient(particles.log_q_score)).mean(0)


@objective(
    formula="log sum_k m w_k",
    reference="Y. Burda, R. Grosse, R. Salakhutdinov 2016, arXiv:1509.00519",
)
def iwae(particles: Particles) -> Tensor:
    """Importance-weighted bound: the log of the mean weight.

    With m = 1/K the mass of a particle::

        L_K = log sum_k m w_k,    ELBO = L_1 <= L_K <= L_{K+1} <= log p(x)

    The gradient is that of the path for reparameterised sites. Sites drawn without it enter by
    the plain score function, unbiased for the K-sample bound and of high variance.

    Args:
        particles: any K >= 1.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR
    2016, https://arxiv.org/abs/1509.00519.

    Example:
        >>> iwae(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    bound = (particles.log_w + particles.log_mass).logsumexp(0)
    return with_score(bound, particles)
