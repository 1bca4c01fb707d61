"""What a picture may claim: genes that failed cross-validation are grey, intervals not covering new donors hatched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap

from ragst_sd import _keys
from ragst_sd._results import Prediction
from ragst_sd._validate import listing, require_between
from ragst_sd.pl import _style


def distrust(prediction: Prediction, genes: np.ndarray, min_cv_pearson: float) -> list[str]:
    """For each gene, by its column, the words that it is not to be trusted, or nothing.

    A gene that was not assessed (`var["cv_pearson"]` is NaN or absent) gets no words: nothing is known against it.

    Raises
    ------
    ValueError
        If `min_cv_pearson` is not a correlation.
    """
    require_between(min_cv_pearson, -1, 1, "min_cv_pearson", "It is a correlation; -1 trusts every gene.")
    scores = prediction.table.var.reindex(columns=[_keys.CV_PEARSON]).iloc[genes, 0]
    words = "not to be trusted (cross-validated r = {})"
    return [words.format(_style.number(score, 2)) if score < min_cv_pearson else "" for score in scores]


def greys() -> Colormap:
    """For genes that are not to be trusted; the lightest grey still stands out from glass."""
    return LinearSegmentedColormap.from_list("distrust", ["0.88", "0.1"])


@dataclass(frozen=True)
class Intervals:
    """Prediction intervals of a table."""

    lower: np.ndarray
    """(spots, genes)"""
    upper: np.ndarray
    """(spots, genes)"""
    level: float
    unit: str
    """What the intervals were calibrated over."""

    @property
    def width(self) -> np.ndarray:
        return self.upper - self.lower

    @property
    def name(self) -> str:
        return f"{_style.percent(self.level)} interval"

    @property
    def caveat(self) -> str:
        """What must be said of them; nothing if they hold for new donors."""
        return "" if self.unit == _keys.DONOR else f"calibrated over {self.unit}s, not donors"

    @property
    def hatch(self) -> str | None:
        return "////" if self.caveat else None


def has_intervals(prediction: Prediction) -> bool:
    """Whether the prediction was made with intervals."""
    return _keys.LOWER in prediction.table.layers and _keys.UPPER in prediction.table.layers


def intervals_of(prediction: Prediction, genes: np.ndarray) -> Intervals:
    """The intervals of some genes, by their columns.

    Raises
    ------
    KeyError
        If the table has none.
    """
    if not has_intervals(prediction):
        names = [name for name in prediction.table.layers if name is not None]
        raise KeyError(
            f"The table has no intervals: it lacks the layers {listing([_keys.LOWER, _keys.UPPER])} and has "
            f"{listing(names)}. Predict again with `rg.tl.predict(..., intervals=0.9)`."
        )
    lower, upper = (prediction.values(genes, layer=name) for name in (_keys.LOWER, _keys.UPPER))
    header = prediction.header
    return Intervals(lower, upper, float(header[_keys.INTERVAL_LEVEL]), str(header[_keys.INTERVAL_UNIT]))
