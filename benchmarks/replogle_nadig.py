"""The protocol of PT-RAG on the four cell lines of Replogle and Nadig: held-out cell lines and held-out perturbations.

Cross-cell-type: one line is held out, of which a share of the perturbations (30 % in the paper) is seen in training; the rest is
predicted, most of them seen in other lines. Cross-perturbation: perturbations are held out in all lines, in folds. Both beside
the baselines that the paper left out, with controls cut in halves, and only perturbations whose response can be measured apart.

The cells come from one h5ad file, as the Arc institute publishes it (obs gene, cell_line, gem_group; control non-targeting), or
from the four screens of the catalogue:

    python benchmarks/replogle_nadig.py --cells replogle.h5ad --embedding genept.csv
    python benchmarks/replogle_nadig.py --catalog --gene-sets GO_Biological_Process.gmt

`--max-cells` and `--n-genes` say how much of it is used: the whole file holds 600,000 cells.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import ragst_sd as rg

SCREENS = ("replogle_2022_k562_essential", "replogle_2022_rpe1", "nadig_2025_hepg2", "nadig_2025_jurkat")
METHODS = ("mean", "same_perturbation", "context_additive", "knn", "ridge", "rag")
METRICS = ("pearson_delta", "mse", "discrimination_score_l1")
KEYS = {"perturbation_key": "perturbation", "context_key": "context", "batch_key": "batch"}
FOLDS = 3


def read_cells(path: Path, *, keys: dict[str, str], control: str, max_cells: int, rng: int) -> ad.AnnData:
    """Cells of one file with the columns of the catalogue's screens; a part of a large file is drawn before it is read."""
    backed = ad.read_h5ad(path, backed="r")
    try:
        lacking = sorted(set(keys.values()) - set(backed.obs.columns))
        if lacking:
            msg = f"{path} has no obs {lacking}; it has {sorted(backed.obs.columns)}. Name them with --perturbation-key and so on."
            raise KeyError(msg)
        obs = pd.DataFrame(
            {name: backed.obs[column].astype(str) for name, column in keys.items()}, index=backed.obs_names
        )
        if not (obs["perturbation"] == control).any():
            msg = f"{path} has no cell with {control!r} in obs[{keys['perturbation']!r}]. Name the controls with --control."
            raise ValueError(msg)
        obs["perturbation"] = obs["perturbation"].replace({control: "control"})
        kept = _draw(obs, max_cells, np.random.default_rng(rng))
        cells = backed[kept].to_memory()
    finally:
        backed.file.close()
    out = ad.AnnData(sp.csr_matrix(cells.X, dtype=np.float32), obs=obs.iloc[kept].copy(), var=cells.var[[]].copy())
    out.obs_names_make_unique()
    out.obs["perturbation_type"] = np.where(out.obs["perturbation"] == "control", "control", "CRISPRi")
    return out


def read_catalog(*, max_cells: int, rng: int) -> ad.AnnData:
    """The four screens of the catalogue, on the genes that all of them measured."""
    parts = {}
    for name in SCREENS:
        cells = rg.datasets.load_screen(name, max_cells=max_cells, rng=rng)
        cells.X = sp.csr_matrix(cells.X, dtype=np.float32)
        cells.obs = cells.obs[["perturbation", "context", "batch", "perturbation_type"]].astype(str)
        cells.var, cells.uns = cells.var[[]], {}
        parts[name] = cells
    joined = ad.concat(parts, join="inner", index_unique="-")
    # Batches are numbered from one in every screen.
    joined.obs["batch"] = joined.obs["context"].astype(str) + "-" + joined.obs["batch"].astype(str)
    return joined


def _draw(obs: pd.DataFrame, most: int, rng: np.random.Generator) -> np.ndarray:
    chosen = []
    for (name, _), rows in obs.groupby(["perturbation", "context"], sort=True).indices.items():
        limit = most * (10 if name == "control" else 1)
        chosen.append(rows if len(rows) <= limit else rng.choice(rows, limit, replace=False))
    return np.sort(np.concatenate(chosen))


def variable_genes(cells: ad.AnnData, n_genes: int) -> list[str]:
    """Genes whose log-expression varies most over the controls: nothing of the perturbed cells is looked at."""
    controls = cells[cells.obs["perturbation"] == "control"]
    counts = sp.csr_matrix(controls.X, dtype=np.float64)
    sums = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sp.diags(1e4 / np.maximum(sums, 1)) @ counts
    scaled = scaled.log1p()
    variance = np.asarray(scaled.power(2).mean(axis=0)).ravel() - np.asarray(scaled.mean(axis=0)).ravel() ** 2
    return sorted(cells.var_names[np.argsort(-variance, kind="stable")[:n_genes]])


def splits(cells: ad.AnnData, protocol: str, *, few_shot: float, n_folds: int, rng: int) -> pd.DataFrame:
    """One column of roles per fold."""
    arguments = {**KEYS, "rng": rng}
    if protocol == "cell_type":
        return rg.tl.perturbation_folds(cells, split="context", few_shot=few_shot, **arguments)
    return rg.tl.perturbation_folds(cells, split="perturbation", n_folds=n_folds, **arguments)


def score_fold(
    cells: ad.AnnData,
    role: pd.Series,
    embedding: pd.DataFrame,
    genes: list[str],
    methods: list[str],
    min_cells: int,
    rng: int,
) -> pd.DataFrame:
    """Scores of all perturbations of a fold that have an embedding, by method."""
    arguments = {"context_key": "context", "batch_key": "batch"}
    training = cells[role.isin(["train", "control_train"]).to_numpy()].copy()
    reference = rg.tl.build_perturbation_reference(
        training, embedding=embedding, genes=genes, min_cells=min_cells, rng=rng, **arguments
    )
    test = cells.obs[(role == "test").to_numpy()]
    asked = []
    for context in sorted(test["context"].unique()):
        counts = test.loc[test["context"] == context, "perturbation"].value_counts()
        enough = [name for name, n in counts.items() if n >= min_cells]
        wanted = sorted(name for name in enough if set(name.split("+")) <= set(embedding.index))
        source = cells[((role == "control_train") & (cells.obs["context"] == context)).to_numpy()].copy()
        if wanted and source.n_obs:
            asked.append((source, wanted))
    lines = []
    for method in methods:
        rg.tl.fit(reference, method=method, rng=rng)
        for source, wanted in asked:
            for part in _predicted(source, reference, wanted):
                scores = rg.tl.evaluate_perturbation(
                    part, cells, metrics=METRICS, min_cells=min_cells, rng=rng, **arguments
                )
                lines.append(scores[scores["subset"] == "each"].assign(method=method))
    if not lines:
        msg = "Nothing of this fold can be predicted: no held-out perturbation has an embedding and enough cells."
        raise ValueError(msg)
    return pd.concat(lines, ignore_index=True)


def _predicted(source: ad.AnnData, reference: ad.AnnData, wanted: list[str]) -> list[ad.AnnData]:
    """One table; where a method has no answer for some perturbations, those that it can answer are asked for one by one."""
    ask = {"context_key": "context"}
    try:
        return [rg.tl.perturb(source, reference, perturbations=wanted, **ask)]
    except ValueError as error:
        if "nothing to answer from" not in str(error):
            raise
    out = []
    for name in wanted:
        try:
            out.append(rg.tl.perturb(source, reference, perturbations=name, **ask))
        except ValueError as error:
            if "nothing to answer from" not in str(error):
                raise
    return out


def run(
    cells: ad.AnnData, embedding: pd.DataFrame, protocol: str, methods: list[str], *, n_genes: int = 2000, few_shot: float = 0.3,
    n_folds: int = FOLDS, min_cells: int = 10, rng: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Scores of every fold of a protocol."""
    genes = variable_genes(cells, n_genes)
    folds = splits(cells, protocol, few_shot=few_shot, n_folds=n_folds, rng=rng)
    parts = []
    for fold in folds:
        start = time.perf_counter()
        parts.append(score_fold(cells, folds[fold], embedding, genes, methods, min_cells, rng).assign(fold=fold))
        print(f"{protocol}, {fold}: {time.perf_counter() - start:.0f} s", flush=True)
    return pd.concat(parts, ignore_index=True).assign(protocol=protocol)


def summary_table(scores: pd.DataFrame, min_reliability: float = 0.5) -> str:
    """Means over perturbations by protocol and method: all, and those whose response two halves of the cells agree on."""
    lines = [
        "| protocol | perturbations | n | method | pearson_delta | mse x 1000 | discrimination (l1) | ceiling |",
        "|---" * 8 + "|",
    ]
    keys = ["fold", "context", "perturbation"]
    for (protocol, method), part in scores.groupby(["protocol", "method"], sort=False):
        wide = part.pivot_table(index=[*keys, "reliability"], columns="metric", values="value", dropna=False).dropna(
            how="all"
        )
        for label, rows in (
            ("all", wide),
            (
                f"reliability {min_reliability} and above",
                wide[wide.index.get_level_values("reliability") >= min_reliability],
            ),
        ):
            if len(rows):
                means = rows.mean()
                lines.append(
                    f"| {protocol} | {label} | {len(rows)} | {method} | {means['pearson_delta']:.3f} | {1e3 * means['mse']:.2f} | "
                    f"{means['discrimination_score_l1']:.3f} | {means['ceiling']:.3f} |"
                )
    return "\n".join(lines)


def read_embedding(path: Path | None, gene_sets: Path | None) -> pd.DataFrame:
    """Vectors of genes: a table with genes in its first column, or made from gene sets."""
    if path is not None:
        return pd.read_csv(path, index_col=0)
    return rg.tl.embed_genes(gene_sets, min_terms=1)


def main() -> None:
    """Run both protocols and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cells = parser.add_mutually_exclusive_group(required=True)
    cells.add_argument("--cells", type=Path, help="h5ad file with all cell lines")
    cells.add_argument("--catalog", action="store_true", help="load the four screens of the catalogue")
    vectors = parser.add_mutually_exclusive_group(required=True)
    vectors.add_argument("--embedding", type=Path, help="csv file, genes in the first column")
    vectors.add_argument("--gene-sets", type=Path, help="GMT file")
    parser.add_argument("--perturbation-key", default="gene")
    parser.add_argument("--context-key", default="cell_line")
    parser.add_argument("--batch-key", default="gem_group")
    parser.add_argument("--control", default="non-targeting")
    parser.add_argument(
        "--protocols", nargs="+", default=["cell_type", "perturbation"], choices=["cell_type", "perturbation"]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument(
        "--max-cells", type=int, default=100, help="cells of a perturbation and line, ten times as many controls"
    )
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument(
        "--few-shot", type=float, default=0.3, help="share of the held-out line's perturbations that is seen"
    )
    parser.add_argument("--folds", type=int, default=FOLDS, help="folds of held-out perturbations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scores", type=Path, help="csv file for the scores of every perturbation")
    args = parser.parse_args()
    logging.getLogger("ragst_sd").setLevel(logging.ERROR)
    keys = {"perturbation": args.perturbation_key, "context": args.context_key, "batch": args.batch_key}
    adata = (
        read_catalog(max_cells=args.max_cells, rng=args.seed)
        if args.catalog
        else read_cells(args.cells, keys=keys, control=args.control, max_cells=args.max_cells, rng=args.seed)
    )
    embedding = read_embedding(args.embedding, args.gene_sets)
    scores = pd.concat(
        [
            run(
                adata, embedding, protocol, args.methods, n_genes=args.n_genes, few_shot=args.few_shot, n_folds=args.folds,
                rng=args.seed,
            )
            for protocol in args.protocols
        ],
        ignore_index=True,
    )  # fmt: skip
    if args.scores:
        scores.to_csv(args.scores, index=False)
    print(summary_table(scores))


if __name__ == "__main__":
    main()
