"""The pictures of a viewer page, as JPEG: the section, the tiles of its spots, and the cited spots of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.image.embedding import plan_fields
from ragst_sd.image.frames import similarity_scale
from ragst_sd.image.tiles import iter_tiles
from ragst_sd.pl._section import extent_of, read_picture, spot_reach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from ragst_sd.pl._section import Section

_SECTION_PX = 1800
_SHEET_PX = 1024
# Whole blocks of JPEG, so that tiles of a sheet do not run into each other.
_TILE_EDGES = (128, 96, 64, 48, 32)
_TILE_PIXELS = 21_000_000


@dataclass(frozen=True)
class Pictures:
    """Pixels to encode: the section, and sheets of equal square tiles, row by row."""

    section: np.ndarray | None
    facts: dict[str, Any]
    tiles: np.ndarray
    """(spots, edge, edge, 3)."""
    thumbnails: np.ndarray | None
    """(cited rows shown, edge, edge, 3)."""

    def encode(self, quality: int) -> dict[str, list[bytes]]:
        """JPEG files by name."""
        out = {"tiles": [_jpeg(sheet, quality) for sheet in _sheets(self.tiles)]}
        if self.thumbnails is not None:
            out["thumbnails"] = [_jpeg(sheet, quality) for sheet in _sheets(self.thumbnails)]
        if self.section is not None:
            out["section"] = [_jpeg(self.section, quality)]
        return out


def collect_pictures(
    section: Section, header: dict[str, Any], reference: AnnData, cited_rows: np.ndarray
) -> tuple[Pictures, dict[str, np.ndarray]]:
    """Pictures, and the place of each spot in pixels of the image, from the upper left corner of the part shown.

    Parameters
    ----------
    cited_rows
        Rows of the reference whose thumbnails are shown.
    """
    box = extent_of(section, spot_reach(section))
    found = read_picture(section.pyramid, box, edge_px=_SECTION_PX)
    edge = _tile_edge(len(section.centers), int(header["encoder"]["tile_px"]))
    tiles = _spot_tiles(section, header, edge)
    pictures = Pictures(
        section=None if found is None else _shrink(found[0]),
        facts={
            "corner": [box[0], box[2]],
            "width": box[1] - box[0],
            "height": box[3] - box[2],
            # Where the picture lies: left, top, width, height.
            "picture": None if found is None else _relative(found[1], box),
            "mpp": section.mpp,
            "tile_um": _tile_um(section, header),
            "square": _are_squares(section),
            "sheet_px": _SHEET_PX,
            "tile_px": edge,
            "thumbnail_px": 0,
        },
        tiles=tiles,
        thumbnails=None,
    )
    if _keys.THUMBNAIL in reference.obsm and len(cited_rows):
        thumbnails = np.asarray(reference.obsm[_keys.THUMBNAIL])[cited_rows]
        facts = pictures.facts | {"thumbnail_px": thumbnails.shape[1]}
        pictures = Pictures(pictures.section, facts, tiles, thumbnails)
    places = {"xy": (section.centers - [box[0], box[2]]).astype(np.float32), "radius": _radii(section)}
    return pictures, places


def _tile_edge(n_spots: int, tile_px: int) -> int:
    fitting = [
        edge for edge in _TILE_EDGES if edge <= max(tile_px, _TILE_EDGES[-1]) and n_spots * edge**2 <= _TILE_PIXELS
    ]
    return fitting[0] if fitting else _TILE_EDGES[-1]


def _spot_tiles(section: Section, header: dict[str, Any], edge: int) -> np.ndarray:
    """What the encoder's tile covers, in fewer and therefore larger pixels; white for spots that lie off the image."""
    geometry = header["encoder"]
    coarser, mpp = int(geometry["tile_px"]) / edge, float(geometry["mpp"])
    native = np.isnan(mpp)
    field = plan_fields(
        section.pyramid,
        tile_px=edge,
        mpp=None if native else mpp * coarser,
        image_mpp=None if native else section.mpp,
        context=(coarser if native else 1.0,),
    )[0]
    out = np.full((len(section.centers), edge, edge, 3), 255, dtype=np.uint8)
    inside = np.flatnonzero(section.pyramid.inside(section.centers))
    batches = iter_tiles(
        section.pyramid.levels[field.level],
        section.centers[inside],
        field,
        chunk=section.pyramid.chunks[field.level],
        value_max=section.pyramid.value_max,
        batch_size=256,
    )
    for index, tiles in batches:
        out[inside[index]] = tiles.permute(0, 2, 3, 1).numpy()
    return out


def _tile_um(section: Section, header: dict[str, Any]) -> float | None:
    mpp, tile_px = float(header["encoder"]["mpp"]), int(header["encoder"]["tile_px"])
    if np.isnan(mpp):
        return None if section.mpp is None else tile_px * section.mpp
    return tile_px * mpp


def _relative(filled: tuple[float, ...], box: tuple[float, ...]) -> list[float]:
    left, right, top, bottom = filled
    return [left - box[0], top - box[2], right - left, bottom - top]


def _are_squares(section: Section) -> bool:
    """Whether spots are tiles of a grid rather than discs."""
    if section.element is None or "radius" in section.element:
        return False
    first = section.element.geometry.iloc[0]
    return first.geom_type == "Polygon" and len(first.exterior.coords) == 5


def _radii(section: Section) -> np.ndarray:
    """Half the width of each spot in pixels; other outlines than discs and squares count as discs of their area."""
    if section.element is None:
        return np.full(len(section.centers), spot_reach(section), dtype=np.float32)
    scale = similarity_scale(section.affine)
    if "radius" in section.element:
        return (section.element["radius"].to_numpy(float) * scale).astype(np.float32)
    area = section.element.geometry.area.to_numpy(float)
    return (np.sqrt(area / (4.0 if _are_squares(section) else np.pi)) * scale).astype(np.float32)


def _shrink(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_SECTION_PX, _SECTION_PX), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _sheets(tiles: np.ndarray) -> Iterator[np.ndarray]:
    """Sheets of at most `_SHEET_PX`, so that a browser decodes no more than it shows."""
    edge = tiles.shape[1]
    across = _SHEET_PX // edge
    for start in range(0, len(tiles), across**2):
        part = tiles[start : start + across**2]
        rows = -(-len(part) // across)
        sheet = np.full((rows * across, edge, edge, 3), 255, dtype=np.uint8)
        sheet[: len(part)] = part
        yield sheet.reshape(rows, across, edge, edge, 3).swapaxes(1, 2).reshape(rows * edge, across * edge, 3)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()
