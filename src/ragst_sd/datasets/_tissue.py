"""A drawn section: where its tissues and nuclei lie, and its stained picture. Arrays only; lengths are in microns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

TISSUES = ("stroma", "epithelium", "immune", "adipose")
"""Tissue classes; value ``i + 1`` of the label image is the ``i``-th, 0 is glass."""

# Everything smooth is computed on a grid of this step, and enlarged.
_STEP_UM = 4.0
_FIBRES_PX = 512


@dataclass(frozen=True)
class Donor:
    """What the sections of one donor share."""

    stains: np.ndarray
    """Absorbance of haematoxylin and of eosin in red, green and blue."""
    light: np.ndarray
    """Colour of the empty slide, 0 to 1."""
    fat: float
    glands: float
    """Share of the places for fat cells, and of those for glands, that are taken."""
    aggregates_per_mm2: float


@dataclass(frozen=True)
class Tissue:
    """Anatomy of one section. Distances are signed, negative inside."""

    mpp: float
    classes: np.ndarray
    """Tissue class per pixel, see ``TISSUES``."""
    outside: np.ndarray
    """Distance to the edge of the section."""
    aggregate: np.ndarray
    """Distance to the nearest lymphoid aggregate."""
    fat: np.ndarray
    """Distance to the wall of the nearest fat cell."""
    gland: np.ndarray
    """Distance to the basal membrane of the nearest gland."""
    proliferation: np.ndarray
    """Proliferative activity, 0 to 1."""
    along: np.ndarray
    across: np.ndarray
    """Coordinates along and across the collagen fibres."""

    def at(self, field: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Values of a field at points."""
        return sample(field, xy, self.mpp)

    def uphill(self, field: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Angle of the steepest ascent of a field at points."""
        rise = [self.at(field, xy + step) - self.at(field, xy - step) for step in 4 * np.eye(2)]
        return np.arctan2(rise[1], rise[0])


def sample(field: np.ndarray, xy: np.ndarray, step: float) -> np.ndarray:
    """Values at points of a field whose pixels measure ``step``."""
    cols, rows = np.clip((xy.T / step).astype(int), 0, len(field) - 1)
    return field[rows, cols]


def hexagonal(edge: float, pitch: float, margin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y) of a hexagonal lattice in the middle of a square, and their (row, column) as on Visium arrays."""
    rise = pitch * np.sqrt(0.75)
    n_rows, n_cols = (int((edge - 2 * margin) / step) + 1 for step in (rise, pitch))
    row, col = np.mgrid[:n_rows, :n_cols].reshape(2, -1)
    xy = np.column_stack([(col + row % 2 / 2) * pitch, row * rise])
    xy += (edge - xy.max(0)) / 2
    inside = (np.abs(xy - edge / 2) <= edge / 2 - margin + 1e-6).all(1)
    return xy[inside], np.column_stack([row, 2 * col + row % 2])[inside]


def noise(rng: np.random.Generator, n: int, sigma: float) -> np.ndarray:
    """Square Gaussian random field of ``n`` pixels, mean 0 and variance 1, correlated over about ``sigma`` pixels."""
    coarse = max(2, min(n, round(2.5 * n / sigma)))
    sigma = max(0.6, sigma * coarse / n)
    field = gaussian_filter(rng.standard_normal((coarse, coarse), dtype=np.float32), sigma, mode="wrap", truncate=3)
    field *= 2 * math.sqrt(math.pi) * sigma
    return field if coarse == n else enlarge(field, n)


def enlarge(field: np.ndarray, n: int) -> np.ndarray:
    """A square field on a grid of ``n`` pixels, by linear interpolation."""
    at = np.clip((np.arange(n) + 0.5) * len(field) / n - 0.5, 0, len(field) - 1)
    low = np.minimum(at.astype(int), len(field) - 2)
    weight = (at - low).astype(np.float32)
    rows = (field[low] + weight[:, None] * np.diff(field, axis=0)[low]).astype(np.float32)
    return rows.take(low, axis=1) + weight * np.diff(rows, axis=1).take(low, axis=1)


def draw_donor(rng: np.random.Generator) -> Donor:
    """A laboratory's stain and light, and what the donor's tissue is made of."""
    stains = np.array([[0.61, 0.72, 0.34], [0.16, 0.86, 0.44]]) * rng.normal(1, [0.12, 0.05, 0.16], (2, 3))
    stains *= rng.uniform([[0.8], [0.72]], [[1.25], [1.28]]) / np.linalg.norm(stains, axis=1, keepdims=True)
    light = np.clip(rng.uniform(0.925, 0.985) + rng.normal(0, 0.008, 3), 0.88, 0.995)
    return Donor(stains, light, rng.uniform(0.1, 0.2), rng.uniform(0.45, 0.65), rng.uniform(1.8, 2.6))


def draw_tissue(rng: np.random.Generator, image_px: int, mpp: float, donor: Donor) -> Tissue:
    """Draw the anatomy of one section of a donor."""
    edge = image_px * mpp
    n = round(edge / max(_STEP_UM, mpp))
    step = edge / n
    points = (np.mgrid[:n, :n][::-1].transpose(1, 2, 0) + 0.5) * step
    # Small pictures hold small structures, so that they show every tissue.
    small = min(1.0, edge / 1000)

    def field(sigma: float) -> np.ndarray:
        return noise(rng, n, sigma / step)

    def places(pitch: float, jitter: float, *distances: tuple[np.ndarray, float]) -> np.ndarray:
        """Scattered points, each of whose distances is larger than a limit."""
        xy = _jittered(rng, edge, pitch, jitter)
        return xy[np.all([sample(distance, xy, step) > limit for distance, limit in distances], axis=0)]

    def best(xy: np.ndarray, liking: np.ndarray, share: float) -> np.ndarray:
        return xy[np.argsort(-sample(liking, xy, step))[: round(share * len(xy))]]

    def cells(centres: np.ndarray, radius: ArrayLike, gap: float, uneven: float, sigma: float) -> np.ndarray:
        """Distance to the nearest of roundish cells with an uneven edge; cells that meet keep a gap between them."""
        # Two cells far away stand in where there are none.
        tree = cKDTree(np.vstack([centres, np.full((2, 2), -1e5)]))
        warped = points + uneven * np.stack([field(sigma), field(sigma)], axis=-1)
        distance, nearest = tree.query(warped, k=2)
        radius = np.append(np.broadcast_to(radius, len(centres)), [1, 1])[nearest[..., 0]]
        return np.maximum(distance[..., 0] - radius, (distance[..., 0] - distance[..., 1]) / 2 + gap)

    rim = min(1.0, edge / 1500) * (42 * field(110) + 6 * field(18))
    from_middle = (np.abs(points - edge / 2) ** 2.8).sum(-1) ** (1 / 2.8)
    outside = from_middle - rng.uniform(0.465, 0.495) * edge + rim

    xy = rng.permutation(places(330 * small, 0.2, (-outside, 120 * small)))
    xy = xy[: max(1, round(donor.aggregates_per_mm2 * edge**2 / 1e6))]
    aggregate = cells(xy, rng.uniform(70, 150, len(xy)) * small, 12, 18 * small, 40)

    xy = places(62, 0.25, (-outside, 25), (aggregate, 40))
    # Fat likes the rim of a section.
    near_rim = 0.6 * np.clip(1 + outside / 250, 0, 1)
    fat = cells(best(xy, field(140) + near_rim, donor.fat), 38, 1.5, 3, 20)

    xy = places(116, 0.2, (-outside, 45), (aggregate, 40), (fat, 25))
    xy = best(xy, field(170), donor.glands)
    gland = cells(xy, rng.uniform(42, 60, len(xy)), 3.5, 9, 26)

    proliferation = 1 / (1 + np.exp(-2.2 * field(150)))
    enlarged = (enlarge(part, image_px) for part in (outside, aggregate, fat, gland, proliferation))
    outside, aggregate, fat, gland, proliferation = enlarged
    classes = np.ones((image_px, image_px), np.uint8)
    classes[(fat < 2) & (gland > 3)] = 4
    classes[aggregate < 0] = 3
    classes[gland < 0] = 2
    classes[outside > 0] = 0

    turn = float(rng.uniform(0, np.pi))
    y, x = (mpp * grid.astype(np.float32) for grid in np.ogrid[:image_px, :image_px])
    bend, shift, crimp = (noise(rng, image_px, sigma / mpp) for sigma in (130, 150, 28))
    along = math.cos(turn) * x + math.sin(turn) * y + 60 * bend
    across = math.cos(turn) * y - math.sin(turn) * x + 95 * shift + 9 * crimp
    return Tissue(mpp, classes, outside, aggregate, fat, gland, proliferation, along, across)


def draw_nuclei(rng: np.random.Generator, tissue: Tissue) -> pd.DataFrame:
    """Nuclei of a section, one per row: centre, half axes, angle, amount of haematoxylin, whether of a lymphocyte."""
    edge, at = len(tissue.classes) * tissue.mpp, tissue.at
    parts = []

    def add(xy: np.ndarray, size: tuple[float, float], angle: ArrayLike, dye: ArrayLike, *, lymphoid: bool) -> None:
        axes = np.multiply(size, rng.normal(1, 0.1, (len(xy), 2)).clip(0.7, 1.3))
        nuclei = pd.DataFrame(np.hstack([xy, axes]), columns=["x", "y", "long", "short"])
        dye = np.multiply(dye, rng.normal(1, 0.1, len(xy)))
        parts.append(nuclei.assign(angle=angle, dye=dye, lymphoid=lymphoid))

    # Glands: a basal row, which is jumbled and dark where cells divide.
    xy = _jittered(rng, edge, 7.7, 0.25)
    xy = xy[(at(tissue.classes, xy) == 2) & (np.abs(at(tissue.gland, xy) + 9) < 4.5)]
    active, angle = at(tissue.proliferation, xy), tissue.uphill(tissue.gland, xy)
    inwards = at(tissue.gland, xy) + 8.5 + 4 * active + rng.normal(0, 0.6 + 2.5 * active)
    xy = xy - inwards[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    add(xy, (4.3, 2.75), angle + rng.normal(0, 0.15, len(xy)), 0.85 + 0.45 * active, lymphoid=False)

    # Aggregates: packed small dark nuclei, paler and looser in the middle of large ones.
    xy = _jittered(rng, edge, 7.0, 0.25)
    xy = xy[at(tissue.classes, xy) == 3]
    centre = 1 / (1 + np.exp((at(tissue.aggregate, xy) + 62) / 8))
    there = rng.random(len(xy)) > 0.1 + 0.3 * centre
    xy, centre = xy[there], centre[there]
    add(xy, (3.1, 2.8), rng.uniform(0, np.pi, len(xy)), 1.5 - 0.5 * centre, lymphoid=True)

    stroma = (tissue.classes == 1) & (tissue.gland > 3) & (tissue.outside < -4)
    # Lymphocytes stray from the aggregates into the stroma.
    xy = _jittered(rng, edge, 13, 0.5)
    stray = 0.02 + 0.65 * np.exp(-np.maximum(at(tissue.aggregate, xy), 0) / 45)
    xy = xy[(rng.random(len(xy)) < stray) & at(stroma, xy)]
    add(xy, (3.0, 2.7), rng.uniform(0, np.pi, len(xy)), 1.4, lymphoid=True)

    # Fibroblasts lie along the fibres.
    xy = _jittered(rng, edge, 23, 0.5)
    xy = xy[at(stroma, xy)]
    angle = tissue.uphill(tissue.across, xy) + np.pi / 2 + rng.normal(0, 0.15, len(xy))
    add(xy, (5.6, 1.6), angle, 1.1, lymphoid=False)
    return pd.concat(parts, ignore_index=True)


def render(rng: np.random.Generator, tissue: Tissue, nuclei: pd.DataFrame, donor: Donor) -> np.ndarray:
    """Picture (3, height, width) uint8 of a section, by the law of Beer and Lambert."""
    px, mpp = len(tissue.classes), tissue.mpp
    grain, cloud, thickness = (noise(rng, px, sigma / mpp) for sigma in (0.9, 9, 110))

    # Collagen bundles with pale clefts between them, looser where the section is thick.
    fibre = _collagen(rng, tissue)
    blue = 0.06 + 0.02 * grain
    pink = (0.56 + 0.2 * fibre + 0.06 * cloud) * (1 - 0.62 * _ramp(0.35 * thickness - 0.1 - fibre, 0.95, 1.7))

    def paint(cover: np.ndarray, new_blue: float | np.ndarray, new_pink: float | np.ndarray) -> None:
        for layer, new in ((blue, new_blue), (pink, new_pink)):
            layer += cover * (new - layer)

    paint(_ramp(-tissue.aggregate, -10, 8), 0.24 + 0.06 * cloud, 0.27 + 0.07 * grain)
    wall = _ramp(tissue.fat, -1.8, 0)
    paint(tissue.classes == 4, 0.01 + 0.05 * wall, 0.015 + wall * (0.42 + 0.1 * cloud))
    depth, height = -tissue.gland, 21 + 9 * tissue.proliferation + 2.2 * cloud
    apical = _ramp(depth / height, 0.45, 0.95)
    cytoplasm = 0.2 - 0.13 * apical + 0.16 * tissue.proliferation + 0.05 * cloud
    paint(_ramp(depth, -1.5, 1), cytoplasm, 0.52 - 0.16 * apical + 0.07 * grain)
    paint(_ramp(depth, height - 1.2, height + 1.2), 0.02, 0.03)
    glass = _ramp(-tissue.outside - 2 * cloud, -1, 2.5 * max(1, mpp))
    blue *= glass
    pink *= glass

    dye = _stamp(nuclei, px, mpp)
    paint(np.minimum(dye, 1), 1.25 * dye * (1 + 0.18 * grain), 0.45 * pink)
    layers = gaussian_filter(np.stack([blue, pink]), (0, 0.55 / mpp, 0.55 / mpp))
    absorbance = np.tensordot(donor.stains.T.astype(np.float32), layers * (1 + 0.06 * thickness), axes=1)
    image = 255 * donor.light[:, None, None].astype(np.float32) * np.exp(-absorbance)
    image += 2.3 * rng.standard_normal((px, px), dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _jittered(rng: np.random.Generator, edge: float, pitch: float, jitter: float) -> np.ndarray:
    """Points of a hexagonal lattice that each moved by up to ``jitter`` pitches."""
    xy, _ = hexagonal(edge, pitch)
    return np.clip(xy + rng.uniform(-jitter, jitter, xy.shape) * pitch, 0, np.nextafter(edge, 0))


def _ramp(values: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a straight line between."""
    return np.clip((values - low) / (high - low), 0, 1)


def _collagen(rng: np.random.Generator, tissue: Tissue) -> np.ndarray:
    """Unit-variance texture drawn out along the fibres."""
    white = rng.standard_normal((2, _FIBRES_PX, _FIBRES_PX), dtype=np.float32)
    table = gaussian_filter(white[0], (2, 1.5), mode="wrap") + 1.5 * gaussian_filter(white[1], (6.5, 3), mode="wrap")
    across = tissue.across + 2.4 * np.sin(tissue.along * (2 * math.pi / 38) + 0.05 * tissue.across)
    rows, cols = (1.6 * across).astype(np.int32) % _FIBRES_PX, (0.53 * tissue.along).astype(np.int32) % _FIBRES_PX
    return table[rows, cols] / table.std()


def _stamp(nuclei: pd.DataFrame, px: int, mpp: float) -> np.ndarray:
    """Amount of haematoxylin per pixel; where nuclei overlap, the darkest."""
    dye = np.zeros((px, px), np.float32)
    # Long nuclei need a wide stamp; most are short, so they are stamped by size.
    nuclei = nuclei.sort_values("long", kind="stable")
    columns = nuclei[["x", "y", "long", "short", "angle", "dye"]].to_numpy(np.float32).T[..., None]
    for start in range(0, len(nuclei), 2000):
        x, y, long, short, angle, amount = columns[:, start : start + 2000]
        reach = int(np.ceil(long.max() / mpp)) + 1
        rows, cols = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, 1, -1)
        rows = rows + (y / mpp).astype(int)
        cols = cols + (x / mpp).astype(int)
        right = (cols + np.float32(0.5)) * mpp - x
        down = (rows + np.float32(0.5)) * mpp - y
        u = (right * np.cos(angle) + down * np.sin(angle)) / long
        # A little taper makes them less like coins.
        v = (down * np.cos(angle) - right * np.sin(angle)) / short * (1 + 0.18 * u)
        distance = np.hypot(u, v)
        cover = np.clip((1 - distance) * short / mpp + 0.5, 0, 1) * amount * (0.85 + 0.2 * distance)
        drawn = (cover > 0) & (np.minimum(rows, cols) >= 0) & (np.maximum(rows, cols) < px)
        np.maximum.at(dye, (rows[drawn], cols[drawn]), cover[drawn])
    return dye
