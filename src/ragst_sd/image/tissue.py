"""Where tissue is on an overview of a slide."""

from __future__ import annotations

import numpy as np

_BLUR_PX = 2
# Shares of full brightness. Less colour than this has neither stained tissue nor tinted glass.
_COLOURLESS = 0.04
_TINTED_GLASS, _GLASS_BRIGHTNESS = 0.1, 0.8
_BLACK = 0.2


def tissue_mask(overview: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which pixels are tissue.

    Its saturation lies above Otsu's threshold over all that was scanned. Colours are smoothed first, in which noise
    cancels out; what is black or grey even so is no tissue, whatever its saturation, which there is the noise itself.
    Where the part below the threshold is no glass, there is none in the picture: all that has colour is tissue.

    Parameters
    ----------
    overview
        uint8 RGB (3, h, w).

    Returns
    -------
    The mask (h, w), and whether there is no glass in the picture.
    """
    from skimage.filters import gaussian, threshold_otsu

    colours = gaussian(overview, sigma=_BLUR_PX, channel_axis=0, preserve_range=True) / 255
    darkest, brightest = colours.min(axis=0), colours.max(axis=0)
    colour, scanned = brightest - darkest, brightest > _BLACK
    stained = scanned & (colour > _COLOURLESS)
    if not stained.any():
        return stained, False
    saturation = colour / np.maximum(brightest, _BLACK)
    threshold = threshold_otsu(saturation[scanned])
    below = scanned & (saturation <= threshold)
    tint, brightness = np.median(colour[below]), np.median(darkest[below])
    has_glass = tint <= _COLOURLESS or (tint <= _TINTED_GLASS and brightness >= _GLASS_BRIGHTNESS)
    return stained & (saturation > threshold) if has_glass else stained, not has_glass
