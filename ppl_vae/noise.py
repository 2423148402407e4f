"""Random numbers that belong to a datum and a particle, wherever and with whatever else they are drawn.

A generator that is read in order gives a datum other numbers when it comes in another batch, beside other
particles or on another device. Here a number is a hash of who it is for: the datum's content, the particle's
number, the site and the place in its value. Sums over particles can then be cut, shared out, interrupted and
drawn again at will.

Reference: J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405, for the idea; G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom
Number Generators", OOPSLA 2014, https://doi.org/10.1145/2660193.2660195, for the hash.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from math import pi, prod
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae import contract
from ppl_vae.batches import Batch

__all__ = ["CannotKey", "Keyed", "datum_keys", "told_apart"]


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
# Room for the numbers of one draw, before those of the next at the same site.
MOST_ELEMENTS = 2**40
# Marsaglia and Tsang's proposal is accepted in 95 of 100 cases or more; all fail with a chance of 1e-20.
ATTEMPTS = 16


class CannotKey(NotImplementedError):
    """A draw whose numbers cannot be given to data and particles one by one."""


def mixed(words: Tensor) -> Tensor:
    """Return 64-bit words hashed one by one (the finaliser of SplitMix64).

    Example:
        >>> mixed(torch.tensor([0, 1]))
        tensor([                  0, 6238072747940578789])
    """
    words = (words ^ _shifted(words, 30)) * FIRST
    words = (words ^ _shifted(words, 27)) * SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros coming in from the left (torch repeats the sign)."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def datum_keys(batch: Batch) -> Tensor:
    """Return a key for each datum, made of its content, ``(B,)`` of int64.

    Equal data have equal keys, in any batch and on any device; different ones by chance alone (2^-64).

    Example:
        >>> keys = datum_keys((torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),))
        >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
        (True, False)
    """
    total = torch.zeros(len(batch[0]), dtype=torch.int64, device=batch[0].device)
    for i, part in enumerate(batch):
        words = _words(part)
        places = torch.arange(words.shape[1], device=words.device) * GOLDEN
        total = mixed(total + _word(f"part {i}")) + mixed(words + places).sum(1)
    return mixed(total)


def _word(text: str) -> int:
    return _signed(int.from_bytes(sha256(text.encode()).digest()[:8], "big"))


def _words(part: Tensor) -> Tensor:
    """Return what a tensor holds as whole numbers, ``(B, words)``."""
    flat = part.detach().reshape(len(part), -1)
    if flat.is_floating_point():
        flat = flat.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    return flat.long()


def told_apart(keys: Tensor, times: Counter, seed: int = 0) -> Tensor:
    """Return keys for draws, which follow a seed, and in which equal data differ by how often they were met before.

    Args:
        keys: ``(B,)``.
        times: of each key so far; it is brought up to date.
        seed: any whole number.

    Example:
        >>> len(told_apart(torch.tensor([7, 7, 8]), Counter()).unique())
        3
    """
    before = []
    for key in keys.tolist():
        before.append(times[key])
        times[key] += 1
    counts = torch.tensor(before, device=keys.device)
    return mixed(keys + mixed(counts * GOLDEN + _word(f"seed {seed}")))


class Keyed:
    """A rule that draws a guide's latents from numbers of their own (see `weigh`, ``draw``).

    Args:
        keys: of the data, ``(B,)``.
        numbers: of the particles, ``(B, K)``: which of a datum's particles are drawn.

    Raises:
        CannotKey: a site draws in a way that is not known here; the message names both.

    Example:
        >>> import pyro.distributions as dist
        >>> x, normal = torch.ones(3, 2), dist.Normal(torch.zeros(4, 3), 1.0)
        >>> draws = Keyed(datum_keys((x,)), torch.arange(4).expand(3, 4))("z", normal)
        >>> again = Keyed(datum_keys((x[:1],)), torch.tensor([[2]]))("z", dist.Normal(torch.zeros(1, 1), 1.0))
        >>> bool(draws[2, 0] == again[0, 0])
        True
    """

    def __init__(self, keys: Tensor, numbers: Tensor):
        self.streams = mixed(keys + mixed((numbers.mT.contiguous() + 1) * GOLDEN))

    def __call__(self, name: str, fn: Any) -> Tensor:
        """Return a draw of a site."""
        with _Drawing(name, mixed(self.streams + _word(name)), fn.batch_shape, _cells(fn)):
            return fn()


class _Drawing(TorchDispatchMode):
    """Make what one site draws of the streams of its data and particles."""

    def __init__(self, name: str, streams: Tensor, batch_shape: Sequence[Any], cells: Sequence[Any] = ()):
        super().__init__()
        self.name, self.streams, self.batch_shape, self.count = name, streams, tuple(batch_shape), 0
        self.cells = tuple(cells)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        rule = RULES.get(func.overloadpacket.__name__)
        if rule is None or kwargs.get("generator") is not None:
            raise CannotKey(f"site '{self.name}' draws by {func.overloadpacket.__name__}")
        drawn = rule(self, *args, **{k: v for k, v in kwargs.items() if k in ("dtype", "device") and v is not None})
        return args[0].copy_(drawn) if func._schema.is_mutable else drawn

    def like(self, shape: Sequence[Any], make: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return numbers in a shape.

        Args:
            shape: of the draw; somewhere in it stands the site's batch shape, or all of it as one axis, which may
                take in the cells of its event too.
            make: from streams ``(K, B)``, and how many numbers each is to give, to those as last axis.
        """
        shape = tuple(shape)
        start = self._start(shape)
        if start is None:
            return self.like((*self.batch_shape, *self.cells, *shape[1:]), make).reshape(shape)
        end = start + len(self.batch_shape)
        others = [*shape[: end - 2], *shape[end:]]
        self.count += 1
        drawn = make(mixed(self.streams + self.count * MOST_ELEMENTS), prod(others))
        drawn = drawn.reshape(*shape[end - 2 : end], *others)
        return drawn.movedim((0, 1), (end - 2, end - 1))

    def _start(self, shape: tuple[Any, ...]) -> int | None:
        """Return where the site's batch shape begins in a draw's; None where its axes are merged into the first."""
        size = len(self.batch_shape)
        for start in range(len(shape) - size + 1):
            if all(map(_same, shape[start : start + size], self.batch_shape)):
                return start
        if len(shape) and _same(shape[0], prod((*self.batch_shape, *self.cells))):
            return None
        raise CannotKey(f"site '{self.name}' draws numbers of shape {shape} for a batch of {self.batch_shape}")

    def uniform(self, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Return numbers in [0, 1), with as many binary digits as the type has."""
        digits, real = DIGITS[dtype], _real(dtype)

        def make(streams: Tensor, n: int) -> Tensor:
            return (_shifted(_elements(streams, n), 64 - digits).to(real) * 2.0**-digits).to(dtype)

        return self.like(shape, make)

    def normal(self, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Return standard normal numbers, two of each word."""
        return self.like(shape, lambda streams, n: _normals(_elements(streams, (n + 1) // 2), dtype)[..., :n])


def _cells(fn: Any) -> tuple[Any, ...]:
    """Return the axes of an event that are independent of each other, which torch draws as if they were data."""
    return tuple(contract.innermost(fn).batch_shape[len(fn.batch_shape) :])


def _same(size: Any, other: Any) -> bool:
    # In a graph a number is no number of rows, even if it is the same one now.
    return isinstance(size, SymInt) == isinstance(other, SymInt) and bool(size == other)


def _elements(streams: Tensor, n: int) -> Tensor:
    # The xor changes nothing. It keeps torch's compiler from making the product a part of its loops' index, a signed
    # number whose overflow is undefined in C++: g++ then lets loops run past their ends.
    places = torch.arange(1, n + 1, device=streams.device) ^ 0
    return mixed(streams.unsqueeze(-1) + places * GOLDEN)


def _normals(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Return two normal numbers for each word.

    Reference: G. Box, M. Muller, "A Note on the Generation of Random Normal Deviates", Annals of
    Mathematical Statistics 1958, https://doi.org/10.1214/aoms/1177706645.
    """
    radius = (-2 * ((_shifted(words, 32).to(dtype) + 0.5) * 2.0**-32).log()).sqrt()
    angle = (words & (2**32 - 1)).to(dtype) * (2 * pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)


def _real(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in."""
    return dtype if dtype is torch.float64 else torch.float32


def _rand(to: _Drawing, size: Any, dtype: Any = None, device: Any = None) -> Tensor:
    return to.uniform(size, dtype or torch.get_default_dtype())


def _randn(to: _Drawing, size: Any, dtype: Any = None, device: Any = None) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    return to.normal(size, _real(dtype)).to(dtype)


def _rand_like(to: _Drawing, x: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    return _rand(to, x.shape, dtype or x.dtype)


def _randn_like(to: _Drawing, x: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    return _randn(to, x.shape, dtype or x.dtype)


def _uniform_(to: _Drawing, x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * _rand_like(to, x)


def _normal(to: _Drawing, loc: Any, scale: Any = 1.0) -> Tensor:
    """Serve ``torch.normal`` with tensors for either argument."""
    like = loc if isinstance(loc, Tensor) else scale
    shape = torch.broadcast_shapes(*[arg.shape for arg in (loc, scale) if isinstance(arg, Tensor)])
    return loc + scale * _randn(to, shape, like.dtype)


def _normal_(to: _Drawing, x: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    return loc + scale * _randn_like(to, x)


def _exponential_(to: _Drawing, x: Tensor, rate: float = 1.0) -> Tensor:
    return -(-to.uniform(x.shape, _real(x.dtype))).log1p() / rate


def _cauchy_(to: _Drawing, x: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    return loc + scale * (pi * (_rand_like(to, x) - 0.5)).tan()


def _bernoulli(to: _Drawing, p: Tensor) -> Tensor:
    return (to.uniform(p.shape, _real(p.dtype)) < p).to(p.dtype)


def _multinomial(to: _Drawing, p: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    """Draw by the inverse of the distribution function."""
    if not replacement and num_samples > 1:
        raise CannotKey(f"site '{to.name}' draws without replacement")
    bounds = p.cumsum(-1)
    u = to.uniform((*p.shape[:-1], num_samples), _real(p.dtype)) * bounds[..., -1:]
    found = (u.unsqueeze(-1) >= bounds.unsqueeze(-2)).sum(-1)
    # Rounding may put a number past the last value that has any mass.
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).to(torch.int8).argmax(-1, keepdim=True)
    return torch.minimum(found, last)


def _log_gamma(to: _Drawing, alpha: Tensor) -> Tensor:
    """Draw the logarithm of a gamma variable of shape ``alpha`` and rate one, in float64.

    Small shapes give values far below the smallest float, whose ratios matter all the same. There are as many attempts
    for all elements as any of them could need; of several that are accepted the last is no better or worse.

    Reference: G. Marsaglia, W. Tsang, "A Simple Method for Generating Gamma Variables", ACM Transactions on
    Mathematical Software 2000, https://doi.org/10.1145/358407.358414.
    """
    alpha, shape = alpha.double(), alpha.shape
    small = alpha < 1
    d = alpha + small - 1 / 3
    c = 1 / (9 * d).sqrt()
    log_drawn = d.log()
    for _ in range(ATTEMPTS):
        z, u = to.normal(shape, torch.float64), 1 - to.uniform(shape, torch.float64)
        v = (1 + c * z).clamp_min(0) ** 3
        log_v = v.clamp_min(torch.finfo(torch.float64).tiny).log()
        accepted = (v > 0) & (u.log() < 0.5 * z.square() + d * (1 - v + log_v))
        log_drawn = torch.where(accepted, d.log() + log_v, log_drawn)
    boost = (1 - to.uniform(shape, torch.float64)).log() / alpha
    return torch.where(small, log_drawn + boost, log_drawn)


def _standard_gamma(to: _Drawing, alpha: Tensor) -> Tensor:
    return _log_gamma(to, alpha).exp().to(alpha.dtype).clamp_min(torch.finfo(alpha.dtype).tiny)


def _sample_dirichlet(to: _Drawing, alpha: Tensor) -> Tensor:
    """Draw within the open simplex, as torch does: no element is zero or one, where densities may be infinite."""
    info = torch.finfo(alpha.dtype)
    return _log_gamma(to, alpha).softmax(-1).to(alpha.dtype).clamp(info.tiny, 1 - info.eps / 2)


# Draws of torch by name, each from a site's streams.
RULES: dict[str, Callable[..., Tensor]] = {
    "rand": _rand,
    "randn": _randn,
    "rand_like": _rand_like,
    "randn_like": _randn_like,
    "uniform_": _uniform_,
    "normal": _normal,
    "normal_": _normal_,
    "exponential_": _exponential_,
    "cauchy_": _cauchy_,
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "_standard_gamma": _standard_gamma,
    "_sample_dirichlet": _sample_dirichlet,
}
