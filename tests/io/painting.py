"""Drawn H&E of two tissues whose place decides expression, for files in the layouts of real instruments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix

N_GENES = 260
GENES = [f"Gene{i:03d}" for i in range(N_GENES)]

# microns
_NUCLEUS = 3.0

_PINK, _PALE, _PURPLE = (np.array(rgb, float) for rgb in ((214, 134, 176), (240, 212, 226), (92, 58, 130)))


@dataclass(frozen=True)
class Tissue:
    """One donor's tissue: where the cellular tissue lies, as a function of place in microns."""

    seed: int
    period_um: float = 180.0

    def cellular(self, xy_um: np.ndarray) -> np.ndarray:
        """Between 0 (fibrous) and 1 (cellular) at (..., 2) places."""
        rng = np.random.default_rng(self.seed)
        phase = rng.uniform(0, 2 * np.pi, 4)
        turn = rng.uniform(0, np.pi)
        x = xy_um[..., 0] * np.cos(turn) + xy_um[..., 1] * np.sin(turn)
        y = xy_um[..., 1] * np.cos(turn) - xy_um[..., 0] * np.sin(turn)
        k = 2 * np.pi / self.period_um
        field = np.sin(k * x + phase[0]) + np.sin(k * y + phase[1]) + 0.5 * np.sin(0.6 * k * (x + y) + phase[2])
        return 1 / (1 + np.exp(-6 * field))

    def paint(self, shape: tuple[int, int], to_um: np.ndarray) -> np.ndarray:
        """Picture (y, x, 3) of uint8; `to_um` is the 3 x 3 affine from its pixels to microns."""
        rng = np.random.default_rng(self.seed + 1)
        um_per_px = float(np.linalg.norm(to_um[:2, 0]))
        columns, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
        xy_um = np.stack([columns, rows], -1) @ to_um[:2, :2].T + to_um[:2, 2]
        cellular = self.cellular(xy_um)
        fibres = 0.5 + 0.5 * np.sin(2 * np.pi * (xy_um[..., 0] + 0.4 * xy_um[..., 1]) / 9)
        seeds = rng.random(shape) < (0.0012 + 0.011 * cellular) * um_per_px**2
        sigma = _NUCLEUS / um_per_px
        nuclei = np.clip(gaussian_filter(seeds.astype(np.float32), sigma) * 2 * np.pi * sigma**2, 0, 1)[..., None]
        stroma = _PINK * fibres[..., None] + _PALE * (1 - fibres[..., None])
        ground = stroma * (1 - cellular[..., None]) + _PINK * cellular[..., None]
        picture = ground * (1 - nuclei) + _PURPLE * nuclei + rng.normal(0, 4, (*shape, 1))
        return np.clip(picture, 0, 255).astype(np.uint8)

    def counts(self, xy_um: np.ndarray, depth: float) -> csr_matrix:
        """Poisson counts, spots x genes: a third of the genes in each tissue, a third in both."""
        rng = np.random.default_rng(self.seed + 2)
        level = np.random.default_rng(0).gamma(2.0, 1.0, N_GENES)
        share = self.cellular(xy_um)[:, None]
        kind = np.arange(N_GENES) % 3
        rate = level * np.where(kind == 0, 0.1 + share, np.where(kind == 1, 1.1 - share, 0.6))
        return csr_matrix(rng.poisson(depth * rate / rate.sum(1, keepdims=True)).astype(np.int32))


def affine(um_per_px: float, *, turn: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Affine that scales, turns by an angle in degrees, and shifts."""
    angle = np.radians(turn)
    cosine, sine = um_per_px * np.cos(angle), um_per_px * np.sin(angle)
    return np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]], [0, 0, 1]])
