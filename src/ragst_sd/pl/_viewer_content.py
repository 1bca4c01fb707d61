"""What a viewer page holds: numbers of what is predicted and what it is made of, and pictures, as JPEG.

Values are kept as whole multiples of the last decimal that the page shows, so that predictions, evidence, measured
values and intervals are shown as exactly as if they were printed from the table. The page multiplies and adds by
itself: a contribution is `share * weight * (value + correction)` as in :func:`ragst_sd.get.explain`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from anndata import AnnData
from PIL import Image
from skimage.util import montage

from ragst_sd import _keys
from ragst_sd._cited_values import Origin
from ragst_sd._metrics import relative_spread
from ragst_sd._results import OBS_COLUMNS, Intervals, Prediction
from ragst_sd.image.embedding import tiles_at
from ragst_sd.image.frames import similarity_scale
from ragst_sd.pl._section import Section, extent_of, field_widths, read_picture
from ragst_sd.reference.schema import knows_tiles

_MISSING = -32768
# Lower bounds that are zero, as many are, take one value, which compresses to little.
_AT_ZERO = 32767

# Longer edge of the picture of the section, and edge of a sheet of tiles.
_SECTION_PX, _SHEET_PX = 1800, 1024
# Whole blocks of JPEG, so that tiles of a sheet do not run into each other.
_TILE_EDGES = (128, 96, 64, 48, 32)
# Pixels of all tiles at most.
_TILE_PIXELS = 21_000_000


def choose_genes(prediction: Prediction, genes: str | Sequence[str] | None) -> np.ndarray:
    """Positions of the genes asked for, or of the best trusted ones: by `cv_pearson`, then by predicted variance."""
    if genes is not None:
        return prediction.genes(genes)
    table = prediction.table
    values = np.asarray(table.X)
    rows = np.isfinite(values).all(axis=1)
    spread = values[rows].var(axis=0) if rows.any() else np.zeros(table.n_vars)
    # What is not known comes last.
    return np.lexsort((-spread, -_var_column(table, _keys.CV_PEARSON)))[:200]


def collect_numbers(
    origin: Origin, measured: np.ndarray | None, n_shown: int, most_decimals: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a page, and what to know about them; `measured` is (spots, genes) or `None`."""
    prediction, table, genes = origin.prediction, origin.prediction.table, origin.genes
    cited_values, was_measured, corrections = origin.measured_values(prediction.cited)
    levels, level_of = origin.level_means()
    # Without a regression all of a value is retrieved; with one, the mean stands for what is left of the share.
    shares, means = np.ones(len(genes)), np.zeros(len(genes))
    if _keys.REGRESSION_KEY in table.obsm:
        shares, means = _var_column(table, _keys.RETRIEVAL_SHARE)[genes], origin.mean_of_stack()[0][0] - levels[0]
    values = {"prediction": prediction.values(genes), "evidence": prediction.values(genes, layer=_keys.EVIDENCE)}
    values |= {} if measured is None else {"measured": measured}
    intervals = prediction.intervals(genes)
    bounds = [] if intervals is None else [intervals.lower, intervals.upper]
    decimals = _decimals([*values.values(), *bounds, cited_values], most_decimals)
    multiples = {name: _multiples(each, decimals) for name, each in values.items()}
    # Mostly zeros where a method has no adjustment, which compresses to nothing.
    multiples["adjustment"] = multiples["prediction"] - multiples.pop("evidence")
    neighbours, shown = _neighbours(prediction, was_measured, n_shown)
    # Rows of one section share their corrections.
    different, section = np.unique(corrections[shown].astype(np.float32), axis=0, return_inverse=True)
    arrays = {
        **{name: _int16(each) for name, each in multiples.items()},
        **{name: table.obs[name].to_numpy(np.float32) for name in OBS_COLUMNS},
        **neighbours,
        "levels": levels.astype(np.float32),
        "means": means.astype(np.float32),
        "level_of": level_of.astype(np.int32),
        "cited_values": _int16(_multiples(cited_values[shown], decimals)),
        "cited_section": section.ravel().astype(np.uint16),
        "corrections": different,
    }
    if _keys.DISAGREEMENT in table.layers:
        spread = relative_spread(prediction.values(genes, layer=_keys.DISAGREEMENT))
        arrays[_keys.DISAGREEMENT] = spread.astype(np.float32)
    if intervals is not None:
        arrays |= _bounds(intervals, multiples["prediction"], decimals)
    cited, labels = prediction.cited.iloc[shown], {}
    for name in (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE):
        names, codes = np.unique(cited[name].astype(str).to_numpy(), return_inverse=True)
        arrays[f"cited_{name}"] = codes.astype(np.uint16)
        labels[name] = list(map(str, names))
    trust, ceiling = (_var_column(table, name)[genes] for name in (_keys.CV_PEARSON, _keys.NOISE_CEILING))
    facts = {
        "genes": [
            {"name": name, "trust": _number(r), "ceiling": _number(highest), "share": _number(share)}
            for name, r, highest, share in zip(origin.names, trust, ceiling, shares, strict=True)
        ],
        "decimals": decimals,
        "missing": _MISSING,
        "at_zero": _AT_ZERO,
        "cites": bool(len(prediction.cited)),
        "regression": _keys.REGRESSION_KEY in table.obsm,
        "labels": labels,
        "interval": None if intervals is None else {"level": intervals.level, "unit": intervals.unit},
        "names": {"spots": list(table.obs_names), "cited": list(cited["reference"])},
    }
    return arrays, facts


def _var_column(table: AnnData, name: str) -> np.ndarray:
    """(genes,) a column of `.var`; NaN if the table has none of this name."""
    return table.var[name].to_numpy(float) if name in table.var else np.full(table.n_vars, np.nan)


def _number(value: float) -> float | None:
    """A number as JSON has it: `None` where it is not known."""
    return round(float(value), 4) if np.isfinite(value) else None


def _decimals(values: Sequence[np.ndarray], most: int) -> int:
    """As many decimals as 16 bits hold for the largest value, `most` at most, one at least."""
    largest = max(float(np.nanmax(np.abs(each), initial=0.0)) for each in values)
    fitting = [d for d in range(most, 0, -1) if largest * 10**d < -_MISSING - 1]
    if not fitting:
        raise ValueError(f"The table holds values up to {largest:.4g}; expression on a log scale is expected.")
    return fitting[0]


def _multiples(values: np.ndarray, decimals: int) -> np.ndarray:
    """(genes, spots) multiples of the last decimal; NaN where there is no value."""
    return np.rint(values * 10.0**decimals).T


def _int16(multiples: np.ndarray) -> np.ndarray:
    """Multiples of the last decimal as they are stored, in 16 bits."""
    return np.where(np.isfinite(multiples), multiples, _MISSING).astype(np.int16)


def _bounds(intervals: Intervals, prediction: np.ndarray, decimals: int) -> dict[str, np.ndarray]:
    """Bounds of intervals, with one decimal less than values, as small numbers, which compress to little.

    `above`: from the prediction to the upper bound. `skew`: how much farther the lower one is, nearly always nothing.
    """
    centre = np.floor((prediction + 5) / 10)
    lower, upper = (_multiples(bound, decimals - 1) for bound in (intervals.lower, intervals.upper))
    above, below = upper - centre, centre - lower
    return {"above": _int16(above), "skew": _int16(np.where(lower == 0, _AT_ZERO, below - above))}


def _neighbours(prediction: Prediction, measured: np.ndarray, n_shown: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays of the rows that each spot cites: the first `n_shown` by falling weight, and how many there are.

    Also `votes`, the weight of all of its rows that measured each set of genes, by which weights are shared out. With
    the arrays, the rows that are shown, as positions in the table's list of cited ones.
    """
    rows, weights = prediction.citations()
    order = np.lexsort((rows, -weights), axis=1)[:, :n_shown]
    first = np.take_along_axis(rows, order, axis=1)
    shown = np.unique(first[first >= 0])
    # The distinct sets of genes that were measured, and that of each cited row; no row at all has none of them.
    masks, mask_of_row = np.unique(measured, axis=0, return_inverse=True)
    mask_of_row = np.append(mask_of_row.ravel(), -1)
    votes = [np.where(mask_of_row[rows] == i, weights, 0.0).sum(axis=1, dtype=float) for i in range(len(masks))]
    arrays = {
        "neighbours": np.where(first >= 0, np.searchsorted(shown, first), -1).astype(np.int32),
        "weights": np.take_along_axis(weights, order, axis=1).astype(np.float32),
        "n_cited": (rows >= 0).sum(axis=1).astype(np.int32),
        "votes": np.array(votes, dtype=np.float32),
        "masks": masks.astype(np.uint8),
        "cited_mask": mask_of_row[shown].astype(np.uint16),
    }
    return arrays, shown


def collect_pictures(
    section: Section, encoder: dict[str, Any], thumbnails: Any, cited: np.ndarray
) -> tuple[dict[str, list[Image.Image]], dict[str, np.ndarray], dict[str, Any]]:
    """Pictures of the section and its spots, and the `thumbnails` of `cited` rows of the reference, by position.

    By kind: the section, and sheets of equal square tiles, row by row. Also place and size of each spot in pixels of
    the image, from the upper left corner of the part shown, and what to know about the pictures.
    """
    left, right, top, bottom = box = extent_of(section, section.reach)
    mpp, tile_px = float(encoder["mpp"]), int(encoder["tile_px"])
    if not knows_tiles(encoder):
        # Of unknown origin: what a spot covers is shown.
        tile_px = max(1, round(2 * section.reach))
    level_mpp = section.mpp if np.isnan(mpp) else mpp
    n_spots, square = len(section.centers), _are_squares(section)
    fitting = (e for e in _TILE_EDGES[:-1] if e <= tile_px and n_spots * e**2 <= _TILE_PIXELS)
    edge = next(fitting, _TILE_EDGES[-1])
    tiles = tiles_at(section.pyramid, section.centers, tile_px, mpp=mpp, image_mpp=section.mpp, edge=edge)
    images = {"tiles": _sheets(tiles)}
    facts = {
        "corner": [left, top],
        "width": right - left,
        "height": bottom - top,
        "mpp": section.mpp,
        "fields": field_widths(encoder, section),
        "tile_um": None if level_mpp is None else tile_px * level_mpp,
        "square": square,
        "sheet_px": _SHEET_PX,
        "tile_px": edge,
    }
    part = read_picture(section.pyramid, box, edge_px=_SECTION_PX)
    if part is not None:
        pixels, (x0, x1, y0, y1) = part
        picture = Image.fromarray(pixels)
        picture.thumbnail((_SECTION_PX, _SECTION_PX), Image.Resampling.LANCZOS)
        images["section"] = [picture]
        # Where the picture lies: left, top, width, height.
        facts["picture"] = [x0 - left, y0 - top, x1 - x0, y1 - y0]
    if thumbnails is not None and len(cited):
        shown = np.asarray(thumbnails)[cited]
        if shown.shape[1] % 2 == 0 and shown[..., 0].size > _TILE_PIXELS:
            n, edge = len(shown), shown.shape[1] // 2
            shown = shown.reshape(n, edge, 2, edge, 2, 3).mean(axis=(2, 4)).astype(np.uint8)
        images["thumbnails"] = _sheets(shown)
        facts["thumbnail_px"] = shown.shape[1]
    places = {"xy": section.centers - [left, top], "radius": _radii(section, square=square)}
    return images, {name: values.astype(np.float32) for name, values in places.items()}, facts


def _are_squares(section: Section) -> bool:
    """Whether spots are tiles of a grid rather than discs."""
    if section.radii is not None:
        return False
    first = section.element.geometry.iloc[0]
    return first.geom_type == "Polygon" and len(first.exterior.coords) == 5


def _radii(section: Section, *, square: bool) -> np.ndarray:
    """Half the width of each spot in pixels; other outlines than discs and squares count as discs of their area."""
    if section.radii is not None:
        return section.radii
    areas = section.element.geometry.make_valid().area.to_numpy(float)
    return np.sqrt(areas / (4.0 if square else np.pi)) * similarity_scale(section.affine)


def _sheets(tiles: np.ndarray) -> list[Image.Image]:
    """Sheets of at most `_SHEET_PX`, so that a browser decodes no more than it shows."""
    sheets, across = [], _SHEET_PX // tiles.shape[1]
    for start in range(0, len(tiles), across**2):
        part = tiles[start : start + across**2]
        shape = (-(-len(part) // across), across)
        sheet = montage(part, fill=(255, 255, 255), grid_shape=shape, channel_axis=-1)
        sheets.append(Image.fromarray(sheet))
    return sheets


def jpeg(image: Image.Image, quality: int) -> str:
    """A JPEG file in base64."""
    out = BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return b64encode(out.getvalue()).decode()
