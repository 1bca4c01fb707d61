"""Genes of the synthetic tissue: which tissue expresses them, and what follows the picture. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ragst_sd.datasets._tissue import TISSUES

MARKERS = {
    "stroma": (
        "COL1A1 COL1A2 COL3A1 COL5A1 COL6A1 COL6A3 FN1 DCN LUM SPARC POSTN THY1 VIM FAP PDGFRA PDGFRB ACTA2 "
        "TAGLN MYL9 BGN MMP2 TIMP1 ELN FBLN1 SFRP2"
    ),
    "epithelium": (
        "EPCAM KRT8 KRT18 KRT19 KRT7 CDH1 MUC1 CLDN4 CLDN7 ELF3 ESRP1 TACSTD2 CD24 SPINT2 AGR2 TFF3 KRT20 "
        "LGALS4 TSPAN8 CEACAM5 PIGR FXYD3 S100A14 OLFM4 VIL1"
    ),
    "immune": (
        "PTPRC CD3D CD3E CD2 CD4 CD8A CD19 MS4A1 CD79A CD79B CCL19 CCL21 CXCL13 CCR7 LTB SELL TRAC IL7R "
        "CORO1A CD52 CD37 CXCR5 BANK1 IKZF1 LCK"
    ),
    "adipose": (
        "ADIPOQ PLIN1 PLIN4 FABP4 LEP LPL CIDEC CIDEA CD36 PPARG GPD1 AQP7 LIPE PNPLA2 CFD ADIPOR2 ACACB SCD RBP4 G0S2"
    ),
}
GRADIENTS = {
    "interferon": ("ISG15 IFI6 IFI27 IFI44L IFIT1 IFIT3 MX1 OAS1 STAT1 IRF1 CXCL9 CXCL10 GBP1 HLA-DRA B2M"),
    "proliferation": ("MKI67 TOP2A PCNA CCNB1 CDK1 BIRC5 TYMS STMN1 UBE2C MCM2 MCM5 CCNA2 AURKA TK1 CENPF"),
}
HOUSEKEEPING = (
    "ACTB GAPDH EEF1A1 TPT1 RPLP0 RPLP1 RPS18 RPS27A RPL13A RPL32 RPL10 RPS6 UBC UBB PPIA YWHAZ HPRT1 TBP "
    "SDHA PGK1 ALDOA LDHA ENO1 HSP90AB1 HSPA8 CFL1 PFN1 TUBA1B MYL6 GNAS EIF1 FTH1 FTL SOD1 PSAP CALM1 "
    "ATP5F1B COX4I1 NDUFA4 SLC25A3"
)
# RNA per nucleus or area of each tissue, relative to epithelium.
_RNA = np.array([0.5, 1.0, 0.9, 0.25])
_OVERDISPERSION = 0.12


@dataclass(frozen=True)
class Programmes:
    """What every donor's tissue shares."""

    genes: list[str]
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


def minimum_genes() -> int:
    """Number of named genes, which are always there."""
    named = [*MARKERS.values(), *GRADIENTS.values(), HOUSEKEEPING]
    return sum(len(symbols.split()) for symbols in named)


def draw_programmes(rng: np.random.Generator, n_genes: int) -> Programmes:
    """Loadings of ``n_genes`` genes: named ones first, then weak and unrelated ones with made-up names."""
    rows = [(gene, "marker", tissue) for tissue, symbols in MARKERS.items() for gene in symbols.split()]
    rows += [(gene, "gradient", name) for name, symbols in GRADIENTS.items() for gene in symbols.split()]
    rows += [(gene, "housekeeping", "") for gene in HOUSEKEEPING.split()]
    spare = n_genes - len(rows)
    rows += [(f"SYN{i + 1:04d}", "weak", "") for i in range(spare - spare // 3)]
    rows += [(f"NOISE{i + 1:04d}", "noise", "") for i in range(spare // 3)]
    genes = [gene for gene, _, _ in rows]
    kind, tissue = (np.array([row[column] for row in rows]) for column in (1, 2))

    base = rng.lognormal(0.0, 0.9, n_genes)
    base[kind == "housekeeping"] *= 4
    level = np.zeros((n_genes, len(TISSUES)))
    for column, name in enumerate(TISSUES):
        own = tissue == name
        # Markers are not exclusive: elsewhere they run at a few per cent.
        level[kind == "marker", column] = np.log(rng.uniform(0.01, 0.08, (kind == "marker").sum()))
        level[own, column] = rng.uniform(0.3, 1.2, own.sum())
    level[kind == "weak"] = rng.normal(0, 0.45, ((kind == "weak").sum(), len(TISSUES)))
    level[kind == "housekeeping"] = rng.normal(0, 0.08, ((kind == "housekeeping").sum(), len(TISSUES)))
    level[tissue == "interferon"] = np.log([0.3, 0.35, 0.8, 0.15])
    level[tissue == "proliferation"] = np.log([0.06, 0.35, 0.2, 0.03])
    loadings = base[:, None] * np.exp(level)
    effects = np.zeros((n_genes, len(GRADIENTS)))
    for column, name in enumerate(GRADIENTS):
        own = tissue == name
        effects[own, column] = rng.uniform(1.2, 2.2, own.sum())
    dispersion = np.full(n_genes, _OVERDISPERSION)
    dispersion[kind == "noise"] = rng.uniform(0.6, 1.5, (kind == "noise").sum())
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
