"""Words as rows of whole numbers."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["Characters"]


class Characters:
    """Numbers for the characters of some words; zero fills the places after a word's end.

    Args:
        words: whose characters there are, and of which the longest sets the length L.

    Attributes:
        length: L, the number of places.
        size: how many different numbers there are, the filling among them.

    Raises:
        ValueError: a word is longer than L, or has a character that none of ``words`` has.

    Example:
        >>> characters = Characters(["one", "two", "three"])
        >>> characters.encode(["two", "three"])
        tensor([[6, 7, 4, 0, 0],
                [6, 2, 5, 1, 1]])
        >>> characters.decode(characters.encode(["two", "three"]))
        ['two', 'three']
    """

    def __init__(self, words: Iterable[str]):
        words = list(words)
        self.alphabet = sorted(set("".join(words)))
        self.length = max(map(len, words), default=0)
        self.size = len(self.alphabet) + 1

    def encode(self, words: Sequence[str]) -> Tensor:
        """Return whole numbers ``(N, L)``."""
        return torch.tensor([self._numbers(word) for word in words], dtype=torch.long).reshape(-1, self.length)

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the words of whole numbers ``(N, L)``, fillings left out."""
        return ["".join(self.alphabet[number - 1] for number in row if number) for row in tokens.tolist()]

    def _numbers(self, word: str) -> list[int]:
        unknown = sorted(set(word) - set(self.alphabet))
        if unknown or len(word) > self.length:
            raise ValueError(
                f"words: {word!r} has {len(word)} characters, {self.length} at most, of {''.join(self.alphabet)!r} "
                "alone; make Characters of all words that there will be"
            )
        return [self.alphabet.index(c) + 1 for c in word] + [0] * (self.length - len(word))
