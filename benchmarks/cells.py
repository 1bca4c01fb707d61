"""What counts as low as those of cells and small bins do to accuracy.

Counts of real spots are thinned binomially to a mean of so many counts per spot, in the reference and in the held-out
donor alike. The prediction is compared with the thinned counts, as with cells one must, and with all counts, which with
cells nobody has. The last column sums the thinned counts of the reference over each spot and its four nearest ones first.

    python benchmarks/cells.py --data "$RAGST_SD_TEST_DATA" --write docs/howto/cells.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from real_sections import N_GENES, write_between_markers
from scanners import Scans, fit
from scipy.spatial import KDTree
from spatialdata import SpatialData

import ragst_sd as rg
from ragst_sd._demo import variable_genes
from ragst_sd.reference.noise_ceiling import noise_ceiling
from ragst_sd.reference.normalize import as_csr

SET, CELLS = "mob", "lung_xenium_toy/NCBI858"
DEPTHS = (None, 300, 100, 30)
N_SUMMED = 5


def thinned(counts: sp.csr_matrix, depth: float | None, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts of which each was kept with the chance that leaves `depth` per row on average."""
    out = counts.astype(np.float32)
    share = 1.0 if depth is None else depth / (counts.sum() / counts.shape[0])
    out.data = rng.binomial(np.rint(counts.data).astype(int), min(1.0, share)).astype(np.float32)
    return out


def summed(counts: sp.csr_matrix, xy: np.ndarray, n: int = N_SUMMED) -> sp.csr_matrix:
    """Counts of each row and of those nearest to it, `n` in all."""
    nearest = KDTree(xy).query(xy, k=n)[1]
    rows = np.repeat(np.arange(len(xy)), n)
    return as_csr(sp.csr_matrix((np.ones(rows.size), (rows, nearest.ravel())), shape=(len(xy),) * 2) @ counts)


def with_counts(sdata, counts: sp.csr_matrix):
    """The section with other counts; embedding, image and shapes are shared."""
    table = sdata.tables["table"].copy()
    table.X = counts
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table}, attrs=sdata.attrs)


def accuracy(query, reference, truth, genes: list[str], metrics: tuple[str, ...] = ("pearson",)) -> pd.Series:
    table = rg.tl.predict(query, reference, genes=genes, inplace=False)
    scores = rg.tl.evaluate(table, truth=truth, genes=genes, metrics=list(metrics))
    return scores.groupby("metric")["value"].mean()


def measure(scans: Scans, method: str) -> pd.DataFrame:
    """One line per depth: means over held-out donors."""
    sections = {name: scans.get(SET, name) for name in scans.read(SET)}
    counts = {name: as_csr(sdata["table"].X) for name, sdata in sections.items()}
    lines = []
    for held in sections:
        others = [name for name in sections if name != held]
        everything = rg.tl.build_reference([sections[name] for name in others], use_rep="X", thumbnails=False)
        truth = sections[held]["table"]
        genes = [gene for gene in variable_genes(everything, N_GENES) if gene in truth.var_names]
        for depth in DEPTHS:
            rng = np.random.default_rng(0)
            thin = {name: with_counts(sdata, thinned(counts[name], depth, rng)) for name, sdata in sections.items()}
            query, low = thin[held], thin[held]["table"]
            plain = fit({name: thin[name] for name in others}, method)
            sums = {name: summed(thin[name]["table"].X, thin[name]["table"].obsm["spatial"]) for name in others}
            pooled = fit({name: with_counts(thin[name], sums[name]) for name in others}, method)
            seen = accuracy(query, plain, low, genes, ("pearson", "noise_ceiling"))
            lines.append(
                {
                    "counts per spot": "all" if depth is None else str(depth),
                    "ceiling": seen["noise_ceiling"],
                    "Pearson": seen["pearson"],
                    "against all counts": accuracy(query, plain, truth, genes)["pearson"],
                    "the same, reference summed": accuracy(query, pooled, truth, genes)["pearson"],
                }
            )
            print(held, lines[-1], flush=True)
    return pd.DataFrame(lines).groupby("counts per spot", sort=False).mean().reset_index()


def of_cells(path: Path) -> pd.DataFrame:
    """Ceiling of real cells, as they are and summed over neighbours, over the genes that vary most in them."""
    cells = ad.read_h5ad(path)
    lines = []
    for n in (1, 5, 20):
        counts = summed(as_csr(cells.X), cells.obsm["spatial"], n)
        ceilings = noise_ceiling(counts, np.arange(cells.n_vars))
        depth = np.median(np.asarray(counts.sum(1)).ravel())
        lines.append({"cells summed": str(n), "median counts": float(depth), "ceiling": np.nanmean(ceilings)})
    return pd.DataFrame(lines)


def markdown(table: pd.DataFrame) -> str:
    def text(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.0f}" if value > 2 else f"{value:.3f}"

    rows = [list(table.columns), ["---"] * table.shape[1]]
    rows += [list(map(text, line)) for line in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/")
    parser.add_argument("--method", default="knn")
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept for the next run")
    parser.add_argument("--write", type=Path, help="page whose marked tables are replaced")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    found = {"cells": of_cells(Path(args.data) / "histology" / f"{CELLS}.h5ad")}
    print(markdown(found["cells"]), flush=True)
    found["counts"] = measure(Scans(Path(args.data), args.cache), args.method)
    for marker, table in found.items():
        print("\n" + markdown(table))
        if args.write:
            write_between_markers(args.write, marker, markdown(table))


if __name__ == "__main__":
    main()
