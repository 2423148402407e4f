"""Generative adversarial networks as a step that the training loop drives."""

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppl_vae import contract
from ppl_vae.adversarial import non_saturating
from ppl_vae.batches import Batch
from ppl_vae.checking import check_arguments, check_dtype, check_values, explained_trace
from ppl_vae.contract import ContractError
from ppl_vae.objectives import Facts
from ppl_vae.players import AdversarialStep, Turn, check_critic, logits_of
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.tracing import dreamt

__all__ = ["check_differentiable", "gan_step"]

Loss = Callable[[Tensor], Tensor]


class GenerativeGame:
    """A model that draws data against a critic that tells them from real ones; see `gan_step`."""

    # The loop keeps the epoch of the smallest value, if it is given data to validate on.
    facts = Facts(formula="E log D(x) + E log(1 - D(x'))", upper=True, name="value of the game")
    hint = " (what the critic sees are draws of the data alone)"

    def __init__(self, model: Program, critic: nn.Module, loss: Loss):
        self.programs, self.critic, self.loss = {"model": model}, critic, loss

    def check(self, batch: Batch) -> None:
        """Hold model and critic to what the game asks."""
        model = self.programs["model"]
        check_arguments(model, "model", batch)
        check_values(model, batch)
        check_dtype(Programs(model, model), batch)
        with pyro.validation_enabled(True), own_parameters():
            contract.check_observes(contract.observed(explained_trace(model, "model", batch)))
            check_draws(model, batch)
            check_differentiable(dreamt(model, batch)[0], "model")
            logits = self._logits(batch)
            if not isinstance(found := self.loss(logits), Tensor):
                raise TypeError(f"loss: expected numbers for logits, a tensor, found {type(found).__name__}")

    def critics_turn(self, batch: Batch) -> Turn:
        """Return minus the value of the game, to first order in the critic alone."""
        with torch.no_grad():
            drawn = self._drawn(batch)
        value = self._value(batch, self._logits(drawn))
        return -value.mean(), value, {"critic_loss": -value.mean()}

    def programs_turn(self, batch: Batch) -> Turn:
        """Return the generator's loss."""
        logits = self._logits(self._drawn(batch))
        loss = self.loss(logits).mean()
        with torch.no_grad():
            value = self._value(batch, logits)
        return loss, value, {"generator_loss": loss}

    def _drawn(self, batch: Batch) -> Batch:
        with own_parameters():
            return dreamt(self.programs["model"], batch)[1]

    def _logits(self, batch: Batch) -> Tensor:
        return logits_of(self.critic, *batch, shape=batch[0].shape[:1])

    def _value(self, real: Batch, logits: Tensor) -> Tensor:
        return logsigmoid(self._logits(real)) + logsigmoid(-logits)


def check_draws(model: Program, batch: Batch) -> None:
    """Raise unless what a model draws is what it says: no factor weighs it, and it does not read the data.

    Raises:
        ContractError: the message names the site.

    Example:
        >>> from ppl_vae.models.gan import GAN
        >>> check_draws(GAN(x_dim=6, z_dim=2), (torch.ones(3, 6),))
    """
    seen = []
    for x in (batch[0], torch.zeros_like(batch[0])):
        with undisturbed(Programs(model, model), seed=0), torch.no_grad():
            seen.append(dreamt(model, (x, *batch[1:]))[0])
    for name, site in seen[0].items():
        if contract.is_factor(site):
            raise ContractError(
                f"factor '{name}': draws of the model do not follow it, so that no critic can see it; leave it out"
            )
        if not torch.equal(site["value"], seen[1][name]["value"]):
            raise ContractError(
                f"site '{name}': what it draws depends on x itself, so the critic would be shown the data; a generator "
                "makes them of noise (and of labels) alone"
            )


def check_differentiable(sites: dict[str, contract.Site], role: str) -> None:
    """Raise if a gradient would have to go through a draw, and cannot.

    Args:
        sites: of a trace with gradients.
        role: ``"model"`` or ``"guide"``, for messages.

    Raises:
        ContractError: the message names the site.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> sites, _ = dreamt(VAE(x_dim=6, z_dim=2), (torch.ones(3, 6),))
        >>> check_differentiable(sites, "model")
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: model: site 'x' (Bernoulli) is drawn without reparameterisation, ...
    """
    for name, site in sites.items():
        fn = site["fn"]
        if not fn.has_rsample and fn.log_prob(site["value"]).requires_grad:
            raise ContractError(
                f"{role}: site '{name}' ({contract.kind(fn)}) is drawn without reparameterisation, so that no gradient "
                "reaches what it is made of; draw it from a Normal, a Delta or a relaxed distribution, or freeze its "
                "parameters"
            )


def gan_step(
    model: Program,
    critic: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    loss: Loss = non_saturating,
    critic_steps: int = 1,
    compile: bool | str = "auto",  # noqa: A002 - the public name
) -> AdversarialStep:
    """Return one step of a generative adversarial network, for `ppl_vae.fit` or a loop of your own.

    The model draws data x', unconditioned, and a critic with logits T, D = sigmoid(T), tells them from the batch. With
    pi the distribution of the data and p that of the model, the value of the game is::

        V(D, p) = E_pi[log D(x)] + E_p[log (1 - D(x'))]

    The critic moves up V, ``critic_steps`` times on each batch; then the model moves down ``E_p[loss(T(x'))]``. The
    best critic is D = pi / (pi + p), where V = -2 log 2 + 2 JSD(pi, p).

    Args:
        model: Pyro program, its data drawn by reparameterisation, with noise (`ppl_vae.nets.ToNormalOneScale`) or
            without (`ppl_vae.nets.ToDelta`). What its observed sites draw takes the place of the tensors that they
            observe; a tensor that it only reads (a label) stays, so that the game is conditional on it.
        critic: module that takes the tensors of a batch as the model does, and returns a logit for each datum,
            ``(B,)`` or ``(B, 1)``.
        optimizer: a torch optimizer over the model's parameters.
        critic_optimizer: likewise, over the critic's.
        loss: from logits at drawn data to what the model makes small: `ppl_vae.adversarial.non_saturating`, or
            `ppl_vae.adversarial.minimax`.
        critic_steps: updates of the critic for one of the model.
        compile: see `ppl_vae.svi_step`.

    Returns:
        A `Step`. ``info.bound`` is V in nats, as the critic has it: no bound of a likelihood, nor an end in itself.
        It is about -2 log 2 where the critic cannot tell data apart, be it that they are alike or that it has learnt
        little. With validation data `ppl_vae.fit` keeps the epoch of the smallest V; leave them out to keep the last,
        and judge samples by `ppl_vae.quality`. ``info.penalties`` has ``"generator_loss"``, and ``"critic_loss"``,
        which is -V at the critic's last update.

    Raises:
        ContractError: on the first batch: a gradient would have to go through a draw that has none; draws depend
            on x, or are weighed by a factor; the critic's output has another shape.
        ValueError: an optimizer holds what the other moves, or nothing.
        TypeError: one is no torch optimizer, the critic no module, or the loss no function of logits.

    Reference: I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, https://arxiv.org/abs/1406.2661; on
    what goes wrong, L. Mescheder, A. Geiger, S. Nowozin, "Which Training Methods for GANs do actually Converge?", ICML
    2018, https://arxiv.org/abs/1801.04406.

    Example:
        >>> from ppl_vae.models.gan import GAN
        >>> model, critic = GAN(x_dim=6, z_dim=2, hidden=(8,)), pv.nets.MLP(6, (8,), 1)
        >>> adams = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model, critic)]
        >>> step = pv.gan_step(model, critic, optimizer=adams[0], critic_optimizer=adams[1])
        >>> info = step(torch.randn(4, 6))
        >>> sorted(info.penalties)
        ['critic_loss', 'generator_loss']
    """
    check_critic(critic)
    if not callable(loss):
        raise TypeError(f"loss: expected a function of logits, such as pv.adversarial.minimax, found {loss!r}")
    game = GenerativeGame(model, critic, loss)
    return AdversarialStep(game, optimizer, critic_optimizer, critic_steps, compile)
