"""Normalising flows: zuko's transforms, of which the library's are made, beside Pyro's; and what a flow brings.

    python -m benchmarks.flows speed          # milliseconds, forward and backward, both libraries in turns
    python -m benchmarks.flows correctness    # inverses, volumes and gradients against autograd and float64
    python -m benchmarks.flows compiled       # training steps, eager and as one graph
    python -m benchmarks.flows digits         # flows as guide and as prior of a small VAE, test nats

Both libraries have the same sizes of masked networks, and as many layers. ``--quick`` shows that a command runs.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import typer
from pyro.distributions import transforms
from pyro.nn import ConditionalAutoRegressiveNN, ConditionalDenseNN
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.figures import show
from benchmarks.speed import commands
from benchmarks.speed.timing import Contender, interleaved
from ppl_vae.distributions import NormalizingFlow
from ppl_vae.guides.flow import Flow
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.nets import flows

app = typer.Typer(help=__doc__.splitlines()[0], add_completion=False)
Quick = Annotated[bool, typer.Option("--quick", help="Little of everything, to see that it runs.")]
Rounds = Annotated[int, typer.Option(help="Of which a median is taken.")]

BATCH, CONTEXT, HIDDEN, LAYERS, BINS = 128, 32, (64,), 2, 8
AFFINE, SPLINE, COUPLING, SPLINE_COUPLING = (
    "affine autoregressive",
    "spline autoregressive",
    "affine coupling",
    "spline coupling",
)
ZUKO = {
    AFFINE: (flows.autoregressive, flows.affine),
    SPLINE: (flows.autoregressive, flows.spline),
    COUPLING: (flows.coupling, flows.affine),
    SPLINE_COUPLING: (flows.coupling, flows.spline),
}


def pyro_layer(family: str, z_dim: int) -> nn.Module:
    """Return one of Pyro's conditional transforms; it has no spline coupling with a context."""
    if family == COUPLING:
        half = z_dim // 2
        network = ConditionalDenseNN(half, CONTEXT, list(HIDDEN), [z_dim - half] * 2)
        return transforms.ConditionalAffineCoupling(half, network)
    masked = partial(ConditionalAutoRegressiveNN, z_dim, CONTEXT, list(HIDDEN))
    if family == AFFINE:
        return transforms.ConditionalAffineAutoregressive(masked(param_dims=[1, 1]))
    network = masked(param_dims=[BINS, BINS, BINS - 1])
    return transforms.ConditionalSplineAutoregressive(z_dim, network, count_bins=BINS, bound=5.0, order="quadratic")


class OfPyro(nn.Module):
    """Numbers ``(..., 2 z_dim + CONTEXT)`` to a distribution of Pyro's transforms: `nets.ToFlow`, theirs."""

    def __init__(self, family: str, z_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(pyro_layer(family, z_dim) for _ in range(LAYERS))
        self.noise, self.sizes = pv.nets.ToNormal(), (2 * z_dim, CONTEXT)

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        normal, context = h.split(self.sizes, dim=-1)
        return dist.TransformedDistribution(self.noise(normal), [layer.condition(context) for layer in self.layers])


def of_zuko(family: str, z_dim: int) -> nn.Module:
    """Return the library's own head."""
    transform, function = ZUKO[family]
    return pv.nets.ToFlow(z_dim, CONTEXT, HIDDEN, LAYERS, transform, function)


LIBRARIES: dict[str, Callable[[str, int], nn.Module]] = {"zuko": of_zuko, "Pyro": OfPyro}


def heads(
    z_dim: int, dtype: torch.dtype = torch.float32, steepness: float = 1.0
) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield every family of every library that has it, its weights multiplied."""
    for family, library in product(ZUKO, LIBRARIES):
        if (family, library) != (SPLINE_COUPLING, "Pyro"):
            torch.manual_seed(0)
            head = LIBRARIES[library](family, z_dim).to(dtype)
            for part in head.modules():
                if isinstance(part, nn.Linear):
                    part.reset_parameters()
            for parameter in head.parameters():
                parameter.data.mul_(steepness)
            yield family, library, head


def drawn_and_scored(head: nn.Module, h: Tensor, particles: int) -> None:
    """Draw, score the draws, and differentiate both."""
    q = head(h)
    z = q.rsample((particles,))
    torch.autograd.grad((q.log_prob(z) + z.square().sum(-1)).mean(), list(head.parameters()))


def scored(head: nn.Module, h: Tensor, z: Tensor) -> None:
    """Score given values, and differentiate."""
    torch.autograd.grad(head(h).log_prob(z).mean(), list(head.parameters()))


@app.command()
def speed(
    quick: Quick = False,
    rounds: Rounds = 7,
    z_dims: Annotated[list[int] | None, typer.Option("--z-dim", help="Dimensions; 2, 20 and 40 if left out.")] = None,
    particles: Annotated[list[int] | None, typer.Option(help="K; 1 and 50 if left out.")] = None,
) -> None:
    """Time drawing with its density, and the density of given values, one thread, batch 128."""
    torch.set_num_threads(1)
    sizes = [(2, 1)] if quick else list(product(z_dims or (2, 20, 40), particles or (1, 50)))
    rows: list[dict[str, Any]] = []
    with pyro.validation_enabled(False):
        for z_dim, k in sizes:
            found = timed(z_dim, k, 2 if quick else rounds)
            show(f"Milliseconds, forward and backward: z_dim {z_dim}, K {k}", found, list(found[0]))
            rows += found
    commands.write("flows_speed", {"torch": torch.__version__, "rows": rows})


def timed(z_dim: int, particles: int, rounds: int) -> list[dict[str, Any]]:
    """Return medians of both libraries in turns, and their ratio."""
    h, z = torch.randn(BATCH, 2 * z_dim + CONTEXT), torch.randn(particles, BATCH, z_dim)
    work = {"draw and its density": (drawn_and_scored, particles), "density of given values": (scored, z)}
    rows = []
    for family, (title, (task, given)) in product(ZUKO, work.items()):
        # Splines backwards take seconds; their chains of passes are measured at K = 1.
        if family == SPLINE and task is scored and particles > 1:
            continue
        mine = {library: head for f, library, head in heads(z_dim) if f == family}
        contenders = [Contender(name, partial(task, head, h, given)) for name, head in mine.items()]
        ms = {name: 1e3 * seconds for name, seconds in interleaved(contenders, rounds, steps=1).items()}
        theirs = ms.get("Pyro", float("nan"))
        row = {"z_dim": z_dim, "K": particles, "family": family, "task": title}
        rows.append(row | {"zuko": ms["zuko"], "Pyro": theirs, "zuko / Pyro": ms["zuko"] / theirs})
    return rows


@app.command()
def correctness(quick: Quick = False) -> None:
    """Compare volumes and inverses with autograd's Jacobian and the noise, as initialised and with steep weights."""
    z_dim, rows = 4 if quick else 20, []
    for dtype, steepness in ((torch.float32, 1.0), (torch.float64, 1.0), (torch.float64, 3.0)):
        for family, library, head in heads(z_dim, dtype, steepness):
            found = errors(head, z_dim, dtype)
            numbers = {"dtype": str(dtype).removeprefix("torch."), "weights times": steepness}
            rows.append({"family": family, "library": library} | numbers | found)
    show(f"Errors: log volume against autograd's (nats), noise found again, z_dim {z_dim}", rows, list(rows[0]))
    facts = habits()
    show("Habits of a flow without a context", facts, list(facts[0]))
    commands.write("flows_correctness", {"errors": rows, "habits": facts})


def errors(head: nn.Module, z_dim: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest error of eight rows' log volumes, and of the noise of many."""
    h, u = torch.randn(BATCH, 2 * z_dim + CONTEXT, dtype=dtype), torch.randn(BATCH, z_dim, dtype=dtype)

    def chain(rows: slice) -> dist.transforms.Transform:
        q = head(h[rows])
        return q.transform if isinstance(q, NormalizingFlow) else dist.transforms.ComposeTransform(q.transforms)

    volumes = []
    for i in range(8):
        f, row = chain(slice(i, i + 1)), u[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(f, row)[0, :, 0].double()
        volumes.append(f.log_abs_det_jacobian(row, f(row)).detach() - torch.linalg.slogdet(jacobian)[1])
    with torch.no_grad():
        z = chain(slice(None))(u)
        back = inverted(chain(slice(None)), z)
    return {"volume": float(torch.stack(volumes).abs().max()), "noise": float((back - u).abs().max())}


def inverted(f: dist.transforms.Transform, z: Tensor) -> Tensor:
    """Return the noise of values, or no numbers where the inverse refuses."""
    try:
        return f.inv(z)
    except (AssertionError, RuntimeError):
        return torch.full_like(z, torch.nan)


def habits() -> list[dict[str, Any]]:
    """Return what happens to a prior's flow that is used, copied, or asked in float64."""
    return [
        {"library": "zuko", **asked(flows.autoregressive(z_dim=4), lambda module: module())},
        {"library": "Pyro", **asked(transforms.affine_autoregressive(4, [64]), lambda module: module)},
    ]


def asked(module: nn.Module, transform: Callable[[nn.Module], Any]) -> dict[str, str]:
    """Return the answers, one a question."""
    noise = dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1)
    of = NormalizingFlow if not isinstance(module, dist.transforms.Transform) else dist.TransformedDistribution
    q = of(noise, transform(module.double()))
    questions: dict[str, Callable[[], bool]] = {
        "density of given float64 values": lambda: bool(q.log_prob(torch.ones(3, 4).double()).isfinite().all()),
        "gradient at draws without one": lambda: q.log_prob(q.sample((3,))).requires_grad,
        "copied after a draw": lambda: q.rsample((3,)) is not None and copy.deepcopy(module) is not module,
    }
    return {question: answer(ask) for question, ask in questions.items()}


def answer(ask: Callable[[], bool]) -> str:
    """Return yes, no, or the error."""
    try:
        return "yes" if ask() else "no"
    except RuntimeError as error:
        return f"no: {str(error).splitlines()[0][:45]}..."


@app.command()
def compiled(quick: Quick = False, rounds: Rounds = 7) -> None:
    """Time training steps of a VAE with a flow guide, eager and compiled, and the first compiled step."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    z_dim = 2 if quick else 20
    x = torch.rand(BATCH, 784, generator=torch.Generator().manual_seed(0)).bernoulli()
    rows = []
    for family, library, head in heads(z_dim):
        if quick and family != AFFINE:
            continue
        eager, graph = (step_of(copy.deepcopy(head), z_dim, way) for way in (False, True))
        started = time.perf_counter()
        graph(x)
        first = time.perf_counter() - started
        contenders = [Contender("eager", partial(eager, x)), Contender("compiled", partial(graph, x))]
        ms = {name: 1e3 * seconds for name, seconds in interleaved(contenders, rounds, steps=5).items()}
        rows.append({"family": family, "library": library, **ms, "first step, seconds": first})
    show(f"Milliseconds a step, ELBO, 784-200-{z_dim}, batch {BATCH}, one thread", rows, list(rows[0]))
    commands.write("flows_compiled", {"torch": torch.__version__, "rows": rows})


def step_of(head: nn.Module, z_dim: int, way: bool) -> Callable[[Tensor], Any]:
    """Return a training step of a VAE whose encoder ends in a head."""
    torch.manual_seed(0)
    encoder = nn.Sequential(pv.nets.MLP(784, (200,), 2 * z_dim + CONTEXT), head)
    model, guide = VAE(z_dim=z_dim, hidden=(200,)), Normal(z_dim=z_dim, encoder=encoder)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
    return pv.svi_step(model, guide, pv.objectives.elbo, 1, optimizer=optimizer, compile=way)


# By name: a prior and a guide.
def contenders(x_dim: int, z_dim: int, hidden: tuple[int, ...]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return priors and guides by name; the first is what the others are compared with."""
    sizes = {"x_dim": x_dim, "z_dim": z_dim, "hidden": hidden}
    normal, flow = partial(Normal, **sizes), partial(Flow, **sizes, context=32)
    standard = partial(pv.priors.StandardNormal, z_dim)
    masked = partial(pv.priors.AutoregressiveFlow, z_dim)
    made = {
        "normal prior, normal guide": (standard, normal),
        "normal prior, IAF guide": (standard, flow),
        "normal prior, spline guide": (standard, partial(flow, elementwise=flows.spline)),
        "MAF prior, normal guide": (masked, normal),
        "coupling prior, normal guide": (partial(pv.priors.CouplingFlow, z_dim), normal),
        "MAF prior, IAF guide": (masked, flow),
    }
    found = {}
    for name, (prior, guide) in made.items():
        torch.manual_seed(0)
        found[name] = VAE(**sizes, prior=prior()), guide()
    return found


@app.command()
def digits(
    quick: Quick = False,
    epochs: Annotated[int, typer.Option(help="Of training.")] = 60,
    particles: Annotated[int, typer.Option(help="Draws for each log-likelihood.")] = 500,
    z_dim: Annotated[int, typer.Option(help="Latents.")] = 8,
) -> None:
    """Train VAEs of the digits with flows as guide, as prior and as both; test nats beside the plain VAE's."""
    data = pv.data.load("digits", binarize="threshold")
    epochs, particles = (1, 5) if quick else (epochs, particles)
    rows, base = [], None
    for name, (model, guide) in contenders(data.test.shape[1], z_dim, (100,)).items():
        started = time.perf_counter()
        options = {"epochs": epochs, "batch_size": 64, "seed": 0, "progress": False, "compile": False}
        pv.fit(model, guide, data, objective=pv.objectives.elbo, **options)
        seconds = time.perf_counter() - started
        found = pv.evaluate(model, guide, data.test, particles=particles, progress=False)
        base = base or found
        gained = (found.log_px - base.log_px).tolist()
        error = statistics.stdev(gained) / len(gained) ** 0.5
        result = {"log p(x)": found.mean, "ELBO": float(found.elbo.mean()), "gain": statistics.fmean(gained)}
        rows.append({"pair": name, **result, "its error": error, "seconds": seconds})
    show(f"Nats a digit, {len(data.test)} test digits, {epochs} epochs, z_dim {z_dim}", rows, list(rows[0]))
    commands.write("flows_digits", {"rows": rows})


if __name__ == "__main__":
    app()
