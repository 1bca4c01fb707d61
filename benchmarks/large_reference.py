"""Time to open a large made reference, and time and memory to predict from it, lazily and loaded.

python benchmarks/large_reference.py --rows 50000 1000000 --modes lazy --folder stores --write docs/benchmarks.md

A small synthetic reference is built and fitted; its rows are repeated with noise in embedding and expression until there are
as many as asked for. Making a million takes minutes: with `--folder` the stores stay and are used again. Opening and predicting run in a process of their own, after all imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from lines import row
from real_sections import write_between_markers

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._bank import open_bank, standardized
from ragst_sd._reference import reference_hash
from ragst_sd.reference.hashing import fit_hash
from ragst_sd.retrieval.methods import phi_of

N_DONORS, N_GENES, IMAGE_PX = 4, 300, 1000
METHOD, N_NEIGHBORS = "knn", 50
BLOCK = 100_000
PRINTED = ("opened", "busy", "to_open", "predicted", "peak", "spots")


def small(folder: Path):
    """A fitted reference of three donors; the section of the fourth is written as the query."""
    if (folder / "query.zarr").exists():
        return rg.io.read_reference(folder / "small.zarr.zip")
    sections = rg.datasets.synthetic(n_donors=N_DONORS, n_genes=N_GENES, image_px=IMAGE_PX)
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, model="texture", context=(1,), progress=False)
    query = sections.pop(f"donor{N_DONORS}")
    reference = rg.tl.build_reference(sections, use_rep="X_texture", thumbnails=False)
    rg.tl.fit(reference, method=METHOD, n_neighbors=N_NEIGHBORS)
    rg.io.write_reference(reference, folder / "small.zarr.zip")
    query.write(folder / "query.zarr")
    return reference


def enlarge(reference, n_rows: int):
    """As many rows, those of `reference` with noise, with a key and hashes that fit them."""
    import anndata as ad

    rng = np.random.default_rng(0)
    source = rng.integers(0, reference.n_obs, n_rows)
    spread = reference.obsm["X_texture"].std(axis=0)
    embedding = np.empty((n_rows, len(spread)), dtype=np.float32)
    for start in range(0, n_rows, BLOCK):
        part = source[start : start + BLOCK]
        noise = rng.normal(size=(len(part), len(spread))).astype(np.float32)
        embedding[start : start + BLOCK] = reference.obsm["X_texture"][part] + 0.3 * spread * noise
    values = sp.csr_matrix(reference.X)[source]
    values.data *= rng.uniform(0.9, 1.1, values.nnz).astype(np.float32)
    obs = reference.obs.iloc[source].copy()
    obs.index = pd.Index([f"{sample}:{i}" for i, sample in enumerate(obs[_keys.SAMPLE])])
    large = ad.AnnData(
        values, obs=obs, var=reference.var.copy(), obsm={"X_texture": embedding}, varm=dict(reference.varm)
    )
    header = dict(reference.uns[_keys.ATTRS])
    fit = dict(header[_keys.FIT])
    large.uns[_keys.ATTRS] = header
    large.obsm[_keys.RETRIEVAL_KEY] = np.concatenate(
        [
            phi_of(METHOD, fit["parameters"], standardized(open_bank(part, fitted=False, whole=False)).embedding)
            for part in (large[start : start + BLOCK] for start in range(0, n_rows, BLOCK))
        ]
    )
    fit["reference_hash"] = header["content_hash"] = reference_hash(large)
    header[_keys.FIT] = fit
    fit["fit_hash"] = fit_hash(
        large.uns["ragst"], fit, *(large.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )
    return large


def child(folder: Path, store: Path, *, lazy: bool) -> None:
    """Open and predict, and print seconds and megabytes above those after the imports."""
    import spatialdata as sd

    def peak() -> float:
        # `getrusage` would start from the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

    query = sd.read_zarr(folder / "query.zarr")
    # Lazily imported parts and the first use of torch are no cost of the size of the reference.
    tiny = rg.io.read_reference(folder / "small.zarr.zip", lazy=lazy)
    rg.tl.predict(query, tiny, inplace=False)
    before, start, busy = peak(), time.perf_counter(), time.process_time()
    reference = rg.io.read_reference(store, lazy=lazy)
    opened, busy, after_opening = time.perf_counter() - start, time.process_time() - busy, peak()
    start = time.perf_counter()
    table = rg.tl.predict(query, reference, inplace=False)
    predicted = time.perf_counter() - start
    print(f"{opened:.2f} {busy:.2f} {after_opening - before:.0f} {predicted:.1f} {peak() - before:.0f} {table.n_obs}")


def measured(folder: Path, n_rows: int, mode: str) -> dict[str, float]:
    """What a process of its own that opens the reference and predicts from it prints; the store is made if it is not there."""
    store = folder / f"rows{n_rows}.zarr.zip"
    if not store.exists():
        rg.io.write_reference(enlarge(small(folder), n_rows), store)
    command = [sys.executable, __file__, "--child", mode, "--folder", str(folder), "--store", str(store)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-len(PRINTED) :]
    return {"size": store.stat().st_size / 1e6, **dict(zip(PRINTED, map(float, out), strict=True))}


def results(*, rows: int = 1_000_000, folder: Path | None = None) -> list[dict]:
    """Rows name, value, target, unit, passed."""
    with tempfile.TemporaryDirectory() as name:
        at = folder or Path(name)
        small(at)
        found = measured(at, rows, "lazy")
    return [
        row(f"opening a reference of {rows:,} rows lazily", found["opened"], 2, "s"),
        row(f"predicting {found['spots']:.0f} spots from it", found["predicted"], None, "s"),
        row("memory of opening and predicting", found["peak"], None, "MB"),
    ]


def main() -> None:
    """Make the references that are not there, run them as asked for, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--modes", nargs="+", choices=("lazy", "loaded"), default=["lazy", "loaded"])
    parser.add_argument("--folder", type=Path, help="where the stores are and stay; a temporary folder if left out")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    parser.add_argument("--child", choices=("lazy", "loaded"), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.folder, args.store, lazy=args.child == "lazy")
        return
    lines = [
        "| rows | on disk, MB | reference | seconds to open | of processor | MB to open | seconds to predict | spots | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        small(folder)
        for n_rows in args.rows:
            for mode in args.modes:
                found = measured(folder, n_rows, mode)
                lines.append(
                    f"| {n_rows:,} | {found['size']:,.0f} | {mode} | {found['opened']:.2f} | {found['busy']:.2f} | "
                    f"{found['to_open']:.0f} | {found['predicted']:.1f} | {found['spots']:.0f} | {found['peak']:.0f} |"
                )
                print(lines[-1], flush=True)
    if args.write:
        write_between_markers(args.write, "large_reference", "\n".join(lines))


if __name__ == "__main__":
    main()
