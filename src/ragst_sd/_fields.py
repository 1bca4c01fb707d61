"""What a predicted table holds: one list of fields, from which tables are written, read and documented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragst_sd import _keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Field:
    """One array of a predicted table."""

    place: Literal["X", "layers", "obsm", "varm", "obs", "var"]
    name: str
    """Its key there, and that of its values where they are computed."""
    about: str
    """What it is, in one sentence or two."""
    dtype: Any = np.float32
    outside: Any = np.nan
    """What a spot without an embedding has."""

    @property
    def path(self) -> str:
        """Where it stands, as users write it."""
        return ".X" if self.place == "X" else f'.{self.place}["{self.name}"]'

    @property
    def of_values(self) -> bool:
        """Whether it is (spots, genes)."""
        return self.place in ("X", "layers")


PREDICTION = Field("X", "prediction", 'The prediction, in the unit named by `.uns["retrieval"]["unit"]`.')
EVIDENCE = Field(
    "layers",
    _keys.EVIDENCE,
    "What the cited rows say: the weighted average of measured profiles, each relative to the mean of its section "
    'and put back on the mean of the rows that may be used; with `rag`, by its share `.var["retrieval_share"]`. `.X` '
    "minus this layer is the adjustment.",
)
POINTERS = (
    Field(
        "obsm",
        _keys.ROWS,
        '(spots, k) pointers into `.uns["retrieval"]["cited"]`; -1 where fewer than k rows are cited.',
        np.int32,
        -1,
    ),
    Field(
        "obsm", _keys.WEIGHTS, "(spots, k) weight of each of them, before genes that a row did not measure.", outside=0
    ),
    Field("obsm", _keys.DISTANCES, "(spots, k) distance to each of them."),
)
EFFECTIVE_N = Field(
    "obs", _keys.EFFECTIVE_N, "Effective number of cited rows, one over the sum of squared weights.", np.float64
)
EVIDENCE_SHARE = Field(
    "obs",
    _keys.EVIDENCE_SHARE,
    "How much of the departure from the average profile is evidence, not adjustment.",
    np.float64,
)
MARKS = (
    Field("obs", _keys.PREDICTION_ID, 'Id of the prediction, as in `.uns["retrieval"]["prediction_id"]`.', "category"),
    Field(
        "obs",
        _keys.PREDICTION_SUM,
        "Sum of `.X` with weights by the names of genes, by which changes are noticed; `.var` has it too.",
        np.float64,
    ),
)
# Of `rg.tl.predict`, in the order in which they are written.
TISSUE = (
    PREDICTION,
    EVIDENCE,
    Field(
        "layers",
        _keys.DISAGREEMENT,
        "Weighted standard deviation of what the cited rows bring; of the nearest rows, equally weighted, for "
        "methods that cite no rows.",
    ),
    Field("layers", _keys.LOWER, "With `intervals`: lower limit; not below zero unless `.X` is."),
    Field("layers", _keys.UPPER, "With `intervals`: upper limit. NaN for genes without a quantile."),
    *POINTERS,
    Field(
        "obsm",
        _keys.REGRESSION_KEY,
        "With `rag`: (spots, q) the spots as its regression takes them, from which :func:`ragst_sd.get.explain` resolves "
        "it into rows.",
    ),
    Field(
        "obsm",
        _keys.CELL_TYPE_FRACTION,
        "(spots, types) if the reference has cell types and the method cites: fractions of the cited rows by the "
        "same weights, over the rows that have fractions.",
    ),
    Field(
        "varm",
        _keys.INTERVAL_QUANTILES,
        "(genes, levels) half widths of all calibrated levels, in units of the spot's scale: that of another level "
        "is its quantile times `upper - X` over the quantile of this one.",
    ),
    EFFECTIVE_N,
    Field(
        "obs",
        _keys.N_DONORS,
        "Number of donors among the cited rows; among the nearest rows for methods that cite no rows.",
        np.int64,
        0,
    ),
    EVIDENCE_SHARE,
    Field(
        "obs",
        _keys.DISTANCE_PERCENTILE,
        "How far the nearest measured tissue is in phi-space, as a percentile (0 to 100) among held-out donors of "
        "the reference.",
        np.float64,
    ),
    Field(
        "obs",
        _keys.APPEARANCE_DISTANCE,
        "Distance of the raw embedding to the nearest section of the reference, over the threshold that `fit` "
        "calibrated on held-out donors.",
        np.float64,
    ),
    Field(
        "obs",
        _keys.OUT_OF_REFERENCE,
        "Whether `distance_percentile` lies above 98 or `appearance_distance` above 1.",
        bool,
        outside=True,
    ),
    Field(
        "obs",
        _keys.LEVEL,
        'Where spots may use different rows: the line of `.uns["retrieval"]["level_rows"]` that holds.',
        np.int64,
        0,
    ),
    *MARKS,
    Field("var", _keys.N_MEASURED, "Number of reference rows that measured the gene.", np.int64),
    Field(
        "var",
        _keys.REFERENCE_VARIANCE,
        "Variance of the gene over the reference; NaN if not every panel measured it.",
        np.float64,
    ),
    Field(
        "var",
        _keys.CV_PEARSON,
        "Accuracy of the fitted method on held-out donors; NaN if it was not assessed, or if what is known is of "
        "another fit.",
        np.float64,
    ),
    Field("var", _keys.NOISE_CEILING, "The most that the noise of the counts allows.", np.float64),
    Field(
        "var",
        _keys.RETRIEVAL_SHARE,
        "Share of the cited rows in the prediction, from 0 to 1, as held-out groups decided; the rest is that of a "
        "regression. 1 for other methods that cite, else 0.",
        np.float64,
    ),
    Field(
        "var", _keys.EVIDENCE, 'Whether the gene was `"measured"` in tissue or comes from `"scRNA-seq"`.', "category"
    ),
)


_OF_RESPONSES = (
    Field("X", "prediction", "The source cell plus the response; not clipped, so that it can be below zero."),
    Field("layers", _keys.RESPONSE, "The predicted response."),
    Field(
        "layers",
        _keys.EVIDENCE,
        "Weighted mean of the measured responses that are cited; the response minus this layer is the adjustment.",
    ),
)
_GROUNDED = (
    *POINTERS,
    EFFECTIVE_N,
    EVIDENCE_SHARE,
    Field("obs", _keys.CITED_RELIABILITY, "Weighted mean reliability of the cited rows.", np.float64),
    Field(
        "obs",
        _keys.EMBEDDING_SHARE,
        'With `"rag"`: how much of the perturbation\'s embedding the rows that may be used span, from 0 to 1. All '
        "that it adds to their mean is multiplied with it.",
        np.float64,
    ),
    Field(
        "obs",
        _keys.TASK,
        'What the rows that may be used hold of the perturbation: `"unseen perturbation"` (nothing), `"unseen here"` '
        '(another context measured it), `"measured here"`, or `"control"`.',
        "category",
    ),
)
_ASKED = (
    Field("obs", _keys.PERTURBATION, "As asked for.", "category"),
    Field("obs", _keys.CONTEXT, "Context of the cell.", "category"),
    Field("obs", _keys.SOURCE, "Name of the cell, or of the spot; of the context, without cells.", object),
)
# Of `rg.tl.perturb`.
RESPONSES = (*_OF_RESPONSES, *_GROUNDED, *_ASKED, *MARKS)
# Of `rg.tl.perturb_tissue`.
TISSUE_RESPONSES = (
    *_OF_RESPONSES,
    Field(
        "layers",
        _keys.STANDARD_ERROR,
        "Standard errors of the cited responses by their weights, an upper bound that supposes shared controls; NaN "
        "where nobody is cited. It says how well the responses were measured, not whether they hold in tissue.",
    ),
    Field(
        "layers",
        _keys.LOWER,
        "Where the table was predicted with intervals: these, moved by the response and widened by its standard "
        "error at the same level.",
    ),
    Field("layers", _keys.UPPER, "The upper ends of them."),
    *_GROUNDED,
    *_ASKED,
    Field(
        "obs",
        _keys.RESPONSE_MAGNITUDE,
        "Root mean square of the response over genes; the mean over spots for all where the response does not vary "
        "more than by chance.",
        np.float64,
    ),
    Field(
        "obs",
        _keys.STATE_DISTANCE,
        "Distance of the spot's state to the nearest context of the screen, over the 98th percentile of that of sets "
        "of as many controls.",
        np.float64,
    ),
    Field("obs", _keys.STATE_PERCENTILE, "Percentile of it among those.", np.float64),
    Field("obs", _keys.FAR_FROM_SCREEN, "Whether the distance is above 1.", bool),
    *MARKS,
)


def fill(fields: Sequence[Field], values: Mapping[str, Any], outside: np.ndarray) -> dict[str, dict[str, Any]]:
    """Values by place and key, in their types; what is computed on disk is taken as it is.

    Parameters
    ----------
    values
        By name of the field; a field without values is left out.
    outside
        (n,) spots without an embedding.
    """
    filled: dict[str, dict[str, Any]] = {}
    for one in fields:
        array = values.get(one.name if one.place != "var" else f"var/{one.name}")
        if array is None:
            continue
        if not hasattr(array, "dask") and not isinstance(one.dtype, str):
            masked = one.place not in ("var", "varm") and outside.any()
            array = np.array(array) if masked else np.asarray(array)
            if masked:
                array[outside] = one.outside
            array = array.astype(one.dtype, copy=False)
        filled.setdefault(one.place, {})[one.name] = array
    return filled


def stored_fields(fields: Sequence[Field], *, intervals: bool) -> list[Field]:
    """Fields of (spots, genes) that are written block by block."""
    limits = (_keys.LOWER, _keys.UPPER)
    return [one for one in fields if one.of_values and (intervals or one.name not in limits)]


def returns(fields: Sequence[Field]) -> str:
    """The fields as the Returns section of a docstring lists them."""
    return "\n".join(f"    `{one.path}`\n        {one.about}" for one in fields).lstrip()


def page_table(fields: Sequence[Field]) -> str:
    """The fields as a table of Markdown."""
    lines = [f"| `{one.path}` | {one.about} |" for one in fields]
    return "\n".join(["| place | content |", "|---|---|", *lines])


def documented(fields: Sequence[Field]) -> Callable[[Any], Any]:
    """A decorator that puts the fields where the docstring says `{fields}`."""

    def fill_in(function: Any) -> Any:
        if function.__doc__:
            function.__doc__ = function.__doc__.replace("{fields}", returns(fields))
        return function

    return fill_in
