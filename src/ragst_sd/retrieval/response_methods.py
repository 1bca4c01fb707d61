"""The registry of methods that predict responses to perturbations, all with one interface."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ragst_sd.retrieval.pt_rag import PtRagOptions, fit_pt_rag, respond_pt_rag
from ragst_sd.retrieval.response_baselines import (
    BilinearOptions,
    EqualOptions,
    NearestOptions,
    NoOptions,
    ResponseRidgeOptions,
    additive,
    bilinear,
    choose_alpha,
    context_additive,
    lacks_context_additive,
    lacks_same,
    lacks_singles,
    mean,
    nearest,
    nothing,
    ridge,
    same_perturbation,
)
from ragst_sd.retrieval.response_rag import prepare_rag, respond_rag
from ragst_sd.retrieval.response_selection import ResponseRagOptions, fit_rag

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragst_sd.retrieval.bank import Run
    from ragst_sd.retrieval.response_rag import ReadyRag
    from ragst_sd.retrieval.responses import Answer, Asked, Bank

Parameters = dict[str, Any]


def _keep(bank: Bank, run: Run) -> Parameters:
    """Nothing to learn: the parameters are the options."""
    return asdict(run.options)


@dataclass(frozen=True)
class ResponseMethod:
    """One way to predict responses, in the terms of response = evidence + adjustment."""

    respond: Callable[[Parameters, Bank, Asked, int], Answer]
    """(parameters, bank, what is asked for, rows to cite at most) -> answer. It uses eligible rows only."""
    cites: bool
    """Whether evidence is made of cited rows."""
    options: type
    """A dataclass of its options."""
    fit: Callable[[Bank, Run], Parameters] = _keep
    """(bank, run) -> plain parameters."""
    lacks: Callable[[Bank, Asked], list[str]] | None = None
    """Why the method cannot answer each query, empty where it can; `None` if it always can."""
    cites_candidates: bool = False
    """Whether all candidates are cited, not only the best `n_neighbors` of them: a method without selection."""
    n_neighbors: int = 3
    """Rows cited at most, if left out."""
    n_candidates: int = 32
    """Rows compared, if left out."""
    starts_from: str = "mean of the responses that may be used"
    """What evidence is where nobody is cited."""
    prepare: Callable[[Parameters, Bank, Asked, int], ReadyRag] | None = None
    """As `respond`, for queries that are asked again and again in other states."""
    needs_cells: bool = False
    """Whether it works on cells, not on mean responses alone."""
    learns: Literal["", "settings", "values"] = ""
    """What fitting takes from the responses of all rows, those that a query may not use among them: nothing, a few settings
    that are chosen on rows held out in turn, or the responses themselves, which a network remembers."""


RESPONSE_METHODS: dict[str, ResponseMethod] = {
    "rag": ResponseMethod(
        respond_rag,
        cites=True,
        options=ResponseRagOptions,
        fit=fit_rag,
        n_neighbors=16,
        n_candidates=128,
        prepare=prepare_rag,
        learns="settings",
    ),
    "pt_rag": ResponseMethod(
        respond_pt_rag,
        cites=True,
        options=PtRagOptions,
        fit=fit_pt_rag,
        n_neighbors=16,
        n_candidates=16,
        starts_from="prediction without retrieval",
        needs_cells=True,
        learns="values",
    ),
    "none": ResponseMethod(nothing, cites=False, options=NoOptions, starts_from="no response"),
    "mean": ResponseMethod(mean, cites=False, options=NoOptions),
    "additive": ResponseMethod(additive, cites=True, options=NoOptions, lacks=lacks_singles),
    "context_additive": ResponseMethod(context_additive, cites=True, options=NoOptions, lacks=lacks_context_additive),
    "same_perturbation": ResponseMethod(same_perturbation, cites=True, options=NoOptions, lacks=lacks_same),
    "knn": ResponseMethod(nearest, cites=True, options=NearestOptions),
    "naive_rag": ResponseMethod(nearest, cites=True, options=EqualOptions, cites_candidates=True),
    "random_rag": ResponseMethod(
        partial(nearest, how="random"), cites=True, options=EqualOptions, cites_candidates=True
    ),
    "ridge": ResponseMethod(
        ridge,
        cites=False,
        options=ResponseRidgeOptions,
        fit=lambda bank, run: {"alpha": choose_alpha(bank, run.options.alphas)},
        learns="settings",
    ),
    "bilinear": ResponseMethod(bilinear, cites=False, options=BilinearOptions),
}
