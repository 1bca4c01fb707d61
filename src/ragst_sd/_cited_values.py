"""Measured values of cited rows, and what brings them to one level: the numbers behind every explanation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ragst_sd import _keys
from ragst_sd._cell_types import measured_columns
from ragst_sd._results import Prediction
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.run import read_rows
from ragst_sd.retrieval.training import dense


@dataclass(frozen=True)
class Origin:
    """Some genes of a prediction, and the reference that they were predicted from."""

    prediction: Prediction
    bank: Bank
    genes: np.ndarray
    """Their columns in the predicted table."""

    @property
    def names(self) -> pd.Index:
        return self.prediction.table.var_names[self.genes]

    @cached_property
    def columns(self) -> np.ndarray:
        """Columns of the same genes in the reference; a `ValueError` if one comes from single cells."""
        return measured_columns(self.bank.genes, self.names, self.bank.header.cell_types)

    def measured_values(self, cited: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, genes) measured values, which were measured, and what takes off the mean of the row's section.

        Parameters
        ----------
        cited
            Lines of `prediction.cited`.
        """
        bank, columns = self.bank, self.columns
        rows = bank.obs.index.get_indexer(cited["reference"])
        if not len(rows):
            nothing = np.zeros((0, len(columns)))
            return nothing, nothing.astype(bool), nothing
        values = dense(read_rows(bank.values, rows)[:, columns])
        measured = bank.measured[bank.panels[rows]][:, columns]
        shifts = self._section_shifts()
        correction = np.zeros_like(values) if shifts is None else -shifts[bank.sections[rows]][:, columns]
        return values, measured, correction

    def level_means(self) -> tuple[np.ndarray, np.ndarray]:
        """(patterns, genes) means on which evidence is put back, and the pattern of each spot of the table."""
        header = self.prediction.header
        shifts = self._section_shifts() if _keys.LEVEL_ROWS in header else None
        if shifts is None:
            return np.zeros((1, len(self.genes))), np.zeros(self.prediction.table.n_obs, dtype=np.int64)
        rows, columns = np.atleast_2d(np.asarray(header[_keys.LEVEL_ROWS])), self.columns
        levels = replace(self.bank, measured=self.bank.measured[:, columns]).level(shifts[:, columns], rows)
        return levels, self.prediction.patterns

    def _section_shifts(self) -> np.ndarray | None:
        """(sections, genes) means of sections relative to that of the reference.

        `None` where the prediction took no notice.
        """
        header, fit = self.prediction.header, self.bank.fit
        if not bool(header["center_sections"]):
            return None
        shifts = None if fit is None else fit.parameters.get("section_shifts")
        if shifts is None:
            fitted = "no fit at all" if fit is None else fit.method
            raise ValueError(
                f"The prediction was made by {str(header['method'])!r} with centred sections; the reference has been "
                f"fitted anew since ({fitted!r}, without the means of its sections). Fit it as it was: "
                f"`rg.tl.fit(reference, method={str(header['method'])!r})`."
            )
        return np.asarray(shifts)
