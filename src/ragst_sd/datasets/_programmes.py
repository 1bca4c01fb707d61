"""Genes of the synthetic tissue: which tissue expresses them, and what follows the picture. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ragst_sd.datasets._tissue import TISSUES

_NAMED = yaml.safe_load(Path(__file__).with_name("synthetic_genes.yaml").read_text(encoding="utf-8"))
MARKERS: dict[str, str] = _NAMED["markers"]
GRADIENTS: dict[str, str] = _NAMED["gradients"]
HOUSEKEEPING: str = _NAMED["housekeeping"]
# RNA per nucleus or area of each tissue, relative to epithelium.
_RNA = np.array([0.5, 1.0, 0.9, 0.25])
_OVERDISPERSION = 0.12


@dataclass(frozen=True)
class Programmes:
    """What every donor's tissue shares."""

    genes: np.ndarray
    kind: np.ndarray
    """marker, gradient, housekeeping, weak or noise."""
    tissue: np.ndarray
    """Tissue or gradient that the gene marks, else an empty text."""
    loadings: np.ndarray
    """Mean share of each gene in the RNA of each tissue, genes x tissues; columns sum to 1."""
    effects: np.ndarray
    """Change of the log expression per unit of each gradient, genes x gradients."""
    dispersion: np.ndarray
    """Dispersion of the negative binomial: variance = mean + dispersion * mean^2."""


def _named_genes() -> list[tuple[str, str, str]]:
    """Symbol, kind, and tissue or gradient of the genes that are always there."""
    genes = [(gene, "marker", tissue) for tissue, symbols in MARKERS.items() for gene in symbols.split()]
    genes += [(gene, "gradient", name) for name, symbols in GRADIENTS.items() for gene in symbols.split()]
    return genes + [(gene, "housekeeping", "") for gene in HOUSEKEEPING.split()]


def minimum_genes() -> int:
    """Number of named genes, which are always there."""
    return len(_named_genes())


def draw_programmes(rng: np.random.Generator, n_genes: int) -> Programmes:
    """Loadings of ``n_genes`` genes: named ones first, then weak and unrelated ones with made-up names."""
    rows = _named_genes()
    spare = n_genes - len(rows)
    rows += [(f"SYN{i + 1:04d}", "weak", "") for i in range(spare - spare // 3)]
    rows += [(f"NOISE{i + 1:04d}", "noise", "") for i in range(spare // 3)]
    genes, kind, tissue = (np.array(column) for column in zip(*rows, strict=True))
    marker, housekeeping, weak, noise = (kind == name for name in ("marker", "housekeeping", "weak", "noise"))

    base = rng.lognormal(0.0, 0.9, n_genes)
    base[housekeeping] *= 4
    level = np.zeros((n_genes, len(TISSUES)))
    for column, name in enumerate(TISSUES):
        # Markers are not exclusive: elsewhere they run at a few per cent.
        level[marker, column] = np.log(rng.uniform(0.01, 0.08, marker.sum()))
        level[tissue == name, column] = rng.uniform(0.3, 1.2, (tissue == name).sum())
    level[weak] = rng.normal(0, 0.45, (weak.sum(), len(TISSUES)))
    level[housekeeping] = rng.normal(0, 0.08, (housekeeping.sum(), len(TISSUES)))
    level[tissue == "interferon"] = np.log([0.3, 0.35, 0.8, 0.15])
    level[tissue == "proliferation"] = np.log([0.06, 0.35, 0.2, 0.03])
    loadings = base[:, None] * np.exp(level)
    effects = np.zeros((n_genes, len(GRADIENTS)))
    for column, name in enumerate(GRADIENTS):
        effects[tissue == name, column] = rng.uniform(1.2, 2.2, (tissue == name).sum())
    dispersion = np.full(n_genes, _OVERDISPERSION)
    dispersion[noise] = rng.uniform(0.6, 1.5, noise.sum())
    return Programmes(genes, kind, tissue, loadings / loadings.sum(0), effects, dispersion)


def expected_counts(
    programmes: Programmes, fractions: np.ndarray, gradients: np.ndarray, shift: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Noise-free counts, spots x genes: a mixture of the tissues under each spot, scaled to its depth.

    ``mean = depth * p / sum(p)`` with ``p = (fractions * rna) @ loadings.T * exp(gradients @ effects.T + shift)``.
    """
    rate = (fractions * _RNA) @ programmes.loadings.T
    rate *= np.exp(gradients @ programmes.effects.T + shift)
    return rate * (depth / np.maximum(rate.sum(1), 1e-12))[:, None]


def draw_counts(rng: np.random.Generator, expected: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Negative binomial counts around their expectation, as a mixture of Poisson and gamma."""
    shape = 1 / dispersion
    return rng.poisson(rng.gamma(shape, size=expected.shape) * dispersion * expected)
