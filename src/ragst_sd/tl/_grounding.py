"""How well grounded a prediction is: distances to the reference, on the scale of held-out rows of the reference itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.tl._query import Query

logger = logging.getLogger(__name__)


def calibrate_grounding(
    queries: np.ndarray,
    key: np.ndarray,
    groups: np.ndarray,
    n_neighbors: int,
    metric: str,
) -> dict[str, np.ndarray]:
    """Distances of every row, as a query, to its nearest rows of other groups."""
    from ragst_sd.retrieval.grounding import calibrate_distances, neighbourhood_distance
    from ragst_sd.retrieval.search import Eligibility, search

    found = search(
        queries,
        key,
        n_neighbors,
        eligibility=Eligibility(groups, groups, np.ones(len(key), dtype=bool)),
        metric=metric,
    )
    return calibrate_distances(neighbourhood_distance(found.distances))


def groundedness(
    reference: AnnData, fit: dict[str, Any], *, used: np.ndarray, distance: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of `.obs` that tell how well grounded each query is.

    Parameters
    ----------
    used
        (n, k) rows that the prediction rests on, -1 for none; for methods that cite nobody the nearest ones.
    distance
        (n,) mean distance to the nearest rows, as many as in the calibration.
    """
    from ragst_sd.retrieval.grounding import distance_percentile

    donors = np.unique(reference.obs[_keys.DONOR].astype(str).to_numpy(), return_inverse=True)[1]
    threshold = float(fit["distance_threshold"])
    return {
        _keys.N_DONORS: _distinct(used, donors),
        _keys.DISTANCE_PERCENTILE: distance_percentile(distance, np.asarray(fit["distance_quantiles"])),
        _keys.OUT_OF_REFERENCE: np.isfinite(threshold) & (distance > threshold),
    }


def section_grounding(header: dict[str, Any], query: Query) -> dict[str, float]:
    """How far the whole section lies from those of the reference, with a warning if that is far."""
    from ragst_sd.retrieval.grounding import largest_section_distance, section_distance

    means, stds = (np.asarray(header["sections"][name], dtype=float) for name in ("mean", "std"))
    own = section_distance(np.asarray(query.header["section_mean"], dtype=float), means, stds)
    among = largest_section_distance(means, stds)
    if own > among:
        logger.warning(
            "The section as a whole lies %.2g spreads from the sections of the reference, which lie %.2g from each other "
            "at most: other stain, scanner or resolution, or other tissue. Section by section standardisation hides this "
            "from `out_of_reference`.",
            own, among,
        )  # fmt: skip
    return {"section_distance": own, "section_distance_reference": among}


def _distinct(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Number of distinct groups among the rows of each query, -1 left out."""
    codes = np.sort(np.where(rows >= 0, groups[np.maximum(rows, 0)], -1), axis=1)
    new = np.diff(codes, axis=1, prepend=-1) != 0
    return (new & (codes >= 0)).sum(axis=1)
