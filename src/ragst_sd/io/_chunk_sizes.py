"""How large the chunks of an array are when they are unpacked, read from their own headers without unpacking them."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragst_sd.io._store_check import StoredArray

_METADATA = {"zarr.json", ".zarray", ".zattrs"}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEAD_BYTES = 18
_BLOSC_HEAD_BYTES = 16
# A checksum that zarr adds after a frame; no further frame is as short.
_MOST_AFTER_FRAME = 4
_RLE, _RESERVED = 1, 3
_ABSENT = 2**64 - 1
_INDEX_CHECKSUM_BYTES = 4


def unpacked_sizes(array: StoredArray) -> Iterator[tuple[Path, int | None]]:
    """File and unpacked size of every chunk on disk; `None` where the chunk does not say."""
    for file in sorted(array.folder.rglob("*")):
        if file.is_dir() or file.name in _METADATA:
            continue
        size = file.stat().st_size
        with file.open("rb") as handle:
            for start, length in _places(handle, size, array):
                if start + length > size:
                    yield file, None
                    continue
                if not array.packing:
                    yield file, length
                    continue
                if array.packing == "zstd":
                    yield file, zstd_size(handle, start, length)
                    continue
                handle.seek(start)
                yield file, blosc_size(handle.read(min(_BLOSC_HEAD_BYTES, length)))


def _places(handle: BinaryIO, size: int, array: StoredArray) -> list[tuple[int, int]]:
    """Start and length of every chunk in a file."""
    if not array.sharded:
        return [(0, size)]
    n_chunks = math.prod(-(-whole // part) if part else 0 for whole, part in zip(array.shard, array.chunk, strict=True))
    index_bytes = 16 * n_chunks
    start = size - index_bytes - _INDEX_CHECKSUM_BYTES
    if start < 0:
        # Told by the reader of the store as damage, before anything is made of it.
        return [(0, 0)]
    handle.seek(start)
    numbers = struct.unpack(f"<{2 * n_chunks}Q", handle.read(index_bytes))
    return [pair for pair in zip(numbers[::2], numbers[1::2], strict=True) if pair != (_ABSENT, _ABSENT)]


def zstd_size(handle: BinaryIO, place: int, length: int) -> int | None:
    """Content size that a chunk of one zstd frame tells (RFC 8878, section 3.1.1).

    A frame ends where its blocks do. What follows would be unpacked too, to a size that the first frame does not tell.
    """
    handle.seek(place)
    head = handle.read(min(_ZSTD_HEAD_BYTES, length))
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    flags = head[4]
    single_segment, dictionary = bool(flags & 0x20), (0, 1, 2, 4)[flags & 3]
    width = (int(single_segment), 2, 4, 8)[flags >> 6]
    start = 5 + (not single_segment) + dictionary
    field = head[start : start + width]
    if not width or len(field) < width:
        return None
    end = start + width
    last = False
    while not last:
        handle.seek(place + end)
        block = handle.read(3)
        if end + 3 > length or len(block) < 3:
            return None
        number = int.from_bytes(block, "little")
        last, kind = bool(number & 1), (number >> 1) & 3
        if kind == _RESERVED:
            return None
        end += 3 + (1 if kind == _RLE else number >> 3)
    end += 4 if flags & 0x04 else 0
    if not end <= length <= end + _MOST_AFTER_FRAME:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


def blosc_size(head: bytes) -> int | None:
    """Uncompressed size in the header of a blosc chunk."""
    return int.from_bytes(head[4:8], "little") if len(head) >= 16 else None
