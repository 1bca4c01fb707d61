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
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.regression import REGRESSION
from ragst_sd.retrieval.run import read_rows
from ragst_sd.retrieval.training import dense, reference_mean


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

    def mean_of_stack(self) -> tuple[np.ndarray, np.ndarray]:
        """(patterns, genes) mean of the rows that a regression may use, and the pattern of each spot of the table.

        Raises
        ------
        ValueError
            If the reference has no longer a fit with a regression.
        """
        bank, header = self.bank, self.prediction.header
        if bank.fit is None or REGRESSION not in bank.fit.parameters or bank.regression_key is None:
            raise ValueError(
                f"The prediction was made by {str(header['method'])!r} with a regression, which the reference no "
                f"longer has: it was fitted anew since, or lost `obsm[{_keys.REGRESSION_KEY!r}]`. Fit it as it was: "
                f"`rg.tl.fit(reference, method={str(header['method'])!r})`."
            )
        if bool(header["center_sections"]) or _keys.REGRESSION_ROWS not in header:
            levels, level_of = self.level_means()
            if not METHODS[str(header["method"])].cites:
                # The level of the query's own section moves what is cited, and nothing is.
                levels = np.zeros_like(levels)
            return np.asarray(bank.fit.parameters["reference_mean"])[self.columns] + levels, level_of
        eligible, level_of = self.regression_rows()
        part = bank.at_genes(self.columns)
        return np.stack([reference_mean(part, np.flatnonzero(rows)) for rows in eligible]), level_of

    def regression_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(patterns, rows) rows that the regression was solved on, and the pattern of each spot of the table."""
        bank, header = self.bank, self.prediction.header
        if _keys.REGRESSION_ROWS not in header:
            return np.ones((1, len(bank)), dtype=bool), np.zeros(self.prediction.table.n_obs, dtype=np.int64)
        packed = np.atleast_2d(np.asarray(header[_keys.REGRESSION_ROWS], dtype=np.uint8))
        by_id = np.unpackbits(packed, axis=1, count=len(bank)).astype(bool)
        return by_id[:, np.argsort(np.argsort(bank.ids, kind="stable"))], self.prediction.patterns

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
