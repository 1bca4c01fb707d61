"""Anatomy of a synthetic section: where tissue, glands, lymphoid aggregates and fat lie. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ragst_sd.datasets._fields import coarse_shape, enlarge, jittered, sample, scatter, smooth_noise
from ragst_sd.datasets._nuclei import Nuclei, draw_nuclei

TISSUES = ("stroma", "epithelium", "immune", "adipose")
"""Tissue classes; value ``i + 1`` of the label image is the ``i``-th, 0 is glass."""

_STEP_UM = 4.0
_FAT_CELL_UM = 62.0
_GLAND_PITCH_UM = 116.0
_CELL_HEIGHT_UM = 25.0


@dataclass(frozen=True)
class Tissue:
    """Drawn anatomy of one section. Distances are in microns, negative inside."""

    mpp: float
    outside: np.ndarray
    """Distance to the edge of the section."""
    gland: np.ndarray
    """Distance to the basal membrane of the nearest gland."""
    aggregate: np.ndarray
    """Distance to the nearest lymphoid aggregate."""
    fat: np.ndarray
    """Distance to the wall of the fat cell; 0 outside fat."""
    fibre_along: np.ndarray
    fibre_across: np.ndarray
    """Coordinates along and across the collagen fibres, in microns."""
    cell_height: np.ndarray
    """Height of the gland epithelium."""
    proliferation: np.ndarray
    """Proliferative activity, 0 to 1."""
    nuclei: Nuclei
    classes: np.ndarray
    """Tissue class per pixel, see ``TISSUES``."""


@dataclass(frozen=True)
class Composition:
    """How much of a section each tissue takes."""

    adipose: float = 0.15
    epithelium: float = 0.5
    aggregates_per_mm2: float = 3.5


def draw_tissue(rng: np.random.Generator, image_px: int, mpp: float, composition: Composition) -> Tissue:
    """Draw the anatomy of one section.

    Parameters
    ----------
    rng
        Source of randomness.
    image_px
        Edge of the square picture.
    mpp
        Microns per pixel.
    composition
        How much of the section each tissue takes.
    """
    shape = (image_px, image_px)
    step = max(1.0, _STEP_UM / mpp)
    grid = coarse_shape(shape, step)
    um = mpp * step  # microns per cell of the coarse grid, on which everything smooth is computed
    y, x = (np.mgrid[: grid[0], : grid[1]].astype(np.float32) + 0.5) * um
    outside = _outline(rng, x, y, image_px * mpp, um)
    aggregate = _aggregates(rng, x, y, outside, um, composition.aggregates_per_mm2)
    spare = (outside < -10) & (aggregate > 45)
    # Fat likes the rim of a section.
    fat_field = smooth_noise(rng, grid, 140 / um) + 0.6 * np.clip(1 + outside / 250, 0, 1)
    fat_field = np.where(spare, fat_field, -np.inf)
    fat = fat_field > _quantile(fat_field[spare], 1 - composition.adipose)
    spare &= ~fat
    gland_field = smooth_noise(rng, grid, 170 / um)
    glandular = spare & (gland_field > _quantile(gland_field[spare], 1 - composition.epithelium))
    proliferation = 1 / (1 + np.exp(-2.2 * smooth_noise(rng, grid, 150 / um)))

    fat, wall = _fat_cells(rng, fat, x, y, outside)
    outside, aggregate, proliferation = (enlarge(f, step, shape) for f in (outside, aggregate, proliferation))
    gland, cell_height = _glands(rng, glandular & ~fat, outside, aggregate, proliferation, mpp, step)
    fat_full = enlarge(fat.astype(np.float32), step, shape) > 0.5
    fat_full &= gland > 3
    wall = np.where(fat_full, enlarge(wall, step, shape), 0).astype(np.float32)
    along, across = _fibres(rng, shape, mpp)

    classes = np.ones(shape, np.uint8)
    classes[fat_full] = 4
    classes[aggregate < 0] = 3
    classes[gland < 0] = 2
    classes[outside > 0] = 0
    parts = (outside, gland, aggregate, wall, along, across, cell_height, proliferation)
    nuclei = draw_nuclei(rng, classes, outside, gland, aggregate, wall, across, proliferation, mpp=mpp)
    return Tissue(mpp, *parts, nuclei, classes)


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, np.clip(q, 0, 1))) if values.size else np.inf


def _outline(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, edge: float, um: float) -> np.ndarray:
    """A rounded section with an uneven rim."""
    half = edge / 2 * rng.uniform(0.96, 1.02, 2)
    u, v = (x - edge / 2) / half[0], (y - edge / 2) / half[1]
    turn = rng.uniform(-0.3, 0.3)
    u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    radius = (np.abs(u) ** 2.8 + np.abs(v) ** 2.8) ** (1 / 2.8)
    rough = min(1.0, edge / 1500)
    rim = 42 * rough * smooth_noise(rng, x.shape, 110 / um) + 6 * rough * smooth_noise(rng, x.shape, 18 / um)
    return ((radius - 0.97) * half.mean() + rim).astype(np.float32)


def _aggregates(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, outside: np.ndarray, um: float, per_mm2: float
) -> np.ndarray:
    """Distance to the nearest of a few roundish lymphoid aggregates."""
    inner = outside < min(-60.0, 0.4 * float(outside.min()))
    inner = inner if inner.any() else outside <= outside.min()
    n = max(1, round(inner.sum() * um**2 / 1e6 * per_mm2))
    radius = np.clip(rng.lognormal(np.log(105), 0.35, n), 60, 180) * min(1.0, len(x) * um / 1000)
    centres = scatter(rng, inner, um, 2.4 * radius.mean(), density=6.0)[:n]
    distance = np.full(x.shape, np.inf, np.float32)
    for (cx, cy), r in zip(centres, radius, strict=False):
        ratio, turn = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        distance = np.minimum(distance, np.hypot(u, v / ratio) - r)
    return (distance + 14 * smooth_noise(rng, x.shape, 26 / um)).astype(np.float32)


def _fat_cells(
    rng: np.random.Generator, fat: np.ndarray, x: np.ndarray, y: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whole fat cells whose centres lie in the fat, and the distance to their walls."""
    um = float(x[0, 1] - x[0, 0])
    seeds = jittered(rng, (x.shape[0] * um, x.shape[1] * um), _FAT_CELL_UM, 0.32)
    member = sample(fat, seeds, um) & (sample(outside, seeds, um) < 0)
    cells = np.zeros(fat.shape, bool)
    wall = np.zeros(fat.shape, np.float32)
    near = cKDTree(seeds[member]).query(seeds, distance_upper_bound=2.2 * _FAT_CELL_UM)[0] if member.any() else None
    if near is None:
        return cells, wall
    seeds, member = seeds[np.isfinite(near)], member[np.isfinite(near)]
    reach = cKDTree(seeds[member])
    points = np.column_stack([x.ravel(), y.ravel()])
    candidate = np.flatnonzero(outside.ravel() < 12)
    # Only pixels near a fat cell are worth the search for three neighbours.
    close = reach.query(points[candidate], distance_upper_bound=0.9 * _FAT_CELL_UM)[0]
    candidate = candidate[np.isfinite(close)]
    if candidate.size == 0 or len(seeds) < 3:
        return cells, wall
    d, which = cKDTree(seeds).query(points[candidate], k=3)
    hit = member[which[:, 0]]
    # Two half distances to the bisectors, joined so that corners come out round.
    gap = np.maximum(np.stack([d[:, 1] - d[:, 0], d[:, 2] - d[:, 0]]) / 2, 1e-3)
    cells.ravel()[candidate[hit]] = True
    rim = np.maximum(-outside.ravel()[candidate], 0.01)
    wall.ravel()[candidate[hit]] = np.minimum(1 / np.sqrt((1 / gap**2).sum(0)), rim)[hit]
    return cells, wall


def _glands(
    rng: np.random.Generator,
    region: np.ndarray,
    outside: np.ndarray,
    aggregate: np.ndarray,
    proliferation: np.ndarray,
    mpp: float,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the basal membrane of the nearest gland, and the height of its cells."""
    shape = outside.shape
    centres = jittered(rng, shape, _GLAND_PITCH_UM / mpp, 0.2)
    radius = rng.uniform(44, 60, len(centres))
    keep = sample(region, centres, step) & (sample(outside, centres) < -0.9 * radius)
    keep &= sample(aggregate, centres) > 0.7 * radius
    centres, radius = centres[keep], radius[keep]
    warp_x, warp_y = (7 * smooth_noise(rng, shape, 24 / mpp) for _ in range(2))
    nearest, second = np.full(shape, 1e3, np.float32), np.full(shape, 1e3, np.float32)
    height = np.full(shape, _CELL_HEIGHT_UM, np.float32)
    for (cx, cy), r in zip(centres, radius, strict=True):
        ratio, turn, bulge = rng.uniform(0.75, 1.35), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        activity = float(sample(proliferation, np.array([[cx, cy]]))[0])
        reach = int(1.8 * r / mpp) + 2
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        window = np.s_[top : int(cy) + reach, left : int(cx) + reach]
        wx, wy = warp_x[window], warp_y[window]
        x = (np.arange(left, left + wx.shape[1], dtype=np.float32)[None] - np.float32(cx)) * mpp + wx
        y = (np.arange(top, top + wx.shape[0], dtype=np.float32)[:, None] - np.float32(cy)) * mpp + wy
        u = (x * np.cos(turn) + y * np.sin(turn)) / np.sqrt(ratio)
        v = (y * np.cos(turn) - x * np.sin(turn)) * np.sqrt(ratio)
        distance = np.hypot(u, v)
        distance += 0.07 * r * np.sin(3 * np.arctan2(v, u) + bulge) - r
        one, two, tall = nearest[window], second[window], height[window]
        closer = distance < one
        np.minimum(two, np.where(closer, one, distance), out=two)
        one[closer] = distance[closer]
        tall[closer] = _CELL_HEIGHT_UM + 9 * (activity - 0.4)
    # Glands that meet keep a thin septum between them.
    return np.maximum(nearest, (nearest - second) / 2 + 3.5), height


def _fibres(rng: np.random.Generator, shape: tuple[int, int], mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Bent and crimped coordinates along and across the collagen."""
    turn = rng.uniform(0, np.pi)
    y = np.arange(shape[0], dtype=np.float32)[:, None] * mpp
    x = np.arange(shape[1], dtype=np.float32)[None] * mpp
    along = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y
    across = np.float32(np.cos(turn)) * y - np.float32(np.sin(turn)) * x
    along += 60 * smooth_noise(rng, shape, 130 / mpp)
    across += 95 * smooth_noise(rng, shape, 150 / mpp)
    across += 9 * smooth_noise(rng, shape, 28 / mpp)
    return along, across
