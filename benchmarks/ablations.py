"""What each part of `rag` is worth, and ideas that were tried beside it, on the set on which designs are chosen.

python benchmarks/ablations.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from real_sections import encoders, folds, summarise, write_between_markers

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._bank import open_bank
from ragst_sd._demo import read_folder
from ragst_sd._query import read_query
from ragst_sd.retrieval.evidence import effective_n
from ragst_sd.retrieval.methods import phi_of
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._section_metrics import spatial_graph

SET = "mob2k"
VARIANTS: dict[str, dict] = {
    "rag, as it is": {},
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
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    data = Path(args.data)
    sections = read_folder(data / "histology" / SET)
    use_rep = f"X_{args.encoder}"
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, key_added=use_rep, progress=False, **encoders(data / "weights")[args.encoder])
    lines = []
    for donor, held, reference, genes in folds(sections, use_rep):
        for variant, settings in VARIANTS.items():
            rg.tl.fit(reference, progress=False, **settings)
            for name in held:
                table = rg.tl.predict(sections[name], reference, genes=genes, inplace=False)
                for label, values, n in [
                    (variant, np.asarray(table.X), table.obs[_keys.EFFECTIVE_N].mean()),
                    *(ideas(sections[name], reference, table) if variant == "rag, as it is" else []),
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


def ideas(sdata, reference, table) -> list[tuple[str, np.ndarray, float]]:
    """Other ways to use the same fit: prediction of the section, and effective number of rows."""
    opened = open_bank(reference)
    fit, header, bank = opened.fit, opened.header, np.asarray(opened.key)
    query = read_query(sdata, header, table_key="table", use_rep=header.use_rep)
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
    graph = spatial_graph(np.asarray(sdata.tables["table"].obsm["spatial"]))
    own = np.asarray(table.X, dtype=np.float64)
    smoothed = (own + graph @ own) / 2
    n_own = float(table.obs[_keys.EFFECTIVE_N].mean())
    return [
        ("fixed weights in the learned phi", fixed, n_fixed.mean()),
        ("the same, hubs pushed away", corrected, n_corrected.mean()),
        ("second search among predicted expression", second, n_second.mean()),
        ("rag, smoothed over the 6 nearest spots of the section (reported apart)", smoothed, n_own),
    ]


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between rows."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0)


if __name__ == "__main__":
    main()
