"""Distances between two sets of cells."""

from __future__ import annotations

import numpy as np

DISTANCES = ("energy", "wasserstein1", "wasserstein2", "mmd")


def distribution_distance(x: np.ndarray, y: np.ndarray, name: str) -> float:
    r"""Distance between cells x (n, d) and y (m, d).

    `energy`
        :math:`2\,E|x-y| - E|x-x'| - E|y-y'|`
    `wasserstein1`, `wasserstein2`
        Mean distance, and root mean squared distance, of the best matching of the cells; n = m.
    `mmd`
        :math:`E\,k(x,x') + E\,k(y,y') - 2\,E\,k(x,y)` with :math:`k = \exp(-|a-b|^2 / 2 s^2)` and s the median distance
        among the cells y.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist, pdist

    between = cdist(x, y)
    if name == "energy":
        return float(2 * between.mean() - cdist(x, x).mean() - cdist(y, y).mean())
    if name == "mmd":
        scale = 2 * max(float(np.median(pdist(y))), 1e-12) ** 2
        kernels = [np.exp(-(distance**2) / scale).mean() for distance in (cdist(x, x), cdist(y, y), between)]
        return float(kernels[0] + kernels[1] - 2 * kernels[2])
    if len(x) != len(y):
        msg = f"{name} matches sets of one size; there are {len(x)} and {len(y)} cells."
        raise ValueError(msg)
    cost = between if name == "wasserstein1" else between**2
    mean = cost[linear_sum_assignment(cost)].mean()
    return float(mean if name == "wasserstein1" else np.sqrt(mean))


def principal_axes(cells: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (g, p) leading axes of cells."""
    from sklearn.decomposition import PCA

    p = min(n_components, *cells.shape)
    pca = PCA(n_components=p, svd_solver="full").fit(cells)
    return pca.mean_, pca.components_.T
