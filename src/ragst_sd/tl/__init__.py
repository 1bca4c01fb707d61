"""Tools: build a reference, pair it with single cells, fit, calibrate, predict, evaluate, cross-validate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.tl._add_cell_types import add_cell_types
    from ragst_sd.tl._build_perturbation_reference import build_perturbation_reference
    from ragst_sd.tl._build_reference import build_reference
    from ragst_sd.tl._calibrate import calibrate
    from ragst_sd.tl._cross_validate import cross_validate
    from ragst_sd.tl._embed_genes import embed_genes
    from ragst_sd.tl._evaluate import evaluate
    from ragst_sd.tl._evaluate_perturbation import evaluate_perturbation
    from ragst_sd.tl._fit import fit
    from ragst_sd.tl._merge_references import merge_references
    from ragst_sd.tl._perturb import perturb
    from ragst_sd.tl._perturb_tissue import perturb_tissue
    from ragst_sd.tl._perturbation_folds import perturbation_folds
    from ragst_sd.tl._predict import predict
    from ragst_sd.tl._register_method import register_method
    from ragst_sd.tl._report import report

__all__ = [
    "add_cell_types",
    "build_perturbation_reference",
    "build_reference",
    "calibrate",
    "cross_validate",
    "embed_genes",
    "evaluate",
    "evaluate_perturbation",
    "fit",
    "merge_references",
    "perturb",
    "perturb_tissue",
    "perturbation_folds",
    "predict",
    "register_method",
    "report",
]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
