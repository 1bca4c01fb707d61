"""The table that `perturb` returns, with its provenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.reference.perturbation_schema import TASK
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._predicted_table import cite_rows, software

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

_CITED = (_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE)
_CITED_NUMBERS = {_keys.N_CELLS: np.int64, _keys.RELIABILITY: np.float64}


@dataclass(frozen=True)
class Responded:
    """Predicted responses, one line per perturbation and context; genes are those of the reference."""

    rows: np.ndarray
    weights: np.ndarray
    distances: np.ndarray
    evidence: np.ndarray
    response: np.ndarray
    effective_n: np.ndarray
    evidence_share: np.ndarray
    embedding_share: np.ndarray | None = None
    """Of methods that have one: how much of the embedding the usable rows span."""
    learned_from: dict[str, Any] = field(default_factory=lambda: pairs_learned("", []))
    """Perturbations and contexts whose left-out response the method has learned from."""


def no_response(n: int, n_genes: int) -> Responded:
    """No response, resting on nobody."""
    rows, nothing, unknown = np.full((n, 1), -1), np.zeros((n, n_genes)), np.full(n, np.nan)
    return Responded(rows, np.zeros((n, 1)), np.full((n, 1), np.nan), nothing, nothing, unknown, unknown)


def perturbed_table(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    responded: Responded,
    *,
    values: sp.csr_matrix,
    genes: list[str],
    cells: np.ndarray,
    contexts: np.ndarray,
    names: dict[str, str],
    pairs: list[tuple[str, str]],
    settings: dict[str, Any],
) -> AnnData:
    """Every cell once for every perturbation; see :func:`ragst_sd.tl.perturb` for the fields.

    Parameters
    ----------
    values
        (cells, genes) expression of the source cells.
    names
        Perturbations as they were asked for, and their one spelling.
    pairs
        Perturbation and context of each line of `responded`.
    """
    import anndata as ad
    import pandas as pd

    line_of = {pair: i for i, pair in enumerate(pairs)}
    # The last line is the control's: no response, nothing cited.
    line = np.concatenate(
        [[line_of.get((one, context), len(pairs)) for context in contexts] for one in names.values()]
    ).astype(np.int64)
    at = reference.var_names.get_indexer(genes)

    def spread(part: np.ndarray, missing: float, dtype: type = np.float32) -> np.ndarray:
        out = np.full((len(pairs) + 1, *part.shape[1:]), missing, dtype=dtype)
        out[:-1] = part
        return out[line]

    response, evidence = (spread(part[:, at], 0) for part in (responded.response, responded.evidence))
    pointers, cited = cite_responses(reference, responded.rows)
    source = np.tile(dense(values).astype(np.float32), (len(names), 1))
    asked = np.repeat(np.asarray(list(names), dtype=object), len(cells))
    repeated = np.tile(cells.astype(object), len(names))
    obs = pd.DataFrame(
        {
            _keys.PERTURBATION: pd.Categorical(asked),
            _keys.CONTEXT: pd.Categorical(np.tile(contexts, len(names))),
            _keys.SOURCE: repeated,
            _keys.EFFECTIVE_N: spread(responded.effective_n, np.nan, np.float64),
            _keys.EVIDENCE_SHARE: spread(responded.evidence_share, np.nan, np.float64),
            _keys.CITED_RELIABILITY: spread(cited_reliability(responded.weights, cited, pointers), np.nan, np.float64),
        },
        index=[f"{cell}:{name}" for cell, name in zip(repeated, asked, strict=True)],
    )
    if responded.embedding_share is not None:
        obs[_keys.EMBEDDING_SHARE] = spread(responded.embedding_share, np.nan, np.float64)
    table = ad.AnnData(
        source + response,
        obs=obs,
        var=pd.DataFrame(index=pd.Index(genes, name="gene")),
        layers={_keys.RESPONSE: response, _keys.EVIDENCE: evidence},
        obsm={
            _keys.ROWS: spread(pointers, -1, np.int32),
            _keys.WEIGHTS: spread(responded.weights, 0),
            _keys.DISTANCES: spread(responded.distances, np.nan),
        },
    )
    learned = {_keys.LEARNED_FROM: responded.learned_from}
    table.uns[_keys.RETRIEVAL] = response_header(header, fit, cited) | settings | learned
    return table


def pairs_learned(what: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """How `learned_from` is written: what was learned from the left-out responses, and of which perturbations and contexts."""
    names, contexts = (np.asarray([pair[i] for pair in pairs], dtype=str) for i in (0, 1))
    return {"what": what if pairs else "", _keys.PERTURBATION: names, _keys.CONTEXT: contexts}


def remembered(header: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Perturbations and contexts whose left-out response a network was trained on: no test of the method."""
    known = header.get(_keys.LEARNED_FROM)
    if known is None or str(known["what"]) != "responses":
        return set()
    names, contexts = (np.atleast_1d(known[name]).astype(str).tolist() for name in (_keys.PERTURBATION, _keys.CONTEXT))
    return set(zip(names, contexts, strict=True))


def cite_responses(reference: AnnData, rows: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Pointers into the cited rows, and one line for each of them."""
    return cite_rows(reference, rows, _CITED, _CITED_NUMBERS)


def cited_reliability(weights: np.ndarray, cited: pd.DataFrame, pointers: np.ndarray) -> np.ndarray:
    """Weighted mean reliability of the cited rows of each line; NaN where nothing is cited."""
    if not len(cited):
        return np.full(len(weights), np.nan)
    own = np.where(pointers >= 0, cited[_keys.RELIABILITY].to_numpy()[np.maximum(pointers, 0)], 0.0)
    total = weights.sum(axis=1)
    return np.divide((weights * own).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def response_header(header: dict[str, Any], fit: dict[str, Any], cited: pd.DataFrame) -> dict[str, Any]:
    """Provenance of predicted responses, whatever they were predicted for."""
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

    return {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": TASK,
        "software": software(),
        "method": fit["method"],
        "metric": fit["metric"],
        _keys.STARTS_FROM: RESPONSE_METHODS[str(fit["method"])].starts_from,
        "unit": header["normalization"]["unit"],
        "naming": header["normalization"]["naming"],
        "normalization": dict(header["normalization"]),
        "embedding": str(header["embedding"]["name"]),
        "control": header["control"],
        "reference_hash": fit["reference_hash"],
        "fit_hash": fit["fit_hash"],
        "inner_groups": fit["inner_groups"],
        "sources": header["sources"].copy(),
        _keys.CONTROL_CELLS: np.asarray([str(cell) for cell in header[_keys.CONTROL_CELLS]], dtype=str),
        _keys.CITED: cited,
    }
