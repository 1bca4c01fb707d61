"""Fitting a method on a perturbation reference: the part of `rg.tl.fit` for that task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._bank import open_bank, with_cells
from ragst_sd._reference import perturbation_fit_hash
from ragst_sd._validate import listing, require_choice, require_key
from ragst_sd.reference.header import Fit
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.tl._fit_record import neighbor_counts, storable, write_fit

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
    from ragst_sd.tl._folds import group_codes

    bank = open_bank(reference, task=TASK, fitted=False)
    chosen = resolve_options(RESPONSE_METHODS, method, options, available="for a reference of perturbations available")
    _require_parts(bank, method)
    metric = METRICS[0] if metric is None else metric
    require_choice(metric, METRICS, "metric")
    known = RESPONSE_METHODS[method]
    cited, compared = neighbor_counts(
        len(bank), n_neighbors, n_candidates, cited=known.n_neighbors, compared=known.n_candidates
    )
    group_key = _keys.PERTURBATION if group_key is None else group_key
    require_key(group_key, list(reference.obs.columns), "reference.obs")
    bank = replace(bank, folds=group_codes(bank.obs, group_key), screen=replace(bank.screen, metric=metric))
    bank = with_cells(bank) if known.needs_cells and bank.screen.from_cells else bank
    run = replace(run, options=chosen, n_neighbors=cited, n_candidates=compared)
    # Sums follow the names of the rows, so that their order changes nothing.
    fit = Fit(
        method=method,
        n_neighbors=cited,
        n_candidates=compared,
        metric=metric,
        inner_groups=group_key,
        rng=run.rng,
        options=storable(asdict(chosen)),
        parameters=known.fit(bank.at_rows(np.argsort(bank.ids)), run),
        reference_hash=bank.header.content_hash,
    )
    record = fit.stored()
    record["fit_hash"] = perturbation_fit_hash(reference, record, bank.key)
    write_fit(reference, record, replace(bank, regression_key=None))
    logger.info(
        "Fitted %r on %d responses: %d neighbours of %d candidates.",
        method,
        reference.n_obs,
        cited,
        compared,
    )


def _require_parts(bank: Bank, method: str) -> None:
    """Raise a `ValueError` if the method needs an embedding of genes, and the reference has none."""
    known = RESPONSE_METHODS[method]
    # Given responses are compared by what other contexts say, too, by the methods that read them.
    needs = known.needs_embedding and (bank.screen.from_cells or not known.needs_cells)
    if needs and not bank.key.shape[1]:
        others = [name for name, one in RESPONSE_METHODS.items() if not one.needs_embedding]
        raise ValueError(
            f"The reference has no embedding of genes, and method {method!r} needs one. Build it with "
            "`rg.tl.build_perturbation_reference(responses, embedding=rg.tl.embed_genes(...))`, or fit a method that "
            f"needs none: {listing(others)}."
        )
