"""Prediction on arrays: search, gate, evidence and adjustment for the spots of one section."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import id_order, is_lazy, level_groups, take_rows
from ragst_sd._workers import spread_over_workers
from ragst_sd.tl._eligibility import eligible_counts
from ragst_sd.tl._grounding import distance_in_phi, groundedness
from ragst_sd.tl._state import state_of
from ragst_sd.tl._values import blocks_of_spots, make_bank, places, values_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ragst_sd.retrieval.search import Candidates, Eligibility
    from ragst_sd.tl._values import Bank


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
    recall: float = 1.0


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
    level_rows: np.ndarray
    level_of: np.ndarray
    obs: dict[str, np.ndarray]
    recall: float
    """Share of the true neighbours that the search found, estimated; 1 where it was exact."""

    def some(self, spots: slice) -> Chosen:
        """The same for some of the spots."""
        per_spot = ("phi", "rows", "weights", "distances", "nearest", "distance", "level_of")
        own = {name: getattr(self, name)[spots] for name in per_spot}
        return replace(self, **own, obs={name: values[spots] for name, values in self.obs.items()})


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
    chosen = choose(
        reference, header, fit, embedding, obs, eligibility=eligibility, n_neighbors=n_neighbors,
        n_candidates=n_candidates, backend=backend, raw=raw,
    )  # fmt: skip
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
    return Retrieved(
        prediction, evidence, spread, chosen.distance, chosen.rows, chosen.weights.astype(np.float32),
        chosen.distances.astype(np.float32), with_share(chosen.obs, share), chosen.level_rows, chosen.level_of, chosen.recall,
    )  # fmt: skip


def with_share(obs: dict[str, np.ndarray], share: np.ndarray) -> dict[str, np.ndarray]:
    """Columns with the share of evidence in its place."""
    first = {_keys.EFFECTIVE_N: obs[_keys.EFFECTIVE_N], _keys.EVIDENCE_SHARE: share}
    return {**first, **{name: values for name, values in obs.items() if name not in first}}


def choose(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    embedding: np.ndarray,
    obs: pd.DataFrame,
    *,
    eligibility: Eligibility,
    n_neighbors: int,
    n_candidates: int,
    backend: str,
    raw: np.ndarray | None = None,
    device: str = "cpu",
) -> Chosen:
    """Search and gate: what is cited, and how well grounded that is."""
    from ragst_sd.retrieval.evidence import effective_n, select_cited
    from ragst_sd.retrieval.methods import METHODS, phi_of
    from ragst_sd.retrieval.training import Neighbourhood

    parameters, method = fit["parameters"], METHODS[fit["method"]]
    phi = phi_of(fit["method"], parameters, embedding)
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
    return Chosen(
        phi,
        rows,
        weights,
        distances,
        nearest,
        distance,
        level_rows,
        level_of,
        columns,
        min(nearby.recall, found.recall),
    )


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
    from ragst_sd.retrieval.block_search import search_in_blocks
    from ragst_sd.retrieval.methods import METHODS
    from ragst_sd.retrieval.search import find_candidates

    key, candidates = reference.obsm[_keys.RETRIEVAL_KEY], METHODS[fit["method"]].candidates
    how = {"eligibility": eligibility, "tie_order": id_order(reference), "metric": fit["metric"], "device": device}
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
