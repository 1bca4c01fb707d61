"""What it takes to build the references that the package has recipes for: an estimate.

A section is drawn in the resolution of a recipe's pictures, its spots are embedded as the recipe says, and the seconds of
one processor core per spot are printed; `_SECONDS_PER_SPOT` in `datasets/_references.py` rests on them. `--write` puts the
table of `rg.datasets.references()` into a page, between its marks.

    OMP_NUM_THREADS=1 python benchmarks/references.py --write docs/howto/organ_references.md
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from spatialdata import get_pyramid_levels

import ragst_sd as rg
from ragst_sd._page import code
from ragst_sd._page import table as as_markdown
from ragst_sd.io._read_slide import pyramid_element
from ragst_sd.io._recipe import read_recipe
from ragst_sd.io._slide_file import open_slide

SPOTS = 300
COLUMNS = {
    "title": "reference",
    "technology": "technology",
    "donors": "donors",
    "sections": "sections",
    "license": "licence",
    "estimated_spots": "spots",
    "estimated_download_gb": "download, GB",
    "estimated_minutes": "minutes",
}


def seconds_per_spot(recipe: str, folder: Path) -> float:
    """Processor seconds for a spot of a drawn section of 0.36 microns per pixel, whose pixels are read from a TIFF."""
    plan, _, _ = read_recipe(recipe)
    # As if the drawn tissue had been scanned so finely.
    (section,) = rg.datasets.synthetic(n_donors=1, image_px=4000).values()
    table = section.tables["table"]
    section.tables["table"] = table[np.random.default_rng(0).permutation(table.n_obs)[:SPOTS]].copy()
    pixels = np.asarray(get_pyramid_levels(section.images["he"], n=0))
    tifffile.imwrite(folder / "he.tif", pixels.transpose(1, 2, 0), photometric="rgb")
    section.images["he"] = pyramid_element(open_slide(folder / "he.tif").levels)
    started = time.process_time()
    tiles = vars(plan.tiles)
    rg.pp.embed_tiles(section, model=plan.encoder.model, image_mpp=0.36, **tiles, progress=False)
    return (time.process_time() - started) / section.tables["table"].n_obs


def lines() -> str:
    """The table of references as Markdown."""
    table = rg.datasets.references()
    shown = table[list(COLUMNS)].rename(columns=COLUMNS)
    shown.insert(0, "name", [code(name) for name in table.index])
    return as_markdown(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page that holds the table")
    page = parser.parse_args().write
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in rg.datasets.references().index:
            print(f"{name}: {seconds_per_spot(name, Path(folder)):.3f} s per spot", flush=True)
    if page is not None:
        text = page.read_text(encoding="utf-8")
        marks = "<!-- references: begin -->", "<!-- references: end -->"
        put = f"{marks[0]}\n\n{lines()}\n\n{marks[1]}"
        page.write_text(re.sub(f"{marks[0]}.*{marks[1]}", lambda _: put, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
