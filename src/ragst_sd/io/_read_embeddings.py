"""`rg.io.read_embeddings`."""

from __future__ import annotations

from os import PathLike
from typing import Any

from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._elements import require_sdata
from ragst_sd._validate import require_type
from ragst_sd.pp._assign_features import assign_features
from ragst_sd.pp._tile_features import features_of_file


def read_embeddings(
    sdata: SpatialData,
    path: str | PathLike[str],
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    model: str | None = None,
    weights_hash: str = _keys.UNKNOWN,
    tile_px: int | None = None,
    mpp: float | None = None,
    image_mpp: float | None = None,
    key_added: str | None = None,
) -> None:
    """Read embeddings of tiles from TRIDENT, CLAM or HEST.

    Parameters
    ----------
    sdata
        Object with the image that was embedded, and with spots or without.
    path
        h5 file with `features` and `coords` (TRIDENT, CLAM), or `embeddings` and `barcodes` (HEST).
    image_key
        Image in `sdata.images`; may be left out if there is only one.
    table_key
        Table that annotates the spots; may be left out if there is only one. In an object without tables the tiles of
        the file become shapes and a table.
    coordinate_system
        The frame that image and spots share; may be left out if they share just one.
    model
        Name of the encoder; `None` takes the one in the file (TRIDENT).
    weights_hash
        What tells weights of one name apart. Embeddings compare only if it is the same.
    tile_px
        Edge of a tile in pixels, as the encoder saw it; `None` takes the one in the file (TRIDENT).
    mpp
        Microns per pixel of a tile, as it was asked for; `None` takes 10 / magnification from the file (TRIDENT).
    image_mpp
        Microns per pixel of the image; else the value kept by :func:`ragst_sd.pp.set_image_mpp` is used.
    key_added
        Key of `.obsm`; `X_<model>`, made legal, if left out.

    Returns
    -------
    `None`. Written to the table:

    `.obsm[key_added]`
        float32 (n, d); NaN rows for spots that no tile belongs to.
    `.uns["ragst"]["embeddings"][key_added]`
        Header, as :func:`ragst_sd.pp.embed_tiles` writes it. `predict` and `build_reference` accept these embeddings
        only beside others of the same encoder name, `weights_hash`, tile size and resolution; never beside those that
        `embed_tiles` has made, as nothing proves that they are comparable.
    `.obsm["spatial"]`
        Centres (x, y) in image pixels, if the table has none.

    In an object without tables, also `.shapes["tiles"]`, squares in the image's frames, and `.tables["tiles_table"]`.

    Raises
    ------
    KeyError
        If a key does not exist.
    FileNotFoundError
        If there is no such file.
    TypeError
        If `sdata` is no SpatialData, `path` no path or `model` no name.
    ValueError
        If the file is damaged or lacks what it takes, no spot belongs to a tile, or encoder, tile size or resolution
        are neither in the file nor given.

    Notes
    -----
    The files are those of TRIDENT (https://github.com/mahmoodlab/TRIDENT), CLAM (https://github.com/mahmoodlab/CLAM)
    and HEST (https://github.com/mahmoodlab/HEST). Barcodes, if the file holds them, decide which vector belongs to
    which spot. Else `coords` do: they are the top left corners of tiles in pixels of the finest level, and a spot
    takes the tiles under it, weighted by area. This is :func:`ragst_sd.pp.use_features` for files, which gives the
    formula, adds wider fields of view and takes features from elsewhere too.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.io.read_slide("slide.tif", mpp=0.5)
    >>> rg.io.read_embeddings(sdata, "features_uni_v1/slide.h5", image_key="he")  # made by TRIDENT
    >>> list(sdata.tables["tiles_table"].obsm)
    ['X_uni_v1', 'spatial']
    """
    require_sdata(sdata)
    require_type(path, (str, PathLike), "path")
    given = {"model": model, "tile_px": tile_px, "mpp": mpp}
    where: dict[str, Any] = {"image_key": image_key, "table_key": table_key, "coordinate_system": coordinate_system}
    tiles = features_of_file(path, "path")
    assign_features(sdata, tiles, given, image_mpp=image_mpp, weights_hash=weights_hash, key_added=key_added, **where)
