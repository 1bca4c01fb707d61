"""Answers of the fitted method for pairs of perturbation and context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anndata import AnnData
from tqdm.auto import tqdm

from ragst_sd import _keys
from ragst_sd._bank import context_codes, open_bank, with_cells
from ragst_sd._eligibility import Where, allowed_rows, check_fewer, excluded_columns, recorded_where, where_of
from ragst_sd._gene_embedding import embed, lookup
from ragst_sd._labels import labels
from ragst_sd._reference import read_header
from ragst_sd._validate import as_names, listing, require_known, require_some
from ragst_sd.reference.responses import canonical, components
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval import response_run
from ragst_sd.retrieval.bank import Bank, Query
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.response_run import no_response
from ragst_sd.retrieval.responses import respond_to, same_perturbation

logger = logging.getLogger(__name__)

# Seconds after which a progress bar appears: most calls are over by then.
BAR_AFTER = 1.0
# What single precision leaves of a sum over rows.
_SAME = 1e-3


@dataclass(frozen=True)
class Task:
    """A fitted bank, and what of it may be used for a prediction."""

    bank: Bank
    """Rows in the order of their names, so that sums do not depend on the order in the reference."""
    n_neighbors: int | None
    """Rows to cite at most; what was fitted if `None`."""
    exclude: list[str]
    allowed: np.ndarray
    """(m,) rows that `where` lets through."""
    where: dict[str, Any]
    """What a header keeps of `where`."""

    @property
    def control(self) -> str:
        """Name of the control."""
        return str(self.bank.header.control)

    @property
    def method(self) -> Method:
        """The method that was fitted."""
        return RESPONSE_METHODS[self.bank.fit.method]

    def embed(self, perturbations: Sequence[str]) -> np.ndarray:
        """(n, d) embeddings of perturbations; a `KeyError` if a gene has none, or, without embeddings, no row."""
        if self.bank.key.shape[1]:
            return embed(perturbations, self.control, lookup(self.bank.header.embedding))
        measured = sorted(set(self.bank.obs[_keys.PERTURBATION].astype(str)))
        lacking = ": the reference has no embedding and no row of"
        require_known(perturbations, measured, "perturbations", lacking, KeyError)
        return np.zeros((len(perturbations), 0))

    def header(self, learned_from: dict[str, Any], context_key: str | None) -> dict[str, Any]:
        """What the provenance of a table has beside what that of every prediction has."""
        header = self.bank.header
        about: dict[str, Any] = {
            _keys.STARTS_FROM: self.method.starts_from,
            **{name: header.normalization[name] for name in ("unit", "naming")},
            "normalization": dict(header.normalization),
            "embedding": str(header.embedding["name"]),
            "control": header.control,
            _keys.CONTROL_NAMES: np.asarray(header.control_names, dtype=str),
            _keys.CONTROL_CELLS: header.control_cells.astype(str),
            _keys.LEARNED_FROM: learned_from,
            "n_neighbors": int(self.bank.fit.n_neighbors if self.n_neighbors is None else self.n_neighbors),
            "context_key": context_key or "",
            "exclude": np.asarray(self.exclude, dtype=str),
            **self.where,
        }
        if header.control_prints is not None:
            about[_keys.CONTROL_PRINTS] = header.control_prints
        if header.from_responses:
            genes, contexts = self.bank.genes.to_numpy(str), np.asarray(header.contexts, dtype=str)
            about[_keys.CONTEXT_MEANS] = {"context": contexts, "gene": genes, "mean": self.bank.screen.states}
        return about


def open_task(reference: AnnData, exclude: str | Sequence[str], n_neighbors: int | None, where: Where) -> Task:
    """Open a fitted reference of responses, and check what may be used of it."""
    bank, excluded = open_bank(reference, task=TASK), excluded_columns(exclude)
    require_known(excluded, (_keys.PERTURBATION, _keys.CONTEXT), "exclude", " names")
    if not excluded:
        logger.warning("`exclude` is empty: measured responses to the very perturbation may be used.")
    check_fewer(n_neighbors, bank.fit.n_neighbors)
    return _task(bank, excluded, n_neighbors, where)


def _task(bank: Bank, exclude: list[str], n_neighbors: int | None, where: Where) -> Task:
    order, needs_cells = np.argsort(bank.ids), RESPONSE_METHODS[bank.fit.method].needs_cells and bank.screen.from_cells
    ordered = bank.at_rows(order)
    return Task(
        bank=with_cells(ordered) if needs_cells else ordered,
        n_neighbors=n_neighbors,
        exclude=exclude,
        allowed=allowed_rows(bank.obs, where)[order],
        where=recorded_where(bank.ids, where),
    )


def wanted_perturbations(task: Task, perturbations: str | Sequence[str]) -> dict[str, str]:
    """Perturbations as they are asked for, and their one spelling; a `KeyError` if a gene has no embedding."""
    names = as_names(perturbations)
    require_some(names, "perturbations", "Name genes, combinations `A+B`, or the control.")
    known = {name: canonical(name, task.bank.header.control_names) for name in names}
    task.embed([name for name in known.values() if name != task.control])
    return known


def pairs_learned(what: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """How `learned_from` is written: what was learned from left-out responses, of which perturbations and contexts."""
    names, contexts = (np.asarray([pair[i] for pair in pairs], dtype=str) for i in (0, 1))
    return {"what": what if pairs else "", _keys.PERTURBATION: names, _keys.CONTEXT: contexts}


def respond(
    task: Task, pairs: list[tuple[str, str]], states: Mapping[str, np.ndarray], *, progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Values of pairs of perturbation and context, and what was learned of these; none if only controls are asked for.

    `states` is the mean expression (g,) of the cells of each context, on the genes of the reference.
    """
    if not pairs:
        return no_response(0, len(task.bank.genes)), pairs_learned("", [])
    query, learned_from = ask(task, pairs, np.array([states[context] for _, context in pairs]))
    with tqdm(total=len(pairs), unit="response", delay=BAR_AFTER, disable=not progress) as bar:
        return response_run.respond(task.method, task.bank, query, bar.update), learned_from


def ask(task: Task, pairs: list[tuple[str, str]], state: np.ndarray | None = None) -> tuple[Query, dict[str, Any]]:
    """Pairs of perturbation and context as a query, each of which has rows to answer from; what was learned of them.

    `state` is the (q, g) mean expression of the cells asked about; left out, that of their context in the reference.
    """
    bank, method, fit = task.bank, task.method, task.bank.fit
    query = Query(
        eligible=_eligible(task, pairs),
        key=task.embed([name for name, _ in pairs]),
        contexts=context_codes(np.array([context for _, context in pairs], dtype=object), bank.header),
        perturbed=tuple(components(name, bank.header.control_names) for name, _ in pairs),
        state=state,
        n_neighbors=int(task.n_neighbors or (fit.n_candidates if method.cites_candidates else fit.n_neighbors)),
    )
    if method.lacks is not None:
        reasons = method.lacks(bank, query)
        bad = [f"{p} in {c} ({reason})" for (p, c), reason in zip(pairs, reasons, strict=True) if reason]
        if bad:
            raise ValueError(
                f"Method {fit.method!r} has nothing to answer from for {listing(bad)}. Leave these out, or fit another "
                "method."
            )
    return query, _learned_from(task, query, pairs)


def _eligible(task: Task, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """(q, m) rows that each pair may use: those that differ from it in one of the columns of `exclude`.

    Raises
    ------
    ValueError
        If a pair has no row to answer from, or fewer than are to be cited.
    """
    same = np.full((len(pairs), len(task.bank)), bool(task.exclude))
    for name, asked in zip((_keys.PERTURBATION, _keys.CONTEXT), zip(*pairs, strict=True), strict=True):
        if name in task.exclude:
            same &= np.array(asked, dtype=object)[:, None] == labels(task.bank.obs[name])
    eligible = task.allowed & ~same
    if not eligible.any(axis=1).all():
        bad = [f"{p} in {c}" for (p, c), some in zip(pairs, eligible.any(axis=1), strict=True) if not some]
        raise ValueError(
            f"No row of the reference may be used for {listing(bad)}: the own perturbation in its context is left "
            "out, and `where` may reject rows. Relax it, or add perturbations to the reference."
        )
    if task.method.cites:
        check_fewer(task.n_neighbors, task.bank.fit.n_neighbors, int(eligible.sum(axis=1).min()))
    return eligible


def _learned_from(task: Task, query: Query, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The queries whose own perturbation was left out of what may be used, although the method was fitted on it."""
    bank, method = task.bank, task.method
    hit = same_perturbation(bank, query) & ~query.eligible
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
    return pairs_learned("responses" if method.learns == "values" else method.learns, learned)


def response_from_half(
    reference: AnnData,
    header: Mapping[str, Any],
    perturbation: str,
    context: str,
    response: np.ndarray,
    genes: list[str],
    state: np.ndarray | None,
) -> np.ndarray | None:
    """(g,) response to a perturbation in a context, predicted as if responses were measured against half the controls.

    What was measured against half 2 shares no controls with it. `None`, if the prediction cannot be made again: the
    reference was fitted anew, each spot has its own response, or a network has learned from all controls. `header` and
    `response` are those of the prediction; `state` is the (g,) mean expression of the cells, by default the context's.
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
    task = _task(bank, exclude, None if everybody else n_neighbors, where_of(bank.ids, header))
    query, _ = ask(task, [(perturbation, context)], whole)

    def answer(values: np.ndarray) -> np.ndarray:
        _, again = respond_to(method, replace(task.bank, values=values), query)
        return np.asarray((again.evidence + again.adjustment)[0, at])

    if np.abs(answer(task.bank.values) - response).max() > _SAME * np.abs(response).max() + 1e-6:
        return None
    return answer(task.bank.screen.halves[0])
