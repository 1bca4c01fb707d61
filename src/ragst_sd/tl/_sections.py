"""Sections of a reference: what each SpatialData brings, checked before anything is merged, and what is kept of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import embedded_centers, is_predicted
from ragst_sd._elements import image_pyramid, require_sdata
from ragst_sd._gene_names import stored_expression
from ragst_sd._labels import ON_TISSUE, is_missing, labels, on_tissue, plain_column
from ragst_sd._patches import THUMBNAIL_PX, shrunk
from ragst_sd._query import read_embedding
from ragst_sd._reference import LABELS
from ragst_sd._resolution import embedded_mpp_of
from ragst_sd._spot_layout import share_among_others, warn_of_other_order
from ragst_sd._validate import require_key, require_unique
from ragst_sd.image.embedding import tiles_at
from ragst_sd.reference.duplicates import Duplicate, Fingerprint, find_duplicates
from ragst_sd.reference.normalize import check_unit
from ragst_sd.reference.panels import PANEL
from ragst_sd.reference.schema import knows_tiles

logger = logging.getLogger(__name__)

SOURCE_FIELDS = ("tissue", "technology", "license", "citation", "panel")
ON_DUPLICATE = ("error", "warn")


@dataclass
class Section:
    """One section, its rows limited to spots that lie on the image."""

    sample: str
    obs: pd.DataFrame
    embedding: np.ndarray
    header: dict[str, Any]
    expression: sp.csr_matrix
    names: dict[str, list[str]]
    xy: np.ndarray
    mpp: float
    source: dict[str, Any]
    species: str = _keys.UNKNOWN
    thumbnails: np.ndarray | None = None

    def keep_rows(self, rows: np.ndarray) -> None:
        """Leave out all but some rows, everywhere."""
        self.obs = self.obs.loc[rows]
        self.embedding, self.expression, self.xy = self.embedding[rows], self.expression[rows], self.xy[rows]
        if self.thumbnails is not None:
            self.thumbnails = self.thumbnails[rows]

    def take(self, field: str) -> Any:
        """Give an array away, so that a section does not keep what stands in the reference already."""
        value = getattr(self, field)
        setattr(self, field, None)
        return value


class Wanted(NamedTuple):
    """What is read of every section: arguments of `rg.tl.build_reference`."""

    use_rep: str
    table_key: str
    donor_key: str
    layer: str | None
    unit: str
    obs: Sequence[str]
    thumbnails: bool


def read_section(
    wanted: Wanted, task: tuple[str, SpatialData | Callable[[], SpatialData], Mapping[str, Any]]
) -> Section:
    """Open a section, given with its name and source, check it and take out what a reference needs."""
    sample, given, source = task
    use_rep, table_key, donor_key, layer, unit, obs, with_thumbnails = wanted
    sdata = given() if callable(given) else given
    require_sdata(sdata)
    where = f"sdatas[{sample!r}]"
    require_key(table_key, sdata.tables, f"{where}.tables")
    table = sdata.tables[table_key]
    if is_predicted(table):
        raise ValueError(
            f"{where}: table {table_key!r} was predicted by `rg.tl.predict`; a reference holds measured tissue only."
        )
    todo = "Run `rg.pp.embed_tiles` first, or `rg.pp.use_features` with features that are there already."
    require_key(use_rep, table.obsm, f"{where}.tables[{table_key!r}].obsm", todo)
    todo = "Write the patient or animal into `obs['donor']`, or name the column that holds it with `donor_key=`."
    require_key(donor_key, table.obs, f"{where}.tables[{table_key!r}].obs", todo)
    for column in obs:
        require_key(column, table.obs, f"{where}.tables[{table_key!r}].obs")
    nameless = is_missing(table.obs[donor_key])
    if nameless.any():
        raise ValueError(f"{where}: {int(nameless.sum())} rows have no donor in `obs[{donor_key!r}]`.")
    embedding, finite, header = read_embedding(sdata, table, use_rep, where)
    todo = "Name the table that holds counts with `table_key=`."
    matrix, names = stored_expression(table, layer, f"{where}.tables[{table_key!r}]", todo)
    expression_name = f"{where}: {'X' if layer is None else f'layers[{layer!r}]'}"
    check_unit(matrix, unit, expression_name, *names.values())
    require_unique(table.obs_names, f"names of spots of {where}", "Make them unique.")
    keep = _usable_rows(table, finite, matrix, where)
    stated = table.uns.get(_keys.ATTRS, {}).get(_keys.SOURCE, {})
    usable = table.obs.loc[keep]
    xy = embedded_centers(sdata, table, table_key=table_key, header=header)
    warn_of_other_order(table, xy, where)
    _warn_of_mixed_donors(xy[keep], labels(usable[donor_key]), donor_key, where)
    section = Section(
        sample=sample,
        obs=usable.assign(**{_keys.DONOR: labels(usable[donor_key])})[list(dict.fromkeys([_keys.DONOR, *obs]))],
        embedding=embedding[keep].astype(np.float32),
        header=header,
        expression=matrix[keep],
        names=names,
        xy=xy[keep],
        mpp=embedded_mpp_of(sdata, header) or np.nan,
        source={name: source.get(name, stated.get(name)) for name in SOURCE_FIELDS},
    )
    if with_thumbnails and str(header.get("image_key")) == _keys.PATCHES and _keys.THUMBNAIL in table.obsm:
        section.thumbnails = shrunk(table.obsm[_keys.THUMBNAIL][keep], THUMBNAIL_PX)
    elif with_thumbnails and knows_tiles(header):
        section.thumbnails = thumbnails(section, sdata)
    return section


def _warn_of_mixed_donors(xy: np.ndarray, donors: np.ndarray, donor_key: str, where: str) -> None:
    """Clusters, labels or spots that were taken for donors lie among each other; donors on one slide do not."""
    share = share_among_others(xy, donors)
    if share:
        logger.warning(
            "%s: %d donors by `obs[%r]`, and %.0f %% of the spots lie beside a spot of another one. If these are no "
            "patients or animals, name the column that holds them with `donor_key=`: otherwise a spot is predicted "
            "from its own tissue, and accuracy on other donors is overstated.",
            where,
            len(set(donors)),
            donor_key,
            100 * share,
        )


def _usable_rows(table: AnnData, finite: np.ndarray, matrix: sp.csr_matrix, where: str) -> np.ndarray:
    """Rows on tissue, with an embedding and with counts."""
    counted = np.asarray(matrix.sum(axis=1)).ravel() > 0
    tissue = on_tissue(table.obs)
    if not (finite & counted & tissue).any():
        raise ValueError(f"{where}: no spot on tissue has both an embedding and counts.")
    beside = f"lie beside the tissue by `obs[{ON_TISSUE!r}]`"
    for mask, why in ((finite, "have no embedding"), (counted, "have no counts"), (tissue, beside)):
        if not mask.all():
            logger.info("%s: %d spots %s and are left out.", where, int((~mask).sum()), why)
    return finite & counted & tissue


def row_annotations(sections: list[Section], panel_of: Mapping[str, str]) -> pd.DataFrame:
    """One line per spot."""
    frames = []
    for section in sections:
        frame = section.obs.copy()
        frame.index = pd.Index([f"{section.sample}:{name}" for name in frame.index])
        frame[_keys.SAMPLE] = section.sample
        for name in (_keys.TISSUE, _keys.TECHNOLOGY):
            if name not in frame or section.source[name]:
                frame[name] = str(section.source[name] or _keys.UNKNOWN)
            frame[name] = labels(frame[name], missing=_keys.UNKNOWN)
        frame[_keys.X_UM], frame[_keys.Y_UM] = (section.xy * section.mpp).T
        frame[_keys.PANEL] = panel_of[section.sample]
        frames.append(frame)
    joined = pd.concat(frames)
    asked = [name for name in joined if name not in LABELS]
    joined = joined.assign(**{name: plain_column(joined[name], f"obs[{name!r}]") for name in asked})
    return joined.astype(dict.fromkeys(LABELS, str)).astype(dict.fromkeys(LABELS, "category"))


def section_statistics(sections: list[Section]) -> dict[str, np.ndarray]:
    """One entry per section, in every array."""

    def column(name: str, missing: Any) -> np.ndarray:
        return np.asarray([section.header.get(name, missing) for section in sections])

    return {
        "sample": np.asarray([section.sample for section in sections], dtype=str),
        "mean": column("section_mean", None),
        "std": column("section_std", None),
        "image_mpp": column("image_mpp", np.nan).astype(float),
        "upsampling": column("upsampling", 1.0).astype(float),
        "image_hash": column("image_hash", "").astype(str),
        "precision": column("precision", "float32").astype(str),
        "species": np.asarray([section.species for section in sections], dtype=str),
    }


def source_table(sections: list[Section]) -> pd.DataFrame:
    """One line per section: organ, technology, licence, citation."""
    fields = [name for name in SOURCE_FIELDS if name != PANEL]
    rows = [[str(section.source[name] or _keys.UNKNOWN) for name in fields] for section in sections]
    return pd.DataFrame(
        rows, columns=fields, index=pd.Index([section.sample for section in sections], name=_keys.SAMPLE)
    )


def thumbnails(section: Section, sdata: SpatialData) -> np.ndarray:
    """(n, 64, 64, 3) uint8 pictures of the tiles that were embedded; white where the image is not at hand."""
    header, image_key = section.header, str(section.header["image_key"])
    if image_key not in sdata.images:
        logger.warning("%s: image %r is not in the object; thumbnails stay white.", section.sample, image_key)
        return np.full((len(section.obs), THUMBNAIL_PX, THUMBNAIL_PX, 3), 255, dtype=np.uint8)
    return tiles_at(
        image_pyramid(sdata, image_key),
        section.xy,
        int(header["tile_px"]),
        mpp=float(header["mpp"]),
        image_mpp=section.mpp,
        edge=THUMBNAIL_PX,
    )


def report_duplicates(prints: Sequence[Fingerprint], on_duplicate: str) -> None:
    """Warn of each pair of sections of one tissue and different donors, or raise a `ValueError` that names them all."""
    sentences = [_sentence(pair) for pair in find_duplicates(prints)]
    if not sentences:
        return
    todo = "Give both the same donor, or leave one out: else one predicts the other, and accuracy is no evidence."
    if on_duplicate == "error":
        raise ValueError(
            f"{' '.join(sentences)} {todo} If they are different tissue all the same, pass `on_duplicate='warn'`."
        )
    for sentence in sentences:
        logger.warning("%s %s", sentence, todo)


def _sentence(pair: Duplicate) -> str:
    first, second = pair.first, pair.second
    names = f"Sections {first.sample!r} and {second.sample!r}"
    donors = f"different donors ({sorted(first.donors)}, {sorted(second.donors)})"
    if pair.by == "images":
        return f"{names} have identical images but {donors}: the same tissue is in twice, or one of the names is wrong."
    what = "expression" if pair.by == "expression" else "picture"
    return f"{names} are the same tissue, as the {what} of {pair.share:.0%} of the spots shows, but have {donors}."
