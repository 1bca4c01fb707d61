"""A predicted response once more, from responses against one half of the controls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._perturbation_reference import perturbation_fit, perturbation_header
from ragst_sd.tl._eligibility import allowed_rows, where_of
from ragst_sd.tl._gene_embedding import embed, lookup
from ragst_sd.tl._respond import prepare

if TYPE_CHECKING:
    from anndata import AnnData

# What single precision leaves of a sum over rows.
_SAME = 1e-3


def response_from_half(
    reference: AnnData,
    header: dict[str, Any],
    perturbation: str,
    context: str,
    response: np.ndarray,
    genes: list[str],
    state: np.ndarray | None,
) -> np.ndarray | None:
    """(g,) response that the fitted method predicts where every measured response is the one against half 1 of the controls.

    What was measured against half 2 shares no controls with it. Nothing, if the prediction at hand cannot be made again:
    the reference was fitted anew since, each spot has a response of its own, or a network has learned from all controls.

    Parameters
    ----------
    header
        Of the prediction.
    response
        (g,) the prediction at hand.
    state
        (g,) mean expression of the cells asked about; that of the context if left out.
    """
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

    own = perturbation_header(reference)
    if _keys.FIT not in reference.uns[_keys.ATTRS]:
        return None
    fit = perturbation_fit(reference)
    method, n_neighbors = RESPONSE_METHODS[str(fit["method"])], int(header["n_neighbors"])
    if str(fit["fit_hash"]) != str(header["fit_hash"]) or method.learns == "responses":
        return None
    at, whole = reference.var_names.get_indexer(genes), None
    if state is not None:
        whole = np.full((1, reference.n_vars), np.nan)
        whole[0, at] = state
    everybody = method.cites_candidates and n_neighbors == int(fit["n_neighbors"])
    ready = prepare(
        reference, own, fit, [(perturbation, context)],
        embed([perturbation], str(own["control"]), lookup(own["embedding"])),
        n_neighbors=None if everybody else n_neighbors,
        exclude=[str(one) for one in np.atleast_1d(header["exclude"])],
        allowed=allowed_rows(reference, where_of(reference, header)), state=whole,
    )  # fmt: skip

    def answer(values: np.ndarray) -> np.ndarray:
        found = replace(ready, bank=replace(ready.bank, values=values)).answer(ready.asked)
        return np.asarray((found.evidence + found.adjustment)[0, at])

    if np.abs(answer(ready.bank.values) - response).max() > _SAME * np.abs(response).max() + 1e-6:
        return None
    return answer(ready.bank.halves[0])
