"""`rg.datasets.references`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ragst_sd._licenses import ranked
from ragst_sd._validate import hint, listing
from ragst_sd.datasets._catalog import as_list, catalog_entries

# For estimates: a picture of Visium shows the frame around the spots, too; the second is what
# `benchmarks/references.py` measures on one core.
_PICTURE_UM = 9000.0
_SECONDS_PER_SPOT = 0.1


def recipe_files() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).with_name("recipes").glob("*.yaml"))}


def recipe_path(recipe: str | PathLike[str]) -> Path:
    """The file of a recipe, by its path or by the name of one of the package; a file goes first."""
    path, known = Path(recipe).expanduser(), recipe_files()
    path = path if path.is_file() else known.get(str(recipe), path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist or is no file. Pass the path of a recipe, a YAML file, or the name of one that the "
            f"package has: {listing(known)}.{hint(str(recipe), known)}"
        )
    return path


def references() -> pd.DataFrame:
    """List the references that the package has a recipe for.

    :func:`ragst_sd.io.build_recipe` and `ragst-sd build` take their names. Nothing is downloaded here.

    Returns
    -------
    One row per recipe (the index `name`, sorted):

    - `title`, `organ`, `species`, `technology`: several values are joined by ", ";
    - `donors`, `sections`: of the reference. With one donor, accuracy on a new donor cannot be measured;
    - `license`: the most restrictive one among the data sets;
    - `estimated_spots`: what the catalogue counts; of a data set of which some sections are taken, their share;
    - `estimated_download_gb`: the sizes that the catalogue knows, and for TIFF pictures of unknown size three bytes per
      pixel of 9 x 9 mm. Other files are left out: they are small beside these;
    - `estimated_minutes`: time to embed the spots with one processor core, without download and fit;
    - `published`: repository on the Hugging Face hub from which :func:`ragst_sd.io.download_reference` gets the built
      reference; empty where there is none;
    - `recipe`: the file of the recipe. Copy it to change it.

    Notes
    -----
    No reference is published today: all have to be built. The estimates are only good for planning.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> rg.datasets.references()["donors"].to_dict()
    {'breast': 5, 'colon': 1, 'heart': 1, 'mouse_brain': 2, 'prostate': 3}
    """
    entries, rows = catalog_entries(), []
    for name, path in recipe_files().items():
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        used, sections = [], []
        for source in recipe["sources"]:
            entry = entries[source["dataset"]]
            used.append(entry)
            sections += [(entry, entry["samples"][name]) for name in source.get("samples") or entry["samples"]]
        spots = round(sum(entry["spots"] / entry["sections"] for entry, _ in sections))
        rows.append(
            {
                "name": name,
                "title": recipe["name"],
                **{field: _joined(entry[field] for entry in used) for field in ("organ", "species", "technology")},
                "donors": len({sample["donor"] for _, sample in sections}),
                "sections": len(sections),
                "license": ranked(entry["license"] for entry in used)[0][1],
                "estimated_spots": spots,
                "estimated_download_gb": round(sum(_bytes(entry, sample) for entry, sample in sections) / 1e9, 1),
                "estimated_minutes": round(spots * _SECONDS_PER_SPOT / 60),
                "published": recipe.get("published") or "",
                "recipe": str(path),
            }
        )
    return pd.DataFrame(rows).set_index("name")


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(name for value in values for name in as_list(value)))


def _bytes(entry: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
    sizes = {file["name"]: file["size"] for file in entry["files"]}
    picture = sample["files"]["image"]
    if sizes[picture] is None and picture.endswith(("tif", "tiff")):
        sizes[picture] = 3 * (_PICTURE_UM / entry["image_mpp"]) ** 2
    return sum(sizes[name] or 0 for name in sample["files"].values())
