"""Random fields and point sets from which synthetic tissue is drawn. Arrays only; lengths are in pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

# White noise is filtered with this sigma on a coarse grid and then enlarged: wide filters on the full grid are slow.
_COARSE_SIGMA = 2.5


def enlarge(field: np.ndarray, step: float, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of a coarse field whose cells measure ``step`` pixels, cell centres kept in place."""
    out = field.astype(np.float32, copy=False)
    for axis, length in enumerate(shape):
        at = np.clip((np.arange(length, dtype=np.float32) + 0.5) / step - 0.5, 0, out.shape[axis] - 1)
        low = at.astype(np.intp)
        high = np.minimum(low + 1, out.shape[axis] - 1)
        weight = (at - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight[None, :]
        lower = np.take(out, low, axis=axis)
        upper = np.take(out, high, axis=axis)
        upper -= lower
        upper *= weight
        upper += lower
        out = upper
    return out


def coarse_shape(shape: tuple[int, int], step: float) -> tuple[int, int]:
    """Shape of the coarse grid with cells of ``step`` pixels that covers a picture."""
    return (max(2, int(np.ceil(shape[0] / step))), max(2, int(np.ceil(shape[1] / step))))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Gaussian random field with zero mean, unit variance and a correlation length of ``sigma`` pixels."""
    step = max(1.0, sigma / _COARSE_SIGMA)
    coarse = coarse_shape(shape, step)
    sigma = sigma / step
    noise = gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma, mode="wrap", truncate=3.0)
    noise *= 2 * np.sqrt(np.pi) * sigma if sigma > 0.5 else 1 / max(float(noise.std()), 1e-6)
    return noise if step == 1.0 else enlarge(noise, step, shape)


def hexagonal(shape: tuple[float, float], pitch: float, margin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) of a hexagonal lattice within a frame of (height, width), and their (row, column)."""
    rise = pitch * np.sqrt(3) / 2
    height, width = shape
    n_rows = max(1, int((height - 2 * margin) / rise) + 1)
    n_cols = max(1, int((width - 2 * margin) / pitch) + 1)
    rows, cols = (grid.ravel() for grid in np.mgrid[:n_rows, :n_cols])
    xy = np.column_stack([margin + (cols + 0.5 * (rows % 2)) * pitch, margin + rows * rise])
    # The lattice is centred in the frame, so that both edges lose the same amount.
    xy += ([width, height] - xy.max(0) - margin) / 2
    inside = (xy >= margin - 1e-6).all(1) & (xy <= np.array([width, height]) - margin + 1e-6).all(1)
    return xy[inside], np.column_stack([rows, 2 * cols + rows % 2])[inside]


def jittered(rng: np.random.Generator, shape: tuple[int, int], pitch: float, jitter: float) -> np.ndarray:
    """Hexagonal lattice whose points moved by up to ``jitter`` pitches, clipped to the frame."""
    xy, _ = hexagonal(shape, pitch)
    xy = xy + rng.uniform(-jitter, jitter, xy.shape) * pitch
    return np.clip(xy, 0, [shape[1] - 1, shape[0] - 1])


def scatter(
    rng: np.random.Generator, mask: np.ndarray, step: float, spacing: float, density: float = 6.0
) -> np.ndarray:
    """Random points in a coarse mask, no two closer than ``spacing`` pixels.

    The candidates are dense enough (``density`` per disc of that diameter) for the points to be
    packed rather than sparse.
    """
    rows, cols = np.nonzero(mask)
    if rows.size == 0:
        return np.empty((0, 2))
    n = int(np.ceil(rows.size * step**2 * density / (np.pi / 4 * spacing**2)))
    chosen = rng.integers(rows.size, size=n)
    xy = np.column_stack([cols[chosen], rows[chosen]]) + rng.random((n, 2))
    return thin(xy * step, spacing)


def thin(xy: np.ndarray, spacing: float, rounds: int = 4) -> np.ndarray:
    """Drop points until no two are closer than ``spacing``; earlier points win."""
    if len(xy) < 2:
        return xy
    pairs = cKDTree(xy).query_pairs(spacing, output_type="ndarray")
    first, second = pairs.min(1), pairs.max(1)
    alive = np.ones(len(xy), bool)
    kept = np.zeros(len(xy), bool)
    for _ in range(rounds):
        open_pair = alive[first] & alive[second]
        first, second = first[open_pair], second[open_pair]
        # A point without an earlier living neighbour is kept, and takes its later neighbours with it.
        leader = alive.copy()
        leader[second] = False
        kept |= leader
        alive &= ~leader
        alive[second[leader[first]]] = False
    return xy[kept]


def sample(field: np.ndarray, xy: np.ndarray, step: float = 1.0) -> np.ndarray:
    """Values of a field at points (x, y), nearest cell."""
    cols = np.clip((xy[:, 0] / step).astype(np.intp), 0, field.shape[1] - 1)
    rows = np.clip((xy[:, 1] / step).astype(np.intp), 0, field.shape[0] - 1)
    return field[rows, cols]


def smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a smooth ramp between."""
    ramp = np.clip((values - low) / (high - low), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def slope(field: np.ndarray, xy: np.ndarray, reach: float, step: float = 1.0) -> np.ndarray:
    """Angle of steepest ascent of a field at points (x, y)."""
    right, left = (sample(field, xy + np.array([sign * reach, 0.0]), step) for sign in (1, -1))
    below, above = (sample(field, xy + np.array([0.0, sign * reach]), step) for sign in (1, -1))
    return np.arctan2(below - above, right - left)
