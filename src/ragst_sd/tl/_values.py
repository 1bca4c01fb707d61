"""The values of a prediction, block by block of spots: evidence, adjustment and disagreement from the rows that were chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import is_lazy, mean_shift, panel_codes, section_codes, take_rows
from ragst_sd.reference.normalize import as_csr

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.retrieval.methods import Method
    from ragst_sd.tl._retrieve import Chosen

# Values of one block of spots; some six arrays of that size exist at once, in float64.
_BLOCK_VALUES = 2**22
_SPOTS = 256


class Values(NamedTuple):
    """What is predicted for one block of spots."""

    prediction: np.ndarray
    """float32 (n, genes)."""
    evidence: np.ndarray
    disagreement: np.ndarray | None
    share: np.ndarray
    """(n,) evidence share."""


@dataclass(frozen=True)
class Bank:
    """What the values of any spot need of a reference, for some genes; arrays only, so that it can be sent to another process."""

    method: Method
    """The method itself: another process may not know it by name."""
    values: Any
    """(rows, genes) CSR or dense; of a lazy reference its (rows, all genes) on disk."""
    key: Any
    """(rows, q) rows in phi-space."""
    lazy: bool
    genes: np.ndarray
    """Positions of the genes in the reference."""
    panels: np.ndarray
    measured: np.ndarray
    """(panels, genes)."""
    mean: np.ndarray
    """(genes,) float32."""
    sections: np.ndarray | None
    shifts: np.ndarray | None
    """(sections, genes), where values are taken relative to the mean of their section."""
    level: np.ndarray | None
    """(patterns, genes) what evidence is put back on."""
    parameters: dict[str, Any]
    """Of the adjustment; those of each gene for these genes only."""


def make_bank(
    reference: AnnData, header: dict[str, Any], fit: dict[str, Any], gene_index: np.ndarray, level_rows: np.ndarray
) -> Bank:
    """Collect it from a fitted reference."""
    from ragst_sd.retrieval.methods import METHODS

    parameters, method, lazy = fit["parameters"], METHODS[fit["method"]], is_lazy(reference)
    values, key = reference.X, reference.obsm[_keys.RETRIEVAL_KEY]
    if not lazy:
        values = as_csr(values) if hasattr(values, "tocsr") else np.asarray(values)
        if not np.array_equal(gene_index, np.arange(reference.n_vars)):
            values = values[:, gene_index]
        key = np.asarray(key)
    shifts = level = None
    if method.cites and "section_shifts" in parameters:
        shifts = np.asarray(parameters["section_shifts"])[:, gene_index]
        level = mean_shift(reference, header, shifts, gene_index, level_rows)
    # The reference's own phi and gate have done their part.
    of_adjustment = {} if method.adjustment is None else {
        **{name: value for name, value in parameters.items() if name not in ("section_shifts", "reference_mean")},
        **{name: np.asarray(parameters[name])[..., gene_index] for name in method.per_gene},
    }  # fmt: skip
    return Bank(
        method=method,
        values=values,
        key=key,
        lazy=lazy,
        genes=gene_index,
        panels=panel_codes(reference, header),
        measured=np.asarray(reference.varm[_keys.MEASURED])[gene_index].T,
        mean=np.asarray(parameters["reference_mean"])[gene_index].astype(np.float32),
        sections=None if shifts is None else section_codes(reference),
        shifts=shifts,
        level=level,
        parameters=of_adjustment,
    )


def blocks_of_spots(n: int, n_genes: int) -> list[slice]:
    """Spots whose values are computed together. Whole multiples of 256, so that linear algebra sees one shape."""
    size = _SPOTS * max(1, _BLOCK_VALUES // max(1, _SPOTS * n_genes))
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def values_of(bank: Bank, chosen: Chosen, *, with_disagreement: bool) -> Values:
    """Values of the chosen spots, whose number decides the memory that is taken."""
    from ragst_sd.retrieval.centering import weighted_shift
    from ragst_sd.retrieval.evidence import disagreement, evidence_share, weighted_average
    from ragst_sd.retrieval.training import Cited

    method = bank.method
    rows, nearest, bank = _brought_near(bank, chosen)
    of_panels = {"panels": bank.panels, "measured": bank.measured}
    average = None
    if method.cites:
        average = weighted_average(rows, chosen.weights, bank.values, **of_panels)
        evidence = average
        if bank.shifts is not None and bank.sections is not None and bank.level is not None:
            evidence = average - weighted_shift(rows, chosen.weights, bank.sections, bank.shifts, **of_panels)
            evidence = (evidence + bank.level[chosen.level_of]).astype(np.float32)
    else:
        evidence = np.broadcast_to(bank.mean, (len(rows), len(bank.mean))).copy()
    spread = None
    if with_disagreement:
        whom, how_much = (rows, chosen.weights) if method.cites else (nearest, (nearest >= 0).astype(np.float64))
        spread = disagreement(
            whom, how_much, bank.values, sections=bank.sections, shifts=bank.shifts, average=average, **of_panels
        )
    if method.adjustment is None:
        adjustment = np.zeros_like(evidence)
    else:
        cited = Cited(rows, chosen.weights, bank.key)
        adjustment = method.adjustment(bank.parameters, chosen.phi, cited).astype(np.float32)
    return Values(evidence + adjustment, evidence, spread, evidence_share(evidence, adjustment, bank.mean))


def _brought_near(bank: Bank, chosen: Chosen) -> tuple[np.ndarray, np.ndarray, Bank]:
    """Cited and nearest rows, and the bank that they point into: of a reference on disk only the rows that are needed."""
    if not bank.lazy:
        return chosen.rows, chosen.nearest, bank
    near = np.unique(np.concatenate([chosen.rows.ravel(), chosen.nearest.ravel()]))
    near = near[near >= 0]
    small = replace(
        bank,
        values=take_rows(bank.values, near)[:, bank.genes],
        key=np.asarray(take_rows(bank.key, near)),
        panels=bank.panels[near],
        sections=None if bank.sections is None else bank.sections[near],
        parameters={
            **bank.parameters,
            **{name: np.asarray(bank.parameters[name])[near] for name in bank.method.per_row},
        },
    )
    return places(near, chosen.rows), places(near, chosen.nearest), small


def places(near: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where rows of the reference stand among `near`; -1 stays -1."""
    return np.where(rows >= 0, np.searchsorted(near, np.maximum(rows, 0)), -1)
