"""Sources know how many data they have, or that they do not know."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ppl_vae.batches import source

N, PART = 20, 7
DATA = TensorDataset(torch.arange(float(N)))


class Own(Sampler):
    """Nothing says whether a datum comes twice."""

    def __iter__(self):
        return iter([0, 0, 1])

    def __len__(self):
        return 3


class Batches(Own):
    def __iter__(self):
        return iter([[0, 1], [2]])

    def __len__(self):
        return 2


class Read(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(5.0))


class Counted(Read):
    def __len__(self):
        return 5


def part():
    return SubsetRandomSampler(range(PART))


LOADERS = {
    "in order": (lambda: DataLoader(DATA, 4), N),
    "shuffled": (lambda: DataLoader(DATA, 4, shuffle=True), N),
    "a part": (lambda: DataLoader(DATA, 4, sampler=part()), PART),
    "batches of a part": (lambda: DataLoader(DATA, batch_sampler=BatchSampler(part(), 4, False)), PART),
    "batches asked for by a sampler": (lambda: DataLoader(DATA, None, sampler=BatchSampler(part(), 4, False)), PART),
    "the first of them": (lambda: DataLoader(DATA, 4, sampler=SequentialSampler(range(PART))), PART),
    "few of all in an epoch": (lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=PART)), N),
    "some of them twice": (lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, True, num_samples=50)), N),
    "of one process": (lambda: DataLoader(DATA, 4, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)), N),
    "weighted": (lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler(torch.ones(N), 50)), None),
    "in an order of one's own": (lambda: DataLoader(DATA, 4, sampler=Own()), None),
    "batches of one's own": (lambda: DataLoader(DATA, batch_sampler=Batches()), None),
    "without the last": (lambda: DataLoader(DATA, 3, drop_last=True), None),
    "batches without the last": (lambda: DataLoader(DATA, batch_sampler=BatchSampler(part(), 4, True)), None),
    "batches as they are": (lambda: DataLoader(TensorDataset(torch.zeros(3, 4)), None), None),
    "read": (lambda: DataLoader(Read(), 4), None),
    "read and counted": (lambda: DataLoader(Counted(), 4), 5),
}


@pytest.mark.parametrize("form", LOADERS)
def test_a_loader_has_the_data_that_its_sampler_draws_from(form):
    make, rows = LOADERS[form]
    found = source(make(), batch_size=1)
    assert found.rows == rows
    if not isinstance(found.loader.dataset, IterableDataset):
        assert found.batches == len(list(found))
