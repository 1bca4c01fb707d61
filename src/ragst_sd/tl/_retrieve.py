"""Prediction on arrays: search, gate, evidence and adjustment for the spots of one section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import id_order, is_lazy, level_groups, mean_shift, panel_codes, section_codes, take_rows
from ragst_sd.tl._grounding import distance_in_phi, groundedness
from ragst_sd.tl._state import state_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ragst_sd.retrieval.search import Candidates, Eligibility


@dataclass(frozen=True)
class Retrieved:
    """Everything that `predict` writes, as arrays."""

    prediction: np.ndarray
    evidence: np.ndarray
    disagreement: np.ndarray | None
    """(n, genes) spread of what the cited rows bring, if asked for; of the nearest ones for methods that cite nobody."""
    distance: np.ndarray
    """(n,) mean distance to the nearest rows, as many as in the calibration of distances."""
    rows: np.ndarray
    """(n, k) rows of the reference, -1 padded; all -1 for methods that cite nobody."""
    weights: np.ndarray
    distances: np.ndarray
    obs: dict[str, np.ndarray]
    """Columns that say how well grounded each spot is."""
    level_rows: np.ndarray
    """(patterns, groups) eligible rows of each section and panel, on whose mean evidence is put back."""
    level_of: np.ndarray
    """(n,) pattern of each spot."""


def retrieve(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    embedding: np.ndarray,
    obs: pd.DataFrame,
    *,
    eligibility: Eligibility,
    gene_index: np.ndarray,
    n_neighbors: int,
    n_candidates: int,
    backend: str,
    with_disagreement: bool = False,
    raw: np.ndarray | None = None,
) -> Retrieved:
    """Predict `gene_index` genes for (n, d) standardised embeddings of the spots that `obs` describes.

    With `raw` embeddings it is also told whether the spots look like any section of the reference.
    """
    from ragst_sd.retrieval.centering import weighted_shift
    from ragst_sd.retrieval.evidence import disagreement, effective_n, evidence_share, select_cited, weighted_average
    from ragst_sd.retrieval.methods import METHODS, phi_of
    from ragst_sd.retrieval.training import Cited, Neighbourhood

    parameters, method = fit["parameters"], METHODS[fit["method"]]
    phi = phi_of(fit["method"], parameters, embedding)
    nearby, found = _candidates(reference, fit, phi, n_candidates, eligibility, backend)
    mean = np.asarray(parameters["reference_mean"])[gene_index].astype(np.float32)
    nearest = nearby.rows[:, :n_neighbors]
    distance = distance_in_phi(fit, nearby.distances, eligibility)
    panels, measured = panel_codes(reference, header), np.asarray(reference.varm[_keys.MEASURED])[gene_index].T
    # Only rows that may be cited are looked at from here on, so that a reference on disk need not be read as a whole.
    near = np.unique(np.concatenate([found.rows.ravel(), nearby.rows.ravel()]))
    near = near[near >= 0]
    bank = np.asarray(take_rows(reference.obsm[_keys.RETRIEVAL_KEY], near))
    values, spread_of = take_rows(reference.X, near)[:, gene_index], {"panels": panels[near], "measured": measured}
    level_rows, level_of = np.zeros((0, 0), dtype=np.int64), np.zeros(len(phi), dtype=np.int64)
    if method.gate is not None:
        hood = Neighbourhood(
            phi, _places(near, found.rows), found.distances, bank, state_of(parameters, obs, embedding)
        )
        rows, weights, distances = select_cited(found, method.gate(parameters, hood), n_neighbors)
        evidence = weighted_average(_places(near, rows), weights, values, **spread_of)
        if "section_shifts" in parameters:
            shifts = np.asarray(parameters["section_shifts"])[:, gene_index]
            sections = section_codes(reference)
            evidence -= weighted_shift(rows, weights, sections, shifts, panels=panels, measured=measured)
            spread_of |= {"sections": sections[near], "shifts": shifts}
            level_rows, level_of = _eligible_patterns(reference, header, eligibility)
            evidence += mean_shift(reference, header, shifts, gene_index, level_rows)[level_of]
    else:
        rows, weights = np.full_like(nearest, -1), np.zeros(nearest.shape)
        distances = np.full(nearest.shape, np.nan)
        evidence = np.broadcast_to(mean, (len(phi), len(mean))).copy()
    spread = None
    if with_disagreement:
        whom, how_much = (rows, weights) if method.cites else (nearest, (nearest >= 0).astype(np.float64))
        spread = disagreement(_places(near, whom), how_much, values, **spread_of)
    if method.adjustment is None:
        adjustment = np.zeros_like(evidence)
    else:
        of_genes = {name: np.asarray(parameters[name])[..., gene_index] for name in method.per_gene}
        of_rows = {name: np.asarray(parameters[name])[near] for name in method.per_row}
        cited = Cited(_places(near, rows), weights, bank)
        adjustment = method.adjustment({**parameters, **of_genes, **of_rows}, phi, cited).astype(np.float32)
    prediction = evidence + adjustment

    used = np.where(weights > 0, rows, -1) if method.cites else nearest
    obs = {
        _keys.EFFECTIVE_N: effective_n(weights),
        _keys.EVIDENCE_SHARE: evidence_share(evidence, adjustment, mean),
        **groundedness(reference, fit, used=used, distance=distance, eligibility=eligibility, raw=raw),
    }
    weights, distances = weights.astype(np.float32), distances.astype(np.float32)
    return Retrieved(prediction, evidence, spread, distance, rows, weights, distances, obs, level_rows, level_of)


def _candidates(
    reference: AnnData,
    fit: dict[str, Any],
    phi: np.ndarray,
    n_candidates: int,
    eligibility: Eligibility,
    backend: str,
) -> tuple[Candidates, Candidates]:
    """The nearest eligible rows, and those that the method chooses from."""
    from ragst_sd.retrieval.block_search import search_in_blocks
    from ragst_sd.retrieval.methods import METHODS
    from ragst_sd.retrieval.search import find_candidates

    key, candidates = reference.obsm[_keys.RETRIEVAL_KEY], METHODS[fit["method"]].candidates
    how = {"eligibility": eligibility, "tie_order": id_order(reference), "metric": fit["metric"]}
    if not is_lazy(reference):
        key = np.asarray(key)
        nearby = find_candidates(phi, key, n_candidates, backend=backend, **how)
        if candidates == "nearest":
            return nearby, nearby
        return nearby, find_candidates(phi, key, n_candidates, how=candidates, backend=backend, **how)
    if candidates != "nearest" or backend == "pynndescent":
        what = "`backend='pynndescent'`" if candidates == "nearest" else f"method {fit['method']!r}"
        msg = f"The reference is lazy, and {what} needs all of its rows. Load it with `reference.to_memory()`."
        raise ValueError(msg)
    nearby = search_in_blocks(phi, key, n_candidates, **how)
    return nearby, nearby


def _places(near: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where rows of the reference stand among `near`; -1 stays -1."""
    return np.where(rows >= 0, np.searchsorted(near, np.maximum(rows, 0)), -1)


def _eligible_patterns(
    reference: AnnData, header: dict[str, Any], eligibility: Eligibility
) -> tuple[np.ndarray, np.ndarray]:
    """Number of eligible rows of each section and panel for each set of queries with the same ones, and each query's set."""
    codes, groups = level_groups(reference, header)
    _, first, inverse = np.unique(eligibility.query_groups, axis=0, return_index=True, return_inverse=True)
    eligible = [eligibility.mask(np.array([i]), slice(None))[0] for i in first]
    rows = np.stack([np.bincount(codes[mask], minlength=len(groups)) for mask in eligible])
    return rows, inverse.ravel()
