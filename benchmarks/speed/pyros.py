"""Pyro's own SVI on the same programs, and the steps of this library."""

from typing import Any

import pyro
import torch
from pyro import infer
from torch import Tensor

import ppl_vae as pv
from benchmarks.speed.programs import Workload
from benchmarks.speed.timing import Contender
from ppl_vae.estimation import estimate
from ppl_vae.optimizers import adam

OURS, EAGER = "ppl_vae", "ppl_vae, eager"


def ours(workload: Workload, x: Tensor) -> list[Contender]:
    """Return our step, compiled and eager."""
    return [our_step(workload, x, OURS, True), our_step(workload, x, EAGER, False)]


def our_step(workload: Workload, x: Tensor, name: str, compiled: bool) -> Contender:
    """Return one step of ours."""
    model, guide = workload.pair()
    optimizer = adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, workload.objective, workload.particles, optimizer=optimizer, compile=compiled)
    still = workload.pair()

    @torch.no_grad()
    def loss() -> float:
        return -float(estimate(workload.objective, *still, x, workload.particles).value.mean())

    return Contender(name, lambda: step(x), loss=loss)


def pyro_losses(workload: Workload) -> dict[str, infer.ELBO]:
    """Return Pyro's objectives for a workload, the plain one first; none where Pyro has no such estimator."""
    if workload.make.__name__ == "belief_network":
        return {}
    if workload.make.__name__ == "mixture":
        plates = {"max_plate_nesting": 1}
        return {"Pyro SVI": infer.TraceEnum_ELBO(**plates), "Pyro SVI, JIT": infer.JitTraceEnum_ELBO(**plates)}
    if workload.particles > 1:
        options = {"num_particles": workload.particles, "vectorize_particles": True, "max_plate_nesting": 1}
        return {"Pyro SVI": infer.RenyiELBO(alpha=0, **options)}
    return {"Pyro SVI": infer.Trace_ELBO(), "Pyro SVI, JIT": infer.JitTrace_ELBO()}


def contenders(workload: Workload, x: Tensor) -> list[Contender]:
    """Return Pyro's SVI steps."""
    return [svi_step(workload, x, name, loss) for name, loss in pyro_losses(workload).items()]


def svi_step(workload: Workload, x: Tensor, name: str, objective: Any) -> Contender:
    """Return a step of Pyro's SVI with its Adam, without argument validation, as ours."""
    model, guide = (pv.registered(program) for program in workload.plain_pair())
    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    still = infer.SVI(
        *(pv.registered(p) for p in workload.plain_pair()), pyro.optim.Adam({"lr": 1e-3}), plain(objective)
    )

    def run() -> None:
        with pyro.validation_enabled(False):
            svi.step(x)

    return Contender(name, run, loss=lambda: still.evaluate_loss(x) / len(x))


def plain(objective: Any) -> Any:
    """Return the objective without Pyro's compiler, which computes the same."""
    return {
        infer.JitTrace_ELBO: infer.Trace_ELBO,
        infer.JitTraceEnum_ELBO: lambda: infer.TraceEnum_ELBO(max_plate_nesting=1),
    }.get(type(objective), lambda: objective)()
