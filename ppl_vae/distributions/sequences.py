"""Sequences whose tokens are drawn one after another, as whole numbers and as one-hot codes."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Categorical, constraints
from torch.nn import functional as F

from ppl_vae.distributions.codes import corner

__all__ = ["Autoregressive", "OneHotAutoregressive", "allowed_tokens"]

Change = Callable[[Tensor], Tensor]


class Allowed(constraints.Constraint):
    """Whole numbers, in each place one of those that the place may have.

    Args:
        allowed: ``(T, V)`` of bool.

    Example:
        >>> Allowed(torch.tensor([[True, True], [False, True]])).check(torch.tensor([[0, 1], [1, 0]]))
        tensor([ True, False])
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, allowed: Tensor):
        self.allowed = allowed

    def check(self, value: Tensor) -> Tensor:
        """Tell of each sequence ``(..., T)`` whether all of its tokens are allowed."""
        there = self.allowed.expand(*value.shape, -1)
        tokens = value.long().clamp(0, there.shape[-1] - 1)
        return (there.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) & (tokens == value)).all(-1)

    def __repr__(self) -> str:
        return f"Allowed(whole numbers below {self.allowed.shape[-1]}, by place)"


class Autoregressive(TorchDistribution):
    """Sequences of tokens, each drawn from a network's softmax given those before it.

        p(c | prefix) = prod_t softmax(network(prefix, c_1, ..., c_(t-1)))[c_t]

    The softmax of a place runs over the tokens that it may have, so that the probabilities of all allowed sequences sum
    to one. The event shape is ``(T,)``, the values are whole numbers. One pass of the network gives a density; a draw
    takes T short ones, which remember what came before.

    Args:
        network: causal, such as `ppl_vae.nets.CausalTransformer`: called with tokens ``(..., L + T)``, it returns
            logits ``(..., L + T, V)`` of each given those before; ``following`` returns those of the next one alone.
        allowed: ``(T, V)`` of bool, which tokens each place may have; at least one in each.
        prefix: tokens ``(..., L)`` that come first and are given, not drawn; their leading axes are the batch shape.
        validate_args: as for every distribution of torch.

    Raises:
        ValueError: ``allowed`` is no table of two axes; a value is outside the support, under validation.

    Reference: A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
    https://arxiv.org/abs/1601.06759, for the factorisation; A. Ramesh et al., "Zero-Shot Text-to-Image Generation",
    ICML 2021, https://arxiv.org/abs/2102.12092, for text and image tokens in one sequence.

    Example:
        >>> network = pv.nets.CausalTransformer(vocabulary=3, positions=2)
        >>> d = Autoregressive(network, allowed=torch.ones(2, 3, dtype=torch.bool))
        >>> every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> torch.allclose(d.log_prob(every).logsumexp(0), torch.tensor(0.0), atol=1e-6)
        True
        >>> d.sample((4,)).shape
        torch.Size([4, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        network: Any,
        allowed: Tensor,
        prefix: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if allowed.dim() != 2 or allowed.dtype is not torch.bool:
            raise ValueError(
                f"allowed: expected a table of bool, a row for each place and a column for each token, found shape "
                f"{tuple(allowed.shape)} of {allowed.dtype}"
            )
        self.network, self.allowed = network, allowed
        self.prefix = torch.zeros(0, dtype=torch.long, device=allowed.device) if prefix is None else prefix.long()
        super().__init__(self.prefix.shape[:-1], allowed.shape[:1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Sequences of allowed tokens."""
        return Allowed(self.allowed)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Autoregressive":
        """Return the same distribution for more data."""
        return Autoregressive(self.network, self.allowed, self._given(Size(batch_shape)), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of sequences ``(..., T)``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        tokens = value.long()
        conditionals = self.conditionals(tokens)
        # A smaller index would select a part without an error.
        chosen = tokens.expand(conditionals.shape[:-1]).unsqueeze(-1)
        log_probs = conditionals.gather(-1, chosen).squeeze(-1).sum(-1)
        return log_probs.expand(torch.broadcast_shapes(log_probs.shape, self.batch_shape))

    def conditionals(self, tokens: Tensor) -> Tensor:
        """Return the log probability of every token in each place, given the sequence before it.

        Args:
            tokens: ``(..., T)``, or weights of them ``(..., T, V)`` (see `ppl_vae.nets.CausalTransformer`).

        Returns:
            ``(..., T, V)``, minus infinity where a token is not allowed.
        """
        length, relaxed = self.event_shape[0], tokens.is_floating_point()
        leading = tokens.shape[: -2 if relaxed else -1]
        if self.prefix.shape[-1]:
            leading = torch.broadcast_shapes(leading, self.batch_shape)
            tokens = tokens.expand(*leading, *tokens.shape[-2 if relaxed else -1 :])
            prefix = self._given(leading)
            prefix = corner(prefix, self.allowed.shape[-1]).to(tokens.dtype) if relaxed else prefix
            tokens = torch.cat([prefix, tokens], -2 if relaxed else -1)
        return self._log_probs(self.network(tokens)[..., -length:, :], self.allowed)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), change: Change | None = None) -> Tensor:
        """Draw sequences, token by token.

        Args:
            sample_shape: shape of the draws, left of the batch shape.
            change: what becomes of the log probabilities ``(..., V)`` of a token before it is drawn, say
                ``lambda log_p: log_p / 0.8`` for pictures of likelier sequences. The draws then follow another
                distribution than `log_prob` does.
        """
        unseen, past, drawn = self._given(Size(sample_shape) + self.batch_shape), None, []
        for allowed in self.allowed:
            logits, past = self.network.following(unseen, past)
            log_probs = self._log_probs(logits, allowed)
            token = Categorical(logits=change(log_probs) if change else log_probs, validate_args=False).sample()
            unseen = token.unsqueeze(-1)
            drawn.append(unseen)
        return torch.cat(drawn, -1)

    def _given(self, shape: Size) -> Tensor:
        return self.prefix.expand(*shape, -1)

    @staticmethod
    def _log_probs(logits: Tensor, allowed: Tensor) -> Tensor:
        # In mixed precision a sum over places has too few bits.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1, dtype=dtype)


class OneHotAutoregressive(TorchDistribution):
    """Codes ``(T, codes)``, one-hot in each place, drawn one after another: `Autoregressive` for sites of codes.

        p(c | prefix) = prod_t <c_t, softmax(network(prefix, c_1, ..., c_(t-1)))>

    Between the corners, where relaxations draw, the network reads the weighted mean of the embeddings, and the log
    probabilities of a place are averaged likewise: a density that is differentiable in the value.

    Args:
        tokens: the same codes as whole numbers, with or without a prefix.
        codes: the tokens that stand for the codes, in each place the allowed ones and no others. All of the vocabulary
            when left out.
        validate_args: as for every distribution of torch.

    Raises:
        ValueError: ``codes`` are no tokens of the vocabulary; under validation, ``codes`` are not what ``tokens``
            allows, or a value is not one-hot.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
    https://arxiv.org/abs/1711.00937, for autoregressive priors of codes.

    Example:
        >>> network = pv.nets.CausalTransformer(vocabulary=5, positions=4)
        >>> tokens = Autoregressive(network, allowed=allowed_tokens([range(5)] * 4, 5))
        >>> d = OneHotAutoregressive(tokens)
        >>> c = d.sample((3,))
        >>> c.shape, torch.allclose(d.log_prob(c), tokens.log_prob(c.argmax(-1)))
        (torch.Size([3, 4, 5]), True)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokens: Autoregressive, codes: range | None = None, validate_args: bool | None = None):
        length, vocabulary = tokens.allowed.shape
        self.tokens, self.codes = tokens, range(vocabulary) if codes is None else codes
        super().__init__(tokens.batch_shape, Size([length, len(self.codes)]), validate_args=validate_args)
        wanted = allowed_tokens([self.codes], vocabulary).to(tokens.allowed.device)
        if self._validate_args and not (tokens.allowed == wanted).all():
            raise ValueError(f"codes: {self.codes} are not the tokens that each place may have; give both the same")

    @property
    def support(self) -> constraints.Constraint:
        """One-hot vectors, one for each place."""
        return constraints.independent(constraints.one_hot, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OneHotAutoregressive":
        """Return the same distribution for more data."""
        return OneHotAutoregressive(self.tokens.expand(batch_shape), self.codes, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of codes ``(..., T, codes)``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        start, end = self.codes.start, self.codes.stop
        # As weights whether or not a gradient is asked for: between the corners the nearest code has another density.
        padding = (start, self.tokens.allowed.shape[-1] - end)
        read = F.pad(value, padding) if value.is_floating_point() else self.numbers(value)
        log_probs = (value * self.tokens.conditionals(read)[..., start:end]).sum((-2, -1))
        return log_probs.expand(torch.broadcast_shapes(log_probs.shape, self.batch_shape))

    def sample(self, sample_shape: Any = (), change: Change | None = None) -> Tensor:
        """Draw codes, one after another; arguments as for `Autoregressive.sample`."""
        drawn = self.tokens.sample(sample_shape, change) - self.codes.start
        return corner(drawn, len(self.codes)).to(next(self.tokens.network.parameters()).dtype)

    def numbers(self, value: Tensor) -> Tensor:
        """Return the tokens ``(..., T)`` that stand for one-hot codes ``(..., T, codes)``."""
        return value.argmax(-1) + self.codes.start


def allowed_tokens(places: Sequence[range], vocabulary: int) -> Tensor:
    """Return which tokens each place of a sequence may have.

    Args:
        places: for each place its tokens.
        vocabulary: V, how many tokens there are.

    Returns:
        Bool ``(T, V)``.

    Raises:
        ValueError: a range is empty, leaves numbers out, or goes beyond the vocabulary.

    Example:
        >>> allowed_tokens([range(1), range(1, 3)], 3)
        tensor([[ True, False, False],
                [False,  True,  True]])
    """
    for place in places:
        if place.step != 1 or not 0 <= place.start < place.stop <= vocabulary:
            raise ValueError(
                f"places: expected ranges of successive tokens from 0 to {vocabulary - 1}, found {place}; give at "
                "least one token, and the vocabulary all that there are"
            )
    tokens = torch.arange(vocabulary)
    return torch.stack([(tokens >= place.start) & (tokens < place.stop) for place in places])
