"""Where tissue is on an overview of a slide."""

from __future__ import annotations

import numpy as np

_BLUR_PX = 2
# Shares of full brightness. Less colour than this has neither stained tissue nor tinted glass.
_COLOURLESS = 0.04
_TINTED_GLASS, _GLASS_BRIGHTNESS = 0.1, 0.8
_BLACK = 0.2
# Tissue is more saturated than glass by this at least.
_CONTRAST = 0.015
# Paler tissue and glass below the threshold: classes explain this much of the variance, and tissue varies more.
_APART, _UNEVEN = 0.83, 2.0


def tissue_mask(overview: np.ndarray) -> tuple[np.ndarray, bool]:
    """Mask of the pixels that are tissue, on an overview of a slide.

    The saturation of tissue lies above Otsu's threshold over all that was scanned. Colours are smoothed first, so that
    noise cancels out; what is black or grey even so is no tissue, whatever its saturation, which there is the noise
    itself. Where the part below the threshold is no glass, there is none in the picture: all that has colour is tissue.
    Where it is glass and paler tissue beside darker one, far apart, the threshold is taken between these.

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
    if not scanned.any():
        return stained, False
    saturation = colour / np.maximum(brightest, _BLACK)
    threshold = threshold_otsu(saturation[scanned])
    below = scanned & (saturation <= threshold)
    tint, brightness = np.median(colour[below]), np.median(darkest[below])
    if tint > _COLOURLESS and (tint > _TINTED_GLASS or brightness < _GLASS_BRIGHTNESS):
        return stained, True
    low, high = _split(saturation[scanned], threshold)
    if not high.size or high.mean() - low.mean() < _CONTRAST:
        return np.zeros_like(stained), False
    # What is white altogether was not scanned, or is too bright to tell.
    paler = saturation[below & (overview.min(axis=0) < 255)]
    if paler.size:
        between = threshold_otsu(paler)
        low, high = _split(paler, between)
        within = (low.size * low.var() + high.size * high.var()) / paler.size if high.size else np.inf
        if within < (1 - _APART) * paler.var() and _spread(high) > _UNEVEN * _spread(low):
            threshold = between
    # Bright pixels are no grey, however little colour they have.
    return (stained | (scanned & (darkest > _GLASS_BRIGHTNESS))) & (saturation > threshold), False


def _split(values: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    return values[values <= threshold], values[values > threshold]


def _spread(values: np.ndarray) -> float:
    """Interquartile range, which edges of tissue that blur into the glass do not widen."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    return float(upper - lower)
