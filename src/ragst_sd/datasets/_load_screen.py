"""`rg.datasets.load_screen`."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_positive, require_type
from ragst_sd.datasets._catalog import catalog_entry, citation_text, require_loader
from ragst_sd.datasets._sample_files import shelf_of
from ragst_sd.io._readable import readable

logger = logging.getLogger(__name__)

CONTROL = "control"
# Where a deposit says what was done to a cell, what the cell was, and with which others it was prepared.
_PERTURBATION = ("gene_target", "perturbation", "perturbation_name", "gene", "guide_identity")
_CONTEXT = ("context", "cell_line", "cell_type", "celltype")
_BATCH = ("batch", "gem_group", "gemgroup", "bio_rep", "replicate")
_CONTROLS = ("control", "non-targeting", "nontargeting", "nt", "ctrl", "non-target")


@dataclass(frozen=True)
class ScreenLayout:
    """How a deposit labels its cells."""

    kind: str
    """Type of the perturbations, which scPerturb gives as CRISPR for all of them."""
    joined_by: str | None = None
    """What stands between the genes of a combination."""
    suffix: str | None = None
    """Regular expression of what follows the gene: number of the guide, name of the plasmid."""
    control: str | None = None
    """Regular expression of further labels of controls."""


SCREEN_LAYOUTS = {
    "adamson_2016_upr_perturb_seq": ScreenLayout("CRISPRi", suffix=r"_p[A-Z]+\d+$", control=r"\(mod\)"),
    "nadig_2025_hepg2": ScreenLayout("CRISPRi"),
    "nadig_2025_jurkat": ScreenLayout("CRISPRi"),
    "norman_2019": ScreenLayout("CRISPRa", joined_by="_"),
    "papalexi_2021": ScreenLayout("CRISPRko", suffix=r"g\d+$", control=r"^NTg?\d*$"),
    "replogle_2022_k562_essential": ScreenLayout("CRISPRi"),
    "replogle_2022_rpe1": ScreenLayout("CRISPRi"),
}


def load_screen(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    max_cells: int | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
    progress: bool | None = None,
) -> AnnData:
    """Load a public perturbation screen of the catalogue, downloading it if necessary.

    The cells come with the labels that :func:`ragst_sd.tl.build_perturbation_reference` expects: guides are replaced by
    their genes, combinations are written `A+B`, and controls are named `control`. Cells without a label are left out.

    Parameters
    ----------
    name
        Name in :func:`ragst_sd.datasets.catalog` of an entry of the kind `"screen"`.
    path
        The h5ad file if you have it already, for instance from pertpy, or a folder that holds it under the name of the
        catalogue. Nothing is downloaded then.
    max_cells
        Cells at most of each perturbation, and ten times as many controls, drawn at random; all if left out. Only
        these are read into memory.
    rng
        Seed, generator or seed sequence of numpy, of the draw; `None` draws anew at each call.
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

    It goes into `rg.tl.build_perturbation_reference(screen, embedding=embedding, context_key="context",
    batch_key="batch")`.
    """
    require_type(name, str, "name")
    require_positive(max_cells, "max_cells", whole=True, optional=True)
    entry = catalog_entry(name)
    require_loader(entry, "load_screen")
    given = None if path is None else Path(path).expanduser()
    if given is not None and not given.exists():
        raise FileNotFoundError(f"`path`: {str(given)!r} does not exist. Pass the h5ad file, or its folder.")
    context, about = next(iter(entry["samples"].items()))
    if given is not None and given.is_file():
        file = given
    else:
        file = shelf_of(entry, given=given, progress=progress).get(about["files"]["cells"])
    cells = _read(file, name, context, max_cells, np.random.default_rng(rng))
    license, citation = str(entry["license"]), citation_text(entry)
    cells.uns[_keys.ATTRS] = {_keys.SOURCE: {"name": name, "license": license, "citation": citation}}
    counts = cells.obs[_keys.PERTURBATION].value_counts().drop(CONTROL)
    logger.info("Loaded %d cells of %d perturbations, and controls.", counts.sum(), (counts > 0).sum())
    logger.info("Licence of %r: %s. To cite: %s.", name, license, citation)
    return cells


def _read(file: Path, name: str, context: str, max_cells: int | None, rng: np.random.Generator) -> AnnData:
    """Cells with columns of this package; the file stays on disk until it is known which ones are wanted."""
    with readable(file, "h5ad"):
        backed = ad.read_h5ad(file, backed="r")
    try:
        obs, labelled = screen_obs(backed.obs, SCREEN_LAYOUTS[name], context)
        rows = np.flatnonzero(labelled)
        if len(rows) < len(labelled):
            logger.info("%d cells without a label are left out.", len(labelled) - len(rows))
        if max_cells is not None:
            rows = rows[draw_cells(obs[_keys.PERTURBATION].iloc[rows], int(max_cells), rng)]
        cells = backed[rows].to_memory() if len(rows) < backed.n_obs else backed.to_memory()
    finally:
        backed.file.close()
    cells.obs = obs.iloc[rows].copy()
    for column in (_keys.PERTURBATION, _keys.CONTEXT, "batch", _keys.PERTURBATION_TYPE):
        cells.obs[column] = cells.obs[column].cat.remove_unused_categories()
    if not cells.obs_names.is_unique:
        cells.obs_names_make_unique()
    return cells


def draw_cells(labels: pd.Series, most: int, rng: np.random.Generator) -> np.ndarray:
    """Positions, in order, of at most `most` cells of each label, and of ten times as many controls."""
    drawn, labels = [], labels.astype(str).reset_index(drop=True)
    for label, cells in sorted(labels.groupby(labels).indices.items()):
        limit = most * (10 if label == CONTROL else 1)
        drawn.append(cells if len(cells) <= limit else rng.choice(cells, limit, replace=False))
    return np.sort(np.concatenate(drawn))


def screen_obs(obs: pd.DataFrame, layout: ScreenLayout, context: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns as `build_perturbation_reference` takes them, from those of a deposit, and which cells have a label.

    Parameters
    ----------
    obs
        As the deposit has it.
    context
        Name of the cells where no column says it.
    """
    present = [name for name in _PERTURBATION if name in obs]
    # A column may know no more than perturbed and control, whatever its name promises.
    values = {name: set(obs[name].dropna().astype(str).str.strip().str.lower()) for name in present}
    column = next((name for name in present if values[name] - set(_CONTROLS) != {"perturbed"}), None)
    if column is None:
        what = "The file has no column of perturbations"
        if present:
            what = f"`obs[{present[0]!r}]` tells whether a cell was perturbed, and no column tells of which gene"
        raise ValueError(f"{what}: one of {listing(_PERTURBATION)} was expected, it has {listing(obs.columns)}.")
    given = obs[column].astype(object)
    labelled = (given.notna() & ~given.astype(str).str.strip().isin(["", "*", "nan", "None", "unassigned"])).to_numpy()
    names = given.where(labelled, "").astype(str)
    spelled = {name: perturbation_name(name, layout) for name in names.unique()}
    out = obs.copy()
    out[_keys.PERTURBATION] = pd.Categorical(names.map(spelled))
    if not (out[_keys.PERTURBATION][labelled] == CONTROL).any():
        shown = sorted(set(names[labelled]))
        raise ValueError(
            f"No cell of `obs[{column!r}]` is a control; it has {listing(shown)}, and controls are called "
            f"{listing(_CONTROLS)}."
        )
    cell_line, batch = (
        next((name for name in columns if name in obs and obs[name].notna().all()), None)
        for columns in (_CONTEXT, _BATCH)
    )
    # One name for one line, whatever the deposit calls it; several lines keep their own.
    several = cell_line is not None and obs[cell_line].nunique() > 1
    out[_keys.CONTEXT] = pd.Categorical(obs[cell_line].astype(str) if several else np.full(len(obs), context))
    out["batch"] = pd.Categorical(np.full(len(obs), "one") if batch is None else obs[batch].astype(str))
    kind = np.where(out[_keys.PERTURBATION] == CONTROL, CONTROL, layout.kind)
    out[_keys.PERTURBATION_TYPE] = pd.Categorical(kind)
    return out, labelled


def perturbation_name(label: str, layout: ScreenLayout) -> str:
    """Name of a perturbation as this package writes it, from a label of a deposit: a gene, `A+B`, or `control`."""
    label = label.strip()
    if label.lower() in _CONTROLS or (layout.control and re.search(layout.control, label)):
        return CONTROL
    if layout.suffix:
        label = re.sub(layout.suffix, "", label)
    parts = label.split(layout.joined_by) if layout.joined_by else label.split("+")
    genes = [part for part in parts if part.lower() not in _CONTROLS]
    return "+".join(genes) if genes else CONTROL
