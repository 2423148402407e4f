"""All generated pages."""

from pathlib import Path

from docs.generating import api, objectives, repository, zoo
from docs.generating.writing import GENERATED, Pages


def write(folder: Path = GENERATED) -> None:
    """Write every page that is made of the library and of the repository."""
    pages = Pages(folder)
    for part in (zoo, objectives, api, repository):
        part.write(pages)
    pages.finish()
