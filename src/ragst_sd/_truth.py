"""The measured side of a comparison: its table, brought to the unit, genes and spots of a prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import annotating_tables, is_predicted, regions_of, table_attrs
from ragst_sd._gene_names import stored_expression
from ragst_sd._labels import labels
from ragst_sd._results import Prediction
from ragst_sd._validate import listing, names_among, only_one, require_choice, require_key, require_type, require_unique
from ragst_sd.reference.current_names import names_in
from ragst_sd.reference.genes import shared_genes, sum_duplicates, take_genes, why_few_shared
from ragst_sd.reference.normalize import MIN_SHARED_GENES, UNITS, check_unit, log_normalize, size_factors
from ragst_sd.retrieval.training import dense

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WHERE = "The measured table"


def truth_table(prediction: Prediction, truth_key: str | None, truth: AnnData | None = None) -> AnnData:
    """The measured table: given, by its name, or the only one of the shapes that were predicted.

    Never a predicted one.
    """
    if truth is not None:
        require_type(truth, AnnData, "truth")
        _require_measured(truth, "`truth`")
        _require_same_donors(prediction, truth)
        return truth
    sdata, key = prediction.data, shown_truth(prediction, truth_key)
    if isinstance(sdata, AnnData):
        raise ValueError("A bare predicted table needs the measured one: pass it with `truth=`.")
    if key is None:
        raise ValueError(
            f"No measured table annotates {listing(regions_of(prediction.table))}, which was predicted; tables: "
            f"{listing(sdata.tables)}. Add it to `sdata.tables`, or give it with `truth=` beside the bare predicted "
            "table."
        )
    require_key(key, sdata.tables, "sdata.tables", "Name the measured table with `truth_key=`.")
    _require_measured(sdata.tables[key], f"`sdata.tables[{key!r}]`")
    return sdata.tables[key]


def _require_measured(table: AnnData, name: str) -> None:
    if is_predicted(table):
        raise ValueError(f"{name} was predicted by `rg.tl.predict`; the truth must be measured.")


def _require_same_donors(prediction: Prediction, truth: AnnData) -> None:
    """Raise a `ValueError` if a table from elsewhere, whose spots may have the same ids, is of other donors."""
    column, tables = str(prediction.header["donor_key"]), (prediction.table, truth)
    if not all(column in table.obs for table in tables):
        return
    predicted, measured = (set(labels(table.obs[column], missing="")) - {""} for table in tables)
    if predicted and measured and not predicted & measured:
        raise ValueError(
            f"`truth` is of {column} {listing(sorted(measured))}, the prediction of {listing(sorted(predicted))}: "
            "other tissue would be compared. Give the table of the same section; if this is it, write "
            f"`obs[{column!r}]` alike in both."
        )


def shown_truth(prediction: Prediction, truth_key: str | Literal[False] | None) -> str | None:
    """Name of the measured table of a prediction: `truth_key`, or the only one of the same shapes; `None` for none."""
    sdata, regions = prediction.data, regions_of(prediction.table)
    if truth_key is not None or not isinstance(sdata, SpatialData):
        return truth_key or None
    annotating = dict.fromkeys(key for region in regions for key in annotating_tables(sdata, region))
    names = [key for key in annotating if sdata.tables[key].n_vars]
    return only_one(names, "truth_key", f"measured tables annotate {listing(regions)}")


def if_it_fits(compared: Callable[[], T], truth_key: str | Literal[False] | None) -> T | None:
    """The result of `compared`, a comparison with the measured table.

    If that table does not fit, this is an error where it was asked for by `truth_key`; otherwise a warning, and `None`.
    """
    try:
        return compared()
    except (KeyError, ValueError) as error:
        if truth_key is not None:
            raise
        logger.warning("Nothing measured is shown: %s", error.args[0])
        return None


def measured_values(
    prediction: Prediction,
    truth_key: str | Literal[False] | None,
    *,
    layer: str | None,
    unit: str,
    genes: Sequence[str] | None,
) -> pd.DataFrame | None:
    """(spots, genes) measured values in the unit of the prediction, NaN for spots that were not measured.

    `None` where there is nothing to compare with: no table was asked for, and none of the same shapes fits.

    Raises
    ------
    KeyError
        If the measured table, the layer or a gene does not exist.
    ValueError
        If the truth is not measured, shares no spots or genes, or is not counts.
    """
    key = shown_truth(prediction, truth_key)
    if key is None:
        return None

    def measured() -> pd.DataFrame:
        compared = compare(prediction, truth_table(prediction, key), layer=layer, unit=unit, genes=genes)
        values = np.full((prediction.table.n_obs, len(compared.genes)), np.nan)
        values[compared.rows] = dense(compared.truth[compared.truth_rows])
        return pd.DataFrame(values, columns=compared.genes)

    return if_it_fits(measured, truth_key)


def _shared_spots(table: AnnData, measured: AnnData, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both tables that are the same spot, by instance id of one element, else by name.

    Without a count, a spot was not measured.
    """
    predicted_ids, measured_ids = _spot_ids(table, measured), _spot_ids(measured, table)
    place = measured_ids.get_indexer(predicted_ids)
    ours = np.flatnonzero((place >= 0) & counted[place])
    if not len(ours):
        raise ValueError(
            f"The predicted and the measured table share no spots: {listing(table.obs_names[:3])} against "
            f"{listing(measured.obs_names[:3])}."
        )
    learned = np.asarray(table.obs.get(_keys.MEASURED, np.zeros(table.n_obs)), dtype=bool)[ours]
    if learned.all():
        raise ValueError(
            f"All {len(ours)} spots that were measured are rows of the reference (`obs[{_keys.MEASURED!r}]`): the "
            "prediction learned from them, and none is held out. `rg.tl.cross_validate(reference, split='block')` "
            "tells how well gaps are filled; or compare with spots that the reference lacks: "
            "`rg.tl.evaluate(predicted, truth=measured)`."
        )
    if learned.any():
        logger.info("%d spots are rows of the reference, and are not compared.", learned.sum())
        ours = ours[~learned]
    if len(ours) < table.n_obs:
        logger.info("%d of %d predicted spots were measured.", len(ours), table.n_obs)
    return ours, place[ours]


@dataclass(frozen=True)
class Section:
    """Spots of one section that were predicted and measured."""

    sample: str
    every: np.ndarray
    """Rows in the predicted table of all spots that were measured, with or without a prediction."""
    rows: np.ndarray
    """(n,) rows in the predicted table of those with a prediction."""
    truth_rows: np.ndarray
    """(n,) rows of these n spots in the measured table."""
    values: np.ndarray
    """float32 (n, genes) predicted values, a view of the table where all of it is compared."""
    expected: sp.csr_matrix
    """float32 (n, genes) measured values."""


@dataclass(frozen=True)
class Comparison:
    """Genes and spots that a predicted and a measured table have both."""

    prediction: Prediction
    measured: AnnData
    genes: list[str]
    names: list[str]
    """All genes of the measured table, in the naming of the prediction."""
    counts: sp.csr_matrix | None
    """(measured spots, `names`), where the truth is counts."""
    truth: sp.csr_matrix
    """float32 (measured spots, genes) in the unit of the prediction."""
    rows: np.ndarray
    """Rows of the spots in the predicted table."""
    truth_rows: np.ndarray
    """Rows of the same spots in the measured table."""

    @cached_property
    def columns(self) -> np.ndarray:
        """Columns of the genes in the predicted table."""
        return self.prediction.genes(self.genes)

    def sections(self, sample_key: str) -> Iterator[Section]:
        """Section by section, by a column of the measured table; one section where it is not there."""
        samples = np.full(len(self.rows), "sample1")
        if sample_key in self.measured.obs:
            samples = labels(self.measured.obs[sample_key], missing=_keys.UNKNOWN)[self.truth_rows]
        for sample in dict.fromkeys(samples):
            every, truth_rows = self.rows[samples == sample], self.truth_rows[samples == sample]
            values = some_of(self.prediction.table.X, every, self.columns)
            spots = np.flatnonzero(np.isfinite(values).any(axis=1))
            rows, values = truth_rows[spots], some_of(values, spots)
            yield Section(sample, every, every[spots], rows, values, self.truth[rows])


def compare(
    prediction: Prediction, measured: AnnData, *, layer: str | None, unit: str, genes: str | Sequence[str] | None
) -> Comparison:
    """Spots and genes that both tables have, with the measured values in the unit of the prediction.

    Raises
    ------
    ValueError
        If the truth is not what `unit` says, or counts hold too few of the genes that size factors rest on.
    """
    require_choice(unit, UNITS, "unit")
    header, counts = prediction.header, None
    matrix, offered = stored_expression(measured, layer, "truth", "Name another table with `truth_key=`.")
    names = names_in(str(header["naming"]), offered, "The prediction", "the measured table")
    check_unit(matrix, unit, _WHERE, names)
    counted = np.asarray(matrix.sum(axis=1)).ravel() > 0
    if unit == "counts":
        counts, names = sum_duplicates(matrix, names)
        wanted = [str(gene) for gene in header["size_factor_genes"]]
        present = len(set(wanted) & set(names))
        if present < MIN_SHARED_GENES:
            raise ValueError(
                f"{_WHERE} holds {present} of the {len(wanted)} genes that size factors rest on; at least "
                f"{MIN_SHARED_GENES} are needed to bring it to the prediction's unit. "
                f"{why_few_shared(wanted, names, present)}"
            )
        factors = size_factors(counts, names, wanted)
        matrix, counted = log_normalize(counts, factors), factors > 0
    if genes is None:
        shared = shared_genes(list(prediction.table.var_names), names, "The predicted and the measured table")
    else:
        # A gene that neither table has is an error about the prediction.
        prediction.genes(genes)
        shared = names_among(genes, names, "genes", ": the measured table has no", KeyError)
    rows, truth_rows = _shared_spots(prediction.table, measured, counted)
    truth = take_genes(matrix, names, shared)
    return Comparison(prediction, measured, shared, names, counts, truth, rows, truth_rows)


def some_of(values: Any, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Rows and columns of a dense array; the array itself, uncopied, where these are all of it, in order."""

    def place(index: np.ndarray, length: int) -> Any:
        return slice(None) if np.array_equal(index, np.arange(length)) else index

    part = np.asarray(values[place(rows, values.shape[0])])
    return part if columns is None else part[:, place(columns, part.shape[1])]


def _spot_ids(table: AnnData, other: AnnData) -> pd.Index:
    """What identifies the spots of a table in comparison with another one.

    Raises
    ------
    ValueError
        If both annotate elements and those are not the same: equal names would then be different places.
    """
    regions, other_regions = regions_of(table), regions_of(other)
    if not regions or not other_regions:
        todo = "Spots are found by name, since one table annotates no element: take one section, or make them unique."
        require_unique(table.obs_names, "names of spots of a table", todo)
        return table.obs_names
    if not set(regions) & set(other_regions):
        raise ValueError(
            f"The predicted and the measured table annotate different elements: {listing(sorted(regions))} against "
            f"{listing(sorted(other_regions))}. Compare tables of the same spots."
        )
    attrs = table_attrs(table)
    ids = pd.MultiIndex.from_frame(table.obs[[attrs["region_key"], attrs["instance_key"]]].astype(str))
    require_unique(ids, "spots of a table", "Each spot needs one row.")
    return ids
