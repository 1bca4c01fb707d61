"""How well grounded a prediction is: distances to the reference, on the scale of held-out rows of the reference itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import section_codes
from ragst_sd._results import MOST_UNLIKE, unlike_share
from ragst_sd.retrieval import appearance, grounding
from ragst_sd.retrieval.search import Eligibility, search
from ragst_sd.tl._eligibility import eligible_counts
from ragst_sd.tl._folds import group_codes

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.tl._query import Query

logger = logging.getLogger(__name__)


def calibrate_grounding(
    queries: np.ndarray, key: np.ndarray, groups: np.ndarray, n_neighbors: int, metric: str
) -> dict[str, np.ndarray]:
    """Distances of every row, as a query, to its nearest rows of other groups: the same share of these as of all rows."""
    eligibility = Eligibility(groups, groups, np.ones(len(key), dtype=bool))
    count = grounding.neighbours_to_compare(n_neighbors, eligibility.count(), len(key))
    found = search(queries, key, int(count.max()), eligibility=eligibility, metric=metric)
    distance = grounding.neighbourhood_distance(found.distances, count)
    return grounding.calibrate_distances(distance, groups)


def calibrate_raw(embedding: np.ndarray, sections: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """What a tile's raw embedding is compared with, and the distance beyond which it looks like no section."""
    parameters = appearance.fit_appearance(embedding, sections)
    threshold = appearance.calibrate_appearance(embedding, sections, groups, parameters)
    means = appearance.section_means(embedding, sections)
    return {**parameters, "means": means, "threshold": np.float64(threshold)}


def distance_in_phi(fit: dict[str, Any], nearby: np.ndarray, eligibility: Eligibility) -> np.ndarray:
    """(n,) mean of (n, k) distances to the nearest rows, over as many as in the calibration, however many are cited."""
    # Rows that `where` rejects are no smaller choice of the same tissue, but another reference.
    n_allowed = int(eligibility.allowed.sum())
    count = grounding.neighbours_to_compare(int(fit["n_neighbors"]), eligibility.count(), n_allowed)
    return grounding.neighbourhood_distance(nearby, count)


def groundedness(
    reference: AnnData,
    fit: dict[str, Any],
    *,
    used: np.ndarray,
    distance: np.ndarray,
    eligibility: Eligibility,
    raw: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Columns of `.obs` that tell how well grounded each query is.

    Parameters
    ----------
    used
        (n, k) rows that the prediction rests on, -1 for none; for methods that cite nobody the nearest ones.
    distance
        (n,) of :func:`distance_in_phi`.
    raw
        (n, d) embeddings as they were made; without them only distances in phi-space are judged.
    """
    donors = group_codes(reference, _keys.DONOR)
    threshold = float(fit["distance_threshold"])
    out = np.isfinite(threshold) & (distance > threshold)
    columns = {
        _keys.N_DONORS: _distinct(used, donors),
        _keys.DISTANCE_PERCENTILE: grounding.distance_percentile(distance, np.asarray(fit["distance_quantiles"])),
        _keys.OUT_OF_REFERENCE: out,
    }
    if raw is not None:
        look = fit["appearance"]
        rows, pattern = eligible_counts(eligibility, section_codes(reference))
        sections = (rows > 0)[pattern]
        far = appearance.appearance_distance(raw, np.asarray(look["means"]), look, sections)
        ratio = far / float(look["threshold"])
        columns[_keys.APPEARANCE_DISTANCE] = ratio
        columns[_keys.OUT_OF_REFERENCE] = out | (ratio > 1)
    return columns


def section_grounding(header: dict[str, Any], query: Query, obs: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the whole section lies from those of the reference, with a warning if most spots look like none of them."""
    means, stds = (np.asarray(header["sections"][name], dtype=float) for name in ("mean", "std"))
    mean = np.asarray(query.header["section_mean"], dtype=float)
    distance = obs[_keys.APPEARANCE_DISTANCE][query.finite]
    if unlike_share(distance) > MOST_UNLIKE:
        logger.warning(
            "%d of %d spots look unlike every section of the reference: other stain, scanner or resolution, or other "
            "tissue. They are marked in `out_of_reference`; `appearance_distance` says how far off they are.",
            int((distance > 1).sum()),
            len(distance),
        )
    return {
        "section_distance": grounding.section_distance(mean, means, stds),
        "section_distance_reference": grounding.largest_section_distance(means, stds),
    }


def _distinct(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Number of distinct groups among the rows of each query, -1 left out."""
    codes = np.sort(np.where(rows >= 0, groups[np.maximum(rows, 0)], -1), axis=1)
    new = np.diff(codes, axis=1, prepend=-1) != 0
    return (new & (codes >= 0)).sum(axis=1)
