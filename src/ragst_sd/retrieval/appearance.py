r"""How far a tile looks from the sections of a reference, before each section's own mean and spread are taken out.

Standardisation by section takes out stain and scanner, and with them what sets another organ or a wrong resolution
apart. Here embeddings are compared as they are, in units of the spread within the reference's sections:

.. math:: D^2(x) = \min_s\; z_s^\top (I + C)^{-1} z_s, \qquad z_s = (x - \mu_s) / \sigma

with the mean :math:`\mu_s` of section s, the pooled spread within sections :math:`\sigma` of each feature, and the
correlation C of the features within sections. This is half the squared Mahalanobis distance (as
`Lee et al. 2018 <https://arxiv.org/abs/1807.03888>`__ use it) with a covariance that is shrunk halfway to its diagonal
(`Friedman 1989 <https://doi.org/10.1080/01621459.1989.10478752>`__): directions in which the tiles of a section differ
count little, those in which they agree count in full.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ragst_sd.retrieval.blocks import in_blocks
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.training import centred_within_sections

# Directions along which tiles differ more than others do; beyond these, correlations hardly change the distance.
_N_AXES = 128
# A feature that hardly varies in the reference may be many spreads off in a single new tile.
CLIP = 10.0
# Share of a donor's tiles that may lie above the threshold, and share of donors that may have more of them there.
_TILES = 0.05
_DONORS = 0.1
# However many independent features an encoder has, donors differ in few ways: hue, depth of stain, sharpness, tissue.
_MOST_DIRECTIONS = 4.0


def calibrate_raw(embedding: np.ndarray, sections: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """All that later tells whether a tile looks like the reference: see the functions below.

    Returns
    -------
    What :func:`fit_appearance` gives; `means` (sections, d) of the raw embeddings; and the `threshold`.
    """
    parameters = fit_appearance(embedding, sections)
    threshold = appearance_threshold(embedding, sections, groups, parameters)
    return {**parameters, "means": section_means(embedding, sections), "threshold": np.float64(threshold)}


def fit_appearance(embedding: np.ndarray, sections: np.ndarray) -> dict[str, np.ndarray]:
    r"""Spread and correlation of (m, d) raw embeddings within their sections.

    Returns
    -------
    `scale`
        (d,), the pooled standard deviation; zero for features that do not vary.
    `axes`, `shrink`
        (d, p) and (p,): directions in which tiles of one section differ together, and how much less each counts.
    `dimension`
        Number of independent features that would be as many as these correlated ones,
        :math:`(\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2`.
    """
    centred = centred_within_sections(embedding, sections)
    spread = np.sqrt((centred**2).mean(axis=0))
    varies = spread > 1e-6 * np.maximum(1e-6, np.abs(embedding).mean(axis=0))
    scale = np.where(varies, spread, 0.0)
    centred *= _inverse(scale)
    _, axes = fit_pca(centred, _N_AXES)
    variance = ((centred @ axes) ** 2).mean(axis=0)
    total = float(varies.sum())
    return {
        "scale": scale,
        "axes": axes,
        "shrink": variance / (1 + variance),
        "dimension": np.float64(total**2 / np.sum(variance**2) if len(variance) else np.nan),
    }


def section_means(embedding: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """(sections, d) mean of the raw embeddings of each section, in the order of their codes."""
    return np.stack([embedding[sections == code].mean(axis=0, dtype=np.float64) for code in np.unique(sections)])


def appearance_distance(
    embedding: np.ndarray, means: np.ndarray, parameters: dict[str, np.ndarray], eligible: np.ndarray | None = None
) -> np.ndarray:
    """(n,) distance of each raw embedding to the nearest of the sections with these means.

    Parameters
    ----------
    eligible
        (n, sections) which of them count; all if left out. NaN where none does.
    """

    def squared_distances(rows: np.ndarray) -> np.ndarray:
        return np.stack([_squared_distance(rows, mean, parameters) for mean in means], axis=1)

    squared = in_blocks(squared_distances, np.asarray(embedding, dtype=np.float64), len(means))
    if eligible is not None:
        squared[~eligible] = np.inf
    nearest = squared.min(axis=1)
    return np.sqrt(np.where(np.isfinite(nearest), np.maximum(nearest, 0.0), np.nan))


def appearance_threshold(
    embedding: np.ndarray, sections: np.ndarray, groups: np.ndarray, parameters: dict[str, np.ndarray]
) -> float:
    r"""The distance beyond which a tile looks like none of the sections, from groups (donors) that are held out.

    .. math:: \theta^2 = F_{0.9}\big(\nu,\, \nu (G - 1)\big)\; \frac{1}{G} \sum_g q_g

    with the 95th percentile :math:`q_g` of the squared distances of the tiles of group g to the sections of the G - 1
    other groups, and the 90th percentile of Fisher's distribution. Donors are the unit, not tiles: they differ in
    stain, in sharpness and in how mixed their tissue is. A squared distance is a sum of squares over :math:`\nu`
    independent directions (`dimension`, 4 at most); if those of donors were normal and alike, that of a new donor over
    the average of G known ones would follow F. So the fewer donors are known, the wider the margin.

    Parameters
    ----------
    groups
        (m, e) codes; a tile is compared with sections of rows that share none of its codes.

    Returns
    -------
    NaN where fewer than two groups can be compared with others.
    """
    # Its distribution as a class would import all of `scipy.stats`, which takes half a second.
    from scipy.special import fdtri

    kinds, of_row = np.unique(groups, axis=0, return_inverse=True)
    of_row = of_row.ravel()
    quantiles = []
    for g, kind in enumerate(kinds):
        held, others = of_row == g, (groups != kind).all(axis=1)
        if others.any():
            means = section_means(embedding[others], sections[others])
            squared = appearance_distance(embedding[held], means, parameters) ** 2
            quantiles.append(np.quantile(squared, 1 - _TILES))
    if len(quantiles) < 2 or not parameters["dimension"] > 0:
        return float("nan")
    dimension = min(float(parameters["dimension"]), _MOST_DIRECTIONS)
    margin = fdtri(dimension, dimension * (len(quantiles) - 1), 1 - _DONORS)
    return float(np.sqrt(margin * np.mean(quantiles)))


def _squared_distance(embedding: np.ndarray, mean: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    r"""(n,) squared distance of each tile to one section: :math:`z^\top (I + C)^{-1} z`."""
    z = np.clip((embedding - mean) * _inverse(np.asarray(parameters["scale"])), -CLIP, CLIP)
    together = z @ np.asarray(parameters["axes"])
    return np.asarray(np.einsum("nd,nd->n", z, z) - together**2 @ np.asarray(parameters["shrink"]))


def _inverse(scale: np.ndarray) -> np.ndarray:
    """One over the scale of each feature; zero for features that do not vary, which then do not count."""
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
