"""Embeddings of tables, and the query of a prediction: read and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import embedded_centers, single_region
from ragst_sd._elements import shared_coordinate_system
from ragst_sd._labels import labels
from ragst_sd._resolution import known_mpp
from ragst_sd._state import state_of
from ragst_sd._validate import listing, only_one, require_key, require_unique
from ragst_sd.reference.header import Header
from ragst_sd.reference.schema import check_embedding_header, differing_fields, embed_alike, knows_tiles
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.grounding import MOST_UNLIKE, largest_section_distance, section_distance, unlike_share
from ragst_sd.retrieval.projection import standardize

logger = logging.getLogger(__name__)

_RESOLUTION_WARNING = 2.0
_FEW_SPOTS = 20


def read_embedding(
    sdata: SpatialData, table: AnnData, use_rep: str, where: str
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """(n, d) float64 embedding of a table, (n,) which spots have one, and its header or what is known without.

    Rows that are NaN throughout are spots without an embedding: of an embedding with a header as many as lay off the
    image when it was made. Raises a `ValueError` if other rows are NaN or infinite, or the header is damaged.
    """
    header = table.uns.get(_keys.ATTRS, {}).get(_keys.EMBEDDINGS, {}).get(use_rep)
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
    return values, finite, known


def dense(values: Any, where: str) -> np.ndarray:
    """(n, d) float64 from an array, a sparse matrix or a data frame; masked values are NaN."""
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
        # Several frames that table and image share, or none, are no frame to draw in.
        with suppress(ValueError):
            frame = shared_coordinate_system(sdata, single_region(table), next(iter(sdata.images)), None)
            image_key = next(iter(sdata.images))
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


@dataclass(frozen=True)
class Query:
    """Spots to predict."""

    table_key: str
    table: AnnData
    donor_key: str
    """Column of the table with the donor; a new donor where there is none."""
    use_rep: str
    header: dict[str, Any]
    embedding: np.ndarray
    """(n, d) embeddings as they were made; zero where there is none."""
    standardized: np.ndarray
    """(n, d) embeddings as the reference compares them; zero where there is none."""
    finite: np.ndarray
    """(n,) which spots have an embedding."""
    state: np.ndarray
    """(n, s) what surrounds the spots, where the gate looks at it."""
    centers: Callable[[], np.ndarray]
    """(n, 2) centres on the embedded image in pixels, read where they are asked for; NaN where they are unknown."""

    def labels(self, column: str) -> set[str]:
        """What a column of the reference holds in the query, donors for instance; nothing if the table lacks it."""
        name = self.donor_key if column == _keys.DONOR else column
        return set(labels(self.table.obs[name])) if name in self.table.obs else set()


def read_query(
    sdata: SpatialData, bank: Bank, *, table_key: str | None, use_rep: str, donor_key: str | None = None
) -> Query:
    """Find the query's embedding and bring it to the reference's scale.

    A `KeyError` is raised if table, embedding or column does not exist, a `ValueError` if the embedding was made with
    another encoder or geometry, has another name or width, or is NaN where it should not be.
    """
    table_key = _table_with(sdata, table_key, use_rep)
    table, header = sdata.tables[table_key], bank.header
    if donor_key is not None:
        require_key(donor_key, table.obs, "the query's obs", "`donor_key` may be left out for a new donor.")
    # A table of several regions is refused: their spots may lie on several images.
    single_region(table)
    ids = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
    for what, names in (("instance ids", ids), ("spot names", table.obs_names)):
        require_unique(names, f"{what} of table {table_key!r}", "Each spot needs one row and one name.")
    embedding, finite, origin = read_embedding(sdata, table, use_rep, f"sdata.tables[{table_key!r}]")
    _require_alike(embedding, origin, header, use_rep)
    if not finite.any():
        raise ValueError(f"None of the {table.n_obs} spots of table {table_key!r} has an embedding.")
    _warn_of_differences(sdata, origin, header)
    embedding = np.where(finite[:, None], embedding, 0.0)
    standardized = embedding
    if header.standardize:
        _check_statistics(origin, table_key)
        standardized = standardize(embedding, np.asarray(origin["section_mean"]), np.asarray(origin["section_std"]))
        standardized[~finite] = 0.0
    return Query(
        table_key=table_key,
        table=table,
        donor_key=donor_key or (header.donor_key if header.donor_key in table.obs else _keys.DONOR),
        use_rep=use_rep,
        header=origin,
        embedding=embedding,
        standardized=standardized,
        finite=finite,
        state=state_of(bank.fit.parameters, table.obs, standardized),
        centers=partial(embedded_centers, sdata, table, table_key=table_key, header=origin),
    )


def _require_alike(embedding: np.ndarray, origin: dict[str, Any], header: Header, use_rep: str) -> None:
    """Raise a `ValueError` if query and reference were embedded with another encoder or geometry, or width."""
    clauses = differing_fields(origin, header.encoder)
    width = header.sections.mean.shape[1]
    if embedding.shape[1] != width:
        clauses.append(f"width: {embedding.shape[1]} against {width}")
    if clauses:
        raise ValueError(
            f"The embedding {use_rep!r} of the query and of the reference were made differently "
            f"({'; '.join(clauses)}). {embed_alike(origin, header.encoder)}"
        )


def _warn_of_differences(sdata: SpatialData, origin: dict[str, Any], header: Header) -> None:
    """Warn of what may set the embeddings of query and reference apart: encoder, resolution, precision."""
    if knows_tiles(origin) and not origin["encoder"] and not origin["weights_hash"]:
        logger.warning(
            "The encoder of query and reference has no name and no weights to compare: it is unknown whether it is "
            "the same one. Give it a `name`, for instance `model.name = 'mine-v1'`, and embed both again."
        )
    _warn_resolution(origin, header)
    image_key, embedded_mpp = str(origin["image_key"]), float(origin["image_mpp"])
    image_mpp = known_mpp(sdata, image_key)
    if abs(image_mpp - embedded_mpp) > 1e-3 * embedded_mpp:
        logger.warning(
            "Image %r was embedded at %.4g microns per pixel and has %.4g now: embed (and lay tiles) again.",
            image_key,
            embedded_mpp,
            image_mpp,
        )
    precisions = set(header.sections.precision)
    if precisions != {str(origin["precision"])}:
        logger.warning(
            "The query was embedded in %s, the reference in %s: distances between them carry rounding. "
            "Embed both with the same `rg.pp.embed_tiles(..., amp=...)`.",
            origin["precision"],
            listing(sorted(precisions)),
        )


def _check_statistics(origin: dict[str, Any], table_key: str) -> None:
    """Few spots make poor section statistics, and a single one makes none."""
    if not np.asarray(origin["section_std"]).any():
        raise ValueError(
            f"The embeddings of table {table_key!r} do not vary within the section ({origin['n_spots']} spots), so "
            "they cannot be standardised by it. Embed the whole section, or build with "
            "`rg.tl.build_reference(..., standardize=False)`."
        )
    if int(origin["n_spots"]) < _FEW_SPOTS:
        logger.warning(
            "Embeddings are standardised by the section's own mean and spread, which rest on %d spots only. "
            "Embed the whole section, and take the spots you want from it afterwards.",
            origin["n_spots"],
        )


def _table_with(sdata: SpatialData, table_key: str | None, use_rep: str) -> str:
    todo = "Run `rg.pp.embed_tiles` on the query first, or `rg.pp.use_features` with features that are there already."
    if table_key is not None:
        require_key(table_key, sdata.tables, "sdata.tables")
        require_key(use_rep, sdata.tables[table_key].obsm, f"sdata.tables[{table_key!r}].obsm", todo)
        return table_key
    having = [name for name, table in sdata.tables.items() if use_rep in table.obsm]
    if not having:
        available = {name: list(table.obsm) for name, table in sdata.tables.items()}
        raise KeyError(f"No table of `sdata` has `obsm[{use_rep!r}]`. Available: {available}. {todo}")
    return str(only_one(having, "table_key", f"tables have `obsm[{use_rep!r}]`"))


def _warn_resolution(origin: dict[str, Any], header: Header) -> None:
    """Warn when tiles hold detail of very different fineness although they cover the same tissue."""

    def effective(image_mpp: Any, upsampling: Any) -> np.ndarray:
        tile_mpp = float(origin["mpp"])
        if np.isnan(tile_mpp):
            return np.asarray(image_mpp, dtype=float)
        return tile_mpp * np.maximum(1.0, np.asarray(upsampling, dtype=float))

    query = float(effective(origin["image_mpp"], origin["upsampling"]))
    bank = effective(header.sections.image_mpp, header.sections.upsampling)
    far = np.maximum(bank / query, query / bank) > _RESOLUTION_WARNING
    if far.any():
        logger.warning(
            "The query's tiles resolve %.3g microns per pixel; those of %s differ more than twofold (%.3g to %.3g). "
            "Predictions between such images are less reliable.",
            query,
            listing(header.sections.sample[far]),
            np.nanmin(bank),
            np.nanmax(bank),
        )


def section_grounding(header: Header, query: Query, appearance_distance: np.ndarray) -> dict[str, float]:
    """How far the whole section lies from those of the reference; a warning if most spots look like none of them."""
    means, stds = header.sections.mean, header.sections.std
    mean = np.asarray(query.header["section_mean"], dtype=float)
    distance = appearance_distance[query.finite]
    if unlike_share(distance) > MOST_UNLIKE:
        logger.warning(
            "%d of %d spots look unlike every section of the reference: stain, scanner, resolution or tissue differ. "
            "They are flagged in `out_of_reference`; `appearance_distance` says how much they differ.",
            int((distance > 1).sum()),
            len(distance),
        )
    return {
        "section_distance": section_distance(mean, means, stds),
        "section_distance_reference": largest_section_distance(means, stds),
    }
