"""One way to predict, whatever the task: how it is fitted, which rows it selects, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ragst_sd.retrieval.bank import Answer, Bank, Query, Run, Selection
from ragst_sd.retrieval.evidence import cited_mean, mean_of_reference

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to predict, in the terms of prediction = evidence + adjustment. All functions are pure, on arrays."""

    options: type
    """A dataclass of its options, with :mod:`ragst_sd.retrieval.options` for fields.

    Its docstring is their documentation.
    """
    fit: Callable[[Bank, Run], Parameters]
    """(bank, run) -> plain parameters. `bank.key` are principal components, `run.options` the options."""
    select: Callable[[Mapping[str, Any], Bank, Query], Selection] | None = None
    """(parameters, bank, query) -> rows to cite and their weights, for all queries at once; `None` cites no rows."""
    answer: Callable[[Mapping[str, Any], Bank, Selection], Answer] | None = None
    """(parameters, bank, selection) -> values by blocks of queries; `None`: mean of cited rows, or of the reference."""
    place: Callable[[Mapping[str, Any], np.ndarray], np.ndarray] | None = None
    """(parameters, principal components (n, p)) -> (n, q) places in phi-space; `None` leaves them as they are."""
    place_rows: Callable[[Mapping[str, Any], Bank], np.ndarray | None] | None = None
    """(parameters, bank) -> rows in phi-space, where they are not placed as queries are; else `None`."""
    regress: Callable[[Mapping[str, Any], np.ndarray], np.ndarray] | None = None
    """(parameters, principal components (n, p)) -> (n, q) features of the regression of a stack; else `None`."""
    per_gene: tuple[str, ...] = ()
    """Parameters of `answer` whose last axis is genes."""
    per_row: tuple[str, ...] = ()
    """Parameters of `answer` whose first axis is the rows of the reference."""
    candidates: Literal["nearest", "random"] = "nearest"
    """How stage 1 finds candidates; at random for a control."""
    learns: Literal["", "settings", "values"] = ""
    """What fitting takes from the measured values of the rows: nothing, a few settings, or the values themselves, so
    that their donors count as seen."""

    # Of responses to perturbations only.
    lacks: Callable[[Bank, Query], list[str]] | None = None
    """Why the method cannot answer each query, empty where it can; `None` if it always can."""
    cites_candidates: bool = False
    """Whether all candidates are cited, not only the best `n_neighbors` of them: a method without selection."""
    n_neighbors: int = 3
    """Rows cited at most, if left out."""
    n_candidates: int = 32
    """Rows compared, if left out."""
    starts_from: str = "mean of the responses that may be used"
    """What evidence is where no row is cited."""
    prepare: Callable[[Mapping[str, Any], Bank, Query], Any] | None = None
    """As `select`, for queries that are asked again and again in other states."""
    once: Callable[[Mapping[str, Any], Bank, Query], Any] | None = None
    """(parameters, bank, query) -> `query.worked`, where queries are answered a few at a time."""
    needs_cells: bool = False
    """Whether it works on cells, where there are any, not on mean responses alone."""
    needs_embedding: bool = False
    """Whether it compares perturbations by their embedding, so that a reference without one cannot be fitted."""

    @property
    def cites(self) -> bool:
        """Whether evidence is made of cited rows; else it is the per-gene mean of the reference."""
        return self.select is not None

    def answers(self, parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> Answer:
        """What the method answers."""
        answer = self.answer or (cited_mean if self.cites else mean_of_reference)
        return answer(parameters, bank, selection)
