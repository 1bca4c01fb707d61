"""Embeddings of tables: their values, and what is known of where they come from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import single_region
from ragst_sd._elements import shared_coordinate_system
from ragst_sd.reference.schema import check_embedding_header

logger = logging.getLogger(__name__)


class Embedding(NamedTuple):
    """An embedding of a table."""

    values: np.ndarray
    """(n, d) float64."""
    finite: np.ndarray
    """(n,) which spots have one."""
    header: dict[str, Any]
    """As `rg.pp.embed_tiles` writes it; without a header of its own, what is known all the same."""


def read_embedding(sdata: SpatialData, table: AnnData, use_rep: str, where: str) -> Embedding:
    """An embedding of a table, checked.

    Rows that are NaN throughout are spots without an embedding: of an embedding with a header as many as lay off the
    image when it was made.

    Raises
    ------
    ValueError
        If the header is damaged, values are no numbers, or other rows are NaN or infinite.
    """
    header = stored_header(table, use_rep)
    values = dense(table.obsm[use_rep], f"{where}.obsm[{use_rep!r}]")
    finite = np.isfinite(values).all(axis=1)
    absent = np.isnan(values).all(axis=1)
    n_broken, first = int((~finite & ~absent).sum()), ~finite & ~absent
    todo = "A spot without features is NaN in every column; fill or drop the others."
    if header is not None:
        check_embedding_header(header, f"`obsm[{use_rep!r}]` of {where}")
        n_broken, first = n_broken + max(0, int(absent.sum()) - int(header["n_outside"])), ~finite
        todo = "By its header these spots have an embedding; make it again."
    if n_broken:
        raise ValueError(
            f"{where}: `obsm[{use_rep!r}]` is NaN or infinite in {n_broken} rows (first: "
            f"{table.obs_names[first][0]!r}). {todo}"
        )
    known = _of_unknown_origin(sdata, table, use_rep, values, finite) if header is None else dict(header)
    return Embedding(values, finite, known)


def stored_header(table: AnnData, use_rep: str) -> Mapping[str, Any] | None:
    """The header of an embedding, where it has one."""
    found: Mapping[str, Any] | None = table.uns.get(_keys.ATTRS, {}).get(_keys.EMBEDDINGS, {}).get(use_rep)
    return found


def dense(values: Any, where: str) -> np.ndarray:
    """(n, d) float64 from an array, a sparse matrix or a data frame; masked values are NaN.

    Raises
    ------
    ValueError
        If they are no numbers.
    """
    values = values.toarray() if hasattr(values, "toarray") else values
    try:
        return np.ma.filled(np.ma.array(values, dtype=np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} holds values that are no numbers ({error}). An embedding is a matrix of numbers."
        ) from error


def statistics(values: np.ndarray, finite: np.ndarray) -> dict[str, Any]:
    """What a header tells of the values: mean and spread of each feature, spots with and without."""
    known = values[finite].astype(np.float64)
    return {
        "section_mean": known.mean(axis=0),
        "section_std": known.std(axis=0),
        "n_spots": len(known),
        "n_outside": int((~finite).sum()),
    }


def log_unknown_origin(header: Mapping[str, Any]) -> None:
    """Say once what an embedding without a header can be used for."""
    if header.get("origin") == _keys.UNKNOWN:
        logger.warning(
            "`obsm[%r]` has no header: an embedding of unknown origin, compared by name and width only. Pictures of "
            "tiles and checks of encoder and resolution need the origin; `rg.pp.use_features` states it.",
            header["encoder"],
        )


def _of_unknown_origin(
    sdata: SpatialData, table: AnnData, use_rep: str, values: np.ndarray, finite: np.ndarray
) -> dict[str, Any]:
    """The header of an embedding that has none: its name, and the picture on which it can be drawn if only one can."""
    image_key = frame = ""
    if len(sdata.images) == 1:
        try:
            frame = shared_coordinate_system(sdata, single_region(table), next(iter(sdata.images)), None)
            image_key = next(iter(sdata.images))
        except ValueError:
            logger.debug("No frame that table and image share is the only one.")
    return {
        "encoder": use_rep,
        "weights_hash": _keys.UNKNOWN,
        "mean": np.zeros(0),
        "std": np.zeros(0),
        "input_px": 0,
        "tile_px": 0,
        "mpp": np.nan,
        "context": np.ones(1),
        "precision": _keys.UNKNOWN,
        "image_mpp": np.nan,
        "upsampling": 1.0,
        "image_key": image_key,
        "image_hash": "",
        "coordinate_system": frame,
        "origin": _keys.UNKNOWN,
        **(statistics(values, finite) if finite.any() else {}),
    }
