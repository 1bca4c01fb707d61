"""Colour, stain and texture statistics of tiles: an encoder without weights.

Most statistics are averages over the tile that do not ask for direction: quarter turns and mirror images of a tile
whose edges are multiples of 32 px have the same features up to rounding. Tiles are described at several scales, each
half as fine as the one before: what an enlarged tile lacks at its finest scale it still shows at the coarser ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import TypeVar

import torch

from ragst_sd.image.texture_maps import (
    RINGS,
    binary_patterns,
    blob_strength,
    cooccurrence,
    cooccurrence_properties,
    gradient,
    halve,
    is_peak,
    pattern_histogram,
    plane_slope,
    quarter_offsets,
    ring_means,
    variance,
)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_LOCK = Lock()

TEXTURE_VERSION = "texture-1"
"""Changes whenever the features of some tile change."""
MIN_TILE_PX = 64
"""Smallest edge of a tile: 2 px at the coarsest scale."""

# Optical density of pure haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001).
_STAIN_OD = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_CHANNELS = ("haematoxylin", "eosin", "brightness")
_N_SCALES = 6
_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
# Amounts of haematoxylin that count as dark: as such, and above the tile's median, which follows the staining.
_DARK = (0.2, 0.4, 0.6, 0.8)
_DARKER = (0.1, 0.2, 0.4)
_MIN_BLOB = 0.01
_GREY_LEVELS = 16
# (scale, points, radius) and (scale, distance); at scale s one step is 2**s px of the tile.
_PATTERNS = ((0, 8, 1.0), (2, 8, 2.0))
_COOCCURRENCE = ((1, 1), (2, 3))
# Tiles at once: few enough for a processor's cache, enough to keep a GPU busy.
_CHUNK_CPU = 8
_CHUNK_GPU = 64


def texture_features(tiles: torch.Tensor) -> torch.Tensor:
    """Describe tiles by colour, stain and texture statistics.

    Parameters
    ----------
    tiles
        (n, 3, h, w) RGB, uint8. Both edges are at least 64 px.

    Returns
    -------
    float32 (n, F) on the device of `tiles`; `texture_names` names the columns. A row depends on its own tile alone.

    Raises
    ------
    ValueError
        If the tiles are too small.
    """
    if min(tiles.shape[2:]) < MIN_TILE_PX:
        raise ValueError(
            f"Texture needs tiles of at least {MIN_TILE_PX} x {MIN_TILE_PX} px; found {tiles.shape[2]} x "
            f"{tiles.shape[3]}. Ask for a larger `tile_px`."
        )
    if tiles.device.type == "cpu":
        return torch.cat(map_single_threaded(_rows, tiles.split(_CHUNK_CPU)))
    return torch.cat([_rows(chunk) for chunk in tiles.split(_CHUNK_GPU)])


@lru_cache(maxsize=1)
def texture_names() -> tuple[str, ...]:
    """Names of the columns of `texture_features`, in their order.

    A name reads `<statistic>_<channel>_<scale>`; the scale is the edge in px of the squares averaged before.
    """
    return tuple(_describe(torch.zeros(1, 3, MIN_TILE_PX, MIN_TILE_PX, dtype=torch.uint8)))


@torch.no_grad()
def _rows(rgb: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(_describe(rgb).values()), dim=1)


def _describe(rgb: torch.Tensor) -> dict[str, torch.Tensor]:
    """All features (n,) of a few tiles, by name."""
    stains = separate_stains(optical_density(rgb))
    grey = luminance(rgb)
    scales = [torch.stack([stains[:, 0], stains[:, 1], grey / 255], dim=1)]
    greys = [grey]
    for _ in range(_N_SCALES - 1):
        scales.append(halve(scales[-1]))
        greys.append(halve(greys[-1]))
    ordered = scales[2].flatten(2).sort(dim=2).values
    quantiles = {q: ordered[:, :, round(q * (ordered.shape[2] - 1))] for q in _QUANTILES}
    return (
        {"mean_residual_1px": stains[:, 2].mean((1, 2))}
        | _amounts(scales, quantiles)
        | _bands(scales)
        | _edges(scales)
        | _blobs(scales)
        | _dark_areas(scales[1][:, 0], quantiles[0.5][:, 0])
        | _layout(scales)
        | _patterns(greys)
        | _cooccurrence(greys)
    )


def _by_channel(name: str, values: torch.Tensor, scale: int) -> dict[str, torch.Tensor]:
    return {f"{name}_{channel}_{2**scale}px": values[:, c] for c, channel in enumerate(_CHANNELS)}


def _log(values: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    # Spreads of staining are heavy-tailed; the floor is below what 8 bits resolve.
    return torch.log(values + floor)


def _amounts(scales: list[torch.Tensor], quantiles: dict[float, torch.Tensor]) -> dict[str, torch.Tensor]:
    mean = scales[0].mean((2, 3))
    out = _by_channel("mean", mean, 0)
    for q, value in quantiles.items():
        out |= _by_channel(f"quantile{round(100 * q):02d}", value, 2)
    for s in (0, 2):
        centred = scales[s] - mean[:, :, None, None]
        squared = centred * centred
        sd = squared.mean((2, 3)).sqrt() + 1e-3
        out |= _by_channel("skewness", (squared * centred).mean((2, 3)) / sd**3, s)
        covariance = (centred[:, 0] * centred[:, 1]).mean((1, 2))
        out[f"correlation_stains_{2**s}px"] = covariance / (sd[:, 0] * sd[:, 1])
    return out


def _bands(scales: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Spread that is lost from each scale to the next."""
    out: dict[str, torch.Tensor] = {}
    spread = [variance(maps) for maps in scales]
    spread.append(torch.zeros_like(spread[-1]))
    for s, (total, coarser) in enumerate(pairwise(spread)):
        out |= _by_channel("band", _log((total - coarser).clamp(min=0).sqrt()), s)
    return out


def _edges(scales: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for s in range(4):
        down, right = gradient(scales[s][:, 0])
        dd, rr, dr = down * down, right * right, down * right
        size = (dd + rr).sqrt().mean((1, 2))
        dd, rr, dr = dd.mean((1, 2)), rr.mean((1, 2)), dr.mean((1, 2))
        suffix = f"haematoxylin_{2**s}px"
        out[f"gradient_{suffix}"] = _log(size)
        out[f"sparsity_{suffix}"] = (dd + rr).sqrt() / (size + 1e-3)
        # From 0, all directions alike, to 1, all gradients along one line.
        out[f"coherence_{suffix}"] = ((dd - rr) ** 2 + 4 * dr**2).sqrt() / (dd + rr + 1e-6)
    return out | _by_channel("slope", _log(plane_slope(scales[4])), 4)


def _blobs(scales: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Spots of haematoxylin of about two pixels of each scale: nuclei at one scale or another."""
    out = {}
    for s in range(4):
        blob = blob_strength(scales[s][:, 0])
        inner = blob[:, 1:-1, 1:-1]
        peak = (is_peak(blob) & (inner > _MIN_BLOB)).float()
        density = peak.mean((1, 2))
        suffix = f"haematoxylin_{2**s}px"
        out[f"blobs_{suffix}"] = _log(blob.clamp(min=0).mean((1, 2)))
        out[f"blob_density_{suffix}"] = density.sqrt()
        out[f"blob_height_{suffix}"] = (peak * inner).mean((1, 2)) / (density + 1e-3)
    return out


def _dark_areas(amount: torch.Tensor, median: torch.Tensor) -> dict[str, torch.Tensor]:
    """Share of the tile that is dark, and how unevenly it lies over squares of 16 px and over rings."""
    out = {}
    above = amount - median[:, None, None]
    for name, values, thresholds in (("dark", amount, _DARK), ("darker", above, _DARKER)):
        for threshold in thresholds:
            dark = (values > threshold).float()
            local = halve(halve(halve(dark)))
            out[f"{name}{threshold}_haematoxylin_2px"] = dark.mean((1, 2)).sqrt()
            out[f"{name}{threshold}_spread_haematoxylin_16px"] = variance(local).sqrt()
            if name == "darker" and threshold > _DARKER[0]:
                for r, mean in zip(RINGS, ring_means(local).unbind(1), strict=True):
                    out[f"{name}{threshold}_{r}_haematoxylin_16px"] = mean.sqrt()
    return out


def _layout(scales: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Amounts and local spread by distance from the centre."""
    fine = scales[1] - scales[1].mean((2, 3), keepdim=True)
    cells = halve(halve(halve(fine)))
    spread = (halve(halve(halve(fine * fine))) - cells * cells).clamp(min=0).sqrt()
    out = _by_channel("spread", _log(spread.mean((2, 3))), 4)
    out |= _by_channel("spread_spread", _log(variance(spread).sqrt()), 4)
    amounts, spreads = ring_means(scales[3]), ring_means(spread)
    for r, name in enumerate(RINGS):
        out |= _by_channel(f"mean_{name}", amounts[:, :, r], 3)
        out |= _by_channel(f"spread_{name}", _log(spreads[:, :, r]), 4)
    return out


def _patterns(greys: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for s, points, radius in _PATTERNS:
        shares = pattern_histogram(binary_patterns(greys[s], points=points, radius=radius), points=points).sqrt()
        out |= {f"pattern{k}_brightness_{2**s}px": shares[:, k] for k in range(points + 2)}
    return out


def _cooccurrence(greys: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for s, distance in _COOCCURRENCE:
        levels = (greys[s] * (_GREY_LEVELS / 256)).floor()
        matrix = cooccurrence(levels, quarter_offsets(distance), n_levels=_GREY_LEVELS)
        for name, value in cooccurrence_properties(matrix).items():
            is_heavy_tailed = name in ("contrast", "dissimilarity")
            out[f"{name}_brightness_{2**s}px"] = _log(value) if is_heavy_tailed else value
    return out


@lru_cache(maxsize=1)
def unmixing() -> tuple[tuple[float, ...], ...]:
    """Rows red, green, blue; columns haematoxylin, eosin, residual: what one unit of density adds to each stain."""
    inverse = torch.linalg.inv(torch.tensor(_STAIN_OD, dtype=torch.float64))
    return tuple(tuple(row) for row in inverse.tolist())


@lru_cache(maxsize=16)
def _density_table(device: torch.device) -> torch.Tensor:
    # A table makes equal pixels equal to the last bit wherever they lie in a batch. It is made on the processor for
    # every device, and kept because copying it to a GPU waits for all that it has been given to do.
    with torch.inference_mode(mode=False):
        table = -torch.log(torch.arange(256, dtype=torch.float64).clamp(min=1) / 255)
        return table.float().to(device)


def optical_density(rgb: torch.Tensor) -> torch.Tensor:
    """Natural-log optical density of uint8 values, white is 0; black is taken as 1 of 255."""
    return _density_table(rgb.device).index_select(0, rgb.flatten().int()).view(rgb.shape)


def separate_stains(density: torch.Tensor) -> torch.Tensor:
    """Amounts of haematoxylin, eosin and residual (n, 3, h, w) from optical densities (n, 3, h, w).

    Amounts may be negative where a colour lies outside the plane of the stains.
    """
    red, green, blue = density.unbind(1)
    columns = zip(*unmixing(), strict=True)
    # Written out instead of a matrix product, whose order of summation may follow the batch size.
    return torch.stack([red * r + green * g + blue * b for r, g, b in columns], dim=1)


def luminance(rgb: torch.Tensor) -> torch.Tensor:
    """Brightness (n, h, w), 0 to 255 in whole steps, of uint8 tiles (n, 3, h, w)."""
    red, green, blue = rgb.to(torch.int32).unbind(1)
    return torch.div(77 * red + 150 * green + 29 * blue + 128, 256, rounding_mode="floor").float()


def map_single_threaded(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Apply `function` to every item, items side by side on as many threads as torch may use, in order.

    Small operators lose more by splitting than they gain, and badly so where other programs keep a core busy. With
    one thread per operator, sums also round alike whatever the number of threads.
    """
    # The number of threads is a setting of the process: two calls at once would restore each other's.
    with _LOCK:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if n_threads == 1 or len(items) == 1:
                return [function(item) for item in items]
            with ThreadPoolExecutor(min(n_threads, len(items))) as pool:
                return list(pool.map(function, items))
        finally:
            torch.set_num_threads(n_threads)
