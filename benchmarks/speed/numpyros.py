"""NumPyro on the same architecture: ``lax.scan`` over jitted updates, its fastest form."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.speed.programs import COMPONENTS, Z_DIM, Workload
from benchmarks.speed.timing import STEPS, Contender


def contenders(workload: Workload, x: Tensor) -> list[Contender]:
    """Return NumPyro's scan, where the workload has been written for it."""
    written = {"vae": vae_programs, "mixture": mixture_programs}
    if workload.make.__name__ not in written:
        return []
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import infer, optim

    data = jnp.asarray(x.numpy())
    model, guide = written[workload.make.__name__](numbers(workload.pair()))
    elbo = {
        "mixture": infer.TraceEnum_ELBO,
        "vae": lambda: (
            infer.RenyiELBO(alpha=0.0, num_particles=workload.particles)
            if workload.particles > 1
            else infer.Trace_ELBO()
        ),
    }[workload.make.__name__]()
    svi = infer.SVI(model, guide, optim.Adam(1e-3), elbo)
    with numpyro.validation_enabled(False):
        state = svi.init(jax.random.PRNGKey(0), data)

    @jax.jit
    def scan(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: svi.update(s, data), state, None, length=STEPS)

    evaluate = jax.jit(lambda state: svi.evaluate(state, data))
    keys = iter(range(10**6))
    holder = [state]

    def run() -> None:
        holder[0], losses = scan(holder[0])
        losses.block_until_ready()

    def loss() -> float:
        return float(evaluate(state._replace(rng_key=jax.random.PRNGKey(next(keys))))) / len(x)

    return [Contender("NumPyro scan", run, STEPS, loss)]


def weights(workload: Workload, x: Tensor, chunk: int) -> list[Contender]:
    """Return the mean log-weight of so many particles a datum, jitted; nothing without NumPyro."""
    try:
        import jax
        import jax.numpy as jnp
        from numpyro import handlers, infer
    except ImportError:
        return []
    data = jnp.asarray(x.numpy())
    model, guide = vae_programs(numbers(workload.pair()))
    elbo = infer.Trace_ELBO(num_particles=chunk)
    traces = (handlers.trace(handlers.seed(program, 0)).get_trace(data) for program in (model, guide))
    params = {name: site["value"] for trace in traces for name, site in trace.items() if site["type"] == "param"}
    bound = jax.jit(lambda key: elbo.loss(key, params, model, guide, data))
    keys = iter(range(10**6))

    def run() -> Any:
        return bound(jax.random.PRNGKey(next(keys))).block_until_ready()

    return [Contender("NumPyro, jitted", run, loss=lambda: float(run()) / len(x))]


def numbers(pair: tuple[nn.Module, nn.Module]) -> dict[str, Any]:
    """Return the parameters of a pair as arrays, by role."""
    model, guide = pair
    found = {}
    for role, net in (("decoder", model.decoder[0]), ("encoder", guide.encoder[0])):
        linear = [layer for layer in net if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(linear):
            found[f"{role}.weight{i}"] = layer.weight.detach().numpy().T
            found[f"{role}.bias{i}"] = layer.bias.detach().numpy()
    found |= {name: getattr(model, name).detach().numpy() for name in ("loc", "log_scale") if hasattr(model, name)}
    return found


def mlp(initial: dict[str, Any], role: str) -> Callable[[Any], Any]:
    """Return a network of one hidden layer whose parameters are NumPyro's."""
    import jax
    import numpyro

    def apply(x: Any) -> Any:
        p = {n: numpyro.param(f"{role}.{n}", initial[f"{role}.{n}"]) for n in ("weight0", "bias0", "weight1", "bias1")}
        return jax.nn.relu(x @ p["weight0"] + p["bias0"]) @ p["weight1"] + p["bias1"]

    return apply


def vae_programs(initial: dict[str, Any]) -> tuple[Callable, Callable]:
    """Return model and guide."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    decode, encode = mlp(initial, "decoder"), mlp(initial, "encoder")

    def model(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(Z_DIM), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            loc, raw = jnp.split(encode(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-4).to_event(1))

    return model, guide


def mixture_programs(initial: dict[str, Any]) -> tuple[Callable, Callable]:
    """Return the mixture, its component summed out, and its guide."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    decode = mlp(initial, "decoder")

    def model(x: Any) -> None:
        loc, log_scale = (numpyro.param(name, initial[name]) for name in ("loc", "log_scale"))
        with numpyro.plate("data", x.shape[0]):
            y = numpyro.sample("y", dist.Categorical(logits=jnp.zeros(COMPONENTS)), infer={"enumerate": "parallel"})
            z = numpyro.sample("z", dist.Normal(loc[y], jnp.exp(log_scale)[y]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    return model, vae_programs(initial)[1]
