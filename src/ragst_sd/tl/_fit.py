"""`rg.tl.fit`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import (
    fit_hash,
    id_order,
    panel_codes,
    reference_hash,
    reference_header,
    standardized_embedding,
)
from ragst_sd._validate import require_choice, require_key, require_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

logger = logging.getLogger(__name__)

DEFAULT_NEIGHBORS = 50
METRICS = ("euclidean", "cosine")


def fit(
    reference: AnnData,
    *,
    method: str = "knn",
    n_neighbors: int | None = None,
    n_candidates: int | None = None,
    group_key: str | None = None,
    metric: str = "euclidean",
    options: Mapping[str, Any] | None = None,
) -> None:
    r"""Fit a method on a reference.

    Every method searches neighbours in phi-space, the principal components of the (standardised) embeddings.
    `"knn"` averages the neighbours with fixed weights. `"ridge"` and `"mean"` cite nobody and are baselines.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference`.
    method
        `"knn"`, `"ridge"` or `"mean"`.
    n_neighbors
        Rows cited per spot at most; 50, or all rows of a smaller reference, if left out.
    n_candidates
        Rows compared per spot, of which the best are cited; `n_neighbors` if left out.
    group_key
        Column of `.obs` whose groups are held out whole when something is chosen or calibrated. If left out: donors;
        with one donor its sections; with one section four spatial blocks.
    metric
        `"euclidean"` or `"cosine"` distance in phi-space.
    options
        Options of the method. All: `n_components` (64). knn: `weighting` (`"distance"` or `"uniform"`), `sharpness`
        (2; how fast weights fall with distance). ridge: `alphas` to choose from.

    Returns
    -------
    `None`. Fields written to the reference:

    `.obsm["retrieval_key"]`
        float64 (n, p), the rows in phi-space.
    `.uns["ragst"]["fit"]`
        Method, parameters as plain arrays, calibration of distances, hashes of reference and fit. Replaces an earlier
        fit.

    Raises
    ------
    ValueError
        If the method or an option does not exist, `n_neighbors` exceeds the rows, or an embedding is NaN.

    Notes
    -----
    knn weights fall with distance as :math:`w_j \\propto \\exp(-s\\,d_j^2/d_K^2)`. Ridge solves
    :math:`(K^\\top K + \\alpha m I) B = K^\\top Y` on the m rows K in phi-space, with :math:`\\alpha` chosen on held-out
    groups.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=20)
    """
    from ragst_sd.retrieval.methods import fit_method, resolve_options
    from ragst_sd.retrieval.training import Training

    header = reference_header(reference)
    options = resolve_options(method, options)
    require_choice(metric, METRICS, "metric")
    n_neighbors, n_candidates = _counts(reference.n_obs, n_neighbors, n_candidates)
    folds, inner_groups = _inner_folds(reference, group_key)
    training = Training(
        embedding=standardized_embedding(reference, header),
        values=reference.X,
        panels=panel_codes(reference, header),
        measured=np.asarray(reference.varm[_keys.MEASURED]).T,
        folds=folds,
        sections=_codes(reference, _keys.SAMPLE),
    )
    parameters, key = fit_method(method, training, options)
    calibration = _calibrate(key, folds, n_neighbors, metric, id_order(reference))
    record = {
        "schema_version": _keys.SCHEMA_VERSION,
        "method": method,
        "n_neighbors": n_neighbors,
        "n_candidates": n_candidates,
        "metric": metric,
        "inner_groups": inner_groups,
        "parameters": parameters,
        **calibration,
        "reference_hash": reference_hash(reference),
    }
    if not np.isfinite(calibration["distance_threshold"]):
        logger.warning("No distances between groups could be calibrated: no spot will be called out of reference.")
    reference.obsm[_keys.RETRIEVAL_KEY] = key
    record["fit_hash"] = fit_hash(reference, header, record)
    owned = dict(reference.uns[_keys.ATTRS])
    owned["content_hash"] = record["reference_hash"]
    owned[_keys.FIT] = record
    reference.uns[_keys.ATTRS] = owned
    logger.info(
        "Fitted %r on %d rows: %d neighbours of %d candidates, %d components, %s held out to choose and calibrate.",
        method, reference.n_obs, n_neighbors, n_candidates, key.shape[1], inner_groups,
    )  # fmt: skip


def _counts(n_rows: int, n_neighbors: int | None, n_candidates: int | None) -> tuple[int, int]:
    if n_neighbors is None:
        n_neighbors = min(DEFAULT_NEIGHBORS, n_rows)
        logger.info("`n_neighbors` is %d.", n_neighbors)
    require_positive(n_neighbors, "n_neighbors", whole=True)
    if n_candidates is None:
        n_candidates = n_neighbors
    require_positive(n_candidates, "n_candidates", whole=True)
    for name, value in (("n_neighbors", n_neighbors), ("n_candidates", n_candidates)):
        if value > n_rows:
            msg = f"`{name}` is {value}, more than the {n_rows} rows of the reference. Ask for {n_rows} at most."
            raise ValueError(msg)
    if n_candidates < n_neighbors:
        msg = f"`n_candidates` is {n_candidates}, fewer than `n_neighbors` ({n_neighbors}) that are chosen from them."
        raise ValueError(msg)
    return int(n_neighbors), int(n_candidates)


def _codes(reference: AnnData, column: str) -> np.ndarray:
    return np.unique(reference.obs[column].astype(str).to_numpy(), return_inverse=True)[1]


def _inner_folds(reference: AnnData, group_key: str | None) -> tuple[np.ndarray, str]:
    """Groups to hold out, and what they are."""
    if group_key is not None:
        require_key(group_key, reference.obs, "reference.obs")
        folds = _codes(reference, group_key)
        if folds.max() < 1:
            only = reference.obs[group_key].iloc[0]
            msg = f"`group_key` {group_key!r} has one group only ({only!r}); holding it out leaves nothing."
            raise ValueError(msg)
        return folds, group_key
    for column in (_keys.DONOR, _keys.SAMPLE):
        folds = _codes(reference, column)
        if folds.max() >= 1:
            if column != _keys.DONOR:
                logger.warning("The reference has one donor only: sections are held out to choose and calibrate.")
            return folds, column
    logger.warning(
        "The reference has one section only: four spatial blocks are held out to choose and calibrate. "
        "Accuracy on other donors cannot be told from it."
    )
    x, y = (reference.obs[name].to_numpy(float) for name in (_keys.X_UM, _keys.Y_UM))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        # Without positions, consecutive rows are the closest thing to neighbours on the tissue.
        return np.arange(reference.n_obs) * 4 // reference.n_obs, "blocks of consecutive rows"
    return 2 * (x > np.median(x)) + (y > np.median(y)), "spatial blocks"


def _calibrate(
    key: np.ndarray, folds: np.ndarray, n_neighbors: int, metric: str, tie_order: np.ndarray
) -> dict[str, np.ndarray]:
    """Distances of every row to its nearest rows of other groups."""
    from ragst_sd.retrieval.grounding import calibrate_distances, neighbourhood_distance
    from ragst_sd.retrieval.search import Eligibility, search

    groups = folds[:, None]
    found = search(
        key,
        key,
        n_neighbors,
        eligibility=Eligibility(groups, groups, np.ones(len(key), dtype=bool)),
        tie_order=tie_order,
        metric=metric,
    )
    return calibrate_distances(neighbourhood_distance(found.distances))
