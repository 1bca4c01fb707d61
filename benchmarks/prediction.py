"""Weighted sums of cited rows beside numpy and torch, and a whole prediction into a store: time, memory, growth with spots.

python benchmarks/prediction.py --write docs/benchmarks.md

The bank is sparse, with as many genes per row as the sections of the mouse olfactory bulb have (18 % of 18,000 genes if these are not
there). numpy is `(X[rows] * w[..., None]).sum(1)`, torch a gather and a batched product, both on a dense bank, at a size where they fit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import search
import torch
from lines import as_table, row
from real_sections import write_between_markers
from search import CLOCKS, best_of, peak_megabytes

from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import Part
from ragst_sd.tl._predict_store import _fill, _new_store

K, GENES = 50, 18_000
DENSITY = 0.18


def density() -> float:
    """Mean share of genes that a spot of the mob sections has."""
    folder = os.environ.get("RAGST_SD_TEST_DATA")
    paths = sorted(Path(folder).glob("histology/mob/*.h5ad")) if folder else []
    if not paths:
        return DENSITY
    import anndata as ad

    tables = [ad.read_h5ad(path) for path in paths]
    return float(np.mean([sp.csr_matrix(t.X).nnz / (t.n_obs * t.n_vars) for t in tables]))


def made(n: int, m: int, genes: int, share: float) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    # Few genes are seen in most spots and many in few, as in tissue.
    popular = rng.beta(0.35, 0.35 * (1 - share) / share, genes)
    rows = [np.flatnonzero(rng.random(genes) < popular).astype(np.int32) for _ in range(m)]
    indptr = np.concatenate([[0], np.cumsum([len(one) for one in rows])])
    values = rng.gamma(2, 0.5, indptr[-1]).astype(np.float32)
    bank = sp.csr_matrix((values, np.concatenate(rows), indptr), shape=(m, genes))
    return bank, rng.integers(0, m, (n, K)), rng.dirichlet(np.ones(K), n)


def kernels(n: int, m: int, genes: int, share: float, repeats: int) -> list[dict]:
    bank, rows, weights = made(n, m, genes, share)
    dense, held = bank.toarray(), weights.astype(np.float32)
    weighted_average(rows[:2], weights[:2], bank)
    ours, out = best_of(repeats, lambda: weighted_average(rows, weights, bank))
    by_numpy, expected = best_of(
        repeats,
        lambda: np.concatenate([(dense[rows[i : i + 16]] * held[i : i + 16, :, None]).sum(1) for i in range(0, n, 16)]),
    )
    np.testing.assert_allclose(out, expected, atol=1e-4)
    as_tensor, index, w = torch.from_numpy(dense), torch.from_numpy(rows), torch.from_numpy(held)
    by_torch, _ = best_of(
        repeats,
        lambda: torch.cat(
            [torch.bmm(w[i : i + 16, None, :], as_tensor[index[i : i + 16]])[:, 0] for i in range(0, n, 16)]
        ),
    )
    size = f"{n:,} spots x {K} x {genes:,} genes"
    return [
        row(
            f"numpy over ours, weighted sums, {size}, density {bank.nnz / np.prod(bank.shape):.2f}",
            by_numpy / ours,
            10,
            "x",
            at_least=True,
        ),
        row("torch gather and batched product over ours", by_torch / ours, 2, "x", at_least=True),
        row("our weighted sums, 1,000 spots", 1e3 * ours / n, None, "s"),
    ]


def into_store(sizes: list[int], m: int, genes: int, share: float, folder: Path | None) -> list[dict]:
    """Evidence and disagreement of a fitted-like bank, written to zarr."""
    bank_values, rows, weights = made(max(sizes), m, genes, share)
    bank = Bank(
        embedding=None, values=bank_values, panels=np.zeros(m, dtype=int), measured=np.ones((1, genes), dtype=bool),
        folds=None, sections=np.arange(m) % 4, key=np.zeros((m, 1)),
    )  # fmt: skip
    shifts = np.random.default_rng(0).normal(0, 0.1, (4, genes))
    parameters = {"reference_mean": np.zeros(genes), "section_shifts": shifts, "level": np.zeros((1, genes))}
    part = Part(METHODS["knn"], parameters, bank, np.arange(genes))
    seconds, peaks = [], []
    for n in [16, *sizes]:
        selection = Selection(
            key=np.zeros((n, 1)), rows=rows[:n], weights=weights[:n], distances=np.zeros((n, K)), nearest=rows[:n],
            pattern=np.zeros(n, dtype=int), mean_distance=np.zeros(n),
        )  # fmt: skip

        def write(selection=selection, n=n) -> None:
            with (
                tempfile.TemporaryDirectory(dir=folder) as place,
                _new_store(Path(place) / "p.zarr", n, genes, intervals=False) as store,
            ):
                _fill(store, part, selection, np.ones(n, dtype=bool))

        def timed(write=write) -> None:
            seconds.append(best_of(1, write)[0])

        peaks.append(peak_megabytes(timed))
    seconds, peaks = seconds[1:], peaks[1:]
    each = [1e3 * s / n for s, n in zip(seconds, sizes, strict=True)]
    out = [
        row(f"predicting {n:,} spots x {genes:,} genes into a store (prediction, evidence, disagreement)", s, None, "s")
        for s, n in zip(seconds, sizes, strict=True)
    ]
    return [
        *out,
        row(f"cost of a spot at {sizes[-1]:,} spots over that at {sizes[0]:,}", each[-1] / each[0], 1.25, "x"),
        row("100,000 spots at the cost of the largest, extrapolated", each[-1] * 100 / 60, None, "min"),
        row("peak memory over the bank", max(peaks), 2000, "MB"),
    ]


def results(
    *, spots: int = 512, rows: int = 4000, genes: int = GENES, sizes: tuple[int, ...] = (1024, 2048, 4096), repeats: int = 5,
    folder: Path | None = None,
) -> list[dict]:  # fmt: skip
    """Rows name, value, target, unit, passed."""
    share = density()
    sums = kernels(spots, rows, genes, share, repeats) if spots else []
    return sums + (into_store(list(sizes), rows, genes, share, folder) if sizes else [])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--spots", type=int, default=512, help="of the comparison with numpy and torch; 0 leaves it out"
    )
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--genes", type=int, default=GENES)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=(1024, 2048, 4096),
        help="spots predicted into a store; none leaves it out",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--folder", type=Path, help="where the store lies; a temporary folder if left out")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    search.clock = args.clock
    found = results(spots=args.spots, rows=args.rows, genes=args.genes, sizes=tuple(args.sizes), folder=args.folder)
    print(as_table(found))
    if args.write:
        write_between_markers(args.write, "prediction" if args.spots else "prediction_store", as_table(found))


if __name__ == "__main__":
    main()
