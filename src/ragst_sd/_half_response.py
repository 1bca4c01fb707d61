"""The response that a prediction would be with half of the controls, which shares none with the other half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._bank import open_bank
from ragst_sd._eligibility import where_of
from ragst_sd._reference import perturbation_header
from ragst_sd._respond import Task, prepare
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

# What single precision leaves of a sum over rows.
_SAME = 1e-3


def response_from_half(
    reference: AnnData,
    header: Mapping[str, Any],
    perturbation: str,
    context: str,
    response: np.ndarray,
    genes: list[str],
    state: np.ndarray | None,
) -> np.ndarray | None:
    """(g,) response that the fitted method predicts if all measured responses are against half 1 of the controls.

    What was measured against half 2 shares no controls with it. `None`, if the prediction cannot be made again: the
    reference was fitted anew, each spot has its own response, or a network has learned from all controls.

    Parameters
    ----------
    header
        Of the prediction.
    response
        (g,) the prediction at hand.
    state
        (g,) mean expression of the cells asked about; that of the context if left out.
    """
    if _keys.FIT not in perturbation_header(reference):
        return None
    bank = open_bank(reference, task=TASK)
    method, n_neighbors = RESPONSE_METHODS[bank.fit.method], int(header["n_neighbors"])
    if bank.fit.fit_hash != str(header["fit_hash"]) or method.learns == "values":
        return None
    at, whole = bank.genes.get_indexer(genes), None
    if state is not None:
        whole = np.full((1, len(bank.genes)), np.nan)
        whole[0, at] = state
    everybody = method.cites_candidates and n_neighbors == bank.fit.n_neighbors
    exclude = [str(name) for name in np.atleast_1d(header["exclude"])]
    task = Task(bank, None if everybody else n_neighbors, exclude, where_of(bank.ids, header))
    ready = prepare(task, [(perturbation, context)], whole)

    def answer(values: np.ndarray) -> np.ndarray:
        _, again = replace(ready, bank=replace(ready.bank, values=values)).answer(ready.query)
        return np.asarray((again.evidence + again.adjustment)[0, at])

    if np.abs(answer(ready.bank.values) - response).max() > _SAME * np.abs(response).max() + 1e-6:
        return None
    return answer(ready.bank.screen.halves[0])
