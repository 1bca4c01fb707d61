"""Seconds that each method takes to fit, on made-up data of a given size.

python benchmarks/fit_speed.py --rows 2000 --genes 250 --threads 2 --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from methods import register
from real_sections import write_between_markers

from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.methods import METHODS, fit_method
from ragst_sd.retrieval.options import resolve_options

N_FEATURES, N_DONORS, N_SECTIONS = 462, 4, 8
TARGET = "rag"


def planted(rows: int, genes: int) -> Bank:
    """Embeddings of which a few directions say something about expression."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(rows, 12))
    embedding = hidden @ rng.normal(size=(12, N_FEATURES)) + 2 * rng.normal(size=(rows, N_FEATURES))
    values = np.maximum(hidden @ rng.normal(size=(12, genes)) + 2 * rng.normal(size=(rows, genes)) + 2, 0)
    sections = np.arange(rows) * N_SECTIONS // rows
    donors = sections * N_DONORS // N_SECTIONS
    measured = np.ones((1, genes), dtype=bool)
    return Bank(embedding, values, np.zeros(rows, dtype=int), measured, donors, sections, donors)


def main() -> None:
    """Time the fits."""
    register()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training = planted(args.rows, args.genes)
    lines = [
        f"| method | seconds, {args.rows} rows x {args.genes} genes, {args.threads} threads, {args.device} |",
        "|---|---|",
    ]
    for name in args.methods:
        start = time.perf_counter()
        fit_method(name, training, Run(resolve_options(METHODS, name, None), device=args.device))
        lines.append(f"| {name} | {time.perf_counter() - start:.1f} |")
        print(lines[-1], flush=True)
    if args.write:
        write_between_markers(args.write, "fit_speed", "\n".join(lines))


if __name__ == "__main__":
    main()
