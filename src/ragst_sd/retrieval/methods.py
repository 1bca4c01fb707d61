"""The registry of methods that predict expression from embeddings, all with one interface."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.adjustment import apply_adjustment
from ragst_sd.retrieval.baselines import fit_ridge, ridge_adjustment
from ragst_sd.retrieval.centering import section_shifts
from ragst_sd.retrieval.gate import distance_gate, uniform_gate
from ragst_sd.retrieval.mlp import MLP_OPTIONS, fit_mlp, mlp_adjustment
from ragst_sd.retrieval.projection import fit_pca, project
from ragst_sd.retrieval.rag import RAG_OPTIONS, fit_rag, rag_bank, rag_gate, rag_phi
from ragst_sd.retrieval.supervised import fit_supervised, supervised_phi
from ragst_sd.retrieval.training import reference_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragst_sd.retrieval.training import Cited, Neighbourhood, Run, Training

Parameters = dict[str, Any]

_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 4, 22))
# Methods of earlier releases that are kept beside the tables in which they are compared.
_IN_BENCHMARKS = ("ridge_residual", "bleep")
_WEIGHTING = {"weighting": "distance", "sharpness": 2.0}


@dataclass(frozen=True)
class Method:
    """One way to predict, in the terms of prediction = evidence + adjustment."""

    cites: bool
    """Whether evidence is made of cited rows; else it is the per-gene mean of the reference."""
    learns_expression: bool
    """Whether fitting uses the expression of the rows, so that their donors count as seen."""
    options: Mapping[str, Any]
    """Options and their defaults; every method has `n_components`, 64 unless it says otherwise."""
    fit: Callable[[Training, np.ndarray, Mapping[str, Any], Run], Parameters]
    """(training, principal components of its rows, options, run) -> plain parameters."""
    phi: Callable[[Parameters, np.ndarray], np.ndarray] | None = None
    """(parameters, principal components (n, p)) -> (n, q); `None` leaves them as they are."""
    bank: Callable[[Parameters, Training, np.ndarray], np.ndarray | None] | None = None
    """(parameters, training, principal components) -> rows in phi-space, where they are not phi of their embedding; else None."""
    gate: Callable[[Parameters, Neighbourhood], np.ndarray] | None = None
    """(parameters, candidates of each query) -> weights (n, K)."""
    adjustment: Callable[[Parameters, np.ndarray, Cited], np.ndarray] | None = None
    """(parameters, phi of the queries, cited rows) -> (n, g), what is added to the evidence; `None` is zero."""
    per_gene: tuple[str, ...] = ()
    """Parameters of the adjustment whose last axis is genes."""
    per_row: tuple[str, ...] = ()
    """Parameters whose first axis is the rows of the reference."""
    candidates: str = "nearest"
    """How stage 1 finds candidates: `"nearest"`, or `"random"` for a control."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", {"n_components": 64, **self.options})


def _knn_gate(parameters: Parameters, hood: Neighbourhood) -> np.ndarray:
    if parameters["weighting"] == "uniform":
        return uniform_gate(hood.distances)
    return distance_gate(hood.distances, float(parameters["sharpness"]))


def _fit_knn(training: Training, key: np.ndarray, options: Mapping[str, Any], run: Run) -> Parameters:
    return {name: options[name] for name in _WEIGHTING}


def _fit_knn_supervised(training: Training, key: np.ndarray, options: Mapping[str, Any], run: Run) -> Parameters:
    return {**_fit_knn(training, key, options, run), **fit_supervised(training, key, alphas=options["alphas"])}


_RAG = Method(
    cites=True,
    learns_expression=True,
    options={"center_sections": True, **RAG_OPTIONS},
    fit=fit_rag,
    phi=rag_phi,
    bank=rag_bank,
    gate=rag_gate,
    adjustment=apply_adjustment,
    per_gene=("adjustment_out",),
)

METHODS: dict[str, Method] = {
    "rag": _RAG,
    "knn": Method(
        cites=True,
        learns_expression=False,
        options={"center_sections": True, **_WEIGHTING},
        fit=_fit_knn,
        gate=_knn_gate,
    ),
    "knn_supervised": Method(
        cites=True,
        learns_expression=True,
        options={"center_sections": True, **_WEIGHTING, "alphas": _ALPHAS},
        fit=_fit_knn_supervised,
        phi=supervised_phi,
        gate=_knn_gate,
    ),
    "random_rag": replace(
        _RAG,
        fit=lambda training, key, options, run: fit_rag(training, key, options, run, candidates="random"),
        candidates="random",
    ),
    "ridge": Method(
        cites=False,
        learns_expression=True,
        options={"alphas": _ALPHAS},
        fit=lambda training, key, options, run: fit_ridge(training, key, alphas=options["alphas"]),
        adjustment=lambda parameters, phi, cited: ridge_adjustment(parameters, phi),
        per_gene=("coefficients", "intercept"),
    ),
    "mlp": Method(
        cites=False,
        learns_expression=True,
        options=MLP_OPTIONS,
        fit=fit_mlp,
        adjustment=lambda parameters, phi, cited: mlp_adjustment(parameters, phi),
        per_gene=("coefficients", "intercept"),
    ),
    "mean": Method(cites=False, learns_expression=True, options={}, fit=lambda *_: {}),
}


def method_of_fit(name: str) -> Method:
    """The method that a fit was made with.

    Raises
    ------
    ValueError
        If it is not registered, or no longer part of the package.
    """
    if name in METHODS:
        return METHODS[name]
    where = (
        f" It is in `benchmarks/methods/{name}.py` of the repository, as `METHOD`." if name in _IN_BENCHMARKS else ""
    )
    msg = (
        f"The reference was fitted with method {name!r}, which is not registered here (there are "
        f"{', '.join(map(repr, METHODS))}).{where} Register it with `rg.tl.register_method({name!r}, ...)`, or fit "
        "another method."
    )
    raise ValueError(msg)


def fit_method(
    name: str, training: Training, options: Mapping[str, Any], run: Run
) -> tuple[Parameters, np.ndarray, np.ndarray]:
    """Fit the principal components and the method on top of them.

    Returns
    -------
    Plain parameters (the components, the per-gene reference mean, shifts of sections, and the method's own), the rows
    in phi-space as a bank, and as queries.
    """
    mean, axes = fit_pca(training.embedding, int(options["n_components"]))
    if axes.shape[1] == 0:
        msg = "The embeddings do not vary between the rows of the reference: nothing can be searched."
        raise ValueError(msg)
    key = project(training.embedding, mean, axes)
    method = METHODS[name]
    parameters = {
        "projection_mean": mean,
        "projection": axes,
        "reference_mean": reference_mean(training),
        **method.fit(training, key, options, run),
    }
    if options.get("center_sections"):
        parameters["section_shifts"] = section_shifts(training)
    phi = key if method.phi is None else method.phi(parameters, key)
    bank = None if method.bank is None else method.bank(parameters, training, key)
    bank = phi if bank is None else bank
    return parameters, bank, phi


def phi_of(name: str, parameters: Parameters, embedding: np.ndarray) -> np.ndarray:
    """Place standardised embeddings (n, d) in phi-space."""
    key = project(embedding, np.asarray(parameters["projection_mean"]), np.asarray(parameters["projection"]))
    phi = METHODS[name].phi
    return key if phi is None else phi(parameters, key)
