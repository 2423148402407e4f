"""Programs of the zoo as texts to copy: the same arguments in the same order, each with a word about it."""

import inspect
import re

import pairs
import pytest
from torch import nn

from ppl_vae import zoo

PROGRAMS = [(kind, name) for kind in zoo.KINDS for name in sorted(pairs.files(kind))]
# Sizes as far as programs share them, then what is a program's own, then networks.
SHARED = ["model", "x_dim", "z_dim", "y_dim", "text_length", "positions", "codes", "hidden"]
NETWORKS = ["embedding", "codebook", "prior", "conditionals", "generator", "likelihood", "decoder"]
NETWORKS += ["classifier", "encoders", "estimates", "encoder"]


def arguments(kind, name):
    """Return the names of what a program's constructor takes."""
    program = zoo.discover(kind)[name]
    return [] if program.__init__ is nn.Module.__init__ else [*inspect.signature(program).parameters]


@pytest.mark.parametrize(("kind", "name"), PROGRAMS, ids="-".join)
def test_arguments_stand_in_one_order(kind, name):
    found = arguments(kind, name)
    shared, networks = [a for a in found if a in SHARED], [a for a in found if a in NETWORKS]
    assert shared == [a for a in SHARED if a in found]
    assert networks == [a for a in NETWORKS if a in found]
    own = [a for a in found if a not in (*shared, *networks)]
    assert found == [*shared, *own, *networks] or "hidden" not in found


@pytest.mark.parametrize(("kind", "name"), PROGRAMS, ids="-".join)
def test_every_argument_is_explained(kind, name):
    told = inspect.getdoc(zoo.discover(kind)[name])
    told = re.split(r"\n(?:Attributes|Raises|Reference):", told)[0].partition("Args:")[2]
    named = re.findall(r"^    (\w[\w, ]*):", told, re.MULTILINE)
    assert [a for names in named for a in names.split(", ")] == arguments(kind, name)
