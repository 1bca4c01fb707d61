"""What an HDF5 file from a stranger may hold: looked at before any of its arrays is read.

No link leads out of it, no reference to what has no name, no array lies in another file, and none is larger than what lies on
disk can account for. Texts in attributes are not counted.
"""

from __future__ import annotations

import io
import math
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ragst_sd.io._chunk_sizes import blosc_size, zstd_size
from ragst_sd.io._hdf5_references import stray_reference
from ragst_sd.io._hdf5_texts import bytes_of_texts, stored_item
from ragst_sd.io._sparse_check import check_stored_sparse, hidden_part_of_10x
from ragst_sd.io._store_check import FREE_BYTES, MOST_CHUNK_BYTES, MOST_EXPANSION, MOST_NODES, STRANGER, memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Registered numbers of filters. Only the packings change how large a chunk is.
_DEFLATE, _LZF, _BLOSC, _ZSTD = 1, 32000, 32001, 32015
_PACKINGS = {_DEFLATE: "gzip", _LZF: "lzf", _BLOSC: "blosc", _ZSTD: "zstd"}
_HARMLESS = {2: "shuffle", 3: "fletcher32", **_PACKINGS}
# The most that a byte can unpack to, by the formats themselves.
_MOST_RATIO = {_DEFLATE: 1032, _LZF: 88}
_PIECE_BYTES = 2**20
_ONLY_ITSELF = "Only files that hold all of their content themselves are read, so that none can show what lies beside it; it is not read."


def check_hdf5(path: Path, *, in_memory: bool = True) -> None:
    """Look at all links, layouts and sizes in an HDF5 file.

    Parameters
    ----------
    path
        The file.
    in_memory
        Whether all of it is going to be read at once, and has to fit into memory.

    Raises
    ------
    MemoryError
        If it is larger than the memory of this machine.
    OSError
        If it is no HDF5 file.
    ValueError
        If it holds links that lead out of it or nowhere, references to what no name leads to, arrays that lie elsewhere, filters
        that are not known to be harmless, arrays that unpack to far more than lies on disk, or sparse matrices that point
        outside of themselves or can be understood in two ways.
    """
    import h5py

    on_disk = path.stat().st_size
    with h5py.File(path, "r") as file:
        with _understood(path, "/"):
            arrays, groups = _walk(file, path)
            _check_places(file, arrays, groups)
        total = stored = 0
        texts: dict[Any, int] = {}
        for place, array in arrays.items():
            with _understood(path, place):
                total += _check_array(array, place, on_disk)
                # Every name is read, but an array lies on disk once, and its texts beside it as they are.
                if array not in texts:
                    texts[array] = bytes_of_texts(array, path, on_disk)
                    stored += int(array.id.get_storage_size()) + texts[array]
                total += texts[array]
        if total > max(FREE_BYTES, MOST_EXPANSION * on_disk) or stored > on_disk:
            msg = f"{path}: its arrays together say that they hold {total:,} bytes, which a file of {on_disk:,} cannot account for. {STRANGER}"
            raise ValueError(msg)
        if in_memory and total > memory_bytes():
            msg = (
                f"{path} holds {total / 1e9:.1f} GB, this machine has {memory_bytes() / 1e9:.1f} GB of memory. Read it on a "
                "larger one, or write a smaller file with the spots, cells or layers that are needed."
            )
            raise MemoryError(msg)
        for place, group in groups.items():
            with _understood(path, place):
                check_stored_sparse(group, path, place)


class _Refused(ValueError):
    """Something that is understood, and not wanted."""


@contextmanager
def _understood(path: Path, place: str) -> Iterator[None]:
    """Tell which part cannot be understood."""
    try:
        yield
    except _Refused as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error
    except (KeyError, TypeError, AttributeError, RuntimeError, OSError, OverflowError, zlib.error) as error:
        msg = f"{path}: {place!r} cannot be understood ({type(error).__name__}: {error}). The file is damaged; it is not read."
        raise ValueError(msg) from error


def _walk(file: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arrays by every name that they have, and all groups."""
    import h5py

    arrays: dict[str, Any] = {}
    groups: dict[str, Any] = {"/": file["/"]}
    seen, waiting, soft = {file["/"]}, ["/"], []
    n_nodes = 0
    while waiting:
        above = waiting.pop()
        names: list[bytes] = []
        # By name, as readers look them up: the other index of a group need not list all of them.
        groups[above].id.links.iterate(names.append, idx_type=h5py.h5.INDEX_NAME)
        n_nodes += len(names)
        if n_nodes > MOST_NODES:
            msg = f"it holds more than {MOST_NODES:,} groups and arrays. {STRANGER}"
            raise _Refused(msg)
        for name in names:
            kind = groups[above].id.links.get_info(name).type
            place = f"{above.rstrip('/')}/{name.decode(errors='backslashreplace')}"
            if kind == h5py.h5l.TYPE_SOFT:
                soft.append((place, groups[above], name))
                continue
            if kind != h5py.h5l.TYPE_HARD:
                raise _Refused(_leads_out(groups[above], name, place))
            found = groups[above][name]
            if isinstance(found, h5py.Group):
                if found in seen:
                    msg = f"{place!r} is a group that also lies elsewhere in the file, and would be read twice, or for ever. {STRANGER}"
                    raise _Refused(msg)
                seen.add(found)
                groups[place] = found
                waiting.append(place)
            elif isinstance(found, h5py.Dataset):
                arrays[place] = found
    # Followed last: only now is it known that no group on the way leads out of the file.
    for place, group, name in soft:
        target = group.id.links.get_val(name).decode(errors="backslashreplace")
        try:
            found = group[name]
        except (KeyError, RuntimeError):
            # Nothing there, or links that lead to one another.
            found = None
        if not isinstance(found, h5py.Dataset):
            where = "where nothing is" if found is None else "which is no array"
            msg = f"{place!r} is a link to {target!r}, {where}. It is not read. Remove the link, or copy what it is to lead to into its place."
            raise _Refused(msg)
        arrays[place] = found
    return arrays, groups


def _check_places(file: Any, arrays: dict[str, Any], groups: dict[str, Any]) -> None:
    """Everything that a reader may find has been looked at, and is found in one place."""
    stray = stray_reference(file, groups | arrays)
    if stray is not None:
        msg = (
            f"{stray!r} refers to something in the file that has no name, or is an array of references. Only what can be found by "
            "its name is looked at; it is not read. Write it with a present version of anndata, if it is yours."
        )
        raise _Refused(msg)
    hidden = hidden_part_of_10x(list(file), list(arrays))
    if hidden is not None:
        msg = f"{hidden!r} is part of a matrix, but lies in a group within it, where some readers look and others do not. {STRANGER}"
        raise _Refused(msg)


def _leads_out(group: Any, name: bytes, place: str) -> str:
    import h5py

    link = group.id.links
    if link.get_info(name).type != h5py.h5l.TYPE_EXTERNAL:
        return f"{place!r} is a link of a kind that is not known. {_ONLY_ITSELF}"
    file, target = (part.decode(errors="backslashreplace") for part in link.get_val(name))
    return (
        f"{place!r} is a link to {target!r} in another file, {file!r}. {_ONLY_ITSELF} Copy it with the links resolved, if they are "
        "yours (`expand_external=True` in h5py's `copy`)."
    )


def _check_array(array: Any, place: str, on_disk: int) -> int:
    """Bytes of an array in memory; a text counts as its pointer, and by its length elsewhere."""
    import h5py

    layout = array.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        names = sorted({layout.get_virtual_filename(i) for i in range(layout.get_virtual_count())})
        msg = f"{place!r} is a virtual array, put together from {names}. {_ONLY_ITSELF} Write its values into the file, if it is yours."
        raise _Refused(msg)
    if layout.get_external_count():
        name = layout.get_external(0)[0].decode(errors="backslashreplace")
        msg = f"the values of {place!r} lie in another file, {name!r}. {_ONLY_ITSELF} Write its values into the file, if it is yours."
        raise _Refused(msg)
    itemsize, stored = int(array.id.get_type().get_size()), int(array.id.get_storage_size())
    shape = array.shape or ()
    nbytes = 0 if array.shape is None else math.prod(shape) * itemsize
    if nbytes > max(FREE_BYTES, MOST_EXPANSION * min(stored, on_disk)):
        msg = (
            f"{place!r} says that its shape is {shape}, {nbytes:,} bytes, but {stored:,} bytes lie on disk. {STRANGER}"
        )
        raise _Refused(msg)
    if layout.get_layout() == h5py.h5d.CHUNKED:
        on_disk_itemsize, _ = stored_item(array.id.get_type(), 8 + int(array.file.id.get_create_plist().get_sizes()[0]))
        _check_chunks(array, layout, place, math.prod(layout.get_chunk()) * on_disk_itemsize)
    return nbytes


def _check_chunks(array: Any, layout: Any, place: str, chunk_bytes: int) -> None:
    if chunk_bytes > MOST_CHUNK_BYTES:
        msg = f"{place!r} says that one of its chunks holds {chunk_bytes:,} bytes. {STRANGER}"
        raise _Refused(msg)
    filters = [int(layout.get_filter(i)[0]) for i in range(layout.get_nfilters())]
    foreign, packings = sorted(set(filters) - set(_HARMLESS)), [one for one in filters if one in _PACKINGS]
    if foreign:
        msg = (
            f"{place!r} is packed with the filters {foreign}; known to be harmless are {sorted(_HARMLESS.values())}. It is not "
            'read. Write it with `compression="gzip"`.'
        )
        raise _Refused(msg)
    if len(packings) > 1:
        # Packed twice, only the outer size would be known.
        msg = f"{place!r} is packed more than once, with {[_PACKINGS[one] for one in packings]}. {STRANGER}"
        raise _Refused(msg)
    if not packings:
        return
    skipped = 1 << filters.index(packings[0])
    chunks: list[Any] = []
    array.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.filter_mask & skipped or chunk.size * _MOST_RATIO.get(packings[0], math.inf) <= FREE_BYTES:
            continue
        size = _unpacked(array, chunk, packings[0], chunk_bytes)
        if size is None or size > chunk_bytes:
            held = "an unknown number of" if size is None else f"{size:,} or more"
            msg = f"the chunk of {place!r} at {chunk.chunk_offset} unpacks to {held} bytes, where {chunk_bytes:,} are expected. {STRANGER}"
            raise _Refused(msg)


def _unpacked(array: Any, chunk: Any, packing: int, most: int) -> int | None:
    """How large a chunk is when it is unpacked; counted no further than `most`, and `None` where it does not say."""
    if packing == _LZF or chunk.size > array.file.id.get_filesize():
        return None
    _, packed = array.id.read_direct_chunk(chunk.chunk_offset)
    if packing == _ZSTD:
        return zstd_size(io.BytesIO(packed), 0, len(packed))
    if packing == _BLOSC:
        return blosc_size(packed[:16])
    # Deflated bytes do not say it: they are unpacked in pieces, of which none is kept.
    stream, size, rest = zlib.decompressobj(), 0, packed
    while not stream.eof and size <= most:
        piece = stream.decompress(rest, _PIECE_BYTES)
        if not piece and not rest:
            return None
        size, rest = size + len(piece), stream.unconsumed_tail
    return size
