"""`rg.pp.embed_tiles`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from tqdm.auto import tqdm

from ragst_sd import _keys
from ragst_sd._annotation import resolve_annotation
from ragst_sd._elements import image_pyramid, keep_value_max, require_sdata, resolve_image
from ragst_sd._outlines import extent_of
from ragst_sd._patches import holds_patches, patch_mpp, patch_pyramid, require_in_patches
from ragst_sd._resolution import image_mpp_of, require_resolution
from ragst_sd._settings import settings
from ragst_sd._several import over_sections
from ragst_sd._validate import require_positive, require_some
from ragst_sd._workers import without_huge_chunks, worker_device
from ragst_sd.image.embedding import plan_fields, tile_padding
from ragst_sd.image.resolve_encoder import resolve_encoder
from ragst_sd.pp._embedding_header import Spots, default_key, embedding_header, same_header
from ragst_sd.pp._embedding_run import run_embedding

logger = logging.getLogger(__name__)


@over_sections()
def embed_tiles(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    model: Any = "texture",
    model_kwargs: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tile_px: int = 224,
    mpp: float | None = 0.5,
    image_mpp: float | None = None,
    value_max: float | None = None,
    context: Sequence[float] | None = None,
    key_added: str | None = None,
    batch_size: int | None = None,
    num_workers: int = 1,
    device: str | None = None,
    amp: bool | None = None,
    cache: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    inplace: bool = True,
) -> AnnData | dict[str, AnnData] | None:
    """Embed the image tile around every spot.

    A tile is the square of `tile_px * mpp` microns around the centroid of a spot (or cell, or tile), cut along the
    image's own pixel axes. It is read from the coarsest pyramid level that is at least as fine as `mpp`, and mirrored
    at the edge of the image. With several fields of view in `context`, the embeddings are concatenated. On two cores
    `texture` takes about 100 spots a second with three fields of view, a small vision transformer 10.

    Parameters
    ----------
    sdata
        Object with an RGB or RGBA image, and shapes or points that a table annotates; or a list or a mapping of them.
        An object without images, of :func:`ragst_sd.io.read_patches`, has a picture of every spot in
        `.obsm["patches"]` instead, of which the tiles are cut.
    image_key
        Image in `sdata.images`; may be left out if there is only one.
    shapes_key
        Circles, polygons, multipolygons or points; may be left out if a table tells, or if there is only one.
    table_key
        Table that annotates the shapes. If none does, an empty one is made, named `<shapes_key>_table`.
    coordinate_system
        The frame that image and shapes share; may be left out if they share just one.
    model
        `"texture"` (colour, stain and texture statistics, no weights), a name from :func:`ragst_sd.pp.encoders`, any
        timm model name or `hf-hub:` id, the path of an ONNX file (`"model.onnx"`), a `torch.nn.Module`, a callable on
        (n, 3, h, w) float tensors in [0, 1], or an object with `encode_image`.
    model_kwargs
        Passed to the model's constructor, for instance `{"checkpoint_path": ...}` for local weights. Of an ONNX file
        `{"output": ...}` names the output to take, and `{"pooling": "cls"}` or `"mean"` makes tokens one vector.
    mean, std
        Normalisation of the input per channel; the model's own if left out. An ONNX file does not state its own: give
        both if it was trained with them and does not apply them itself.
    tile_px
        Edge of a tile in pixels.
    mpp
        Microns per pixel of a tile; `None` takes the image's own pixels.
    image_mpp
        Microns per pixel of the image; else the value kept by :func:`ragst_sd.pp.set_image_mpp` is used. Of pictures of
        spots, else the `mpp` that they were read with.
    value_max
        Pixel value of full brightness. By default, the stored value, or inferred from type and values.
    context
        Fields of view as multiples of the tile, each resized to `tile_px`. `None` is `(1, 2.5, 6)`, which predicts much
        better than the tile alone at three times the work; an encoder of your own sees the tile alone by default, and
        so does every encoder where there are only pictures of spots.
    key_added
        Key of `.obsm`; `X_<model>`, made legal, if left out.
    batch_size
        Tiles encoded at once; the setting if left out.
    num_workers
        Threads that read the image ahead of the encoder; tiles are cut and resized in one more. 0 reads and encodes in
        turn.
    device
        Torch device; the setting if left out.
    amp
        bfloat16 autocast: `None` where the device gains from it, `False` never.
    cache
        Folder in which finished parts (8 batches each) are kept as they are done. The same call goes on from them after
        an interruption. Nothing in it is ever deleted; remove it when the result is stored.
    overwrite
        Embed again even if the same embedding is stored.
    progress
        Show a progress bar; the setting if left out.
    inplace
        `False` returns a copy of the table with the embedding and leaves `sdata` as it is.

    Returns
    -------
    `None`, or the table if `inplace=False`; of several sections a dictionary from name to table. A `value_max` that
    was given is kept in `sdata.attrs["ragst"]["value_max"]` for plots and thumbnails. Fields written to the annotating
    table:

    `.obsm[key_added]`
        float32 (n, d); NaN rows for spots outside the image.
    `.obs["tile_padded_fraction"]`
        Share of the tile that lies outside the image; 1 for a spot outside it.
    `.obsm["spatial"]`
        Centres (x, y) in image pixels, if the table has none.
    `.uns["ragst"]["embeddings"][key_added]`
        Header: encoder and hash of its weights, input normalisation, geometry, fingerprint of image and shapes, and
        the section's mean and standard deviation of each feature.

    Raises
    ------
    KeyError
        If a key does not exist; available ones are listed.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If image and shapes share no frame or several, `mpp` is given but the image's resolution is unknown, the image
        is not RGB, all spots lie outside it, the encoder returns NaN, or pictures of spots show less than is asked for.

    Notes
    -----
    The embedding is kept in memory; :func:`ragst_sd.io.write_table` stores it. A rerun with the same header reuses the
    stored embedding. Callables and modules without a `name` cannot be recognised and are always run again.

    Where a `dask.distributed` client is active, tiles are embedded on its workers, each with an encoder of its own on
    its own GPU if there is one; what a lost worker had not finished is done by another. Batches are the same as here,
    so that workers like this machine return the same bits. The image has to be where the workers can read it.

    References
    ----------
    `"texture"` uses the stain separation of Ruifrok & Johnston (2001), Anal. Quant. Cytol. Histol. 23, 291; local
    binary patterns of Ojala et al. (2002), doi:10.1109/TPAMI.2002.1017623; and co-occurrence of Haralick et al. (1973),
    doi:10.1109/TSMC.1973.4309314. :func:`ragst_sd.pp.encoders` cites the others.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> table = sections["donor1"].tables["table"]
    >>> table.obsm["X_texture"].shape[0] == table.n_obs
    True
    """
    sdata = require_sdata(sdata)
    require_positive(tile_px, "tile_px", whole=True)
    by_patch = holds_patches(sdata, image_key)
    image_key = _keys.PATCHES if by_patch else resolve_image(sdata, image_key)
    table_key, shapes_key = resolve_annotation(sdata, table_key, shapes_key)
    table = sdata.tables.get(table_key, None)
    frame_mpp = image_mpp_of(sdata, image_key, None if by_patch else image_mpp)
    # `pixel_mpp` are the microns per pixel, and `at` the centres of the tiles, in the pixels that are read.
    if by_patch:
        pixel_mpp: float | None = patch_mpp(table, table_key) if image_mpp is None else image_mpp
        mpp = pixel_mpp if mpp is None else mpp
        spots = Spots.with_patches(sdata, table_key, shapes_key)
        pyramid, at = patch_pyramid(table)
    else:
        pixel_mpp = frame_mpp
        spots = Spots.on_image(sdata, table_key, shapes_key, image_key, coordinate_system)
        pyramid, at = image_pyramid(sdata, image_key, value_max), spots.xy
    require_resolution(mpp, pixel_mpp, image_key)
    table = spots.table
    inside = pyramid.inside(at)
    if not inside.any():
        height, width = pyramid.shapes[0]
        raise ValueError(
            f"All {len(at)} centres of {shapes_key!r} lie outside image {image_key!r}: the image covers x 0 to {width} "
            f"and y 0 to {height}, the centres {extent_of(spots.xy)} in its pixels. Check the transformations in "
            f"{spots.frame!r}."
        )

    batch_size = settings.batch_size if batch_size is None else batch_size
    require_positive(batch_size, "batch_size", whole=True)
    options: dict[str, Any] = {"model_kwargs": model_kwargs, "mean": mean, "std": std}
    encoder = resolve_encoder(model, **options, device=worker_device() if device is None else device, amp=amp)
    if context is None:
        context = (1.0,) if by_patch else encoder.context
    context = np.atleast_1d(context).tolist()
    require_some(context, "context", "Give at least one field of view, for instance `(1,)`.")
    for multiple in context:
        require_positive(multiple, "context")
    if by_patch:
        require_in_patches(table, tile_px=tile_px, mpp=mpp, pixel_mpp=pixel_mpp, context=context)  # type: ignore[arg-type]
    key_added = default_key(encoder.name, model) if key_added is None else key_added
    # Enlargement and padding are those of the tile itself, whether or not it is among the fields of view.
    *fields, tile = plan_fields(pyramid, tile_px=tile_px, mpp=mpp, image_mpp=pixel_mpp, context=[*context, 1])
    with without_huge_chunks(pyramid, [len(pyramid.levels) - 1, *(field.level for field in fields)]) as readable:
        header = embedding_header(
            spots,
            readable,
            encoder=encoder,
            tile_px=tile_px,
            mpp=mpp,
            image_mpp=frame_mpp,
            context=context,
            upsampling=max(1.0, tile.upsampling),
            image_key=image_key,
        )
        if header["upsampling"] > 1.01:
            says = (
                "Image %r has %.3g microns per pixel, coarser than the %.3g asked for: tiles are enlarged %.2g times."
            )
            logger.warning(says, image_key, pixel_mpp, mpp, header["upsampling"])
        stored = table.uns.get(_keys.ATTRS, {}).get(_keys.EMBEDDINGS, {}).get(key_added)
        if not overwrite and encoder.name is not None and key_added in table.obsm and same_header(stored, header):
            logger.info("Reusing `obsm[%r]` of table %r: same encoder, image and tiles.", key_added, table_key)
            keep_value_max(sdata, image_key, value_max if inplace else None)
            return None if inplace else table.copy()
        # Workers take a device of their own unless the call names one; precision is what the header says.
        options |= {"device": device, "amp": encoder.amp}
        show = settings.progress if progress is None else progress
        with tqdm(total=int(inside.sum()) * len(fields), unit="field of view", disable=not show) as bar:
            embedding = run_embedding(
                readable,
                at,
                fields,
                encoder,
                model=model,
                options=options,
                reading={"batch_size": batch_size, "num_workers": num_workers},
                cache=cache,
                header=header,
                advance=bar.update,
            )
    if not inside.all():
        logger.warning("%d of %d spots lie outside image %r: NaN.", int((~inside).sum()), len(at), image_key)

    spots = spots if inplace else spots._replace(table=table.copy())
    spots.add_embedding(key_added, embedding, header, inside)
    spots.table.obs[_keys.PADDED] = tile_padding(pyramid, at, tile)
    if not inplace:
        return spots.table
    keep_value_max(sdata, image_key, value_max)
    spots.add_to(sdata, key_added)
    return None
