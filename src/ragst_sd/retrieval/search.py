"""Stage 1: the nearest eligible rows of the reference, exact by default.

Distances are computed in float32 blocks of one fixed shape, and the best candidates are ranked again in float64, so
that the rows found depend neither on the other queries of a batch nor on the order of the bank. A query whose float32
candidates cannot be proven to hold its true neighbours is searched again in float64.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

_QUERY_BLOCK = 256
_BANK_BLOCK = 65_536
_MARGIN = 32
_RERANK_BYTES = 2**26
_EXACT_ROWS = 1_000_000


class Candidates(NamedTuple):
    """Nearest rows of each query, nearest first."""

    rows: np.ndarray
    """(n, k) rows of the bank; -1 where there is none."""
    distances: np.ndarray
    """(n, k) float64 distances; NaN where there is none."""


@dataclass(frozen=True)
class Eligibility:
    """Which rows of the bank each query may use.

    A row is eligible if `allowed` says so and it shares none of the query's groups.
    """

    query_groups: np.ndarray
    """(n, e) integer codes, -1 for a group that no row of the bank belongs to."""
    bank_groups: np.ndarray
    """(m, e) integer codes."""
    allowed: np.ndarray
    """(m,) bool."""

    @classmethod
    def everything(cls, n: int, m: int) -> Eligibility:
        """Every row is eligible for every query."""
        return cls(np.zeros((n, 0), dtype=np.int64), np.zeros((m, 0), dtype=np.int64), np.ones(m, dtype=bool))

    def mask(self, queries: slice | np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        """(queries, rows) mask for parts of both."""
        groups, bank = self.query_groups[queries], self.bank_groups[rows]
        out = np.broadcast_to(self.allowed[rows], (len(groups), len(bank))).copy()
        for e in range(groups.shape[1]):
            out &= groups[:, e, None] != bank[None, :, e]
        return out

    def count(self) -> np.ndarray:
        """(n,) number of eligible rows of each query."""
        distinct, inverse = np.unique(self.query_groups, axis=0, return_inverse=True)
        if distinct.shape[1] == 0:
            return np.full(len(self.query_groups), int(self.allowed.sum()))
        counts = [int((self.allowed & (self.bank_groups != groups).all(axis=1)).sum()) for groups in distinct]
        return np.asarray(counts)[inverse.ravel()]


def search(
    queries: np.ndarray,
    bank: np.ndarray,
    k: int,
    *,
    eligibility: Eligibility | None = None,
    tie_order: np.ndarray | None = None,
    metric: str = "euclidean",
    backend: str = "auto",
    rng: int = 0,
) -> Candidates:
    """Find the `k` nearest eligible rows of the bank for each query.

    Parameters
    ----------
    queries, bank
        (n, d) and (m, d) float arrays.
    k
        Rows wanted; fewer come back, padded with -1, where fewer are eligible.
    eligibility
        Rows that each query may use; all of them if left out.
    tie_order
        (m,) rank that decides between equal distances; row number if left out.
    metric
        `"euclidean"`, or `"cosine"` (one minus the cosine similarity).
    backend
        `"exact"`, `"pynndescent"` (candidates from an approximate graph, ranked exactly), or `"auto"`: exact up to a
        million rows.
    rng
        Seed of the approximate graph.
    """
    if metric not in ("euclidean", "cosine"):
        msg = f"`metric` is {metric!r}; it must be 'euclidean' or 'cosine'."
        raise ValueError(msg)
    if backend not in ("auto", "exact", "pynndescent"):
        msg = f"`backend` is {backend!r}; it must be 'auto', 'exact' or 'pynndescent'."
        raise ValueError(msg)
    queries, bank = np.asarray(queries, dtype=np.float64), np.asarray(bank, dtype=np.float64)
    if metric == "cosine":
        queries, bank = _unit(queries), _unit(bank)
    eligibility = eligibility or Eligibility.everything(len(queries), len(bank))
    tie_order = np.arange(len(bank)) if tie_order is None else np.asarray(tie_order)
    if backend == "pynndescent" or (backend == "auto" and len(bank) > _EXACT_ROWS):
        from ragst_sd.retrieval.approximate import approximate_candidates

        rows, doubtful = approximate_candidates(queries, bank, k, eligibility, rng)
        rows, squared = _rank(queries, bank, rows, k, tie_order)
    else:
        rows, squared, doubtful = _exact(queries, bank, k, eligibility, tie_order)
    if len(doubtful):
        rows[doubtful], squared[doubtful] = _thorough(queries, bank, k, eligibility, tie_order, doubtful)
    distances = squared / 2 if metric == "cosine" else np.sqrt(squared)
    return Candidates(rows, np.where(rows >= 0, distances, np.nan))


def find_candidates(
    queries: np.ndarray,
    bank: np.ndarray,
    k: int,
    *,
    eligibility: Eligibility,
    how: str = "nearest",
    tie_order: np.ndarray | None = None,
    metric: str = "euclidean",
    backend: str = "auto",
) -> Candidates:
    """Stage 1: the `"nearest"` eligible rows, or for a control as many `"random"` ones, nearest first."""
    if how == "nearest":
        return search(queries, bank, k, eligibility=eligibility, tie_order=tie_order, metric=metric, backend=backend)
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
    ranked, squared = _rank(
        np.asarray(queries, dtype=np.float64), np.asarray(bank, dtype=np.float64), rows, k, tie_order
    )
    return Candidates(ranked, np.where(ranked >= 0, np.sqrt(squared), np.nan))


def _unit(points: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, norm, out=np.zeros_like(points), where=norm > 0)


def _exact(
    queries: np.ndarray, bank: np.ndarray, k: int, eligibility: Eligibility, tie_order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m = len(queries), len(bank)
    wanted = min(m, k + _MARGIN)
    centre = bank.mean(axis=0)
    # Centring keeps the float32 products small, so that fewer queries need the thorough search.
    bank32 = torch.from_numpy((bank - centre).astype(np.float32))
    bank_norm = (bank32 * bank32).sum(dim=1)
    rows = np.full((n, wanted), -1, dtype=np.int64)
    last = np.full(n, np.inf)
    for start in range(0, n, _QUERY_BLOCK):
        part = slice(start, min(n, start + _QUERY_BLOCK))
        block = torch.zeros((_QUERY_BLOCK, queries.shape[1]), dtype=torch.float32)
        block[: part.stop - start] = torch.from_numpy((queries[part] - centre).astype(np.float32))
        best, found = _nearest_in_blocks(block, bank32, bank_norm, wanted, eligibility, part)
        rows[part], last[part] = found, best[:, -1]
    candidates, squared = _rank(queries, bank, rows, k, tie_order)
    if wanted == m:
        return candidates, squared, np.empty(0, dtype=np.int64)
    shifted = queries - centre
    query_norm = (shifted**2).sum(axis=1)
    radius = np.sqrt(query_norm) + np.sqrt(float(bank_norm.max()))
    error = 4 * (queries.shape[1] + 8) * np.finfo(np.float32).eps * radius**2
    kth = np.where(candidates[:, -1] >= 0, squared[:, -1], np.inf)
    # `last` is infinite where fewer than `wanted` rows are eligible: then every eligible row is a candidate.
    proven = np.isinf(last) | (kth < last + query_norm - error)
    return candidates, squared, np.flatnonzero(~proven)


def _nearest_in_blocks(
    block: torch.Tensor,
    bank: torch.Tensor,
    bank_norm: torch.Tensor,
    wanted: int,
    eligibility: Eligibility,
    part: slice,
) -> tuple[np.ndarray, np.ndarray]:
    size = part.stop - part.start
    best = torch.full((size, 0), torch.inf)
    found = torch.zeros((size, 0), dtype=torch.int64)
    for start in range(0, len(bank), _BANK_BLOCK):
        rows = slice(start, min(len(bank), start + _BANK_BLOCK))
        scores = torch.addmm(bank_norm[None, rows], block, bank[rows].T, alpha=-2)[:size]
        scores.masked_fill_(~torch.from_numpy(eligibility.mask(part, rows)), torch.inf)
        value, index = scores.topk(min(wanted, scores.shape[1]), dim=1, largest=False)
        best, found = torch.cat([best, value], dim=1), torch.cat([found, index + start], dim=1)
        if best.shape[1] > wanted:
            best, index = best.topk(wanted, dim=1, largest=False)
            found = found.gather(1, index)
    found[torch.isinf(best)] = -1
    order = best.argsort(dim=1)
    return best.gather(1, order).numpy(), found.gather(1, order).numpy()


def _rank(
    queries: np.ndarray, bank: np.ndarray, rows: np.ndarray, k: int, tie_order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Order candidates by float64 distance, then by `tie_order`, and keep `k`."""
    n, width = rows.shape
    out = np.full((n, k), -1, dtype=np.int64)
    squared_out = np.full((n, k), np.inf)
    step = max(1, _RERANK_BYTES // max(1, 8 * width * queries.shape[1]))
    for start in range(0, n, step):
        part = slice(start, min(n, start + step))
        found = rows[part]
        squared = ((bank[found] - queries[part, None, :]) ** 2).sum(axis=2)
        squared[found < 0] = np.inf
        order = np.lexsort((tie_order[found], squared), axis=1)[:, :k]
        keep = min(k, width)
        out[part, :keep] = np.take_along_axis(found, order, axis=1)
        squared_out[part, :keep] = np.take_along_axis(squared, order, axis=1)
    return out, squared_out


def _thorough(
    queries: np.ndarray,
    bank: np.ndarray,
    k: int,
    eligibility: Eligibility,
    tie_order: np.ndarray,
    which: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank every eligible row in float64, for the few queries that need it."""
    out = np.full((len(which), k), -1, dtype=np.int64)
    squared_out = np.full((len(which), k), np.inf)
    for position, i in enumerate(which):
        eligible = np.flatnonzero(eligibility.mask(np.array([i]), slice(None))[0])
        if len(eligible):
            out[position : position + 1], squared_out[position : position + 1] = _rank(
                queries[i : i + 1], bank, eligible[None, :], k, tie_order
            )
    return out, squared_out
