"""Sections that lie side by side as `<section>.h5ad` and `<section>.jpg`: one's own folder, or a converted data set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ragst_sd._labels import as_names
from ragst_sd._validate import hint, listing
from ragst_sd.datasets._sample_files import Sample, Shelf, mirror_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def section_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Counts and picture of every section of such a folder.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or holds no such pair.
    """
    folder = Path(folder)
    images = {counts: _picture(folder, counts.stem) for counts in sorted(folder.glob("*.h5ad"))}
    pairs = {counts.stem: (counts, image) for counts, image in images.items() if image is not None}
    if not pairs:
        files = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder} holds no pair of <section>.h5ad and <section>.jpg (found: {files}).")
    return pairs


def user_folder(name: str, given: Path | None) -> Path | None:
    """Where a data set that no catalogue lists would lie: the folder given, or the one of that name in the mirror."""
    if given is not None:
        return given
    mirror, below = mirror_folder(), PurePosixPath(name)
    if mirror is None or not name or below.is_absolute() or ".." in below.parts:
        return None
    folder = mirror / below
    return folder if folder.is_dir() else None


def folder_samples(name: str, folder: Path, samples: str | Sequence[str] | None) -> dict[str, Sample]:
    """Sections of a folder: pairs of counts and picture, and pictures alone.

    Raises
    ------
    FileNotFoundError
        If the folder holds no picture.
    KeyError
        If a section asked for is not there.
    """
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    if not pictures:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no picture ({', '.join(SUFFIXES)}), so no section of {name!r}. It holds "
            f"{listing(sorted(path.name for path in folder.iterdir()))}. Put `<section>.jpg` there, and `<section>.h5ad` beside it where there are counts."
        )
    wanted = list(pictures) if samples is None else as_names(samples)
    require_samples(wanted, pictures, f"The folder of {name!r}")
    empty = Sample(name="", donor=None, roles={}, shelf=Shelf(name, {}, folder, folder), details={})
    return {section: _as_pair(replace(empty, name=section), folder, pictures[section]) for section in wanted}


def require_samples(wanted: Sequence[str], available: Collection[str], where: str) -> None:
    """Raise a `KeyError` that lists the available sections unless all that are asked for, at least one, are there."""
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        near = hint(unknown[0], available) if unknown else ""
        raise KeyError(f"{where} has no sample {listing(unknown)}. Available: {listing(available)}.{near}")


def converted(sample: Sample, folder: Path | None) -> Sample:
    """The same section, read from a pair of h5ad and picture if the folder holds one and not the files as published."""
    if folder is None or ("counts" in sample.roles and (folder / Path(sample.roles["counts"]).name).exists()):
        return sample
    picture = _picture(folder, sample.name)
    counts = folder / f"{sample.name}.h5ad"
    return sample if picture is None or not counts.exists() else _as_pair(sample, folder, picture)


def _as_pair(sample: Sample, folder: Path, picture: Path) -> Sample:
    counts = folder / f"{sample.name}.h5ad"
    roles = {"image": picture.name} | ({"counts": counts.name} if counts.exists() else {})
    shelf = replace(sample.shelf, files={name: {} for name in roles.values()}, given=folder)
    return replace(sample, roles=roles, shelf=shelf, loader="st_h5ad" if "counts" in roles else "picture")


def _picture(folder: Path, section: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{section}{suffix}").exists()), None)
