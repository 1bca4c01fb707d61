"""What a downloaded file must not hold, each on a file made here; and files that are as they should be."""

from __future__ import annotations

import json
import shutil
import stat
import tracemalloc
import warnings
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from ragst_sd.io._check_downloaded import check_downloaded

SECRET = b"the neighbour's secret"
N, G = 40, 12


@pytest.fixture(scope="module")
def adata():
    counts = sp.random(N, G, density=0.4, format="csr", dtype="f4", random_state=0)
    made = ad.AnnData(counts, obs=pd.DataFrame({"donor": pd.Categorical(["a", "b"] * (N // 2))}))
    made.obs["note"] = [f"note {i}" for i in range(N)]
    made.obsm["spatial"] = np.random.default_rng(0).uniform(20, 80, (N, 2))
    made.uns["nested"] = {"text": "a", "numbers": np.arange(5), "shape": {"shape": [1], "dtype": "x"}}
    return made


@pytest.fixture
def h5ad(adata, tmp_path):
    """An honest file, and beside it what it must not read."""
    (tmp_path / "secret.txt").write_bytes(SECRET)
    adata.write_h5ad(tmp_path / "counts.h5ad", compression="gzip")
    return tmp_path / "counts.h5ad"


@pytest.fixture(scope="module", params=[2, 3])
def _store(adata, tmp_path_factory, request):
    path = tmp_path_factory.mktemp("store") / "counts.zarr"
    with ad.settings.override(zarr_write_format=request.param):
        adata.write_zarr(path)
    return path


@pytest.fixture
def store(_store, tmp_path):
    """An honest store in both formats; every test gets its own copy."""
    return shutil.copytree(_store, tmp_path / "counts.zarr")


def packed(folder, packing=zipfile.ZIP_STORED):
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", packing) as file:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                file.write(one, one.relative_to(folder).as_posix())
    return path


def edit(folder, change):
    """Change the metadata of an array, in whatever format."""
    file = next(folder / name for name in ("zarr.json", ".zarray") if (folder / name).exists())
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


def refused(path, *parts):
    path = packed(path) if path.is_dir() else path
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="was downloaded and is not read") as caught:
            check_downloaded(path)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message and "open it yourself" in message
    for part in parts:
        assert part in message


class TestHonestFiles:
    @pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
    def test_hdf5(self, adata, tmp_path, compression):
        adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            file["soft"], file["hard"] = h5py.SoftLink("/X/data"), file["obsm/spatial"]
            file["empty"], file["zeros"] = h5py.Empty("f4"), np.zeros(10_000)
        check_downloaded(tmp_path / "a.h5ad")

    def test_zarr(self, store):
        for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            check_downloaded(packed(store, packing))

    def test_sharded_and_consolidated(self, tmp_path):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
        group.create_array("x", shape=(100, 50), chunks=(10, 50), shards=(50, 50), dtype="f4")[:] = 1
        group.create_array("fixed", shape=(3,), dtype="<U7")[:] = ["a", "bc", "def"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(tmp_path / "a.zarr")
        check_downloaded(packed(tmp_path / "a.zarr"))

    def test_others_are_left_alone(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"whatever")
        check_downloaded(tmp_path / "a.tif")


class TestHdf5:
    def test_links_into_other_files(self, h5ad):
        with h5py.File(h5ad, "r+") as file:
            file["obs/extra"] = h5py.ExternalLink("secret.h5", "/values")
        refused(h5ad, "'obs/extra' is a link to '/values' in another file, 'secret.h5'")

    def test_values_in_another_file(self, h5ad):
        with h5py.File(h5ad, "r+") as file:
            file.create_dataset("obsm/extra", (22,), "u1", external=[("secret.txt", 0, 22)])
        refused(h5ad, "the values of 'obsm/extra' lie in another file")

    def test_values_put_together_from_elsewhere(self, h5ad):
        layout = h5py.VirtualLayout((22,), "u1")
        layout[:] = h5py.VirtualSource("secret.h5", "values", (22,))
        with h5py.File(h5ad, "r+") as file:
            file.create_virtual_dataset("obsm/extra", layout)
        refused(h5ad, "the values of 'obsm/extra' lie in another file")

    @pytest.mark.parametrize("kind", [h5py.vlen_dtype("u1"), h5py.ref_dtype, [("a", "i4"), ("b", h5py.ref_dtype)]])
    def test_objects(self, h5ad, kind):
        with h5py.File(h5ad, "r+") as file:
            file.create_dataset("uns/extra", (3,), kind)
        refused(h5ad, "'uns/extra' is made of objects")

    @pytest.mark.parametrize("layout", [{"chunks": (1000, 1000)}, {}], ids=["chunked", "in one piece"])
    def test_sizes_that_the_file_cannot_account_for(self, h5ad, layout):
        with h5py.File(h5ad, "r+") as file:
            file.create_dataset("layers/huge", (10**9, 20_000), "f4", **layout)
        refused(h5ad, "'layers/huge' says that it holds 80,000,000,000,000 bytes, of which 0 are stored")

    def test_many_arrays_that_lie_a_little(self, h5ad):
        with h5py.File(h5ad, "r+") as file:
            for i in range(20):
                file.create_dataset(f"uns/a{i}", (2**25,), "f4", chunks=(100,))
        refused(h5ad, "'/' says that it holds")

    def test_damage(self, h5ad):
        h5ad.write_bytes(h5ad.read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"counts\.h5ad was downloaded and is damaged.*Delete it"):
            check_downloaded(h5ad)


class TestZarr:
    @pytest.mark.parametrize("name", ["../secret", "/etc/secret", "X/../../secret"])
    def test_names_that_lead_out_of_a_zip_file(self, store, name):
        path = packed(store)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, SECRET)
        refused(path, f"{name!r} leads out of the file")

    def test_links_in_a_zip_file(self, store):
        path, link = packed(store), zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(link, "/etc/passwd")
        refused(path, "'link' leads out of the file")

    @pytest.mark.parametrize("codec", ["pickle", "os.system"])
    def test_codecs(self, store, codec):
        def change(about):
            if "codecs" in about:
                about["codecs"].append({"name": codec, "configuration": {}})
            else:
                about["filters"] = [{"id": codec, "protocol": 5}]

        edit(store / "obsm" / "spatial", change)
        refused(store, "obsm/spatial", repr(codec), "known to be harmless")

    def test_codecs_within_others(self, tmp_path):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
        group.create_array("x", shape=(100,), chunks=(10,), shards=(50,), dtype="f4")
        edit(
            tmp_path / "a.zarr/x",
            lambda about: about["codecs"][0]["configuration"]["codecs"].append({"name": "pickle"}),
        )
        refused(tmp_path / "a.zarr", "'pickle'")

    def test_codecs_told_in_one_place(self, store):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store)
        file = next(store / name for name in (".zmetadata", "zarr.json") if (store / name).exists())
        text = file.read_text()
        assert '"zstd"' in text or '"blosc"' in text
        file.write_text(text.replace('"zstd"', '"pickle"').replace('"blosc"', '"pickle"'))
        refused(store, "'pickle'")

    @pytest.mark.parametrize("rows", [10**9, 2**63])
    def test_sizes_that_the_files_cannot_account_for(self, store, rows):
        edit(store / "obsm" / "spatial", lambda about: about["shape"].__setitem__(0, rows))
        refused(store, f"'obsm/spatial' says that it holds {rows * 16:,} bytes")

    def test_chunks_that_would_take_all_memory(self, store):
        def change(about):
            chunk = about["chunks"] if "chunks" in about else about["chunk_grid"]["configuration"]["chunk_shape"]
            chunk[0] = 10**10

        edit(store / "obsm" / "spatial", change)
        refused(store, "'obsm/spatial' says that it holds")

    def test_many_arrays_that_lie_a_little(self, store):
        for i in range(20):
            shutil.copytree(store / "obsm" / "spatial", store / "uns" / f"a{i}")
            edit(store / "uns" / f"a{i}", lambda about: about["shape"].__setitem__(0, 2**23))
        refused(store, "'/' says that it holds")

    def test_members_of_a_zip_file_that_unpack_to_far_more(self, store):
        path = packed(store)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr("bomb", bytes(300_000_000))
        refused(path, "'bomb' says that it holds 300,000,000 bytes")

    @pytest.mark.parametrize("content", ["[" * 200_000, '{"shape": [NaN], "chunks": [1]}'])
    def test_damage(self, store, content):
        edit(store / "obsm" / "spatial", lambda about: None)
        file = next(
            store / "obsm/spatial" / name
            for name in ("zarr.json", ".zarray")
            if (store / "obsm/spatial" / name).exists()
        )
        file.write_text(content)
        path = packed(store)
        with pytest.raises(ValueError, match=r"counts\.zarr\.zip was downloaded and is damaged"):
            check_downloaded(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"counts\.zarr\.zip was downloaded and is damaged"):
            check_downloaded(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_structured_arrays_with_texts_are_fine(tmp_path, zarr_format):
    adata = ad.AnnData(np.ones((4, 3), "f4"))
    adata.uns["rank_genes_groups"] = {"names": np.array([("g1", "g2")], dtype=[("a", "U5"), ("b", "U5")])}
    adata.write_h5ad(tmp_path / "r.h5ad")
    check_downloaded(tmp_path / "r.h5ad")
    with ad.settings.override(zarr_write_format=zarr_format):
        adata.write_zarr(tmp_path / "r.zarr")
    check_downloaded(packed(tmp_path / "r.zarr"))
