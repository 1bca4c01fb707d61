"""The table that `perturb` returns, with its provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.reference.perturbation_schema import TASK
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._predicted_table import software

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

_CITED = (_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE)


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
    learned_from: dict[str, Any] | None = None
    """Perturbations and contexts whose left-out response the method has learned from."""


def perturbed_table(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    responded: Responded | None,
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
    width = 1 if responded is None else responded.rows.shape[1]
    lines = len(pairs)

    def spread(part: np.ndarray | None, missing: float, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        out: np.ndarray = np.full((lines + 1, *shape), missing, dtype=dtype)
        if part is not None:
            out[:-1] = part
        return out[line]

    part = {} if responded is None else vars(responded)
    response = spread(None if responded is None else part["response"][:, at], 0, (len(genes),), np.float32)
    evidence = spread(None if responded is None else part["evidence"][:, at], 0, (len(genes),), np.float32)
    pointers, cited = cite_rows(reference, np.full((0, width), -1) if responded is None else part["rows"])
    reliability = None if responded is None else cited_reliability(responded.weights, cited, pointers)
    source = np.tile(dense(values).astype(np.float32), (len(names), 1))
    asked = np.repeat(np.asarray(list(names), dtype=object), len(cells))
    repeated = np.tile(cells.astype(object), len(names))
    obs = pd.DataFrame(
        {
            _keys.PERTURBATION: pd.Categorical(asked),
            _keys.CONTEXT: pd.Categorical(np.tile(contexts, len(names))),
            _keys.SOURCE: repeated,
            _keys.EFFECTIVE_N: spread(part.get("effective_n"), np.nan, (), np.float64),
            _keys.EVIDENCE_SHARE: spread(part.get("evidence_share"), np.nan, (), np.float64),
            _keys.CITED_RELIABILITY: spread(reliability, np.nan, (), np.float64),
        },
        index=[f"{cell}:{name}" for cell, name in zip(repeated, asked, strict=True)],
    )
    if part.get("embedding_share") is not None:
        obs[_keys.EMBEDDING_SHARE] = spread(part["embedding_share"], np.nan, (), np.float64)
    table = ad.AnnData(
        source + response,
        obs=obs,
        var=pd.DataFrame(index=pd.Index(genes, name="gene")),
        layers={_keys.RESPONSE: response, _keys.EVIDENCE: evidence},
        obsm={
            _keys.ROWS: spread(pointers if len(pointers) else None, -1, (width,), np.int32),
            _keys.WEIGHTS: spread(part.get("weights"), 0, (width,), np.float32),
            _keys.DISTANCES: spread(part.get("distances"), np.nan, (width,), np.float32),
        },
    )
    table.uns[_keys.RETRIEVAL] = response_header(header, fit, cited) | settings
    known = None if responded is None else responded.learned_from
    table.uns[_keys.RETRIEVAL][_keys.LEARNED_FROM] = pairs_learned("", []) if known is None else known
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


def cite_rows(reference: AnnData, rows: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Pointers into the cited rows, and one line for each of them, ordered by reference id."""
    cited = np.unique(rows[rows >= 0])
    cited = np.asarray(sorted(cited, key=lambda row: str(reference.obs_names[row])), dtype=np.int64)
    place = np.full(reference.n_obs + 1, -1, dtype=np.int32)
    place[cited] = np.arange(len(cited), dtype=np.int32)
    lines = reference.obs.iloc[cited][list(_CITED)].astype(str)
    lines.insert(0, "reference", reference.obs_names[cited].astype(str))
    lines[_keys.N_CELLS] = reference.obs[_keys.N_CELLS].to_numpy(np.int64)[cited]
    lines[_keys.RELIABILITY] = reference.obs[_keys.RELIABILITY].to_numpy(float)[cited]
    lines.index = lines.index.astype(str)
    lines.index.name = None
    return place[rows], lines


def cited_reliability(weights: np.ndarray, cited: pd.DataFrame, pointers: np.ndarray) -> np.ndarray | None:
    """Weighted mean reliability of the cited rows of each line; NaN where nothing is cited."""
    if not len(cited):
        return None
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
