"""References made by a stranger: nothing in them is run, nothing outside of them is read, no memory is taken for a lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import warnings
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c

import ragst_sd as rg
from ragst_sd.io._chunk_sizes import zstd_size
from ragst_sd.io._store_check import check_store

SECRET = "the neighbour's secret"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


@pytest.fixture(scope="module")
def whole(versions, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "r.zarr"
    rg.io.write_reference(versions[0], path)
    return path


@pytest.fixture
def store(whole, tmp_path):
    """A copy whose maker has left the checksums out, as a stranger can."""
    path = tmp_path / "deposit" / "r.zarr"
    shutil.copytree(whole, path)
    edit(path, "", lambda root: root["attributes"].pop("ragst_sd_sha256"))
    (tmp_path / "secret.txt").write_text(SECRET)
    return path


def text(store, name):
    """The array of a column of text; newer lines of anndata keep a mask beside it."""
    return f"{name}/values" if (store / name / "values").exists() else name


def edit(store, array, change):
    file = store / array / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def refused(store, *parts):
    """Refused by both ways of reading, without much memory."""
    for lazy in (False, True):
        tracemalloc.start()
        try:
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                rg.io.read_reference(store, lazy=lazy)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        message = str(caught.value)
        for part in parts:
            assert part in message, message
        assert SECRET not in message
        assert peak < 60e6


def test_a_store_that_is_left_alone_is_read(store, versions):
    assert rg.io.read_reference(store).shape == versions[0].shape
    assert rg.io.read_reference(store, lazy=True).shape == versions[0].shape
    assert len(check_store(store)) > 50


@pytest.mark.parametrize("place", ["X/data/c/0", "obs/_index", "uns/ragst/notes"])
def test_links_are_refused(store, tmp_path, place):
    target = store / place
    if target.is_dir():
        shutil.move(target, tmp_path / "elsewhere")
    elif target.exists():
        target.unlink()
    target.symlink_to(tmp_path / ("elsewhere" if place == "obs/_index" else "secret.txt"))
    refused(store, f"{place} is a link", "outside of its folder")


def test_pipes_are_refused(store):
    os.mkfifo(store / "X" / "data" / "c" / "1")
    refused(store, "neither a file nor a folder")


def pickled_array(folder: Path, payload: bytes) -> None:
    """An array of Python objects in zarr format 2, as older programs wrote them."""
    folder.mkdir(parents=True)
    about = {"shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C", "zarr_format": 2}
    about |= {"compressor": None, "filters": [{"id": "pickle", "protocol": 5}]}
    (folder / ".zarray").write_text(json.dumps(about))
    (folder / ".zattrs").write_text(json.dumps({"encoding-type": "string-array", "encoding-version": "0.2.0"}))
    (folder / "0").write_bytes(payload)


def test_pickles_are_not_run(store, tmp_path):
    marks = [tmp_path / "ran", tmp_path / "ran in the test"]
    payloads = [pickle.dumps(np.array([Evil(mark)], dtype=object)) for mark in marks]
    # The payload is live: whoever unpickles it runs it.
    pickle.loads(payloads[1])
    assert marks[1].exists()
    pickled_array(store / "uns" / "ragst" / "notes", payloads[0])
    refused(store, "uns/ragst/notes", "'pickle'", "known to be harmless")
    assert not marks[0].exists()


def test_a_store_of_format_2_with_pickles_is_refused(tmp_path):
    path = tmp_path / "old.zarr"
    (path / "uns" / "ragst").mkdir(parents=True)
    for group in (path, path / "uns", path / "uns" / "ragst"):
        (group / ".zgroup").write_text('{"zarr_format": 2}')
    pickled_array(path / "uns" / "ragst" / "task", pickle.dumps(np.array([Evil(tmp_path / "ran")], dtype=object)))
    refused(path, "'pickle'")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("codec", ["gzip", "numcodecs.pickle", "numcodecs.zlib", "os.system"])
def test_codecs_that_are_not_known_are_refused(store, codec):
    edit(store, text(store, "var/gene"), lambda array: array["codecs"].append({"name": codec, "configuration": {}}))
    refused(store, "var/gene", repr(codec))


@pytest.mark.parametrize("kind", ["r8", "object", {"name": "struct", "configuration": {"fields": []}}, 7, None])
def test_types_that_are_not_known_are_refused(store, kind):
    edit(store, "obs/x_um", lambda array: array.update(data_type=kind))
    refused(store, "obs/x_um")


def lie(array, rows):
    array["shape"][0] = rows
    array["chunk_grid"]["configuration"]["chunk_shape"][0] = min(rows, 10**6)


@pytest.mark.parametrize("rows", [10**9, 10**15, 2**63])
@pytest.mark.parametrize("place", ["obsm/thumbnail", "X/data", "obs/donor/codes", "uns/ragst/content_hash"])
def test_shapes_that_the_files_cannot_account_for(store, place, rows):
    if place.startswith("uns"):
        edit(
            store,
            place,
            lambda array: array.update(
                shape=[rows], chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**6]}}
            ),
        )
    else:
        edit(store, place, lambda array: lie(array, rows))
    refused(store, place, "on disk")


def test_many_arrays_that_lie_a_little(store):
    for i in range(200):
        folder = store / "uns" / f"a{i}"
        shutil.copytree(store / "obs" / "x_um", folder)
        edit(
            folder,
            "",
            lambda array: array.update(
                shape=[2**24], chunk_grid={"name": "regular", "configuration": {"chunk_shape": [40]}}
            ),
        )
    refused(store, "together")


def test_chunks_that_would_take_all_memory(store):
    edit(store, "obs/x_um", lambda array: array["codecs"][0]["configuration"].update(chunk_shape=[10**10]))
    refused(store, "obs/x_um", "one of its chunks")


def bomb(n_bytes):
    return numcodecs.Zstd().encode(bytes(n_bytes))


def test_compression_bombs_in_a_shard(store):
    chunk = bomb(300_000_000)
    assert len(chunk) < 100_000
    index = struct.pack("<2Q", 0, len(chunk))
    (store / "obs" / "x_um" / "c" / "0").write_bytes(chunk + index + struct.pack("<I", crc32c(index)))
    # It is a shard that zarr would unpack.
    assert (
        json.loads((store / "obs/x_um/zarr.json").read_text())["codecs"][0]["configuration"]["index_location"] == "end"
    )
    refused(store, "obs/x_um/c/0 unpacks to 300,000,000 bytes, where 320 are expected")


def test_compression_bombs_in_a_chunk_of_text(store):
    (store / text(store, "obs/_index") / "c" / "0").write_bytes(bomb(300_000_000))
    refused(store, f"{text(store, 'obs/_index')}/c/0 unpacks to")


def test_a_chunk_that_does_not_tell_its_size(store):
    (store / text(store, "obs/_index") / "c" / "0").write_bytes(b"\x28\xb5\x2f\xfd\x00\x58" + bytes(40))
    refused(store, f"{text(store, 'obs/_index')}/c/0 unpacks to an unknown number of bytes")


@pytest.mark.parametrize(
    "skipped", [b"", struct.pack("<2I", 0x184D2A50, 3) + b"abc"], ids=["next", "after a skipped one"]
)
def test_a_bomb_behind_a_small_frame(store, skipped):
    chunk = bytes(numcodecs.Zstd(level=1).encode(bytes(100))) + skipped + bomb(300_000_000)
    (store / text(store, "obs/_index") / "c" / "0").write_bytes(chunk)
    refused(store, f"{text(store, 'obs/_index')}/c/0 unpacks to an unknown number of bytes")


@pytest.mark.parametrize("checksum", [False, True])
def test_the_end_of_one_frame_is_found(checksum):
    values = np.random.default_rng(0)
    parts = [bytes(0), bytes(200), values.bytes(300), values.bytes(300_000), bytes(400_000), b"ab" * 100_000]
    for part in (*parts, b"".join(parts)):
        frame = bytes(numcodecs.Zstd(level=3, checksum=checksum).encode(part))
        for chunk, size in (
            (frame, len(part)),
            (frame[:-1], None),
            (frame + bytes(4), len(part)),
            (frame + frame, None),
        ):
            assert zstd_size(io.BytesIO(b"before" + chunk), 6, len(chunk)) == size


def test_an_array_that_is_packed_twice(store):
    name = text(store, "obs/_index")
    sharded = json.loads((store / name / "zarr.json").read_text())["codecs"][0]["name"] == "sharding_indexed"
    edit(store, name, lambda array: array["codecs"].append({"name": "zstd", "configuration": {}}))
    refused(store, name, "its codecs are" if sharded else "packed more than once")


def consolidated(group):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group)


def test_metadata_in_one_place_is_not_read(store, versions):
    """What the root says of its arrays is not what lies there: a shape that would take 24 GB, and a codec that runs code."""
    consolidated(store)

    def change(root):
        found = root["consolidated_metadata"]["metadata"]
        found["obs/x_um"]["shape"] = [3 * 10**9]
        found["obs/donor/codes"]["codecs"].append({"name": "os.system", "configuration": {}})

    edit(store, "", change)
    tracemalloc.start()
    read = [rg.io.read_reference(store, lazy=lazy) for lazy in (False, True)]
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    for one in read:
        np.testing.assert_array_equal(one.obs["x_um"], versions[0].obs["x_um"])


def test_metadata_in_one_place_below_the_root_is_refused(store):
    consolidated(store / "obs")
    refused(store, "obs/zarr.json tells of other metadata in its place")


def led_astray(store, path, matrix, part, at, value):
    shutil.copytree(store, path)
    if matrix != "X":
        shutil.copytree(path / "X", path / matrix)
    array = zarr.open_group(path, mode="r+")[matrix][part]
    values = array[:]
    values[at] = value
    array[:] = values
    return path


_ASTRAY = [("indices", -1, 10**6), ("indices", 0, -(10**6)), ("indptr", 1, 10**6), ("indptr", 3, -5)]


@pytest.mark.parametrize(("part", "at", "value"), _ASTRAY)
def test_a_sparse_matrix_that_leads_out_of_itself(store, tmp_path, part, at, value):
    """A stranger can write hashes that fit; the matrix is refused before anything is made of it, hashes included."""
    path = led_astray(store, tmp_path / "x.zarr", "X", part, at, value)
    with pytest.raises(ValueError, match=r"x\.zarr: X points outside of itself"):
        rg.io.read_reference(path)
    if part == "indices":
        values = rg.io.read_reference(path, lazy=True).X
        for taken in (values, values[:, :3], values[[0, 39]]):
            with pytest.raises(ValueError, match=r"x\.zarr: X points outside of itself"):
                taken.compute(scheduler="synchronous")


def test_sparse_matrices_beside_the_expression(store, tmp_path):
    for k, matrix in enumerate(("uns/ragst/extra", "obsm/extra")):
        path = led_astray(store, tmp_path / f"{k}.zarr", matrix, "indices", -1, 10**6)
        for lazy in (False, True):
            with pytest.raises(ValueError, match=f"{matrix} points outside of itself"):
                rg.io.read_reference(path, lazy=lazy)


@pytest.mark.parametrize("name", ["../../../secret", "/etc", "..", "c/../../x_um", "a\\..\\..\\b"])
def test_names_that_lead_out_of_the_folder(store, tmp_path, name):
    """Columns are named by attributes, and looked up as keys of the store."""
    outside = zarr.open_array(tmp_path / "secret", mode="w", shape=(40,), dtype="f8", zarr_format=3)
    outside[:] = 12345.0
    edit(store, "obs", lambda group: group["attributes"]["column-order"].append(name))
    refused(store, "cannot be read")


def test_metadata_that_is_too_deep_or_no_metadata(store):
    file = store / "obs" / "x_um" / "zarr.json"
    file.write_text("[" * 200_000)
    refused(store, "obs/x_um/zarr.json cannot be understood")
    file.write_text('{"node_type": "array", "shape": [NaN]}')
    refused(store, "obs/x_um/zarr.json cannot be understood")


def test_a_store_larger_than_the_memory_is_told_before_it_is_read(whole, monkeypatch):
    sizes = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    with pytest.raises(MemoryError, match=r"this machine has 0\.0 GB of memory.*`lazy=True`"):
        rg.io.read_reference(whole)


def test_recipes_are_plain_values(tmp_path):
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"version: 1\nname: !!python/object/apply:os.mknod ['{tmp_path / 'ran'}']\nsources: []\n")
    with pytest.raises(ValueError, match=r"evil\.yaml, line 2: this is not YAML"):
        rg.io.build_recipe(recipe, path=tmp_path / "r.zarr")
    assert not (tmp_path / "ran").exists()


def test_weights_of_conch_are_looked_at_before_its_package_loads_them(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    import torch

    from ragst_sd.image.encoders import resolve_encoder

    package = ModuleType("conch.open_clip_custom")
    package.create_model_from_pretrained = lambda name, checkpoint_path: torch.load(checkpoint_path, weights_only=False)
    monkeypatch.setitem(sys.modules, "conch", ModuleType("conch"))
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", package)
    torch.save({"weights": Evil(tmp_path / "ran")}, tmp_path / "conch.bin")
    with pytest.raises(ValueError, match=r"'conch' could not be read.*weights_only=True"):
        resolve_encoder("conch", model_kwargs={"checkpoint_path": tmp_path / "conch.bin"}, device="cpu")
    assert not (tmp_path / "ran").exists()
