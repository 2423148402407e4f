"""A picture of each program, committed with what it shows: ``python -m docs.generating.pictures [models/vae ...]``.

Programs are trained on the embedded digits for some seconds each, on one core. A picture is a PNG of at most 40 kB with
few colours.
"""

import io
import sys
import time

import torch
from matplotlib.figure import Figure
from PIL import Image

from docs.generating import graphs, pictures_of_guides, pictures_of_models
from docs.generating.writing import DOCS

FOLDER = DOCS / "zoo" / "pictures"
MOST = 40_000  # bytes
DRAWN = {"models": pictures_of_models, "guides": pictures_of_guides}


def small(figure: Figure) -> bytes:
    """Return a figure as a PNG of few colours.

    Raises:
        ValueError: it takes more than a picture should.
    """
    file, kept = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="white")
    Image.open(file).convert("RGB").quantize(48).save(kept, format="png", optimize=True)
    if kept.tell() > MOST:
        raise ValueError(f"a picture takes {kept.tell()} bytes, more than {MOST}; draw less in it")
    return kept.getvalue()


def main() -> None:
    """Draw pictures, and write what they show beside them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for kind, name in graphs.programs(sys.argv[1:]):
        started = time.perf_counter()
        torch.manual_seed(0)
        figure, caption = DRAWN[kind].drawn(name)
        path = FOLDER / f"{kind}-{name}.png"
        path.write_bytes(small(figure))
        path.with_suffix(".txt").write_text(f"{caption}\n")
        print(f"{path.name}: {path.stat().st_size} bytes, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
