"""A causal transformer: what comes next in a sequence of tokens."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppl_vae.arguments import whole
from ppl_vae.nets.dense import MLP

__all__ = ["CausalTransformer"]

# Keys and values of the tokens so far, one pair for each block.
Past = list[tuple[Tensor, Tensor]]

SPREAD = 0.02


class CausalTransformer(nn.Module):
    """Logits of each token of a sequence given those before it.

    Shapes: whole numbers ``(..., T)``, or weights over the vocabulary ``(..., T, V)``, to logits ``(..., T, V)``. The
    logits at t read the tokens before t and nothing else, the first ones nothing at all. A token given as weights has
    the weighted mean of the tokens' embeddings, so that one-hot rows mean what numbers mean, and what lies between
    them has a gradient.

    Args:
        vocabulary: V, the number of different tokens.
        positions: the longest sequence, T at most.
        width: of the vectors between blocks, a multiple of ``heads``.
        layers: number of blocks, each of attention and a hidden layer four times as wide.
        heads: of each attention.

    Raises:
        ValueError: there is no layer or no head; heads do not divide the width; a sequence is longer than
            ``positions``.

    Reference: A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762;
    normalised before each part as in R. Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML
    2020, https://arxiv.org/abs/2002.04745.

    Example:
        >>> net, tokens = CausalTransformer(vocabulary=10, positions=5), torch.tensor([[3, 1, 4, 1, 5]])
        >>> net(tokens).shape
        torch.Size([1, 5, 10])
        >>> logits, past = net.following(tokens[:, :2])    # of the third token
        >>> torch.allclose(logits, net(tokens)[:, 2], atol=1e-5)
        True
    """

    def __init__(self, vocabulary: int, positions: int, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        if layers < 1 or heads < 1:
            raise ValueError(f"layers, heads: expected at least 1 of each, found {layers} and {heads}")
        if width % heads:
            raise ValueError(f"heads: {heads} do not divide the width {width}; choose a width such as {heads * 16}")
        self.vocabulary, self.positions = whole("vocabulary", vocabulary), whole("positions", positions)
        self.embedding = nn.Embedding(vocabulary, width)
        self.start = nn.Parameter(SPREAD * torch.randn(width))
        self.places = nn.Parameter(SPREAD * torch.randn(positions, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        # Small, so that a new network's tokens are about equally probable and places are not drowned.
        for weight in (self.embedding.weight, self.head.weight):
            nn.init.normal_(weight, std=SPREAD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(..., T, V)`` in one parallel pass."""
        embedded = self._embedded(tokens)
        self._check_length(embedded.shape[-2])
        read = torch.cat([self._start(embedded), embedded[..., :-1, :]], -2)
        # Control variates differentiate a relaxed density twice, which fused attention cannot.
        with sdpa_kernel(SDPBackend.MATH) if tokens.requires_grad else nullcontext():
            hidden, _ = self._hidden(read + self.places[: read.shape[-2]], None)
        return self.head(hidden)

    def following(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Return logits ``(..., V)`` of the token that comes next, and what the one after it needs of the past.

        Args:
            tokens: ``(..., T)`` as for the whole network, those that ``past`` has not seen; T may be zero at the start.
            past: as an earlier call returned it; None at the start of a sequence.
        """
        read, seen = self._embedded(tokens), 0 if past is None else past[0][0].shape[-2]
        if past is None:
            read = torch.cat([self._start(read), read], -2)
        self._check_length(seen + read.shape[-2])
        hidden, past = self._hidden(read + self.places[seen : seen + read.shape[-2]], past)
        return self.head(hidden[..., -1, :]), past

    def _embedded(self, tokens: Tensor) -> Tensor:
        vectors = self.embedding.weight
        return tokens.to(vectors.dtype) @ vectors if tokens.is_floating_point() else self.embedding(tokens)

    def _start(self, embedded: Tensor) -> Tensor:
        return self.start.expand(*embedded.shape[:-2], 1, -1)

    def _hidden(self, h: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        seen = []
        for i, block in enumerate(self.blocks):
            h, keys_and_values = block(h, past and past[i])
            seen.append(keys_and_values)
        return self.norm(h), seen

    def _check_length(self, length: int) -> None:
        if length > self.positions:
            raise ValueError(
                f"tokens: a sequence of {length}, but this network has {self.positions} positions; make it with more"
            )


class Block(nn.Module):
    """Causal attention and a hidden layer, each added to what comes in.

    Shapes: ``(..., T, width) -> (..., T, width)``, and the keys and values of all tokens so far.

    Args:
        width: of the vectors.
        heads: of the attention.

    Example:
        >>> h, (keys, values) = Block(16, 2)(torch.zeros(3, 5, 16))
        >>> h.shape, keys.shape
        (torch.Size([3, 5, 16]), torch.Size([3, 2, 5, 8]))
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.mlp = MLP(width, (4 * width,), width, nn.GELU)

    def forward(self, h: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the next vectors, and keys and values ``(..., heads, T, width / heads)``."""
        attended, seen = self._attended(self.before_attention(h), past)
        h = h + self.mix(attended)
        return h + self.mlp(self.before_mlp(h)), seen

    def _attended(self, h: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        split = self.queries_keys_values(h).unflatten(-1, (3 * self.heads, -1)).transpose(-2, -3)
        queries, keys, values = split.chunk(3, dim=-3)
        if past is not None:
            keys, values = (torch.cat(pair, -2) for pair in zip(past, (keys, values), strict=True))
        attended = causal_attention(queries, keys, values)
        return attended.transpose(-2, -3).flatten(-2), (keys, values)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return for each query the mean of the values up to its own, weighted by how well their keys answer it.

        softmax_s<=t(q_t . k_s / sqrt(d)) v_s

    Args:
        queries: ``(..., heads, S, d)``, of the last S of T tokens.
        keys: ``(..., heads, T, d)``.
        values: likewise.

    Returns:
        ``(..., heads, S, d)``.

    Example:
        >>> causal_attention(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.tensor([[[3.0], [1.0], [2.0]]]))
        tensor([[[3.],
                 [2.],
                 [2.]]])
    """
    *leading, heads, asked, size = queries.shape
    rows = math.prod(leading)  # fused kernels take one axis of rows
    queries, keys, values = (part.reshape(rows, heads, -1, size) for part in (queries, keys, values))
    mask = None
    if asked != keys.shape[-2]:
        mask = torch.ones(asked, keys.shape[-2], dtype=torch.bool, device=keys.device).tril(keys.shape[-2] - asked)
    attended = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None)
    return attended.reshape(*leading, heads, asked, size)
