"""The regression of the stack on its own: kernel ridge, which cites no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank, Run, Selection
from ragst_sd.retrieval.centering import section_shifts
from ragst_sd.retrieval.evidence import mean_of_reference
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import CitingOptions, count
from ragst_sd.retrieval.regression import fit_regression, regression_features
from ragst_sd.retrieval.stack import regression_of
from ragst_sd.retrieval.targets import held_out_splits, standardised_targets


@dataclass(frozen=True)
class KernelRidgeOptions(CitingOptions):
    """Options of `kernel_ridge`, which mean what they mean for `rag`.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    center_sections
        Take measured values relative to the mean of their section.
    n_train_genes
        Genes on which penalty and kernel are chosen, the most variable ones.
    """

    n_train_genes: int = count(250)


def fit_kernel_ridge(training: Bank, run: Run) -> dict[str, Any]:
    """The parameters of :func:`ragst_sd.retrieval.regression.fit_regression`, with no share of retrieval."""
    n_genes = int(run.options.n_train_genes)
    targets = standardised_targets(training, np.arange(len(training)), n_genes, "kernel_ridge").values
    shifts = section_shifts(training) * bool(run.options.center_sections)
    return fit_regression(training, targets, held_out_splits(training), None, shifts, rng=run.rng)


def _adjustment(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    return regression_of(parameters, selection)


KERNEL_RIDGE = Method(
    KernelRidgeOptions,
    fit_kernel_ridge,
    answer=partial(mean_of_reference, adjustment=_adjustment),
    regress=regression_features,
    per_gene=("retrieval_share", "regression_coefficients", "regression_intercept"),
    learns="values",
)
