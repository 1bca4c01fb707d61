"""Answers of the fitted method for pairs of perturbation and context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from tqdm.auto import tqdm

from ragst_sd import _keys
from ragst_sd._bank import context_codes, open_bank, with_cells
from ragst_sd._eligibility import Where, allowed_rows, check_fewer, recorded_where, where_of
from ragst_sd._gene_embedding import embed, lookup
from ragst_sd._labels import as_names, labels
from ragst_sd._reference import read_header
from ragst_sd._validate import listing, require_known, require_some
from ragst_sd.reference.responses import canonical, components
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.bank import Answer, Bank, Query, Selection
from ragst_sd.retrieval.evidence import effective_n, evidence_share
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.responses import respond_to

logger = logging.getLogger(__name__)

# Seconds after which a progress bar appears: most calls are over by then.
BAR_AFTER = 1.0
# Numbers held at once: queries x candidates x genes.
_AT_ONCE = 3e7
# What single precision leaves of a sum over rows.
_SAME = 1e-3
UNSEEN, UNSEEN_HERE, MEASURED_HERE = "unseen perturbation", "unseen here", "measured here"
IN_COMBINATION = "measured in a combination"


@dataclass(frozen=True)
class Task:
    """A fitted bank, and what of it may be used for a prediction."""

    bank: Bank
    n_neighbors: int | None
    """Rows to cite at most; what was fitted if `None`."""
    exclude: list[str]
    where: Where

    @property
    def control(self) -> str:
        """Name of the control."""
        return str(self.bank.header.control)

    @property
    def contexts(self) -> list[str]:
        """Contexts of the reference."""
        return list(self.bank.header.contexts)

    @property
    def method(self) -> Method:
        """The method that was fitted."""
        return RESPONSE_METHODS[self.bank.fit.method]

    def embed(self, perturbations: Sequence[str]) -> np.ndarray:
        """(n, d) embeddings of perturbations; a `KeyError` if a gene has none, or, without embeddings, no row."""
        if not self.bank.key.shape[1]:
            measured = sorted(set(self.bank.obs[_keys.PERTURBATION].astype(str)))
            lacking = ": the reference has no embedding and no row of"
            require_known(perturbations, measured, "perturbations", lacking, KeyError)
            return np.zeros((len(perturbations), 0))
        return embed(perturbations, self.control, lookup(self.bank.header.embedding))

    def settings(self, context_key: str | None, gene_overlap: float) -> dict[str, Any]:
        """What the header of a prediction keeps of this."""
        return {
            "n_neighbors": int(self.bank.fit.n_neighbors if self.n_neighbors is None else self.n_neighbors),
            "context_key": context_key or "",
            _keys.GENE_OVERLAP: gene_overlap,
            "exclude": np.asarray(self.exclude, dtype=str),
            **recorded_where(self.bank.ids, self.where),
        }


def open_task(reference: AnnData, exclude: str | Sequence[str], n_neighbors: int | None, where: Where) -> Task:
    """Open a fitted reference of responses, and check what may be used of it."""
    bank, excluded = open_bank(reference, task=TASK), as_names(exclude)
    require_known(excluded, (_keys.PERTURBATION, _keys.CONTEXT), "exclude", " names")
    if not excluded:
        logger.warning("`exclude` is empty: measured responses to the very perturbation may be used.")
    check_fewer(n_neighbors, bank.fit.n_neighbors)
    return Task(bank, n_neighbors, excluded, where)


def wanted_perturbations(task: Task, perturbations: str | Sequence[str]) -> dict[str, str]:
    """Perturbations as they are asked for, and their one spelling; a `KeyError` if a gene has no embedding."""
    names = as_names(perturbations)
    require_some(names, "perturbations", "Name genes, combinations `A+B`, or the control.")
    known = {name: canonical(name, task.bank.header.control_names) for name in names}
    task.embed([name for name in known.values() if name != task.control])
    return known


class Responded(NamedTuple):
    """Predicted responses, one line per query."""

    values: dict[str, np.ndarray]
    """By the names of the fields that they become; rows are those of the reference."""
    learned_from: dict[str, Any]
    """Perturbations and contexts whose left-out response the method has learned from."""


def no_response(n: int, n_genes: int, k: int = 1) -> Responded:
    """No response, that rests on no rows."""
    nothing, unknown = np.zeros((n, n_genes)), np.full((n, k), np.nan)
    values = {
        _keys.ROWS: np.full((n, k), -1),
        _keys.WEIGHTS: np.zeros((n, k)),
        _keys.DISTANCES: unknown,
        _keys.EVIDENCE: nothing,
        _keys.RESPONSE: nothing,
        _keys.EFFECTIVE_N: unknown[:, 0],
        _keys.EVIDENCE_SHARE: unknown[:, 0],
        _keys.TASK: np.full(n, "control", dtype=object),
    }
    return Responded(values, pairs_learned("", []))


def pairs_learned(what: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """How `learned_from` is written: what was learned from left-out responses, of which perturbations and contexts."""
    names, contexts = (np.asarray([pair[i] for pair in pairs], dtype=str) for i in (0, 1))
    return {"what": what if pairs else "", _keys.PERTURBATION: names, _keys.CONTEXT: contexts}


def respond(task: Task, pairs: list[tuple[str, str]], states: Mapping[str, np.ndarray], *, progress: bool) -> Responded:
    """Answers for pairs of perturbation and context; none of them if only the control was asked for.

    `states` is the mean expression (g,) of the cells of each context, on the genes of the reference.
    """
    if not pairs:
        return no_response(0, len(task.bank.genes))
    ready = prepare(task, pairs, np.array([states[context] for _, context in pairs]))
    chunk, parts, once = at_once(task), [], task.method.once
    if once is not None:
        worked = once(task.bank.fit.parameters, ready.bank, ready.query)
        ready = replace(ready, query=replace(ready.query, worked=worked))
    with tqdm(total=len(pairs), unit="response", delay=BAR_AFTER, disable=not progress) as bar:
        for start in range(0, len(pairs), chunk):
            part = ready.query.some(np.arange(start, min(start + chunk, len(pairs))))
            parts.append(ready.answer(part))
            bar.update(len(part))
    return ready.responded(parts)


@dataclass(frozen=True)
class Prepared:
    """A fitted method with its bank, in the order of the names of its rows, and what is asked of it."""

    method: Method
    bank: Bank
    query: Query
    order: np.ndarray
    """Rows of the bank in the reference."""
    learned_from: dict[str, Any]
    """As in the header of the table."""

    def answer(self, query: Query) -> tuple[Selection, Answer]:
        """What the method answers, and the rows that it rests on."""
        return respond_to(self.method, self.bank, query)

    def responded(
        self,
        parts: Sequence[tuple[Selection, Answer]],
        share: np.ndarray | None = None,
        lines: np.ndarray | None = None,
    ) -> Responded:
        """Answers by the rows of the reference, with the share of the evidence in each, which may be given.

        `lines` says which query each answer is of, where it is not one each.
        """
        selections, answers = zip(*parts, strict=True)
        rows, weights, distances = _stacked(selections)
        evidence, adjustment = (
            np.concatenate([getattr(part, name) for part in answers]) for name in ("evidence", "adjustment")
        )
        if share is None:
            share = evidence_share(evidence, adjustment, self.bank.values.mean(axis=0))
        values = {
            _keys.ROWS: np.where(rows >= 0, self.order[np.maximum(rows, 0)], -1),
            _keys.WEIGHTS: weights,
            _keys.DISTANCES: distances,
            _keys.EVIDENCE: evidence,
            _keys.RESPONSE: evidence + adjustment,
            _keys.EFFECTIVE_N: effective_n(weights),
            _keys.EVIDENCE_SHARE: share,
            _keys.TASK: _tasks(self.bank, self.query)[slice(None) if lines is None else lines],
        }
        if answers[0].explained is not None:
            values[_keys.EMBEDDING_SHARE] = np.concatenate([part.explained for part in answers])
        return Responded(values, self.learned_from)


def _tasks(bank: Bank, query: Query) -> np.ndarray:
    """(q,) what the rows that may be used hold of each perturbation.

    Nothing, a combination that holds it, another context's response, or this one's.
    """
    rows = bank.screen.perturbed
    same = _same_perturbation(bank, query) & query.eligible
    holds = np.array([[set(asked) <= set(row) for row in rows] for asked in query.perturbed]) & query.eligible
    here = same & (query.contexts[:, None] == bank.sections)
    known = [part.any(axis=1) for part in (here, same, holds)]
    return np.select(known, [MEASURED_HERE, UNSEEN_HERE, IN_COMBINATION], UNSEEN).astype(object)


def prepare(task: Task, pairs: list[tuple[str, str]], state: np.ndarray | None = None) -> Prepared:
    """Make the fitted method ready for pairs of perturbation and context, each of which has rows to answer from.

    `state` is the (q, g) mean expression of the cells asked about; left out, that of their context in the reference.
    """
    method, fit = task.method, task.bank.fit
    # Rows in the order of their names, so that sums do not depend on the order in the reference.
    order = np.argsort(task.bank.ids)
    bank = (with_cells(task.bank) if method.needs_cells and task.bank.screen.from_cells else task.bank).at_rows(order)
    query = Query(
        key=task.embed([name for name, _ in pairs]),
        state=state,
        n_neighbors=int(task.n_neighbors or (fit.n_candidates if method.cites_candidates else fit.n_neighbors)),
        perturbed=tuple(components(name, task.bank.header.control_names) for name, _ in pairs),
        contexts=context_codes(np.array([context for _, context in pairs], dtype=object), bank.header),
        eligible=_eligible(bank, pairs, allowed_rows(task.bank.obs, task.where)[order], task.exclude),
    )
    _require_rows(bank, query, pairs, method, task)
    return Prepared(method, bank, query, order, _learned_from(bank, query, pairs, method, task))


def _eligible(bank: Bank, pairs: Sequence[tuple[str, str]], allowed: np.ndarray, exclude: Sequence[str]) -> np.ndarray:
    """(q, m) rows that each pair may use: those that differ from it in one of the columns of `exclude`."""
    same = np.full((len(pairs), len(bank)), bool(exclude))
    for i, name in enumerate((_keys.PERTURBATION, _keys.CONTEXT)):
        if name in exclude:
            asked = np.array([pair[i] for pair in pairs], dtype=object)
            same &= asked[:, None] == labels(bank.obs[name])
    return allowed & ~same


def at_once(task: Task) -> int:
    """Queries to answer together: each is compared with its candidates over all genes."""
    n_candidates = min(task.bank.fit.n_candidates, len(task.bank))
    return max(1, int(_AT_ONCE / (n_candidates * len(task.bank.genes))))


def _stacked(selections: Sequence[Selection]) -> list[np.ndarray]:
    """Rows, weights and distances, in the width of the query that cites most rows."""
    width = max(part.rows.shape[1] for part in selections)
    out = []
    for name, missing in (("rows", -1), ("weights", 0.0), ("distances", np.nan)):
        arrays = [getattr(part, name) for part in selections]
        padded = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=missing) for x in arrays]
        out.append(np.concatenate(padded))
    return out


def _same_perturbation(bank: Bank, query: Query) -> np.ndarray:
    """(q, m) rows of each query's perturbation, whether it may use them or not."""
    rows = bank.screen.perturbed
    return np.array([[asked == measured for measured in rows] for asked in query.perturbed], dtype=bool)


def _learned_from(bank: Bank, query: Query, pairs: list[tuple[str, str]], method: Method, task: Task) -> dict[str, Any]:
    """The queries whose own perturbation was left out of what may be used, although the method was fitted on it."""
    hit = _same_perturbation(bank, query) & ~query.eligible
    if method.needs_cells and bank.screen.cells is not None:
        # Rows with a single cell do not teach.
        hit &= np.bincount(bank.screen.cells.rows, minlength=len(bank.key)) > 1
    learned = [pair for pair, known in zip(pairs, hit.any(axis=1), strict=True) if known and method.learns]
    if learned and method.learns == "values":
        logger.warning(
            "%r was trained on the measured responses to %s: leaving them out (`exclude`, `where`) keeps them from "
            "being cited, not from having been learned. This is no test of the method; for one, fit a reference "
            "without them (`rg.tl.perturbation_folds`).",
            task.bank.fit.method,
            listing(f"{p} in {c}" for p, c in learned),
        )
    what = "responses" if method.learns == "values" else method.learns
    return pairs_learned(what, learned)


def _require_rows(bank: Bank, query: Query, pairs: list[tuple[str, str]], method: Method, task: Task) -> None:
    """Raise a `ValueError` if a query has no row to answer from, or fewer than are to be cited."""
    eligible = query.eligible.sum(axis=1)
    if not eligible.all():
        bad = [f"{p} in {c}" for (p, c), n in zip(pairs, eligible, strict=True) if n == 0]
        raise ValueError(
            f"No row of the reference may be used for {listing(bad)}: the own perturbation in its context is left "
            "out, and `where` may reject rows. Relax it, or add perturbations to the reference."
        )
    if task.n_neighbors is not None and method.cites and task.n_neighbors > eligible.min():
        raise ValueError(
            f"`n_neighbors` is {task.n_neighbors}, but only {eligible.min()} rows may be used. "
            f"Ask for {eligible.min()} at most."
        )
    if method.lacks is not None:
        reasons = method.lacks(bank, query)
        bad = [f"{p} in {c} ({reason})" for (p, c), reason in zip(pairs, reasons, strict=True) if reason]
        if bad:
            raise ValueError(
                f"Method {task.bank.fit.method!r} has nothing to answer from for {listing(bad)}. Leave these out, or "
                "fit another method."
            )


def response_from_half(
    reference: AnnData,
    header: Mapping[str, Any],
    perturbation: str,
    context: str,
    response: np.ndarray,
    genes: list[str],
    state: np.ndarray | None,
) -> np.ndarray | None:
    """(g,) response to a perturbation in a context, predicted if all measured responses are against half 1 of the controls.

    What was measured against half 2 shares no controls with it. `None`, if the prediction cannot be made again: the
    reference was fitted anew, each spot has its own response, or a network has learned from all controls. `header` and
    `response` are those of the prediction; `state` is the (g,) mean expression of the cells, that of the context if left out.
    """
    if _keys.FIT not in read_header(reference, TASK):
        return None
    bank = open_bank(reference, task=TASK)
    method, n_neighbors = RESPONSE_METHODS[bank.fit.method], int(header["n_neighbors"])
    if bank.fit.fit_hash != str(header["fit_hash"]) or method.learns == "values":
        return None
    at, whole = bank.genes.get_indexer(genes), None
    if state is not None:
        whole = np.full((1, len(bank.genes)), np.nan)
        whole[0, at] = state
    everybody = method.cites_candidates and n_neighbors == bank.fit.n_neighbors
    exclude = [str(name) for name in np.atleast_1d(header["exclude"])]
    task = Task(bank, None if everybody else n_neighbors, exclude, where_of(bank.ids, header))
    ready = prepare(task, [(perturbation, context)], whole)

    def answer(values: np.ndarray) -> np.ndarray:
        _, again = replace(ready, bank=replace(ready.bank, values=values)).answer(ready.query)
        return np.asarray((again.evidence + again.adjustment)[0, at])

    if np.abs(answer(ready.bank.values) - response).max() > _SAME * np.abs(response).max() + 1e-6:
        return None
    return answer(ready.bank.screen.halves[0])
