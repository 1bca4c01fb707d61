"""Exact search, a fit and evidence on a GPU, in absolute time and against bare products; needs numpy and torch only.

PYTHONPATH=src python benchmarks/gpu_search.py --out results
PYTHONPATH=src python benchmarks/gpu_search.py --rows 20000 --queries 500 --dim 256 --genes 500 --device cpu --out results

Writes `gpu_search.json`: seconds (the best of `--repeats`), agreement with float64 and with the CPU, memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ragst_sd.retrieval.bank import Bank, Query, Run
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.methods import METHODS, fit_method, phi_of
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.search import Eligibility, search

K = 50
CHECKED = 20
DONORS = 8


def clock(function, device: torch.device, repeats: int):
    """The best seconds of some calls, after one that warms up, and the last result."""
    seconds = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        result = function()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), result


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> float | None:
    """Megabytes that torch held at most since the last reset."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def bare(queries: torch.Tensor, bank: torch.Tensor, n_block: int, m_block: int) -> torch.Tensor:
    """Blocked products and top-k in the precision of the bank, as they come."""
    norm = (bank.float() ** 2).sum(dim=1)
    out = []
    for start in range(0, len(queries), n_block):
        own = queries[start : start + n_block]
        best = torch.full((len(own), 0), torch.inf, device=bank.device)
        found = torch.zeros((len(own), 0), dtype=torch.int64, device=bank.device)
        for begin in range(0, len(bank), m_block):
            scores = norm[begin : begin + m_block] - 2 * (own @ bank[begin : begin + m_block].T).float()
            value, index = scores.topk(min(K, scores.shape[1]), dim=1, largest=False)
            best, found = torch.cat([best, value], dim=1), torch.cat([found, index + begin], dim=1)
            best, index = best.topk(K, dim=1, largest=False)
            found = found.gather(1, index)
        out.append(found)
    return torch.cat(out)


def truth(queries: torch.Tensor, bank: torch.Tensor, groups: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Nearest rows in float64, query by query."""
    rows = []
    for i, query in enumerate(queries.double()):
        squared = torch.cat([((part.double() - query) ** 2).sum(dim=1) for part in bank.split(65_536)])
        if groups is not None:
            squared[torch.from_numpy(groups[1] == groups[0][i]).to(squared.device)] = torch.inf
        # Sorted stably: of equal distances the lower row comes first, as in our search.
        rows.append(squared.sort(stable=True).indices[:K].cpu().numpy())
    return np.stack(rows)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(a, b, strict=True)]))


class Doubtful(logging.Handler):
    """Counts queries that had to be searched again in float64."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += int(record.args[0])


def measure_search(args: argparse.Namespace, device: torch.device) -> dict:
    dtype = torch.float16
    generator = torch.Generator(device=device).manual_seed(0)
    # Clustered rows with float16 neighbours, not pure noise: nearest rows of noise all lie at one distance.
    centres = torch.randn((1000, args.dim), generator=generator, device=device)
    bank = torch.empty((args.rows, args.dim), dtype=dtype, device=device)
    for part in bank.split(65_536):
        which = torch.randint(0, 1000, (len(part),), generator=generator, device=device)
        part.copy_(centres[which] + 0.5 * torch.randn(part.shape, generator=generator, device=device))
    which = torch.randint(0, 1000, (args.queries,), generator=generator, device=device)
    queries = (centres[which] + 0.5 * torch.randn((args.queries, args.dim), generator=generator, device=device)).to(
        dtype
    )
    as_numpy = queries.cpu().numpy()

    again = Doubtful()
    logger = logging.getLogger("ragst_sd.retrieval.search")
    logger.addHandler(again)
    logger.setLevel(logging.DEBUG)
    out = {"rows": args.rows, "queries": args.queries, "dim": args.dim, "bank_MB": bank.numel() * 2 / 1e6}
    for n_block, m_block in ((2048, 65_536), (args.queries, 65_536), (512, 262_144)):
        name = f"bare_{n_block}x{m_block}_s"
        out[name], bare_rows = clock(lambda n=n_block, m=m_block: bare(queries, bank, n, m), device, args.repeats)
        print(name, round(out[name], 3), flush=True)
    out["bare_s"] = min(value for name, value in out.items() if name.startswith("bare_"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device) / 1e6
    for block in ((2048, 65_536), (4096, 65_536), (4096, 131_072)) if device.type == "cuda" else ((512, 4096),):
        name = f"exact_{block[0]}x{block[1]}_s"
        out[name], found = clock(
            lambda b=block: search(as_numpy, bank, K, device=device, block=b), device, args.repeats
        )
        print(name, round(out[name], 3), again.count, flush=True)
    out["exact_s"] = min(value for name, value in out.items() if name.startswith("exact_"))
    if device.type == "cuda":
        out["exact_peak_MB_over_bank"] = peak(device) - held
    out["ratio_to_bare"] = out["exact_s"] / out["bare_s"]
    out["searched_again_in_float64"] = again.count
    sample = np.random.default_rng(0).choice(args.queries, min(CHECKED, args.queries), replace=False)
    expected = truth(queries[sample], bank)
    out["exact_rows_equal_float64"] = bool((found.rows[sample] == expected).all())
    out["exact_recall"], out["bare_recall"] = (
        overlap(expected, found.rows[sample]),
        overlap(expected, bare_rows[sample].cpu().numpy()),
    )
    groups = (
        np.random.default_rng(1).integers(0, DONORS, args.queries),
        np.random.default_rng(2).integers(0, DONORS, args.rows),
    )
    eligibility = Eligibility(groups[0][:, None], groups[1][:, None], np.ones(args.rows, dtype=bool))
    out["exact_own_donor_left_out_s"], found = clock(
        lambda: search(as_numpy, bank, K, device=device, eligibility=eligibility), device, args.repeats
    )
    expected = truth(queries[sample], bank, (groups[0][sample], groups[1]))
    out["own_donor_left_out_rows_equal_float64"] = bool((found.rows[sample] == expected).all())
    if args.cpu_queries and device.type == "cuda":
        on_cpu, few = bank.cpu().numpy(), as_numpy[: args.cpu_queries]
        start = time.perf_counter()
        slow = search(few, on_cpu, K)
        out["cpu_queries"], out["cpu_s"] = args.cpu_queries, time.perf_counter() - start
        fast = search(few, bank, K, device=device)
        out["rows_equal_to_cpu"] = bool((slow.rows == fast.rows).all())
        out["largest_difference_to_cpu"] = float(np.nanmax(np.abs(slow.distances - fast.distances)))
    return out


def planted(rows: int, genes: int) -> Bank:
    """Embeddings of which a few directions say something about expression."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(rows, 12))
    embedding = hidden @ rng.normal(size=(12, 462)) + 2 * rng.normal(size=(rows, 462))
    values = np.maximum(hidden @ rng.normal(size=(12, genes)) + 2 * rng.normal(size=(rows, genes)) + 2, 0)
    donors = np.arange(rows) * DONORS // rows
    measured = np.ones((1, genes), dtype=bool)
    return Bank(embedding, values, np.zeros(rows, dtype=int), measured, donors, donors, donors)


def measure_fit(args: argparse.Namespace, device: torch.device) -> dict:
    """`rag` fitted on the device and on the CPU, each predicting the same held-out donor."""
    whole = planted(args.fit_rows + args.fit_rows // DONORS, args.genes)
    last = whole.donors == DONORS - 1
    rows, held = np.flatnonzero(~last), np.flatnonzero(last)
    training = whole.at_rows(rows)
    options = resolve_options(METHODS, "rag", None)
    out = {"rows": len(rows), "genes": args.genes, "held_out_rows": len(held), "steps": options.max_steps}
    predictions = {}
    for where in dict.fromkeys((str(device), "cpu")):
        wait(device)
        start = time.perf_counter()
        parameters, bank, *_ = fit_method("rag", training, Run(options, device=where))
        wait(device)
        name = torch.device(where).type
        out[f"fit_{name}_s"] = time.perf_counter() - start
        phi = phi_of("rag", parameters, whole.embedding[held])
        found = search(phi, bank, K, backend="exact")
        asked = Query(phi, found, np.zeros((len(held), 0)), K)
        cited = METHODS["rag"].select(parameters, replace(training, key=bank), asked)
        predictions[name] = weighted_average(cited.rows, cited.weights, training.values)
        out[f"held_out_pearson_{name}"] = pearson(predictions[name], whole.values[held])
    if len(predictions) == 2:
        a, b = predictions.values()
        out["agreement_pearson"] = pearson(a, b)
    return out


def measure_evidence(args: argparse.Namespace, device: torch.device) -> dict:
    """Weighted averages of a dense float16 bank on the device against the CPU."""
    rng = np.random.default_rng(0)
    n, m = args.evidence_queries, 4096
    values = torch.rand((m, args.evidence_genes), generator=torch.Generator().manual_seed(0)).half()
    rows, weights = rng.integers(0, m, (n, K)), rng.dirichlet(np.ones(K), n)
    on_device = values.to(device)
    seconds, fast = clock(lambda: weighted_average(rows, weights, on_device), device, args.repeats)
    few = min(n, 256)
    start = time.perf_counter()
    slow = weighted_average(rows[:few], weights[:few], values)
    cpu = (time.perf_counter() - start) * n / few
    exact = np.stack([w @ values[r].double().numpy() for r, w in zip(rows[:20], weights[:20], strict=True)])
    return {
        "queries": n, "genes": args.evidence_genes, "device_s": seconds, "cpu_s_extrapolated": cpu,
        "largest_difference_to_cpu": float(np.abs(fast[:few] - slow).max()),
        "largest_difference_to_float64": float(np.abs(fast[:20] - exact).max()),
    }  # fmt: skip


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Mean correlation of each gene."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float(((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))).mean())


def describe(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version()
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--cpu-queries", type=int, default=200)
    parser.add_argument("--fit-rows", type=int, default=8000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--evidence-queries", type=int, default=20_000)
    parser.add_argument("--evidence-genes", type=int, default=18_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=("search", "fit", "evidence"), default=("search", "fit", "evidence")
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    report = describe(device)
    for name in args.only:
        start = time.perf_counter()
        try:
            report[name] = {"search": measure_search, "fit": measure_fit, "evidence": measure_evidence}[name](
                args, device
            )
        except torch.OutOfMemoryError as error:
            report[name] = {"failed": str(error).splitlines()[0]}
        print(name, json.dumps(report[name], indent=1), f"({time.perf_counter() - start:.0f} s in all)", flush=True)
        # Written after each part, so that a time limit loses one part only.
        (args.out / "gpu_search.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
