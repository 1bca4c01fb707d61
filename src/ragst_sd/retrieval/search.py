"""Stage 1: the nearest eligible rows of the reference, exact by default.

Candidates come from a float32 pass over the bank (`shortlist`), or from an approximate graph, and are ranked in
float64, so that the rows found depend neither on the other queries of a batch, nor on the order of the bank, nor on the
sizes of blocks or the number of threads. A query whose candidates cannot be proven to hold its true neighbours is
searched again in float64.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any, NamedTuple

import numpy as np
import torch

from ragst_sd.retrieval.eligibility import Eligibility as Eligibility
from ragst_sd.retrieval.shortlist import as_float64, shortlist

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "exact", "pynndescent")
# A shortlist holds so many rows more than are wanted, and so many where the first one proves nothing.
_MARGIN, _WIDE_MARGIN = 32, 1024
# Rows of a bank on disk that are in memory at once.
_BLOCK_ROWS = 65_536
# Of the float64 differences that are held at once when candidates are ranked.
_BLOCK_BYTES = 2**26
_GPU_BLOCK_BYTES = 2**30
# Rows of the bank that are ranked at once where all of them are.
_RANKED_ROWS = 8192
# Queries that are searched both ways to tell how well a graph finds neighbours.
_SAMPLE = 200
# What is asked of a graph for k rows: so many times k, and so many more.
_OVERFETCH, _SPARE, _EPSILON = 2, 32, 0.25
# Below this share of eligible rows a graph returns too few of them, and exact search looks at few rows anyway.
_FEW_ELIGIBLE = 0.5
# benchmarks/search.py, 80,000 real embeddings on two cores: faster from 10,600 queries on, or from 128,000 where
# compiling counts, 40 s once in a process. By these costs even the first graph of a process is from 83,000 queries on
# where there are 100,000 rows.
_WORTH_A_GRAPH = 100_000


class Candidates(NamedTuple):
    """Nearest rows of each query, nearest first."""

    rows: np.ndarray
    """(n, k) rows of the bank; -1 where there is none."""
    distances: np.ndarray
    """(n, k) float64 distances; NaN where there is none."""
    recall: float = 1.0
    """Share of the true neighbours that were found, estimated on a sample of queries; 1 where the search is exact."""


def search(
    queries: np.ndarray,
    bank: Any,
    k: int,
    *,
    eligibility: Eligibility | None = None,
    tie_order: np.ndarray | None = None,
    metric: str = "euclidean",
    backend: str = "auto",
    device: str | torch.device = "cpu",
    within: np.ndarray | None = None,
    block: tuple[int, int] | None = None,
) -> Candidates:
    """Find the `k` nearest eligible rows of the bank for each query.

    Parameters
    ----------
    queries, bank
        (n, d) and (m, d) float arrays. The bank may be float16, float32 or float64, and may be a tensor on the device.
        Distances are those of the values as they are stored.
    k
        Rows wanted, at least one; fewer come back, padded with -1, where fewer are eligible.
    eligibility
        Rows that each query may use; all of them if left out.
    tie_order
        (m,) rank that decides between equal distances; row number if left out.
    metric
        `"euclidean"`, or `"cosine"` (one minus the cosine similarity).
    backend
        `"exact"`, `"pynndescent"` (candidates from an approximate graph, ranked exactly), or `"auto"`, whichever is
        expected to take less time: exact below 100,000 queries or 100,000 rows, and always on a GPU. Exact search of n
        queries costs n m, a graph of m rows about m, with a far larger factor: so the number of queries decides.
    device
        Where products are taken. Distances differ between devices in their last digits only.
    within
        (n,) distances beyond which a query has no use for rows: of them any number may be missing. Exact search only.
    block
        Queries and rows of one product of exact search; memory grows with it, the result does not depend on it.

    Raises
    ------
    ValueError
        If `metric` or `backend` is unknown, or queries or bank hold NaN or infinite values.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"`metric` is {metric!r}; it must be 'euclidean' or 'cosine'.")
    if backend not in BACKENDS:
        raise ValueError(f"`backend` is {backend!r}; it must be 'auto', 'exact' or 'pynndescent'.")
    queries = np.asarray(queries, dtype=np.float64)
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(queries)} queries hold NaN or infinite values (the first is "
            f"{int(np.argmin(finite))})."
        )
    eligibility = eligibility or Eligibility.everything(len(queries), len(bank))
    tie_order = np.arange(len(bank)) if tie_order is None else np.asarray(tie_order)
    if not len(queries) or not len(bank):
        return Candidates(np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), np.nan))
    if metric == "cosine":
        # Of rows of length one it is half the squared distance.
        queries, bank = unit_rows(queries), unit_rows(as_float64(bank))
    limit = np.full(len(queries), np.inf) if within is None else within
    limit = 2 * limit if metric == "cosine" else limit**2

    def search_exactly(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and squared distances of some of the queries."""
        rows, squared = np.full((len(asked), k), -1, dtype=np.int64), np.full((len(asked), k), np.inf)
        unproven = np.arange(len(asked))
        # Where many rows lie almost equally far, a longer shortlist can prove what a short one cannot.
        for margin in (_MARGIN, _WIDE_MARGIN):
            part, wanted = asked[unproven], min(len(bank), k + margin)
            of_part: dict[str, Any] = {"eligibility": eligibility.of_queries(part), "within": limit[part]}
            near, bound = shortlist(queries[part], bank, wanted, **of_part, device=device, block=block)
            rows[unproven], squared[unproven] = rank(queries[part], bank, near, k, tie_order, device)
            farthest = np.minimum(squared[unproven, -1], limit[part])
            # The bound is infinite where fewer rows than wanted are eligible: then all of them are candidates.
            unproven = unproven[~(np.isinf(bound) | (farthest < bound))]
            if not len(unproven) or wanted == len(bank):
                return rows, squared
        logger.debug("%d of %d queries are searched again in float64.", len(unproven), len(asked))
        part = asked[unproven]
        ranked = rank_all(queries[part], bank, k, eligibility.of_queries(part), tie_order, device)
        rows[unproven], squared[unproven] = ranked
        return rows, squared

    every, recall = np.arange(len(queries)), 1.0
    worth = str(device) == "cpu" and min(len(queries), len(bank)) >= _WORTH_A_GRAPH
    if backend == "pynndescent" or (backend == "auto" and worth):
        near = _near_in_graph(queries, bank, k, eligibility, np.argsort(tie_order, kind="stable"))
        rows, squared = rank(queries, bank, near, k, tie_order)
        complete = (rows >= 0).all(axis=1)
        rows[~complete], squared[~complete] = search_exactly(every[~complete])
        recall = _recall(rows, every[complete], search_exactly)
    else:
        rows, squared = search_exactly(every)
    distances = squared / 2 if metric == "cosine" else np.sqrt(squared)
    return Candidates(rows, np.where(rows >= 0, distances, np.nan), recall)


def unit_rows(points: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; zero stays zero."""
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, norm, out=np.zeros_like(points), where=norm != 0)


def rank(
    queries: np.ndarray,
    bank: Any,
    rows: np.ndarray,
    k: int,
    tie_order: np.ndarray,
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Order (n, width) candidates, -1 for none, by their distance in float64, and take `k`.

    Returns
    -------
    (n, k) rows, -1 for none, and their squared distances, infinite for none.
    """
    n, width = rows.shape
    nearest, nearest_squared = np.full((n, k), -1, dtype=np.int64), np.full((n, k), np.inf)
    on_gpu = torch.device(device).type != "cpu" and isinstance(bank, torch.Tensor)
    step = max(1, (_GPU_BLOCK_BYTES if on_gpu else _BLOCK_BYTES) // max(1, 8 * width * queries.shape[1]))
    for start in range(0, n, step):
        part = slice(start, min(n, start + step))
        near = rows[part]
        if on_gpu:
            index = torch.from_numpy(np.maximum(near, 0)).to(bank.device)
            asked = torch.from_numpy(np.ascontiguousarray(queries[part])).to(bank.device)
            squared = ((bank[index].double() - asked[:, None, :]) ** 2).sum(dim=2).cpu().numpy()
        else:
            apart = as_float64(bank[np.maximum(near, 0).ravel()]).reshape(*near.shape, -1)
            apart = apart - queries[part, None, :]
            np.multiply(apart, apart, out=apart)
            squared = apart.sum(axis=2)
        squared[near < 0] = np.inf
        order = np.lexsort((tie_order[near], squared), axis=1)[:, :k]
        columns = slice(order.shape[1])
        nearest[part, columns] = np.take_along_axis(np.where(np.isinf(squared), -1, near), order, axis=1)
        nearest_squared[part, columns] = np.take_along_axis(squared, order, axis=1)
    return nearest, nearest_squared


def rank_all(
    queries: np.ndarray,
    bank: Any,
    k: int,
    eligibility: Eligibility,
    tie_order: np.ndarray,
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Rank every eligible row in float64, block by block, for the few queries that need it."""
    nearest, squared = np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), np.inf)
    for start in range(0, len(bank), _RANKED_ROWS):
        rows = np.arange(start, min(len(bank), start + _RANKED_ROWS))
        usable = np.where(eligibility.mask(slice(None), rows), rows, -1)
        nearest, squared = rank(queries, bank, np.concatenate([nearest, usable], axis=1), k, tie_order, device)
    return nearest, squared


def _near_in_graph(queries: np.ndarray, bank: Any, k: int, eligibility: Eligibility, order: np.ndarray) -> np.ndarray:
    """(n, width) eligible rows that lie near each query in a graph, -1 for none, about twice the `k` that are wanted.

    The graph holds the rows that `eligibility` allows, in the given order. A query that may use less than half of them
    gets none.
    """
    from pynndescent import NNDescent

    order = order[eligibility.allowed[order]]
    width = _OVERFETCH * k + _SPARE
    asked = np.flatnonzero(eligibility.count() >= _FEW_ELIGIBLE * len(order))
    if len(order) <= width or not len(asked):
        return np.full((len(queries), 1), -1)
    values = np.asarray(bank[order], dtype=np.float32)
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


def _recall(rows: np.ndarray, asked: np.ndarray, search_exactly: Any) -> float:
    """Share of the true neighbours that a graph found, from some of the queries that it answered."""
    if not len(asked):
        return 1.0
    sample = np.random.default_rng(0).choice(asked, min(_SAMPLE, len(asked)), replace=False)
    pairs = zip(search_exactly(sample)[0], rows[sample], strict=True)
    return float(np.mean([np.isin(true[true >= 0], near).mean() for true, near in pairs]))


def search_in_blocks(
    queries: np.ndarray,
    bank: Any,
    k: int,
    *,
    eligibility: Eligibility,
    tie_order: np.ndarray,
    block_rows: int = _BLOCK_ROWS,
    **options: Any,
) -> Candidates:
    """Find the `k` nearest eligible rows in a bank that need not fit into memory, block after block.

    Rows and distances are the same as those of :func:`search`.

    Parameters
    ----------
    queries
        (n, d) float array.
    bank
        (m, d), anything that gives an array for a slice of its rows.
    eligibility, tie_order
        As in :func:`search`.
    block_rows
        Rows of the bank that are in memory at once.
    options
        `metric` and `device` of :func:`search`.
    """
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    for start in range(0, bank.shape[0], block_rows):
        part = slice(start, min(start + block_rows, bank.shape[0]))
        # Rows farther away than the k that are known already are of no use.
        usable, within = eligibility.of_rows(part), distances[:, -1]
        of_part: dict[str, Any] = {"eligibility": usable, "tie_order": tie_order[part], "within": within}
        near = search(queries, np.asarray(bank[part]), k, backend="exact", **of_part, **options)
        rows = np.concatenate([rows, np.where(near.rows >= 0, near.rows + start, -1)], axis=1)
        distances = np.concatenate([distances, np.where(near.rows >= 0, near.distances, np.inf)], axis=1)
        order = np.lexsort((tie_order[rows], distances), axis=1)[:, :k]
        rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
    return Candidates(rows, np.where(rows >= 0, distances, np.nan))


def find_candidates(
    queries: np.ndarray,
    bank: Any,
    k: int,
    *,
    eligibility: Eligibility,
    how: str = "nearest",
    tie_order: np.ndarray | None = None,
    **options: Any,
) -> Candidates:
    """Stage 1: the `"nearest"` eligible rows, or for a control as many `"random"` ones, nearest first.

    The nearest ones are found by :func:`search` with these options.
    """
    if how == "nearest":
        return search(queries, bank, k, eligibility=eligibility, tie_order=tie_order, **options)
    tie_order = np.arange(len(bank)) if tie_order is None else np.asarray(tie_order)
    # Rows are drawn in the order of their ids, from a seed that is the query itself: neither its company nor the order
    # of the bank matters.
    by_id = np.argsort(tie_order)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for i, query in enumerate(np.ascontiguousarray(queries, dtype=np.float64)):
        eligible = by_id[eligibility.mask(np.array([i]), by_id)[0]]
        seed = int.from_bytes(hashlib.blake2b(np.round(query, 6).tobytes(), digest_size=8).digest(), "little")
        drawn = np.random.default_rng(seed).permutation(len(eligible))[:k]
        rows[i, : len(drawn)] = eligible[drawn]
    ranked, squared = rank(np.asarray(queries, dtype=np.float64), bank, rows, k, tie_order)
    return Candidates(ranked, np.where(ranked >= 0, np.sqrt(squared), np.nan))
