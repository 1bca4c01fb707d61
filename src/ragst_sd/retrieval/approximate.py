"""Candidates from an approximate neighbour graph (pynndescent), for so many queries that building it pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.exact import as_float64
from ragst_sd.retrieval.ranking import rank

_OVERFETCH = 2
_MARGIN = 32
_EPSILON = 0.25
_SAMPLE = 200
_COPIED = 65_536
# Below this share of eligible rows a graph returns too few of them, and exact search looks at few rows anyway.
_FEW_ELIGIBLE = 0.5
# benchmarks/search.py, 80,000 real embeddings on two cores: faster from 10,600 queries on, or from 128,000 where
# compiling counts, 40 s once in a process. By these costs even the first graph of a process is from 83,000 queries on
# where there are 100,000 rows.
_QUERIES_WORTH_A_GRAPH = 100_000
_ROWS_WORTH_A_GRAPH = 100_000


def worth_a_graph(n: int, m: int, device: str) -> bool:
    """The rule of `backend="auto"`: whether an approximate graph is expected to take less time than exact search.

    Exact search of n queries costs n m, a graph of m rows about m, with a factor that is far larger: so the number of
    queries decides. Exact below 100,000 queries or 100,000 rows, and always on a GPU.
    """
    return device == "cpu" and n >= _QUERIES_WORTH_A_GRAPH and m >= _ROWS_WORTH_A_GRAPH


def approximate_search(
    queries: np.ndarray,
    bank: Any,
    k: int,
    *,
    eligibility: Eligibility,
    tie_order: np.ndarray,
    rng: int,
    unit: bool,
    exactly: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, float]:
    """Nearest eligible rows by a graph over the rows that `eligibility` allows, built in the order of `tie_order`.

    Queries that may use less than half of these rows, and those for which the graph gives fewer than `k`, are searched
    exactly.

    Parameters
    ----------
    exactly
        Rows and squared distances of some of the queries, by exact search.

    Returns
    -------
    Rows, squared distances, and the share of the true neighbours found, from 200 queries that are searched both ways.
    """
    from pynndescent import NNDescent

    order = np.argsort(tie_order, kind="stable")
    order = order[eligibility.allowed[order]]
    fetched = min(len(order), _OVERFETCH * k + _MARGIN)
    rows, squared = np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), np.inf)
    graph_only = np.zeros(len(queries), dtype=bool)
    if len(order) > fetched:
        graph_only = eligibility.count() >= _FEW_ELIGIBLE * len(order)
    if graph_only.any():
        graph = NNDescent(
            _float32(bank, order, unit=unit), metric="euclidean", n_neighbors=min(30, len(order) - 1), random_state=rng
        )
        asked = np.flatnonzero(graph_only)
        near, _ = graph.query(queries[asked].astype(np.float32), k=fetched, epsilon=_EPSILON)
        near = np.where(near >= 0, order[near], -1)
        for e in range(eligibility.query_groups.shape[1]):
            near[eligibility.query_groups[asked, e, None] == eligibility.bank_groups[near, e]] = -1
        if eligibility.own is not None:
            near[near == eligibility.own[asked, None]] = -1
        rows[asked], squared[asked] = rank(queries[asked], bank, near, k, tie_order, unit=unit)
        graph_only[asked] = (rows[asked] >= 0).all(axis=1)
    rest = np.flatnonzero(~graph_only)
    if len(rest):
        rows[rest], squared[rest] = exactly(rest)
    return rows, squared, _recall(rows, np.flatnonzero(graph_only), exactly, rng)


def _float32(bank: Any, rows: np.ndarray, *, unit: bool) -> np.ndarray:
    out = np.empty((len(rows), bank.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), _COPIED):
        part = slice(start, start + _COPIED)
        out[part] = as_float64(bank[rows[part]], unit=unit)
    return out


def _recall(rows: np.ndarray, asked: np.ndarray, exactly: Callable, rng: int) -> float:
    if not len(asked):
        return 1.0
    sample = np.random.default_rng(rng).choice(asked, min(_SAMPLE, len(asked)), replace=False)
    truth, _ = exactly(sample)
    return float(np.mean([np.isin(true[true >= 0], own).mean() for true, own in zip(truth, rows[sample], strict=True)]))
