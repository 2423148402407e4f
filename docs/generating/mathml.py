"""Formulas as MathML, made when the site is built: browsers show it without a script and without a network."""

import re
from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)
NAME = "mathml"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(f'<span class="math">{rendered(node, as_block=False)}</span>')
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    self.body.append(self.starttag(node, "div", CLASS="math-block"))
    self.body.append(f"{rendered(node, as_block=True)}</div>\n")
    raise nodes.SkipNode


def rendered(node: nodes.Element, as_block: bool) -> str:
    """Return MathML of a formula, or a warning and its source where the converter does not know what it says."""
    text = known(node.astext().replace("\n\n", "\n").strip())
    if as_block and "\\\\" in text and "\\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return spaced(tex2mathml(text, as_block=as_block))
    except MathError as error:
        logger.warning("formula %r: %s", text, error, location=node)
        return f"<code>{escape(text)}</code>"


THIN = '<mspace width="0.1667em"></mspace>'
ORDINARY = r"(?:</(?:mi|mn|msub|msup|msubsup|mfrac|msqrt|munder|munderover|mover)>|\)</mo>)"


def spaced(mathml: str) -> str:
    """Return MathML with the thin spaces beside names of functions that TeX puts there, and browsers do not.

    Example:
        >>> spaced("<mi>m</mi> <mi>log</mi> <mo>&ApplyFunction;</mo> <mi>w</mi>").count("mspace")
        4
    """
    before = rf"({ORDINARY}\s*)(?=(?:<msub>\s*)?<mi[^>]*>[A-Za-z]{{2,}}</mi>)"
    after = r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[])"
    mathml = re.sub(r"(<mtd>\s*<mo)>", r'\1 form="infix">', mathml)  # which opens a cell, and not the formula
    shown = re.sub(after, THIN, re.sub(before, rf"\1{THIN}", mathml))
    return shown.replace('<mtable class="ams-align">', '<mtable class="ams-align" displaystyle="true">')


# What LaTeX has and the converter of docutils has not, by what it has.
REWRITTEN = {
    r"\\(big|Big|bigg|Bigg)[lrm]?\s*(?=\||/|\\\||\\[lrV]ert|\\mid)": "",  # the same on both sides
    r"\\(textstyle|displaystyle)(?![a-zA-Z])": "",
    r"\\texttt(?![a-zA-Z])": r"\\text",
    r"\\(big|Big|bigg|Bigg)(?=\s*(\(|\[|\\\{|\\langle))": r"\\\1l",
    r"\\(big|Big|bigg|Bigg)(?![a-zA-Z])": r"\\\1r",
    r"\\middle(?![a-zA-Z])": "",
    r"\\dots(?![a-zA-Z])": r"\\ldots",
    r"\\([td]?)frac\s*(\w)\s*(\w)": r"\\\1frac{\2}{\3}",
}


def known(text: str) -> str:
    r"""Return a formula in commands that the converter knows.

    Example:
        >>> print(known(r"\tfrac12 \big( x \big)"))
        \tfrac{1}{2} \bigl( x \bigr)
    """
    for pattern, by in REWRITTEN.items():
        text = re.sub(pattern, by, text)
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer(NAME, (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
