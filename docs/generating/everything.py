"""All generated pages."""

from docs.generating import api, objectives, repository, zoo
from docs.generating.writing import Pages


def write() -> None:
    """Write every page that is made of the library and of the repository."""
    pages = Pages()
    for part in (zoo, objectives, api, repository):
        part.write(pages)
    pages.finish()
