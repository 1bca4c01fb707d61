"""Answers of the fitted method for pairs of perturbation and context."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._validate import listing
from ragst_sd.tl._perturbed_table import Responded, no_response, pairs_learned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from ragst_sd.retrieval.responses import Answer, Asked, Bank


logger = logging.getLogger(__name__)

# Seconds after which a progress bar appears: most calls are over by then.
BAR_AFTER = 1.0
# Numbers held at once: queries x candidates x genes.
_AT_ONCE = 3e7


def respond(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    pairs: list[tuple[str, str]],
    key: np.ndarray,
    *,
    n_neighbors: int | None,
    exclude: list[str],
    allowed: np.ndarray,
    states: Mapping[str, np.ndarray],
    progress: bool,
) -> Responded:
    """Answers for pairs of perturbation and context; none of them if only the control was asked for.

    `states` is the mean expression (g,) of the cells of each context, on the genes of the reference.
    """
    from tqdm.auto import tqdm

    from ragst_sd.retrieval.evidence import evidence_share
    from ragst_sd.retrieval.responses import take_queries

    if not pairs:
        return no_response(0, reference.n_vars)
    ready = prepare(
        reference, header, fit, pairs, key, n_neighbors=n_neighbors, exclude=exclude, allowed=allowed,
        state=np.array([states[context] for _, context in pairs]),
    )  # fmt: skip
    chunk, parts = at_once(fit, reference), []
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
    cited: int
    """Rows that are cited at most."""
    order: np.ndarray
    """Rows of the bank in the reference."""
    learned_from: dict[str, Any]
    """As in the header of the table."""

    def answer(self, asked: Asked) -> Answer:
        """What the method answers."""
        answer: Answer = self.method.respond(self.parameters, self.bank, asked, self.cited)
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


def prepare(
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    pairs: list[tuple[str, str]],
    key: np.ndarray,
    *,
    n_neighbors: int | None,
    exclude: list[str],
    allowed: np.ndarray,
    state: np.ndarray | None = None,
) -> Prepared:
    """Make the fitted method ready for pairs of perturbation and context.

    Raises
    ------
    ValueError
        If a pair has no row to answer from, or fewer than are to be cited.
    """
    from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
    from ragst_sd.tl._response_bank import asked_of, response_bank

    # Rows in the order of their names, so that sums do not depend on the order in the reference.
    order = np.argsort(np.asarray(reference.obs_names, dtype=str))
    name = str(fit["method"])
    ordered, method = reference[order], RESPONSE_METHODS[name]
    bank = response_bank(ordered, header, metric=str(fit["metric"]), cells=method.needs_cells)
    asked = asked_of(ordered, header, pairs, key, allowed[order], exclude, state)
    _require_rows(bank, asked, pairs, method, name, n_neighbors)
    cited = int(fit["n_candidates"] if method.cites_candidates else fit["n_neighbors"])
    cited = cited if n_neighbors is None else int(n_neighbors)
    learned = _learned_from(bank, asked, pairs, method, name)
    return Prepared(method, fit["parameters"], bank, asked, cited, order, learned)


def at_once(fit: Mapping[str, Any], reference: AnnData) -> int:
    """Queries to answer together: each is compared with its candidates over all genes."""
    return max(1, int(_AT_ONCE / (min(int(fit["n_candidates"]), reference.n_obs) * reference.n_vars)))


def stacked(parts: Sequence[Answer]) -> Answer:
    """One answer of several; a method may cite as many rows as the query with most of them has, so that they differ in width."""
    width = max(part.rows.shape[1] for part in parts)

    def wide(arrays: Sequence[np.ndarray], missing: float) -> np.ndarray:
        return np.concatenate(
            [np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=missing) for one in arrays]
        )

    rows, weights, distances, evidence, adjustment, explained = zip(*parts, strict=True)
    return type(parts[0])(
        wide(rows, -1), wide(weights, 0.0), wide(distances, np.nan), np.concatenate(evidence), np.concatenate(adjustment),
        None if explained[0] is None else np.concatenate(explained),
    )  # fmt: skip


def _learned_from(bank: Bank, asked: Asked, pairs: list[tuple[str, str]], method: Any, name: str) -> dict[str, Any]:
    """The queries whose own perturbation was left out of what may be used, although the method was fitted on it."""
    own = np.array([[mine == other for other in bank.genes] for mine in asked.genes], dtype=bool)
    hit = own & ~asked.eligible
    if method.needs_cells and bank.cells is not None:
        # Rows with a single cell do not teach.
        hit &= np.bincount(bank.cells.rows, minlength=len(bank.key)) > 1
    found = [pair for pair, learned in zip(pairs, hit.any(axis=1), strict=True) if learned] if method.learns else []
    if found and method.learns == "responses":
        logger.warning(
            "%r was trained on the measured responses to %s: leaving them out (`exclude`, `where`) keeps them from being cited, not from "
            "having been learned. This is no test of the method; for one, fit a reference without them (`rg.tl.perturbation_folds`).",
            name, listing(f"{p} in {c}" for p, c in found),
        )  # fmt: skip
    return pairs_learned(method.learns, found)


def _require_rows(
    bank: Bank, asked: Asked, pairs: list[tuple[str, str]], method: Any, name: str, n_neighbors: int | None
) -> None:
    """Raise a `ValueError` if a query has no row to answer from, or fewer than are to be cited."""
    eligible = asked.eligible.sum(axis=1)
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
            msg = f"Method {name!r} has nothing to answer from for {listing(bad)}. Leave these out, or fit another method."
            raise ValueError(msg)
