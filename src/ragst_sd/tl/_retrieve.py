"""Prediction on arrays: search, gate, evidence and adjustment for the spots of one section."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import id_order, is_lazy, level_groups, mean_shift, panel_codes, section_codes, take_rows
from ragst_sd._workers import spread_over_workers
from ragst_sd.reference.normalize import as_csr
from ragst_sd.retrieval.block_search import search_in_blocks
from ragst_sd.retrieval.centering import weighted_shift
from ragst_sd.retrieval.evidence import disagreement, effective_n, evidence_share, select_cited, weighted_average
from ragst_sd.retrieval.methods import METHODS, Method, phi_of
from ragst_sd.retrieval.search import Candidates, Eligibility, find_candidates
from ragst_sd.retrieval.training import Cited, Neighbourhood
from ragst_sd.tl._eligibility import eligible_counts
from ragst_sd.tl._grounding import distance_in_phi, groundedness
from ragst_sd.tl._state import state_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# Values of one block of spots; some six arrays of that size exist at once, in float64.
_BLOCK_VALUES = 2**22
_SPOTS = 256


@dataclass(frozen=True)
class Chosen:
    """Rows that predictions rest on, for every spot; nothing of the size of spots x genes."""

    phi: np.ndarray
    """(n, q)."""
    rows: np.ndarray
    """(n, k) cited rows of the reference, -1 padded; all -1 for methods that cite nobody."""
    weights: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray
    """(n, k) nearest rows."""
    distance: np.ndarray
    """(n,) mean distance to the nearest rows, as many as in the calibration of distances."""
    level_rows: np.ndarray
    """(patterns, groups) eligible rows of each section and panel, on whose mean evidence is put back."""
    level_of: np.ndarray
    """(n,) pattern of each spot."""
    obs: dict[str, np.ndarray]
    """Columns that say how well grounded each spot is."""
    recall: float
    """Share of the true neighbours that the search found, estimated; 1 where it was exact."""

    def some(self, spots: slice) -> Chosen:
        """The same for some of the spots."""
        per_spot = ("phi", "rows", "weights", "distances", "nearest", "distance", "level_of")
        parts = {name: getattr(self, name)[spots] for name in per_spot}
        return replace(self, **parts, obs={name: values[spots] for name, values in self.obs.items()})

    def with_values(self, share: np.ndarray, *values: Any) -> Retrieved:
        """The same with its evidence share, and with prediction, evidence and disagreement."""
        obs = {_keys.EFFECTIVE_N: self.obs[_keys.EFFECTIVE_N], _keys.EVIDENCE_SHARE: share} | self.obs
        return Retrieved(*vars(replace(self, obs=obs)).values(), *values)


@dataclass(frozen=True)
class Retrieved(Chosen):
    """Everything that `predict` writes; prediction and evidence as arrays in memory or on disk."""

    prediction: Any
    evidence: Any
    disagreement: Any
    """(n, genes) spread of what the cited rows bring, if asked for; of the nearest ones for methods that cite nobody."""


def retrieve(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    embedding: np.ndarray,
    obs: pd.DataFrame,
    *,
    gene_index: np.ndarray,
    with_disagreement: bool = False,
    **search: Any,
) -> Retrieved:
    """Predict `gene_index` genes for spots; the other arguments are those of :func:`choose`."""
    chosen = choose(reference, header, fit, embedding, obs, **search)
    bank = make_bank(reference, header, fit, gene_index, chosen.level_rows)
    return assembled(bank, chosen, with_disagreement=with_disagreement)


def assembled(bank: Bank, chosen: Chosen, *, with_disagreement: bool) -> Retrieved:
    """All values in memory."""
    n, n_genes = len(chosen.rows), len(bank.genes)
    blocks = blocks_of_spots(n, n_genes)
    prediction, evidence = (np.empty((n, n_genes), dtype=np.float32) for _ in range(2))
    spread = np.empty((n, n_genes), dtype=np.float32) if with_disagreement else None
    share = np.empty(n)
    work = partial(values_of, with_disagreement=with_disagreement)
    parts = (chosen.some(spots) for spots in blocks)
    for spots, own in zip(blocks, spread_over_workers(work, parts, bank), strict=True):
        prediction[spots], evidence[spots], share[spots] = own.prediction, own.evidence, own.share
        if spread is not None:
            spread[spots] = own.disagreement
    return chosen.with_values(share, prediction, evidence, spread)


def choose(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    embedding: np.ndarray,
    obs: pd.DataFrame,
    *,
    eligibility: Eligibility,
    n_neighbors: int,
    backend: str = "auto",
    raw: np.ndarray | None = None,
    device: str = "cpu",
) -> Chosen:
    """Search and gate: what is cited, and how well grounded that is.

    `embedding` (n, d) is standardised, and `obs` describes its spots. With `raw` embeddings it is also told whether the
    spots look like any section of the reference.
    """
    parameters, method = fit["parameters"], METHODS[fit["method"]]
    phi = phi_of(fit["method"], parameters, embedding)
    n_candidates = max(n_neighbors, int(fit["n_candidates"]))
    nearby, found = _candidates(reference, fit, phi, n_candidates, eligibility, backend, device)
    nearest = nearby.rows[:, :n_neighbors]
    distance = distance_in_phi(fit, nearby.distances, eligibility)
    level_rows, level_of = np.zeros((0, 0), dtype=np.int64), np.zeros(len(phi), dtype=np.int64)
    if method.cites and method.gate is not None:
        # Only rows that may be cited are looked at, so that a reference on disk need not be read as a whole.
        near = np.unique(found.rows[found.rows >= 0])
        key = np.asarray(take_rows(reference.obsm[_keys.RETRIEVAL_KEY], near))
        hood = Neighbourhood(phi, places(near, found.rows), found.distances, key, state_of(parameters, obs, embedding))
        rows, weights, distances = select_cited(found, method.gate(parameters, hood), n_neighbors)
        if "section_shifts" in parameters:
            level_rows, level_of = eligible_counts(eligibility, level_groups(reference, header)[0])
    else:
        rows, weights = np.full_like(nearest, -1), np.zeros(nearest.shape)
        distances = np.full(nearest.shape, np.nan)
    used = np.where(weights > 0, rows, -1) if method.cites else nearest
    columns = {
        _keys.EFFECTIVE_N: effective_n(weights),
        **groundedness(reference, fit, used=used, distance=distance, eligibility=eligibility, raw=raw),
    }
    recall = min(nearby.recall, found.recall)
    return Chosen(phi, rows, weights, distances, nearest, distance, level_rows, level_of, columns, recall)


def _candidates(
    reference: AnnData,
    fit: dict[str, Any],
    phi: np.ndarray,
    n_candidates: int,
    eligibility: Eligibility,
    backend: str,
    device: str,
) -> tuple[Candidates, Candidates]:
    """The nearest eligible rows, and those that the method chooses from."""
    key, candidates = reference.obsm[_keys.RETRIEVAL_KEY], METHODS[fit["method"]].candidates
    how = {"eligibility": eligibility, "tie_order": id_order(reference), "metric": fit["metric"], "device": device}
    if not is_lazy(reference):
        search = partial(find_candidates, phi, np.asarray(key), n_candidates, backend=backend, **how)
        nearby = search()
        return nearby, nearby if candidates == "nearest" else search(how=candidates)
    if candidates != "nearest" or backend == "pynndescent":
        what = "`backend='pynndescent'`" if candidates == "nearest" else f"method {fit['method']!r}"
        msg = f"The reference is lazy, and {what} needs all of its rows. Load it with `reference.to_memory()`."
        raise ValueError(msg)
    nearby = search_in_blocks(phi, key, n_candidates, **how)
    return nearby, nearby


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
    of_adjustment = (
        {}
        if method.adjustment is None
        else {
            **{name: value for name, value in parameters.items() if name not in ("section_shifts", "reference_mean")},
            **{name: np.asarray(parameters[name])[..., gene_index] for name in method.per_gene},
        }
    )
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
