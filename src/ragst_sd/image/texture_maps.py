"""What texture statistics are made of, on stacks of maps: filters at several scales, and patterns of grey values.

Local binary patterns are the rotation-invariant uniform ones of Ojala, Pietikainen and Maenpaa (2002), co-occurrence
matrices and their properties those of Haralick, Shanmugam and Dinstein (1973).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F

_RINGS = (0.0, 0.5, 1.0, 2.0)
RINGS = ("centre", "middle", "corner")
# Interpolated neighbours carry rounding of about 1e-5; grey values are whole numbers, so real differences are larger.
_TIE = 1e-3
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_EPS = 1e-8


def halve(maps: torch.Tensor) -> torch.Tensor:
    """Average over 2 x 2 pixels of maps (..., h, w); a last odd row or column counts as it is."""
    odd = (0, maps.shape[-1] % 2, 0, maps.shape[-2] % 2)
    if any(odd):
        maps = F.pad(maps, odd, mode="replicate")
    # Several times as fast as avg_pool2d on a processor.
    rows = maps[..., ::2, :] + maps[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) * 0.25


def variance(maps: torch.Tensor) -> torch.Tensor:
    """Variance over the last two axes."""
    centred = maps - maps.mean((-2, -1), keepdim=True)
    return (centred * centred).mean((-2, -1))


def gradient(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences along rows and columns, inner pixels only."""
    down = (maps[..., 2:, 1:-1] - maps[..., :-2, 1:-1]) * 0.5
    right = (maps[..., 1:-1, 2:] - maps[..., 1:-1, :-2]) * 0.5
    return down, right


def blob_strength(maps: torch.Tensor) -> torch.Tensor:
    """How far each pixel stands out from its four neighbours after binomial smoothing, 2 px of margin less per side.

    This is a quarter of the negative Laplacian of the smoothed map: positive on bright spots.
    """
    rows = maps[..., 2:, :] + 2 * maps[..., 1:-1, :] + maps[..., :-2, :]
    smooth = (rows[..., 2:] + 2 * rows[..., 1:-1] + rows[..., :-2]) * (1 / 16)
    around = (smooth[..., 2:, 1:-1] + smooth[..., :-2, 1:-1]) + (smooth[..., 1:-1, 2:] + smooth[..., 1:-1, :-2])
    return smooth[..., 1:-1, 1:-1] - around * 0.25


def is_peak(maps: torch.Tensor) -> torch.Tensor:
    """Whether each inner pixel is the largest of its 3 x 3 neighbourhood, ties included."""
    rows = torch.maximum(torch.maximum(maps[..., 2:, :], maps[..., 1:-1, :]), maps[..., :-2, :])
    largest = torch.maximum(torch.maximum(rows[..., 2:], rows[..., 1:-1]), rows[..., :-2])
    return maps[..., 1:-1, 1:-1] == largest


def plane_slope(maps: torch.Tensor) -> torch.Tensor:
    """Length of the slope of the plane fitted to each map, per half edge."""
    down, right = _grid(maps)
    slopes = [(maps * axis).sum((-2, -1)) / (axis * axis).sum() for axis in (down, right)]
    return torch.hypot(*slopes)


def ring_means(maps: torch.Tensor) -> torch.Tensor:
    """Means (..., 3) over the `RINGS`: within half the half edge, within the half edge, and the corners beyond."""
    down, right = _grid(maps)
    distance = torch.hypot(down, right)
    masks = [((distance >= low) & (distance < high)).float() for low, high in pairwise(_RINGS)]
    return torch.stack([(maps * mask).sum((-2, -1)) / mask.sum() for mask in masks], dim=-1)


def _grid(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column position of each pixel, from -1 to 1 over the map."""
    height, width = maps.shape[-2:]
    down = (torch.arange(height, device=maps.device) * 2 + 1) / height - 1
    right = (torch.arange(width, device=maps.device) * 2 + 1) / width - 1
    grid = torch.broadcast_tensors(down[:, None], right[None, :])
    return grid[0], grid[1]


def binary_patterns(grey: torch.Tensor, *, points: int, radius: float) -> torch.Tensor:
    """Pattern code of every pixel whose circle of neighbours lies inside the image.

    Parameters
    ----------
    grey
        (n, h, w) grey values, on the scale of 0 to 255.
    points
        Neighbours on the circle.
    radius
        Radius of the circle in pixels.

    Returns
    -------
    uint8 (n, h - 2m, w - 2m), m the radius rounded up: the number of neighbours not darker than the pixel if their
    signs change at most twice around the circle, else `points + 1`.
    """
    margin = math.ceil(radius)
    height, width = grey.shape[1] - 2 * margin, grey.shape[2] - 2 * margin
    floor = grey[:, margin : margin + height, margin : margin + width] - _TIE

    def shifted(dy: int, dx: int) -> torch.Tensor:
        return grey[:, margin + dy : margin + dy + height, margin + dx : margin + dx + width]

    signs = []
    for p in range(points):
        angle = 2 * math.pi * p / points
        dy, dx = round(-radius * math.sin(angle), 5), round(radius * math.cos(angle), 5)
        y, x = math.floor(dy), math.floor(dx)
        fy, fx = dy - y, dx - x
        # Blending by differences leaves constant areas exactly constant.
        upper = shifted(y, x)
        if fx:
            upper = torch.lerp(upper, shifted(y, x + 1), fx)
        if fy:
            lower = shifted(y + 1, x)
            if fx:
                lower = torch.lerp(lower, shifted(y + 1, x + 1), fx)
            upper = torch.lerp(upper, lower, fy)
        signs.append((upper >= floor).view(torch.uint8))
    total = torch.zeros_like(signs[0])
    changes = torch.zeros_like(signs[0])
    for p in range(points):
        total += signs[p]
        changes += signs[p] ^ signs[p - 1]
    return total.masked_fill_(changes > 2, points + 1)


def pattern_histogram(codes: torch.Tensor, *, points: int) -> torch.Tensor:
    """Share of each of the `points + 2` codes (n, points + 2) in each image of codes (n, h, w)."""
    n, bins = len(codes), points + 2
    offset = torch.arange(n, device=codes.device)[:, None] * bins
    counts = torch.bincount((codes.flatten(1).long() + offset).flatten(), minlength=n * bins)
    return counts.view(n, bins).float() / codes[0].numel()


def quarter_offsets(distance: int) -> tuple[tuple[int, int], ...]:
    """Offsets (row, column) at 0, 45, 90 and 135 degrees; a quarter turn maps these pairs of pixels to themselves."""
    return ((0, distance), (distance, distance), (distance, 0), (distance, -distance))


def cooccurrence(levels: torch.Tensor, offsets: tuple[tuple[int, int], ...], *, n_levels: int) -> torch.Tensor:
    """Symmetric matrix of each image, summed over offsets, each offset normalised to 1, divided by their number.

    Parameters
    ----------
    levels
        (n, h, w) whole grey levels from 0 to `n_levels - 1`.
    offsets
        Rows and columns to the second pixel of a pair; rows are not negative.
    n_levels
        Number of grey levels.

    Returns
    -------
    float32 (n, n_levels, n_levels) that sums to 1.
    """
    n, height, width = levels.shape
    size = n_levels * n_levels
    levels = levels.int()
    first_code = levels * n_levels + (torch.arange(n, device=levels.device, dtype=torch.int32) * size)[:, None, None]
    out = torch.zeros(n, n_levels, n_levels, device=levels.device)
    for dy, dx in offsets:
        left, right = max(0, -dx), width - max(0, dx)
        first = first_code[:, : height - dy, left:right]
        second = levels[:, dy:, left + dx : right + dx]
        counts = torch.bincount((first + second).flatten(), minlength=n * size).view(n, n_levels, n_levels).float()
        out += counts / (first[0].numel() * len(offsets))
    return (out + out.transpose(1, 2)) / 2


def cooccurrence_properties(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the `PROPERTIES` of matrices (n, g, g) that sum to 1; the correlation of a constant image is 1."""
    index = torch.arange(matrix.shape[1], device=matrix.device, dtype=matrix.dtype)
    apart = index[:, None] - index[None, :]

    def expect(values: torch.Tensor) -> torch.Tensor:
        return (matrix * values).sum((1, 2))

    mean = (matrix.sum(2) * index).sum(1)
    deviation = index[None, :] - mean[:, None]
    variance = (matrix.sum(2) * deviation**2).sum(1)
    covariance = (matrix * deviation[:, :, None] * deviation[:, None, :]).sum((1, 2))
    flat = variance < _EPS
    return {
        "contrast": expect(apart**2),
        "dissimilarity": expect(apart.abs()),
        "homogeneity": expect(1 / (1 + apart**2)),
        "energy": (matrix**2).sum((1, 2)).sqrt(),
        "correlation": torch.where(flat, 1.0, covariance / variance.clamp(min=_EPS)),
        "entropy": -(matrix * (matrix + _EPS).log()).sum((1, 2)),
    }
