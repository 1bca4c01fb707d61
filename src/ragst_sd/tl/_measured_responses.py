"""The truth of an evaluation: measured responses against controls that nothing else has seen."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ragst_sd import _keys
from ragst_sd._gene_names import offered_names
from ragst_sd._validate import listing
from ragst_sd.reference.cell_prints import cell_prints, recognised
from ragst_sd.reference.genes import changed_capitals, take_genes
from ragst_sd.reference.perturbations import canonical
from ragst_sd.reference.responses import CONTROL, mean_responses, split_half_reliability
from ragst_sd.reference.schema import control_names
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._perturbation_cells import Expression, read_expression, read_labels, repeated_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ragst_sd.tl._response_metrics import MeasuredTable

logger = logging.getLogger(__name__)


@dataclass
class Measured:
    """Measured cells and mean responses, one line per context and perturbation."""

    names: list[tuple[str, str]]
    """Context and perturbation of each line."""
    values: sp.csr_matrix
    """(cells, g)."""
    row: np.ndarray
    """(cells,) line of each cell, -1 for held-out controls, -2 for cells that are not used."""
    stratum: np.ndarray
    """(cells,) code of context and batch."""
    context: np.ndarray
    """(cells,)."""
    delta: np.ndarray
    """(lines, g) mean response against held-out controls."""
    profile: np.ndarray
    """(lines, g) mean expression."""
    n_cells: np.ndarray
    reliability: np.ndarray
    """(lines,) agreement of two halves, against all controls of the screen."""
    own_reliability: np.ndarray
    """(lines,) the same against held-out controls only, as the truth is measured."""

    def part(self, cells: np.ndarray) -> Measured:
        """What some of the cells say (a mask), of the same lines; NaN for a line that has none of them."""
        values, row, stratum = self.values[cells], self.row[cells], self.stratum[cells]
        means = mean_responses(*_of_lines(values, row, stratum, len(self.names)))
        part = replace(self, values=values, row=row, stratum=stratum, context=self.context[cells], delta=means.mean)
        return replace(part, profile=part.profiles())

    def profiles(self) -> np.ndarray:
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
    labels = read_labels(
        adata,
        perturbation_key=perturbation_key,
        control=control_names(header),
        context_key=context_key,
        batch_key=batch_key,
        todo="The prediction calls them so: rename the controls of `adata`.",
    )
    labels["once"] = labels["control"] & ~repeated_controls(labels, expression.values)
    labels["held_out"] = _unseen(labels, expression, tables) & labels["once"]
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    values, labels = take_genes(expression.values, expression.genes, genes)[order], labels.iloc[order]
    held_out = labels["held_out"].to_numpy()
    names, row, strata = _lines(labels, held_out, min_cells)
    cells = _of_lines(values, row, strata, len(names))
    means, own = mean_responses(*cells), split_half_reliability(*cells, rng=rng)
    every, row_of_every, stratum = _lines(labels, labels["once"].to_numpy(), min_cells)
    whole = split_half_reliability(*_of_lines(values, row_of_every, stratum, len(every)), rng=rng)
    return Measured(
        names=names,
        values=values,
        row=row,
        stratum=strata,
        context=labels[_keys.CONTEXT].to_numpy(),
        delta=means.mean,
        profile=np.array([np.asarray(values[row == line].mean(axis=0)).ravel() for line in range(len(names))]),
        n_cells=means.n_cells,
        reliability=whole[[every.index(name) for name in names]],
        own_reliability=own,
    )


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
        msg = (
            f"All {len(names)} controls of `adata` were used by the reference or are source cells of the prediction"
            f"{f', {renamed} of them under other names' if renamed else ''}. The truth needs controls of its own, or "
            "noise of the controls counts as accuracy: split them with `rg.tl.perturbation_folds` and build the "
            "reference on the cells 'train' and 'control_train'."
        )
        raise ValueError(msg)
    if renamed:
        logger.warning("%d controls of `adata` were used before under other names, and are left out.", renamed)
    unseen[control] = ~(by_name | by_values)
    return unseen


def _lines(
    labels: pd.DataFrame, controls: np.ndarray, min_cells: int
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Lines with enough cells beside two controls of their context and batch; -1 for controls, -2 for all else."""
    stratum = labels.groupby([_keys.CONTEXT, "batch"]).ngroup().to_numpy()
    enough = np.bincount(stratum[controls], minlength=stratum.max() + 1)[stratum] >= 2
    treated = ~labels["control"].to_numpy()
    lost = labels[treated & ~enough]
    if len(lost):
        logger.warning(
            "Cells without two held-out controls of their context and batch are left out: %s.",
            listing(f"{context}, batch {batch}" for context, batch in lost.groupby([_keys.CONTEXT, "batch"]).groups),
        )
    names = labels[[_keys.CONTEXT, _keys.PERTURBATION]]
    counts = names[treated & enough].groupby([_keys.CONTEXT, _keys.PERTURBATION]).size()
    kept = counts.index[counts >= min_cells]
    row = kept.get_indexer(pd.MultiIndex.from_frame(names))
    row[(row < 0) | ~treated | ~enough] = -2
    row[controls & enough] = CONTROL
    return list(kept), row, stratum


def _of_lines(
    values: sp.csr_matrix, row: np.ndarray, stratum: np.ndarray, n_lines: int
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray, int]:
    """Cells of lines and controls, as :func:`ragst_sd.reference.responses.mean_responses` takes them."""
    used = row >= CONTROL
    return values[used], row[used], np.unique(stratum[used], return_inverse=True)[1], n_lines


def genes_of_both(table: AnnData, adata: AnnData, header: dict[str, Any]) -> list[str]:
    """Genes of a predicted table that `adata` measured, in the table's order."""
    measured = dict.fromkeys(offered_names(adata).get(str(header["naming"]), []))
    shared = [gene for gene in table.var_names if gene in measured]
    if not shared:
        msg = (
            f"Prediction and `adata` share no genes: {listing(table.var_names[:5])} against "
            f"{listing(adata.var_names[:5])}.{changed_capitals(table.var_names, measured)}"
        )
        raise ValueError(msg)
    return shared


def predicted_lines(table: AnnData, truth: Measured | MeasuredTable) -> list[tuple[int, np.ndarray]]:
    """Lines of the truth that were predicted, and the predicted cells of each."""
    controls = control_names(table.uns[_keys.RETRIEVAL])
    names = table.obs[_keys.PERTURBATION].astype(str).map(lambda name: canonical(name, controls)).to_numpy()
    contexts = table.obs[_keys.CONTEXT].astype(str).to_numpy()
    found = [
        (line, cells)
        for line, (context, name) in enumerate(truth.names)
        if len(cells := np.flatnonzero((names == name) & (contexts == context)))
    ]
    if not found:
        was = sorted(set(zip(contexts, names, strict=True)))
        msg = (
            "Nothing that was predicted was measured, with enough cells: predicted (context, perturbation) "
            f"{listing(was)}, measured {listing(truth.names)}. Contexts of both must be named alike."
        )
        raise ValueError(msg)
    return found
