"""Held-out perturbations on planted and real screens and on tables of measured responses: every method beside the baselines.

Screens of cells: each perturbation is predicted from a reference of all others, measured against one half of the controls; the
truth is measured against the other half. Repeated with other halves, and averaged. Papalexi: THP-1 cells, 24 knock-outs. K562: single
genes and combinations, CRISPRa. Glioblastoma: nine genes in three cell lines, CRISPRi. Planted: made up, 40 perturbations of two cell
states, a fifth of them held out at a time; another screen with each halving. Measured responses: Replogle, NeurIPS 2023 and Tahoe, see `measured_responses.py`.

    python benchmarks/perturbation.py --data "$RAGST_SD_TEST_DATA" --jobs 2 --write docs/benchmarks.md

`--quick` halves the controls once, holds out a sixth of the perturbations at a time, takes one fold of a few contexts of measured
responses, and leaves out `pt_rag`, which trains for long: less than ten minutes of one processor.

`--ablation` adds `pt_rag` trained and asked with random candidates and with none, on screens of cells.

`--permuted` shows what the protocol gives where there is nothing to be found, each seed with another permutation.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import measured_responses
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from real_sections import write_between_markers

import ragst_sd as rg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.screens import two_state_screen

SCREENS = ("Planted", "Papalexi", "K562", "Glioblastoma")
# Regression learns one map for all states; by name it can be had for each state alone, where a screen has several.
EACH_STATE = {f"{name}, each state": {"method": name} for name in ("ridge", "bilinear")}
METHODS = (
    "rag",
    "pt_rag",
    "none",
    "mean",
    "knn",
    "naive_rag",
    "random_rag",
    "ridge",
    "kernel_ridge",
    "bilinear",
    *EACH_STATE,
    "additive",
)
# By responses in other contexts.
MEASURED = (*measured_responses.MEASURED, *measured_responses.OTHERS)
METRICS = ("pearson_delta", "mse", "discrimination_score_l1", "pearson_delta_centroid")
ARGUMENTS = {"naive_rag": {"n_candidates": 16}, "random_rag": {"n_candidates": 16}}
ABLATION = {
    f"pt_rag, {label} candidates": {"method": "pt_rag", "options": {"candidates": how}}
    for how, label in (("random", "random"), ("none", "no"))
}
MIN_RELIABILITY = 0.5
QUICK_FOLDS = 6
INTERFERON = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
GENE_SETS = "embeddings/GO_Biological_Process_2021.gmt"


class Screen(NamedTuple):
    """A screen, and how it is read and cut."""

    adata: ad.AnnData
    embedding: pd.DataFrame
    read: dict
    """Arguments that say what its columns and values are."""
    build: dict
    """More of them for the reference."""
    n_folds: int | None = None
    """One for every perturbation if left out."""


def screen(name: str, folder: Path, seed: int) -> Screen:
    """One of `SCREENS`."""
    if name == "Planted":
        adata, embedding = two_state_screen(rng=seed)
        return Screen(
            adata, embedding, {"unit": "log1p_cp10k", "context_key": "cell_type", "batch_key": "batch"}, {}, n_folds=5
        )
    embedding = rg.tl.embed_genes(folder / GENE_SETS, min_terms=1)
    if name == "Papalexi":
        cells = ad.read_h5ad(folder / "expression/papalexi2021_thp1_sceptre.h5ad")
        # 299 genes were kept of this screen, so that 10,000 counts per cell would be fifty times what was counted.
        return Screen(cells, embedding, {"unit": "counts", "batch_key": "bio_rep"}, {"target_sum": None})
    cells = ad.read_h5ad(folder / "expression/perturbench_devel.h5ad")
    of_k562, read = (cells.obs["cell_type"] == "k562").to_numpy(), {"unit": "log1p_cp10k"}
    if name == "K562":
        return Screen(cells[of_k562].copy(), embedding, read, {})
    return Screen(cells[~of_k562].copy(), embedding, read | {"context_key": "cell_type"}, {})


def embedded(one: Screen) -> list[str]:
    """Perturbations all of whose genes have an embedding."""
    names = sorted(set(one.adata.obs["perturbation"].astype(str)) - {"control"})
    return [name for name in names if set(name.split("+")) <= set(one.embedding.index)]


def hold_out(one: Screen, methods: dict[str, dict], seed: int, jobs: int = 1) -> pd.DataFrame:
    """Scores of every perturbation, held out in turn, by method."""
    columns = {name: one.read[name] for name in ("batch_key", "context_key") if name in one.read}
    folds = rg.tl.perturbation_folds(one.adata, n_folds=one.n_folds, rng=seed, **columns)
    known = set(embedded(one))
    label = one.adata.obs["perturbation"].astype(str)
    parts = []
    for name in folds:
        held = sorted(set(label[folds[name] == "test"]) & known)
        if held:
            parts.append(delayed(predict_fold)(one, folds[name], held, methods, seed))
    with Parallel(n_jobs=jobs, initializer=be_quiet if jobs > 1 else None) as pool:
        return pd.concat(pool(parts), ignore_index=True)


def be_quiet() -> None:
    """Processes that share the cores take one thread each, and say nothing."""
    logging.getLogger("ragst_sd").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def predict_fold(one: Screen, role: pd.Series, held: list[str], methods: dict[str, dict], seed: int) -> pd.DataFrame:
    """Scores of the perturbations of one fold."""
    together = {name: arguments for name, arguments in methods.items() if name not in EACH_STATE}
    apart = {name: arguments for name, arguments in methods.items() if name in EACH_STATE}
    parts = [predict_cells(one, role, held, together, seed)] if together else []
    if apart and "context_key" in one.read:
        states = one.adata.obs[one.read["context_key"]].astype(str)
        for state in states.unique():
            own = (states == state).to_numpy()
            parts.append(predict_cells(one._replace(adata=one.adata[own].copy()), role[own], held, apart, seed))
    return pd.concat(parts, ignore_index=True)


def predict_cells(one: Screen, role: pd.Series, held: list[str], methods: dict[str, dict], seed: int) -> pd.DataFrame:
    """Scores of some methods that see these cells."""
    training = one.adata[role.isin(["train", "control_train"])].copy()
    reference = rg.tl.build_perturbation_reference(training, embedding=one.embedding, rng=seed, **one.read, **one.build)
    source = one.adata[role == "control_train"].copy()
    asked = {name: value for name, value in one.read.items() if name != "batch_key"}
    tables = {}
    for label, arguments in methods.items():
        rg.tl.fit(reference, **arguments)
        try:
            tables[label] = rg.tl.perturb(source, reference, perturbations=held, **asked)
        except ValueError as error:
            if "nothing to answer from" not in str(error):
                raise
    scores = rg.tl.evaluate_perturbation(tables, one.adata, metrics=METRICS, rng=seed, **one.read)
    return scores[scores["subset"] == "each"].assign(seed=seed)


def predict_screens(
    args: argparse.Namespace, screens: list[str], folder: Path, methods: dict[str, dict]
) -> pd.DataFrame:
    """Scores of some screens, with every halving of the controls."""
    parts = []
    for name in screens:
        for seed in range(args.seeds):
            start = time.perf_counter()
            one = screen(name, folder, seed)
            one = one._replace(n_folds=QUICK_FOLDS) if args.quick else one
            if args.permuted:
                # One draw of few controls is far from all others or near: only the mean over several draws is zero.
                labels = one.adata.obs["perturbation"].astype(str).to_numpy()
                one.adata.obs["perturbation"] = np.random.default_rng(seed).permutation(labels)
            parts.append(hold_out(one, methods, seed, args.jobs).assign(screen=name))
            print(f"{name}, controls halved for the {seed + 1}. time: {time.perf_counter() - start:.0f} s", flush=True)
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
            if not reliable[here].all():
                out[f"{screen}, reliable"] = here & reliable
            if (pathway := here & wide["perturbation"].isin(INTERFERON)).any():
                out[f"{screen}, {', '.join(INTERFERON)}"] = pathway
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
    columns = [name for name in methods if name not in ("none", "additive") and (part["method"] == name).any()]
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


def gap_table(scores: pd.DataFrame) -> str:
    """How much of the gap between the mean and the ceiling each method closes, by how hard perturbations are."""
    parts = {screen: rg.get.gap_closed(part) for screen, part in scores.groupby("screen", sort=False)}
    methods = [name for name in scores["method"].unique() if name not in ("none", "mean", "additive", *EACH_STATE)]
    lines = [
        "| gap closed | n | mean | ceiling | dynamic range | " + " | ".join(methods) + " |",
        "|---" * (5 + len(methods)) + "|",
    ]
    for screen, gaps in parts.items():
        for stratum, part in gaps.groupby("stratum", sort=False):
            means = part.groupby("method")[["value", "baseline", "ceiling", "dynamic_range"]].mean()
            base = means.iloc[0]
            # Of the means, since the share of a small gap has no bounds.
            shares = (means["value"] - means["baseline"]) / (means["ceiling"] - means["baseline"])
            own = [f"{shares[name]:.2f}" if stratum != "the mean solves" else "" for name in methods]
            n = len(part[["context", "perturbation"]].drop_duplicates())
            lines.append(
                f"| {screen}, {stratum} | {n} | {base['baseline']:.3f} | {base['ceiling']:.3f} | "
                f"{base['dynamic_range']:.2f} | " + " | ".join(own) + " |"
            )
    return "\n".join(lines)


def ceiling_table(scores: pd.DataFrame) -> str:
    """Every metric of the mean, of `rag` and of the ceiling."""
    lines = ["| screen | metric | mean | rag | ceiling | dynamic range |", "|---" * 6 + "|"]
    for screen, of_screen in scores.groupby("screen", sort=False):
        for metric in METRICS:
            gaps = rg.get.gap_closed(of_screen, metric=metric)
            means = gaps.groupby("method")[["value", "ceiling", "dynamic_range"]].mean()
            rag = f"{means.loc['rag', 'value']:.4f}" if "rag" in means.index else ""
            base = means.loc["mean"]
            lines.append(
                f"| {screen} | {metric} | {base['value']:.4f} | {rag} | {base['ceiling']:.4f} | "
                f"{base['dynamic_range']:.2f} |"
            )
    return "\n".join(lines)


def tables_of_cells(scores: pd.DataFrame, args: argparse.Namespace, methods: list[str]) -> str:
    """All tables of the screens of cells."""
    wide = by_perturbation(scores)
    screens = [name for name in args.screens if (scores["screen"] == name).any()]
    # Methods and screens in the order in which they were asked for.
    for column, order in (("method", methods), ("screen", screens)):
        wide[column] = pd.Categorical(wide[column], categories=order)
        scores = scores.sort_values(column, key=lambda names, order=order: names.map(order.index), kind="stable")
    wide = wide.sort_values(["screen", "method", "perturbation"]).astype({"method": str, "screen": str})
    if args.ablation:
        return summary_table(wide)
    gaps = [gap_table(scores), ceiling_table(scores)] if (scores["method"] == "mean").any() else []
    details = [detail_table(wide, name, methods) for name in screens if name != "Planted"]
    return "\n\n".join([summary_table(wide), *gaps, *details])


def main() -> None:
    """Run the protocol and print or write the tables."""
    screens = (*SCREENS, *measured_responses.SCREENS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder of test data")
    parser.add_argument("--screens", nargs="+", choices=screens, default=list(screens))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *MEASURED), help="all if left out")
    parser.add_argument(
        "--permuted", action="store_true", help="permute the labels of the cells: nothing is to be found"
    )
    parser.add_argument("--ablation", action="store_true", help="also pt_rag without what it retrieves")
    parser.add_argument("--quick", action="store_true", help="one fold of a few contexts, controls halved once")
    folds = list(range(1, measured_responses.N_FOLDS + 1))
    parser.add_argument(
        "--folds",
        nargs="+",
        type=int,
        choices=folds,
        default=folds,
        help="of measured responses, these of each context",
    )
    parser.add_argument("--jobs", type=int, default=1, help="folds at a time, each in a process")
    parser.add_argument("--seeds", type=int, help="how many times the controls are halved: 4, or 1 with --quick")
    parser.add_argument("--scores", type=Path, help="csv file for the scores of every perturbation")
    parser.add_argument("--read", type=Path, nargs="+", help="such files, made before: nothing is predicted")
    parser.add_argument("--write", type=Path, help="page whose marked tables are replaced")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data or set RAGST_SD_TEST_DATA")
    logging.getLogger("ragst_sd").setLevel(logging.ERROR)
    args.seeds = args.seeds or (1 if args.quick else 4)
    asked = args.methods or [name for name in (*METHODS, *MEASURED) if name != "pt_rag" or not args.quick]
    methods = {name: EACH_STATE.get(name, {"method": name}) | ARGUMENTS.get(name, {}) for name in asked}
    methods = {name: arguments for name, arguments in methods.items() if name not in MEASURED}
    methods |= ABLATION if args.ablation else {}
    folder, parts = args.data / "perturb", []
    if args.read:
        parts = [pd.read_csv(path) for path in args.read]
    else:
        of_cells = [name for name in args.screens if name in SCREENS]
        given = [name for name in args.screens if name not in SCREENS]
        if of_cells:
            parts.append(predict_screens(args, of_cells, folder, methods))
        if given and not (args.permuted or args.ablation):
            be_quiet()
            parts.append(
                measured_responses.run(
                    folder,
                    given,
                    folder / GENE_SETS,
                    methods=asked,
                    numbers=args.folds,
                    quick=args.quick,
                    jobs=args.jobs,
                    initializer=be_quiet if args.jobs > 1 else None,
                )
            )
    scores = pd.concat(parts, ignore_index=True)
    scores = scores[scores["screen"].isin(args.screens)]
    if args.scores:
        scores.to_csv(args.scores, index=False)
    from_cells = scores["screen"].isin(SCREENS)
    texts = {}
    if from_cells.any():
        marker = "pt_rag_ablation" if args.ablation else "perturbation"
        texts[marker] = tables_of_cells(scores[from_cells], args, list(methods))
    if not from_cells.all():
        texts["measured_responses"] = measured_responses.table(scores[~from_cells])
    for marker, text in texts.items():
        print(text, end="\n\n")
        if args.write and not args.permuted:
            write_between_markers(args.write, marker, text)


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
