"""`rg.pp.use_features`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd._elements import require_sdata
from ragst_sd._several import over_sections
from ragst_sd._validate import listing, require_known, require_some
from ragst_sd.pp._assign_features import assign_features
from ragst_sd.pp._tile_features import find_features


def _features_by_section(features: Any, sections: list[str]) -> dict[str, Any]:
    """The features of each section: from a mapping, from a folder of files named by them, else the same name in all.

    Raises
    ------
    FileNotFoundError
        If the folder lacks a file.
    """
    if isinstance(features, Mapping):
        require_known(sections, features, "features")
        return {name: features[name] for name in sections}
    if not isinstance(features, str | os.PathLike) or not Path(features).is_dir():
        return dict.fromkeys(sections, features)
    files = {name: Path(features) / f"{name}.h5" for name in sections}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        there = sorted(path.name for path in Path(features).glob("*.h5"))
        raise FileNotFoundError(
            f"Folder {str(features)!r} has no {listing(missing)} (it has {listing(there)}). Name the sections as the "
            "files are named, or pass `features` as a mapping from section to file."
        )
    return files


@over_sections(each={"features": _features_by_section})
def use_features(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    features: str | os.PathLike[str] | AnnData | Mapping[str, Any],
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    model: str | None = None,
    tile_px: int | None = None,
    mpp: float | None = None,
    context: Sequence[float] = (1,),
    key_added: str | None = None,
) -> None:
    r"""Use features of tiles from another tool as an embedding of the spots.

    The vector of spot i in field of view f is the mean of the tiles in it, weighted by area,

    .. math:: x_i^{(f)} = \frac{\sum_k a_{ik}^{(f)} v_k}{\sum_k a_{ik}^{(f)}}, \qquad
              a_{ik}^{(f)} = |Q_i^{(f)} \cap T_k|

    with :math:`T_k` the square of edge h around the centre of tile k, h the edge e of a tile or the distance between
    neighbouring tiles if that is less, and :math:`Q_i^{(f)}` the square of edge :math:`(f - 1)\,e + h` around the spot:
    tiles within it have seen a field :math:`f\,e` wide. So the feature of a spot is the average of the tiles under it,
    a tile exactly on a spot is used alone, and wider fields of view are averages of the tiles in them. The fields are
    concatenated.

    Parameters
    ----------
    sdata
        Object with spots, or with tiles only; or a list or a mapping of such objects.
    features
        Name of a table whose X holds one vector per tile (LazySlide, sopa, squidpy); name of an `.obsm` of the spots;
        an AnnData, of tiles in the object or of spots by their names; or the h5 file of a slide (TRIDENT, CLAM, HEST).
        For several sections also a mapping from section to any of these, or a folder with a file `<section>.h5` for
        each.
    image_key
        Image in `sdata.images`; may be left out if there is one at most.
    shapes_key
        The spots; may be left out if a table tells.
    table_key
        Table that takes the embedding. May be left out: it is the table of an `.obsm`, else the only one that annotates
        other shapes than the tiles, else the table of features itself, whose tiles are the spots then. Shapes without
        a table get one named `<shapes_key>_table`; a file in an object without tables adds its tiles as shapes.
    coordinate_system
        The frame that image, tiles and spots share; may be left out if they share just one.
    model
        Name of the encoder; left out, what the features say: the name of a table of LazySlide, what sopa keeps in
        `.uns["embedding_config"]`, or attributes of the file (TRIDENT).
    tile_px
        Edge of a tile in pixels, as the encoder saw it; left out, what the features say: LazySlide in
        `sdata.attrs["tile_spec"]`, the others as above.
    mpp
        Microns per pixel of a tile, likewise.
    context
        Fields of view as multiples of the tile, 1 or larger. `(1, 2.5, 6)` adds the surroundings.
    key_added
        Key of `.obsm`; `X_<model>`, made legal, if left out.

    Returns
    -------
    `None`. Written to the table:

    `.obsm[key_added]`
        float32 (n, d * fields); NaN rows for spots that no tile covers.
    `.uns["ragst"]["embeddings"][key_added]`
        Header, as :func:`ragst_sd.pp.embed_tiles` writes it. `predict` and `build_reference` accept these embeddings
        only beside others of the same encoder name, tile size, resolution and fields of view; never beside those that
        `embed_tiles` has made, as nothing proves that they are comparable.
    `.obsm["spatial"]`
        Centres (x, y) in image pixels, if the table has none.

    Of a file in an object without tables also `.shapes["tiles"]` and `.tables["tiles_table"]`.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or the folder lacks that of a section.
    KeyError
        If a key does not exist.
    TypeError
        If `sdata` is no SpatialData, or `features` nothing of what it can be.
    ValueError
        If several tables fit, values are no numbers or are NaN in part, no spot lies in a tile, a field of view is
        smaller than a tile, or encoder, tile size and resolution are neither stated by the features nor given.

    Notes
    -----
    A spot takes part if its centre lies in a tile. Tiles that are NaN throughout count as absent, and so does what lies
    between and beyond the tiles: near the rim of the tissue a field of view is averaged over the part of it that has
    tiles, where `embed_tiles` sees the glass.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sdata = rg.datasets.synthetic(n_donors=1, image_px=500)["donor1"]
    >>> sdata.tables["table"].obsm["uni2"] = sdata.tables["table"].obsm["spatial"]  # features from elsewhere
    >>> rg.pp.use_features(sdata, features="uni2", model="uni2", tile_px=224, mpp=0.5, context=(1, 2.5))
    >>> sdata.tables["table"].obsm["X_uni2"].shape[1]
    4
    """
    sdata = require_sdata(sdata)
    fields = [float(field) for field in np.atleast_1d(context)]
    require_some(fields, "context", "Give at least one field of view, for instance `(1,)`.")
    given = {"model": model, "tile_px": tile_px, "mpp": mpp}
    where: dict[str, Any] = {"image_key": image_key, "table_key": table_key, "coordinate_system": coordinate_system}
    of_tiles = find_features(sdata, features, table_key=table_key)
    assign_features(sdata, of_tiles, given, shapes_key=shapes_key, context=fields, key_added=key_added, **where)
