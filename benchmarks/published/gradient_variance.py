"""Running variances of NVIL, MuProp and REBAR along one trajectory of a sigmoid belief network of two linear layers.

Reference: G. Tucker et al., "REBAR", NeurIPS 2017, https://arxiv.org/abs/1703.07370; the figures are those that the
README of its code printed, https://github.com/tensorflow/models/tree/r1.13.0/research/rebar.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.contenders import own_parameters
from benchmarks.published.records import Experiment, Figures, Published
from ppl_vae import objectives
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork

SIZES = {"x_dim": 784, "z_dim": 200, "layers": 2}
BATCH, TRAINED, RATE, DECAY = 24, 23_000, 3e-4, 0.999
EPOCHS = 2
ADAM = {"betas": (0.9, 0.99999)}
FOLLOWED = "MuProp"


class Followed:
    """An estimator on the trajectory: its own parameters learn there, and its gradients' moments are averaged.

    Args:
        estimator: of the ELBO's gradient.
    """

    def __init__(self, estimator: nn.Module):
        self.estimator, self.own = estimator, own_parameters(estimator)
        self.optimizer = torch.optim.Adam(self.own, lr=10 * RATE, **ADAM) if self.own else None
        self.mean, self.square, self.steps = 0.0, 0.0, 0

    def __call__(self, model: nn.Module, guide: nn.Module, x: Tensor, programs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradient of minus the bound in the programs' parameters, and learn from the batch."""
        loss = -self.estimator.estimate(model, guide, (x,), particles=1).surrogate.mean()
        gradient = torch.autograd.grad(loss, [*programs, *self.own], allow_unused=True)
        for parameter, own in zip(self.own, gradient[len(programs) :], strict=True):
            parameter.grad = own
        if self.optimizer:
            self.optimizer.step()
        found = gradient[: len(programs)]
        flat = torch.cat([part.flatten() for part in found])
        self.steps += 1
        weight = (1 - DECAY) / (1 - DECAY**self.steps)  # so that early averages are no smaller
        self.mean = self.mean + weight * (flat - self.mean)
        self.square = self.square + weight * (flat.square() - self.square)
        return found


def estimators() -> Mapping[str, nn.Module]:
    """Return what is compared, all of them estimates of one gradient."""
    return {
        # In evaluation mode its averages stay at 0 and 1, so that the network is all of the baseline, as in the source.
        "NVIL": objectives.NVIL(x_dim=784).eval(),
        "MuProp": objectives.MuProp(),
        "REBAR": objectives.REBAR(),
    }


def programs_at(mean: Tensor) -> tuple[SigmoidBeliefNetwork, Bernoulli]:
    """Return the pair, begun at the mean image: first units see it as zero, pixels have its logits."""
    model, guide = SigmoidBeliefNetwork(**SIZES), Bernoulli(**SIZES)
    with torch.no_grad():
        model.decoders[0][-1].bias.copy_(mean.clamp(0.001, 0.999).logit())
        first = guide.encoders[0][-1]
        first.bias.copy_(-first.weight @ (2 * mean - 1))
    return model, guide


def batches(x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the batches of an epoch."""
    for rows in torch.randperm(len(x), generator=generator).split(BATCH):
        yield x[rows]


def measured(seed: int, folder: Path) -> Figures:
    """Follow one estimator; after each epoch take the log of its mean of each one's running variance."""
    began, data = process_time(), pv.data.load("static_mnist").train[:TRAINED]
    torch.manual_seed(seed)
    model, guide = programs_at(data.mean(0))
    programs = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(programs, lr=RATE, **ADAM)
    compared = {name: Followed(estimator) for name, estimator in estimators().items()}
    generator, figures, steps = torch.Generator().manual_seed(seed), {}, 0
    for epoch in range(1, EPOCHS + 1):
        running: dict[str, list[float]] = {name: [] for name in compared}
        for x in batches(data, generator):
            for name, each in compared.items():
                gradient = each(model, guide, x, programs)
                if name == FOLLOWED:
                    moves = gradient
            mean = sum(each.mean for each in compared.values()) / len(compared)
            for name, each in compared.items():
                running[name].append(float((each.square - mean.square()).mean()))
            for parameter, move in zip(programs, moves, strict=True):
                parameter.grad = move
            optimizer.step()
            steps += 1
        # Over few steps the estimators' common mean is so uncertain that the difference may be negative: no logarithm.
        logs = torch.tensor([sum(of) / len(of) for of in running.values()]).log().tolist()
        figures |= {f"{name}, epoch {epoch}": log for name, log in zip(running, logs, strict=True)}
    return figures | {"steps": steps, "seconds": process_time() - began}


README = "README of REBAR's code"
SETTING = "one trajectory"
PRINTED = {
    "NVIL": ("2.76", "2.27"),
    "MuProp": ("-0.03", "-0.72"),
    "REBAR": ("-3.54", "-3.66"),
}
EXPERIMENT = Experiment(
    title="Log variance of gradients: NVIL, MuProp, REBAR",
    recipe="Sigmoid belief network 200-200-784, linear, begun at the mean image; batches of 24, Adam with 3e-4 and "
    "beta2 = 0.99999, ten times the rate for the estimators' own parameters, which learn along one trajectory; NVIL's "
    "baseline is a network of the data alone; natural logarithm of the mean over an epoch (959 steps) of running "
    "variances (decay 0.999 over steps) of the gradient in all parameters, around the mean of all estimators.",
    deviation="The first 23,000 images of static MNIST in place of the 23,000 of Omniglot. The trajectory is MuProp's, "
    "the source's that of a simpler MuProp. The source's MuProp and REBAR have a network of the data as a baseline "
    "too, and weights of their terms that are learnt.",
    settings={SETTING: measured},
    published={
        (SETTING, f"{name}, epoch {epoch}"): Published(value, README)
        for name, values in PRINTED.items()
        for epoch, value in enumerate(values, start=1)
    },
)
