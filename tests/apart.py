"""What a process of its own trains; a file that imports little, since each process imports it."""

import random

import torch
from small import Bits, BitsGuide

import ppl_vae as pv

BITS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)


def trained(seed):
    """Return the bounds of three epochs on two bits."""
    fit = pv.fit(Bits(), BitsGuide(), BITS, pv.objectives.rloo, 3, epochs=3, batch_size=3, seed=seed)
    return fit.history["train_bound"]


def train(seed, queue):
    """Put them into a queue, with whether Python's random state has moved."""
    torch.set_num_threads(1)
    before = random.getstate()
    bounds = trained(seed)
    queue.put((seed, (bounds, random.getstate() != before)))
