"""`rg.datasets.load`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._validate import listing, name_list, require_known, require_positive, require_type
from ragst_sd.datasets._catalog import as_list, catalog_entry, citation_text, require_loader
from ragst_sd.datasets._layouts import LAYOUTS
from ragst_sd.datasets._sample_files import MIRROR, Sample, Shelf, mirror_folder, shelf_of
from ragst_sd.io._readable import existing

logger = logging.getLogger(__name__)

_PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def load(
    name: str,
    *,
    samples: str | Sequence[str] | None = None,
    path: str | PathLike[str] | None = None,
    password: str | None = None,
    bin_um: int | None = None,
    progress: bool | None = None,
) -> dict[str, SpatialData]:
    """Load a public data set of the catalogue, downloading missing files, or a folder of your own.

    Parameters
    ----------
    name
        Name in :func:`ragst_sd.datasets.catalog`, or of a folder of your own in the mirror (any name, together with
        `path`).
    samples
        Sections to load; all that the catalogue lists if left out. Of a collection in the layout of HEST, sections that
        are not listed can be named as well.
    path
        Folder with files that you already have, under the names of the catalogue; archives may have been unpacked.
        Nothing is downloaded then.
    password
        For archives that their owners have encrypted; the message says where they tell it.
    bin_um
        Edge of the bins of Visium HD in microns; 16 if left out.
    progress
        Show progress bars of downloads; the setting if left out.

    Returns
    -------
    A SpatialData for each section, by name:

    images["he"]
        The picture.
    shapes["spots"]
        Spots (cells of Xenium, bins of Visium HD), by circles.
    tables["table"]
        Counts in `X`; `sample` and `donor` in `obs`; tissue, technology, license and citation in
        `uns["ragst"]["source"]`, where :func:`ragst_sd.tl.build_reference` finds them.
    attrs["ragst"]["image_mpp"]["he"]
        Microns per pixel, where they are known.

    A slide without expression comes as the image alone (its source is in `attrs["ragst"]["source"]`), single cells as
    the table alone.

    Raises
    ------
    KeyError
        If there is no such data set or sample.
    ValueError
        If the data set has no loader, a name leads out of its folder, a file is not the one that the catalogue states
        or is damaged, or a downloaded file holds Python objects, leads to other files or says that it is larger than it
        can be.
    PermissionError
        If its owners ask to accept terms, or an archive is encrypted.
    ConnectionError, FileNotFoundError, OSError
        If a file cannot be had: no connection, no such file, no space.

    Notes
    -----
    Files are looked for in `path`, if given; else in the mirror `<RAGST_SD_DATA_DIR>/<name>/<file>`, which is only
    read; else in the cache `<rg.settings.cache_dir>/datasets/<name>/<file>`, into which they are downloaded. A
    download that breaks goes on where it stopped, in the same call or the next, and a file appears under its name only
    when it is whole. Checksums are compared when a file arrives, where the catalogue knows them. Pictures stay in their
    files and are read region by region: keep the files while you use the object, or write it.

    Sections of arrays of Spatial Transcriptomics may lie in `path` or the mirror as `<section>.h5ad` beside
    `<section>.jpg` instead, with counts in `X` and pixels in `obsm["spatial"]`, as :func:`ragst_sd.io.read_st` reads
    them. So do all sections of a folder of your own, in which a picture without counts comes as the image alone.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.load("her2st", samples=["B4", "C2"])
    >>> sections["B4"].tables["table"].obs["donor"].unique().tolist()
    ['her2st B']
    >>> mine = rg.datasets.load("mine", path="sections")  # a folder of <section>.h5ad and <section>.jpg (or png, tif)
    >>> sorted(mine)
    ['donor1', 'donor2']
    """
    listed = find_samples(name, samples=samples, path=path, password=password, bin_um=bin_um, progress=progress)
    sections = {}
    for section, sample in listed.items():
        sections[section] = read_sample(sample)
        logger.info("Loaded section %r of %r.", section, name)
    # A folder of one's own states its source, if at all, in the files of each section.
    details = next(iter(listed.values())).details
    if details:
        logger.info("Licence of %r: %s. To cite: %s.", name, details["license"], details["citation"])
    return sections


def find_samples(
    name: str,
    *,
    samples: str | Sequence[str] | None = None,
    path: str | PathLike[str] | None = None,
    password: str | None = None,
    bin_um: int | None = None,
    progress: bool | None = None,
) -> dict[str, Sample]:
    """Sections of a data set and where their files are looked for; nothing is read or downloaded yet.

    Arguments and errors are those of :func:`load`.
    """
    require_type(name, str, "name")
    require_positive(bin_um, "bin_um", whole=True, optional=True)
    given = None
    if path is not None:
        require_type(path, (str, PathLike), "path")
        todo = "Pass the folder that holds the files of the data set."
        given = existing(Path(path).expanduser(), "`path`:", todo, folder=True)
    folder = _user_folder(name, given)
    try:
        entry = catalog_entry(name)
    except KeyError as error:
        if folder is not None:
            return folder_samples(name, folder, samples)
        raise KeyError(
            f"{error.args[0]} A folder of your own is loaded with `path=`, or by its name in the folder {MIRROR}."
        ) from None
    require_loader(entry, "load")
    loader = entry["loader"]
    entry = _with_sections(entry, samples)
    shelf = shelf_of(entry, given=given, progress=progress, password=password)
    scale = {name: entry.get(name) for name in ("image_mpp", "um_between_centers")}
    facts: dict[str, Any] = {"shelf": shelf, "details": _details(entry), "bin_um": bin_um, "loader": loader, **scale}
    listed = {name: Sample(name, about["donor"], about["files"], **facts) for name, about in entry["samples"].items()}
    return {name: converted(sample, folder) for name, sample in listed.items()} if loader == "st_tsv" else listed


def read_sample(sample: Sample) -> SpatialData:
    """Read one section of a data set, downloading its files if need be."""
    return LAYOUTS[sample.loader](sample)


def _details(entry: Mapping[str, Any]) -> dict[str, str]:
    return {
        _keys.TISSUE: ", ".join(as_list(entry.get("organ"))) or _keys.UNKNOWN,
        _keys.TECHNOLOGY: ", ".join(as_list(entry.get("technology"))) or _keys.UNKNOWN,
        "license": str(entry.get("license") or _keys.UNKNOWN),
        "citation": citation_text(entry),
    }


def _with_sections(entry: Mapping[str, Any], samples: str | Sequence[str] | None) -> dict[str, Any]:
    """An entry with the sections asked for; those that a collection does not list are added with their files."""
    listed, files = dict(entry["samples"]), {file["name"]: file for file in entry["files"]}
    wanted = list(listed) if samples is None else name_list(samples, "samples")
    if entry["loader"] != "hest":
        require_known(wanted, listed, entry["name"], " has no sample", KeyError)
    known, about = next(iter(listed.items()))
    for sample in wanted:
        if sample in listed:
            continue
        _require_inside(sample, "samples", f"The sections of {entry['name']!r} have names such as {known!r}.")
        # Its files are named like those of a section that is listed; the donor stands in its metadata.
        roles = {role: name.replace(known, sample) for role, name in about["files"].items()}
        listed[sample] = {"donor": None, "files": roles}
        for role, name in roles.items():
            files[name] = {"name": name, "url": files[about["files"][role]]["url"].replace(known, sample)}
    return {**entry, "samples": {sample: listed[sample] for sample in wanted}, "files": list(files.values())}


def _user_folder(name: str, given: Path | None) -> Path | None:
    """Where a data set that no catalogue lists would lie: the folder given, or the one of that name in the mirror."""
    if given is not None:
        return given
    mirror = mirror_folder()
    if mirror is None or not name:
        return None
    _require_inside(name, "name", f"Pass a folder outside of the mirror ({MIRROR}) with `path=`.")
    return mirror / name if (mirror / name).is_dir() else None


def _require_inside(name: str, argument: str, todo: str) -> None:
    """Raise a `ValueError` for a name, perhaps of a recipe that somebody else wrote, that leads out of a folder."""
    path = Path(name)
    if path.anchor or ".." in path.parts:
        raise ValueError(f"`{argument}`: {name!r} leads out of the folder of the data sets. {todo}")


def folder_samples(
    name: str, folder: Path, samples: str | Sequence[str] | None = None, *, counted: bool = False
) -> dict[str, Sample]:
    """Sections of a folder: pairs of counts and picture and, unless all have to be `counted`, pictures alone.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or holds no section.
    KeyError
        If a section asked for is not there.
    """
    existing(folder, "Folder", "Pass one that holds sections.", folder=True)
    pictures = {section: path for section, path in _pictures(folder).items() if not counted or _counts(path).exists()}
    if not pictures:
        files = sorted(path.name for path in folder.iterdir())
        kind = "pair of <section>.h5ad and picture" if counted else "picture"
        raise FileNotFoundError(
            f"{str(folder)!r} holds no {kind} ({', '.join(_PICTURES)}). It holds {listing(files)}. Put "
            "`<section>.jpg` there, and `<section>.h5ad` beside it where there are counts."
        )
    wanted = list(pictures) if samples is None else name_list(samples, "samples")
    require_known(wanted, pictures, str(folder), " has no sample", KeyError)
    empty = Sample(name="", donor=None, roles={}, shelf=Shelf(name, {}, folder, folder), details={})
    return {section: _as_pair(replace(empty, name=section), pictures[section]) for section in wanted}


def converted(sample: Sample, folder: Path | None) -> Sample:
    """A section of the catalogue, read from an h5ad and a picture if the folder holds these and not its own files."""
    if folder is None or ("counts" in sample.roles and (folder / Path(sample.roles["counts"]).name).exists()):
        return sample
    picture = _pictures(folder).get(sample.name)
    return sample if picture is None or not _counts(picture).exists() else _as_pair(sample, picture)


def _as_pair(sample: Sample, picture: Path) -> Sample:
    """A section that is read from a picture and, if there is one beside it, an h5ad with counts."""
    counts = _counts(picture)
    roles = {"image": picture.name} | ({"counts": counts.name} if counts.exists() else {})
    shelf = replace(sample.shelf, files={name: {} for name in roles.values()}, given=picture.parent)
    return replace(sample, roles=roles, shelf=shelf, loader="st_h5ad" if "counts" in roles else "slide")


def _pictures(folder: Path) -> dict[str, Path]:
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES]
    # Of several pictures of a section the one whose kind is listed first is taken: it comes last here.
    ordered = sorted(paths, key=lambda path: (path.stem, -_PICTURES.index(path.suffix.lower()), path))
    return {path.stem: path for path in ordered}


def _counts(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}.h5ad")
