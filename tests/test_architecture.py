"""The shape of the tree: who imports whom, what is public, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppl_vae as pv

ROOT = Path(__file__).parents[1]
PYTHON_FILES = [path for folder in ("ppl_vae", "models", "guides") for path in (ROOT / folder).rglob("*.py")]

# What each part of the library may import of the library; other parts may import anything below them.
MAY_IMPORT = {
    "archive": set(),
    "arguments": set(),
    "components": set(),
    "covariances": {"components"},
    "regression": {"components"},
    "particles": set(),
    "contract": set(),
    "supports": {"contract", "remarks"},
    "batches": {"arguments"},
    "diagnostics": set(),
    "gradients": set(),
    "noise": {"batches", "contract"},
    "remembering": set(),
    "estimates": {"diagnostics", "noise", "objectives", "particles"},
    "evaluation": {"exporting", "recording", "redrawing"},
    "recording": {"archive", "parallel"},
    "comparing": {"evaluation"},
    "tabulating": {"evaluation"},
    "annotating": {"plots"},
    "evaluation_plots": {"annotating", "evaluation", "plots", "tabulating"},
    "datum_plots": {"annotating", "evaluation", "evaluation_plots", "plots", "tabulating"},
    "importance": {
        *("batches", "compiling", "noise", "objectives", "particles", "programs", "remarks", "remembering", "weighing"),
    },
    "enumeration": {"contract", "particles"},
    "programs": {"batches", "threads"},
    "threads": set(),
    "snapshots": {"batches", "programs"},
    "remarks": set(),
    "surveying": {"programs"},
    "keeping": {"surveying"},
    "watching": {"keeping", "programs", "surveying"},
    "replaying": set(),
    "parallel": {"batches"},
    "guarding": {"programs"},
    "updating": {"guarding", "objectives", "optimizers", "programs"},
    "diagnosing_sites": {"contract", "programs", "remarks", "weighing"},
    "diagnosing": {"batches", "checking", "diagnosing_sites", "estimation", "programs", "remarks"},
    "adversarial": set(),
    "players": {
        *("batches", "checking", "compiling", "contract", "diagnosing", "objectives", "optimizers", "parallel"),
        *("programs", "svi", "updating"),
    },
    "gan_steps": {
        *("adversarial", "batches", "checking", "contract", "objectives", "players", "programs", "tracing"),
    },
    "adversarial_steps": {
        *("adversarial", "batches", "checking", "contract", "gan_steps", "indexing", "objectives", "players"),
        *("programs", "supports", "tracing", "weighing"),
    },
    "log_priors": {"programs"},
    "indexing": {"batches", "contract", "programs"},
    "steps": {"chunking", "compiling", "objectives", "log_priors", "programs", "pyro_step", "svi"},
    "ownership": {"batches", "indexing", "optimizers", "particles", "programs", "weighing"},
    "alternating": {
        *(
            "batches",
            "checking",
            "compiling",
            "diagnosing",
            "fitted",
            "indexing",
            "objectives",
            "optimizers",
            "ownership",
            "log_priors",
            "programs",
        ),
        *("steps", "svi", "training"),
    },
    "chunking": {"batches", "compiling", "objectives", "particles", "programs"},
    "capture": {"batches", "keeping", "remarks", "parallel", "programs", "watching"},
    "flops": set(),
    "interrupting": set(),
    "streams": set(),
    "averaging": {"objectives"},
    "learning_rates": set(),
    "place": set(),
    "wording": {"batches", "contract"},
    "rules": {"arguments", "batches", "guarding"},
    "compiling": {
        "batches",
        "capture",
        "flops",
        "lowering",
        "parallel",
        "programs",
        "remarks",
        "replaying",
        "verifying",
        "watching",
    },
    "verifying": {"batches", "programs"},
    "lowering": {"capture", "parallel", "remarks", "rewriting"},
    "rewriting": set(),
    "tracing": {"batches", "contract", "particles", "programs"},
    "divergences": set(),
    "weighing": {
        *("arguments", "batches", "contract", "divergences", "enumeration", "gradients", "indexing", "particles"),
        *("programs", "tracing"),
    },
    "crossing": {"batches", "contract", "data", "enumeration", "particles", "programs", "tracing"},
    "figures": {"batches", "crossing", "objectives", "programs", "progress"},
    "latents": {"checking", "contract", "crossing", "objectives", "programs", "progress"},
    "codes": {"contract", "latents", "objectives", "programs"},
    "hmc": set(),
    "coordinates": {"batches", "contract", "programs"},
    "tempering": {"batches", "coordinates", "hmc", "particles", "programs", "tracing", "weighing"},
    "estimation": {"objectives", "particles", "programs", "weighing"},
    "two_samples": {"arguments"},
    "features": {"arguments", "batches", "data", "nets", "programs", "progress"},
    "quality": {"arguments", "features", "programs", "progress", "two_samples"},
    "ascent": set(),
    "clusters": set(),
    "conditioning": {"batches", "contract", "densities", "latent_structure"},
    "densities": set(),
    "iterating": {"progress"},
    "latent_structure": {"batches", "contract", "densities", "programs", "supports", "tracing"},
    "m_steps": {"ascent", "batches", "conditioning", "contract", "latent_structure", "programs"},
    "starts": set(),
    "positive_definite": set(),
    "conjugate_priors": {"positive_definite"},
    "matrices": set(),
    "families": {"conjugate_priors", "matrices"},
    "natural_forms": {"contract", "densities"},
    "factors": {"contract", "families"},
    "factorisation": {"batches", "contract", "factors", "natural_forms", "programs", "tracing"},
    "expectations": {"batches", "contract", "factorisation", "factors", "families", "natural_forms", "programs"},
    "probes": {"expectations", "factors", "families", "matrices"},
    "mean_field": {
        *("batches", "contract", "densities", "expectations", "factorisation", "factors", "families", "probes"),
        "programs",
    },
}
PARTS_OF_PROGRAMS = {
    *("nets", "distributions", "priors", "components", "covariances", "conjugate_priors", "regression"),
}
# Bounds are functions of particles; estimators also run programs, through weigh alone.
BOUNDS = {"vocabulary", "bounds", "discrete", "parts", "paths", "weighted", "schedules", "relaxations", "options"}
ESTIMATORS = {"antithetic", "drawing", "drawn_elsewhere", "muprop", "nvil", "rebar", "relaxed"}
MAY_IMPORT |= {f"objectives.{name}": {"arguments", "gradients", "objectives", "particles"} for name in BOUNDS}
MAY_IMPORT |= {f"objectives.{name}": {"gradients", "objectives", "particles", "weighing"} for name in ESTIMATORS}
PUBLIC = {
    *(
        "data",
        "objectives",
        "nets",
        "distributions",
        "priors",
        "covariances",
        "Particles",
        "Evaluation",
        "Fit",
        "ContractError",
        "ELBO",
    ),
    *("weigh", "check", "svi_step", "fit", "evaluate", "sample", "registered", "reconstruct", "impute", "compare"),
    *("variational_em", "variational_em_step", "normal_prior"),
    *("elbo_surgery", "aggregate_kl", "active_units", "perplexity", "ais", "bdmc", "em", "em_step", "cavi"),
    *("PointEstimate", "MeanField", "starts", "robbins_monro", "adversarial", "adversarial_step", "gan_step"),
}


def imports(path):
    """Yield the modules that a file imports, at its top level or anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from whole if node.module == "ppl_vae" else {node.module}


def ours(path):
    return {name.removeprefix("ppl_vae.") for name in imports(path) if name.startswith("ppl_vae")}


@pytest.mark.parametrize("kind", ["models", "guides"])
def test_programs_import_parts_of_programs_and_nothing_else_of_the_library(kind):
    for path in (ROOT / kind).glob("*.py"):
        assert ours(path) <= PARTS_OF_PROGRAMS, path
        assert {name.split(".")[0] for name in imports(path)} <= {"ppl_vae", "pyro", "torch", "collections", "math"}


# Packages of which programs are made; each may import those before it.
LAYERS = ["distributions", "nets", "priors"]


@pytest.mark.parametrize("package", LAYERS)
def test_what_programs_are_made_of_imports_torch_pyro_and_what_is_below(package):
    for path in (ROOT / "ppl_vae" / package).glob("*.py"):
        below = {"arguments", *LAYERS[: LAYERS.index(package) + 1]}
        assert {name.split(".")[0] for name in ours(path)} <= below, path


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_imports_point_down(module):
    path = ROOT / "ppl_vae" / (module.replace(".", "/") + ".py")
    assert {name.split(".")[0] for name in ours(path)} <= MAY_IMPORT[module]


def test_the_library_never_imports_models_or_guides():
    for path in (ROOT / "ppl_vae").rglob("*.py"):
        assert not {name for name in ours(path) if name.split(".")[0] in ("models", "guides")}, path


def test_objectives_and_the_record_know_torch_alone():
    for path in (ROOT / "ppl_vae" / "particles.py", *(ROOT / "ppl_vae" / "objectives").glob("*.py")):
        assert "pyro" not in {name.split(".")[0] for name in imports(path)}, path


def test_every_objective_file_is_a_bound_or_an_estimator():
    files = {path.stem for path in (ROOT / "ppl_vae" / "objectives").glob("*.py")} - {"__init__"}
    assert files == BOUNDS | ESTIMATORS


def test_one_file_weighs_with_pyros_handlers():
    using = {path.stem for path in (ROOT / "ppl_vae").rglob("*.py") if "poutine.replay" in path.read_text()}
    assert using == {"tracing"}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.stem)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 350


def test_public_names_are_there():
    assert set(pv.__all__) >= PUBLIC
    for name in pv.__all__:
        assert getattr(pv, name).__doc__, name


def test_verbs_are_functions_and_not_modules():
    modules = {"data", "objectives", "nets", "covariances", "starts", "distributions", "priors", "adversarial"}
    verbs = {name for name in PUBLIC if name.islower()} - modules
    assert all(callable(getattr(pv, verb)) for verb in verbs)


QUIET = """
import random, sys, warnings
import numpy, pyro, torch
before = set(sys.modules)
state = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
settings = torch.distributions.Distribution._validate_args, torch.get_default_dtype(), torch.get_num_threads()
warnings.simplefilter("error")
import ppl_vae
assert torch.equal(torch.get_rng_state(), state[0])
assert (random.getstate(), numpy.random.get_state()[1].tolist()) == state[1:]
now = torch.distributions.Distribution._validate_args, torch.get_default_dtype(), torch.get_num_threads()
assert settings == now
assert not pyro.get_param_store()._params
heavy = {"arviz", "jinja2", "matplotlib", "sklearn", "torchvision", "scipy", "typer", "rich"}
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert not heavy & loaded, heavy & loaded
assert not {n for n in sys.modules if n.startswith(("ppl_vae.models", "ppl_vae.guides"))}
print("quiet")
"""


def test_importing_changes_nothing_and_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert done.stdout == "quiet\n", done.stderr
