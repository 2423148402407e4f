"""Where generated pages go, and how they are written."""

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "_generated"


class Pages:
    r"""Generated pages, by name under ``docs/_generated``; what is no longer written is removed at the end.

    Example:
        >>> pages = Pages(tmp_path)
        >>> pages.write("zoo/vae.md", "# VAE")
        >>> pages.finish()
        >>> (tmp_path / "zoo/vae.md").read_text()
        '# VAE\n'
    """

    def __init__(self, folder: Path = GENERATED):
        self.folder = folder
        self.written: set[Path] = set()

    def write(self, name: str, text: str | bytes) -> None:
        """Write a page; one that has not changed keeps its time, so that Sphinx does not read it again."""
        path = self.folder / name
        content = text if isinstance(text, bytes) else (text.rstrip("\n") + "\n").encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
        self.written.add(path)

    def finish(self) -> None:
        """Remove pages of an earlier build that this one has not written."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.written:
                path.unlink()


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table.

    Example:
        >>> print(table(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    headings = [*headings]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def directive(name: str, body: str, argument: str = "", fence: str = "```", **options: str) -> str:
    """Return a MyST directive.

    Example:
        >>> print(directive("note", "Read on.", class_="here"))
        ```{note}
        :class: here
        <BLANKLINE>
        Read on.
        ```
    """
    given = "".join(f":{key.rstrip('_').replace('_', '-')}: {value}".rstrip() + "\n" for key, value in options.items())
    return f"{fence}{{{name}}} {argument}".rstrip() + f"\n{given}" + ("\n" if given else "") + f"{body}\n{fence}"


def toctree(entries: Iterable[str], **options: str) -> str:
    """Return a table of contents of the pages named."""
    return directive("toctree", "\n".join(entries), **options)
