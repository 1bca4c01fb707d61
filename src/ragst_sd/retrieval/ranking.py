"""Candidates of a search in float64: ordered by distance, then by the rank that decides between equal ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.exact import as_float64

_BLOCK_BYTES = 2**26
_GPU_BLOCK_BYTES = 2**30
_ROWS = 8192


def rank(
    queries: np.ndarray,
    bank: Any,
    rows: np.ndarray,
    k: int,
    tie_order: np.ndarray,
    *,
    unit: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Order (n, width) candidates, -1 for none, and keep `k`.

    Returns
    -------
    (n, k) rows, -1 for none, and their squared distances, infinite for none.
    """
    n, width = rows.shape
    out = np.full((n, k), -1, dtype=np.int64)
    squared_out = np.full((n, k), np.inf)
    on_gpu = torch.device(device).type != "cpu" and isinstance(bank, torch.Tensor) and not unit
    step = max(1, (_GPU_BLOCK_BYTES if on_gpu else _BLOCK_BYTES) // max(1, 8 * width * queries.shape[1]))
    for start in range(0, n, step):
        part = slice(start, min(n, start + step))
        found = rows[part]
        if on_gpu:
            index = torch.from_numpy(np.maximum(found, 0)).to(bank.device)
            near = torch.from_numpy(np.ascontiguousarray(queries[part])).to(bank.device)
            squared = ((bank[index].double() - near[:, None, :]) ** 2).sum(dim=2).cpu().numpy()
        else:
            apart = as_float64(bank[np.maximum(found, 0).ravel()], unit=unit).reshape(*found.shape, -1)
            apart = apart - queries[part, None, :]
            np.multiply(apart, apart, out=apart)
            squared = apart.sum(axis=2)
        squared[found < 0] = np.inf
        order = np.lexsort((tie_order[found], squared), axis=1)[:, :k]
        keep = min(k, width)
        found = np.where(np.isinf(squared), -1, found)
        out[part, :keep] = np.take_along_axis(found, order, axis=1)
        squared_out[part, :keep] = np.take_along_axis(squared, order, axis=1)
    return out, squared_out


def thorough(
    queries: np.ndarray,
    bank: Any,
    k: int,
    eligibility: Eligibility,
    tie_order: np.ndarray,
    *,
    unit: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Rank every eligible row in float64, block by block, for the few queries that need it."""
    nearest, squared = np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), np.inf)
    for start in range(0, len(bank), _ROWS):
        rows = np.arange(start, min(len(bank), start + _ROWS))
        usable = np.where(eligibility.mask(slice(None), rows), rows, -1)
        tried = np.concatenate([nearest, usable], axis=1)
        nearest, squared = rank(queries, bank, tried, k, tie_order, unit=unit, device=device)
    return nearest, squared
