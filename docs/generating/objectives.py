"""A page for each bound and estimator, and tables of all."""

import inspect
import tomllib
from functools import cache
from typing import Any

from docs.generating import formulas, results
from docs.generating.docstrings import as_markdown, linked, split
from docs.generating.writing import DOCS, Pages, directive, table, toctree
from ppl_vae import objectives
from ppl_vae.particles import Path


def write(pages: Pages) -> None:
    """Write a page for each objective, and the lists of them."""
    for name, made in {**objectives.every(), **objectives.estimators()}.items():
        pages.write(f"objectives/{name}.md", page(name, made))
    for name, heading, found in (
        ("bounds", "Bounds that are functions", objectives.every()),
        ("estimators", "Estimators that are modules", objectives.estimators()),
    ):
        rows = [
            (f"[`{key}`](objectives/{key}.md)", advice()[key]["short"], formula(made)) for key, made in found.items()
        ]
        contents = toctree([f"objectives/{key}" for key in found], hidden="", maxdepth="1")
        said = INTRODUCTIONS[name]
        pages.write(f"{name}.md", f"# {heading}\n\n{said}\n\n{table(HEADINGS, rows)}\n\n{contents}")


HEADINGS = ("`pv.objectives`", "in short", "value")
WEIGHTS = "with $m$ the mass of a particle ($1/K$ of one that is drawn) and $w_k = p(x, z_k) / q(z_k \\mid x)$."
# What else stands in the formulas, by how it begins there.
SYMBOLS = {
    "D_": "$D_k = \\log q(z_k \\mid x) / p(z_k)$, and $D_{ik}$ is that of site $i$.",
    "L_(-k)": "$L_{-k}$ is the bound without particle $k$, $L_K$ that of all.",
    "b_": "$0 = b_0 < b_1 < \\dots = 1$ are the points of the path (`betas`).",
}
INTRODUCTIONS = {
    "bounds": (
        "Each is a function from `pv.Particles` to one number per datum, in nats. Gradients differ where formulas "
        f"agree; each page says how. Below, {WEIGHTS}"
    ),
    "estimators": (
        "These need draws, data or state of their own: modules whose parameters join the optimizer, and whose state is "
        f"saved with the step. Below, {WEIGHTS}"
    ),
}


@cache
def advice() -> dict[str, dict[str, str]]:
    """Return what people say of each objective: in short, and when to use it.

    Raises:
        ValueError: an objective is left out, or there is no such objective.
    """
    found = tomllib.loads((DOCS / "objectives.toml").read_text())
    names = {*objectives.every(), *objectives.estimators()}
    if wrong := names ^ {*found}:
        raise ValueError(f"docs/objectives.toml: these objectives are in one of it and the library: {', '.join(wrong)}")
    return found


def formula(made: Any) -> str:
    """Return the value of an objective as a formula within a line."""
    return f"${formulas.latex(made.facts.formula)}$"


def page(name: str, made: Any) -> str:
    """Return the page of an objective."""
    parts = [
        f"# {name}",
        f"`pv.objectives.{name}`: {advice()[name]['short']}",
        f"## Value\n\n$$\n{formulas.latex(made.facts.formula)}\n$$\n\n{symbols(made.facts.formula)}",
        *explained(made),
        f"## When to use it\n\n{advice()[name]['when']}",
        f"## Facts\n\n{facts(name, made)}",
        f"## Which programs it trains\n\n{trains(name)}",
        f"## Reference\n\n{linked(made.facts.reference)}",
        f"## In the API\n\n{entry(name, made)}",
    ]
    return "\n\n".join(parts)


def symbols(text: str) -> str:
    """Say what stands in a formula."""
    return " ".join([WEIGHTS, *(said for begin, said in SYMBOLS.items() if begin in text)])


def explained(made: Any) -> list[str]:
    """Return what the docstring says above its lists of arguments."""
    _, *blocks = split(inspect.getdoc(made) or "")
    parts = []
    while blocks and blocks[0].split("\n")[0] not in ("Args:", "Returns:", "Example:", "Raises:", "Attributes:"):
        if (block := blocks.pop(0)).startswith("Reference:"):
            break
        parts.append(as_markdown(block, blocks))
    return ["## Formula and gradient\n\n" + "\n\n".join(part for part in parts if part)] if parts else []


PATHS = {
    Path.TOTAL: "the total derivative: draws that are reparameterised carry gradients, and so does log q",
    Path.STOPPED: "the path alone: log q with the parameters of the guide stopped",
    Path.NONE: "draws are taken as given: nothing follows the path",
}


def facts(name: str, made: Any) -> str:
    """Return the facts of an objective as a table."""
    known = made.facts
    bound = f"{'an upper' if known.upper else 'a lower'} bound on log p(x), in expectation"
    if "bound" in known.exempt:
        bound = f"no bound on log p(x) in general: {known.exempt['bound']}"
    rows = [
        ("its value", bound),
        ("trained by", "minimising it, which fits the guide alone" if known.upper else "maximising it"),
        ("smallest number of particles", str(known.min_particles)),
        ("gradients reach the guide by", "what its formula says" if isinstance(made, type) else PATHS[known.path]),
        *((f"latents {kind}", kinds(name, guides)) for kind, guides in KINDS.items()),
        ("linear in the log-weights", "yes: a scale on a single site keeps its meaning" if known.linear else "no"),
        ("written as", "a module with `estimate`" if isinstance(made, type) else "a function of particles"),
    ]
    if known.kl:
        rows.append(("divergences", "in closed form where there is one"))
    if known.discrete:
        rows.append(("made for", "draws without a path; where all have one it does nothing of its own"))
    rows += [(LAWS[law], reason) for law, reason in known.exempt.items() if law != "bound"]
    return table(("fact", "here"), rows)


# Guides that stand for each kind of latents.
KINDS = {
    "that are reparameterised": ("normal", "flow"),
    "drawn as bits": ("bernoulli",),
    "drawn as one-hot codes": ("categorical",),
    "enumerated in the guide": ("component", "semi_supervised"),
    "summed out in the model": ("empty",),
}
LAWS = {"order": "changes with the order of particles", "unbiased": "gradient is not that of the value"}


def kinds(name: str, guides: tuple[str, ...]) -> str:
    """Say whether an objective trains all pairs of some guides, or what speaks against it."""
    found = [reasons for pair, reasons in results.applicability().items() if pair[1] in guides]
    against = {why for reasons in found for why, names in reasons.items() if name in names}
    refused = sum(any(name in names for names in reasons.values()) for reasons in found)
    if not refused:
        return "yes"
    return f"{'no' if refused == len(found) else 'some pairs'}: {'; '.join(sorted(against))}"


def trains(name: str) -> str:
    """Say which pairs of the zoo an objective trains, and list those that it does not."""
    found = results.applicability()
    refused = [(*pair, why) for pair, reasons in found.items() for why, names in reasons.items() if name in names]
    if not refused:
        return f"All {len(found)} pairs of the [table of pairs](/_generated/pairs.md)."
    trained = len(found) - len(refused)
    said = f"{trained} of the {len(found)} pairs of the [table of pairs](/_generated/pairs.md): all but these."
    rows = [(results.program("models", m), results.program("guides", g), why) for m, g, why in refused]
    return f"{said}\n\n{table(('model', 'guide', 'why not'), rows)}"


def entry(name: str, made: Any) -> str:
    """Return the entry of an objective in the API reference."""
    kind = "autoclass" if isinstance(made, type) else "autofunction"
    members = "\n   :members:" if isinstance(made, type) else ""
    return directive("eval-rst", f".. {kind}:: ppl_vae.objectives.{name}{members}")
