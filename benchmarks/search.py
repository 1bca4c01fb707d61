"""Exact search beside a bare blocked product and top-k, beside faiss, and beside an approximate graph on real embeddings.

python benchmarks/search.py --queries 2000 --rows 1000000 --write docs/benchmarks.md

Seconds are the best of `--repeats`. The bare product is measured with three sizes of blocks, and the fastest counts. The real
embeddings are texture of 64 px windows of the test sections, every 16 px (`RAGST_SD_TEST_DATA`), brought to 64 principal components.
faiss is measured where it is installed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from lines import as_table, row
from real_sections import write_between_markers

from ragst_sd.retrieval.search import Eligibility, search

K, DIM = 50, 256
# Time of the clock, or of the processor, which other work on the machine does not disturb.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = "wall"
WINDOW, STRIDE = 64, 16


def best_of(repeats: int, function):
    """Seconds of the fastest call, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = CLOCKS[clock]()
        out = function()
        seconds.append(CLOCKS[clock]() - start)
    return min(seconds), out


def peak_megabytes(function) -> float:
    """How far the memory of the process rises above where it stands (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def bare(queries: np.ndarray, bank: np.ndarray, n_block: int, m_block: int) -> torch.Tensor:
    """Blocked products and top-k in torch, nothing else."""
    all_queries, rows = torch.from_numpy(queries), torch.from_numpy(bank)
    norm = (rows * rows).sum(dim=1)
    out = []
    for own in all_queries.split(n_block):
        best, found = torch.full((len(own), 0), torch.inf), torch.zeros((len(own), 0), dtype=torch.int64)
        for start in range(0, len(rows), m_block):
            part = slice(start, start + m_block)
            scores = torch.addmm(norm[None, part], own, rows[part].T, alpha=-2)
            value, index = scores.topk(min(K, scores.shape[1]), dim=1, largest=False)
            best, found = torch.cat([best, value], dim=1), torch.cat([found, index + start], dim=1)
            best, index = best.topk(K, dim=1, largest=False)
            found = found.gather(1, index)
        out.append(found)
    return torch.cat(out)


def exact(n: int, m: int, repeats: int) -> list[dict]:
    rng = np.random.default_rng(0)
    bank, queries = rng.standard_normal((m, DIM), dtype=np.float32), rng.standard_normal((n, DIM), dtype=np.float32)
    search(queries[:8], bank[:5000], K)
    of_bare = {
        block: best_of(repeats, lambda b=block: bare(queries, bank, *b))[0]
        for block in ((512, 4096), (1024, 16_384), (2048, 65_536))
    }
    fastest = min(of_bare.values())
    seconds, found = best_of(repeats, lambda: search(queries, bank, K))
    size = f"{n:,} queries, {m:,} x {DIM} float32"
    lines = [
        row(f"exact search over bare product and top-k, {size}", seconds / fastest, 1.3, "x"),
        row(f"exact search, {size}", seconds, None, "s"),
        row(f"bare product and top-k, {size}", fastest, None, "s"),
        row(
            f"peak memory of exact search over bank and queries, {size}",
            peak_megabytes(lambda: search(queries, bank, K)),
            500,
            "MB",
        ),
    ]
    donors = Eligibility(rng.integers(0, 8, (n, 1)), rng.integers(0, 8, (m, 1)), np.ones(m, dtype=bool))
    masked, _ = best_of(1, lambda: search(queries, bank, K, eligibility=donors))
    lines.append(row("the same with the query's own donor left out (8 donors)", masked / fastest, None, "x"))
    half, _ = best_of(1, lambda stored=bank.astype(np.float16): search(queries, stored, K))
    lines.append(row("the same from a float16 bank", half / fastest, None, "x"))
    try:
        import faiss
    except ImportError:
        return lines
    index = faiss.IndexFlatL2(DIM)
    index.add(bank)
    theirs, (_, rows) = best_of(repeats, lambda: index.search(queries, K))
    lines.append(row(f"faiss {faiss.__version__} IndexFlatL2, {size}", theirs, None, "s"))
    same = np.mean([np.isin(a, b).mean() for a, b in zip(rows, found.rows, strict=True)])
    lines.append(row("rows that faiss and exact search share", same, None, ""))
    return lines


def real_embeddings(folder: Path, most: int) -> np.ndarray:
    """Texture of every window of the sections, standardised by section, as principal components (float32)."""
    from PIL import Image

    from ragst_sd.image.texture import texture_features
    from ragst_sd.retrieval.projection import fit_pca, standardize

    parts: list[np.ndarray] = []
    for path in sorted(folder.glob("histology/*/*.jpg")):
        if sum(map(len, parts)) >= most:
            break
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (WINDOW, WINDOW), axis=(0, 1))[::STRIDE, ::STRIDE]
        windows = windows.reshape(-1, 3, WINDOW, WINDOW)
        # Glass says nothing, and its windows are all alike.
        tissue = np.flatnonzero(windows[:, 1].reshape(len(windows), -1)[:, ::97].mean(axis=1) < 215)
        own = []
        for start in range(0, min(len(tissue), most), 256):
            batch = np.ascontiguousarray(windows[tissue[start : start + 256]])
            own.append(texture_features(torch.from_numpy(batch)).numpy())
        features = np.concatenate(own)
        parts.append(standardize(features, features.mean(axis=0), features.std(axis=0)))
    together = np.concatenate(parts)[:most]
    sample = together[np.random.default_rng(0).choice(len(together), min(len(together), 20_000), replace=False)]
    mean, axes = fit_pca(sample, 64)
    return ((together - mean) @ axes).astype(np.float32)


def approximate(embeddings: np.ndarray, n: int) -> list[dict]:
    """What a graph costs and finds. Its time is that of building and a part for every query, as is that of exact search."""
    rng = np.random.default_rng(0)
    held = rng.permutation(len(embeddings))
    queries, bank = embeddings[held[:n]], embeddings[held[n:]]
    # Compiling is a cost of its own, once in a process; what is compiled depends on the size.
    first, _ = best_of(1, lambda: search(queries[: n // 10], bank, K, backend="pynndescent"))
    search(queries[:64], bank, K, backend="exact")
    of_exact, truth = best_of(1, lambda: search(queries, bank, K, backend="exact"))
    few, _ = best_of(1, lambda: search(queries[: n // 10], bank, K, backend="pynndescent"))
    many, found = best_of(1, lambda: search(queries, bank, K, backend="pynndescent"))
    own = np.mean([np.isin(a, b).mean() for a, b in zip(truth.rows, found.rows, strict=True)])
    each = (many - few) / (n - n // 10)
    build = many - each * n
    gain = of_exact / n - each
    size = f"{len(bank):,} real embeddings"
    return [
        row(f"recall@{K} of the graph, {size}", own, 0.95, "", at_least=True),
        row("the same as estimated on 200 queries", found.recall, None, ""),
        row(f"building the graph, {size}", build, None, "s"),
        row("one query by the graph", 1e3 * each, None, "ms"),
        row("one query by exact search", 1e3 * of_exact / n, None, "ms"),
        row("compiling, with the first graph of a process", first - few, None, "s"),
        row("queries above which the graph is faster", build / gain if gain > 0 else float("inf"), None, ""),
        row(
            "queries above which the first graph of a process is",
            (build + first - few) / gain if gain > 0 else float("inf"),
            None,
            "",
        ),
    ]


def results(
    *,
    queries: int = 2000,
    rows: int = 1_000_000,
    real_rows: int = 100_000,
    real_queries: int = 20_000,
    repeats: int = 2,
) -> list[dict]:
    """Rows name, value, target, unit, passed."""
    out = exact(queries, rows, repeats) if rows else []
    folder = os.environ.get("RAGST_SD_TEST_DATA")
    if folder and real_rows:
        out += approximate(real_embeddings(Path(folder), real_rows), real_queries)
    return out


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0 leaves exact search out")
    parser.add_argument("--real-rows", type=int, default=100_000, help="0 leaves the graph out")
    parser.add_argument("--real-queries", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    globals()["clock"] = args.clock
    found = results(
        queries=args.queries,
        rows=args.rows,
        real_rows=args.real_rows,
        real_queries=args.real_queries,
        repeats=args.repeats,
    )
    print(as_table(found))
    if args.write:
        write_between_markers(args.write, "search" if args.rows else "search_graph", as_table(found))


if __name__ == "__main__":
    main()
