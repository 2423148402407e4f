"""Training runs of all sorts, stopped in the middle and gone on with, by programs made anew."""

import signal
from functools import partial

import pairs
import pyro
import torch
from pyro.distributions import Normal
from pyro.infer import TraceGraph_ELBO
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import ppl_vae as pv
from ppl_vae import objectives, runs

EPOCHS, ROWS, BATCH = 4, 14, 4  # four batches an epoch, the last of two rows


def bits(rows=ROWS, seed=3):
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(seed)) > 0.5).double()


def small(model, guide, seed=0):
    pair = pairs.make(model, guide)
    torch.manual_seed(seed)  # so that what goes on does not begin at the same parameters
    with torch.no_grad():
        for parameter in pair.parameters().values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return pair


def plain(seed, **options):
    pair = small("vae", "normal", seed)
    return pv.fit(pair.model, pair.guide, bits(), valid=bits(5, 1), **options)


def averaged(seed, **options):
    pair = small("vae", "normal", seed)
    more = {"ema": 0.9, "scheduler": partial(OneCycleLR, max_lr=1e-2, total_steps=8), "accumulate": 2, "clip_norm": 1.0}
    return pv.fit(pair.model, pair.guide, bits(), valid=bits(5, 1), **more, **options)


def scheduled(seed, **options):
    pair = small("vae", "normal", seed)
    warm_up = objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, steps=6))
    more = {
        "scheduler": partial(ReduceLROnPlateau, patience=0),
        "patience": 3,
        "optimizer": partial(SGD, lr=1e-2, momentum=0.9),
    }
    return pv.fit(pair.model, pair.guide, bits(), warm_up, valid=bits(5, 1), **more, **options)


def baselined(seed, **options):
    pair, nvil = small("sigmoid_belief_network", "bernoulli", seed), objectives.NVIL(x_dim=6, hidden=4).double()
    return pv.fit(pair.model, pair.guide, bits(), nvil, 3, valid=bits(5, 1), **options)


def tuned(seed, **options):
    """An estimator with parameters and a temperature of its own."""
    pair = small("sigmoid_belief_network", "bernoulli", seed)
    relax = objectives.RELAX(z=pv.nets.MLP(2, (4,), 1).double())
    return pv.fit(pair.model, pair.guide, bits(), relax, valid=bits(5, 1), ema=0.5, **options)


def of_pyro(seed, **options):
    pair = small("sigmoid_belief_network", "bernoulli", seed)
    return pv.fit(pair.model, pair.guide, bits(), TraceGraph_ELBO(num_particles=2), valid=bits(5, 1), **options)


def normalised(seed, **options):
    """Running statistics and dropout in the encoder."""
    pair = small("vae", "normal", seed)
    layers = (torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.2))
    pair.guide.encoder = torch.nn.Sequential(*layers, pair.guide.encoder).double()
    return pv.fit(pair.model, pair.guide, bits(ROWS + 2), valid=bits(5, 1), **options)


def loaded(seed, transform, **options):
    """A loader with a generator of its own, and data that are drawn as they are read."""

    class Noisy(TensorDataset):
        def __getitem__(self, i):
            (x,) = super().__getitem__(i)
            return (torch.where(torch.rand_like(x) < 0.1, 1 - x, x),)

    data = Noisy(bits())
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5))
    pair, loader = small("vae", "normal", seed), DataLoader(data, BATCH, sampler=sampler)
    return pv.fit(pair.model, pair.guide, loader, valid=bits(5, 1), transform=transform, **options)


def streamed(seed, **options):
    pair = small("vae", "normal", seed)
    data = torch.utils.data.ConcatDataset([TensorDataset(bits(9)), TensorDataset(bits(5, 7))])
    return pv.fit(pair.model, pair.guide, data, **options)


def sparse(seed, **options):
    """Rows of an own posterior for each datum, whose sparse gradients are gathered across the ends of epochs."""
    pair, own = small("vae", "normal", seed), torch.nn.Embedding(ROWS, 4, sparse=True).double()
    pair.model.requires_grad_(False)

    def guide(x, index):
        with pyro.plate("data", x.shape[0], dim=-1):
            loc, scale = own(index).chunk(2, -1)
            pyro.sample("z", Normal(loc, scale.exp()).to_event(1))

    torch.nn.init.normal_(own.weight)
    more = {"optimizer": partial(torch.optim.SparseAdam, lr=0.05), "accumulate": 3}
    return pv.fit(pair.model, guide, bits(), **more, **options)


def alternating(seed, **options):
    pair = small("vae", "normal", seed)
    optimizers = {
        "guide_optimizer": Adam(pair.guide.parameters(), 1e-2),
        "model_optimizer": SGD(pair.model.parameters(), 1e-2),
    }
    step = pv.variational_em_step(pair.model, pair.guide, e_steps=2, **optimizers)
    scheduler = {"guide_optimizer": partial(ExponentialLR, gamma=0.7)}
    return pv.fit(step=step, data=bits(), valid=bits(5, 1), ema=0.9, scheduler=scheduler, **options)


def playing(seed, **options):
    from ppl_vae.models.gan import GAN

    torch.manual_seed(seed)
    model, critic = GAN(x_dim=6, z_dim=2, hidden=(8,)).double(), pv.nets.MLP(6, (8,), 1).double()
    adams = [Adam(part.parameters(), lr=1e-3) for part in (model, critic)]
    step = pv.gan_step(model, critic, optimizer=adams[0], critic_optimizer=adams[1])
    return pv.fit(step=step, data=bits(), scheduler=partial(ExponentialLR, gamma=0.7), **options)


RUNS = {f.__name__: f for f in (plain, averaged, scheduled, baselined, tuned, of_pyro, normalised, loaded, streamed)}
RUNS |= {f.__name__: f for f in (sparse, alternating, playing)}


class Stopper:
    """Presses Ctrl-C while a batch is made ready."""

    def __init__(self, after):
        self.left = after

    def __call__(self, x):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return torch.where(torch.rand_like(x) < 0.1, 1 - x, x)  # drawn anew in every batch


def run(train, out, stop_after=0, seed=0, **options):
    """Train; return whether it came to its end."""
    options = {"epochs": EPOCHS, "batch_size": BATCH, "progress": False} | options
    try:
        train(seed, out=out, transform=Stopper(stop_after), **options)
    except KeyboardInterrupt:
        return False
    return True


def state(folder):
    """Return all that a finished run leaves, but the time that it took."""
    last, best = runs.read_last(folder), runs.read_best(folder)
    last["place"].pop("seconds")
    last["place"]["history"].pop("seconds")
    metrics = runs.read_metrics(folder)
    metrics.pop("seconds")
    return {"last": last, "best": best, "metrics": metrics}


def _all(tensor):
    return tensor.to_dense() if tensor.is_sparse else tensor


def differences(found, expected, where=""):
    """Return where two nested contents differ, bit for bit."""
    if isinstance(expected, torch.Tensor):
        alike = isinstance(found, torch.Tensor) and found.dtype == expected.dtype
        same = alike and torch.equal(_all(found), _all(expected))
        return [] if same else [where]
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return [f"{where}: other keys"]
        return [d for key in expected for d in differences(found[key], expected[key], f"{where}/{key}")]
    if isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return [f"{where}: other length"]
        return [
            d for i, pair in enumerate(zip(found, expected, strict=True)) for d in differences(*pair, f"{where}/{i}")
        ]
    return (
        []
        if found == expected or (found != found and expected != expected)
        else [f"{where}: {found!r}, not {expected!r}"]
    )
