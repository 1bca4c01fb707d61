"""What a fitted method predicts: `select` finds the rows of all queries, `predict` gives their values by blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Bank, Query, Selection
from ragst_sd.retrieval.conformal import limits_around
from ragst_sd.retrieval.evidence import disagreement, evidence_share
from ragst_sd.retrieval.gate import normalised
from ragst_sd.retrieval.grounding import Grounding, distance_in_phi, grounding_of
from ragst_sd.retrieval.methods import METHODS, features_of, phi_of
from ragst_sd.retrieval.regression import REGRESSION, solve_regression
from ragst_sd.retrieval.search import find_candidates, search_in_blocks
from ragst_sd.retrieval.stack import mean_of_eligible, nothing_cited
from ragst_sd.retrieval.training import reference_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ragst_sd.retrieval.bank import Answer
    from ragst_sd.retrieval.conformal import IntervalRule
    from ragst_sd.retrieval.eligibility import Eligibility
    from ragst_sd.retrieval.method import Method
    from ragst_sd.retrieval.search import Candidates

    SpreadBlocks = Callable[[Callable[[Any, Any], Any], Iterable[Any], Any], Iterable[Any]]

# Values of one block of queries; some six arrays of that size exist at once, in float64.
_BLOCK_VALUES = 2**22
# Blocks are whole multiples of so many queries, so that linear algebra sees one shape.
_QUERIES = 128


class Selected(NamedTuple):
    """What is selected for all queries, and what is known before a value is predicted."""

    selection: Selection
    grounding: Grounding
    level_rows: np.ndarray
    """(patterns, groups) number of eligible rows of each section and panel, on whose mean evidence is put back."""
    recall: float
    """Share of the true neighbours that the search found, estimated; 1 where it was exact."""
    eligible: np.ndarray | None = None
    """(patterns, m) rows that may be used, where the regression of a stack has to be solved on a part of them."""


# What is predicted for some queries, by name: float32 (n, genes), in memory or on disk, and (n,) `evidence_share`.
Values = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """All that the values of some genes are computed from, for any query: what is sent to another process."""

    method: Method
    """The method itself: another process may not know it by name."""
    parameters: dict[str, Any]
    bank: Bank
    """Limited to the genes, without what values do not need; rows on disk keep all genes until they are read."""
    genes: np.ndarray
    """Positions of the genes in the reference."""
    spread: bool = True
    """Whether the disagreement of the cited rows is wanted."""
    intervals: IntervalRule | None = None
    """How limits are made, where they are wanted."""


def select(
    bank: Bank,
    embedding: np.ndarray,
    *,
    state: np.ndarray,
    eligibility: Eligibility,
    n_neighbors: int,
    backend: str = "auto",
    raw: np.ndarray | None = None,
    device: str = "cpu",
) -> Selected:
    """The rows that the method cites for each query, and how well grounded that is.

    Parameters
    ----------
    bank
        Of a fitted reference.
    embedding
        (n, d) standardised embeddings of the queries.
    state
        (n, s) their state, where the gate looks at one.
    raw
        (n, d) embeddings as they were made; with them it is also told whether queries look like any section.
    """
    fit = bank.fit
    phi = phi_of(fit.method, fit.parameters, embedding)
    nearby, candidates = _candidates(bank, phi, max(n_neighbors, fit.n_candidates), eligibility, backend, device)
    nearest = nearby.rows[:, :n_neighbors]
    selection = _cite_candidates(bank, Query(phi, candidates, state, n_neighbors))
    features = features_of(fit.method, fit.parameters, embedding)
    # Queries differ in the rows that they may use only where the means or the regression of these rows count.
    pattern, level_rows, eligible = np.zeros(len(phi), dtype=np.int64), np.zeros((0, 0), dtype=np.int64), None
    if fit.cites_level or features is not None:
        pattern = eligibility.patterns()[1]
    if fit.cites_level:
        level_rows = eligibility.of_level().count_by(bank.section_panels[0])
    if features is not None and not eligibility.pattern_masks().all():
        eligible = eligibility.pattern_masks()
        if bank.lazy:
            raise ValueError(
                f"The reference is lazy, and some of its rows may not be used: method {fit.method!r} solves its "
                "regression again on the others, which needs all of them. Load it with `reference.to_memory()`."
            )
    cited = np.where(selection.weights > 0, selection.rows, -1)
    grounding = grounding_of(
        bank,
        selection,
        used=np.where((cited >= 0).any(axis=1, keepdims=True), cited, nearest),
        distance=distance_in_phi(fit, nearby.distances, eligibility),
        eligibility=eligibility,
        raw=raw,
    )
    selection = replace(
        selection,
        nearest=nearest,
        pattern=pattern,
        features=features,
        mean_distance=grounding.distance,
        appearance_distance=grounding.appearance_distance,
    )
    return Selected(selection, grounding, level_rows, min(nearby.recall, candidates.recall), eligible)


def _candidates(
    bank: Bank, phi: np.ndarray, n_candidates: int, eligibility: Eligibility, backend: str, device: str
) -> tuple[Candidates, Candidates]:
    """The nearest eligible rows, and those that the method chooses from."""
    how = METHODS[bank.fit.method].candidates
    options = {"eligibility": eligibility, "tie_order": bank.order, "metric": bank.fit.metric, "device": device}
    if not bank.lazy:
        search = partial(find_candidates, phi, np.asarray(bank.key), n_candidates, backend=backend, **options)
        nearby = search()
        return nearby, nearby if how == "nearest" else search(how=how)
    if how != "nearest" or backend == "pynndescent":
        what = "`backend='pynndescent'`" if how == "nearest" else f"method {bank.fit.method!r}"
        raise ValueError(
            f"The reference is lazy, and {what} needs all of its rows. Load it with `reference.to_memory()`."
        )
    nearby = search_in_blocks(phi, bank.key, n_candidates, **options)
    return nearby, nearby


def _cite_candidates(bank: Bank, query: Query) -> Selection:
    """The candidates that the method cites; nothing for one that cites no rows."""
    method, candidates = METHODS[bank.fit.method], query.candidates
    if method.select is None:
        return nothing_cited(query)
    # Only rows that may be cited are looked at, so that a reference on disk need not be read as a whole.
    read = np.unique(candidates.rows[candidates.rows >= 0])
    query = replace(query, candidates=candidates._replace(rows=_positions(read, candidates.rows)))
    selection = method.select(bank.fit.parameters, replace(bank, key=read_rows(bank.key, read)), query)
    return replace(selection, rows=np.where(selection.rows >= 0, read[selection.rows], -1))


def part_of(bank: Bank, genes: np.ndarray, selected: Selected, **wanted: Any) -> Part:
    """The :class:`Part` of the genes at these positions; `wanted` are its fields `spread` and `intervals`.

    The means, and the regression, of the rows that the selected queries may use are computed here.
    """
    method, parameters = METHODS[bank.fit.method], dict(bank.fit.parameters)
    of_genes = ("reference_mean", "section_shifts", *method.per_gene)
    parameters |= {name: np.asarray(parameters[name])[..., genes] for name in of_genes if name in parameters}
    of_rows = ("embedding", "raw", "regression_key", "donors", "types", "ids", "obs", "digests")
    not_needed: dict[str, Any] = dict.fromkeys((*of_rows, "var", "genes", "header", "fit"))
    lean = replace(bank.at_genes(genes), **not_needed)
    if REGRESSION in parameters:
        # Once, and not again for every block of queries.
        parameters[REGRESSION] = parameters[REGRESSION].astype(np.float64)
    if "section_shifts" in parameters:
        parameters["level"] = lean.level(parameters["section_shifts"], selected.level_rows)
    if selected.eligible is not None:
        shifts = parameters.get("section_shifts", np.zeros((bank.sections.max() + 1, len(genes))))
        solved = [solve_regression(parameters, lean, bank.regression_key, shifts, rows) for rows in selected.eligible]
        parameters[REGRESSION], parameters["regression_intercept"] = map(np.stack, zip(*solved, strict=True))
        if "section_shifts" not in parameters:
            # Of uncentred fits, the mean over the rows that may be used relative to that of the reference.
            means = [reference_mean(lean, np.flatnonzero(rows)) for rows in selected.eligible]
            parameters["level"] = np.stack(means) - parameters["reference_mean"]
    return Part(method, parameters, lean, genes, **wanted)


def predict(part: Part, selection: Selection, spread_blocks: SpreadBlocks) -> Values:
    """The values of all queries, in memory.

    `spread_blocks(function, items, shared)` yields `function(shared, item)` for each item, in order.
    """
    n = len(selection.rows)
    blocks = blocks_of_queries(n, len(part.genes))
    out: Values = {}
    items = (selection.some(queries) for queries in blocks)
    for queries, of_block in zip(blocks, spread_blocks(values_of, items, part), strict=True):
        for name, values in of_block.items():
            if name not in out:
                out[name] = np.empty((n, *values.shape[1:]), dtype=values.dtype)
            out[name][queries] = values
    return out


def blocks_of_queries(n: int, n_genes: int) -> list[slice]:
    """Queries whose values are computed together, block by block."""
    size = _QUERIES * max(1, _BLOCK_VALUES // max(1, _QUERIES * n_genes))
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def values_of(part: Part, selection: Selection) -> Values:
    """The values of some queries at once: the memory that is taken grows with their number."""
    if part.bank.lazy:
        part, selection = _with_rows_in_memory(part, selection)
    answer = part.method.answers(part.parameters, part.bank, selection)
    prediction = answer.evidence + answer.adjustment
    values: Values = {"prediction": prediction, "evidence": answer.evidence}
    if part.spread or part.intervals is not None:
        values["disagreement"] = _disagreement(part, selection, answer)
    if part.intervals is not None:
        values["lower"], values["upper"] = limits_around(
            part.intervals, prediction, values["disagreement"], selection.mean_distance, selection.appearance_distance
        )
    mean = mean_of_eligible(part.parameters, selection.pattern).astype(np.float32)
    values["evidence_share"] = evidence_share(answer.evidence, answer.adjustment, mean)
    return values


def _disagreement(part: Part, selection: Selection, answer: Answer) -> np.ndarray:
    """Spread of what the cited rows bring; of the nearest ones where no row is cited."""
    rows, weights, average, shift = selection.rows, selection.weights, answer.average, answer.shift
    none = ~weights.any(axis=1, keepdims=True)
    if none.any():
        nearest = np.asarray(selection.nearest)
        equal = normalised((nearest >= 0).astype(np.float64))
        rows, weights = np.where(none, nearest, rows), np.where(none, equal, weights)
        average = shift = None
    shifts = part.parameters.get("section_shifts") if part.method.cites else None
    return disagreement(part.bank, rows, weights, shifts, average, shift)


def _with_rows_in_memory(part: Part, selection: Selection) -> tuple[Part, Selection]:
    """The part of a reference on disk with the rows that the selection needs, and the selection by their positions."""
    nearest = np.asarray(selection.nearest)
    read = np.unique(np.concatenate([selection.rows.ravel(), nearest.ravel()]))
    read = read[read >= 0]
    bank = replace(
        part.bank,
        values=read_rows(part.bank.values, read)[:, part.genes],
        key=read_rows(part.bank.key, read),
        panels=part.bank.panels[read],
        sections=part.bank.sections[read],
    )
    per_row = {name: np.asarray(part.parameters[name])[read] for name in part.method.per_row}
    rows, nearest = _positions(read, selection.rows), _positions(read, nearest)
    part = replace(part, bank=bank, parameters=part.parameters | per_row)
    return part, replace(selection, rows=rows, nearest=nearest)


def _positions(read: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions of rows of the reference among those that were read, which are sorted; -1 stays -1."""
    return np.where(rows >= 0, np.searchsorted(read, np.maximum(rows, 0)), -1)


def read_rows(values: Any, rows: np.ndarray) -> Any:
    """Some rows of a matrix, in memory; of one on disk block by block, one at a time."""
    if not hasattr(values, "dask"):
        return values[rows]
    order = np.argsort(rows, kind="stable")
    checked = values.map_blocks(_checked, meta=values._meta)
    return checked[rows[order]].compute(scheduler="synchronous")[np.argsort(order)]


def _checked(block: Any) -> Any:
    """A block as it was read, whose indices can be trusted."""
    if hasattr(block, "check_format"):
        # Compiled code follows the indices wherever they lead, and takes a value that is listed twice for two.
        block.check_format(full_check=True)
        block.sum_duplicates()
    return block
