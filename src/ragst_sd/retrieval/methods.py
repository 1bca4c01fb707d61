"""The methods that predict expression from embeddings, by name, and what all of their fits have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.knn import KNN, KNN_SUPERVISED
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.mlp import MLP
from ragst_sd.retrieval.projection import fit_pca, project
from ragst_sd.retrieval.rag import RAG, RANDOM_RAG
from ragst_sd.retrieval.regression import KERNEL_RIDGE, REGRESSION
from ragst_sd.retrieval.ridge import MEAN, RIDGE
from ragst_sd.retrieval.training import reference_mean, section_shifts

# Methods of earlier releases that are kept beside the tables in which they are compared.
_IN_BENCHMARKS = ("ridge_residual", "bleep")

METHODS: dict[str, Method] = {
    "rag": RAG,
    "knn": KNN,
    "knn_supervised": KNN_SUPERVISED,
    "random_rag": RANDOM_RAG,
    "ridge": RIDGE,
    "kernel_ridge": KERNEL_RIDGE,
    "mlp": MLP,
    "mean": MEAN,
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
    raise ValueError(
        f"The reference was fitted with method {name!r}, which is not registered here (there are "
        f"{', '.join(map(repr, METHODS))}).{where} Register it with `rg.tl.register_method({name!r}, ...)`, or fit "
        "another method."
    )


class Fitted(NamedTuple):
    """What a method learned, and where it places the rows of the reference."""

    parameters: dict[str, Any]
    """Plain: the components, the per-gene reference mean, shifts of sections, and the method's own."""
    key: np.ndarray
    """Rows in phi-space, as they are searched."""
    queries: np.ndarray
    """The same rows, placed as queries are."""
    features: np.ndarray | None
    """Rows as the regression of a stack takes them."""


def fit_method(
    name: str, training: Bank, run: Run, *, components: tuple[np.ndarray, np.ndarray] | None = None
) -> Fitted:
    """Fit the principal components of (standardised) embeddings, unless they are given, and the method on top."""
    mean, axes = fit_pca(training.embedding, run.options.n_components) if components is None else components
    if axes.shape[1] == 0:
        raise ValueError("The embeddings do not vary between the rows of the reference: nothing can be searched.")
    training = replace(training, key=project(training.embedding, mean, axes))
    method = METHODS[name]
    parameters = {
        "projection_mean": mean,
        "projection": axes,
        "reference_mean": reference_mean(training),
        **method.fit(training, run),
    }
    if getattr(run.options, "center_sections", False):
        parameters["section_shifts"] = section_shifts(training)
    phi = training.key if method.place is None else method.place(parameters, training.key)
    rows = None if method.place_rows is None else method.place_rows(parameters, training)
    features = _features(method, parameters, training.key)
    return Fitted(parameters, phi if rows is None else rows, phi, features)


def phi_of(name: str, parameters: Mapping[str, Any], embedding: np.ndarray) -> np.ndarray:
    """Place standardised embeddings (n, d) in phi-space."""
    place, key = METHODS[name].place, _components(parameters, embedding)
    return key if place is None else place(parameters, key)


def features_of(name: str, parameters: Mapping[str, Any], embedding: np.ndarray) -> np.ndarray | None:
    """Features of standardised embeddings (n, d) in the regression of a stack; `None` where there is none."""
    return _features(METHODS[name], parameters, _components(parameters, embedding))


def _components(parameters: Mapping[str, Any], embedding: np.ndarray) -> np.ndarray:
    return project(embedding, np.asarray(parameters["projection_mean"]), np.asarray(parameters["projection"]))


def _features(method: Method, parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray | None:
    # A fit may have left the regression out.
    return None if method.regress is None or REGRESSION not in parameters else method.regress(parameters, key)
