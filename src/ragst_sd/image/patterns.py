"""Rotation-invariant uniform local binary patterns (Ojala, Pietikainen and Maenpaa 2002)."""

from __future__ import annotations

import math

import torch

# Interpolated neighbours carry rounding of about 1e-5; grey values are whole numbers, so real differences are larger.
_TIE = 1e-3


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
