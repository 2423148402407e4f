"""A step of two players: a critic that tells draws apart, and the programs that learn from it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking import unwritten
from ppl_vae.compiling import Compiled, check_compile
from ppl_vae.contract import ContractError
from ppl_vae.objectives.options import whole
from ppl_vae.optimizers import Role, check_kind, check_optimizer_state, held_by, moved_by
from ppl_vae.parallel import workers
from ppl_vae.programs import Program, Programs, modes_and_buffers_kept, undisturbed
from ppl_vae.svi import Info
from ppl_vae.updating import Update

__all__ = ["AdversarialStep", "Game", "check_critic", "check_players", "logits_of"]

# What a player makes small, ``()``, and what is reported of it: a value per datum, ``(B,)``, and means by name.
Turn = tuple[Tensor, Tensor, Mapping[str, Tensor]]


class Game(Protocol):
    """What the players play for.

    Attributes:
        programs: ``"model"`` and, where there is one, ``"guide"``.
        critic: module that gives logits.
        hint: what may be wrong where a parameter has no part in the game.
    """

    programs: Mapping[str, Program]
    critic: nn.Module
    hint: str

    def check(self, batch: Batch) -> None:
        """Hold programs and critic to what the game asks of them, on a batch; change nothing."""

    def critics_turn(self, batch: Batch) -> Turn:
        """Return what the critic makes small."""

    def programs_turn(self, batch: Batch) -> Turn:
        """Return what the programs make small."""


class Player:
    """One side of a game: what it makes small, and the optimizer by which it does.

    Args:
        turn: from a batch to what it makes small.
        optimizer: over its parameters.
        role: what messages call that.
        programs: which know them by name.
        compiled: from a function to what may run it as a graph.
    """

    def __init__(
        self,
        turn: Callable[[Batch], Turn],
        optimizer: torch.optim.Optimizer,
        role: Role,
        programs: Programs,
        compiled: Callable[..., Compiled],
    ):
        check_kind(optimizer, role)
        self.turn, self.optimizer, self.role, self.programs = turn, optimizer, role, programs
        self.update = Update(optimizer)
        self.descent = compiled(self._descent)
        self._held: list[int] = []
        self._moved: dict[str, Tensor] = {}

    def move(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Make the loss smaller; return what was found before."""
        self.follow_optimizer()
        self.update.clear()
        value, reports, gradients = self.descent(batch)
        self.update([*self._moved.values()], gradients, len(batch[0]))
        return value, reports

    def follow_optimizer(self) -> None:
        """Know by name what the optimizer holds now."""
        held = [*map(id, held_by(self.optimizer))]
        if held != self._held:
            self._moved = moved_by(self.optimizer, self.programs, self.role)
            self._held = held
            self.descent.forget()

    def check_reach(self, batch: Batch, hint: str) -> None:
        """Raise if a parameter that it should move has no part in its loss."""
        held = moved_by(self.optimizer, self.programs, self.role)
        with torch.enable_grad():
            loss, _, _ = self.turn(batch)
            found = (
                torch.autograd.grad(loss, [*held.values()], allow_unused=True)
                if loss.requires_grad
                else [None] * len(held)
            )
        if unused := [name for name, slope in zip(held, found, strict=True) if slope is None]:
            raise ContractError(
                f"{self.role.name}: {', '.join(unused[:3])} has no part in what it makes small, so that it would never "
                f"train{hint}; use it, or freeze it with requires_grad_(False)"
            )

    def _descent(self, tensors: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Mapping[str, Tensor], Any]:
        loss, value, reports = self.turn(batch)
        # Of its own parameters alone: those of the other side stand still.
        gradients = torch.autograd.grad(loss, [tensors[name] for name in self._moved], allow_unused=True)
        return value.detach().mean(), {name: report.detach() for name, report in reports.items()}, gradients


class AdversarialStep:
    """The critic moves ``critic_steps`` times, then the programs once, on each batch.

    Made by `ppl_vae.gan_step` and `ppl_vae.adversarial_step`.

    Attributes:
        objective: the game, by whose facts the loop knows whether a small value is better.
    """

    accumulate = 1

    def __init__(
        self,
        game: Game,
        optimizer: torch.optim.Optimizer,
        critic_optimizer: torch.optim.Optimizer,
        critic_steps: int,
        compile: bool | str,  # noqa: A002 - the public name
    ):
        whole("critic_steps", critic_steps)
        check_compile(compile)
        if workers():
            raise ValueError("step: adversarial steps run in one process; start a single one")
        self.objective, self.critic_steps = game, critic_steps
        vars(self).update(game.programs)  # `model`, and `guide` only where there is one: the loop asks for it
        self.programs = Programs(self.model, getattr(self, "guide", self.model))
        self.programs.modules["critic"] = game.critic
        readers = (*game.programs.values(), game.critic)
        compiled = partial(Compiled, programs=self.programs, readers=readers, compile=compile)
        own = " and ".join(f"{name}.parameters()" for name in game.programs)
        players = (
            (game.critics_turn, critic_optimizer, Role("critic_optimizer", "critic.parameters()")),
            (game.programs_turn, optimizer, Role("optimizer", own)),
        )
        self.critic_player, self.player = (Player(*given, self.programs, compiled) for given in players)
        self.validation = compiled(self._bound)
        self._checked = False

    def prepare(self, x: Any) -> None:
        """Hold programs, critic and both optimizers to the contract on a first batch; change nothing."""
        batch = self._batch(x)
        with unwritten(batch), undisturbed(self.programs):
            self.objective.check(batch)
            self.programs.run_once(self.model, getattr(self, "guide", self.model), batch)
            self.critic_player.turn(batch)  # lazy layers of the critic come into being
            check_players(self.player.optimizer, self.critic_player.optimizer, self.programs)
            for player in self._players().values():
                player.check_reach(batch, self.objective.hint)
        self._checked = True

    def __call__(self, x: Any) -> Info:
        """Move the critic, then the programs, on one batch.

        The first batch is held to the contract before anything moves.
        """
        batch = self._batch(x)
        if not self._checked:
            self.prepare(x)
        for player in self._players().values():  # before either moves, as parameters may have been frozen since
            player.follow_optimizer()
        for _ in range(self.critic_steps):
            _, of_critic = self.critic_player.move(batch)
        value, reports = self.player.move(batch)
        return Info(value, {**of_critic, **reports})

    def bound(self, x: Any) -> Tensor:
        """Return the value of the game at each datum, ``(B,)``, in evaluation mode and without gradient."""
        with modes_and_buffers_kept(self.programs, training=False):
            return self.validation(self._batch(x))

    def plan(self, updates: int, validations: int = 0) -> None:
        """Say how many batches are to come, by which ``compile="auto"`` decides."""
        self.critic_player.descent.planned = self.critic_steps * updates
        self.player.descent.planned = updates
        self.validation.planned = validations

    @property
    def graphs(self) -> int:
        """How many graphs were made of it."""
        return sum(function.count for function in self.functions().values())

    def functions(self) -> dict[str, Compiled]:
        """Return what may become graphs, by name."""
        return {name: player.descent for name, player in self._players().items()} | {"validation": self.validation}

    def state_dict(self) -> dict[str, Any]:
        """Return parameters and buffers of programs and critic, and the state of both optimizers."""
        optimizers = {name: player.optimizer.state_dict() for name, player in self._players().items()}
        return {"programs": self.programs.state_dict(), **optimizers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; nothing changes unless all of it fits."""
        wanted = {"programs", *self._players()}
        if state.keys() != wanted:
            raise ValueError(
                f"state: it has {', '.join(sorted(state))}, expected {', '.join(sorted(wanted))}; take that of a step "
                "of the same kind"
            )
        for name, player in self._players().items():
            check_optimizer_state(player.optimizer, state[name], player.role)
        self.programs.load_state_dict(state["programs"])
        for name, player in self._players().items():
            player.optimizer.load_state_dict(state[name])

    def _players(self) -> dict[str, Player]:
        return {"critic_optimizer": self.critic_player, "optimizer": self.player}

    def _batch(self, x: Any) -> Batch:
        return self.programs.on_device(as_batch(x))

    @torch.no_grad()
    def _bound(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.objective.programs_turn(batch)[1]


def check_critic(critic: Any) -> None:
    """Raise if a critic is no module, whose parameters could be found and saved.

    Example:
        >>> check_critic(torch.sigmoid)
        Traceback (most recent call last):
        ...
        TypeError: critic: expected an nn.Module that returns logits, found <built-in method sigmoid of ...
    """
    if not isinstance(critic, nn.Module):
        raise TypeError(f"critic: expected an nn.Module that returns logits, found {critic!r}")


def logits_of(critic: nn.Module, *inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a critic's logits, one for each datum (and particle).

    Args:
        critic: module from the inputs to ``shape`` or ``(*shape, 1)``.
        inputs: tensors.
        shape: of the logits.

    Raises:
        ContractError: it gives something else.

    Example:
        >>> logits_of(torch.nn.Linear(2, 1), torch.zeros(5, 2), shape=(5,)).shape
        torch.Size([5])
    """
    try:
        found = critic(*inputs)
    except Exception as error:
        given = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in inputs)
        error.add_note(f"(critic on {given}; it takes the tensors of a batch, and latents where there are any)")
        raise
    if not isinstance(found, Tensor):
        raise ContractError(f"critic: expected logits, a tensor, found {type(found).__name__}")
    if found.dim() == len(shape) + 1 and found.shape[-1] == 1:
        found = found.squeeze(-1)
    if found.dim() != len(shape) or any(n != m for n, m in zip(found.shape, shape, strict=True)):
        raise ContractError(
            f"critic: expected a logit for each datum, shape {tuple(shape)} or {(*shape, 1)}, found "
            f"{tuple(found.shape)}; let its network end in one output, and act on the last axes only"
        )
    return found


def check_players(optimizer: Any, critic_optimizer: Any, programs: Programs) -> None:
    """Raise unless each optimizer holds parameters of its own side, and of no other.

    Args:
        optimizer: of the programs.
        critic_optimizer: of the critic.
        programs: which know all of them by name, the critic's as ``critic``.

    Raises:
        ValueError: the message names the parameters.

    Example:
        >>> net, critic = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
        >>> programs = Programs(net, net)
        >>> programs.modules["critic"] = critic
        >>> optimizer = torch.optim.SGD([*net.parameters(), *critic.parameters()], lr=0.1)
        >>> check_players(optimizer, torch.optim.SGD(critic.parameters(), lr=0.1), programs)
        Traceback (most recent call last):
        ...
        ValueError: optimizer: it holds critic.weight, critic.bias, which the critic moves; leave it to critic_optimizer
    """
    sides = {"optimizer": (optimizer, "critic_optimizer"), "critic_optimizer": (critic_optimizer, "optimizer")}
    for name, (held, other) in sides.items():
        critics = name == "critic_optimizer"
        parameters = [*moved_by(held, programs, Role(name, "its own side"))]
        if wrong := [p for p in parameters if p.startswith("critic.") != critics]:
            whose = "a program moves" if critics else "the critic moves"
            raise ValueError(f"{name}: it holds {', '.join(wrong[:3])}, which {whose}; leave it to {other}")
