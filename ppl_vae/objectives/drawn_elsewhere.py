"""Objectives that draw from other programs than the guide: wake-sleep's dreams, exact posteriors."""

from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.objectives.bounds import elbo, iwae
from ppl_vae.objectives.options import checked, positive
from ppl_vae.objectives.vocabulary import Estimate, mean_penalties, objective
from ppl_vae.objectives.weighted import wake
from ppl_vae.particles import Path
from ppl_vae.weighing import check_learns, dreamt_log_q, weigh

__all__ = ["EUBO", "WakeSleep"]


@objective(
    formula="log sum_k m w_k",
    reference="G. Hinton et al. 1995, doi:10.1126/science.7761831; J. Bornschein, Y. Bengio 2015, arXiv:1406.2751",
    path=Path.NONE,
    exempt={"unbiased": "model and guide learn from divergences of their own, with self-normalised weights"},
)
class WakeSleep(nn.Module):
    """Wake-sleep: the model learns awake, the guide awake and from dreams.

    With v_k the normalised weights of draws from the guide, and (x', z') drawn from the model::

        wake-theta: sum_k v_k grad log p(x, z_k)
        guide:      wake * sum_k v_k grad log q(z_k | x)  +  sleep * grad log q(z' | x')

    One dream a row of the batch. ``sleep=0`` is `rws`; ``wake=0`` with one particle is Hinton's
    algorithm. The guide's gradient is not that of the value.

    Args:
        wake: weight of wake-phi, at least 0.
        sleep: weight of sleep-phi, at least 0.

    Raises:
        ValueError: a weight is negative or not finite, or both are zero.

    Reference: G. Hinton, P. Dayan, B. Frey, R. Neal, "The Wake-Sleep Algorithm for Unsupervised Neural
    Networks", Science 1995, https://doi.org/10.1126/science.7761831; J. Bornschein, Y. Bengio,
    "Reweighted Wake-Sleep", ICLR 2015, https://arxiv.org/abs/1406.2751.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": ()}
        >>> model, guide = VAE(**sizes), Normal(**sizes)
        >>> value, surrogate = pv.objectives.WakeSleep().estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    bound = staticmethod(iwae)

    def __init__(self, wake: float = 0.5, sleep: float = 0.5):
        super().__init__()
        for name, weight in (("wake", wake), ("sleep", sleep)):
            checked(name, weight, "a finite number of at least 0", lambda w: 0 <= w < inf)
        checked("wake, sleep", wake + sleep, "one above 0, or the guide learns nothing", positive)
        self.wake, self.sleep = wake, sleep

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the importance-weighted bound, ``(B,)``, and what to differentiate.

        Raises:
            ContractError: the model observes something that is not a tensor of the batch, so that a
                dream cannot take its place, or the guide names ``index``, and dreams have no rows.
        """
        record = weigh(model, guide, batch, particles, path=Path.NONE)
        surrogate = wake(record, self.wake)
        if self.sleep:
            surrogate = surrogate + self.sleep * dreamt_log_q(model, guide, batch)
        added, penalties = mean_penalties(record)
        return Estimate(self.bound(record).detach(), surrogate + added, penalties, record.scale)


@objective(
    formula="sum_k m log w_k, z_k from the posterior",
    reference="J. Domke, D. Sheldon 2018, arXiv:1808.09034; C. Ji, H. Shen 2019, arXiv:1912.00650",
    linear=True,
    upper=True,
)
class EUBO(nn.Module):
    """Evidence upper bound: the mean log-weight over draws from the exact posterior.

    ::

        EUBO = E_p(z | x)[log p(x, z) - log q(z | x)] = log p(x) + KL(p || q) >= log p(x)

    The gap between it and the ELBO holds log p(x). Made small, it fits the guide by the inclusive KL
    divergence.

    Args:
        posterior: a guide that draws from the exact posterior, such as `guides.exact.Exact`.

    Reference: J. Domke, D. Sheldon, "Importance Weighting and Variational Inference", NeurIPS 2018,
    https://arxiv.org/abs/1808.09034; C. Ji, H. Shen, "Stochastic Variational Inference via Upper
    Bound", 2019, https://arxiv.org/abs/1912.00650.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.guides.normal import Normal
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, guide = LinearGaussian(x_dim=6, z_dim=2), Normal(x_dim=6, z_dim=2)
        >>> upper, _ = pv.objectives.EUBO(Exact(model)).estimate(model, guide, torch.ones(4, 6), particles=100)
        >>> bool((upper > model.log_px(torch.ones(4, 6))).all())
        True
    """

    bound = None

    def __init__(self, posterior: Any):
        super().__init__()
        if not callable(posterior):
            raise TypeError(f"posterior: expected a guide that draws from the exact posterior, found {posterior!r}")
        self._posterior = (posterior,)  # in a tuple: its parameters are not ours to train

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the upper bound, ``(B,)``, and what to differentiate.

        Raises:
            ValueError: the guide draws a site that the posterior does not, or one whose density has no gradient.
        """
        with torch.no_grad():
            exact = weigh(model, self._posterior[0], batch, particles, linear=True).values

        def drawn(name: str, fn: Any) -> Tensor:
            if name not in exact:
                raise ValueError(
                    f"posterior: it draws no site '{name}', as the guide does (it draws {', '.join(exact) or 'none'})"
                )
            check_learns(name, fn, fn.log_prob(exact[name]))
            return exact[name]

        record = weigh(model, guide, batch, particles, linear=True, draw=drawn)
        value = elbo(record)
        added, penalties = mean_penalties(record)
        # Its sign is turned with that of the bound: what is added to an upper bound is made small.
        return Estimate(value.detach(), value - added, penalties, record.scale)
