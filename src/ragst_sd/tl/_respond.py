"""Answers of the fitted method for pairs of perturbation and context."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._eligibility import allowed_rows, recorded_where, where_of
from ragst_sd._perturbation_reference import perturbation_fit, perturbation_header
from ragst_sd._validate import listing
from ragst_sd.tl._gene_embedding import embed, lookup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from ragst_sd.retrieval.responses import Answer, Asked, Bank

logger = logging.getLogger(__name__)

# Seconds after which a progress bar appears: most calls are over by then.
BAR_AFTER = 1.0
# Numbers held at once: queries x candidates x genes.
_AT_ONCE = 3e7
# What single precision leaves of a sum over rows.
_SAME = 1e-3


@dataclass(frozen=True)
class Task:
    """A fitted reference, and what of it may be used for a prediction."""

    reference: AnnData
    header: dict[str, Any]
    fit: dict[str, Any]
    n_neighbors: int | None
    """Rows to cite at most; what was fitted if `None`."""
    exclude: list[str]
    where: Mapping[str, Any] | Sequence[bool] | np.ndarray | None

    @property
    def control(self) -> str:
        """Name of the control."""
        return str(self.header["control"])

    @property
    def contexts(self) -> list[str]:
        """Contexts of the reference."""
        return [str(name) for name in self.header["contexts"]["context"]]

    def embed(self, perturbations: Sequence[str]) -> np.ndarray:
        """(n, d) embeddings of perturbations; a `KeyError` if a gene has none."""
        return embed(perturbations, self.control, lookup(self.header["embedding"]))

    def settings(self, context_key: str | None, gene_overlap: float) -> dict[str, Any]:
        """What the header of a prediction keeps of this."""
        return {
            "n_neighbors": int(self.fit["n_neighbors"] if self.n_neighbors is None else self.n_neighbors),
            "context_key": context_key or "",
            _keys.GENE_OVERLAP: gene_overlap,
            "exclude": np.asarray(self.exclude, dtype=str),
            **recorded_where(self.reference.obs_names.to_numpy(str), self.where),
        }


@dataclass(frozen=True)
class Responded:
    """Predicted responses, one line per query."""

    rows: np.ndarray
    """Rows of the reference."""
    weights: np.ndarray
    distances: np.ndarray
    evidence: np.ndarray
    response: np.ndarray
    effective_n: np.ndarray
    evidence_share: np.ndarray
    embedding_share: np.ndarray | None
    """Of methods that have one: how much of the embedding the usable rows span."""
    learned_from: dict[str, Any]
    """Perturbations and contexts whose left-out response the method has learned from."""


def no_response(n: int, n_genes: int) -> Responded:
    """No response, resting on nobody."""
    rows, nothing, unknown = np.full((n, 1), -1), np.zeros((n, n_genes)), np.full(n, np.nan)
    missing = np.full((n, 1), np.nan)
    return Responded(rows, np.zeros((n, 1)), missing, nothing, nothing, unknown, unknown, None, pairs_learned("", []))


def pairs_learned(what: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """How `learned_from` is written: what was learned from the left-out responses, and of which perturbations and contexts."""
    names, contexts = (np.asarray([pair[i] for pair in pairs], dtype=str) for i in (0, 1))
    return {"what": what if pairs else "", _keys.PERTURBATION: names, _keys.CONTEXT: contexts}


def respond(task: Task, pairs: list[tuple[str, str]], states: Mapping[str, np.ndarray], *, progress: bool) -> Responded:
    """Answers for pairs of perturbation and context; none of them if only the control was asked for.

    `states` is the mean expression (g,) of the cells of each context, on the genes of the reference.
    """
    from tqdm.auto import tqdm

    from ragst_sd.retrieval.evidence import evidence_share
    from ragst_sd.retrieval.responses import take_queries

    if not pairs:
        return no_response(0, task.reference.n_vars)
    ready = prepare(task, pairs, np.array([states[context] for _, context in pairs]))
    chunk, parts = at_once(task), []
    with tqdm(total=len(pairs), unit="response", delay=BAR_AFTER, disable=not progress) as bar:
        for start in range(0, len(pairs), chunk):
            part = take_queries(ready.asked, np.arange(start, min(start + chunk, len(pairs))))
            parts.append(ready.answer(part))
            bar.update(len(part.key))
    answer = stacked(parts)
    return ready.responded(answer, evidence_share(answer.evidence, answer.adjustment, ready.bank.values.mean(axis=0)))


@dataclass(frozen=True)
class Prepared:
    """A fitted method with its bank and what is asked of it."""

    method: Any
    parameters: dict[str, Any]
    bank: Bank
    asked: Asked
    n_cited: int
    """Rows that are cited at most."""
    order: np.ndarray
    """Rows of the bank in the reference."""
    learned_from: dict[str, Any]
    """As in the header of the table."""

    def answer(self, asked: Asked) -> Answer:
        """What the method answers."""
        answer: Answer = self.method.respond(self.parameters, self.bank, asked, self.n_cited)
        return answer

    def responded(self, answer: Answer, share: np.ndarray) -> Responded:
        """Answers by the rows of the reference, with the share of the evidence in each."""
        from ragst_sd.retrieval.evidence import effective_n

        return Responded(
            rows=np.where(answer.rows >= 0, self.order[np.maximum(answer.rows, 0)], -1),
            weights=answer.weights,
            distances=answer.distances,
            evidence=answer.evidence,
            response=answer.evidence + answer.adjustment,
            effective_n=effective_n(answer.weights),
            evidence_share=share,
            embedding_share=answer.explained,
            learned_from=self.learned_from,
        )


def prepare(task: Task, pairs: list[tuple[str, str]], state: np.ndarray | None = None) -> Prepared:
    """Make the fitted method ready for pairs of perturbation and context.

    Raises
    ------
    KeyError
        If a gene has no embedding.
    ValueError
        If a pair has no row to answer from, or fewer than are to be cited.
    """
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
    from ragst_sd.tl._response_bank import asked_of, response_bank

    key = task.embed([name for name, _ in pairs])
    fit, method = task.fit, RESPONSE_METHODS[str(task.fit["method"])]
    # Rows in the order of their names, so that sums do not depend on the order in the reference.
    order = np.argsort(np.asarray(task.reference.obs_names, dtype=str))
    ordered, allowed = task.reference[order], allowed_rows(task.reference.obs, task.where)[order]
    bank = response_bank(ordered, task.header, metric=str(fit["metric"]), cells=method.needs_cells)
    asked = asked_of(ordered, task.header, pairs, key, allowed, task.exclude, state)
    _require_rows(bank, asked, pairs, method, task)
    n_cited = task.n_neighbors or fit["n_candidates" if method.cites_candidates else "n_neighbors"]
    learned = _learned_from(bank, asked, pairs, method, task)
    return Prepared(method, fit["parameters"], bank, asked, int(n_cited), order, learned)


def at_once(task: Task) -> int:
    """Queries to answer together: each is compared with its candidates over all genes."""
    n_candidates = min(int(task.fit["n_candidates"]), task.reference.n_obs)
    return max(1, int(_AT_ONCE / (n_candidates * task.reference.n_vars)))


def stacked(parts: Sequence[Answer]) -> Answer:
    """One answer of several; a method may cite as many rows as the query with most of them has, so that they differ in width."""
    width = max(part.rows.shape[1] for part in parts)
    joined: list[Any] = []
    for arrays, missing in zip(zip(*parts, strict=True), (-1, 0.0, np.nan, None, None, None), strict=True):
        if missing is not None:
            arrays = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=missing) for x in arrays]
        joined.append(None if arrays[0] is None else np.concatenate(arrays))
    return type(parts[0])(*joined)


def response_from_half(
    reference: AnnData,
    header: dict[str, Any],
    perturbation: str,
    context: str,
    response: np.ndarray,
    genes: list[str],
    state: np.ndarray | None,
) -> np.ndarray | None:
    """(g,) response that the fitted method predicts where every measured response is the one against half 1 of the controls.

    What was measured against half 2 shares no controls with it. Nothing, if the prediction at hand cannot be made again:
    the reference was fitted anew since, each spot has a response of its own, or a network has learned from all controls.

    Parameters
    ----------
    header
        Of the prediction.
    response
        (g,) the prediction at hand.
    state
        (g,) mean expression of the cells asked about; that of the context if left out.
    """
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

    own = perturbation_header(reference)
    if _keys.FIT not in own:
        return None
    fit = perturbation_fit(reference)
    method, n_neighbors = RESPONSE_METHODS[str(fit["method"])], int(header["n_neighbors"])
    if str(fit["fit_hash"]) != str(header["fit_hash"]) or method.learns == "values":
        return None
    at, whole = reference.var_names.get_indexer(genes), None
    if state is not None:
        whole = np.full((1, reference.n_vars), np.nan)
        whole[0, at] = state
    everybody = method.cites_candidates and n_neighbors == int(fit["n_neighbors"])
    exclude = [str(name) for name in np.atleast_1d(header["exclude"])]
    task = Task(
        reference,
        own,
        fit,
        None if everybody else n_neighbors,
        exclude,
        where_of(reference.obs_names.to_numpy(str), header),
    )
    ready = prepare(task, [(perturbation, context)], whole)

    def answer(values: np.ndarray) -> np.ndarray:
        again = replace(ready, bank=replace(ready.bank, values=values)).answer(ready.asked)
        return np.asarray((again.evidence + again.adjustment)[0, at])

    if np.abs(answer(ready.bank.values) - response).max() > _SAME * np.abs(response).max() + 1e-6:
        return None
    return answer(ready.bank.halves[0])


def _learned_from(bank: Bank, asked: Asked, pairs: list[tuple[str, str]], method: Any, task: Task) -> dict[str, Any]:
    """The queries whose own perturbation was left out of what may be used, although the method was fitted on it."""
    own = np.array([[mine == other for other in bank.genes] for mine in asked.genes], dtype=bool)
    hit = own & ~asked.eligible
    if method.needs_cells and bank.cells is not None:
        # Rows with a single cell do not teach.
        hit &= np.bincount(bank.cells.rows, minlength=len(bank.key)) > 1
    learned = [pair for pair, known in zip(pairs, hit.any(axis=1), strict=True) if known and method.learns]
    if learned and method.learns == "values":
        logger.warning(
            "%r was trained on the measured responses to %s: leaving them out (`exclude`, `where`) keeps them from being cited, not from "
            "having been learned. This is no test of the method; for one, fit a reference without them (`rg.tl.perturbation_folds`).",
            str(task.fit["method"]),
            listing(f"{p} in {c}" for p, c in learned),
        )
    what = "responses" if method.learns == "values" else method.learns
    return pairs_learned(what, learned)


def _require_rows(bank: Bank, asked: Asked, pairs: list[tuple[str, str]], method: Any, task: Task) -> None:
    """Raise a `ValueError` if a query has no row to answer from, or fewer than are to be cited."""
    eligible, n_neighbors = asked.eligible.sum(axis=1), task.n_neighbors
    if not eligible.all():
        bad = [f"{p} in {c}" for (p, c), n in zip(pairs, eligible, strict=True) if n == 0]
        msg = (
            f"No row of the reference may be used for {listing(bad)}: the own perturbation in its context is left out, and "
            "`where` may reject rows. Relax it, or add perturbations to the reference."
        )
        raise ValueError(msg)
    if n_neighbors is not None and method.cites and n_neighbors > eligible.min():
        msg = f"`n_neighbors` is {n_neighbors}, but only {eligible.min()} rows may be used. Ask for {eligible.min()} at most."
        raise ValueError(msg)
    if method.lacks is not None:
        reasons = method.lacks(bank, asked)
        bad = [f"{p} in {c} ({reason})" for (p, c), reason in zip(pairs, reasons, strict=True) if reason]
        if bad:
            msg = f"Method {str(task.fit['method'])!r} has nothing to answer from for {listing(bad)}. Leave these out, or fit another method."
            raise ValueError(msg)
