"""HDF5 files made by a stranger: nothing beside them is read, and no memory is taken for a lie."""

from __future__ import annotations

import contextlib
import os
import resource
import tracemalloc
import zlib

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd.datasets._layout_visium import read_10x
from ragst_sd.io._hdf5_check import check_hdf5
from ragst_sd.io._hdf5_texts import bytes_of_texts

SECRET = b"the neighbour's secret, of forty letters"
N, G = 40, 12


@pytest.fixture
def deposit(tmp_path):
    """An honest h5ad, and beside it what it must not read: a text and an HDF5 file."""
    folder = tmp_path / "deposit"
    folder.mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    with h5py.File(folder / "secret.h5", "w") as file:
        file["values"] = np.frombuffer(SECRET, dtype="u1")
        file.create_group("group")["values"] = [SECRET]
    counts = sp.random(N, G, density=0.4, format="csr", dtype="f4", rng=0)
    counts.data = np.ceil(counts.data * 9)
    names = pd.DataFrame(index=[f"s{i}" for i in range(N)])
    adata = ad.AnnData(counts, obs=names, var=pd.DataFrame(index=[f"g{i}" for i in range(G)]))
    adata.obs["donor"] = pd.Categorical(["a", "b"] * (N // 2))
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(20, 80, (N, 2))
    adata.write_h5ad(folder / "counts.h5ad", compression="gzip")
    return folder


def of_10x(path):
    with h5py.File(path, "w") as file:
        matrix, features = file.create_group("matrix"), {}
        counts = sp.random(G, N, density=0.4, format="csc", dtype="f4", rng=0)
        matrix["data"] = np.ceil(counts.data * 9).astype("i4")
        matrix["indices"], matrix["indptr"] = counts.indices.astype("i8"), counts.indptr.astype("i8")
        matrix["shape"] = np.array([G, N], dtype="i4")
        matrix["barcodes"] = [f"s{i}".encode() for i in range(N)]
        for name in ("id", "name"):
            features[name] = [f"g{i}".encode() for i in range(G)]
        features |= {"feature_type": [b"Gene Expression"] * G, "genome": [b"GRCh38"] * G}
        for name, values in features.items():
            matrix[f"features/{name}"] = values
    return path


def refused(path, *parts, error=ValueError):
    """Refused in words that name the file, without the secret and without much memory, and before anything is read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            rg.io.read_st(path, np.zeros((100, 100, 3), dtype="u1"), image_mpp=1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    for part in (path.name, *parts):
        assert part in message, message
    assert SECRET.decode() not in message
    assert peak < 30e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def changed(folder, change):
    path = folder / "counts.h5ad"
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_honest_files_are_read(deposit):
    sdata = rg.io.read_st(deposit / "counts.h5ad", np.zeros((100, 100, 3), dtype="u1"), image_mpp=1.0)
    assert sdata.tables["table"].shape == (N, G)
    assert read_10x(of_10x(deposit / "counts.h5")).shape == (N, G)


@pytest.mark.parametrize("packing", ["gzip", "lzf", None])
def test_honest_packings_of_large_chunks_are_read(tmp_path, packing):
    """More than is taken on trust, and shrunk as far as constant columns are."""
    values = np.random.default_rng(0).integers(0, 255, 2**20, dtype="u1")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("noise", data=values, chunks=values.shape, compression=packing, shuffle=packing is not None)
        file.create_dataset("zeros", data=np.zeros(10**7), compression=packing)
        file.create_dataset("empty", shape=None, dtype="f4")
    check_hdf5(tmp_path / "a.h5")


@pytest.mark.parametrize("place", ["obs/secret", "uns/secret", "X/data", "obsm"])
@pytest.mark.parametrize("target", ["values", "group"])
def test_links_into_other_files(deposit, place, target):
    def link(file):
        file.pop(place, None)
        file[place] = h5py.ExternalLink("secret.h5", target)

    path = changed(deposit, link)
    # The link leads there: whoever follows it reads the neighbour's file.
    with h5py.File(path) as file:
        assert file[place].file.filename.endswith("secret.h5")
    refused(path, f"'/{place}' is a link to '{target}' in another file, 'secret.h5'", "expand_external=True")


def test_a_link_that_takes_the_way_over_another(deposit):
    """Followed before its neighbour is looked at, it would open the other file."""

    def link(file):
        file["uns/a"] = h5py.SoftLink("/uns/b/values")
        file["uns/b"] = h5py.ExternalLink(str(deposit / "pipe"), "/")

    path = changed(deposit, link)
    os.mkfifo(deposit / "pipe")
    refused(path, "'/uns/b' is a link to '/' in another file")


@pytest.mark.parametrize("target", ["/nowhere", "/obs", "/uns/a"])
def test_links_that_lead_nowhere_or_round(deposit, target):
    path = changed(deposit, lambda file: file["uns"].update({"a": h5py.SoftLink(target)}))
    refused(path, f"'/uns/a' is a link to {target!r}", "Remove the link")


def test_a_link_to_an_array_of_the_file_is_no_harm(deposit):
    check_hdf5(changed(deposit, lambda file: file["uns"].update({"a": h5py.SoftLink("/obsm/spatial")})))


def test_groups_within_themselves(deposit):
    path = changed(deposit, lambda file: file["uns"].update({"a": file["uns"]}))
    refused(path, "'/uns/a' is a group that also lies elsewhere in the file")


def test_groups_that_are_doubled_and_doubled_again(deposit):
    """Thirty groups that a reader would take for 2 ** 30."""

    def double(file):
        below = file["obsm"]
        for k in range(30):
            above = file.create_group(f"uns/level{k}")
            above["a"] = above["b"] = below
            below = above

    refused(changed(deposit, double), "also lies elsewhere in the file")


def test_values_that_lie_in_another_file(deposit, monkeypatch):
    def elsewhere(file):
        about = dict(file["obsm/spatial"].attrs)
        del file["obsm/spatial"]
        array = file["obsm"].create_dataset("spatial", (N, 1), "u1", external=[("secret.txt", 0, h5py.h5f.UNLIMITED)])
        array.attrs.update(about)

    path = changed(deposit, elsewhere)
    monkeypatch.chdir(deposit)
    with h5py.File(path) as file:
        assert bytes(file["obsm/spatial"][:, 0]) == SECRET
    refused(path, "the values of '/obsm/spatial' lie in another file, 'secret.txt'")


@pytest.mark.parametrize("source", ["secret.h5", "."])
def test_values_that_are_put_together_from_elsewhere(deposit, source):
    def virtual(file):
        layout = h5py.VirtualLayout((N,), "u1")
        layout[:] = h5py.VirtualSource(source, "values", (N,))
        file["obs"].create_virtual_dataset("secret", layout)

    path = changed(deposit, virtual)
    if source != ".":
        with h5py.File(path) as file:
            assert bytes(file["obs/secret"][:]) == SECRET
    refused(path, f"'/obs/secret' is a virtual array, put together from ['{source}']")


@pytest.mark.parametrize("layout", [{"chunks": (2**16,)}, {}, {"chunks": (2**16,), "compression": "gzip"}])
@pytest.mark.parametrize("size", [10**9, 10**12, 2**62])
@pytest.mark.parametrize("place", ["X/data", "obsm/spatial", "obs/_index", "uns/more"])
def test_shapes_that_the_file_cannot_account_for(deposit, place, size, layout):
    if size == 2**62 and "chunks" not in layout:
        size //= 8

    def lie(file):
        about = dict(file[place].attrs) if place in file else {}
        file.pop(place, None)
        file.create_dataset(place, (size,), "u1", fillvalue=7, **layout).attrs.update(about)

    refused(
        changed(deposit, lie), f"'/{place}' says that its shape is ({size},), {size:,} bytes, but 0 bytes lie on disk"
    )


def test_many_arrays_that_lie_a_little(deposit):
    def lie(file):
        for k in range(100):
            file.create_dataset(f"uns/a{k}", (2**24,), "u1", chunks=(2**16,))

    refused(changed(deposit, lie), "its arrays together say that they hold 1,67")


def test_one_array_under_many_names(deposit):
    def link(file):
        file["uns/a"] = np.zeros(2**16)
        for k in range(3000):
            file[f"uns/b{k}"] = file["uns/a"]

    refused(changed(deposit, link), "its arrays together say that they hold")


def test_chunks_that_would_take_all_memory(deposit):
    path = changed(
        deposit, lambda file: file.create_dataset("uns/a", (9,), maxshape=(None,), dtype="u1", chunks=(2**31,))
    )
    refused(path, "'/uns/a' says that one of its chunks holds 2,147,483,648 bytes")


def bomb(file, n_bytes=600_000_000, at=64):
    """A chunk of 64 bytes that unpacks to as many as one likes."""
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(bytes(10**7)) for _ in range(n_bytes // 10**7)), packer.flush()])
    array = file.create_dataset("obs/x", (N,), "f8", chunks=(N,), compression="gzip")
    array.id.write_direct_chunk((0,), packed)
    return len(packed)


def test_compression_bombs(deposit):
    sizes = []
    path = changed(deposit, lambda file: sizes.append(bomb(file)))
    assert sizes[0] < 10**6
    refused(path, "the chunk of '/obs/x' at (0,) unpacks to", f"where {8 * N} are expected")


def test_a_chunk_that_ends_too_early(deposit):
    def cut(file):
        array = file.create_dataset("obs/x", (2**20,), "u1", chunks=(2**20,), compression="gzip")
        packed = zlib.compress(np.random.default_rng(0).bytes(2**20))
        array.id.write_direct_chunk((0,), packed[: len(packed) // 2])

    refused(changed(deposit, cut), "unpacks to an unknown number of bytes")


def test_arrays_that_are_packed_twice_or_in_an_unknown_way(deposit):
    def twice(file):
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((N,))
        layout.set_deflate(9)
        layout.set_deflate(9)
        space = h5py.h5s.create_simple((N,))
        h5py.h5d.create(file["uns"].id, b"a", h5py.h5t.IEEE_F64LE, space, layout)

    refused(changed(deposit, twice), "'/uns/a' is packed more than once, with ['gzip', 'gzip']")

    def scaled(file):
        del file["uns/a"]
        file.create_dataset("uns/a", data=np.arange(N), chunks=(N,), scaleoffset=0)

    refused(changed(deposit, scaled), "'/uns/a' is packed with the filters [6]", 'compression="gzip"')


@pytest.mark.parametrize(
    ("part", "at", "value"), [("indices", -1, 10**6), ("indices", 0, -5), ("indptr", 1, 10**6), ("indptr", 3, -5)]
)
@pytest.mark.parametrize("ending", ["h5ad", "h5"])
def test_sparse_matrices_that_lead_out_of_themselves(deposit, part, at, value, ending):
    path = deposit / "counts.h5ad" if ending == "h5ad" else of_10x(deposit / "counts.h5")
    with h5py.File(path, "r+") as file:
        array = file["X" if ending == "h5ad" else "matrix"][part]
        values = array[:]
        values[at] = value
        array[:] = values
    if ending == "h5ad":
        refused(path, "points outside of itself")
    else:
        with pytest.raises(ValueError, match="points outside of itself"):
            read_10x(path)


def unlinked(path, addr):
    """Take the name of an array away and leave the array: its entry in the group is made to lead to another one."""
    content, start = path.read_bytes(), 0
    with h5py.File(path) as file:
        other = h5py.h5o.get_info(file["obsm/spatial"].id).addr
    while (start := content.find(addr.to_bytes(8, "little"), start + 1)) > 0:
        path.write_bytes(content[:start] + other.to_bytes(8, "little") + content[start + 8 :])
        with contextlib.suppress(KeyError), h5py.File(path) as file:
            if file["evil"] == file["obsm/spatial"]:
                return
    raise AssertionError


@pytest.mark.parametrize("kind", ["attribute", "region", "several", "columns"])
def test_references_to_what_has_no_name(deposit, kind, monkeypatch):
    """Readers follow them where no link leads: here to values in another file."""
    addr = []

    def refer(file):
        evil = file.create_dataset("evil", (N,), "u1", external=[("secret.txt", 0, h5py.h5f.UNLIMITED)])
        addr.append(h5py.h5o.get_info(evil.id).addr)
        ref, about = evil.ref, file["obsm/spatial"].attrs
        if kind == "attribute":
            about["categories"] = ref
        elif kind == "region":
            about["categories"] = evil.regionref[:3]
        elif kind == "several":
            about.create("categories", [file["X"].ref, ref], dtype=h5py.ref_dtype)
        else:
            columns = np.dtype([("a", h5py.ref_dtype), ("b", "i4")])
            about["categories"] = np.array([(ref, 1)], dtype=columns)

    path = changed(deposit, refer)
    unlinked(path, addr[0])
    monkeypatch.chdir(deposit)
    with h5py.File(path) as file:
        assert not file["evil"].id.get_create_plist().get_external_count()
        if kind == "attribute":
            assert bytes(file[file["obsm/spatial"].attrs["categories"]][:]) == SECRET
    refused(path, "@categories' refers to something in the file that has no name")


def test_arrays_of_references(deposit):
    path = changed(deposit, lambda file: file["uns"].create_dataset("a", data=[file["X"].ref], dtype=h5py.ref_dtype))
    refused(path, "'/uns/a' refers to something in the file that has no name, or is an array of references")


def test_references_to_what_has_a_name_are_no_harm(deposit):
    """As old h5ad files say where categories lie, and dimension scales belong together."""

    def refer(file):
        file["obsm/spatial"].attrs["categories"] = file["obs/donor/categories"].ref
        file["uns/scale"] = np.arange(N)
        file["uns/scale"].make_scale("spots")
        file["obsm/spatial"].dims[0].attach_scale(file["uns/scale"])
        file["uns/scale"].attrs["none"] = h5py.Reference()

    check_hdf5(changed(deposit, refer))


@pytest.mark.parametrize("how", ["attribute", "deeper", "old"])
def test_matrices_of_10x_that_are_told_twice(deposit, how):
    """What one reader believes, the check must not see otherwise: the reader takes the last `indices` and the array `shape`."""
    path = of_10x(deposit / "counts.h5")
    with h5py.File(path, "r+") as file:
        matrix = file["matrix"]
        indices = matrix["indices"][:]
        indices[0] = 50_000_000
        if how == "attribute":
            matrix["indices"][:] = indices
            matrix.attrs["shape"] = [10**8, N]
        else:
            del matrix["indices"]
            matrix["zz/indices"] = indices
        if how == "old":
            matrix["genes"], matrix["gene_names"] = matrix["features/id"][:], matrix["features/name"][:]
            file.move("matrix", "GRCh38")
    with pytest.raises(
        ValueError, match="says twice which shape" if how == "attribute" else "zz/indices' is part of a matrix"
    ):
        read_10x(path)


def test_matrices_of_10x_are_looked_at_again_before_genes_are_chosen(deposit, monkeypatch):
    path = of_10x(deposit / "counts.h5")
    with h5py.File(path, "r+") as file:
        kinds = file["matrix/features/feature_type"][:].astype("S20")
        kinds[:2] = b"Antibody Capture"
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = kinds
    assert read_10x(path).shape == (N, G - 2)
    with h5py.File(path, "r+") as file:
        file["matrix/indices"][0] = 10**6
    monkeypatch.setattr("ragst_sd.datasets._layout_visium.check_hdf5", lambda path: None)
    with pytest.raises(ValueError, match="X points outside of itself"):
        read_10x(path)


@pytest.mark.parametrize("key", ["h5sparse_format", "h5sparse_shape"])
def test_matrices_of_h5ad_that_are_told_twice(deposit, key):
    path = changed(deposit, lambda file: file["X"].attrs.update({key: "csc" if key.endswith("format") else [10**8, G]}))
    refused(path, "/X says twice which shape or format it has")


def test_matrices_of_h5ad_are_looked_at_again_in_memory(deposit, monkeypatch):
    def lead_out(file):
        file["X/indices"][0] = 10**6

    path = changed(deposit, lead_out)
    for module in ("io._st_counts", "datasets._layout_other"):
        monkeypatch.setattr(f"ragst_sd.{module}.check_hdf5", lambda path: None)
    of_sections, _, of_samples, *_ = every_reader(deposit, path)
    for read in (of_sections, of_samples):
        with pytest.raises(ValueError, match="X points outside of itself"):
            read()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_largest_array_under_two_names_is_no_harm(tmp_path, kind):
    """It lies on disk once."""
    path = tmp_path / "a.h5ad"
    ad.AnnData(np.random.default_rng(0).random((200, 2000), dtype="f4")).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["layers/counts"] = h5py.SoftLink("/X") if kind == "soft" else file["X"]
    check_hdf5(path)
    assert (ad.read_h5ad(path).layers["counts"] > 0).any()


WORDS = ["", "a", "of forty letters, or nearly as many, here", "ä", "beside it"] * 9
TEXT = h5py.string_dtype()
COLUMNS = np.dtype([("n", "i2"), ("text", TEXT), ("x", "f8"), ("lists", h5py.vlen_dtype("i4"), (2,)), ("last", TEXT)])


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunks": (7,)},
        {"chunks": (7,), "compression": "gzip"},
        {"chunks": (45,), "compression": "lzf", "shuffle": True},
        {"chunks": (7,), "compression": "lzf"},
    ],
)
@pytest.mark.parametrize("before", [0, 512])
def test_lengths_of_texts_are_told_without_reading_them(tmp_path, layout, before):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=before) as file:
        file.create_dataset("texts", data=WORDS, dtype=TEXT, **layout)
        lists = file.create_dataset("lists", (45,), h5py.vlen_dtype("f8"), **layout)
        columns = file.create_dataset("columns", (45,), COLUMNS, **layout)
        for k in range(45):
            lists[k] = np.zeros(k)
        values = np.zeros(45, dtype=COLUMNS)
        for k in range(45):
            values[k] = (k, WORDS[k], 0.5, [np.zeros(k, "i4"), np.zeros(3, "i4")], "end")
        columns[:] = values
        file.create_dataset("few", (45,), TEXT, maxshape=(None,), chunks=(7,))[:3] = "ab"
        file.create_dataset("filled", (45,), TEXT, fillvalue="ab")
        file["none"], file["numbers"], file["one"] = h5py.Empty(TEXT), np.arange(45), "word"
        file.create_dataset(
            "square", data=np.array(WORDS, dtype=object).reshape(5, 9), dtype=TEXT, chunks=(2, 4), compression="gzip"
        )
        head = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        head.set_layout(h5py.h5d.COMPACT)
        kind, space = h5py.h5t.py_create(TEXT, logical=True), h5py.h5s.create_simple((45,))
        h5py.Dataset(h5py.h5d.create(file.id, b"head", kind, space, head))[:] = WORDS
    words = sum(len(word.encode()) for word in WORDS)
    expected = {
        "texts": words,
        "square": words,
        "head": words,
        "lists": 8 * 990,
        "columns": words + 4 * (990 + 135) + 135,
    }
    expected |= {"few": 6, "filled": 90, "none": 0, "numbers": 0, "one": 4}
    with h5py.File(path) as file:
        assert {name: bytes_of_texts(file[name], path, 10**9) for name in file} == expected
    check_hdf5(path)


def test_lengths_of_texts_that_older_libraries_have_shuffled(tmp_path):
    """Later ones leave this filter out where there are texts, unless they are told the width."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((9,))
    layout.set_filter(h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FLAG_OPTIONAL, (16,))
    layout.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (4,))
    layout.set_filter(h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kind, space = h5py.h5t.py_create(TEXT, logical=True), h5py.h5s.create_simple((45,))
        array = h5py.Dataset(h5py.h5d.create(file.id, b"a", kind, space, layout))
        array[:] = WORDS
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["a"].id.get_chunk_info(0).filter_mask == 0
        assert list(file["a"].asstr()) == WORDS
        assert bytes_of_texts(file["a"], tmp_path / "a.h5", 10**9) == sum(len(word.encode()) for word in WORDS)


@pytest.mark.parametrize("packing", ["gzip", None, "contiguous"])
@pytest.mark.parametrize(
    ("kind", "large"),
    [
        (TEXT, "x" * 10**6),
        (h5py.vlen_dtype("f8"), np.zeros(125_000)),
        (np.dtype([("n", "i4"), ("text", TEXT)]), "x" * 10**6),
    ],
)
def test_many_texts_in_one_place(tmp_path, packing, kind, large):
    """A file of 2 MB that would take 20 GB."""
    path, n = tmp_path / "a.h5", 20_000
    with h5py.File(path, "w") as file:
        chunks = {} if packing == "contiguous" else {"chunks": (n,), "compression": packing}
        array = file.create_dataset("a", (n,), kind, **chunks)
        array[0] = np.array((0, large), dtype=kind) if kind.names else large
        file.flush()
        size = 20 if kind.names else 16
        if packing == "contiguous":
            at = array.id.get_offset()
            stored = path.read_bytes()[at : at + size]
        else:
            stored = array.id.read_direct_chunk((0,))[1]
            stored = (zlib.decompress(stored) if packing else stored)[:size]
            array.id.write_direct_chunk((0,), zlib.compress(stored * n) if packing else stored * n)
    if packing == "contiguous":
        content = path.read_bytes()
        path.write_bytes(content[:at] + stored * n + content[at + size * n :])
    with h5py.File(path) as file:
        # The last one is there as well.
        assert len(file["a"][-1]["text"] if kind.names else file["a"][-1]) == len(large)
    assert path.stat().st_size < 4e6
    with pytest.raises(ValueError, match=r"its arrays together say that they hold 20,0"):
        check_hdf5(path)


def test_texts_that_stand_for_what_is_not_stored(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (30_000_000,), TEXT, chunks=(1000,), fillvalue="x" * 50_000)
    with pytest.raises(ValueError, match="its arrays together say that they hold 1,500,2"):
        check_hdf5(tmp_path / "a.h5")


def test_large_chunks_of_texts_are_no_bombs(tmp_path):
    """What is stored of a text is larger than its pointer in memory."""
    names = [f"cell-{k * 7919 % 10**6}" for k in range(150_000)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=names, dtype=TEXT, chunks=(150_000,), compression="gzip")
        assert file["a"].id.get_chunk_info(0).size > 2**28 / 1032
    check_hdf5(tmp_path / "a.h5")


def test_lists_of_references_that_may_lie_in_one_place(deposit):
    def refer(file):
        lists = np.empty(50, dtype=object)
        lists[:] = [np.array([file["X"].ref], dtype=h5py.ref_dtype) for _ in range(50)]
        file["obsm/spatial"].attrs.create("a", lists, dtype=h5py.vlen_dtype(h5py.ref_dtype))

    refused(changed(deposit, refer), "'/obsm/spatial@a' refers to")


def test_files_larger_than_the_memory_are_told_before_they_are_read(deposit, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 100}.__getitem__)
    refused(deposit / "counts.h5ad", "this machine has 0.0 GB of memory", error=MemoryError)
    check_hdf5(deposit / "counts.h5ad", in_memory=False)


def test_damage_is_told_as_damage(deposit):
    """Bytes changed at random: read, or refused in words."""
    content = (deposit / "counts.h5ad").read_bytes()
    rng, told = np.random.default_rng(0), []
    for k in range(150):
        damaged = bytearray(content)
        for at in rng.integers(len(damaged), size=20):
            damaged[at] = rng.integers(256)
        path = deposit / f"{k}.h5ad"
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(ValueError, OSError):
            check_hdf5(path)
            continue
        with pytest.raises((ValueError, OSError)) as caught:
            check_hdf5(path)
        told.append(str(caught.value))
        path.unlink()
    assert len(told) > 20
    assert not [one for one in told if "deposit" not in one and "Unable to synchronously open file" not in one]


def every_reader(deposit, secret):
    """All ways in which the package opens an HDF5 file that is not its own."""
    from types import SimpleNamespace

    from ragst_sd.datasets._layout_other import read_h5ad_sample
    from ragst_sd.io._embedding_file import read_embedding_file

    yield lambda: rg.io.read_st(secret, np.zeros((100, 100, 3), dtype="u1"), image_mpp=1.0)
    yield lambda: read_10x(secret)
    yield lambda: read_h5ad_sample(SimpleNamespace(path=lambda role: secret, name="a", donor=None, details={}))
    yield lambda: rg.datasets.load_screen("papalexi_2021", path=secret)
    yield lambda: rg.datasets.load_screen("papalexi_2021", path=secret, max_cells=3)
    yield lambda: read_embedding_file(secret)


def test_every_reader_looks_first(deposit):
    path = changed(deposit, lambda file: file.update({"features": h5py.ExternalLink("secret.h5", "values")}))
    for read in every_reader(deposit, path):
        with pytest.raises(ValueError, match="'/features' is a link to 'values' in another file"):
            read()


def test_the_bundle_of_a_xenium_is_looked_at(deposit):
    from types import SimpleNamespace

    from ragst_sd.datasets._layout_xenium import read_xenium

    path = of_10x(deposit / "cell_feature_matrix.h5")
    with h5py.File(path, "r+") as file:
        file["matrix/features/secret"] = h5py.ExternalLink("secret.h5", "values")
    (deposit / "experiment.xenium").write_text('{"pixel_size": 0.2125}')
    sample = SimpleNamespace(find=lambda role, *names: [deposit / "experiment.xenium", path])
    with pytest.raises(ValueError, match="secret' is a link to 'values' in another file"):
        read_xenium(sample)
