"""Spots on a drawn section, and the counts under them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from ragst_sd.datasets._fields import hexagonal, sample
from ragst_sd.datasets._nuclei import LYMPHOID
from ragst_sd.datasets._programmes import GRADIENTS, draw_counts, expected_counts
from ragst_sd.datasets._tissue import TISSUES

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.datasets._programmes import Programmes
    from ragst_sd.datasets._tissue import Tissue

DIAMETER_UM = 55.0
_PITCH_UM = 100.0
_MIN_TISSUE = 0.5
_MEAN_CELLULARITY = 10.0


def measure(
    rng: np.random.Generator,
    tissue: Tissue,
    programmes: Programmes,
    shift: np.ndarray,
    *,
    depth: float,
    n_spots: int | None,
) -> AnnData:
    """Lay spots over the tissue and count.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue
        The drawn section.
    programmes
        Genes and what drives them.
    shift
        The donor's log-scale shift of each gene.
    depth
        Counts of a spot of average cellularity.
    n_spots
        Keep at most this many, nearest to the middle.
    """
    import pandas as pd
    from anndata import AnnData

    mpp, radius = tissue.mpp, DIAMETER_UM / 2 / tissue.mpp
    # Half a micron of slack keeps the circles off the border.
    xy, grid = hexagonal(tissue.classes.shape, _PITCH_UM / mpp, margin=radius + 0.5 / mpp)
    fractions = _fractions(tissue.classes, xy, radius)
    keep = np.flatnonzero(fractions.sum(1) >= _MIN_TISSUE)
    if n_spots is not None and len(keep) > n_spots:
        from_middle = np.hypot(*(xy[keep] - np.array(tissue.classes.shape[::-1]) / 2).T)
        keep = np.sort(keep[np.argsort(from_middle, kind="stable")[:n_spots]])
    xy, grid, fractions = xy[keep], grid[keep], fractions[keep]

    under = cKDTree(tissue.nuclei.xy).query_ball_point(xy, radius, return_sorted=True)
    n_nuclei = np.array([len(found) for found in under])
    small = np.array([(tissue.nuclei.kind[found] == LYMPHOID).sum() for found in under])
    # A lymphocyte holds about a third of the RNA of other cells.
    cellularity = 4 + n_nuclei - 0.67 * small
    gradients = np.column_stack(
        [np.exp(-np.maximum(sample(tissue.aggregate, xy), 0) / 120), sample(tissue.proliferation, xy)]
    )
    depths = depth * (cellularity / _MEAN_CELLULARITY) ** 0.8 * rng.lognormal(0, 0.2, len(xy))
    expected = expected_counts(programmes, fractions, gradients, shift, depths)
    counts = draw_counts(rng, expected, programmes.dispersion)

    obs = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(fractions.argmax(1), list(TISSUES)),
            "n_nuclei": n_nuclei,
            "array_row": grid[:, 0],
            "array_col": grid[:, 1],
        },
        index=[f"{col}x{row}" for row, col in grid],
    )
    var = pd.DataFrame(
        {"kind": pd.Categorical(programmes.kind), "marks": pd.Categorical(programmes.tissue)}, index=programmes.genes
    )
    table = AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    table.layers["expected"] = expected.astype(np.float32)
    table.obsm["spatial"] = xy
    table.obsm["tissue_fraction"] = fractions.astype(np.float32)
    table.obsm["gradients"] = gradients.astype(np.float32)
    table.varm["programmes"] = programmes.loadings.astype(np.float32)
    table.varm["effects"] = programmes.effects.astype(np.float32)
    table.uns["truth"] = {
        "tissues": np.array(TISSUES),
        "gradients": np.array(list(GRADIENTS)),
        "donor_shift": shift.astype(np.float32),
    }
    return table


def _fractions(classes: np.ndarray, xy: np.ndarray, radius: float) -> np.ndarray:
    """Share of each tissue in the disc under each spot; glass makes up the rest."""
    step = max(1, round(radius / 14))
    offsets = np.arange(-int(radius), int(radius) + 1, step)
    dx, dy = (g.ravel() for g in np.meshgrid(offsets, offsets))
    disc = np.hypot(dx, dy) <= radius
    centres = xy.astype(np.intp)
    under = classes[centres[:, 1:] + dy[disc], centres[:, :1] + dx[disc]]
    return np.stack([(under == i + 1).mean(1) for i in range(len(TISSUES))], axis=1)
