"""Filters on stacks of maps: averaging, slopes, spots, and averages over rings around the centre."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

_RINGS = (0.0, 0.5, 1.0, 2.0)
RINGS = ("centre", "middle", "corner")


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
