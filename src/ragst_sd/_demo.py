"""The demo: predict a held-out donor from the others, on embedded synthetic tissue or on a folder of real sections."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._page import read_text
from ragst_sd._replacing import without_notices

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

METHODS = ("mean", "ridge", "knn", "rag")
COLUMNS = ("pearson", "pearson_all_genes", "spearman", "rmse", "variance_kept", "effective_n")
# The pictures of synthetic tissue have one micron per pixel: tiles of the usual width need not be enlarged.
TILES: dict[str, Any] = {"tile_px": 112, "mpp": 1.0}


def read_folder(folder: Path) -> dict[str, SpatialData]:
    """Sections of a folder that holds `<section>.h5ad` and `<section>.jpg` (or .png, .tif) side by side.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or holds no such pair.
    """
    from ragst_sd.datasets._load import folder_samples, read_sample

    samples = folder_samples(str(folder), Path(folder), counted=True)
    return {name: read_sample(sample) for name, sample in samples.items()}


def variable_genes(reference: AnnData, n_genes: int) -> list[str]:
    """The genes that vary most over a reference, among those that every panel measured."""
    from ragst_sd.retrieval.training import variable_genes as most_variable

    everywhere = np.flatnonzero(np.asarray(reference.varm[_keys.MEASURED]).all(axis=1))
    return list(reference.var_names[most_variable(reference.X, np.arange(reference.n_obs), everywhere, n_genes)])


def run_demo(
    out: Path, *, data: Path | None = None, n_donors: int = 3, say: Callable[[str], object] = logger.info
) -> pd.DataFrame:
    """Run the whole path and write the object, the metrics and the pictures into `out`.

    Parameters
    ----------
    out
        Folder to write into; made if it does not exist.
    data
        Folder of real sections; synthetic tissue if left out.
    n_donors
        Donors of the synthetic tissue.
    say
        Called with every line that the user should read.

    Returns
    -------
    One line per method, as :func:`ragst_sd.get.summary` gives it.
    """
    import ragst_sd as rg

    started = time.perf_counter()
    if data is None:
        say(f"Drawing synthetic tissue of {n_donors} donors ...")
        sections = rg.datasets.synthetic(n_donors=n_donors)
    else:
        say(f"Reading sections from {data} ...")
        sections = read_folder(data)
    donor_of = {name: _donor(name, sdata) for name, sdata in sections.items()}
    donors = sorted(set(donor_of.values()))
    if len(donors) < 2:
        raise ValueError(f"The demo holds one donor out, so it needs two at least; found {donors}.")
    held = donors[-1]
    query = next(name for name in sections if donor_of[name] == held)
    # Other sections of the held-out donor are neither cited nor predicted.
    sections = {name: sdata for name, sdata in sections.items() if donor_of[name] != held or name == query}
    for i, (name, sdata) in enumerate(sections.items()):
        say(f"Embedding section {i + 1} of {len(sections)}: {name} (donor {donor_of[name]}, texture features)")
        tiles = TILES if data is None else {}
        rg.pp.embed_tiles(sdata, image_key="he", shapes_key="spots", model="texture", **tiles)

    training = {name: sdata for name, sdata in sections.items() if donor_of[name] != held}
    say(f"Building the reference from {', '.join(training)}; donor {held} is held out.")
    reference = rg.tl.build_reference(training, use_rep="X_texture")
    lines = []
    for method in METHODS:
        say(f"Fitting {method} and predicting {query} ...")
        rg.tl.fit(reference, method=method, progress=False)
        rg.tl.predict(sections[query], reference)
        scores = rg.tl.evaluate(sections[query])
        lines.append(rg.get.summary(scores).assign(method=method))
    metrics = pd.concat(lines).set_index("method")
    for paragraph in _write(out, query, sections[query], reference, metrics, scores):
        say(paragraph)
    n_genes, n_spots = (int(metrics[name].iloc[-1]) for name in ("n_genes", "n_spots"))
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    say(
        f"Accuracy on donor {held}, whom no method has seen (section {query}, {n_spots} spots): means over the "
        f"{n_genes} genes that vary most in the other donors,\nand pearson_all_genes over all of them."
    )
    say(metrics.reindex(columns=COLUMNS).round(3).reset_index().to_string(index=False))
    return metrics


def _donor(name: str, sdata: SpatialData) -> str:
    obs = sdata.tables["table"].obs
    return str(obs[_keys.DONOR].iloc[0]) if _keys.DONOR in obs else name


def _write(
    out: Path, name: str, sdata: SpatialData, reference: AnnData, metrics: pd.DataFrame, scores: pd.DataFrame
) -> list[str]:
    """Write all files; paragraphs that say where they are."""
    import shutil

    import ragst_sd as rg

    store = out / f"{name}.zarr"
    if store.exists() and not (out / "metrics.csv").exists():
        raise FileExistsError(
            f"{store} exists and is not of an earlier demo; it is not replaced. Choose another folder with --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    metrics.to_csv(out / "metrics.csv")
    table = sdata.tables["predicted"]
    of_genes = scores[(scores["gene"] != "") & (scores["metric"] == "pearson")].dropna().sort_values("value")
    median, best = of_genes["gene"].iloc[[len(of_genes) // 2, -1]]
    spot = table.obs_names[int(np.nanargmax(np.asarray(table[:, median].X).ravel()))]
    rg.pl.prediction(sdata, genes=[median, best], truth_key="table", save=out / "prediction.png", show=False)
    rg.pl.retrieval(sdata, reference, obs_names=spot, genes=median, save=out / "retrieval.png", show=False)
    rg.get.explain(sdata, reference, obs_names=spot, genes=median).to_csv(out / "explanation.csv", index=False)
    if store.exists():
        shutil.rmtree(store)
    with without_notices():
        sdata.write(store)
    rg.io.write_reference(reference, out / "reference.zarr.zip", overwrite=True)
    facts = {"out": out, "store": store.name, "median": median, "best": best, "spot": spot}
    return read_text("_demo.txt").format(**facts).rstrip().split("\n\n")
