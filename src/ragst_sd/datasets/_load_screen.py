"""`rg.datasets.load_screen`."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._settings import settings
from ragst_sd._validate import require_positive, require_type
from ragst_sd.datasets._catalog_entries import catalog_entry, citation_text
from ragst_sd.datasets._layout_screen import CONTROL, LAYOUTS, screen_obs
from ragst_sd.datasets._sample_files import Shelf
from ragst_sd.io._readable import readable

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def load_screen(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    max_cells: int | None = None,
    rng: int = 0,
    progress: bool | None = None,
) -> AnnData:
    """Load a public perturbation screen of the catalogue, downloading it if need be.

    The cells come with the labels that :func:`ragst_sd.tl.build_perturbation_reference` expects: guides are brought to their
    genes, combinations are written `A+B`, controls are called `control`. Cells without a label are left out.

    Parameters
    ----------
    name
        Name in :func:`ragst_sd.datasets.catalog` of an entry of the kind `"screen"`.
    path
        The h5ad file if you have it already, for instance from pertpy, or a folder that holds it under the name of the
        catalogue. Nothing is downloaded then.
    max_cells
        Cells at most of each perturbation, and ten times as many controls, drawn at random; all if left out. Only these are
        read into memory.
    rng
        Seed of the draw.
    progress
        Show a progress bar of the download; the setting if left out.

    Returns
    -------
    AnnData with

    `.X`
        As the file has it: counts, for all screens of the catalogue.
    `.obs["perturbation"]`, `["context"]`, `["batch"]`, `["perturbation_type"]`
        What was done (`control` for controls), the cell line, the group of cells that were prepared together, and
        CRISPRi, CRISPRa or CRISPRko (`control` for controls). All other columns stay as they are.
    `.uns["ragst"]["source"]`
        Name, licence and citation.

    Raises
    ------
    KeyError
        If there is no such data set.
    ValueError
        If it is no screen, or the file has no column of perturbations or no controls.
    TypeError
        If `name` is no name.
    ConnectionError, FileNotFoundError, OSError
        If the file cannot be had.

    Notes
    -----
    Files are looked for as :func:`ragst_sd.datasets.load` does: in `path`, in the mirror
    `<RAGST_SD_DATA_DIR>/<name>/<file>`, in the cache, then downloaded.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> screen = rg.datasets.load_screen("papalexi_2021", max_cells=20)
    >>> sorted(screen.obs["perturbation"].unique())[-2:]
    ['STAT1', 'control']

    It goes into `rg.tl.build_perturbation_reference(screen, embedding=embedding, context_key="context", batch_key="batch")`.
    """
    require_type(name, str, "name")
    if max_cells is not None:
        require_positive(max_cells, "max_cells", whole=True)
    entry = catalog_entry(name)
    if entry["loader"] != "screen":
        msg = (
            f"{name!r} is no screen of perturbations (its kind is {entry['kind']!r}). `rg.datasets.catalog(kind='screen')` "
            f"lists them; `rg.datasets.load({name!r})` loads sections."
        )
        raise ValueError(msg)
    given = None if path is None else Path(path).expanduser()
    if given is not None and not given.exists():
        msg = f"`path`: {str(given)!r} does not exist. Pass the h5ad file, or the folder that holds it."
        raise FileNotFoundError(msg)
    context, about = next(iter(entry["samples"].items()))
    if given is not None and given.is_file():
        file = given
    else:
        shelf = Shelf(
            dataset=name,
            files={one["name"]: one for one in entry["files"]},
            given=given,
            cache=settings.cache_dir / "datasets" / name,
            page=entry.get("url"),
            password=None,
            progress=settings.progress if progress is None else progress,
        )
        file = shelf.get(about["files"]["cells"])
    cells = _read(file, name, context, max_cells, np.random.default_rng(rng))
    license, citation = str(entry["license"]), citation_text(entry)
    cells.uns[_keys.ATTRS] = {_keys.SOURCE: {"name": name, "license": license, "citation": citation}}
    names = cells.obs[_keys.PERTURBATION]
    logger.info(
        "Loaded %d cells of %d perturbations and %d controls. Licence of %r: %s. To cite: %s.",
        int((names != CONTROL).sum()), names[names != CONTROL].nunique(), int((names == CONTROL).sum()), name, license,
        citation,
    )  # fmt: skip
    return cells


def _read(file: Path, name: str, context: str, max_cells: int | None, rng: np.random.Generator) -> AnnData:
    """Cells with the labels of the house; the file stays on disk until it is known which ones are wanted."""
    import anndata as ad

    with readable(file, "h5ad"):
        backed = ad.read_h5ad(file, backed="r")
    try:
        obs, labelled = screen_obs(backed.obs, LAYOUTS[name], context)
        kept = np.flatnonzero(labelled)
        if len(kept) < len(labelled):
            logger.info("%d cells without a label are left out.", len(labelled) - len(kept))
        if max_cells is not None:
            kept = _draw(obs[_keys.PERTURBATION].astype(str).to_numpy(), kept, int(max_cells), rng)
        cells = backed[kept].to_memory() if len(kept) < backed.n_obs else backed.to_memory()
    finally:
        backed.file.close()
    cells.obs = obs.iloc[kept].copy()
    for column in (_keys.PERTURBATION, _keys.CONTEXT, "batch", _keys.PERTURBATION_TYPE):
        cells.obs[column] = cells.obs[column].cat.remove_unused_categories()
    if not cells.obs_names.is_unique:
        cells.obs_names_make_unique()
    return cells


def _draw(names: np.ndarray, kept: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the cells to read, in the order of the file."""
    chosen = []
    for one in np.unique(names[kept]):
        own, limit = kept[names[kept] == one], most * (10 if one == CONTROL else 1)
        chosen.append(own if len(own) <= limit else rng.choice(own, limit, replace=False))
    return np.sort(np.concatenate(chosen))
