"""Reading sections; building, reading, writing and sharing references; writing tables into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.io._build_recipe import build_recipe
    from ragst_sd.io._data_card import data_card
    from ragst_sd.io._download_reference import download_reference
    from ragst_sd.io._read_annotations import read_annotations
    from ragst_sd.io._read_embeddings import read_embeddings
    from ragst_sd.io._read_hest import read_hest
    from ragst_sd.io._read_patches import read_patches
    from ragst_sd.io._read_reference import read_reference
    from ragst_sd.io._read_slide import read_slide
    from ragst_sd.io._read_st import read_st
    from ragst_sd.io._upload_reference import upload_reference
    from ragst_sd.io._write_cell_eval import write_cell_eval
    from ragst_sd.io._write_geojson import write_geojson
    from ragst_sd.io._write_reference import write_reference
    from ragst_sd.io._write_table import write_table

__all__ = [
    "build_recipe",
    "data_card",
    "download_reference",
    "read_annotations",
    "read_embeddings",
    "read_hest",
    "read_patches",
    "read_reference",
    "read_slide",
    "read_st",
    "upload_reference",
    "write_cell_eval",
    "write_geojson",
    "write_reference",
    "write_table",
]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
