"""The pictures of a viewer page, as JPEG: the section, the tiles of its spots, and the cited spots of the reference."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ragst_sd.image.embedding import tiles_at
from ragst_sd.image.frames import similarity_scale
from ragst_sd.pl._section import Section, disc_radii, extent_of, field_widths, read_picture, spot_reach
from ragst_sd.reference.schema import knows_tiles

_SECTION_PX = 1800
_SHEET_PX = 1024
# Whole blocks of JPEG, so that tiles of a sheet do not run into each other.
_TILE_EDGES = (128, 96, 64, 48, 32)
_TILE_PIXELS = 21_000_000


@dataclass(frozen=True)
class Pictures:
    """What a page shows as pictures, and what it knows about them."""

    images: dict[str, list[Image.Image]]
    """The section, and sheets of equal square tiles, row by row."""
    places: dict[str, np.ndarray]
    """Place and size of each spot in pixels of the image, from the upper left corner of the part shown."""
    facts: dict[str, Any]

    def encode(self, quality: int) -> dict[str, dict[str, str]]:
        """JPEG files in base64, by kind and number."""
        return {
            kind: {str(i): _jpeg(image, quality) for i, image in enumerate(images)}
            for kind, images in self.images.items()
        }


def collect_pictures(section: Section, header: dict[str, Any], thumbnails: Any, cited: np.ndarray) -> Pictures:
    """Pictures of the section and its spots, and the `thumbnails` of `cited` rows of the reference, by position."""
    left, right, top, bottom = box = extent_of(section, spot_reach(section))
    mpp, tile_px = float(header["encoder"]["mpp"]), int(header["encoder"]["tile_px"])
    if not knows_tiles(header["encoder"]):
        # Of unknown origin: what a spot covers is shown.
        tile_px = max(1, round(2 * spot_reach(section)))
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
        "fields": field_widths(header, section),
        "tile_um": None if level_mpp is None else tile_px * level_mpp,
        "square": square,
        "sheet_px": _SHEET_PX,
        "tile_px": edge,
    }
    found = read_picture(section.pyramid, box, edge_px=_SECTION_PX)
    if found is not None:
        pixels, (x0, x1, y0, y1) = found
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
    return Pictures(images, {name: values.astype(np.float32) for name, values in places.items()}, facts)


def _are_squares(section: Section) -> bool:
    """Whether spots are tiles of a grid rather than discs."""
    if disc_radii(section) is not None:
        return False
    first = section.element.geometry.iloc[0]
    return first.geom_type == "Polygon" and len(first.exterior.coords) == 5


def _radii(section: Section, *, square: bool) -> np.ndarray:
    """Half the width of each spot in pixels; other outlines than discs and squares count as discs of their area."""
    radii = disc_radii(section)
    if radii is None:
        areas = section.element.geometry.make_valid().area.to_numpy(float)
        radii = np.sqrt(areas / (4.0 if square else np.pi)) * similarity_scale(section.affine)
    return radii


def _sheets(tiles: np.ndarray) -> list[Image.Image]:
    """Sheets of at most `_SHEET_PX`, so that a browser decodes no more than it shows."""
    sheets, edge = [], tiles.shape[1]
    across = _SHEET_PX // edge
    for start in range(0, len(tiles), across**2):
        part = tiles[start : start + across**2]
        sheet = Image.new("RGB", (across * edge, -(-len(part) // across) * edge), "white")
        for i, tile in enumerate(part):
            sheet.paste(Image.fromarray(tile), (i % across * edge, i // across * edge))
        sheets.append(sheet)
    return sheets


def _jpeg(image: Image.Image, quality: int) -> str:
    out = BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return b64encode(out.getvalue()).decode()
