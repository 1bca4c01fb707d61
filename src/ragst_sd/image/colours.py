"""What a picture's numbers mean: which channels are red, green and blue, what is transparent, what is full brightness.

It is decided here alone, once and before the first pixel is used, from what the rim knows of a picture: its values, the
names of its channels, and what its file says of its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RED, _GREEN, _BLUE, _ALPHA = "red", "green", "blue", "alpha"
_BY_INITIAL = {name[0]: name for name in (_RED, _GREEN, _BLUE, _ALPHA)}
_UNNAMED = {"0", "1", "2", "3"}
RGBA = (_RED, _GREEN, _BLUE, _ALPHA)

_OVERVIEW_PX = 2048
_OPAQUE_SHARE = 0.95
# Where the brightest pixel of a picture may lie, and what full brightness then is. 8 bit and floats leave room for what
# resampling adds at edges. H&E has bright glass in it: 12 and 16 bit that stay below the middle could as well be
# another depth, and are refused.
_DEEP = ((2048, 4095, 4095.0), (32768, 65535, 65535.0))
_RANGES = {
    "integers": ((2, 318, 255.0), *_DEEP),
    "floats": ((0.125, 1.25, 1.0), (32, 318, 255.0), *_DEEP),
}
_MAY_UNDERSHOOT = 0.25


@dataclass(frozen=True)
class Colours:
    """How stored pixels become RGB; left out, for uint8 RGB."""

    rgb: tuple[int, int, int] = (0, 1, 2)
    """Positions of red, green and blue."""
    alpha: int | None = None
    """Position of the opacity."""
    value_max: float = 255.0
    """Full brightness."""
    alpha_max: float = 255.0
    """Full opacity."""
    premultiplied: bool = False
    """Whether colours are stored multiplied by the opacity (associated alpha)."""

    def to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (c, h, w) as uint8 RGB (3, h, w); what is transparent, or NaN, becomes white as glass is."""
        colours = pixels[:3] if self.rgb == (0, 1, 2) else pixels[list(self.rgb)]
        opaque = self.alpha is None or pixels.size == 0 or pixels[self.alpha].min() >= self.alpha_max
        if opaque and colours.dtype == np.uint8 and self.value_max == 255:
            return np.ascontiguousarray(colours)
        shares = colours.astype(np.float32) / np.float32(self.value_max)
        if not opaque:
            opacity = np.clip(pixels[self.alpha].astype(np.float32) / np.float32(self.alpha_max), 0, 1)
            shares = (shares if self.premultiplied else shares * opacity) + (1 - opacity)
        return np.rint(255 * np.clip(np.nan_to_num(shares, nan=1.0), 0, 1)).astype(np.uint8)


def read_colours(
    level: Any,
    *,
    names: Sequence[object] = (),
    photometric: str = "rgb",
    premultiplied: bool = False,
    value_max: float | None = None,
    what: str = "The picture",
) -> Colours:
    """Decide what the numbers of a picture mean.

    Parameters
    ----------
    level
        Its coarsest level, an array (c, y, x). Values are looked at where type and names do not tell.
    names
        Of the channels: red, green, blue and alpha, or their initials, in any order; numbers or nothing if they have
        none.
    photometric
        What its file says the samples are: `"rgb"`, or `"minisblack"` for channels that are stored as grey planes.
    premultiplied
        Whether colours are stored multiplied by the opacity.
    value_max
        Value of full brightness, where it is known.
    what
        The picture in messages.

    Raises
    ------
    ValueError
        If it is not RGB, or what is full brightness or a fourth channel cannot be told.
    """
    n = int(level.shape[0])
    if photometric != "minisblack":
        require_rgb(photometric, what)
    named = [str(name).strip().lower() for name in names]
    named = [] if set(named) <= _UNNAMED else [_BY_INITIAL.get(name, name) for name in named]
    if n not in (3, 4) or (named and sorted(named) != sorted(RGBA[:n])):
        given = f" named {', '.join(map(repr, map(str, names)))}" if names else ""
        raise ValueError(
            f"{what} has {n} channel(s){given}; RGB is needed: red, green and blue, and alpha if there is a fourth. If "
            "that is what they are, rename them (`spatialdata.models.Image2DModel.parse(..., c_coords=['r', 'g', "
            "'b'])`). Fluorescence, stains and grey pictures cannot be embedded as H&E."
        )
    order = [named.index(name) for name in RGBA[:n]] if named else list(range(n))
    rgb, alpha = tuple(order[:3]), None if n == 3 else order[3]
    if value_max is None and level.dtype == np.uint8 and max(level.shape[1:]) > _OVERVIEW_PX:
        # Not worth to decode a large picture for.
        value_max = 255.0
    if value_max is not None and alpha is None:
        return Colours(rgb, value_max=float(value_max))  # type: ignore[arg-type]
    values = thinned(level, _OVERVIEW_PX)
    if value_max is None:
        value_max = _full_brightness(values[list(rgb)], what)
    alpha_max = 255.0
    if alpha is not None:
        alpha_max = _full_opacity(values[alpha], float(value_max), what, is_named=bool(named))
    return Colours(rgb, alpha, float(value_max), alpha_max, premultiplied)  # type: ignore[arg-type]


def require_rgb(photometric: str, what: str) -> None:
    """Raise a `ValueError` if the samples of a file are no RGB: which colours they are depends on a profile."""
    if photometric != "rgb":
        raise ValueError(
            f"The samples of {what} are stored as {photometric!r}; RGB is needed. Convert the picture to RGB, with its "
            "colour profile if it has one."
        )


def thinned(level: Any, edge_px: int) -> np.ndarray:
    """Every k-th pixel of a level (c, y, x), such that its longer edge is at most `edge_px`."""
    step = max(1, -(-max(level.shape[1:]) // edge_px))
    return np.asarray(level[:, ::step, ::step])


def _full_brightness(values: np.ndarray, what: str) -> float:
    """Value of full brightness, by the type and the range of values; a `ValueError` where that leaves it open."""
    kind = values.dtype.kind
    finite = values[np.isfinite(values)] if kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size and kind in "biuf" else (np.nan, np.nan)
    if kind == "b" or (low == high == 0):
        return 1.0 if kind == "b" else 255.0
    if values.dtype == np.uint8 and high > 1:
        return 255.0
    # Bytes with a sign cannot hold what is bright: it has become negative.
    ranges = () if values.dtype == np.int8 else _RANGES["floats" if kind == "f" else "integers"]
    for least, most, full in ranges:
        if least <= high <= most and low >= -_MAY_UNDERSHOOT * full:
            return full
    raise ValueError(
        f"{what} holds {values.dtype} pixels from {low:.4g} to {high:.4g}, and the value of full brightness is "
        "unclear. Set it with `rg.pp.embed_tiles(..., value_max=...)` (255 for 8 bit, 4095 for 12 bit, 65535 for 16 "
        "bit, 1 for floats in [0, 1]), as also in `rg.pp.tile_grid`, `rg.io.read_slide` and `rg.io.read_st`, or "
        "convert the image to uint8 RGB first."
    )


def _full_opacity(alpha: np.ndarray, value_max: float, what: str, *, is_named: bool) -> float:
    """The smallest full scale that holds what the channel holds."""
    high = float(alpha.max())
    full = next((scale for scale in sorted({1.0, 255.0, value_max}) if high <= scale), high)
    opaque = float((alpha >= full).mean())
    if high <= 0:
        raise ValueError(
            f"The fourth channel of {what} is 0 everywhere: as alpha it makes the whole picture transparent. Leave "
            "it out if it is unused, and pass red, green and blue alone."
        )
    if not is_named and opaque < _OPAQUE_SHARE:
        raise ValueError(
            f"{what} has four channels without names, of which the last would leave {opaque:.0%} of the picture "
            "opaque as alpha: they may be stains. RGB is needed: leave the fourth out, or name it "
            "(`spatialdata.models.Image2DModel.parse(..., c_coords=['r', 'g', 'b', 'a'])`)."
        )
    return full
