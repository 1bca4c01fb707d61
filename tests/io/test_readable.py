"""Files of a user that cannot be read: the error names the file, and says what it was to be."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import ragst_sd as rg
from ragst_sd.datasets._layouts import read_10x
from ragst_sd.pp._tile_features import read_embedding_file
from ragst_sd.reference.normalize import as_csr


@pytest.fixture
def h5ad(tmp_path):
    counts = sp.random(40, 12, density=0.4, format="csr", dtype="f4", random_state=0)
    ad.AnnData(counts).write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


def readers(path):
    yield lambda: rg.io.read_st(path, np.zeros((100, 100, 3), dtype="u1"), image_mpp=1.0)
    yield lambda: rg.datasets.load_screen("papalexi_2021", path=path)
    yield lambda: rg.datasets.load_screen("papalexi_2021", path=path, max_cells=3)
    yield lambda: read_10x(path)
    yield lambda: read_embedding_file(path)


def damages(path):
    whole = path.read_bytes()
    yield whole[:3000]
    yield whole[: len(whole) // 2]
    yield b"no hdf5 at all"
    yield b""


def test_damaged_hdf5_files(h5ad):
    for content in list(damages(h5ad)):
        h5ad.write_bytes(content)
        for read in readers(h5ad):
            with pytest.raises(ValueError, match=r"counts\.h5ad' cannot be read as .*damaged or incomplete"):
                read()


def test_a_part_is_missing(h5ad):
    with h5py.File(h5ad, "r+") as file:
        del file["X/indptr"]
    with pytest.raises(ValueError, match=r"counts\.h5ad' cannot be read as h5ad: it is damaged or incomplete"):
        rg.io.read_st(h5ad, np.zeros((100, 100, 3), dtype="u1"), image_mpp=1.0)


def test_links_of_a_users_own_file_are_followed(h5ad):
    with h5py.File(h5ad.with_name("linked.h5ad"), "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in ("X", "obs", "var"):
            file[name] = h5py.ExternalLink("counts.h5ad", name)
    with pytest.raises(ValueError, match="has no coordinates"):
        rg.io.read_st(h5ad.with_name("linked.h5ad"), np.zeros((100, 100, 3), dtype="u1"), image_mpp=1.0)


@pytest.mark.parametrize(("part", "at", "value"), [("indices", -1, 10**6), ("indices", 0, -5), ("indptr", 3, -5)])
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_a_sparse_matrix_that_points_outside_of_itself_does_not_reach_compiled_code(part, at, value, form):
    matrix = sp.random(40, 12, density=0.4, format=form, dtype="f4", random_state=0)
    getattr(matrix, part)[at] = value
    with pytest.raises(ValueError, match=r"ind"):
        as_csr(matrix)


def test_a_reference_larger_than_the_memory_is_told_before_it_is_read(reference, tmp_path, monkeypatch):
    path = tmp_path / "r.zarr.zip"
    rg.io.write_reference(reference, path)
    monkeypatch.setattr(zarr.Array, "nbytes", 10**15)
    with pytest.raises(
        MemoryError, match=r"r\.zarr\.zip holds \d+\.0 GB, this machine has .* GB of memory.*`lazy=True`"
    ):
        rg.io.read_reference(path)
    assert rg.io.read_reference(path, lazy=True).shape == reference.shape
