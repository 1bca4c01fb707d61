"""Fitting a method on the rows of a bank: the part of `rg.tl.fit` for tissue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ragst_sd._query import fit_state, state_of
from ragst_sd.reference.header import Fit
from ragst_sd.retrieval.appearance import calibrate_raw
from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.grounding import calibrate_grounding
from ragst_sd.retrieval.methods import METHODS, fit_method
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.tl._fit_record import neighbor_counts, storable
from ragst_sd.tl._folds import fitting_folds

logger = logging.getLogger(__name__)

DEFAULT_NEIGHBORS = 50


def fit_tissue(
    bank: Bank,
    method: str,
    run: Run,
    *,
    raw: np.ndarray,
    n_neighbors: int | None,
    n_candidates: int | None,
    group_key: str | None,
    metric: str,
    shared: dict[str, Any] | None = None,
) -> Bank:
    """The bank with a fit and its rows in phi-space, of which no hash is known yet.

    Parameters
    ----------
    bank
        With standardised embeddings, in memory.
    raw
        (m, d) embeddings as they were made.
    shared
        What fits of the same rows, with the same groups held out, have in common: filled by the first of them.
    """
    shared = {} if shared is None else shared
    cited, compared = neighbor_counts(len(bank), n_neighbors, n_candidates, cited=DEFAULT_NEIGHBORS)
    folds, inner_groups, beside = fitting_folds(bank, group_key)
    # Sums and batches follow the ids, so that the order of the rows changes nothing.
    order = np.argsort(bank.order)
    back = np.argsort(order)
    training = replace(bank, folds=folds, beside=beside).at_rows(order)
    state: dict[str, Any] = {}
    if getattr(run.options, "gate_hidden", 0):
        state = fit_state(training.obs, training.embedding, len(np.atleast_1d(bank.header.encoder["context"])))
    types = training.types if getattr(run.options, "cell_types", False) else None
    if getattr(run.options, "cell_types", False) and types is None:
        raise ValueError("`cell_types` is True, but the reference has no cell types. Run `rg.tl.add_cell_types` first.")
    training = replace(
        training,
        state=state_of(state, training.obs, training.embedding),
        types=None if types is None else np.asarray(types, dtype=np.float64),
    )
    run = replace(run, n_neighbors=cited, n_candidates=compared, held_out=inner_groups)
    n_components = int(run.options.n_components)
    components = _once(shared, f"{n_components} components", lambda: fit_pca(training.embedding, n_components))
    parameters, key, queries, features = fit_method(method, training, run, components=components)
    calibration: dict[str, Any] = calibrate_grounding(queries, key, training.groups, cited, metric)
    appearance = _once(shared, "appearance", lambda: calibrate_raw(raw[order], training.sections, training.groups))
    parameters |= {name: parameters[name][back] for name in METHODS[method].per_row}
    if not np.isfinite(calibration["distance_threshold"]):
        logger.warning("No distances between groups could be calibrated: no spot will be called out of reference.")
    fit = Fit(
        method=method,
        n_neighbors=cited,
        n_candidates=compared,
        metric=metric,
        inner_groups=inner_groups,
        # A store keeps no None; no column has an empty name.
        group_key="" if group_key is None else str(group_key),
        rng=run.rng,
        options=storable(asdict(run.options)),
        parameters={**state, **parameters},
        appearance=appearance,
        **calibration,
    )
    return replace(bank, fit=fit, key=key[back], regression_key=None if features is None else features[back])


def _once(shared: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    """What is shared under this name, made where it is not there yet."""
    if name not in shared:
        shared[name] = make()
    return shared[name]
