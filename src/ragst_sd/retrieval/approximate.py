"""Candidates from an approximate neighbour graph (pynndescent), for so many queries that building it pays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.exact import as_float64

_OVERFETCH = 2
_MARGIN = 32
_EPSILON = 0.25
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


def near_in_graph(queries: np.ndarray, bank: Any, k: int, *, eligibility: Eligibility, order: np.ndarray) -> np.ndarray:
    """(n, width) eligible rows that lie near each query in a graph, -1 for none, about twice the `k` that are wanted.

    The graph holds the rows that `eligibility` allows, in the given order. A query that may use less than half of them
    gets none.
    """
    from pynndescent import NNDescent

    order = order[eligibility.allowed[order]]
    width = _OVERFETCH * k + _MARGIN
    asked = np.flatnonzero(eligibility.count() >= _FEW_ELIGIBLE * len(order))
    if len(order) <= width or not len(asked):
        return np.full((len(queries), 1), -1)
    values = np.empty((len(order), bank.shape[1]), dtype=np.float32)
    for start in range(0, len(order), _COPIED):
        part = slice(start, start + _COPIED)
        values[part] = as_float64(bank[order[part]])
    graph = NNDescent(values, metric="euclidean", n_neighbors=min(30, len(order) - 1), random_state=0)
    places, _ = graph.query(queries[asked].astype(np.float32), k=width, epsilon=_EPSILON)
    near = np.where(places >= 0, order[places], -1)
    for e in range(eligibility.query_groups.shape[1]):
        near[eligibility.query_groups[asked, e, None] == eligibility.bank_groups[near, e]] = -1
    if eligibility.itself is not None:
        near[near == eligibility.itself[asked, None]] = -1
    rows = np.full((len(queries), width), -1)
    rows[asked] = near
    return rows
