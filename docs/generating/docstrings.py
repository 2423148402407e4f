"""A docstring of the zoo taken apart, and the same as Markdown."""

import re
from dataclasses import dataclass, field
from textwrap import dedent

from docs.generating import formulas


@dataclass(frozen=True)
class Docstring:
    """The parts of a program's docstring, each as Markdown.

    Attributes:
        title: what stands before the colon of the first sentence.
        summary: the first sentence.
        process: the block of the generative process, or of the posterior family, in plain text.
        heading: the line above that block.
        symbols: the table of symbols, sites and shapes.
        said: what is said between process and symbols.
        remarks: what else is said, in order.
        reference: where it comes from.
        example: a doctest.
    """

    summary: str
    heading: str = ""
    process: str = ""
    symbols: str = ""
    said: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    reference: str = ""
    example: str = ""

    @property
    def title(self) -> str:
        """Return the first sentence up to its colon, without full stop."""
        return re.split(r"[:.,](?:\s|$)", self.summary)[0]


def taken_apart(text: str) -> Docstring:
    r"""Return the parts of a program's docstring.

    Example:
        >>> found = taken_apart("A VAE: deep.\n\nGenerative process::\n\n    z ~ N(0, I)\n\nReference: one.")
        >>> found.title, found.process, found.reference
        ('A VAE', 'z ~ N(0, I)', 'one.')
    """
    summary, *blocks = split(dedent(text))
    parts: dict = {"summary": _line(summary), "said": [], "remarks": []}
    while blocks:
        block = blocks.pop(0)
        if block.startswith("Reference:"):
            parts["reference"] = linked(_line(block).removeprefix("Reference:").strip())
        elif block.startswith("Example:"):
            parts["example"] = dedent("\n".join([block.partition("\n")[2], *blocks])).strip("\n")
            blocks = []
        elif block.startswith("| symbol"):
            parts["symbols"] = symbols(block)
        elif block.endswith("::") and "process" not in parts:
            parts["heading"], parts["process"] = _line(block).rstrip(":"), dedent(blocks.pop(0))
        else:
            parts["remarks" if "symbols" in parts else "said"].append(as_markdown(block, blocks))
    return Docstring(**parts)


def symbols(block: str) -> str:
    r"""Return a table of symbols, sites and shapes, with formulas and code.

    Example:
        >>> table = '| symbol | site | shape |\n| --- | --- | --- |\n| z_l | "z1", "z2" | (z_dim,) |'
        >>> print(symbols(table).splitlines()[-1])
        | $z_{l}$ | `"z1"`, `"z2"` | `(z_dim,)` |
    """
    heading, line, *rows = block.splitlines()
    written = []
    for row in rows:
        symbol, site, shape = (cell.strip() for cell in row.strip()[1:-1].rsplit("|", maxsplit=2))
        site = re.sub(r'"\w+"', lambda m: f"`{m[0]}`", site)
        shape = re.sub(r"\([^)]*\)", lambda m: f"`{m[0]}`", shape)
        written.append(f"| ${formulas.latex(symbol)}$ | {site} | {shape} |")
    return "\n".join([heading, line, *written])


def split(text: str) -> list[str]:
    """Return the paragraphs of a text; an indented block with empty lines in it is one."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if found and block.startswith("    ") and found[-1].startswith("    "):
            found[-1] += "\n\n" + block
        else:
            found.append(block.rstrip())
    return found


def as_markdown(block: str, following: list[str]) -> str:
    """Return a paragraph as Markdown, with the formula that follows it, which is taken off the list.

    Example:
        >>> as_markdown("With m the mass::", ["    L = m"]).splitlines()[0], as_markdown("::", ["    L = m"])[:2]
        ('With m the mass:', '$$')
    """
    if not block.endswith("::"):
        return block
    shown = formulas.display(dedent(following.pop(0)))
    words = block.removesuffix("::")
    colon = ":" if words.strip() and not words.endswith(" ") else ""
    return f"{words.rstrip()}{colon}\n\n{shown}".strip()


def linked(text: str) -> str:
    """Return a reference with its addresses as links.

    Example:
        >>> linked("A. Author 2020, https://arxiv.org/abs/1.")
        'A. Author 2020, <https://arxiv.org/abs/1>.'
        >>> linked("A. Author 2020, arXiv:1234.5678")
        'A. Author 2020, [arXiv:1234.5678](https://arxiv.org/abs/1234.5678)'
    """
    text = re.sub(r"(https?://[^\s;,]+[^\s;,.])", r"<\1>", text)
    text = re.sub(r"\barXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"\bdoi:(10\.[^\s;,]+)", r"[doi:\1](https://doi.org/\1)", text)
    return re.sub(r"(?<!/)\b(openreview\.net/forum\?id=[\w-]+)", r"[OpenReview](https://\1)", text)


def _line(block: str) -> str:
    return " ".join(block.split())
