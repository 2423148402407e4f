"""Data as batches: tensors in memory are sliced, everything else goes through a DataLoader."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from ppl_vae.arguments import whole

__all__ = ["Batch", "Source", "as_batch", "not_finite", "source"]

Batch = tuple[Tensor, ...]
Transform = Callable[[Tensor], Tensor]


def as_batch(x: Any) -> Batch:
    """Return a tensor, or a tuple or list of tensors with equally many rows, as a tuple.

    Raises:
        TypeError: something in it is not a tensor.
        ValueError: it has no rows, or the tensors differ in their number of rows.

    Example:
        >>> [t.shape for t in as_batch((torch.zeros(3, 2), torch.zeros(3)))]
        [torch.Size([3, 2]), torch.Size([3])]
    """
    if isinstance(x, Tensor) and x.dim() and x.shape[0]:
        return (x,)
    if hasattr(x, "test") and hasattr(x, "info"):
        raise TypeError("data: expected a batch, found the three parts of a data set; pass one, such as data.test")
    batch = tuple(x) if isinstance(x, (tuple, list)) else (x,)
    for i, part in enumerate(batch):
        if not isinstance(part, Tensor):
            raise TypeError(
                f"data: part {i} is a {type(part).__module__}.{type(part).__name__}; "
                "pass a tensor (torch.as_tensor) or a tuple of tensors"
            )
    # len(part) and hash(rows) would tie a captured graph to one batch size; shape[0] and == do not.
    rows = [part.shape[0] if part.dim() else None for part in batch]
    if not rows or None in rows:
        raise ValueError("data: expected tensors whose first axis runs over data, found a scalar or nothing")
    if any(n != rows[0] for n in rows):
        raise ValueError(f"data: the tensors of a batch differ in their number of rows: {rows}")
    if rows[0] == 0:
        raise ValueError("data: empty (no rows); check the split or the filter that made it")
    return batch


def not_finite(batch: Batch) -> str:
    """Return in words which rows of which tensor are not numbers, and the repair; nothing if all are.

    Example:
        >>> not_finite((torch.tensor([[1.0], [torch.nan]]),))
        'row 1 of part 0 holds NaN or infinite numbers; drop it, or fill it in with pv.impute'
    """
    for i, part in enumerate(batch):
        if not part.is_floating_point() or part.isfinite().all():
            continue
        rows = (~part.reshape(len(part), -1).isfinite().all(1)).nonzero().flatten().tolist()
        listed = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        some, hold, them = ("rows", "hold", "them") if len(rows) > 1 else ("row", "holds", "it")
        return (
            f"{some} {listed} of part {i} {hold} NaN or infinite numbers; drop {them}, or fill {them} in with pv.impute"
        )
    return ""


class Source:
    """Batches of a data set, in random or in given order.

    Iterating gives batches in the given order; `shuffled` gives one epoch in random order.
    The last, shorter batch is always part of it.

    Attributes:
        rows: number of data N from which epochs are drawn, or None where it is not known.
    """

    rows: int | None = None

    def __init__(self, batch_size: int, transform: Transform | None = None):
        self.batch_size = whole("batch_size", batch_size)
        self.transform = transform

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def shuffled(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch in an order drawn from the generator, transformed."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return a word that tells data apart: rows that are read may be drawn, and tell nothing."""
        return f"{self.rows} rows"

    def generators(self) -> list[torch.Generator]:
        """Return the generators of its own, on which the order depends."""
        return []

    def rows_of(self, batch: int) -> list[int] | None:
        """Return which rows of the data the batch of this number had, in the latest epoch, or None where unknown."""
        return None

    def on(self, device: torch.device | None) -> "Source":
        """Return the data where a device reaches them best: themselves, if they come in batches."""
        return self

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, or None where it is not known."""
        return None if self.rows is None else -(-self.rows // self.batch_size)

    def first(self) -> Batch:
        """Return the first batch, transformed: what training will see."""
        if (batch := next(iter(self), None)) is None:
            raise ValueError(
                "data: the loader gives no batch; with drop_last=True it needs batch_size data at least, and what it "
                "reads must last for several passes"
            )
        return self._transformed(batch)

    def _transformed(self, batch: Batch) -> Batch:
        return batch if self.transform is None else (self.transform(batch[0]), *batch[1:])


class InMemory(Source):
    """Tensors, sliced together, on the device where they are. No copies are made but the slices."""

    def __init__(self, tensors: Batch, batch_size: int, transform: Transform | None = None):
        super().__init__(batch_size, transform)
        self.tensors = tensors
        self.rows = len(tensors[0])
        self._order = torch.arange(0)

    def digest(self) -> str:
        """Return a word that tells data apart, by the number of rows and the first of them."""
        digest = hashlib.sha256()
        for part in next(iter(self)):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return f"{self.rows} rows, {digest.hexdigest()[:16]}"

    def rows_of(self, batch: int) -> list[int]:
        """Return which rows of the data the batch of this number had, in the latest epoch."""
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def on(self, device: torch.device | None) -> Source:
        """Return the same data on a device, so that no batch has to travel."""
        return InMemory(tuple(t.to(device or t.device) for t in self.tensors), self.batch_size, self.transform)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.rows, self.batch_size):
            yield tuple(t[start : start + self.batch_size] for t in self.tensors)

    def shuffled(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch in an order drawn from the generator, transformed."""
        self._order = torch.randperm(self.rows, generator=generator)
        for rows in self._order.to(self.tensors[0].device).split(self.batch_size):
            yield self._transformed(tuple(t[rows] for t in self.tensors))


# From so many rows on, reading is worth processes of its own.
MANY_ROWS = 10_000
WORKERS = 2


class Streamed(Source):
    """A map-style data set read through two loaders, in order and shuffled.

    Large ones are read by worker processes, where these share the data set by forking, into pinned
    memory if there is a GPU.
    """

    def __init__(self, dataset: Dataset, batch_size: int, transform: Transform | None = None):
        super().__init__(batch_size, transform)
        self.dataset = dataset
        self.rows = len(dataset)
        if not self.rows:
            raise ValueError("data: the Dataset is empty (no rows); check the split or the filter that made it")

    def __iter__(self) -> Iterator[Batch]:
        return map(as_batch, self._loader())

    def shuffled(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch in an order drawn from the generator, transformed."""
        return map(self._transformed, map(as_batch, self._loader(shuffle=True, generator=generator)))

    def _loader(self, **order: Any) -> DataLoader:
        # Elsewhere a data set would have to be pickled, and one made in a script often cannot be.
        forks = torch.multiprocessing.get_start_method() == "fork"
        workers = WORKERS if forks and self.rows >= MANY_ROWS else 0
        pinned = torch.cuda.is_available()
        return DataLoader(self.dataset, self.batch_size, num_workers=workers, pin_memory=pinned, **order)


class Loaded(Source):
    """A DataLoader of the caller's: its batch size, its order, its workers."""

    def __init__(self, loader: DataLoader, transform: Transform | None = None):
        super().__init__(loader.batch_size or 1, transform)
        self.loader = loader
        self.rows = _drawn_from(loader)

    def generators(self) -> list[torch.Generator]:
        """Return the generators of the loader and of its samplers."""
        inner = getattr(self.loader.batch_sampler, "sampler", None)
        owners = (self.loader, self.loader.sampler, self.loader.batch_sampler, inner)
        found = [getattr(owner, "generator", None) for owner in owners]
        return [generator for generator in found if generator is not None]

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, or None where it is not known."""
        if isinstance(self.loader.dataset, IterableDataset):
            return None
        try:
            return len(self.loader)
        except TypeError:  # samplers need not know how many batches they make
            return None

    def __iter__(self) -> Iterator[Batch]:
        return map(as_batch, self.loader)

    def shuffled(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch in the loader's own order, transformed."""
        return map(self._transformed, self)


def source(data: Any, batch_size: int, transform: Transform | None = None) -> Source:
    """Return the `Source` for tensors, a Dataset or a DataLoader.

    Args:
        data: a tensor, a tuple of tensors, a map-style ``Dataset`` or a ``DataLoader`` (whose own
            batch size then counts).
        batch_size: data per batch.
        transform: applied to the first tensor of every training batch, such as
            ``pv.data.binarize`` to binarize anew each time.

    Raises:
        TypeError: data is none of these.
        ValueError: data is empty or ``batch_size`` below 1.

    Example:
        >>> [len(x) for x, in source(torch.zeros(5, 2), batch_size=2)]
        [2, 2, 1]
    """
    if isinstance(data, DataLoader):
        return Loaded(data, transform)
    if isinstance(data, IterableDataset):
        raise TypeError("data: an IterableDataset has no epoch of its own; wrap it in a DataLoader")
    if type(data) is TensorDataset:
        data = data.tensors
    if isinstance(data, Dataset):
        return Streamed(data, batch_size, transform)
    return InMemory(as_batch(data), batch_size, transform)


def _drawn_from(loader: DataLoader) -> int | None:
    """Return how many data all epochs of a loader are drawn from, or None where it does not tell.

    How many an epoch draws is another number where data may repeat. Samplers of other types than these say nothing of
    repeats, and weighted ones have no number of data.
    """
    batches = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(batches) is not BatchSampler or batches.drop_last:
        return None
    if isinstance(loader.dataset, IterableDataset):
        return len(loader.dataset) if hasattr(loader.dataset, "__len__") else None
    sampler = batches.sampler
    if type(sampler) in (SequentialSampler, RandomSampler):
        return len(sampler.data_source)
    if type(sampler) is DistributedSampler:
        return len(sampler.dataset)
    return len(sampler) if type(sampler) is SubsetRandomSampler else None
