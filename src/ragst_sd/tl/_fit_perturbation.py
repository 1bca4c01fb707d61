"""Fitting a method on a perturbation reference: the part of `rg.tl.fit` for that task."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._perturbation_reference import perturbation_fit_hash, perturbation_hash, perturbation_header
from ragst_sd._validate import require_choice, require_key
from ragst_sd.tl._fit_record import neighbor_counts, storable, write_fit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from ragst_sd.retrieval.bank import Run

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
    from ragst_sd.tl._folds import group_codes
    from ragst_sd.tl._response_bank import response_bank

    header = perturbation_header(reference)
    chosen = resolve_options(RESPONSE_METHODS, method, options, available="for a reference of perturbations available")
    metric = METRICS[0] if metric is None else metric
    require_choice(metric, METRICS, "metric")
    known = RESPONSE_METHODS[method]
    n_neighbors, n_candidates = neighbor_counts(
        reference.n_obs, n_neighbors, n_candidates, cited=known.n_neighbors, compared=known.n_candidates
    )
    group_key = _keys.PERTURBATION if group_key is None else group_key
    require_key(group_key, list(reference.obs.columns), "reference.obs")
    # Sums follow the names of the rows, so that their order changes nothing.
    ordered = reference[np.argsort(np.asarray(reference.obs_names, dtype=str))]
    folds = group_codes(ordered.obs, group_key)
    bank = response_bank(ordered, header, metric=metric, folds=folds, cells=known.needs_cells)
    run = replace(run, options=chosen, n_neighbors=n_neighbors, n_candidates=n_candidates)
    parameters = known.fit(bank, run)
    record = {
        "schema_version": _keys.SCHEMA_VERSION,
        "method": method,
        "n_neighbors": n_neighbors,
        "n_candidates": n_candidates,
        "metric": metric,
        "inner_groups": group_key,
        "rng": run.rng,
        "options": storable(asdict(chosen)),
        "parameters": parameters,
        "reference_hash": perturbation_hash(reference),
    }
    key = np.asarray(reference.obsm[header["use_rep"]], dtype=np.float64)
    record["fit_hash"] = perturbation_fit_hash(reference, record, key)
    write_fit(reference, record, key)
    logger.info(
        "Fitted %r on %d responses: %d neighbours of %d candidates.",
        method,
        reference.n_obs,
        n_neighbors,
        n_candidates,
    )
