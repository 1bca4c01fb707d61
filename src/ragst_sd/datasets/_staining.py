"""Rendering of a drawn section as a haematoxylin and eosin stained picture. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from ragst_sd.datasets._fields import smooth_noise, smoothstep
from ragst_sd.datasets._nuclei import COLUMNAR, LYMPHOID, Nuclei

if TYPE_CHECKING:
    from ragst_sd.datasets._tissue import Tissue

# Absorbance per unit of stain in red, green and blue.
_HAEMATOXYLIN = np.array([0.61, 0.72, 0.34])
_EOSIN = np.array([0.16, 0.86, 0.44])
_FIBRE_LENGTH = 12.0
_TABLE = 1024


@dataclass(frozen=True)
class Stain:
    """How one laboratory stains and scans."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    """Absorbance vectors (red, green, blue)."""
    strength: tuple[float, float]
    """Amount of haematoxylin and of eosin."""
    light: np.ndarray
    """Colour of the empty slide, 0 to 1."""
    blur_um: float
    noise: float


def draw_stain(rng: np.random.Generator) -> Stain:
    """Stain of one donor: colours, strengths, light and sharpness vary."""
    vectors = [vector * rng.normal(1, [0.12, 0.05, 0.16]) for vector in (_HAEMATOXYLIN, _EOSIN)]
    haematoxylin, eosin = (vector / np.linalg.norm(vector) for vector in vectors)
    strength = (float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.72, 1.28)))
    light = np.clip(rng.uniform(0.925, 0.985) + rng.normal(0, 0.008, 3), 0.88, 0.995)
    return Stain(haematoxylin, eosin, strength, light, float(rng.uniform(0.45, 0.7)), float(rng.uniform(0.006, 0.012)))


def render(rng: np.random.Generator, tissue: Tissue, stain: Stain) -> np.ndarray:
    """Picture (3, height, width) uint8 of a section, by the law of Beer and Lambert."""
    mpp, shape = tissue.mpp, tissue.classes.shape
    grain = smooth_noise(rng, shape, 0.9 / mpp)
    cloud = smooth_noise(rng, shape, 9 / mpp)
    blue, pink = _ground(rng, tissue, grain, cloud)
    alpha, nuclear = _stamp(tissue.nuclei, grain, mpp)
    blue += alpha * (nuclear - blue)
    pink *= 1 - 0.55 * alpha
    for layer, strength in ((blue, stain.strength[0]), (pink, stain.strength[1])):
        layer *= strength
        gaussian_filter(layer, stain.blur_um / mpp, output=layer, truncate=2.5)
    # Sections vary in thickness.
    thickness = 1 + 0.06 * smooth_noise(rng, shape, 300 / mpp)
    blue *= thickness
    pink *= thickness
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(stain.noise * 255)
    image = np.empty((3, *shape), np.uint8)
    for channel in range(3):
        layer = np.float32(-stain.haematoxylin[channel]) * blue
        layer -= np.float32(stain.eosin[channel]) * pink
        np.exp(layer, out=layer)
        layer *= np.float32(255 * stain.light[channel])
        # Chroma noise is the same noise seen elsewhere: a second draw would double the cost.
        layer += np.roll(noise, 37 * channel, axis=1)
        np.clip(layer, 0, 255, out=layer)
        image[channel] = layer
    return image


def _ground(
    rng: np.random.Generator, tissue: Tissue, grain: np.ndarray, cloud: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of everything but nuclei."""
    mpp = tissue.mpp
    fibre = _collagen(rng, tissue)
    blue = 0.06 + 0.02 * grain
    # Collagen bundles with pale clefts between them, looser here than there.
    loose = 0.35 * smooth_noise(rng, tissue.classes.shape, 110 / mpp) - 0.1
    pink = 0.56 + 0.20 * fibre + 0.06 * cloud
    pink *= 1 - 0.62 * smoothstep(loose - fibre, 0.95, 1.7)

    inside = smoothstep(-tissue.aggregate, -10, 8)
    pink += inside * (0.27 + 0.07 * grain - pink)
    blue += inside * (0.24 + 0.06 * cloud - blue)

    fat = tissue.fat > 0
    wall = tissue.fat[fat]
    membrane = 1 - smoothstep(wall, 0.7, 2.4)
    pink[fat] = 0.015 + membrane * (0.42 + 0.1 * cloud[fat])
    blue[fat] = 0.01 + 0.05 * membrane

    gland = tissue.gland < 2.5
    depth = -tissue.gland[gland]
    height = tissue.cell_height[gland]
    uneven = 2.2 * cloud[gland]
    body = smoothstep(depth, -1.5, 1)
    lumen = smoothstep(depth + uneven, 0, 1.0) * smoothstep(depth - height + uneven, -1.2, 1.2)
    apical = smoothstep(depth / height, 0.45, 0.95)
    active = tissue.proliferation[gland]
    cytoplasm_pink = 0.52 - 0.16 * apical + 0.07 * grain[gland]
    cytoplasm_blue = 0.20 - 0.13 * apical + 0.16 * active + 0.05 * cloud[gland]
    brush = np.exp(-(((depth + uneven - height) / 1.3) ** 2))
    cytoplasm_pink += 0.22 * brush
    secretion = 0.02 + 0.10 * smoothstep(cloud[gland], 0.6, 1.8)
    pink[gland] += body * (cytoplasm_pink + lumen * (secretion - cytoplasm_pink) - pink[gland])
    blue[gland] += body * (cytoplasm_blue + lumen * (0.02 - cytoplasm_blue) - blue[gland])

    glass = 1 - smoothstep(tissue.outside + 2.0 * cloud, -2.5 * max(1, mpp), 1)
    pink *= glass
    blue *= glass
    np.maximum(pink, 0.012, out=pink)
    np.maximum(blue, 0.008, out=blue)
    return blue, pink


def _collagen(rng: np.random.Generator, tissue: Tissue) -> np.ndarray:
    """Unit-variance texture drawn out along the fibres."""
    table = gaussian_filter(rng.standard_normal((_TABLE, _TABLE), dtype=np.float32), (2.0, 1.5), mode="wrap")
    table += 1.5 * gaussian_filter(rng.standard_normal((_TABLE, _TABLE), dtype=np.float32), (6.5, 3.0), mode="wrap")
    table /= table.std()
    along, across = tissue.fibre_along, tissue.fibre_across
    crimp = 2.4 * np.sin(along * np.float32(2 * np.pi / 38) + across * np.float32(0.05))
    wide = _look_up(table, across + crimp, along)
    # Around glands the fibres follow the basal membrane.
    near = np.exp(-np.maximum(tissue.gland, 0) / 11)
    return wide + near * (_look_up(table, 0.8 * tissue.gland, 0.2 * along) - wide)


def _look_up(table: np.ndarray, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    rows = (across * np.float32(1.6)).astype(np.int32) & (_TABLE - 1)
    cols = (along * np.float32(1.6 * 4 / _FIBRE_LENGTH)).astype(np.int32) & (_TABLE - 1)
    return table[rows, cols]


def _stamp(nuclei: Nuclei, grain: np.ndarray, mpp: float, chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Coverage by nuclei, and their haematoxylin with chromatin texture."""
    shape = grain.shape
    alpha, dye = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    # Long nuclei need a wide stamp; most are short, so they are stamped by size.
    order = np.argsort(nuclei.axes[:, 0], kind="stable")
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        axes = nuclei.axes[part].astype(np.float32) / np.float32(mpp)
        reach = int(np.ceil(axes[:, 0].max() + 1))
        dy, dx = (g.ravel() for g in np.mgrid[-reach : reach + 1, -reach : reach + 1])
        base = nuclei.xy[part].astype(np.intp)
        x, y = base[:, :1] + dx, base[:, 1:] + dy
        off = (nuclei.xy[part] - base - 0.5).astype(np.float32)
        px, py = dx.astype(np.float32) - off[:, :1], dy.astype(np.float32) - off[:, 1:]
        cos, sin = (f(nuclei.angle[part]).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        u, v = (px * cos + py * sin) / axes[:, :1], (py * cos - px * sin) / axes[:, 1:]
        kind = nuclei.kind[part][:, None]
        # A little taper makes them less like coins.
        v *= 1 + 0.18 * u
        rho = np.hypot(u, v)
        hit = (rho < 1 + 1 / axes[:, 1:]) & (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
        which = np.nonzero(hit)[0]
        rho, flat = rho[hit], y[hit] * shape[1] + x[hit]
        texture = grain.ravel()[flat]
        kind, minor = kind[:, 0][which], axes[which, 1]
        cover = np.clip((1 + 0.05 * texture - rho) * minor + 0.5, 0, 1)
        # Gland nuclei are vesicular with a dark rim, lymphocytes are solid and clumped.
        rim = np.exp(-(((rho - 0.85) / 0.22) ** 2))
        amount = np.where(kind == COLUMNAR, 0.78 + 0.3 * rim, 1.0)
        amount += np.where(kind == LYMPHOID, 0.16, 0.2) * texture
        amount *= nuclei.darkness[part].astype(np.float32)[which] * np.float32(1.25)
        np.maximum.at(alpha.ravel(), flat, cover)
        np.maximum.at(dye.ravel(), flat, (amount * cover).astype(np.float32))
    return alpha, np.divide(dye, alpha, out=dye, where=alpha > 0)
