"""Stain amounts from RGB: optical density and the colour deconvolution of Ruifrok and Johnston (2001)."""

from __future__ import annotations

from functools import lru_cache

import torch

# Optical density of pure haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001).
_STAIN_OD = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


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
