"""The sections that a recipe asks for: where each comes from, and how it is read, filtered and embedded."""

from __future__ import annotations

import hashlib
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_key, require_known
from ragst_sd.datasets._download import sha256_of
from ragst_sd.datasets._load import find_samples, folder_samples
from ragst_sd.datasets._sample_files import Sample
from ragst_sd.io._recipe import Filters, Place, Recipe, Source
from ragst_sd.io._section import TABLE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedSection:
    """One section that a recipe asks for."""

    name: str
    """Its name in the reference."""
    source: Source
    place: Place
    """Where the recipe names its source."""
    sample: Sample
    """How it is read, with the donor that the recipe names."""

    def digest(self) -> str:
        """Hash of the content of all files that it is read from, which are downloaded if need be."""
        with self.named_in_errors():
            hashes = [_hash_of(path) for path in _files_of(self.sample)]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:24]

    def named_in_errors(self) -> AbstractContextManager[None]:
        """Put the line of the recipe and the section before the message of an error."""
        return self.place.named_in_errors(f", section {self.name!r}")


def planned_sections(recipe: Recipe, place: Place, *, progress: bool | None) -> list[PlannedSection]:
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
    planned: dict[str, PlannedSection] = {}
    for i, source in enumerate(recipe.sources):
        where = place / "sources" / i
        samples = _samples(source, where, progress=progress)
        with (where / "donors").named_in_errors():
            require_known(source.donors, samples, "donors", " names no sample of this source:")
        for key, sample in samples.items():
            name, donor = source.prefix + key, source.donors.get(key, source.donor)
            if name in planned:
                raise ValueError(
                    f"{where}: a section named {name!r} comes from {planned[name].place}, too. "
                    "If they are different sections, give one source a `prefix:`."
                )
            planned[name] = PlannedSection(
                name, source, where, sample if donor is None else replace(sample, donor=donor)
            )
    return [planned[name] for name in sorted(planned)]


def _samples(source: Source, place: Place, *, progress: bool | None) -> dict[str, Sample]:
    """What a source holds, by the name of the section."""
    if source.folder is None:
        with place.named_in_errors():
            return find_samples(
                str(source.dataset), samples=source.samples, path=source.path, bin_um=source.bin_um, progress=progress
            )
    with (place / "folder").named_in_errors():
        samples = folder_samples(str(source.folder), source.folder, source.samples, counted=True)
    return {
        name: replace(sample, image_mpp=source.image_mpp, um_between_centers=source.um_between_centers)
        for name, sample in samples.items()
    }


def _files_of(sample: Sample) -> list[Path]:
    """Every file or archive of a section, by role."""
    files = []
    for role in sorted(sample.roles):
        try:
            files.append(sample.shelf.get(sample.file_and_member(role)[0]))
        except FileNotFoundError:
            if sample.shelf.given is None:
                raise
            # A user's folder may hold what was in the archive instead of the archive.
            files.append(sample.path(role))
    return files


def _hash_of(path: Path) -> str:
    """Hash of the content of a file, or of all files in a folder with their names."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(below for below in path.rglob("*") if below.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\x1f{sha256_of(file)}\x1f".encode())
    return digest.hexdigest()


def check_content(sdata: SpatialData, donor: str | None, layer: str | None) -> None:
    """Write the donor that the recipe names, and refuse what has no picture, spots, counts or donor."""
    parts = {"picture": sdata.images, "spots": sdata.shapes, TABLE: sdata.tables}
    missing = [kind for kind, elements in parts.items() if not elements]
    if missing:
        raise ValueError(
            f"it has no {' and no '.join(missing)}; a reference needs a picture and expression measured in spots."
        )
    table = sdata.tables[TABLE]
    if donor is not None:
        table.obs[_keys.DONOR] = donor
    if layer is not None:
        require_key(layer, table.layers, "layers")
    if _keys.DONOR not in table.obs:
        raise ValueError("its donor is not known. Name the patient or animal with `donor:` or `donors:`.")


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
    counts = table.X if layer is None else table.layers[layer]
    keep = np.ones(table.n_obs, dtype=bool)
    if filters.min_counts is not None:
        keep &= np.asarray(counts.sum(axis=1)).ravel() >= filters.min_counts
    if filters.min_genes is not None:
        keep &= np.asarray((counts > 0).sum(axis=1)).ravel() >= filters.min_genes
    wanted = dict(filters.obs or {}) | ({"in_tissue": ["1", "True"]} if filters.in_tissue else {})
    for column, values in wanted.items():
        require_key(column, table.obs, "obs", "The filters name it.")
        present = table.obs[column].astype(str)
        if not present.isin(values).any():
            raise ValueError(
                f"no spot has {listing(values)} in column {column!r}; its values are "
                f"{listing(sorted(present.unique()))}."
            )
        keep &= present.isin(values).to_numpy()
    if not keep.any():
        raise ValueError(f"the filters leave none of {table.n_obs} spots. Relax them, or leave the section out.")
    if not keep.all():
        logger.info("%d of %d spots are left out by the filters.", int((~keep).sum()), table.n_obs)
        sdata.tables[TABLE] = table[keep].copy()
