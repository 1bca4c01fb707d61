"""Colour, stain and texture statistics of tiles: an encoder without weights.

Every statistic is an average over the tile, so quarter turns and mirror images of a tile whose edges are multiples of
32 px have the same features up to rounding. Tiles are described at five scales, each half as fine as the one
before, so that an enlarged tile, blurred at its finest scale, is still told from another at the coarser ones.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from ragst_sd.image.cooccurrence import cooccurrence, cooccurrence_properties, quarter_offsets
from ragst_sd.image.patterns import binary_patterns, pattern_histogram
from ragst_sd.image.stain import luminance, optical_density, separate_stains

TEXTURE_VERSION = "texture-1"
"""Changes whenever the features of some tile change."""

MIN_TILE_PX = 64
_CHUNK = 8
_N_SCALES = 6
_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
_EPS = 1e-6


def texture_features(tiles: torch.Tensor) -> torch.Tensor:
    """Describe tiles by colour, stain and texture statistics.

    Parameters
    ----------
    tiles
        (n, 3, h, w) RGB, uint8 or float in [0, 1]; floats are read at a precision of 8 bits. Both edges are at least
        32 px.

    Returns
    -------
    float32 (n, F) on the device of `tiles`; `texture_names` names the columns. A row depends on its own tile alone.

    Raises
    ------
    ValueError
        If `tiles` has another shape or type, is too small, or holds values outside the range.
    """
    rgb = _as_uint8(tiles)
    if len(rgb) == 0:
        return torch.zeros(0, len(texture_names()), device=rgb.device)
    with torch.inference_mode():
        parts = [torch.stack(list(_describe(chunk).values()), dim=1) for chunk in rgb.split(_CHUNK)]
        features = torch.cat(parts)
    return features.clone()


def texture_names() -> list[str]:
    """Names of the columns of `texture_features`, in their order."""
    return list(_names())


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    return tuple(_describe(torch.zeros(1, 3, MIN_TILE_PX, MIN_TILE_PX, dtype=torch.uint8)))


def _as_uint8(tiles: torch.Tensor) -> torch.Tensor:
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        msg = f"Tiles are RGB and of shape (n, 3, height, width); found {tuple(tiles.shape)}."
        raise ValueError(msg)
    if min(tiles.shape[2:]) < MIN_TILE_PX:
        msg = (
            f"Texture needs tiles of at least {MIN_TILE_PX} x {MIN_TILE_PX} px; found {tiles.shape[2]} x "
            f"{tiles.shape[3]}. Ask for a larger `tile_px`."
        )
        raise ValueError(msg)
    if tiles.dtype == torch.uint8:
        return tiles
    if not tiles.is_floating_point():
        msg = f"Tiles are uint8, or float in [0, 1]; found {tiles.dtype}."
        raise ValueError(msg)
    low, high = (float(tiles.min()), float(tiles.max())) if tiles.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        msg = f"Float tiles lie in [0, 1]; found values from {low:.4g} to {high:.4g}. Divide by the full brightness."
        raise ValueError(msg)
    return (tiles.float() * 255).round().to(torch.uint8)


def _halve(maps: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)


def _describe(rgb: torch.Tensor) -> dict[str, torch.Tensor]:
    density = optical_density(rgb)
    stains = separate_stains(density)[:, :2]
    grey = luminance(rgb)
    maps = [torch.cat([stains, density, grey[:, None] / 255], dim=1)]
    for _ in range(_N_SCALES - 1):
        maps.append(_halve(maps[-1]))
    out: dict[str, torch.Tensor] = {}
    out.update(_amounts(maps))
    out.update(_spectrum(maps))
    out.update(_edges(maps))
    out.update(_nuclei(maps))
    out.update(_rings(maps))
    out.update(_patterns(grey))
    return out


_CHANNELS = ("h", "e", "red", "green", "blue", "grey")


def _amounts(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    mean = maps[0].mean((2, 3))
    for c, channel in enumerate(_CHANNELS):
        out[f"mean_{channel}"] = mean[:, c]
    ordered = maps[2].flatten(2).sort(dim=2).values
    last = ordered.shape[2] - 1
    for q in _QUANTILES:
        for c, channel in enumerate(_CHANNELS):
            if channel in ("h", "e", "grey"):
                out[f"q{round(100 * q):02d}_{channel}"] = ordered[:, c, round(q * last)]
    for s in (0, 2):
        centred = maps[s] - mean[:, :, None, None]
        sd = (centred**2).mean((2, 3)).sqrt() + 1e-3
        for a, b in ((0, 1), (2, 4)):
            cov = (centred[:, a] * centred[:, b]).mean((1, 2))
            out[f"corr_{_CHANNELS[a]}_{_CHANNELS[b]}_s{s}"] = cov / (sd[:, a] * sd[:, b])
        skew = (centred**3).mean((2, 3)) / sd**3
        for c, channel in enumerate(_CHANNELS):
            if channel in ("h", "e", "grey"):
                out[f"skew_{channel}_s{s}"] = skew[:, c]
    return out


def _spectrum(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Log variance that averaging over 2 x 2 pixels removes at each scale."""
    out = {}
    variances = [m.var((2, 3), unbiased=False) for m in maps]
    for s in range(len(maps)):
        band = variances[s] - (variances[s + 1] if s + 1 < len(maps) else 0)
        log = 0.5 * torch.log(band.clamp(min=0) + _EPS)
        for c, channel in enumerate(_CHANNELS):
            if channel in ("h", "e", "grey"):
                out[f"band_{channel}_s{s}"] = log[:, c]
    return out


def _edges(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for s in (0, 1, 2, 3):
        for c, channel in ((0, "h"), (5, "grey")):
            m = maps[s][:, c]
            dy = (m[:, 2:, 1:-1] - m[:, :-2, 1:-1]) / 2
            dx = (m[:, 1:-1, 2:] - m[:, 1:-1, :-2]) / 2
            yy, xx, xy = dy * dy, dx * dx, dx * dy
            size = (yy + xx).sqrt()
            mean = size.mean((1, 2))
            out[f"gradient_{channel}_s{s}"] = torch.log(mean + 1e-4)
            yy, xx, xy = yy.mean((1, 2)), xx.mean((1, 2)), xy.mean((1, 2))
            out[f"gradient_cv_{channel}_s{s}"] = (yy + xx).sqrt() / (mean + 1e-4)
            out[f"coherence_{channel}_s{s}"] = ((yy - xx) ** 2 + 4 * xy**2).sqrt() / (yy + xx + _EPS)
    return out


def _smooth(m: torch.Tensor) -> torch.Tensor:
    m = (m[:, 2:] + 2 * m[:, 1:-1] + m[:, :-2]) / 4
    return (m[:, :, 2:] + 2 * m[:, :, 1:-1] + m[:, :, :-2]) / 4


def _nuclei(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for s in (0, 1, 2, 3):
        m = _smooth(maps[s][:, 0])
        blob = m[:, 1:-1, 1:-1] - (m[:, 2:, 1:-1] + m[:, :-2, 1:-1] + m[:, 1:-1, 2:] + m[:, 1:-1, :-2]) / 4
        strength = blob.clamp(min=0)
        top = F.max_pool2d(blob[:, None], 3, 1, 1)[:, 0]
        peak = ((blob == top) & (blob > 0.01)).float()
        n = peak.mean((1, 2))
        out[f"blob_h_s{s}"] = torch.log(strength.mean((1, 2)) + 1e-4)
        out[f"blob_sd_h_s{s}"] = torch.log((blob**2).mean((1, 2)).sqrt() + 1e-4)
        out[f"blob_density_h_s{s}"] = n.sqrt()
        out[f"blob_peak_h_s{s}"] = (peak * blob).mean((1, 2)) / (n + 1e-3)
    for t in (0.2, 0.4, 0.6, 0.8):
        dark = (maps[1][:, 0] > t).float()
        out[f"dark_{t}"] = dark.mean((1, 2)).sqrt()
        local = F.avg_pool2d(dark[:, None], 14, 7) if dark.shape[-1] > 20 else dark[:, None]
        out[f"dark_sd_{t}"] = local.flatten(1).std(1, unbiased=False)
    return out


def _rings(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    m = maps[3]
    h, w = m.shape[2:]
    y = (torch.arange(h, device=m.device) + 0.5) / h * 2 - 1
    x = (torch.arange(w, device=m.device) + 0.5) / w * 2 - 1
    r = (y[:, None] ** 2 + x[None, :] ** 2).sqrt()
    out = {}
    for k, (low, high) in enumerate(((0.0, 0.4), (0.4, 0.7), (0.7, 1.0), (1.0, 2.0))):
        mask = ((r >= low) & (r < high)).float()
        if not mask.any():
            mask[h // 2, w // 2] = 1
        mean = (m * mask).sum((2, 3)) / mask.sum()
        for c, channel in enumerate(_CHANNELS):
            if channel in ("h", "e", "grey"):
                out[f"ring{k}_{channel}"] = mean[:, c]
    return out


def _patterns(grey: torch.Tensor) -> dict[str, torch.Tensor]:
    out = {}
    fine = grey
    mid = _halve(_halve(grey[:, None]))[:, 0]
    for name, image, points, radius in (("r1", fine, 8, 1.0), ("r3", fine, 8, 3.0), ("r4", mid, 8, 1.0), ("r8", mid, 8, 2.0)):
        hist = pattern_histogram(binary_patterns(image, points=points, radius=radius), points=points)
        for k in range(points + 2):
            out[f"lbp_{name}_{k}"] = hist[:, k].sqrt()
    for name, image, distance in (("d2", _halve(grey[:, None])[:, 0], 1), ("d4", mid, 1), ("d12", mid, 3)):
        levels = torch.div(image, 16, rounding_mode="floor").clamp(max=15)
        matrix = cooccurrence(levels, quarter_offsets(distance), n_levels=16)
        for key, value in cooccurrence_properties(matrix).items():
            out[f"glcm_{name}_{key}"] = torch.log(value + 1e-3) if key in ("contrast", "dissimilarity") else value
    return out
