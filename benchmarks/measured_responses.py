"""Methods on tables of measured responses: knock-downs in two cell lines, drugs in four and in ten contexts.

`benchmarks/perturbation.py` runs it. *Unseen here*: a fifth of the perturbations of one context is held out, and other
contexts measured them. *Unseen perturbation*: a fifth is held out in all contexts. Scored by `rg.tl.evaluate_perturbation`: cosine of
predicted and measured response, both relative to the mean response of the context in the reference; share of predictions whose own
truth is in the nearest tenth of all responses of the context; rank of the own truth, 1 for the nearest and .5 by chance.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

import ragst_sd as rg
from ragst_sd.retrieval.projection import fit_pca, project

SCREENS = {
    "Replogle": "replogle2022_k562_rpe1_ranks.h5ad",
    "NeurIPS 2023": "neurips2023_pbmc_ranks.h5ad",
    "Tahoe": "tahoe10_ranks.h5ad",
}
TASKS = {"here": "unseen here", "perturbation": "unseen perturbation"}
METRICS = ("centred_cosine", "best_tenth", "rank_score")
N_FOLDS = 5
ELSEWHERE = "other contexts"
PT_RAG = {
    "pt_rag, no retrieval": {"method": "pt_rag", "options": {"candidates": "none"}},
    "pt_rag, random candidates": {"method": "pt_rag", "options": {"candidates": "random"}},
    "pt_rag, not context-aware": {"method": "pt_rag", "options": {"context_aware": False}},
    "pt_rag, two stages, context-aware": {"method": "pt_rag"},
}
ALWAYS = {name: {"method": name} for name in ("mean", "kernel_ridge", "rag")}
BY_EMBEDDING = {
    "naive_rag": {"method": "naive_rag", "n_candidates": 16},
    "random_rag": {"method": "random_rag", "n_candidates": 16},
    "knn": {"method": "knn", "n_neighbors": 10},
    "ridge": {"method": "ridge"},
    "bilinear": {"method": "bilinear"},
}
MEASURED = {name: {"method": name} for name in ("same_perturbation", "context_additive")}
OTHERS = {
    f"{name}, {ELSEWHERE}": (BY_EMBEDDING | ALWAYS)[name] for name in ("naive_rag", "knn", "ridge", "kernel_ridge")
}


class Fold(NamedTuple):
    """What is held out, and where."""

    screen: str
    task: str
    name: str
    contexts: list[str]
    training: np.ndarray
    held: list[str]


def read(folder: Path, screen: str) -> ad.AnnData:
    """A table of ranks, perturbations that were measured in two contexts at least."""
    adata = ad.read_h5ad(folder / "ranks" / SCREENS[screen])
    # A drug of Tahoe is written with a space after its name.
    adata.obs = adata.obs[["perturbation", "context"]].astype(str).apply(lambda names: names.str.strip())
    n_contexts = adata.obs.groupby("perturbation")["context"].nunique()
    return adata[adata.obs["perturbation"].isin(n_contexts.index[n_contexts > 1])].copy()


def folds_of(adata: ad.AnnData, screen: str, task: str, *, numbers: list[int], quick: bool) -> list[Fold]:
    """Folds of these numbers, or for a quick look the first one of each of the first four contexts."""
    table = rg.tl.perturbation_folds(adata, split=task, n_folds=N_FOLDS, context_key="context")
    out = []
    for name in table:
        test = adata.obs[(table[name] == "test").to_numpy()]
        contexts = sorted(set(test["context"]))
        if int(name[-1]) not in ([1] if quick else numbers):
            continue
        out.append(
            Fold(screen, task, name, contexts, (table[name] == "train").to_numpy(), sorted(set(test["perturbation"])))
        )
    return out[:4] if quick else out


def elsewhere(adata: ad.AnnData, context: str) -> pd.DataFrame:
    """Principal components of the responses in all other contexts side by side, as an embedding of perturbations.

    A perturbation that one of them lacks has their mean there.
    """
    parts, names = [], sorted(set(adata.obs["perturbation"]))
    for other in sorted(set(adata.obs["context"]) - {context}):
        own = adata[adata.obs["context"] == other]
        values = np.asarray(own.X.toarray() if hasattr(own.X, "toarray") else own.X, dtype=np.float64)
        frame = pd.DataFrame(values - values.mean(axis=0), index=own.obs["perturbation"])
        parts.append(frame.reindex(names).fillna(0.0).to_numpy())
    values = np.concatenate(parts, axis=1)
    mean, axes = fit_pca(values, 100)
    return pd.DataFrame(project(values, mean, axes), index=names)


def predict(adata: ad.AnnData, embedding: pd.DataFrame | None, fold: Fold, wanted: list[str]) -> pd.DataFrame:
    """Scores of the held-out perturbations of one fold, by method."""
    training = adata[fold.training].copy()
    known = set(embedding.index) if embedding is not None else set()
    # Methods that compare embeddings are asked about genes that have one; the others about the same ones.
    held = [name for name in fold.held if name in known] if known else fold.held
    here = fold.task == "here"
    methods = ALWAYS | PT_RAG | (BY_EMBEDDING if known else {}) | (MEASURED if here else {})
    tables = ask(training, embedding, fold, held, methods, wanted)
    if here:
        (context,) = fold.contexts
        own = training[training.obs["context"] == context].copy()
        tables |= ask(own, elsewhere(training, context), fold, held, OTHERS, wanted)
    truth = adata[adata.obs["context"].isin(fold.contexts)].copy()
    scores = rg.tl.evaluate_perturbation(tables, truth, metrics=METRICS, context_key="context")
    scores = scores[scores["subset"] == "each"]
    return scores.assign(screen=fold.screen, task=TASKS[fold.task], fold=fold.name)


def ask(
    training: ad.AnnData,
    embedding: pd.DataFrame | None,
    fold: Fold,
    held: list[str],
    methods: dict[str, dict[str, Any]],
    wanted: list[str],
) -> dict[str, ad.AnnData]:
    """Predictions of those of some methods that are wanted, for the contexts of a fold."""
    wanted = [*wanted, *(PT_RAG if "pt_rag" in wanted else ())]
    methods = {label: arguments for label, arguments in methods.items() if label in wanted}
    if not methods:
        return {}
    reference = rg.tl.build_perturbation_reference(training, embedding=embedding, context_key="context", unit="rank")
    where, tables = pd.DataFrame({"context": fold.contexts}), {}
    for label, arguments in methods.items():
        rg.tl.fit(reference, **arguments)
        tables[label] = rg.tl.perturb(where, reference, perturbations=held, context_key="context")
    return tables


def run(
    folder: Path,
    screens: list[str],
    gene_sets: Path,
    *,
    methods: list[str],
    numbers: list[int],
    quick: bool,
    jobs: int,
    initializer: Any,
) -> pd.DataFrame:
    """Scores of all screens and tasks."""
    parts = []
    for screen in screens:
        adata = read(folder, screen)
        embedding = rg.tl.embed_genes(gene_sets, min_terms=1) if screen == "Replogle" else None
        tasks = list(TASKS) if embedding is not None else ["here"]
        if embedding is not None:
            embedding = embedding.loc[embedding.index.intersection(adata.obs["perturbation"])]
            adata = adata[adata.obs["perturbation"].isin(embedding.index)].copy()
        for task in tasks:
            start = time.perf_counter()
            folds = folds_of(adata, screen, task, numbers=numbers, quick=quick)
            with Parallel(n_jobs=jobs, initializer=initializer) as pool:
                parts += pool(delayed(predict)(adata, embedding, fold, methods) for fold in folds)
            print(f"{screen}, {TASKS[task]}: {time.perf_counter() - start:.0f} s", flush=True)
    return pd.concat(parts, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """Mean over perturbations, folds and contexts; cosines of each context beside them where there are few.

    Methods that were asked about some of the folds only are compared with the others on those, in a table of their own.
    """
    wide = scores.pivot_table(
        index=["screen", "task", "method", "context", "fold"], columns="metric", values="value", aggfunc="mean"
    )
    lines = []
    for (screen, task), part in wide.groupby(level=["screen", "task"], sort=False):
        part = part.droplevel(["screen", "task"])
        folds = {name: frozenset(own.droplevel("method").index) for name, own in part.groupby(level="method")}
        for asked in sorted(set(folds.values()), key=len, reverse=True):
            compared = [(name, *place) for name, own in folds.items() if own >= asked for place in sorted(asked)]
            lines += ["", *_lines(f"{screen}, {task}", part.loc[compared])]
    return "\n".join(lines[1:])


def _lines(title: str, part: pd.DataFrame) -> list[str]:
    contexts = sorted(set(part.index.get_level_values("context")))
    few = contexts if len(contexts) <= 4 else []
    by_fold = part["centred_cosine"].unstack("method")
    columns = [f"{title}, {len(by_fold)} fold{'s' * (len(by_fold) > 1)}", "cosine", "best tenth", "rank"]
    columns += [*(f"cosine, {name}" for name in few), "folds in which `rag` is ahead"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    means = part.groupby(level=["method", "context"]).mean()
    total = means.groupby(level="method").mean()
    for method in total.sort_values("centred_cosine", ascending=False).index:
        values = [*total.loc[method, list(METRICS)], *(means.loc[(method, name), "centred_cosine"] for name in few)]
        ahead = str((by_fold["rag"] > by_fold[method]).sum()) if "rag" in by_fold and method != "rag" else ""
        lines.append(f"| {method} | " + " | ".join(f"{value:.3f}" for value in values) + f" | {ahead} |")
    return lines
