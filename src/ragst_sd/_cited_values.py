"""Measured values of cited rows, and what brings them to one level: the numbers behind every explanation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._cell_types import measured_columns
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.run import read_rows
from ragst_sd.retrieval.training import dense


def measured_values(
    bank: Bank, header: dict[str, Any], cited: pd.DataFrame, genes: pd.Index
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, genes) measured values, which of them were measured, and what takes off the mean of the row's section.

    Parameters
    ----------
    cited
        Lines of `header["cited"]`.
    """
    at, columns = (
        bank.obs.index.get_indexer(cited["reference"]),
        measured_columns(bank.genes, genes, bank.header.cell_types),
    )
    if not len(at):
        nothing = np.zeros((0, len(columns)))
        return nothing, nothing.astype(bool), nothing
    values = dense(read_rows(bank.values, at)[:, columns])
    measured = bank.measured[bank.panels[at]][:, columns]
    shifts = _section_shifts(bank, header)
    if shifts is None:
        return values, measured, np.zeros_like(values)
    return values, measured, -shifts[bank.sections[at]][:, columns]


def level_means(bank: Bank, header: dict[str, Any], table: AnnData, genes: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """(patterns, genes) means on which evidence is put back, and the pattern of each of the table's spots."""
    columns = measured_columns(bank.genes, genes, bank.header.cell_types)
    shifts = _section_shifts(bank, header) if _keys.LEVEL_ROWS in header else None
    if shifts is None:
        return np.zeros((1, len(columns))), np.zeros(table.n_obs, dtype=np.int64)
    rows = np.atleast_2d(np.asarray(header[_keys.LEVEL_ROWS]))
    levels = replace(bank, measured=bank.measured[:, columns]).level(shifts[:, columns], rows)
    level_of = table.obs[_keys.LEVEL].to_numpy(int) if _keys.LEVEL in table.obs else np.zeros(table.n_obs, dtype=int)
    return levels, level_of


def _section_shifts(bank: Bank, header: dict[str, Any]) -> np.ndarray | None:
    """(sections, genes) means of sections relative to that of the reference.

    `None` where the prediction took no notice.
    """
    if not bool(header["center_sections"]):
        return None
    shifts = None if bank.fit is None else bank.fit.parameters.get("section_shifts")
    if shifts is None:
        fitted = "no fit at all" if bank.fit is None else bank.fit.method
        raise ValueError(
            f"The prediction was made by {str(header['method'])!r} with centred sections; the reference has been "
            f"fitted anew since ({fitted!r}, without the means of its sections). Fit it as it was: "
            f"`rg.tl.fit(reference, method={str(header['method'])!r})`."
        )
    return np.asarray(shifts)
