"""Fitting a method on a perturbation reference: the part of `rg.tl.fit` for that task."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._perturbation_reference import perturbation_fit_hash, perturbation_hash, perturbation_header
from ragst_sd._validate import require_choice, require_key, require_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from ragst_sd.retrieval.response_methods import ResponseMethod
    from ragst_sd.retrieval.training import Run

logger = logging.getLogger(__name__)

METRICS = ("cosine", "euclidean")


def fit_perturbation(
    reference: AnnData,
    method: str,
    *,
    n_neighbors: int | None,
    n_candidates: int | None,
    group_key: str | None,
    metric: str | None,
    options: Mapping[str, Any] | None,
    run: Run,
) -> None:
    """Fit `method` and write `.obsm["retrieval_key"]` and `.uns["ragst"]["fit"]`; see :func:`ragst_sd.tl.fit`."""
    from ragst_sd.retrieval.options import resolve_options
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
    from ragst_sd.tl._groups import group_codes
    from ragst_sd.tl._response_bank import response_bank

    header = perturbation_header(reference)
    options = resolve_options(RESPONSE_METHODS, method, options, available="for a reference of perturbations available")
    metric = METRICS[0] if metric is None else metric
    require_choice(metric, METRICS, "metric")
    n_neighbors, n_candidates = _counts(reference.n_obs, n_neighbors, n_candidates, RESPONSE_METHODS[method])
    group_key = _keys.PERTURBATION if group_key is None else group_key
    require_key(group_key, list(reference.obs.columns), "reference.obs")
    # Sums follow the names of the rows, so that their order changes nothing.
    ordered = reference[np.argsort(np.asarray(reference.obs_names, dtype=str))]
    bank = response_bank(
        ordered,
        header,
        metric=metric,
        folds=group_codes(ordered, group_key),
        cells=RESPONSE_METHODS[method].needs_cells,
    )
    run = replace(run, n_neighbors=n_neighbors, n_candidates=n_candidates)
    parameters = RESPONSE_METHODS[method].fit(bank, options, run)
    record = {
        "schema_version": _keys.SCHEMA_VERSION,
        "method": method,
        "n_neighbors": n_neighbors,
        "n_candidates": n_candidates,
        "metric": metric,
        "inner_groups": group_key,
        "rng": run.rng,
        "options": {name: np.asarray(value) if isinstance(value, tuple) else value for name, value in options.items()},
        "parameters": parameters,
        "reference_hash": perturbation_hash(reference),
    }
    key = np.asarray(reference.obsm[header["use_rep"]], dtype=np.float64)
    record["fit_hash"] = perturbation_fit_hash(reference, record, key)
    owned = dict(reference.uns[_keys.ATTRS])
    owned["content_hash"] = record["reference_hash"]
    owned[_keys.FIT] = record
    reference.obsm[_keys.RETRIEVAL_KEY] = key
    reference.uns[_keys.ATTRS] = owned
    logger.info(
        "Fitted %r on %d responses: %d neighbours of %d candidates.",
        method, reference.n_obs, n_neighbors, n_candidates,
    )  # fmt: skip


def _counts(n_rows: int, n_neighbors: int | None, n_candidates: int | None, method: ResponseMethod) -> tuple[int, int]:
    for name, value in (("n_neighbors", n_neighbors), ("n_candidates", n_candidates)):
        if value is None:
            continue
        require_positive(value, name, whole=True)
        if value > n_rows:
            msg = f"`{name}` is {value}, more than the {n_rows} rows of the reference. Ask for {n_rows} at most."
            raise ValueError(msg)
    if n_neighbors is None:
        n_neighbors = min(method.n_neighbors, n_rows if n_candidates is None else n_candidates)
        logger.info("`n_neighbors` is %d.", n_neighbors)
    if n_candidates is None:
        n_candidates = max(n_neighbors, min(method.n_candidates, n_rows))
    if n_candidates < n_neighbors:
        msg = f"`n_candidates` is {n_candidates}, fewer than `n_neighbors` ({n_neighbors}) that are chosen from them."
        raise ValueError(msg)
    return int(n_neighbors), int(n_candidates)
