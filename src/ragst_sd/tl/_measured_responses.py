"""The truth of an evaluation: measured responses against controls that nothing else has seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._gene_names import Expression, offered_names, read_expression
from ragst_sd._validate import listing
from ragst_sd.reference.genes import shared_genes, take_genes
from ragst_sd.reference.header import control_names
from ragst_sd.reference.responses import (
    CONTROL,
    canonical,
    cell_prints,
    mean_responses,
    recognised,
    split_half_reliability,
)
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._perturbation_cells import read_labels, repeated_controls
from ragst_sd.tl._response_table import given_numbers, one_row_of_each, read_responses
from ragst_sd.tl._screen import Lines, lines_of, used_cells

logger = logging.getLogger(__name__)


@dataclass
class Measured:
    """Measured mean responses, one line per context and perturbation, and the cells, where responses were not given."""

    names: list[tuple[str, str]]
    """Context and perturbation of each line."""
    delta: np.ndarray
    """(lines, g) mean response, of cells against held-out controls."""
    n_cells: np.ndarray
    """(lines,); 0 where not given."""
    reliability: np.ndarray
    """(lines,) agreement of two halves, against all controls of the screen; NaN where not given."""
    held_out_reliability: np.ndarray
    """(lines,) the same against held-out controls only, as the truth is measured."""
    values: Any = None
    """(cells, g) sparse."""
    row: Any = None
    """(cells,) line of each cell, -1 for held-out controls, -2 for cells that are not used."""
    stratum: Any = None
    """(cells,) code of context and batch."""
    context: Any = None
    """(cells,)."""

    def part(self, cells: np.ndarray) -> Measured:
        """What some of the cells say (a mask), of the same lines; NaN for a line that has none of them."""
        values, row, stratum = self.values[cells], self.row[cells], self.stratum[cells]
        means = mean_responses(*used_cells(values, row, stratum, len(self.names)))
        return replace(self, values=values, row=row, stratum=stratum, context=self.context[cells], delta=means.mean)

    @cached_property
    def profile(self) -> np.ndarray:
        """(lines, g) mean expression; NaN for a line without cells."""
        n = len(self.names)
        used = np.flatnonzero(self.row >= 0)
        sums = sp.csr_matrix((np.ones(len(used)), (self.row[used], used)), shape=(n, len(self.row))) @ self.values
        with np.errstate(invalid="ignore"):
            return np.asarray(sums.toarray() / np.bincount(self.row[used], minlength=n)[:, None])

    def cells(self, line: int) -> np.ndarray:
        """(n, g) expression of the cells of a line."""
        return self.values[self.row == line].toarray().astype(np.float64)

    def controls(self, context: str) -> np.ndarray:
        """(n, g) expression of the held-out controls of a context."""
        return self.values[(self.row == CONTROL) & (self.context == context)].toarray().astype(np.float64)


def measured_responses(
    adata: AnnData,
    tables: Sequence[AnnData],
    genes: list[str],
    *,
    perturbation_key: str,
    context_key: str | None,
    batch_key: str | None,
    layer: str | None,
    unit: str,
    min_cells: int,
    rng: np.random.Generator,
) -> Measured:
    """Measure the responses of a screen in the unit of the predictions.

    Raises
    ------
    ValueError
        If no controls are left that neither the reference nor the predictions used, under whatever name.
    """
    header = tables[0].uns[_keys.RETRIEVAL]
    expression = read_expression(adata, layer=layer, unit=unit, like=header["normalization"], where="adata")
    todo = "The prediction calls them so: rename the controls of `adata`."
    labels = read_labels(adata, perturbation_key, control_names(header), context_key, batch_key, todo=todo)
    labels["once"] = labels["control"] & ~repeated_controls(labels, expression.values)
    labels["held_out"] = _unseen(labels, expression, tables) & labels["once"]
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    values, labels = take_genes(expression.values, expression.genes, genes)[order], labels.iloc[order]
    held_out = labels["held_out"].to_numpy()
    lines, every = (_lines(labels, controls, min_cells) for controls in (held_out, labels["once"].to_numpy()))
    names, cells = list(lines.names), used_cells(values, lines.row, lines.stratum, len(lines.names))
    means, agreement = mean_responses(*cells), split_half_reliability(*cells, rng=rng)
    whole = split_half_reliability(*used_cells(values, every.row, every.stratum, len(every.names)), rng=rng)
    return Measured(
        names=names,
        values=values,
        row=lines.row,
        stratum=lines.stratum,
        context=labels[_keys.CONTEXT].to_numpy(),
        delta=means.mean,
        n_cells=means.n_cells,
        reliability=whole[every.names.get_indexer(lines.names)],
        held_out_reliability=agreement,
    )


def measured_table(
    adata: AnnData,
    header: dict[str, Any],
    genes: list[str],
    *,
    perturbation_key: str,
    context_key: str | None,
    layer: str | None,
) -> Measured:
    """Measured responses in the unit of the predictions."""
    normalization = header["normalization"]
    expression = read_responses(
        adata, unit=str(normalization["given"]), layer=layer, naming=str(normalization["naming"])
    )
    labels = read_labels(adata, perturbation_key, control_names(header), context_key, None, todo="", responses=True)
    treated = np.flatnonzero(~labels["control"].to_numpy())
    labels = labels.iloc[treated]
    one_row_of_each(labels, [_keys.CONTEXT, _keys.PERTURBATION])
    names = list(zip(labels[_keys.CONTEXT], labels[_keys.PERTURBATION], strict=True))
    order = sorted(range(len(names)), key=names.__getitem__)
    n_cells, reliability = given_numbers(adata.obs.iloc[treated].iloc[order])
    values = dense(take_genes(expression.values, expression.genes, genes))[treated][order]
    return Measured([names[i] for i in order], values, n_cells, reliability, reliability)


def _unseen(labels: pd.DataFrame, expression: Expression, tables: Sequence[AnnData]) -> np.ndarray:
    """(cells,) controls that no prediction rests on: neither by name nor, under another name, by their values."""
    control = labels["control"].to_numpy()
    unseen = control.copy()
    by_name, by_values = np.zeros((2, int(control.sum())), dtype=bool)
    names, values = labels.index[control].astype(str), expression.values[control]
    for table in tables:
        header = table.uns[_keys.RETRIEVAL]
        sources, first = np.unique(table.obs[_keys.SOURCE].astype(str), return_index=True)
        by_name |= names.isin([*map(str, header[_keys.CONTROL_CELLS]), *sources])
        before = dense(table.X[first]) - dense(table.layers[_keys.RESPONSE][first])
        for known in (header.get(_keys.CONTROL_PRINTS), cell_prints(sp.csr_matrix(before), table.var_names)):
            if known is not None:
                by_values |= recognised(values, expression.genes, known)
    renamed = int((by_values & ~by_name).sum())
    if (by_name | by_values).all():
        raise ValueError(
            f"All {len(names)} controls of `adata` were used by the reference or are source cells of the prediction"
            f"{f', {renamed} of them under other names' if renamed else ''}. The truth needs controls of its own, or "
            "noise of the controls counts as accuracy: split them with `rg.tl.perturbation_folds` and build the "
            "reference on the cells 'train' and 'control_train'."
        )
    if renamed:
        logger.warning("%d controls of `adata` were used before under other names, and are left out.", renamed)
    unseen[control] = ~(by_name | by_values)
    return unseen


def _lines(labels: pd.DataFrame, controls: np.ndarray, min_cells: int) -> Lines:
    """Lines with enough cells beside two controls of their context and batch."""
    treated = ~labels["control"].to_numpy()
    lines = lines_of(labels, [_keys.CONTEXT, _keys.PERTURBATION], treated, controls, min_cells=min_cells)
    lost = labels[lines.uncontrolled]
    if len(lost):
        logger.warning(
            "Cells without two held-out controls of their context and batch are left out: %s.",
            listing(f"{context}, batch {batch}" for context, batch in lost.groupby([_keys.CONTEXT, "batch"]).groups),
        )
    return lines


def genes_of_both(table: AnnData, adata: AnnData, header: dict[str, Any]) -> list[str]:
    """Genes of a predicted table that `adata` measured, in the table's order."""
    measured = offered_names(adata).get(str(header["naming"]), list(adata.var_names))
    return shared_genes(list(table.var_names), measured, "Prediction and `adata`")


def predicted_lines(table: AnnData, truth: Measured) -> list[tuple[int, np.ndarray]]:
    """Lines of the truth that were predicted, and the predicted cells of each."""
    controls = control_names(table.uns[_keys.RETRIEVAL])
    names = table.obs[_keys.PERTURBATION].astype(str).map(lambda name: canonical(name, controls)).to_numpy()
    contexts = table.obs[_keys.CONTEXT].astype(str).to_numpy()
    lines = [
        (line, cells)
        for line, (context, name) in enumerate(truth.names)
        if len(cells := np.flatnonzero((names == name) & (contexts == context)))
    ]
    if not lines:
        was = sorted(set(zip(contexts, names, strict=True)))
        todo = "Contexts of both must be named alike." if truth.names else "No perturbation has `min_cells` cells."
        raise ValueError(
            "Nothing that was predicted was measured, with enough cells: predicted (context, perturbation) "
            f"{listing(was)}, measured {listing(truth.names)}. {todo}"
        )
    return lines
