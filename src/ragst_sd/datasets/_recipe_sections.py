"""The sections that a recipe asks for: where each comes from, what it is made of, and which of its spots are kept."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import hint, listing
from ragst_sd.datasets._checksum import sha256_of
from ragst_sd.datasets._load import find_samples, read_sample
from ragst_sd.datasets._pairs import section_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from ragst_sd.datasets._recipe import Filters, Recipe, Source
    from ragst_sd.datasets._sample_files import Sample

logger = logging.getLogger(__name__)

TABLE = "table"
_IN_TISSUE = "in_tissue"


@dataclass(frozen=True)
class Planned:
    """One section that a recipe asks for."""

    sample: str
    """Its name in the reference."""
    source: Source
    facts: Mapping[str, Any]
    """What it is read with, as plain values."""
    files: Callable[[], list[Path]] = field(repr=False)
    """Files that it is read from, downloaded if need be."""
    read: Callable[[], SpatialData] = field(repr=False)

    def inputs(self) -> list[str]:
        """Hashes of all files, in the order of their roles."""
        return [_hash_of(path) for path in self.files()]


def planned_sections(recipe: Recipe, *, progress: bool | None) -> list[Planned]:
    """All sections, in the order of their names; nothing is read yet.

    Raises
    ------
    KeyError
        If a data set of the catalogue, or a sample, does not exist.
    ValueError
        If two sections have one name, or `donors` names samples that are not there.
    FileNotFoundError
        If a folder does not exist or holds no sections.
    """
    found: dict[str, Planned] = {}
    for source in recipe.sources:
        if source.folder is not None:
            here = _from_folder(source, source.folder)
        else:
            here = _from_catalogue(source, progress=progress)
        for name in source.donors:
            if name not in here:
                msg = (
                    f"{source.place / 'donors' / name}: this source has no sample {name!r}. Available: {listing(here)}."
                    f"{hint(name, here)}"
                )
                raise ValueError(msg)
        for section in here.values():
            if section.sample in found:
                msg = (
                    f"{source.place}: a section named {section.sample!r} comes from {found[section.sample].source.place}, too. "
                    "If they are different sections, give one source a `prefix:`."
                )
                raise ValueError(msg)
            found[section.sample] = section
    return [found[name] for name in sorted(found)]


def _from_folder(source: Source, folder: Path) -> dict[str, Planned]:
    try:
        pairs = section_files(folder)
    except FileNotFoundError as error:
        msg = f"{source.place / 'folder'}: {error}"
        raise FileNotFoundError(msg) from error
    for name in source.samples or ():
        if name not in pairs:
            msg = f"{source.place / 'samples'}: {folder} has no section {name!r}. Available: {listing(pairs)}.{hint(name, pairs)}"
            raise KeyError(msg)
    out = {}
    for name in source.samples or pairs:
        sample = source.prefix + name
        arguments: dict[str, Any] = {
            "sample": sample,
            "donor": source.donors.get(name, source.donor),
            "image_mpp": source.image_mpp,
            "um_between_centers": source.um_between_centers,
        }
        out[name] = Planned(
            sample=sample,
            source=source,
            facts=arguments,
            files=partial(list, pairs[name]),
            read=partial(_read_pair, *pairs[name], **arguments),
        )
    return out


def _read_pair(counts: Path, image: Path, **arguments: Any) -> SpatialData:
    from ragst_sd.io import read_st

    return read_st(counts, image, **arguments)


def _from_catalogue(source: Source, *, progress: bool | None) -> dict[str, Planned]:
    name = str(source.dataset)
    try:
        samples = find_samples(name, samples=source.samples, path=source.path, bin_um=source.bin_um, progress=progress)
    except KeyError as error:
        msg = f"{source.place}: {error.args[0]}"
        raise KeyError(msg) from error
    out = {}
    for one, sample in samples.items():
        donor = source.donors.get(one)
        facts = {
            "dataset": name,
            "donor": sample.donor if donor is None else donor,
            "details": dict(sample.details),
            "image_mpp": sample.image_mpp,
            "um_between_centers": sample.um_between_centers,
            "bin_um": sample.bin_um,
        }
        out[one] = Planned(
            sample=source.prefix + one,
            source=source,
            facts=facts,
            files=partial(_files_of, sample),
            read=partial(_read_catalogued, sample, donor),
        )
    return out


def _read_catalogued(sample: Sample, donor: str | None) -> SpatialData:
    sdata = read_sample(sample)
    if donor is not None and TABLE in sdata.tables:
        sdata.tables[TABLE].obs[_keys.DONOR] = donor
    return sdata


def _files_of(sample: Sample) -> list[Path]:
    """Every file or archive of a section, by role."""
    found = []
    for role, named in sorted(sample.roles.items()):
        whole = next((one for one in sample.shelf.files if named == one or named.startswith(f"{one}/")), named)
        try:
            found.append(sample.shelf.get(whole))
        except FileNotFoundError:
            # A user's folder may hold what was in the archive instead of the archive.
            found.append(sample.path(role))
    return found


def _hash_of(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\x1f{sha256_of(file)}\x1f".encode())
    return digest.hexdigest()


def keep_spots(sdata: SpatialData, filters: Filters, *, layer: str | None) -> None:
    """Leave out the spots that the filters of a recipe reject.

    Raises
    ------
    KeyError
        If a column of `obs` does not exist.
    ValueError
        If no spot is left, or no spot has a value that is asked for.
    """
    table = sdata.tables[TABLE]
    kept = _kept(table, filters, table.X if layer is None else table.layers[layer])
    if not kept.any():
        msg = f"the filters leave none of {table.n_obs} spots. Relax them, or leave the section out."
        raise ValueError(msg)
    if not kept.all():
        logger.info("%d of %d spots are left out by the filters.", int((~kept).sum()), table.n_obs)
        sdata.tables[TABLE] = table[kept].copy()


def _kept(table: AnnData, filters: Filters, counts: Any) -> np.ndarray:
    kept = np.ones(table.n_obs, dtype=bool)
    if filters.min_counts is not None:
        kept &= np.asarray(counts.sum(axis=1)).ravel() >= filters.min_counts
    if filters.min_genes is not None:
        kept &= np.asarray((counts > 0).sum(axis=1)).ravel() >= filters.min_genes
    wanted = dict(filters.obs) | ({_IN_TISSUE: ["1", "True"]} if filters.in_tissue else {})
    for column, values in wanted.items():
        if column not in table.obs:
            msg = f"the filters name the column {column!r}, which `obs` does not have. Available: {listing(table.obs)}."
            raise KeyError(msg)
        found = table.obs[column].astype(str)
        if not found.isin(values).any():
            msg = (
                f"no spot has {listing(values)} in column {column!r}; its values are {listing(sorted(found.unique()))}."
            )
            raise ValueError(msg)
        kept &= found.isin(values).to_numpy()
    return kept
