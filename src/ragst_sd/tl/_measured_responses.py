"""The truth of an evaluation: measured responses against controls that nothing else has seen."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.perturbations import canonical
from ragst_sd.reference.responses import CONTROL, mean_responses, split_half_reliability
from ragst_sd.tl._perturbation_cells import read_expression, read_labels
from ragst_sd.tl._stored_expression import offered_names

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

    from ragst_sd.tl._perturbation_cells import Labels

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

    def cells(self, line: int) -> np.ndarray:
        """(n, g) expression of the cells of a line."""
        return self.values[self.row == line].toarray().astype(np.float64)

    def controls(self, context: str) -> np.ndarray:
        """(n, g) expression of the held-out controls of a context."""
        return self.values[(self.row == CONTROL) & (self.context == context)].toarray().astype(np.float64)


def measured_responses(
    adata: AnnData,
    header: dict[str, Any],
    genes: list[str],
    sources: set[str],
    *,
    perturbation_key: str,
    context_key: str | None,
    batch_key: str | None,
    layer: str | None,
    unit: str,
    min_cells: int,
    rng: np.random.Generator,
) -> Measured:
    """Measure the responses of a screen in the unit of a prediction.

    Raises
    ------
    ValueError
        If no controls are left that neither the reference nor the prediction used.
    """
    control = str(header["control"])
    expression = read_expression(adata, layer=layer, unit=unit, like=header["normalization"], where="adata")
    labels = read_labels(
        adata, perturbation_key=perturbation_key, control=control, context_key=context_key, batch_key=batch_key
    )
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    values = take_genes(expression.values, expression.genes, genes)[order]
    seen = {str(cell) for cell in header[_keys.CONTROL_CELLS]} | sources
    held_out = labels.control & ~np.isin(np.asarray(adata.obs_names, dtype=str), list(seen))
    if not held_out.any():
        msg = (
            f"All {int(labels.control.sum())} controls of `adata` were used by the reference or are source cells of the "
            "prediction. The truth needs controls of its own, or noise of the controls counts as accuracy: split them with "
            "`rg.tl.perturbation_folds` and build the reference on the cells 'train' and 'control_train'."
        )
        raise ValueError(msg)

    def lines(
        controls: np.ndarray,
    ) -> tuple[list[tuple[str, str]], np.ndarray, tuple[Any, np.ndarray, np.ndarray, int]]:
        names, row, stratum = _lines(labels, controls, min_cells)
        row, stratum = row[order], stratum[order]
        used = row >= CONTROL
        return names, row, (values[used], row[used], np.unique(stratum[used], return_inverse=True)[1], len(names))

    names, row, cells = lines(held_out)
    names_all, _, cells_all = lines(labels.control)
    found, own = mean_responses(*cells), split_half_reliability(*cells, rng=rng)
    whole = split_half_reliability(*cells_all, rng=rng)
    place = {name: i for i, name in enumerate(names_all)}
    profile = np.array([np.asarray(values[row == line].mean(axis=0)).ravel() for line in range(len(names))])
    return Measured(
        names=names,
        values=values,
        row=row,
        context=labels.context[order],
        delta=found.mean,
        profile=profile,
        n_cells=found.n_cells,
        reliability=np.array([whole[place[name]] for name in names]),
        own_reliability=own,
    )


def _lines(
    labels: Labels, controls: np.ndarray, min_cells: int
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Lines with enough cells beside two controls of their context and batch; -1 for controls, -2 for all else."""
    joined = np.array(["\x1f".join(pair) for pair in zip(labels.context, labels.batch, strict=True)])
    stratum = np.unique(joined, return_inverse=True)[1]
    enough = np.bincount(stratum[controls], minlength=stratum.max() + 1)[stratum] >= 2
    treated = ~labels.control & enough
    if not enough[~labels.control].all():
        lost = sorted(set(joined[~labels.control & ~enough]))
        logger.warning(
            "Cells without two held-out controls of their context and batch are left out: %s.",
            listing(name.replace("\x1f", ", batch ") for name in lost),
        )
    pairs = np.array(["\x1f".join(pair) for pair in zip(labels.context, labels.perturbation, strict=True)])
    present, counts = np.unique(pairs[treated], return_counts=True)
    kept = [str(name) for name, n in zip(present, counts, strict=True) if n >= min_cells]
    place = {name: i for i, name in enumerate(kept)}
    row = np.array([place.get(str(name), -2) for name in pairs])
    row[~treated] = -2
    row[controls & enough] = CONTROL
    parts = [name.partition("\x1f") for name in kept]
    return [(context, perturbation) for context, _, perturbation in parts], row, stratum


def genes_of_both(table: AnnData, adata: AnnData, header: dict[str, Any]) -> list[str]:
    """Genes of a predicted table that `adata` measured, in the table's order."""
    measured = set(offered_names(adata).get(str(header["naming"]), []))
    shared = [gene for gene in table.var_names if gene in measured]
    if not shared:
        msg = f"Prediction and `adata` share no genes: {listing(table.var_names[:5])} against {listing(adata.var_names[:5])}."
        raise ValueError(msg)
    return shared


def predicted_lines(table: AnnData, truth: Measured, control: str) -> list[tuple[int, np.ndarray]]:
    """Lines of the truth that were predicted, and the predicted cells of each."""
    names = table.obs[_keys.PERTURBATION].astype(str).map(lambda name: canonical(name, control)).to_numpy()
    contexts = table.obs[_keys.CONTEXT].astype(str).to_numpy()
    found = [
        (line, cells)
        for line, (context, name) in enumerate(truth.names)
        if len(cells := np.flatnonzero((names == name) & (contexts == context)))
    ]
    if not found:
        was = sorted(set(zip(contexts, names, strict=True)))
        msg = (
            f"Nothing that was predicted was measured, with enough cells: predicted (context, perturbation) {listing(was)}, "
            f"measured {listing(truth.names)}. Contexts of both must be named alike."
        )
        raise ValueError(msg)
    return found
