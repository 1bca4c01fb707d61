"""The tables that `perturb` makes, of cells and of spots, with their provenance."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._fields import RESPONSES, fill, mark
from ragst_sd._respond import Responded, Task, no_response
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._predicted_table import annotating, carried, cite_rows, software
from ragst_sd.tl._tissue_responses import Remoteness, Variation
from ragst_sd.tl._tissue_source import TissueSource

_CITED = (_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE)
_CITED_NUMBERS = {_keys.N_CELLS: np.int64, _keys.RELIABILITY: np.float64}
SCOPE = (
    "Predicted direct response of the cells of each spot, as if each were perturbed by itself. No effect on "
    "neighbouring cells is propagated, nothing is claimed about causes, and no measurement in tissue stands behind it."
)


class Asked(NamedTuple):
    """Cells whose responses are asked for; contexts, where responses were given."""

    values: sp.csr_matrix
    """(cells, genes) their expression."""
    genes: list[str]
    cells: np.ndarray
    contexts: np.ndarray
    """(cells,)."""
    states: dict[str, np.ndarray]
    """(genes of the reference,) mean expression of each context."""
    gene_overlap: float
    """Share of the genes of the reference that the cells have."""


def perturbed_table(
    task: Task,
    responded: Responded,
    asked: Asked,
    *,
    names: dict[str, str],
    pairs: list[tuple[str, str]],
    settings: dict[str, Any],
) -> AnnData:
    """Every cell once for every perturbation; see :func:`ragst_sd.tl.perturb` for the fields.

    Parameters
    ----------
    names
        Perturbations as they were asked for, and their one spelling.
    pairs
        Perturbation and context of each line of `responded`.
    """
    line_of, n = {pair: i for i, pair in enumerate(pairs)}, len(names)
    # The last line is the control's: no response, nothing cited.
    line = [line_of.get((name, context), len(pairs)) for name in names.values() for context in asked.contexts]
    at, of_pairs = task.bank.genes.get_indexer(asked.genes), dict(responded.values)
    for name in (_keys.EVIDENCE, _keys.RESPONSE):
        of_pairs[name] = of_pairs[name][:, at].astype(np.float32)
    control = no_response(1, len(at), of_pairs[_keys.ROWS].shape[1]).values
    of_cells = {
        name: np.concatenate([part, control.get(name, [np.nan])]).astype(part.dtype)[line]
        for name, part in of_pairs.items()
    }
    perturbation, sources = np.repeat(np.asarray(list(names), dtype=object), len(asked.cells)), np.tile(asked.cells, n)
    obs = pd.DataFrame(
        {
            _keys.PERTURBATION: pd.Categorical(perturbation),
            _keys.CONTEXT: pd.Categorical(np.tile(asked.contexts, n)),
            _keys.SOURCE: sources.astype(object),
        },
        index=[f"{cell}:{name}" for cell, name in zip(sources, perturbation, strict=True)],
    )
    var, values = pd.DataFrame(index=pd.Index(asked.genes, name="gene")), dense(asked.values).astype(np.float32)
    table = _assembled(task, responded._replace(values=of_cells), np.tile(values, (n, 1)), obs, var)
    table.uns[_keys.RETRIEVAL] |= settings
    mark(table)
    return table


def tissue_table(
    task: Task,
    source: TissueSource,
    responded: Responded,
    error: np.ndarray,
    *,
    name: str,
    contexts: np.ndarray,
    far: Remoteness,
    varies: Variation,
    settings: dict[str, Any],
) -> AnnData:
    """Assemble and validate the table of spots; see :func:`ragst_sd.tl.perturb` for its fields."""
    obs = carried(source.table, _keys.DONOR, _keys.SAMPLE, _keys.OUT_OF_REFERENCE)
    obs[_keys.PERTURBATION] = pd.Categorical([name] * len(obs))
    obs[_keys.CONTEXT] = pd.Categorical(contexts.astype(str))
    obs[_keys.SOURCE] = np.asarray(obs.index, dtype=object)
    # Where spots do not differ more than by chance every tool shall draw them alike.
    magnitude = np.sqrt((responded.values[_keys.RESPONSE] ** 2).mean(axis=1))
    obs[_keys.RESPONSE_MAGNITUDE] = magnitude.mean() if varies.constant else magnitude
    obs[_keys.STATE_DISTANCE] = far.distance
    obs[_keys.STATE_PERCENTILE] = far.percentile
    obs[_keys.FAR_FROM_SCREEN] = far.distance > 1
    table = _assembled(task, responded, source.values, obs, source.var.copy())
    table.layers[_keys.STANDARD_ERROR] = error.astype(np.float32)
    header = table.uns[_keys.RETRIEVAL]
    if source.limits is not None:
        share = NormalDist().inv_cdf(0.5 + source.level / 2) * np.nan_to_num(error)
        for layer, limit, sign in zip((_keys.LOWER, _keys.UPPER), source.limits, (-1, 1), strict=True):
            reach = sign * np.sqrt((limit - source.values) ** 2 + share**2)
            table.layers[layer] = (table.X + reach).astype(np.float32)
        header[_keys.INTERVAL_LEVEL] = source.level
    if source.prediction:
        header["prediction"] = source.prediction
    header |= {
        **settings,
        "scope": SCOPE,
        "resolution": "spot",
        "table_key": source.table_key,
        "n_genes": table.n_vars,
        "variance": varies.variance,
        "variance_shuffled": varies.shuffled,
        "variance_p_value": varies.p_value,
        "constant": varies.constant,
        "far_from_screen": float((far.distance > 1).mean()),
    }
    mark(table)
    return annotating(table, source.table, source.region)


def _assembled(task: Task, responded: Responded, values: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
    """Expression with the responses, what these rest on, and the provenance that both kinds of table share."""
    bank, of_lines = task.bank, responded.values
    pointers, cited = cite_rows(bank.ids, bank.obs, of_lines[_keys.ROWS], _CITED, _CITED_NUMBERS)
    predicted = {
        **of_lines,
        "prediction": values + of_lines[_keys.RESPONSE],
        _keys.ROWS: pointers,
        _keys.CITED_RELIABILITY: _cited_reliability(of_lines[_keys.WEIGHTS], cited, pointers),
    }
    places = fill(RESPONSES, predicted, np.zeros(len(obs), dtype=bool))
    table = ad.AnnData(
        places["X"]["prediction"],
        obs=obs.assign(**places["obs"]),
        var=var,
        layers=places["layers"],
        obsm=places["obsm"],
    )
    header, fit = bank.header, bank.fit
    given = {
        _keys.CONTEXT_MEANS: {
            "context": np.asarray(header.contexts, dtype=str),
            "gene": bank.genes.to_numpy(str),
            "mean": bank.screen.states,
        }
    }
    table.uns[_keys.RETRIEVAL] = {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": TASK,
        "software": software(),
        **{name: getattr(fit, name) for name in ("method", "metric", "reference_hash", "fit_hash", "inner_groups")},
        _keys.STARTS_FROM: task.method.starts_from,
        **{name: header.normalization[name] for name in ("unit", "naming")},
        "normalization": dict(header.normalization),
        "embedding": str(header.embedding["name"]),
        "control": header.control,
        _keys.CONTROL_NAMES: np.asarray(header.control_names, dtype=str),
        **({} if header.control_prints is None else {_keys.CONTROL_PRINTS: header.control_prints}),
        **(given if header.from_responses else {}),
        "sources": header.sources.copy(),
        _keys.CONTROL_CELLS: header.control_cells.astype(str),
        _keys.LEARNED_FROM: responded.learned_from,
        _keys.CITED: cited,
    }
    return table


def _cited_reliability(weights: np.ndarray, cited: pd.DataFrame, pointers: np.ndarray) -> np.ndarray:
    """Weighted mean reliability of the cited rows of each line; NaN where nothing is cited."""
    reliability = np.append(cited[_keys.RELIABILITY].to_numpy(), 0.0)[pointers]
    total = weights.sum(axis=1)
    return np.divide((weights * reliability).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
