"""The registry of methods that predict expression from embeddings, all with one interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.retrieval.baselines import fit_ridge, ridge_adjustment
from ragst_sd.retrieval.gate import distance_gate, uniform_gate
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.training import Training, reference_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to predict, in the terms of prediction = evidence + adjustment."""

    cites: bool
    """Whether evidence is made of cited rows; else it is the per-gene mean of the reference."""
    learns_expression: bool
    """Whether fitting uses the expression of the rows, so that their donors count as seen."""
    options: Mapping[str, Any]
    """Options and their defaults."""
    fit: Callable[[Training, np.ndarray, Mapping[str, Any]], Parameters]
    """(training, phi of its rows, options) -> plain parameters."""
    gate: Callable[[Parameters, np.ndarray], np.ndarray] | None = None
    """(parameters, distances (n, k)) -> weights (n, k)."""
    adjustment: Callable[[Parameters, np.ndarray], np.ndarray] | None = None
    """(parameters, phi of the queries (n, p)) -> (n, g); `None` is zero."""
    per_gene: tuple[str, ...] = ()
    """Parameters of the adjustment whose last axis is genes."""
    projection: Mapping[str, Any] = field(default_factory=lambda: {"n_components": 64})
    """Options of phi and their defaults."""


def _knn_gate(parameters: Parameters, distances: np.ndarray) -> np.ndarray:
    if parameters["weighting"] == "uniform":
        return uniform_gate(distances)
    return distance_gate(distances, float(parameters["sharpness"]))


def _fit_knn(training: Training, key: np.ndarray, options: Mapping[str, Any]) -> Parameters:
    if options["weighting"] not in ("uniform", "distance"):
        msg = f"`weighting` is {options['weighting']!r}; it must be 'uniform' or 'distance'."
        raise ValueError(msg)
    return dict(options)


METHODS: dict[str, Method] = {
    "knn": Method(
        cites=True,
        learns_expression=False,
        options={"weighting": "distance", "sharpness": 2.0},
        fit=_fit_knn,
        gate=_knn_gate,
    ),
    "ridge": Method(
        cites=False,
        learns_expression=True,
        options={"alphas": tuple(float(alpha) for alpha in np.logspace(-3, 4, 22))},
        fit=lambda training, key, options: fit_ridge(training, key, alphas=options["alphas"]),
        adjustment=ridge_adjustment,
        per_gene=("coefficients", "intercept"),
    ),
    "mean": Method(cites=False, learns_expression=True, options={}, fit=lambda training, key, options: {}),
}


def resolve_options(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Defaults of a method with the given options laid over them.

    Raises
    ------
    ValueError
        If the method or an option does not exist.
    """
    if name not in METHODS:
        msg = f"`method` is {name!r}; available: {', '.join(map(repr, METHODS))}."
        raise ValueError(msg)
    defaults = {**METHODS[name].projection, **METHODS[name].options}
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        msg = f"Method {name!r} has no option {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, defaults))}."
        raise ValueError(msg)
    return {**defaults, **(given or {})}


def fit_method(name: str, training: Training, options: Mapping[str, Any]) -> tuple[Parameters, np.ndarray]:
    """Fit phi and the method.

    Returns
    -------
    Plain parameters (phi, per-gene reference mean, and the method's own), and the rows in phi-space.
    """
    from ragst_sd.retrieval.projection import project

    n_components = int(options["n_components"])
    if n_components < 1:
        msg = f"`n_components` is {n_components}; it must be at least 1."
        raise ValueError(msg)
    mean, axes = fit_pca(training.embedding, n_components)
    if axes.shape[1] == 0:
        msg = "The embeddings do not vary between the rows of the reference: nothing can be searched."
        raise ValueError(msg)
    key = project(training.embedding, mean, axes)
    own = METHODS[name].fit(training, key, options)
    shared = {"projection_mean": mean, "projection": axes, "reference_mean": reference_mean(training)}
    return {**shared, **own}, key
