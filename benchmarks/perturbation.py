"""Held-out perturbations on two real screens: every method beside the ceiling of each perturbation.

Each perturbation is predicted from a reference of all others, measured against one half of the controls; the truth is
measured against the other half. Repeated with other halves, and averaged. Papalexi: THP-1 cells, 24 knock-outs. K562:
single genes and combinations, CRISPRa.

    python benchmarks/perturbation.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md

`--permuted` shows what the protocol gives where there is nothing to be found, each seed with another permutation.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from real_sections import write_between_markers

import ragst_sd as rg

METHODS = ("rag", "pt_rag", "none", "mean", "knn", "naive_rag", "random_rag", "ridge", "bilinear", "additive")
METRICS = ("pearson_delta", "mse", "discrimination_score_l1", "pearson_delta_centroid")
ARGUMENTS = {"naive_rag": {"n_candidates": 16}, "random_rag": {"n_candidates": 16}}
MIN_RELIABILITY = 0.5
GENE_SETS = "embeddings/GO_Biological_Process_2021.gmt"


def screens(folder: Path) -> dict[str, tuple[ad.AnnData, dict, dict]]:
    """Cells of each screen, arguments that say how to read them, and those of the reference."""
    papalexi = ad.read_h5ad(folder / "expression/papalexi2021_thp1_sceptre.h5ad")
    devel = ad.read_h5ad(folder / "expression/perturbench_devel.h5ad")
    # 299 genes were kept of this screen, so that 10,000 counts per cell would be fifty times what was counted.
    counts = {"target_sum": None}
    return {
        "Papalexi": (papalexi, {"unit": "counts", "batch_key": "bio_rep"}, counts),
        "K562": (devel[devel.obs["cell_type"] == "k562"].copy(), {"unit": "log1p_cp10k"}, {}),
    }


def embedded(adata: ad.AnnData, embedding: pd.DataFrame) -> list[str]:
    """Perturbations all of whose genes have an embedding."""
    names = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    return [name for name in names if set(name.split("+")) <= set(embedding.index)]


def leave_one_out(
    adata: ad.AnnData, read: dict, build: dict, embedding: pd.DataFrame, methods: dict[str, dict], seed: int
) -> pd.DataFrame:
    """Scores of every perturbation, held out in turn, by method."""
    batch = {name: value for name, value in read.items() if name == "batch_key"}
    folds = rg.tl.perturbation_folds(adata, rng=seed, **batch)
    unit = {"unit": read["unit"]}
    parts = []
    for name in embedded(adata, embedding):
        role = folds["+".join(sorted(name.split("+")))]
        training = adata[role.isin(["train", "control_train"])].copy()
        reference = rg.tl.build_perturbation_reference(training, embedding=embedding, rng=seed, **read, **build)
        source = adata[role == "control_train"].copy()
        tables = {}
        for label, arguments in methods.items():
            rg.tl.fit(reference, **arguments)
            try:
                tables[label] = rg.tl.perturb(source, reference, perturbations=[name], **unit)
            except ValueError as error:
                if "nothing to answer from" not in str(error):
                    raise
        scores = rg.tl.evaluate_perturbation(tables, adata, metrics=METRICS, rng=seed, **read)
        parts.append(scores[scores["subset"] == "each"].assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def by_perturbation(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds: one line per perturbation and method, metrics as columns."""
    keys = ["screen", "perturbation", "method"]
    wide = scores.pivot_table(index=keys, columns="metric", values="value", aggfunc="mean")
    return wide.join(scores.groupby(keys)["reliability"].mean()).reset_index()


def groups(wide: pd.DataFrame) -> dict[str, pd.Series]:
    """Which perturbations each line of the summary is about."""
    combination = wide["perturbation"].str.contains("+", regex=False)
    reliable = wide["reliability"] >= MIN_RELIABILITY
    out = {}
    for screen in wide["screen"].unique():
        here = wide["screen"] == screen
        if combination[here].any():
            out[f"{screen}, singles, all"] = here & ~combination
            out[f"{screen}, singles, reliable"] = here & ~combination & reliable
            out[f"{screen}, combinations, all"] = here & combination
            # Only where both singles were measured can they be added up; all methods are compared on those.
            summed = set(wide[here & (wide["method"] == "additive")]["perturbation"])
            out[f"{screen}, combinations of measured singles"] = here & wide["perturbation"].isin(summed)
        else:
            out[f"{screen}, all"] = here
            out[f"{screen}, reliable"] = here & reliable
    return out


def summary_table(wide: pd.DataFrame) -> str:
    """Means by group and method."""
    metrics = [*METRICS, "ceiling"]
    lines = [
        "| perturbations | n | method | pearson_delta | mse x 1000 | discrimination (l1) | pearson from centroid | ceiling |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, mask in groups(wide).items():
        part = wide[mask]
        for method in [name for name in part["method"].unique() if name != "additive"] + ["additive"]:
            own = part[part["method"] == method]
            if not len(own) or (method == "additive" and "measured" not in label):
                continue
            means = own[metrics].mean()
            lines.append(
                f"| {label} | {len(own)} | {method} | {means['pearson_delta']:.3f} | {1e3 * means['mse']:.2f} | "
                f"{means['discrimination_score_l1']:.3f} | {means['pearson_delta_centroid']:.3f} | {means['ceiling']:.3f} |"
            )
    return "\n".join(lines)


def detail_table(wide: pd.DataFrame, screen: str, methods: list[str]) -> str:
    """`pearson_delta` of each perturbation of a screen, the most reliable ones first."""
    part = wide[wide["screen"] == screen]
    columns = [name for name in methods if name not in ("none", "additive")]
    lines = [
        f"| {screen} | reliability | ceiling | " + " | ".join(columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    values = part.pivot(index="perturbation", columns="method", values="pearson_delta")
    facts = part.groupby("perturbation")[["reliability", "ceiling"]].mean().sort_values("reliability", ascending=False)
    for name, fact in facts.iterrows():
        cells = " | ".join(f"{values.loc[name, column]:.3f}" for column in columns)
        lines.append(f"| {name} | {fact['reliability']:.3f} | {fact['ceiling']:.3f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Run the protocol and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder of test data")
    parser.add_argument("--screens", nargs="+", default=["Papalexi", "K562"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument(
        "--permuted", action="store_true", help="permute the labels of the cells: nothing is to be found"
    )
    parser.add_argument("--seeds", type=int, default=4, help="how many times the controls are halved")
    parser.add_argument("--scores", type=Path, help="csv file for the scores of every perturbation")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data or set RAGST_SD_TEST_DATA")
    logging.getLogger("ragst_sd").setLevel(logging.ERROR)
    folder = args.data / "perturb"
    methods = {name: {"method": name} | ARGUMENTS.get(name, {}) for name in args.methods}
    embedding = rg.tl.embed_genes(folder / GENE_SETS, min_terms=1)
    parts = []
    available = screens(folder)
    for screen in args.screens:
        for seed in range(args.seeds):
            start = time.perf_counter()
            adata, read, build = available[screen]
            if args.permuted:
                # One draw of few controls is far from all others or near: only the mean over several draws is zero.
                adata = adata.copy()
                names = adata.obs["perturbation"].astype(str).to_numpy()
                adata.obs["perturbation"] = np.random.default_rng(seed).permutation(names)
            parts.append(leave_one_out(adata, read, build, embedding, methods, seed).assign(screen=screen))
            print(
                f"{screen}, controls halved for the {seed + 1}. time: {time.perf_counter() - start:.0f} s", flush=True
            )
    scores = pd.concat(parts, ignore_index=True)
    if args.scores:
        scores.to_csv(args.scores, index=False)
    wide = by_perturbation(scores)
    # Methods in the order in which they were asked for.
    wide["method"] = pd.Categorical(wide["method"], categories=list(methods))
    wide = wide.sort_values(["screen", "method", "perturbation"]).astype({"method": str})
    tables = [summary_table(wide), *(detail_table(wide, screen, list(methods)) for screen in args.screens)]
    text = "\n\n".join(tables)
    print(text)
    if args.write and not args.permuted:
        write_between_markers(args.write, "perturbation", text)


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
