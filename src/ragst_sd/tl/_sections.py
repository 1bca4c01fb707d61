"""Sections of a reference: what each SpatialData brings, checked before anything is merged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import embedded_rows, is_predicted, spot_centers
from ragst_sd._elements import require_sdata
from ragst_sd._labels import labels
from ragst_sd._validate import listing, require_choice, require_key, require_some
from ragst_sd.reference.genes import duplicates
from ragst_sd.reference.normalize import UNITS, check_counts, check_log_normalized
from ragst_sd.reference.schema import check_embedding_header
from ragst_sd.tl._stored_expression import offered_names, stored_expression

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

SOURCE_FIELDS = ("tissue", "technology", "license", "citation", "panel")


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
    source: dict[str, Any]
    species: str = _keys.UNKNOWN
    thumbnails: np.ndarray | None = None

    def keep_rows(self, rows: np.ndarray) -> None:
        """Leave out all but some rows, everywhere."""
        self.obs = self.obs.loc[rows]
        self.embedding, self.expression, self.xy = self.embedding[rows], self.expression[rows], self.xy[rows]
        if self.thumbnails is not None:
            self.thumbnails = self.thumbnails[rows]

    def first_names(self) -> list[str]:
        """Some names of its genes, for messages."""
        return next(iter(self.names.values()))[:3]

    def take(self, field: str) -> Any:
        """Give an array away, so that a section does not keep what stands in the reference already."""
        value = getattr(self, field)
        setattr(self, field, None)
        return value


def named_sections(sdatas: Any, table_key: str) -> dict[str, SpatialData | Callable[[], SpatialData]]:
    """Sample names for a SpatialData, a list, or a mapping (of functions, too); `obs["sample"]` names members of a list."""
    if isinstance(sdatas, Mapping):
        named = {str(name): sdata for name, sdata in sdatas.items()}
    else:
        members = list(sdatas) if isinstance(sdatas, Sequence) else [sdatas]
        own = [_own_name(sdata, table_key) for sdata in members]
        repeated = sorted({name for name in own if name is not None and own.count(name) > 1})
        if repeated:
            msg = (
                f"Several sections have the same `obs['sample']`: {listing(repeated)}. Give them names of their own, or "
                "pass a mapping from sample name to section."
            )
            raise ValueError(msg)
        free = (name for i in count(1) if (name := f"sample{i}") not in own)
        named = {name or next(free): sdata for name, sdata in zip(own, members, strict=True)}
    require_some(named, "sdatas", "A reference needs at least one section.")
    for sdata in named.values():
        if not callable(sdata):
            require_sdata(sdata)
    return named


def _own_name(sdata: SpatialData, table_key: str) -> str | None:
    require_sdata(sdata)
    require_key(table_key, sdata.tables, "sdata.tables")
    obs = sdata.tables[table_key].obs
    own = set(labels(obs[_keys.SAMPLE])) if _keys.SAMPLE in obs else set()
    return own.pop() if len(own) == 1 else None


def read_section(
    sample: str,
    given: SpatialData | Callable[[], SpatialData],
    *,
    use_rep: str,
    table_key: str,
    donor_key: str,
    layer: str | None,
    unit: str,
    obs: Sequence[str],
    source: Mapping[str, Any],
) -> tuple[Section, SpatialData]:
    """Open one section, check it and take out what a reference needs; the object it came from is returned beside it."""
    require_choice(unit, UNITS, "unit")
    sdata = given() if callable(given) else given
    require_sdata(sdata)
    where = f"sdatas[{sample!r}]"
    require_key(table_key, sdata.tables, f"{where}.tables")
    table = sdata.tables[table_key]
    if is_predicted(table):
        msg = f"{where}: table {table_key!r} was predicted by `rg.tl.predict`; a reference holds measured tissue only."
        raise ValueError(msg)
    require_key(use_rep, table.obsm, f"{where}.tables[{table_key!r}].obsm", "Run `rg.pp.embed_tiles` first.")
    todo = "Write the patient or animal into `obs['donor']`, or name the column that holds it with `donor_key=`."
    require_key(donor_key, table.obs, f"{where}.tables[{table_key!r}].obs", todo)
    for column in obs:
        require_key(column, table.obs, f"{where}.tables[{table_key!r}].obs")
    if table.obs[donor_key].isna().any():
        msg = f"{where}: {int(table.obs[donor_key].isna().sum())} rows have no donor in `obs[{donor_key!r}]`."
        raise ValueError(msg)
    header = table.uns.get(_keys.ATTRS, {}).get(_keys.EMBEDDINGS, {}).get(use_rep)
    check_embedding_header(header, f"`obsm[{use_rep!r}]` of {where}")
    todo = "Name the table that holds counts with `table_key=`."
    matrix = stored_expression(table, layer, f"{where}.tables[{table_key!r}]", todo)
    expression_name = f"{where}: {'X' if layer is None else f'layers[{layer!r}]'}"
    (check_counts if unit == "counts" else check_log_normalized)(matrix, expression_name)
    names = offered_names(table)
    if unit != "counts":
        for kind, listed in names.items():
            if duplicates(listed):
                msg = (
                    f"{where}: {kind} names are not unique ({listing(duplicates(listed))}). Values on a log scale cannot "
                    "be added up: give counts with `layer=`, or make the names unique."
                )
                raise ValueError(msg)

    if table.obs_names.has_duplicates:
        msg = f"{where}: spot names are not unique: {listing(table.obs_names[table.obs_names.duplicated()].unique())}."
        raise ValueError(msg)
    keep = _usable_rows(table, use_rep, matrix, header, where)
    own = table.uns.get(_keys.ATTRS, {}).get(_keys.SOURCE, {})
    kept = table.obs.loc[keep]
    section = Section(
        sample=sample,
        obs=kept.assign(**{_keys.DONOR: labels(kept[donor_key])})[list(dict.fromkeys([_keys.DONOR, *obs]))],
        embedding=np.asarray(table.obsm[use_rep], dtype=np.float32)[keep],
        header=dict(header),
        expression=matrix[keep],
        names=names,
        xy=_centers(sdata, table, table_key, header)[keep],
        source={name: source.get(name, own.get(name)) for name in SOURCE_FIELDS},
    )
    return section, sdata


def _centers(sdata: SpatialData, table: AnnData, table_key: str, header: Mapping[str, Any]) -> np.ndarray:
    """Centres on the embedded image; NaN where the object has come without it."""
    image_key = str(header["image_key"])
    if image_key not in sdata.images:
        return np.full((table.n_obs, 2), np.nan)
    return spot_centers(
        sdata, table, table_key=table_key, image_key=image_key, coordinate_system=str(header["coordinate_system"])
    )


def _usable_rows(
    table: AnnData, use_rep: str, matrix: sp.csr_matrix, header: Mapping[str, Any], where: str
) -> np.ndarray:
    """Rows with an embedding and with counts."""
    finite = embedded_rows(table, use_rep, header, where)
    counted = np.asarray(matrix.sum(axis=1)).ravel() > 0
    if not (finite & counted).any():
        msg = f"{where}: no spot has both an embedding and counts."
        raise ValueError(msg)
    for mask, why in ((finite, "lie outside the image"), (counted, "have no counts")):
        if not mask.all():
            logger.info("%s: %d spots %s and are left out.", where, int((~mask).sum()), why)
    return finite & counted
