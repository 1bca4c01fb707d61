"""A perturbation reference as the arrays that methods of responses work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._reference import id_order
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.perturbations import components
from ragst_sd.retrieval.responses import Asked, Bank, Cells
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ragst_sd.tl._perturbation_cells import Expression


def response_bank(
    reference: AnnData, header: dict[str, Any], *, metric: str, folds: np.ndarray | None = None, cells: bool = False
) -> Bank:
    """Rows of the reference, in its order; with the samples of cells if a method needs them."""
    perturbations = labels(reference.obs[_keys.PERTURBATION])
    first, second = (dense(reference.layers[name]).astype(np.float64) for name in _keys.RESPONSE_HALVES)
    return Bank(
        key=np.asarray(reference.obsm[header["use_rep"]], dtype=np.float64),
        values=dense(reference.X).astype(np.float64),
        halves=(first, second),
        genes=tuple(components(name, str(header["control"])) for name in perturbations),
        contexts=context_codes(labels(reference.obs[_keys.CONTEXT]), header),
        folds=np.unique(perturbations.astype(str), return_inverse=True)[1] if folds is None else folds,
        order=id_order(reference),
        metric=metric,
        state=np.asarray(header["contexts"]["mean"], dtype=np.float64),
        reliability=np.nan_to_num(reference.obs[_keys.RELIABILITY].to_numpy(dtype=np.float64)),
        cells=_cells(reference, header) if cells else None,
    )


def _cells(reference: AnnData, header: dict[str, Any]) -> Cells:
    """The samples of cells, in float32; cells of rows that are no longer there are left out."""
    controls, treated = header["controls"], header["treated"]
    rows = reference.obs_names.get_indexer([str(name) for name in treated["row"]])
    there = np.flatnonzero(rows >= 0)
    return Cells(
        controls=dense(as_csr(controls["values"])).astype(np.float32),
        contexts=context_codes(np.array([str(one) for one in controls["context"]], dtype=object), header),
        treated=dense(as_csr(treated["values"])[there]).astype(np.float32),
        rows=rows[there],
    )


def context_codes(contexts: np.ndarray, header: dict[str, Any]) -> np.ndarray:
    """Position of each context in the header, -1 for a new one."""
    place = {str(name): i for i, name in enumerate(header["contexts"]["context"])}
    return np.array([place.get(str(name), -1) for name in contexts], dtype=np.int64)


def states_of_contexts(
    header: dict[str, Any], expression: Expression, genes: Sequence[str], contexts: np.ndarray
) -> dict[str, np.ndarray]:
    """(g,) mean expression of the cells of each context on the genes of the reference.

    Genes that the cells lack are NaN: they say nothing of the state.
    """
    values = take_genes(expression.values, expression.genes, genes).astype(np.float64)
    lacking = ~np.isin(genes, expression.genes)
    states = {}
    for context in np.unique(np.asarray(contexts, dtype=str)).tolist():
        states[context] = np.where(lacking, np.nan, np.asarray(values[contexts == context].mean(axis=0)).ravel())
    return states


def asked_of(
    reference: AnnData,
    header: dict[str, Any],
    pairs: Sequence[tuple[str, str]],
    key: np.ndarray,
    allowed: np.ndarray,
    exclude: Sequence[str],
    state: np.ndarray | None,
) -> Asked:
    """Queries, each with the rows that it may use: those that differ from it in one of the columns of `exclude`.

    `state` is the (q, g) mean expression of the cells asked about; left out, that of their context in the reference.
    """
    perturbations, contexts = (np.array([pair[i] for pair in pairs], dtype=object) for i in (0, 1))
    eligible = np.broadcast_to(allowed, (len(pairs), reference.n_obs)).copy()
    if exclude:
        same = np.ones_like(eligible)
        own = {_keys.PERTURBATION: perturbations, _keys.CONTEXT: contexts}
        for name in exclude:
            same &= own[name][:, None] == labels(reference.obs[name])[None, :]
        eligible &= ~same
    return Asked(
        key=key,
        genes=tuple(components(name, str(header["control"])) for name in perturbations),
        contexts=context_codes(contexts, header),
        eligible=eligible,
        state=state,
    )
