"""Links to the API reference, and a look at whether every public name is in it."""

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

from docs.generating import api
from ppl_vae import objectives

# Where unqualified names of docstrings are looked for, in this order.
PLACES = ("ppl_vae.", "ppl_vae.objectives.", "ppl_vae.data.", "ppl_vae.nets.", "ppl_vae.priors.", "")
# Classes in signatures that nobody meets: parts of what is returned, or of what makes it.
INTERNAL = {
    "ppl_vae.factorisation.Factorisation",
    "ppl_vae.factors.Factor",
    "ppl_vae.latent_structure.Structure",
    "ppl_vae.mean_field.Factorised",
    "ppl_vae.missing.Conditional",
    "ppl_vae.missing.Pixels",
    "ppl_vae.programs.Programs",
}
OBJECTIVES = {*objectives.every(), *objectives.estimators()}
FILES = re.compile(r"^(?:ppl_vae/)?(models|guides)/(\w+)\.py$")


def target(env: BuildEnvironment, text: str) -> tuple[str, str] | None:
    """Return the page of a name and its place there, None where the reference has no such name."""
    if file := FILES.match(text):
        return f"_generated/zoo/{file[1]}/{file[2]}", ""
    name = re.sub(r"^(pv|ppl_vae)\.", "", text.removesuffix("()"))
    known = env.domains.python_domain.objects
    for place in PLACES:
        if found := known.get(place + name):
            return found.docname, found.node_id
    ends = [full for full in known if full.endswith(f".{name}")]
    return (known[ends[0]].docname, known[ends[0]].node_id) if len(ends) == 1 else None


def linked(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> nodes.Element | None:
    """Resolve what Sphinx cannot: names in single backticks, those of other libraries as plain code."""
    if node.get("refdomain") != "py":
        return None
    text = node["reftarget"]
    found = target(env, text)
    if found and app.builder.name != "linkcheck":
        return make_refnode(app.builder, node["refdoc"], found[0], found[1], contnode, text)
    outside = text in INTERNAL or not text.startswith(("ppl_vae", "pv."))
    # Single backticks name anything: parameters, files, other libraries. Roles that people write must hit.
    return contnode if node.get("reftype") == "obj" or outside else None


class LinkedCode(SphinxPostTransform):
    """Code such as ``pv.evaluate`` within a line becomes a link to its entry."""

    default_priority = 400
    pattern = re.compile(r"^((pv|ppl_vae)\.[\w.]+(\(\))?|(ppl_vae/)?(models|guides)/\w+\.py)$")

    def known(self, text: str) -> bool:
        """Tell whether code is a name in full, or that of an objective."""
        return bool(self.pattern.match(text)) or text in OBJECTIVES

    def run(self, **kwargs: Any) -> None:
        """Wrap them."""
        for node in list(self.document.findall(nodes.literal)):
            if isinstance(node.parent, (nodes.reference, pending_xref)) or not self.known(node.astext()):
                continue
            found = target(self.env, node.astext())
            if found and found[0] != self.env.docname:
                shown = node.deepcopy()
                builder = self.app.builder
                node.replace_self(make_refnode(builder, self.env.docname, found[0], found[1], shown, node.astext()))


def with_formulas(app: Sphinx, kind: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Mark formulas of docstrings, which are indented, as such; Sphinx would take them for quotations.

    Example:
        >>> lines = ["Sum.", "", "    a + b", "", "Args:", "    a: one."]
        >>> with_formulas(None, "function", "sum", None, None, lines)
        >>> lines[:5]
        ['Sum.', '', '::', '', '    a + b']
    """
    for i in range(len(lines) - 1, 1, -1):
        above = [line for line in lines[:i] if line.strip()]
        begins = lines[i].startswith("    ") and not lines[i - 1].strip() and above
        if begins and not above[-1].startswith(" ") and not above[-1].endswith(":"):
            lines[i:i] = ["::", ""]


def nothing_missing(app: Sphinx, env: BuildEnvironment) -> None:
    """Stop the build if a public name has no entry."""
    known = env.domains.python_domain.objects
    if missing := [name for name in api.public() if name not in known]:
        raise ExtensionError(f"the API reference lacks {', '.join(missing)}; see docs/generating/api.py")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("missing-reference", linked)
    app.connect("autodoc-process-docstring", with_formulas, priority=400)  # before napoleon's sections
    app.connect("env-check-consistency", nothing_missing)
    app.add_post_transform(LinkedCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
