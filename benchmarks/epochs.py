"""Time an epoch of training on MNIST, data included, and the import of the library.

    python -m benchmarks.epochs [--rounds N] [--quick]

Every contender trains the 784-400-20 VAE on the ELBO for an epoch over 50,000 images in random order, in
batches of 128 that are binarised anew. Images come from ``PPL_VAE_DATA`` or are downloaded.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ppl_vae as pv
from benchmarks.speed import by_hand, commands
from benchmarks.speed.programs import WORKLOADS
from ppl_vae.optimizers import adam

BATCH = 128
GOALS = {"PyTorch by hand": 0.8, "NumPyro scan": 1.0, "pythae": 0.4}
PAIR = WORKLOADS["elbo-400"]


def ours(splits: pv.data.Splits) -> Callable[[], Any]:
    """Return an epoch of `fit`."""
    model, guide = PAIR.pair()
    step = pv.svi_step(model, guide, optimizer=adam([*model.parameters(), *guide.parameters()]), compile=True)
    transform = splits.info.transform
    return lambda: pv.fit(step=step, data=splits.train, transform=transform, epochs=1, batch_size=BATCH)


def batches(x: Tensor) -> Iterator[Tensor]:
    """Yield batches in random order, sliced from memory and binarised as people write it."""
    for rows in torch.randperm(len(x)).split(BATCH):
        yield torch.bernoulli(x[rows])


def hand(splits: pv.data.Splits) -> Callable[[], Any]:
    """Return an epoch of a loop by hand."""
    net = by_hand.network(PAIR, PAIR.pair())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def epoch() -> None:
        total = torch.zeros(())
        for x in batches(splits.train):
            optimizer.zero_grad()
            loss = net(x)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
        total.item()

    return epoch


def numpyro(splits: pv.data.Splits) -> Callable[[], Any]:
    """Return an epoch in one jitted scan over the batches."""
    import jax
    import jax.numpy as jnp
    from numpyro import infer, optim

    from benchmarks.speed.numpyros import numbers, vae_programs

    x = jnp.asarray(splits.train.numpy())
    svi = infer.SVI(*vae_programs(numbers(PAIR.pair())), optim.Adam(1e-3), infer.Trace_ELBO())
    holder = [svi.init(jax.random.PRNGKey(0), x[:BATCH]), jax.random.PRNGKey(1)]
    whole = len(x) // BATCH

    def body(carry: Any, rows: Any) -> tuple[Any, Any]:
        state, key = carry
        key, now = jax.random.split(key)
        batch = (jax.random.uniform(now, (len(rows), x.shape[1])) < x[rows]).astype(x.dtype)
        state, loss = svi.update(state, batch)
        return (state, key), loss

    @jax.jit
    def scan(state: Any, key: Any) -> Any:
        key, now = jax.random.split(key)
        order = jax.random.permutation(now, len(x))
        carry, losses = jax.lax.scan(body, (state, key), order[: whole * BATCH].reshape(whole, BATCH))
        carry, _ = body(carry, order[whole * BATCH :])
        return carry, losses.sum()

    def epoch() -> None:
        holder[:], loss = scan(*holder)
        loss.block_until_ready()

    return epoch


def pythae(splits: pv.data.Splits) -> Callable[[], Any]:
    """Return an epoch of pythae's trainer over a data set that binarises what it is asked for."""
    from pythae.data.datasets import BaseDataset, DatasetOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    from benchmarks.speed.pythaes import model_of

    class Binarised(BaseDataset):
        def __getitem__(self, index: Any) -> Any:
            return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])

    from pythae.trainers import training_callbacks

    training_callbacks.tqdm = partial(training_callbacks.tqdm, disable=True)
    config = BaseTrainerConfig(output_dir="/tmp/pythae", num_epochs=1, learning_rate=1e-3, no_cuda=True)
    config.per_device_train_batch_size = BATCH
    data = Binarised(splits.train, torch.zeros(len(splits.train)))
    trainer = BaseTrainer(model_of(PAIR), train_dataset=data, training_config=config)
    trainer.prepare_training()
    return lambda: trainer.train_step(epoch=1)


MAKERS = {"ppl_vae": ours, "PyTorch by hand": hand, "NumPyro scan": numpyro, "pythae": pythae}


def timed_epochs(rounds: int) -> dict[str, float]:
    """Return the median seconds of an epoch, in turns."""
    splits = pv.data.load("mnist", binarize="dynamic")
    epochs = {}
    for name, make in MAKERS.items():
        try:
            epochs[name] = make(splits)
        except ImportError as error:
            print(f"{name} left out: {error}")
    times = {name: [] for name in epochs}
    for i in range(rounds + 1):
        for name, epoch in epochs.items():
            started = time.perf_counter()
            epoch()
            if i:  # the first compiles
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured) for name, measured in times.items()}


def timed_imports(rounds: int) -> dict[str, float]:
    """Return the median seconds of imports, each in a new process, in turns."""
    lines = {"torch, pyro": "import torch, pyro, pyro.infer", "ppl_vae": "import ppl_vae"}
    times = {name: [] for name in lines}
    for _ in range(rounds):
        for name, line in lines.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", line], check=True)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured) for name, measured in times.items()}


def table(title: str, seconds: dict[str, float], goals: dict[str, float]) -> Table:
    """Return seconds and the ratio of ours to each."""
    made = Table("", "seconds", "ours / theirs", "goal", title=title, title_justify="left")
    for name, value in seconds.items():
        goal = f"{goals[name]:.2f}" if name in goals else ""
        made.add_row(name, f"{value:.2f}", f"{seconds['ppl_vae'] / value:.2f}", goal)
    return made


def main() -> None:
    """Time epochs and imports."""
    given = commands.parser(__doc__, rounds=7).parse_args()
    rounds = 1 if given.quick else given.rounds
    epochs, imports = timed_epochs(rounds), timed_imports(rounds)
    Console().print(table("An epoch on MNIST, H = 400", epochs, GOALS))
    Console().print(table("Import", imports, {"torch, pyro": 1.1}))
    commands.write("epochs", {"epoch": epochs, "import": imports})


if __name__ == "__main__":
    main()
