"""HEST-Bench's own protocol on a folder in its layout, its regression beside methods of this package.

A folder is one task: `patches/`, counts (`adata/` or wherever the splits say), `splits/train_<k>.csv` and `test_<k>.csv` (columns
sample_id, patches_path, expr_path), and a json with the genes. Per fold, of all spots of the test samples together: Pearson correlation of
every gene; the score is the mean over genes and then over folds.

`hest_ridge` is the benchmark's own: StandardScaler, PCA to 256 components, ridge with the penalty 100 / (components x genes) and no
intercept. The others are methods of `rg.tl.fit` on the same features, sections centred as they are by default. Two targets:

- `log1p counts`, the benchmark's: raw counts, so that the depth of a spot is part of every gene;
- `log1p cp10k`, counts per 10,000 of all genes.

    python benchmarks/hest_bench.py eval/bench_data/IDC --model texture --methods ridge knn rag
    python benchmarks/hest_bench.py eval/bench_data/IDC --features embeddings/IDC/uni_v1 --model uni_v1
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ragst_sd as rg
from ragst_sd._metrics import pearson

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

OWN = "hest_ridge"
METHODS = ("ridge", "knn", "rag")
TARGETS = ("log1p counts", "log1p cp10k")
SEED, COMPONENTS = 1, 256
USE_REP = "X_bench"


def folds(task: Path) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Samples to train on and to test, as the splits list them."""
    splits = task / "splits"
    n = len(list(splits.glob("train_*.csv")))
    if n == 0:
        msg = f"{splits} holds no train_<k>.csv. Pass the folder of one task."
        raise FileNotFoundError(msg)
    return [(pd.read_csv(splits / f"train_{k}.csv"), pd.read_csv(splits / f"test_{k}.csv")) for k in range(n)]


def read_sections(
    task: Path, listed: pd.DataFrame, *, model: str, features: Path | None, metadata: Path | None, mpp: float
) -> dict[str, SpatialData]:
    """Every sample once, with features. Without metadata each counts as a donor of its own."""
    sections = {}
    for sample, patches, counts in listed[["sample_id", "patches_path", "expr_path"]].itertuples(index=False):
        name = str(sample)
        sdata = rg.io.read_patches(
            task / patches,
            task / counts,
            embeddings=None if features is None else {model: features / f"{name}.h5"},
            metadata=metadata,
            sample=name,
            donor=None if metadata is not None else name,
            mpp=mpp,
        )
        table = sdata.tables["table"]
        if features is None:
            edge = table.obsm["patches"].shape[1]
            rg.pp.embed_tiles(sdata, model=model, tile_px=edge, mpp=mpp, key_added=USE_REP, progress=False)
        else:
            (given,) = (key for key in table.obsm if key.startswith("X_"))
            table.obsm[USE_REP] = table.obsm.pop(given)
            header = table.uns["ragst"]["embeddings"]
            header[USE_REP] = header.pop(given)
        # Not needed any more, and large.
        del table.obsm["patches"]
        sections[name] = sdata
    return sections


def target_of(table: AnnData, genes: list[str], target: str) -> np.ndarray:
    """(spots, genes) log1p of counts, or of counts per 10,000 of all genes."""
    counts = table[:, genes].X.toarray().astype(np.float64)
    if target == TARGETS[1]:
        counts *= 1e4 / np.maximum(table.X.sum(axis=1), 1)
    return np.log1p(counts)


def predict_own(train: list[AnnData], test: list[AnnData], y: np.ndarray) -> np.ndarray:
    """The benchmark's regression."""
    x, x_test = (np.concatenate([table.obsm[USE_REP] for table in tables]) for tables in (train, test))
    # PCA gives no more components than there are rows or features.
    reduce = make_pipeline(StandardScaler(), PCA(min(COMPONENTS, *x.shape), random_state=SEED))
    x, x_test = reduce.fit_transform(x), reduce.transform(x_test)
    alpha = 100 / (x.shape[1] * y.shape[1])
    ridge = Ridge(alpha=alpha, fit_intercept=False, solver="lsqr", max_iter=1000, random_state=SEED)
    return ridge.fit(x, y).predict(x_test)


def predict_ours(reference: AnnData, sections: list[SpatialData], method: str, genes: list[str]) -> np.ndarray:
    """A method of this package, fitted on the reference as it is."""
    rg.tl.fit(reference, method=method, rng=SEED, progress=False)
    tables = [rg.tl.predict(sdata, reference, genes=genes, inplace=False) for sdata in sections]
    return np.concatenate([np.asarray(table[:, genes].X) for table in tables])


def line_of(fold: int, target: str, method: str, predicted: np.ndarray, truth: np.ndarray) -> dict:
    """Mean over genes of the correlation over all spots of a fold."""
    score = float(np.nanmean(pearson(predicted, truth)))
    return {"fold": fold, "target": target, "method": method, "pearson": score}


def scores(task: Path, sections: dict[str, SpatialData], genes: list[str], methods: list[str]) -> pd.DataFrame:
    """One line per fold, target and method."""
    lines = []
    for fold, (train, test) in enumerate(folds(task)):
        names, held = (list(listed["sample_id"].astype(str)) for listed in (train, test))
        tables, tested = ([sections[name].tables["table"] for name in which] for which in (names, held))
        targets = [
            [np.concatenate([target_of(t, genes, kind) for t in part]) for part in (tables, tested)] for kind in TARGETS
        ]
        for kind, (y, truth) in zip(TARGETS, targets, strict=True):
            lines.append(line_of(fold, kind, OWN, predict_own(tables, tested, y), truth))
        if not methods:
            continue
        training = {name: sections[name] for name in names}
        reference = rg.tl.build_reference(training, use_rep=USE_REP, genes=genes, thumbnails=False)
        # The methods are the same whatever is measured: the benchmark's unit takes the place of the package's.
        units = {TARGETS[0]: sp.csr_matrix(np.log1p(reference.layers["counts"])), TARGETS[1]: reference.X}
        for kind, (_, truth) in zip(TARGETS, targets, strict=True):
            reference.X = units[kind]
            for method in methods:
                predicted = predict_ours(reference, [sections[name] for name in held], method, genes)
                lines.append(line_of(fold, kind, method, predicted, truth))
    return pd.DataFrame(lines)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over folds, and its standard deviation as the benchmark takes it (of the population)."""
    grouped = frame.groupby(["method", "target"], sort=False)["pearson"]
    return pd.DataFrame({"pearson": grouped.mean(), "sd of folds": grouped.std(ddof=0)}).unstack("target")


def run(
    task: Path,
    *,
    model: str = "texture",
    methods: tuple[str, ...] = METHODS,
    genes: str = "var_50genes.json",
    features: Path | None = None,
    metadata: Path | None = None,
    mpp: float = 0.5,
) -> pd.DataFrame:
    """Scores of every fold of a task."""
    wanted = list(json.loads((task / genes).read_text())["genes"])
    listed = pd.concat([part for fold in folds(task) for part in fold]).drop_duplicates("sample_id")
    sections = read_sections(task, listed, model=model, features=features, metadata=metadata, mpp=mpp)
    return scores(task, sections, wanted, list(methods))


def main() -> None:
    """Print the table, and write the scores of every fold if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, help="folder of one task, such as eval/bench_data/IDC")
    parser.add_argument("--model", default="texture", help="encoder; the name of the features if they are given")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--genes", default="var_50genes.json", help="file in the folder with the list 'genes'")
    parser.add_argument("--features", type=Path, help="folder with <sample>.h5 of features that exist already")
    parser.add_argument("--metadata", type=Path, help="HEST's table of all sections (csv), which names the patients")
    parser.add_argument("--mpp", type=float, default=0.5, help="microns per pixel of the pictures")
    parser.add_argument("--write", type=Path, help="csv file for the scores of every fold")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asked = vars(args)
    write = asked.pop("write")
    frame = run(**asked | {"methods": tuple(args.methods)})
    if write is not None:
        frame.to_csv(write, index=False)
    print(summary(frame).round(4).to_string())


if __name__ == "__main__":
    main()
