"""Sections of which 5, 10 and 30 % of the spots are measured, and the others filled: pictures against distance.

Of the last section of every donor the measured spots are drawn at random, and all others are predicted and compared with what was
measured there. The genes are the 250 most variable ones of the other donors. Two baselines know nothing of the picture:
the mean of the measured spots, and an average over the measured spots nearest in microns (weights 1 / distance, their
number chosen on the measured spots). The others search or regress on embeddings, with the section's own measured spots
alone or with other donors beside them.

    python benchmarks/fill_gaps.py --data "$RAGST_SD_TEST_DATA" --sets mob --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from real_sections import N_GENES, embed, markdown, write_between_markers

import ragst_sd as rg
from ragst_sd._demo import read_folder, variable_genes

SETS = ("mob", "mob2k", "her2st")
SHARES = (0.05, 0.1, 0.3)
NEAREST = (3, 5, 10, 20)
USE_REP, WITH_PLACES = "X_texture", "X_texture_xy"


def in_space(places: np.ndarray, values: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(asked, genes) average over the nearest measured spots, as many as leave the least error there; effective n."""

    def weights(to: np.ndarray, k: int, *, own: bool) -> np.ndarray:
        distance = np.linalg.norm(to[:, None] - places[None], axis=2)
        if own:
            np.fill_diagonal(distance, np.inf)
        near = np.argsort(distance, axis=1)[:, :k]
        out = np.zeros(distance.shape)
        np.put_along_axis(out, near, 1 / np.maximum(np.take_along_axis(distance, near, axis=1), 1e-9), axis=1)
        return out / out.sum(axis=1, keepdims=True)

    possible = [k for k in NEAREST if k < len(places)]
    errors = [((weights(places, k, own=True) @ values - values) ** 2).mean() for k in possible]
    chosen = weights(asked, possible[int(np.argmin(errors))], own=False)
    return chosen @ values, 1 / (chosen**2).sum(axis=1)


def with_places(table) -> None:
    """An embedding that also says where a spot lies: places and pictures weigh alike, the pictures by their leading components."""
    picture = table.obsm[USE_REP] - table.obsm[USE_REP].mean(axis=0)
    picture = picture / np.maximum(picture.std(axis=0), 1e-9)
    left, sizes, _ = np.linalg.svd(picture, full_matrices=False)
    components = left[:, :10] * sizes[:10]
    places = table.obsm["spatial"] - table.obsm["spatial"].mean(axis=0)
    scale = np.sqrt((components**2).sum(axis=1).mean() / (places**2).sum(axis=1).mean())
    table.obsm[WITH_PLACES] = np.concatenate([components, scale * places], axis=1)


def partly_measured(sdata, known: np.ndarray):
    """The section with counts in some spots only."""
    table = sdata.tables["table"].copy()
    table.X = sp.diags(known.astype(np.float32)) @ table.X
    other = type(sdata)(images=dict(sdata.images), shapes=dict(sdata.shapes), attrs=sdata.attrs)
    other.tables["table"] = table
    return other


def fill(sections: dict, name: str, shares: list[float], rng: int) -> pd.DataFrame:
    """One line per share and method for one section."""
    whole = sections[name]
    measured = whole.tables["table"]
    donor = measured.obs["donor"].iloc[0]
    others = {key: one for key, one in sections.items() if one.tables["table"].obs["donor"].iloc[0] != donor}
    every = rg.tl.build_reference(others, use_rep=USE_REP, thumbnails=False)
    genes = [gene for gene in variable_genes(every, N_GENES) if gene in measured.var_names]
    del every
    places = rg.tl.build_reference(whole, use_rep=USE_REP, thumbnails=False).obs[["x_um", "y_um"]]
    places = (
        places.set_index(places.index.str.partition(":").get_level_values(2)).loc[measured.obs_names].to_numpy(float)
    )
    lines = []

    def built(members: dict, use_rep: str = USE_REP):
        return rg.tl.build_reference(members, use_rep=use_rep, genes=genes, thumbnails=False)

    def score(method: str, table, effective_n: np.ndarray | None = None) -> None:
        table = table[~known].copy()
        if effective_n is not None:
            table.obs["effective_n"] = effective_n[~known]
        scores = rg.tl.evaluate(table, truth=measured[~known].copy(), genes=genes, metrics=["pearson", "rmse"])
        means = scores.groupby("metric")["value"].mean()
        line = {"measured": f"{share:.0%}", "method": method, **means[["pearson", "rmse"]]}
        lines.append({**line, "effective_n": table.obs["effective_n"].mean()})
        print(f"{name}: {lines[-1]}", file=sys.stderr, flush=True)

    rest = built(others)
    rg.tl.fit(rest, progress=False)
    of_others = rg.tl.predict(whole, rest, inplace=False)
    for share in shares:
        known = np.zeros(measured.n_obs, dtype=bool)
        n_known = max(5, round(share * measured.n_obs))
        known[np.random.default_rng(rng).choice(measured.n_obs, n_known, replace=False)] = True
        sdata = partly_measured(whole, known)
        score("rag, other donors alone", of_others)
        with_places(sdata.tables["table"])
        own, placed = built({name: sdata}), built({name: sdata}, WITH_PLACES)
        both = built({name: sdata} | others)
        few = min(10, own.n_obs)
        asked = [("knn", own, "own spots", few), ("ridge", own, "own spots", None), ("rag", own, "own spots", None)]
        asked += [("knn", placed, "own spots, with places", few)]
        asked += [(method, both, "own spots and other donors", None) for method in ("knn", "ridge", "rag")]
        for method, bank, what, n_neighbors in asked:
            rg.tl.fit(bank, method=method, n_neighbors=n_neighbors, progress=False)
            score(f"{method}, {what}", rg.tl.predict(sdata, bank, exclude=(), inplace=False))
        plain = rg.tl.predict(sdata, own, exclude=(), inplace=False)
        rows = own.obs_names.get_indexer([f"{name}:{spot}" for spot in measured.obs_names[known]])
        values = own.X[rows].toarray()
        filled, effective_n = in_space(places[known], values, places)
        plain.X = filled.astype(np.float32)
        score("nearest in microns", plain, effective_n)
        plain.X = np.tile(values.mean(axis=0, dtype=np.float32), (plain.n_obs, 1))
        score("mean", plain, np.full(plain.n_obs, np.nan))
    return pd.DataFrame(lines).assign(section=name, donor=donor)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--cache", type=Path, help="folder for embeddings, from an earlier run or for the next")
    parser.add_argument("--rng", type=int, default=0)
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    data, parts = Path(args.data), []
    for name in args.sets:
        sections = read_folder(data / "histology" / name)
        embed(sections, "texture", data / "weights", args.cache and args.cache / name)
        donors = {sdata.tables["table"].obs["donor"].iloc[0]: section for section, sdata in sections.items()}
        lines = [fill(sections, section, list(args.shares), args.rng) for section in donors.values()]
        keys = ["measured", "method"]
        by_section = pd.concat(lines).groupby([*keys, "donor"], sort=False)[["pearson", "rmse", "effective_n"]].mean()
        of_set = by_section.groupby(level=keys, sort=False).mean().reset_index()
        of_set.insert(0, "set", name)
        parts.append(of_set)
        print(markdown(of_set), flush=True)
    if args.write:
        write_between_markers(args.write, "fill_gaps", markdown(pd.concat(parts, ignore_index=True)))


if __name__ == "__main__":
    main()
