"""Grey-level co-occurrence matrices and their properties (Haralick, Shanmugam and Dinstein 1973)."""

from __future__ import annotations

import torch

PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_EPS = 1e-8


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
