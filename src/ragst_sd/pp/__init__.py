"""Preparation: resolution of images, tiles, embeddings, gene names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragst_sd._lazy import lazy_functions

if TYPE_CHECKING:
    from ragst_sd.pp._embed_tiles import embed_tiles
    from ragst_sd.pp._encoders import encoders
    from ragst_sd.pp._filter_predicted import filter_predicted
    from ragst_sd.pp._harmonize_genes import harmonize_genes
    from ragst_sd.pp._label_spots import label_spots
    from ragst_sd.pp._set_image_mpp import set_image_mpp
    from ragst_sd.pp._tile_grid import tile_grid
    from ragst_sd.pp._use_features import use_features

__all__ = [
    "embed_tiles",
    "encoders",
    "filter_predicted",
    "harmonize_genes",
    "label_spots",
    "set_image_mpp",
    "tile_grid",
    "use_features",
]

__getattr__, __dir__ = lazy_functions(__name__, __all__)
