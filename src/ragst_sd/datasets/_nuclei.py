"""Nuclei of a synthetic section: where they lie and what they look like. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ragst_sd.datasets._fields import jittered, sample, scatter, slope

Pair: TypeAlias = "tuple[float | np.ndarray, float]"
"""Mean, of all or of each, and standard deviation."""

SPINDLE, COLUMNAR, LYMPHOID, FLAT = range(4)


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a section: ellipses."""

    xy: np.ndarray
    """Centres in pixels."""
    axes: np.ndarray
    """Half axes in microns, the longer one first."""
    angle: np.ndarray
    """Direction of the longer axis."""
    kind: np.ndarray
    darkness: np.ndarray
    """Amount of haematoxylin."""


def draw_nuclei(
    rng: np.random.Generator,
    classes: np.ndarray,
    outside: np.ndarray,
    gland: np.ndarray,
    aggregate: np.ndarray,
    wall: np.ndarray,
    across: np.ndarray,
    proliferation: np.ndarray,
    *,
    mpp: float,
) -> Nuclei:
    """Nuclei of every tissue, at its own density, size and direction; for the arguments see ``Tissue``."""
    parts = []
    cell = max(1, round(2 / mpp))

    def in_stroma(xy: np.ndarray) -> np.ndarray:
        return (sample(classes, xy) == 1) & (sample(gland, xy) > 3) & (sample(outside, xy) < -4)

    def add(xy: np.ndarray, kind: int, long: Pair, short: Pair, angle: np.ndarray, darkness: np.ndarray) -> None:
        n = len(xy)
        axes = np.column_stack([rng.normal(long[0], long[1], n), rng.normal(short[0], short[1], n)]).clip(1.2, 9)
        parts.append((xy, axes, angle, np.full(n, kind, np.uint8), darkness * rng.normal(1, 0.1, n)))

    # Glands: one basal row; the more they divide, the more the row is jumbled and the darker and larger its nuclei.
    band = np.abs(gland + 8.5 + 4 * proliferation) < 1.2 + 4.5 * proliferation
    xy = scatter(rng, band & (classes == 2), 1.0, 6.6 / mpp, density=5)
    activity = sample(proliferation, xy)
    radial = slope(gland, xy, 4 / mpp) + rng.normal(0, 0.15, len(xy))
    add(xy, COLUMNAR, (4.3, 0.5), (2.75, 0.3), radial, 0.8 + 0.45 * activity)
    parts[-1][1][:] *= (0.92 + 0.22 * activity)[:, None]

    # Aggregates: packed small dark nuclei, paler and looser in the middle of large ones.
    core = classes[::cell, ::cell] == 3
    xy = scatter(rng, core, cell, 6.3 / mpp, density=5)
    depth = sample(aggregate, xy)
    centre = 1 / (1 + np.exp((depth + 62) / 8))
    kept = rng.random(len(xy)) > 0.3 * centre
    xy, centre = xy[kept], centre[kept]
    add(xy, LYMPHOID, (3.1, 0.25), (2.8, 0.25), rng.uniform(0, np.pi, len(xy)), 1.45 - 0.5 * centre)

    # Lymphocytes stray from the aggregates into the stroma.
    xy = jittered(rng, classes.shape, 13 / mpp, 0.5)
    stray = 0.02 + 0.65 * np.exp(-np.maximum(sample(aggregate, xy), 0) / 45)
    xy = xy[(rng.random(len(xy)) < stray) & in_stroma(xy)]
    add(xy, LYMPHOID, (3.0, 0.25), (2.7, 0.25), rng.uniform(0, np.pi, len(xy)), np.full(len(xy), 1.35))

    # Fibroblasts lie along the fibres.
    xy = jittered(rng, classes.shape, 23 / mpp, 0.5)
    xy = xy[in_stroma(xy)]
    fibre = slope(across, xy, 5 / mpp) + np.pi / 2
    beside = slope(gland, xy, 4 / mpp) + np.pi / 2
    fibre = np.where(sample(gland, xy) < 12, beside, fibre)
    add(xy, SPINDLE, (5.6, 1.1), (1.6, 0.25), fibre + rng.normal(0, 0.15, len(xy)), np.full(len(xy), 1.05))

    # Fat cells show a flat nucleus at the wall now and then.
    thin_wall = (classes[::cell, ::cell] == 4) & (wall[::cell, ::cell] < 2.5)
    xy = scatter(rng, thin_wall, cell, 42 / mpp, density=3)
    add(xy, FLAT, (4.2, 0.6), (1.5, 0.15), slope(wall, xy, 4 / mpp) + np.pi / 2, np.full(len(xy), 1.1))

    xy, axes, angle, kind, darkness = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Nuclei(xy, axes, angle, kind, darkness)
