"""How long the texts in an array of an HDF5 file are, told by what is stored of each: no text is read.

Texts and lists of any length lie beside their array, which holds the length and the place of each. Many may be made to lie in the
same place: what they take in memory is then told by the lengths alone. Texts in attributes are not counted, as nothing tells
their lengths before they are read; an attribute in the head of its object, 64 KB, holds 4,000 at most.
"""

from __future__ import annotations

import io
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_AT_ONCE = 2**20


def stored_item(kind: Any, pointer: int) -> tuple[int, list[tuple[int, int]]]:
    """Bytes of a value as it is stored, and where in it lengths lie, with the bytes of what each counts.

    In memory texts are pointers of another size, so that the size of the type is not that of what is stored.
    """
    import h5py

    size, code = int(kind.get_size()), kind.get_class()
    if code == h5py.h5t.STRING and kind.is_variable_str():
        return pointer, [(0, 1)]
    if code == h5py.h5t.VLEN:
        unit, within = stored_item(kind.get_super(), pointer)
        if within:
            msg = "lists of texts or of lists"
            raise TypeError(msg)
        return pointer, [(0, unit)]
    if code == h5py.h5t.ARRAY:
        unit, within = stored_item(kind.get_super(), pointer)
        count = math.prod(kind.get_array_dims()) if within else 0
        if count > _AT_ONCE:
            msg = f"{count:,} texts in one value"
            raise TypeError(msg)
        return (count * unit if within else size), [(k * unit + at, one) for k in range(count) for at, one in within]
    lengths = []
    if code == h5py.h5t.COMPOUND:
        # In the order in which they lie; each moves by what those before it are larger on disk.
        members = sorted((kind.get_member_offset(i), i) for i in range(kind.get_nmembers()))
        moved = 0
        for offset, i in members:
            member = kind.get_member_type(i)
            stored, within = stored_item(member, pointer)
            lengths += [(offset + moved + at, one) for at, one in within]
            moved += stored - int(member.get_size())
        size += moved
    return size, lengths


def bytes_of_texts(array: Any, path: Path, most: int) -> int:
    """Bytes of all texts and lists of an array; counted no further than beyond `most`.

    Raises
    ------
    OSError
        If what is stored has another size than it says, or it cannot be told how it is packed.
    """
    import h5py

    pointer = 8 + int(array.file.id.get_create_plist().get_sizes()[0])
    size, lengths = stored_item(array.id.get_type(), pointer)
    if not lengths or array.shape is None or 0 in array.shape:
        return 0
    layout = array.id.get_create_plist()
    total = 0
    if layout.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED:
        # It stands for all values that are not stored.
        fill = array.fillvalue
        total = (
            len(fill) * lengths[0][1] * math.prod(array.shape) if lengths[0][0] == 0 and len(lengths) == 1 else most + 1
        )
    kind = layout.get_layout()
    blocks = {h5py.h5d.CONTIGUOUS: _in_one_piece, h5py.h5d.CHUNKED: _in_chunks, h5py.h5d.COMPACT: _compact}[kind]
    for block in blocks(array, path, size):
        if total > most:
            break
        if kind == h5py.h5d.COMPACT:
            total += len(block) * lengths[0][1]
            continue
        values = block.view("u1").reshape(-1, size)
        total += sum(int(values[:, at : at + 4].copy().view("<u4").sum(dtype="u8")) * unit for at, unit in lengths)
    return total


def _in_one_piece(array: Any, path: Path, size: int) -> Iterator[np.ndarray]:
    at, count = array.id.get_offset(), math.prod(array.shape)
    if at is None or not array.id.get_storage_size():
        return
    with path.open("rb") as file:
        file.seek(at)
        for start in range(0, count, _AT_ONCE):
            yield _values(file.read(min(_AT_ONCE, count - start) * size), min(_AT_ONCE, count - start), size)


def _compact(array: Any, path: Path, size: int) -> Iterator[Any]:
    """Of the few values within the head of an array, each as a whole: nothing tells where they lie."""
    import h5py

    del path, size
    if array.id.get_type().get_class() not in (h5py.h5t.STRING, h5py.h5t.VLEN):
        msg = "texts in columns in the head of an array"
        raise OSError(msg)
    for place in np.ndindex(array.shape):
        yield array[place]


def _in_chunks(array: Any, path: Path, size: int) -> Iterator[np.ndarray]:
    import h5py

    del path
    layout = array.id.get_create_plist()
    shape, filters = layout.get_chunk(), [layout.get_filter(i) for i in range(layout.get_nfilters())]
    count = math.prod(shape)
    if not all(h5py.h5z.filter_avail(one[0]) for one in filters):
        # Nobody can read it here.
        return
    chunks: list[Any] = []
    array.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.size > array.file.id.get_filesize():
            msg = "a chunk larger than the file"
            raise OSError(msg)
        mask, content = array.id.read_direct_chunk(chunk.chunk_offset)
        used = [one for i, one in enumerate(filters) if not mask & (1 << i)]
        inside = tuple(slice(0, max(0, whole - at)) for at, whole in zip(chunk.chunk_offset, array.shape, strict=True))
        if (
            used
            and len(content) == count * size
            and any(one.stop < edge for one, edge in zip(inside, shape, strict=True))
        ):
            # Chunks beyond the edge may be left as they are, without a word about it.
            msg = "a chunk at the edge that is packed, or is not"
            raise OSError(msg)
        for one in reversed(used):
            content = _undone(content, one, count * size)
        yield np.ascontiguousarray(_values(content, count, size).reshape(shape)[inside])


def _values(content: bytes, count: int, size: int) -> np.ndarray:
    if len(content) != count * size:
        msg = f"{len(content):,} bytes, where {count * size:,} are expected"
        raise OSError(msg)
    return np.frombuffer(content, dtype=f"V{size}")


def _undone(content: bytes, used: tuple[Any, ...], n_bytes: int) -> bytes:
    """The bytes before a filter."""
    import h5py

    code, flags, settings = used[:3]
    if code == _FLETCHER:
        return content[:-4]
    if code == _SHUFFLE:
        if not settings or not settings[0]:
            msg = "bytes that are shuffled in a way that is not told"
            raise OSError(msg)
        width, whole = settings[0], len(content) // settings[0] * settings[0]
        turned = np.frombuffer(content[:whole], dtype="u1").reshape(width, -1).T
        return turned.tobytes() + content[whole:]
    if code == _DEFLATE:
        return zlib.decompressobj().decompress(content, n_bytes + 1)
    # By the library itself, from a file in memory that holds nothing but these bytes.
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((n_bytes,))
    layout.set_filter(code, flags, settings)
    with h5py.File(io.BytesIO(), "w") as file:
        space = h5py.h5s.create_simple((n_bytes,))
        array = h5py.h5d.create(file.id, b"a", h5py.h5t.STD_U8LE, space, layout)
        array.write_direct_chunk((0,), content)
        return h5py.Dataset(array)[:].tobytes()
