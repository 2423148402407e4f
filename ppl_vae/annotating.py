"""Words on pictures of an evaluation: numbers as axes write them, and a legend that covers nothing."""

from textwrap import fill
from typing import TYPE_CHECKING

from ppl_vae.plots import GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["WIDTH", "counted", "finish", "signed"]

# Inches: text stays legible where a column is narrow.
WIDTH = 5.6


def counted(n: int) -> str:
    """Return a number of data in words.

    Example:
        >>> counted(1), counted(10000)
        ('1 datum', '10,000 data')
    """
    return "1 datum" if n == 1 else f"{n:,} data"


def signed(value: float, digits: int = 2) -> str:
    r"""Return a number with the minus sign that axes have.

    Example:
        >>> print(ascii(signed(-1.5)), signed(-0.001), signed(float("inf")))
        '\u22121.50' 0.00 ∞
    """
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # of zero, no sign
    return text.replace("inf", "∞").replace("-", "\N{MINUS SIGN}")


def finish(figure: "Figure", note: str = "") -> None:
    """Take off what nobody reads, and write the legend and a note below, where they cover nothing."""
    first, texts = figure.axes[0], []
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        texts += [axes.title]
    if first.get_legend_handles_labels()[0]:
        words = "\n".join(fill(line, 76) for line in note.splitlines())
        legend = figure.legend(loc="outside lower left", frameon=False, fontsize=8.5, title=words, title_fontsize=8.5)
        legend.set(alignment="left")
        legend.get_title().set_color(GREY)
        texts += legend.get_texts()
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    for text in texts:
        text.set_parse_math(False)  # a name may have dollar signs
