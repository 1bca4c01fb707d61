"""Transfer of published cell-type fractions from one half of a section to the other.

The mouse colon section is cut in two, along x and along y, and each half predicts the other; spots closer to the cut than
half a tile are left out, so that no tile lies on both sides. The section has one donor: `exclude=()`. `rag+types` is rag with
cell types as a condition of the search; its gain on genes is what that is worth.

    python benchmarks/cell_types.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from real_sections import CONTEXT, encoders, narrower, write_between_markers

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._demo import read_folder, variable_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS = {"knn": ("knn", {}), "rag": ("rag", {}), "rag+types": ("rag", {"cell_types": True})}
N_GENES = 250
TILE_UM = 112.0
COMMON = 0.02
FIELDS = {"112": 1, "112, 280, 672": len(CONTEXT)}


def halves(xy_um: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows to predict, for both cuts and directions."""
    out = {}
    for axis, (low, high) in enumerate([("left", "right"), ("top", "bottom")]):
        place = xy_um[:, axis] - np.median(xy_um[:, axis])
        first, second = place < -TILE_UM / 2, place > TILE_UM / 2
        out[f"{low} to {high}"], out[f"{high} to {low}"] = (first, second), (second, first)
    return out


def published(sdata: object, reference: object) -> pd.DataFrame:
    """Published fractions, by reference row and cell type."""
    table = sdata.tables["table"]
    names = [str(name) for name in table.uns["meta"]["cell_type_names"]]
    sample = str(reference.obs[_keys.SAMPLE].iloc[0])
    index = [f"{sample}:{name}" for name in table.obs_names]
    return pd.DataFrame(np.asarray(table.obsm["cell_type_prop"], dtype=float), index=index, columns=names)


def correlations(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson of each column; NaN where one side does not vary."""
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def transfer(
    sdata: object, use_rep: str, methods: Sequence[str] = tuple(METHODS), cuts: Sequence[str] = (), n_seeds: int = 3
) -> pd.DataFrame:
    """One line per cut, method and cell type that makes up more than 2 % of the section, with the accuracy of genes beside it."""
    reference = rg.tl.build_reference(sdata, use_rep=use_rep, thumbnails=False)
    truth = published(sdata, reference)
    rg.tl.add_cell_types(reference, fractions=truth, source={"name": "published with the section"})
    xy = reference.obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float)
    common = truth.columns[truth.mean() > COMMON]
    place = truth.columns.get_indexer(common)
    lines = []
    for cut, (learned, asked) in halves(xy).items():
        if cuts and cut not in cuts:
            continue
        half = reference[learned].copy()
        ids = reference.obs_names[asked]
        genes = sorted(variable_genes(half, N_GENES))
        measured = reference[ids, genes].X.toarray()
        for name_of_method in methods:
            method, options = METHODS[name_of_method]
            seeds = {"n_seeds": n_seeds} if method == "rag" else {}
            rg.tl.fit(half, method=method, options={**options, **seeds}, progress=False)
            table = rg.tl.predict(sdata, half, genes=genes, exclude=(), inplace=False)
            at = pd.Index([f"{half.obs[_keys.SAMPLE].iloc[0]}:{name}" for name in table.obs_names]).get_indexer(ids)
            found = np.asarray(table.obsm[_keys.CELL_TYPE_FRACTION], dtype=float)[at][:, place]
            of_genes = float(np.nanmean(correlations(np.asarray(table.X, dtype=float)[at], measured)))
            for name, pearson in zip(common, correlations(found, truth.loc[ids, common].to_numpy()), strict=True):
                n = float(table.obs[_keys.EFFECTIVE_N].to_numpy()[at].mean())
                line = {"cut": cut, "method": name_of_method, "type": name, "pearson": pearson}
                lines.append({**line, "genes": of_genes, "effective_n": n})
            print(cut, name_of_method, round(of_genes, 4), flush=True)
    return pd.DataFrame(lines)


def markdown(scores: pd.DataFrame) -> str:
    """A line for each field of view and method, a column for each cut; then the cell types of the first line."""
    keys = ["fields of view (µm)", "method"]
    by_cut = scores.pivot_table(index=keys, columns="cut", values="pearson", sort=False)
    whole = scores.groupby([*keys, "cut"], sort=False)[["pearson", "genes", "effective_n"]].mean()
    whole = whole.groupby(keys, sort=False).mean()
    rows = [
        "| "
        + " | ".join([*keys, "types, mean Pearson", *by_cut.columns, f"{N_GENES} genes, mean Pearson", "effective n"])
        + " |",
        "|---" * (len(by_cut.columns) + 5) + "|",
    ]
    for key, line in whole.iterrows():
        cells = [f"{value:.3f}" for value in [line["pearson"], *by_cut.loc[key], line["genes"]]]
        rows.append("| " + " | ".join([*key, *cells, f"{line['effective_n']:.1f}"]) + " |")
    fields, method = scores[keys].iloc[0]
    first = scores[(scores[keys[0]] == fields) & (scores["method"] == method)]
    types = first.groupby("type")["pearson"].mean().sort_values(ascending=False)
    each = ", ".join(f"{name} {value:.2f}" for name, value in types.items())
    rows += ["", f"`{method}` with {fields} µm, by cell type: {each}."]
    return "\n".join(rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--encoder", default="texture")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--cuts", nargs="+", default=(), help='such as "left to right"; all four if left out')
    parser.add_argument("--seeds", type=int, default=3, help="seeds of rag")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    data = Path(args.data)
    sdata = read_folder(data / "histology" / "colon")["d0"]
    known = encoders(data / "weights")[args.encoder]
    parts = []
    use_rep = f"X_{args.encoder}"
    widest = max(FIELDS[one] for one in args.fields)
    rg.pp.embed_tiles(sdata, key_added=use_rep, progress=False, **{**known, "context": CONTEXT[:widest]})
    for fields, n_fields in ((one, FIELDS[one]) for one in args.fields):
        rep = use_rep if n_fields == widest else narrower({"d0": sdata}, use_rep, n_fields)
        parts.append(
            transfer(sdata, rep, args.methods, args.cuts, args.seeds).assign(**{"fields of view (µm)": fields})
        )
        print(markdown(parts[-1]), flush=True)
    table = markdown(pd.concat(parts, ignore_index=True))
    print("\n" + table)
    if args.write:
        write_between_markers(args.write, "cell_types", table)


if __name__ == "__main__":
    main()
