"""The methods that predict responses to perturbations, by name."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from ragst_sd.retrieval import response_baselines as baselines
from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.pt_rag import PT_RAG
from ragst_sd.retrieval.response_rag import RAG
from ragst_sd.retrieval.response_shares import fit_stack, kernel_ridge, stack_of
from ragst_sd.retrieval.responses import cited_response


def _keep(bank: Bank, run: Run) -> dict[str, Any]:
    """Nothing to learn: the parameters are the options."""
    return asdict(run.options)


_PLAIN = partial(Method, baselines.NoOptions, _keep)
_EQUAL = partial(Method, baselines.EqualOptions, _keep, answer=cited_response, cites_candidates=True)

RESPONSE_METHODS: dict[str, Method] = {
    "rag": RAG,
    "pt_rag": PT_RAG,
    "none": _PLAIN(answer=baselines.nothing, starts_from="no response"),
    "mean": _PLAIN(answer=baselines.mean),
    "additive": _PLAIN(baselines.select_singles, baselines.additive, lacks=baselines.lacks_singles),
    "context_additive": _PLAIN(
        baselines.select_same, baselines.context_additive, lacks=baselines.lacks_context_additive
    ),
    "same_perturbation": _PLAIN(baselines.select_same, cited_response, lacks=baselines.lacks_same),
    "knn": Method(baselines.NearestOptions, _keep, baselines.select_nearest, cited_response, needs_embedding=True),
    "naive_rag": _EQUAL(select=baselines.select_nearest, needs_embedding=True),
    "random_rag": _EQUAL(select=partial(baselines.select_nearest, how="random")),
    "ridge": Method(
        baselines.ResponseRidgeOptions,
        lambda bank, run: {"alpha": baselines.choose_alpha(bank, run.options.alphas)},
        answer=baselines.ridge,
        learns="settings",
        needs_embedding=True,
    ),
    "kernel_ridge": Method(
        baselines.NoOptions,
        lambda bank, run: fit_stack(bank, run, parts=("kernel_ridge",)),
        answer=kernel_ridge,
        once=stack_of,
        learns="settings",
    ),
    "bilinear": Method(
        baselines.BilinearOptions,
        _keep,
        answer=lambda parameters, bank, selection: baselines.bilinear(parameters, bank, selection.query),
        needs_embedding=True,
    ),
}
