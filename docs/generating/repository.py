"""Pages that stand elsewhere in the repository: notebooks, benchmarks, architecture, changelog."""

import json
import re

import yaml

from docs.generating import results
from docs.generating.writing import ROOT, Pages, table, toctree

# Where links of these pages lead on the site; what is not here becomes plain text.
PLACES = {
    "README.md": "/index.md",
    "ARCHITECTURE.md": "/_generated/project/architecture.md",
    "CONTRIBUTING.md": "/_generated/project/contributing.md",
    "CHANGELOG.md": "/_generated/project/changelog.md",
    "benchmarks/README.md": "/_generated/benchmarks.md",
    "benchmarks/published": "/_generated/published.md",
    "benchmarks/published/README.md": "/_generated/published.md",
    "models/README.md": "/_generated/pairs.md",
    "models": "/_generated/zoo/models.md",
    "guides": "/_generated/zoo/guides.md",
    "benchmarks": "/_generated/benchmarks.md",
    "tutorials": "/_generated/tutorials/index.md",
}

TUTORIALS = """Notebooks, shown as they were executed. `make tutorials` executes all of them in full, and the suite runs
each at small sizes, so that what they claim still holds."""


def write(pages: Pages) -> None:
    """Write all of them."""
    for name in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"):
        pages.write(f"project/{name.lower()}.md", from_repository((ROOT / f"{name}.md").read_text(), ""))
    pages.write("project/citing.md", citing((ROOT / "CITATION.cff").read_text()))
    write_tutorials(pages)
    write_measured(pages)


CITING = """# Citing

Cite the library as below, with the version that you used (`ppl_vae.__version__`; `print` of an evaluation says how the
number was made), and the papers of the bounds, models and guides: their pages name them."""


def citing(text: str) -> str:
    """Return the page of the file of citation, as BibTeX and as it stands."""
    known = yaml.safe_load(text)
    fields = {
        "title": f"{{{known['title']}}}",
        "author": f"{{{' and '.join('{' + author['name'] + '}' for author in known['authors'])}}}",
        "version": f"{{{known['version']}}}",
        "note": f"{{Licence: {known['license']}}}",
    }
    entry = "@software{ppl_vae,\n" + ",\n".join(f"  {name} = {value}" for name, value in fields.items()) + "\n}"
    return f"{CITING}\n\n```bibtex\n{entry}\n```\n\n`CITATION.cff`:\n\n```yaml\n{text.rstrip()}\n```"


def write_tutorials(pages: Pages) -> None:
    """Write the notebooks, without progress bars, and their list."""
    paths = sorted((ROOT / "tutorials").glob("*.ipynb"))
    for path in paths:
        pages.write(f"tutorials/{path.name}", notebook(path.read_text()))
    contents = toctree([path.stem for path in paths], maxdepth="1", hidden="")
    rows = [beginning(path.read_text(), path.name) for path in paths]
    listed = table(("tutorial", "in short"), rows)
    pages.write("tutorials/index.md", f"# Tutorials\n\n{TUTORIALS}\n\n{listed}\n\n{contents}")


def beginning(text: str, name: str) -> tuple[str, str]:
    """Return a link to a notebook by its title, and its first two sentences."""
    first = "".join(json.loads(text)["cells"][0]["source"])
    title, _, rest = first.strip().partition("\n")
    paragraph = " ".join(rest.split("\n\n#")[0].split())
    sentence = " ".join(re.split(r"(?<=[.?!])(?<!al\.)\s", paragraph, maxsplit=2)[:2])
    return f"[{title.lstrip('# ')}]({name})", from_repository(sentence, "tutorials/").replace("|", "\\|")


def notebook(text: str) -> str:
    """Return a notebook for the site: links lead to pages, and progress bars are left out."""
    found = json.loads(text)
    found["metadata"].pop("widgets", None)
    for cell in found["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = from_repository("".join(cell["source"]), "tutorials/")
        cell["outputs"] = [output for output in cell.get("outputs", []) if not is_progress(output)]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    return json.dumps(found, indent=1, ensure_ascii=False)


def is_progress(output: dict) -> bool:
    """Tell whether an output is a bar that moved while the cell ran."""
    data = output.get("data", {})
    shown = "".join(data.get("text/plain", "")) + "".join(data.get("text/html", ""))
    return "application/vnd.jupyter.widget-view+json" in data or "━" in shown or (bool(data) and not shown.strip())


def write_measured(pages: Pages) -> None:
    """Write what was measured: pairs and what they reach, numbers of papers, and speed."""
    zoo = from_repository((ROOT / "models" / "README.md").read_text(), "models/")
    pages.write("pairs.md", results.pairs())
    published = (ROOT / "benchmarks" / "published" / "README.md").read_text()
    pages.write("published.md", from_repository(published, "benchmarks/published/"))
    pages.write("results.md", f"# What the zoo reaches on MNIST\n{zoo.split(REACHED)[1]}")
    speed, others = by_subject(from_repository((ROOT / "benchmarks" / "README.md").read_text(), "benchmarks/"))
    pages.write("speed.md", f"# Speed\n\n{SPEED}\n\n{speed}")
    pages.write("benchmarks.md", others)


SPEED = """What the [benchmarks](benchmarks.md) of this repository printed, each on the machine named beside it; the
commands are listed there."""
OF_SPEED = ("How speed", "A step", "What bounds", "Growth", "Evaluation", "What paid")


def by_subject(text: str) -> tuple[str, str]:
    r"""Return the sections of the benchmarks' page on speed, and the rest of it with the commands.

    Example:
        >>> by_subject("# Benchmarks\n\nCommands.\n\n## Growth\n\nOf time.\n\n## Priors\n\nOf VAEs.")
        ('## Growth\n\nOf time.\n', '# Benchmarks\n\nCommands.\n\n## Priors\n\nOf VAEs.')
    """
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    speed = [section for section in sections if section.removeprefix("## ").startswith(OF_SPEED)]
    return "".join(speed).rstrip() + "\n", "".join(section for section in sections if section not in speed)


REACHED = "\n## What they reach on MNIST\n"


def from_repository(text: str, folder: str) -> str:
    """Return Markdown of the repository with links to pages of the site, and without links to files.

    Example:
        >>> from_repository("See [models](../models) and [a file](x.py).", "tutorials/")
        'See [models](/_generated/zoo/models.md) and a file.'
    """

    def placed(match: re.Match) -> str:
        label, target = match[1], match[2]
        if re.match(r"https?:|#|mailto:", target):
            return match[0]
        place = PLACES.get(resolved(folder, target.split("#")[0]))
        if place is None and target.endswith(".ipynb"):
            return f"[{label}]({target.split('/')[-1]})"
        return f"[{label}]({place})" if place else label

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", placed, text)


def resolved(folder: str, target: str) -> str:
    """Return a path from the root of the repository."""
    parts: list[str] = []
    for part in f"{folder}{target}".split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
