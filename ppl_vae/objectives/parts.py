"""The ELBO taken apart: reconstruction and the divergence of each latent."""

from math import inf

from torch import Tensor

from ppl_vae.gradients import weighted
from ppl_vae.objectives.options import checked
from ppl_vae.objectives.vocabulary import mean_with_score, objective, with_score
from ppl_vae.particles import Particles, total

__all__ = ["beta_elbo", "elbo_kl", "free_bits", "parts"]


def parts(particles: Particles) -> tuple[Tensor, dict[str, Tensor]]:
    """Return reconstruction and divergences, which make up the log-weights.

    For each datum and particle, with i running over the latents::

        log w = log p(x | z) - sum_i D_i,    D_i = log q(z_i | x) - log p(z_i)

    each given what it is conditioned on. ``E_q[D_i]`` is a KL divergence.

    Args:
        particles: any K >= 1.

    Returns:
        ``log p(x | z)``, ``(K, B)``, and ``D_i`` by site, ``(K, B)`` each.

    Raises:
        ValueError: data and a drawn latent hang together through a latent that was summed out, so
            that they cannot be told apart.

    Reference: M. Hoffman, M. Johnson, "ELBO surgery", NeurIPS workshop 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf.

    Example:
        >>> zeros = torch.zeros(3, 2)
        >>> particles = pv.Particles(log_p={"z": zeros - 1, "x": zeros - 5}, log_q={"z": zeros}, values={"z": zeros})
        >>> reconstruction, divergences = parts(particles)
        >>> reconstruction[0], divergences["z"][0]
        (tensor([-5., -5.]), tensor([1., 1.]))
    """
    divergences, likelihood = {}, {}
    log_q = dict(particles.log_q)
    for name, log_p in particles.log_p.items():
        sites = name.split(", ")  # sites that were summed together share an entry
        drawn = [site for site in sites if site in log_q]
        if not drawn:
            likelihood[name] = log_p
        elif set(sites) <= {*drawn, *particles.summed}:
            divergences[name] = sum(log_q.pop(site) for site in drawn) - log_p
        else:
            raise ValueError(
                f"objective: {name} hang together through {', '.join(particles.summed)}, which is summed out, so the "
                "divergence of a latent cannot be told from the likelihood; draw or enumerate it in the guide"
            )
    return total(likelihood), divergences | log_q  # what is left are the guide's auxiliary sites


@objective(
    formula="sum_k m log p(x given z_k) - KL(q, p)",
    reference="D. Kingma, M. Welling 2014, arXiv:1312.6114, equation 7",
    linear=True,
    kl=True,
)
def elbo_kl(particles: Particles) -> Tensor:
    """Evidence lower bound with the KL divergence in closed form, where torch or Pyro have one.

    ::

        ELBO = E_q[log p(x | z)] - sum_i KL(q(z_i | x, earlier z) || p(z_i | earlier z))

    Latents without a closed form enter by Monte Carlo, as in `elbo`. Sites drawn without
    reparameterisation keep their score function for everything that is drawn after them.

    Args:
        particles: any K >= 1, weighed with ``kl=True``.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ContractError: the guide draws against the model's order (in `weigh`).

    Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
    https://arxiv.org/abs/1312.6114.

    Example:
        >>> elbo_kl(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    reconstruction, divergences = parts(particles)
    terms = reconstruction - sum({**divergences, **particles.kl}.values())
    # Where -log q stands in the terms, a baseline cancels its zero-mean gradient, as in elbo.
    by_monte_carlo = particles.score.keys() - particles.kl.keys()
    return mean_with_score(terms, particles, baseline=-1.0 if by_monte_carlo else 0.0)


@objective(
    formula="sum_k m (log p(x given z_k) - beta D_k)",
    reference="I. Higgins et al. 2017, openreview.net/forum?id=Sy2fzU9gl",
    linear=True,
    exempt={"bound": "below beta = 1 it may lie above log p(x)"},
)
def beta_elbo(particles: Particles, beta: float | Tensor = 1.0) -> Tensor:
    """ELBO whose divergences weigh beta times, as for beta-VAEs and KL warm-up.

    ::

        L = E_q[log p(x | z)] - beta sum_i E_q[log q(z_i | x) - log p(z_i)]

    A bound on log p(x) for beta >= 1. For warm-up make beta a function of the step with
    `Scheduled`.

    Args:
        particles: any K >= 1.
        beta: weight of the divergences, at least 0.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: beta is negative; reconstruction and divergence cannot be told apart (see `parts`).

    Reference: I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained
    Variational Framework", ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl.

    Example:
        >>> beta_elbo(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}), beta=4.0)
        tensor([-3.])
    """
    checked("beta", beta, "a finite number of at least 0", lambda b: 0 <= b < inf)
    reconstruction, divergences = parts(particles)
    cost = weighted(beta, total(divergences)) if divergences else 0.0
    return mean_with_score(reconstruction - cost, particles, baseline=-beta)


@objective(
    formula="sum_k m log p(x given z_k) - sum_i max(floor, sum_k m D_ik)",
    reference="D. Kingma et al. 2016, arXiv:1606.04934",
)
def free_bits(particles: Particles, floor: float | Tensor = 0.0) -> Tensor:
    """ELBO in which a latent's divergence costs no less than a floor, against posterior collapse.

    For each site i and each datum by itself, never averaged over the batch::

        L = E_q[log p(x | z)] - sum_i max(floor, E_q[log q(z_i | x) - log p(z_i)])

    It lies below the ELBO. The inner mean is over the particles: a divergence that one draw makes small
    or negative by chance is lifted to the floor, to zero too, so that ``floor=0`` is the ELBO only as
    K grows. More particles make the floor sharper.

    Args:
        particles: any K >= 1.
        floor: nats per site and datum (not bits).

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: floor is negative; reconstruction and divergence cannot be told apart (see `parts`).

    Reference: D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling, "Improving
    Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016, appendix C.8,
    https://arxiv.org/abs/1606.04934.

    Example:
        >>> zeros = torch.zeros(1, 2)
        >>> particles = pv.Particles(log_p={"z": zeros, "x": zeros}, log_q={"z": zeros + 0.1}, values={"z": zeros})
        >>> free_bits(particles, floor=0.5)
        tensor([-0.5000, -0.5000])
    """
    checked("floor", floor, "a finite number of at least 0, in nats", lambda f: 0 <= f < inf)
    reconstruction, divergences = parts(particles)
    costs = sum(particles.mean(divergence).clamp_min(floor) for divergence in divergences.values())
    return with_score(particles.mean(reconstruction) - costs, particles)
