"""A prediction made again from its provenance, with rows taken out of the bank."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata import SpatialData

from ragst_sd._bank import open_bank
from ragst_sd._cell_types import measured_columns
from ragst_sd._eligibility import eligible_rows, where_of
from ragst_sd._query import read_query
from ragst_sd._state import state_of
from ragst_sd._validate import listing
from ragst_sd._workers import spread_blocks
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import part_of, predict, select
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.retrieval.bank import Bank, Selection

# The unit is log1p of counts per 10,000 in float32; a prediction does not depend on the other spots beyond rounding.
_SAME = 1e-4


class Rerun:
    """Both stages for some spots and genes of a predicted table, as they were run for it.

    Raises
    ------
    TypeError
        If a bare table is given, which has no embeddings.
    ValueError
        If the fit is another one, the method cites no rows, spots are gone or off the image, or the result is not the
        stored prediction.
    """

    def __init__(
        self,
        sdata: SpatialData | AnnData,
        reference: AnnData,
        table: AnnData,
        header: dict[str, Any],
        *,
        spots: np.ndarray,
        genes: np.ndarray,
    ) -> None:

        if not isinstance(sdata, SpatialData):
            msg = (
                "A bare predicted table has no embeddings, from which the search is made again. Give the SpatialData "
                f"with table {str(header['table_key'])!r} and its `obsm[{str(header['use_rep'])!r}]`; `rows=` does "
                "without."
            )
            raise TypeError(msg)
        self._bank = _bank_of(reference, header)
        query = read_query(sdata, self._bank.header, table_key=str(header["table_key"]), use_rep=str(header["use_rep"]))
        at = query.table.obs_names.get_indexer(table.obs_names[spots])
        if (at < 0).any():
            msg = (
                f"Table {query.table_key!r} no longer has {int((at < 0).sum())} of the predicted spots: "
                f"{listing(table.obs_names[spots][at < 0])}. Predict again."
            )
            raise ValueError(msg)
        # Spots off the image were never predicted.
        self._on_image = query.finite[at]
        at = at[self._on_image]
        if not len(at):
            msg = (
                f"No spot has an embedding, and so no prediction that could change: {listing(table.obs_names[spots])}."
            )
            raise ValueError(msg)
        eligibility = eligible_rows(
            self._bank,
            query,
            donor_key=str(header["donor_key"]),
            where=where_of(self._bank.ids, header),
            exclude=[str(column) for column in np.atleast_1d(header["exclude"])],
        )
        self._eligibility = eligibility.of_queries(at)
        self._embedding, self._obs = query.standardized[at], query.table.obs.iloc[at]
        self._genes = measured_columns(self._bank.genes, table.var_names[genes], self._bank.header.cell_types)
        self._n_neighbors, self._backend = int(header["n_neighbors"]), str(header["backend"])
        self._selection, prediction = self._predict(np.ones(len(at), dtype=bool), eligibility.allowed)
        self.prediction = self._on_all_spots(prediction)
        """(spots, genes) prediction with nothing taken out; NaN for spots off the image."""
        _check_same(self.prediction, dense(table.X[spots][:, genes]), table.obs_names[spots], header)

    @property
    def usable(self) -> np.ndarray:
        """(rows,) which rows of the reference some spot may use."""
        groups = np.unique(self._eligibility.query_groups, axis=0)
        patterns = replace(self._eligibility.of_groups(), query_groups=groups)
        return np.asarray(patterns.mask(slice(None), slice(None)).any(axis=0))

    def weight_of(self, rows: np.ndarray) -> np.ndarray:
        """(spots,) share of the weights that the rows of a mask hold; NaN for spots off the image."""
        found = self._selection
        held = np.where((found.rows >= 0) & rows[np.maximum(found.rows, 0)], found.weights, 0.0)
        return self._on_all_spots(held.sum(axis=1))

    def without(self, rows: np.ndarray) -> np.ndarray:
        """(spots, genes) prediction without the rows of a mask; NaN for spots that are left without any."""
        allowed = self._eligibility.allowed & ~rows
        if not (self._eligibility.allowed & rows).any():
            return self.prediction
        served = replace(self._eligibility, allowed=allowed).count() > 0
        out = np.full((len(served), len(self._genes)), np.nan, dtype=np.float32)
        if served.any():
            out[served] = self._predict(served, allowed)[1]
        return self._on_all_spots(out)

    def _predict(self, spots: np.ndarray, allowed: np.ndarray) -> tuple[Selection, np.ndarray]:
        embedding = self._embedding[spots]
        selected = select(
            self._bank,
            embedding,
            state=state_of(self._bank.fit.parameters, self._obs[spots], embedding),
            eligibility=replace(self._eligibility.of_queries(spots), allowed=allowed),
            n_neighbors=self._n_neighbors,
            backend=self._backend,
        )
        part = part_of(self._bank, self._genes, selected, spread=False)
        return selected.selection, predict(part, selected.selection, spread_blocks)["prediction"]

    def _on_all_spots(self, values: np.ndarray) -> np.ndarray:
        out = np.full((len(self._on_image), *values.shape[1:]), np.nan, dtype=values.dtype)
        out[self._on_image] = values
        return out


def _bank_of(reference: AnnData, header: dict[str, Any]) -> Bank:
    """The opened reference with the fit that made the prediction, of a method that cites."""
    bank = open_bank(reference)
    fit = bank.fit
    if fit.fit_hash != str(header["fit_hash"]):
        msg = (
            f"The prediction was made with fit {str(header['fit_hash'])[:12]} ({str(header['method'])!r}); the "
            f"reference has been fitted anew since: {fit.fit_hash[:12]} ({fit.method!r}). Predict again, or read the "
            "reference as it was written then."
        )
        raise ValueError(msg)
    if not METHODS[fit.method].cites:
        msg = (
            f"Method {fit.method!r} cites no rows: its predictions are in its fit, and taking rows out of the bank "
            "changes nothing. To see what a donor contributes, fit without it (`reference[mask].copy()`, then "
            "`rg.tl.fit`) and predict."
        )
        raise ValueError(msg)
    return bank


def _check_same(again: np.ndarray, stored: np.ndarray, names: Any, header: dict[str, Any]) -> None:
    """Refuse a prediction that its own provenance does not give again."""
    same = np.isclose(again, stored, rtol=0, atol=_SAME, equal_nan=True)
    if same.all():
        return
    changed = ~same.all(axis=1)
    msg = (
        f"The stored prediction is not what its provenance gives today: {int(changed.sum())} of {len(changed)} spots "
        f"differ (first: {names[changed][0]!r}). "
        f"`tables[{str(header['table_key'])!r}].obsm[{str(header['use_rep'])!r}]`, its header, the donors of the "
        "spots, or the predicted values changed since. Predict again, and then ask what they rest on."
    )
    raise ValueError(msg)
