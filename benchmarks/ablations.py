r"""What each part of `rag` is worth, and ideas that were tried beside it, on the set on which designs are chosen.

    python benchmarks/ablations.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md

`--ideas` compares changes of the whole stack with `rag` as it is, section by section, on several sets. Embeddings are
kept in the folder `--cache` where one is named.

    python benchmarks/ablations.py --data "$RAGST_SD_TEST_DATA" --ideas --only "share of retrieval for" random \
        components --sets mob2k her2st --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from real_sections import embed, folds, summarise, write_between_markers
from shell_features import add_shell

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._bank import open_bank
from ragst_sd._demo import read_folder
from ragst_sd._query import read_query
from ragst_sd.retrieval import regression
from ragst_sd.retrieval.evidence import effective_n
from ragst_sd.retrieval.methods import phi_of
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.training import dense, standardised_targets
from ragst_sd.tl._section_metrics import spatial_graph

SET = "mob2k"
AS_IT_IS = "rag, as it is"
ALONE = "retrieval alone, no regression H"
VARIANTS: dict[str, dict] = {
    AS_IT_IS: {},
    ALONE: {"options": {"regression": False}},
    "linear phi of 32 dimensions": {"options": {"n_latent": 32}},
    "one hidden layer of 64 units in phi": {"options": {"hidden": 64, "dropout": 0.3}},
    "128 principal components": {"options": {"n_components": 128, "n_latent": 128}},
    "one seed": {"options": {"n_seeds": 1}},
    "no dropout": {"options": {"dropout": 0.0}},
    "no correlation in the loss": {"options": {"correlation": 0.0}},
    "100 candidates, 50 cited": {"n_candidates": 100},
    "entmax gate": {"options": {"gate": "entmax"}},
    "gumbel gate, null slot": {"options": {"gate": "gumbel", "sparsity": 0.01}},
    "gate that sees candidate, query and state": {"options": {"gate_hidden": 32}},
    "sections not centred": {"options": {"center_sections": False}},
}


def main() -> None:
    """Run the ablations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--encoder", default="texture")
    parser.add_argument("--ideas", action="store_true", help="compare changes of the whole stack on several sets")
    parser.add_argument("--sets", nargs="+", default=["mob2k", "her2st"], help="sets of --ideas")
    parser.add_argument("--only", nargs="+", help="ideas whose names begin so")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of --ideas, whose scores are averaged")
    parser.add_argument("--scores", type=Path, help="file in which the scores of --ideas are kept and gone on from")
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    parser.add_argument("--marker", default="ideas", help="marker of the table of --ideas")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    data = Path(args.data)
    if args.ideas:
        compare_ideas(data, args)
        return
    sections = read_folder(data / "histology" / SET)
    use_rep = embed(sections, args.encoder, data / "weights", args.cache and args.cache / SET)
    lines = []
    for donor, held, reference, genes in folds(sections, use_rep):
        for variant, settings in VARIANTS.items():
            rg.tl.fit(reference, progress=False, **settings)
            for name in held:
                table = rg.tl.predict(sections[name], reference, genes=genes, inplace=False)
                for label, values, n in [
                    (variant, np.asarray(table.X), table.obs[_keys.EFFECTIVE_N].mean()),
                    *(smoothed(sections[name], table) if variant == AS_IT_IS else []),
                    *(other_weights(sections[name], reference, table) if variant == ALONE else []),
                ]:
                    scored = table.copy()
                    scored.X = values.astype(np.float32)
                    scores = rg.tl.evaluate(
                        scored, truth=sections[name].tables["table"], genes=list(scored.var_names), metrics=["pearson"]
                    )
                    pearson = scores.loc[scores["metric"] == "pearson", "value"].mean()
                    lines.append({"variant": label, "donor": donor, "pearson": pearson, "effective_n": n})
            print(f"{donor}: {variant}: {lines[-1]['pearson']:.3f}", flush=True)
    summary = summarise(pd.DataFrame(lines), ("variant",))
    rows = [f"| {args.encoder}, {SET} | Pearson | effective n | Pearson by donor |", "|---|---|---|---|"]
    rows += [
        f"| {line.variant} | {line.pearson:.3f} | {line.effective_n:.1f} | {line[-1]} |"
        for line in summary.itertuples(index=False)
    ]
    text = "\n".join(rows)
    print(text)
    if args.write:
        write_between_markers(args.write, "ablations", text)


def compare_ideas(data: Path, args: argparse.Namespace) -> None:
    """Differences to `rag` as it is, paired over sections, with their standard errors."""
    lines = [] if args.scores is None or not args.scores.exists() else pd.read_csv(args.scores).to_dict("records")
    done = {(line["set"], line["idea"], line["seed"], line["donor"]) for line in lines}
    for name in args.sets:
        sections = read_folder(data / "histology" / name)
        cache = args.cache and args.cache / name
        use_rep = embed(sections, args.encoder, data / "weights", cache)
        chosen = [one for one in IDEAS if not args.only or one == AS_IT_IS or one.startswith(tuple(args.only))]
        if any("SHELL" in one for one in chosen):
            add_shell(sections, data / "weights", cache)
            for sdata in sections.values():
                obsm = sdata.tables["table"].obsm
                obsm["X_both"] = np.concatenate([np.asarray(obsm[use_rep]), obsm["X_shell"]], axis=1)
        for rep in (use_rep, "X_shell", "X_both"):
            own = {
                one: IDEAS[one] for one in chosen if IDEAS[one][0] in ("", rep) and (IDEAS[one][0] or rep == use_rep)
            }
            if not own:
                continue
            for donor, held, reference, genes in folds(sections, rep):
                for idea, (_, change) in own.items():
                    for seed in range(args.seeds):
                        if (name, idea, seed, donor) in done:
                            continue
                        with change(reference):
                            rg.tl.fit(reference, progress=False, rng=seed)
                        for section in held:
                            measured = sections[section].tables["table"]
                            shared = [gene for gene in genes if gene in set(measured.var_names)]
                            table = rg.tl.predict(sections[section], reference, genes=shared, inplace=False)
                            scores = rg.tl.evaluate(table, truth=measured, genes=shared, metrics=["pearson"])
                            pearson = scores.loc[scores["metric"] == "pearson", "value"].mean()
                            share = float(table.var[_keys.RETRIEVAL_SHARE].mean())
                            lines.append({"set": name, "idea": idea, "seed": seed, "donor": donor, "section": section,
                                          "pearson": pearson, "share": share})  # fmt: skip
                            print(name, idea, seed, section, f"{pearson:.4f}, share {share:.2f}", flush=True)
                        if args.scores is not None:
                            pd.DataFrame(lines).to_csv(args.scores, index=False)
    by_section = pd.DataFrame(lines).groupby(["set", "idea", "donor", "section"], sort=False).mean().reset_index()
    rows = ["| idea | " + " | ".join(args.sets) + " |", "|---" * (len(args.sets) + 1) + "|"]
    for idea in dict.fromkeys(by_section["idea"]):
        cells = []
        for name in args.sets:
            of_set = by_section[by_section["set"] == name].set_index(["donor", "section"])
            own, base = (of_set.loc[of_set["idea"] == one, "pearson"] for one in (idea, AS_IT_IS))
            if own.empty:
                cells.append("not tried")
                continue
            mean = own.groupby(level="donor").mean().mean()
            difference = own - base
            gain = difference.groupby(level="donor").mean().mean()
            cells.append(f"{mean:.3f}" if idea == AS_IT_IS else f"{mean:.3f} ({gain:+.3f} ± {difference.sem():.3f})")
        rows.append(f"| {idea} | " + " | ".join(cells) + " |")
    text = "\n".join(rows)
    print(text)
    if args.write:
        write_between_markers(args.write, args.marker, text)


def by_modules(kind: str, n_modules: int = 4) -> AbstractContextManager:
    """The share of retrieval chosen for each module of genes instead of once for all."""
    one_share = regression.fit_regression

    def fit(training, targets, splits, evidence, shifts, *, rng):
        parameters = one_share(training, targets, splits, evidence, shifts, rng=rng)
        if not splits:
            return parameters
        from sklearn.cluster import KMeans

        genes = standardised_targets(training, np.arange(len(training)), targets.shape[1], "rag").genes
        variance = dense(training.values[:, genes]).var(axis=0)
        if kind == "variance":
            modules = np.argsort(np.argsort(variance)) * n_modules // len(genes)
        else:
            unit = targets / np.linalg.norm(targets, axis=0)
            modules = KMeans(n_modules, n_init=10, random_state=0).fit_predict(unit.T)
        alpha = float(parameters["regression_alpha"])
        z = regression.regression_features(parameters, training.key).astype(np.float64)
        scale = float(parameters["regression_scale"])
        smooth = [scale * next(regression._held_out(z, targets, inner, held, [alpha])) for inner, held in splits]
        share = parameters["retrieval_share"].copy()
        for module in range(n_modules):
            own = modules == module
            parts = ([part[:, own] for part in parts] for parts in (evidence, smooth, [targets[h] for _, h in splits]))
            share[genes[own]] = regression.share_of_retrieval(*parts)
        parameters["retrieval_share"] = share
        return parameters

    return patch("ragst_sd.retrieval.rag.fit_regression", fit)


def gaussian(key: np.ndarray, rng: int) -> dict:
    """Features of a Gaussian kernel as wide as the median distance of the landmarks."""
    landmarks = rational_quadratic(key, rng)["regression_landmarks"]
    between = squared(landmarks, landmarks)
    width = float(np.median(between))
    values, axes = np.linalg.eigh(np.exp(-between / width))
    leading = np.flatnonzero(values > 1e-6 * values[-1])[-regression._FEATURES :]
    mixing = axes[:, leading] / np.sqrt(values[leading])
    return {"regression_landmarks": landmarks, "regression_mixing": mixing, "regression_width": width}


def share_with_prior(evidence, smooth, truth) -> float:
    """Least squares of both parts, retrieval not scaled, drawn towards the better one as by one donor more than the one."""
    apart = [w - h for w, h in zip(evidence, smooth, strict=True)]
    along = sum((one * (y - h)).mean() for one, y, h in zip(apart, truth, smooth, strict=True))
    best = np.clip(along / sum((one**2).mean() for one in apart), 0, 1)
    return max(0.05, (best + (best > 0.5)) / 2)


def whitened(power: float) -> AbstractContextManager:
    """Principal components divided by a power of their standard deviation within sections."""

    def fit(embedding, n_components):
        mean, axes = fit_pca(embedding, n_components)
        spread = ((embedding - mean) @ axes).std(axis=0)
        return mean, axes * (spread / spread.max()) ** -power

    return patch("ragst_sd.tl._fit.fit_pca", fit)


def some_rows(reference, share: float) -> AbstractContextManager:
    """Queries of an episode retrieve from a random part of the rows, drawn anew for each batch."""
    return patch("ragst_sd.retrieval.episodes._BANK", int(share * reference.n_obs))


rational_quadratic = regression._rational_quadratic
# Embedding (the encoder of the command if empty), and what is changed while a reference is fitted.
IDEAS = {
    AS_IT_IS: ("", lambda reference: nullcontext()),
    "share of retrieval for 4 modules, by variance": ("", lambda reference: by_modules("variance")),
    "share of retrieval for 4 modules, by k-means of expression": ("", lambda reference: by_modules("kmeans")),
    "random half of the rows in each training step": ("", lambda reference: some_rows(reference, 0.5)),
    "random fifth of the rows in each training step": ("", lambda reference: some_rows(reference, 0.2)),
    "components whitened within sections": ("", lambda reference: whitened(1.0)),
    "components half whitened within sections": ("", lambda reference: whitened(0.5)),
    "H with a Gaussian kernel": ("", lambda reference: patch.object(regression, "_rational_quadratic", gaussian)),
    "H with the penalty of the best correlation": (
        "",
        lambda reference: patch.object(regression, "largest_penalty", lambda scores, best: best),
    ),
    "share of retrieval with a prior, retrieval not scaled": (
        "",
        lambda reference: patch.object(regression, "share_of_retrieval", share_with_prior),
    ),
    "SHELL alone": ("X_shell", lambda reference: nullcontext()),
    "SHELL beside the encoder": ("X_both", lambda reference: nullcontext()),
}


def smoothed(sdata, table) -> list[tuple[str, np.ndarray, float]]:
    """The prediction averaged with that of neighbouring spots, which evidence no longer explains."""
    graph = spatial_graph(np.asarray(sdata.tables["table"].obsm["spatial"]))
    own = np.asarray(table.X, dtype=np.float64)
    name = f"{AS_IT_IS}, smoothed over the 6 nearest spots of the section (reported apart)"
    return [(name, (own + graph @ own) / 2, float(table.obs[_keys.EFFECTIVE_N].mean()))]


def other_weights(sdata, reference, table) -> list[tuple[str, np.ndarray, float]]:
    """Other ways to use the same phi: name, prediction of the section, and effective number of rows."""
    opened = open_bank(reference)
    fit, header, bank = opened.fit, opened.header, np.asarray(opened.key)
    query = read_query(sdata, opened, table_key="table", use_rep=header.use_rep)
    phi = phi_of(fit.method, fit.parameters, query.standardized)
    samples = reference.obs[_keys.SAMPLE].astype(str).to_numpy()
    columns = reference.var_names.get_indexer(table.var_names)
    values = dense(reference.X[:, columns])
    for sample in np.unique(samples):
        values[samples == sample] -= values[samples == sample].mean(axis=0)
    k = fit.n_neighbors
    across, within = squared(phi, bank), squared(bank, bank)
    within[samples[:, None] == samples[None, :]] = np.inf

    def average(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nearest = np.argsort(distances, axis=1)[:, :k]
        found = np.take_along_axis(distances, nearest, axis=1)
        found = found - np.minimum(found[:, :1], 0)
        weights = np.exp(-2 * found / found[:, -1:])
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkg->ng", weights, values[nearest]), effective_n(weights)

    fixed, n_fixed = average(across)
    hubness = np.sort(within, axis=1)[:, :k].mean(axis=1)
    corrected, n_corrected = average(across - hubness[None, :])
    of_rows, _ = average(within)
    spread = values.std(axis=0) + 1e-9
    second, n_second = average(squared(fixed / spread, of_rows / spread))
    return [
        ("retrieval alone, fixed weights in the learned phi", fixed, n_fixed.mean()),
        ("the same, hubs pushed away", corrected, n_corrected.mean()),
        ("the same, second search among predicted expression", second, n_second.mean()),
    ]


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between rows."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)


if __name__ == "__main__":
    main()
