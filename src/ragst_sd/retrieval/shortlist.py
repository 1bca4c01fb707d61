"""The float32 pass of exact search: for each query the rows that may be among its nearest, block by block of the bank.

A block is one matrix product. Of it only those rows are taken up that beat the worst candidate so far, which after the
first blocks are few. Memory is that of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ragst_sd.retrieval.eligibility import Eligibility

# (queries, rows of the bank) of one product: its result stays in the cache of a processor, or fills a GPU.
_CPU_BLOCK, _GPU_BLOCK = (512, 4096), (4096, 65_536)
# Above this share of rows that beat the worst candidate, taking the best of the whole block costs less.
_MANY = 1 / 16
# From so many queries with the same eligible rows on, these have products of their own.
_OWN_CHUNK = 128


def shortlist(
    queries: np.ndarray,
    bank: Any,
    wanted: int,
    *,
    eligibility: Eligibility,
    within: np.ndarray,
    device: str | torch.device = "cpu",
    block: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Find the `wanted` rows of the bank with the smallest distances in float32.

    .. math:: \|q - x\|^2 = \|q\|^2 + (\|x\|^2 - 2\, q \cdot x)

    Rounding moves a squared distance by at most :math:`4 (d + 8)\, \epsilon\, (\|q\| + \|x\|)^2`, both taken from a
    common centre. A row farther from the centre than the query and its nearest rows together cannot be one of them, so
    the bound counts norms up to there only.

    Parameters
    ----------
    queries
        (n, d) float64.
    bank
        (m, d) float16, float32 or float64: numpy, or a tensor on any device.
    within
        (n,) squared distances beyond which a query has no use for rows; infinite where it has use for all.
    block
        Queries and rows of one product.

    Returns
    -------
    (n, wanted) rows of the bank, -1 for none, in no order; and (n,) the squared distance that no other eligible row
    goes below, infinite where there is no other.
    """
    device = torch.device(device)
    n_block, m_block = block or (_CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK)
    stored_half = str(bank.dtype) in ("float16", "torch.float16")
    half = device.type == "cuda" and stored_half and _half_products(str(device))
    # Products of float16 rows take the rows as they are, so that queries stay where they are too.
    centre = np.zeros(queries.shape[1]) if half else as_float64(bank[:m_block]).mean(axis=0)
    centre = centre.astype(np.float32)
    shifted = queries - centre
    query_norm = (shifted**2).sum(axis=1)
    chunks = [
        _Chunk(asked, shifted[asked], within[asked], wanted, device, same_rows=same_rows, half=half)
        for asked, same_rows in _chunks(eligibility, n_block)
    ]
    largest_norm = 0.0
    centre_on_device = torch.from_numpy(centre).to(device)
    with _full_precision(), torch.no_grad():
        for start in range(0, len(bank), m_block):
            rows = slice(start, min(len(bank), start + m_block))
            stored = torch.as_tensor(bank[rows]).to(device)
            # Centring keeps products small, so that rounding is too; far from the origin float32 can't hold float64
            # values.
            values = ((stored.float() if stored_half else stored) - centre_on_device).float()
            norm = (values * values).sum(dim=1)
            largest_here = float(norm.max())
            if not np.isfinite(largest_here):
                raise ValueError(
                    f"Rows {rows.start} to {rows.stop - 1} of the bank hold NaN, infinite or very large values: "
                    "no distances to them can be computed. Drop or correct these rows."
                )
            largest_norm = max(largest_norm, largest_here)
            for chunk in chunks:
                chunk.take_nearest(stored if half else values, norm, rows, eligibility)
    nearest = np.full((len(queries), wanted), -1, dtype=np.int64)
    last, rest = np.full(len(queries), np.inf), np.zeros(len(queries))
    for chunk in chunks:
        nearest[chunk.queries], last[chunk.queries] = chunk.rows.cpu().numpy(), chunk.worst().double().cpu().numpy()
        rest[chunk.queries] = chunk.rest
    error = _rounding_error(last + query_norm, query_norm, rest, np.sqrt(largest_norm), queries.shape[1])
    return nearest, np.where(np.isinf(last), np.inf, last + query_norm - error)


def _rounding_error(
    squared: np.ndarray, query_norm: np.ndarray, rest: np.ndarray, farthest: float, d: int
) -> np.ndarray:
    """(n,) how much rounding moves the squared distance of a row, at most: see :func:`shortlist`.

    Parameters
    ----------
    squared
        (n,) squared distance that the row does not exceed.
    query_norm, rest
        (n,) squared distance of each query to the centre, and length of what its float16 numbers leave out.
    farthest
        Distance of the farthest row of the bank to the centre.
    d
        Width of the embedding.
    """
    from_centre = np.sqrt(query_norm)
    with np.errstate(invalid="ignore"):
        reach = np.minimum(farthest, 1.01 * (from_centre + np.sqrt(np.maximum(squared, 0.0))))
        error = 4 * (d + 8) * np.finfo(np.float32).eps * (from_centre + reach) ** 2 + 2 * rest * reach
    # Products of tiny numbers vanish in float32.
    return error + d * float(np.finfo(np.float32).tiny)


class _Chunk:
    """Queries of one product, and their nearest rows so far.

    A score is the squared distance less that of the query to the centre, which is the same for all rows.
    """

    def __init__(
        self,
        queries: np.ndarray,
        key: np.ndarray,
        within: np.ndarray,
        wanted: int,
        device: torch.device,
        *,
        same_rows: bool,
        half: bool,
    ) -> None:
        self.queries, self.same_rows, self.half, self.wanted, self.device = queries, same_rows, half, wanted, device
        self.rest = np.zeros(len(key))
        terms: list[np.ndarray] = [key.astype(np.float32)]
        if half:
            # A query is the sum of two float16 numbers and a rest that is counted as an error.
            first = key.astype(np.float16)
            second = (key - first).astype(np.float16)
            self.rest = np.sqrt(((key - first - second) ** 2).sum(axis=1))
            terms = [first, second] if second.any() else [first]
        self.terms = [torch.from_numpy(term).to(device) for term in terms]
        # Further away than the limit by more than rounding can be wrong, so that what is left out is out of reach.
        norm = (key**2).sum(axis=1)
        with np.errstate(invalid="ignore"):
            limit = within - norm + 3 * _rounding_error(within, norm, self.rest, np.inf, key.shape[1])
        limit = np.where(np.isfinite(within), limit, np.inf).astype(np.float32)
        above = torch.from_numpy(np.nextafter(limit, np.float32(np.inf))).to(device)
        self.scores = above[:, None].repeat(1, wanted)
        self.rows = torch.full((len(key), wanted), -1, dtype=torch.int64, device=device)

    def worst(self) -> Tensor:
        """(n,) score of the farthest of these rows."""
        return self.scores.max(dim=1).values

    def take_nearest(self, values: Tensor, norm: Tensor, rows: slice, eligibility: Eligibility) -> None:
        """Take up those rows of one block of the bank that are nearer than the rows so far."""
        if self.half:
            scores = norm - 2 * sum(torch.mm(term, values.T, out_dtype=torch.float32) for term in self.terms)
        else:
            scores = torch.addmm(norm, self.terms[0], values.T, alpha=-2)
        allowed = eligibility.mask(self.queries[:1] if self.same_rows else self.queries, rows)
        if not allowed.all():
            scores.masked_fill_(torch.from_numpy(~allowed).to(self.device), torch.inf)
        query, row = torch.nonzero(scores < self.worst()[:, None], as_tuple=True)
        if len(row) > _MANY * scores.numel():
            value, index = scores.topk(min(self.wanted, scores.shape[1]), dim=1, largest=False)
            self._merge(value, index + rows.start)
        elif len(row):
            self._merge_few(query, row + rows.start, scores[query, row])

    def _merge_few(self, query: Tensor, row: Tensor, value: Tensor) -> None:
        """Merge pairs of a query and a row, sorted by query, of which a query may have any number."""
        at, count = torch.unique_consecutive(query, return_counts=True)
        line = torch.repeat_interleave(torch.arange(len(at), device=self.device), count)
        column = torch.arange(len(query), device=self.device) - (count.cumsum(0) - count)[line]
        width = int(count.max())
        values = torch.full((len(at), width), torch.inf, device=self.device)
        rows = torch.full((len(at), width), -1, dtype=torch.int64, device=self.device)
        values[line, column], rows[line, column] = value, row
        self._merge(values, rows, at)

    def _merge(self, values: Tensor, rows: Tensor, at: Tensor | slice = slice(None)) -> None:
        """Keep the nearest of the rows so far and of others, (n, width) each, for the queries `at` these places."""
        scores, index = torch.cat([self.scores[at], values], dim=1).topk(self.wanted, dim=1, largest=False)
        rows = torch.where(torch.isinf(values), -1, rows)
        self.rows[at] = torch.cat([self.rows[at], rows], dim=1).gather(1, index)
        self.scores[at] = scores


def _chunks(eligibility: Eligibility, size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Queries in chunks, and whether all of a chunk may use the same rows: those of one pattern, if many."""
    first, pattern = eligibility.patterns()
    apart = (np.bincount(pattern) >= _OWN_CHUNK) | (len(first) == 1)
    apart &= eligibility.itself is None
    groups = [(np.flatnonzero(pattern == code), True) for code in np.flatnonzero(apart)]
    for queries, same_rows in [*groups, (np.flatnonzero(~apart[pattern]), False)]:
        for begin in range(0, len(queries), size):
            yield queries[begin : begin + size], same_rows


def as_float64(values: Any) -> np.ndarray:
    """Rows of a bank in float64."""
    return values.double().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values, dtype=np.float64)


@cache
def _half_products(device: str) -> bool:
    """Whether a GPU multiplies float16 and adds up in float32."""
    matrix = torch.ones((16, 16), dtype=torch.float16, device=device)
    try:
        return torch.mm(matrix, matrix, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError):
        return False


@contextmanager
def _full_precision() -> Iterator[None]:
    """The bound on rounding holds for float32, not for the shorter formats that a GPU may be told to take instead."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
