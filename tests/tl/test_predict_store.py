"""Predicting into a store, and on the workers of a cluster, against predicting in memory."""

from __future__ import annotations

import os
import pickle
import signal
from contextlib import suppress

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
import zarr

import ragst_sd as rg
from ragst_sd.retrieval import run


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks for few spots."""
    monkeypatch.setattr(run, "_BLOCK_VALUES", 1)
    monkeypatch.setattr(run, "_QUERIES", 16)


def assert_same(stored, expected):
    for name, values in {"X": stored.X, **stored.layers}.items():
        own = expected.X if name == "X" else expected.layers[name]
        np.testing.assert_array_equal(np.asarray(values), own, err_msg=name)
        assert np.asarray(values).dtype == np.float32
    assert set(stored.layers) == set(expected.layers)
    for name in expected.obsm:
        np.testing.assert_array_equal(np.asarray(stored.obsm[name]), np.asarray(expected.obsm[name]))
    for name in expected.obs.select_dtypes("number"):
        np.testing.assert_array_equal(stored.obs[name].to_numpy(), expected.obs[name].to_numpy(), err_msg=name)
    assert list(stored.obs_names) == list(expected.obs_names) and list(stored.var_names) == list(expected.var_names)
    assert stored.uns["retrieval"]["fit_hash"] == expected.uns["retrieval"]["fit_hash"]


def seen(folder):
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith(".lock"))


@pytest.mark.parametrize("method", ["rag", pytest.param("ridge", marks=pytest.mark.slow)])
def test_a_store_holds_what_memory_would(query, reference, quick, method, tmp_path):
    rg.tl.fit(reference, method=method, n_neighbors=10, options=quick(method))
    outside = query.tables["table"].obsm["X_colour"]
    outside[3] = np.nan
    query.tables["table"].uns["ragst"]["embeddings"]["X_colour"]["n_outside"] = 1
    genes = list(reference.var_names[[7, 2, 30, 11]])
    expected = rg.tl.predict(query, reference, genes=genes, inplace=False)
    rg.tl.predict(query, reference, genes=genes, store=tmp_path / "predicted.zarr")
    stored = query.tables["predicted"]
    assert hasattr(stored.X, "dask")
    assert_same(stored, expected)
    assert np.isnan(np.asarray(stored.X)[3]).all()
    assert_same(ad.read_zarr(tmp_path / "predicted.zarr"), expected)
    assert seen(tmp_path) == ["predicted.zarr"]


def test_intervals_and_lazy_references_in_a_store(query, reference, tmp_path):
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.calibrate(reference, levels=[0.8], progress=False)
    expected = rg.tl.predict(query, reference, intervals=0.8, inplace=False)
    rg.io.write_reference(reference, tmp_path / "reference.zarr.zip")
    lazy = rg.io.read_reference(tmp_path / "reference.zarr.zip", lazy=True)
    stored = rg.tl.predict(query, lazy, intervals=0.8, store=tmp_path / "p.zarr", inplace=False)
    assert_same(stored, expected)
    np.testing.assert_array_equal(stored.varm["interval_quantiles"], expected.varm["interval_quantiles"])


def test_a_store_inside_another_one_is_refused(query, fitted, tmp_path):
    query.write(tmp_path / "section.zarr")
    before = sorted((tmp_path / "section.zarr").rglob("*"))
    for place in ("section.zarr/tables/predicted", "section.zarr/mine.zarr"):
        with pytest.raises(ValueError, match=r"lies inside the store .*section\.zarr, .*`rg\.io\.write_table`"):
            rg.tl.predict(query, fitted, store=tmp_path / place)
    assert "predicted" not in query.tables
    assert sorted((tmp_path / "section.zarr").rglob("*")) == before


def test_a_store_is_replaced_only_when_the_new_one_is_complete(query, fitted, tmp_path, monkeypatch):
    path = tmp_path / "predicted.zarr"
    rg.tl.predict(query, fitted, store=path)
    before = np.asarray(query.tables["predicted"].X)
    from ragst_sd.tl import _predict_store

    real, calls = _predict_store.values_of, []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(_predict_store, "values_of", fails)
    with pytest.raises(KeyboardInterrupt):
        rg.tl.predict(query, fitted, n_neighbors=3, store=path)
    np.testing.assert_array_equal(ad.read_zarr(path).X, before)
    assert not list(tmp_path.glob(".*.new"))
    monkeypatch.undo()
    rg.tl.predict(query, fitted, n_neighbors=3, store=path)
    assert ad.read_zarr(path).obsm["retrieval_rows"].shape[1] == 3
    zarr.open_group(tmp_path / "mine.zarr", mode="w")
    with pytest.raises(FileExistsError, match=r"mine\.zarr exists and is not a table that `rg\.tl\.predict` wrote"):
        rg.tl.predict(query, fitted, store=tmp_path / "mine.zarr")


@pytest.mark.slow
def test_a_table_that_is_held_never_shows_the_values_of_the_next_one(query, fitted, tmp_path, monkeypatch):
    path = tmp_path / "p.zarr"
    monkeypatch.chdir(tmp_path)
    held = rg.tl.predict(query, fitted, store="p.zarr", inplace=False)
    monkeypatch.chdir(tmp_path.parent)
    before = np.asarray(held.X)
    genes = list(fitted.var_names)
    other = rg.tl.predict(query, fitted, genes=genes[5:] + genes[:5], store=path, inplace=False)
    for values in (held.X, pickle.loads(pickle.dumps(held.layers["evidence"]))):
        with pytest.raises(RuntimeError, match=r"was replaced .*rg\.tl\.predict\(store=.*Call `rg\.tl\.predict` again"):
            np.asarray(values)
    np.testing.assert_array_equal(np.asarray(other[:, genes].X), before)


@pytest.mark.slow
def test_a_link_in_place_of_a_store_is_followed(query, fitted, tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "p.zarr", tmp_path / "disk" / "real.zarr"
    link.symlink_to(target)
    for k in (4, 3):
        rg.tl.predict(query, fitted, n_neighbors=k, store=link)
        assert link.is_symlink() and not target.is_symlink()
        assert ad.read_zarr(target).obsm["retrieval_rows"].shape[1] == k
        assert query.tables["predicted"].X.compute().shape == query.tables["predicted"].shape
    assert seen(tmp_path) == ["disk", "p.zarr"] and seen(tmp_path / "disk") == ["real.zarr"]


@pytest.fixture
def lazy(_fitted_store):
    return rg.io.read_reference(_fitted_store, lazy=True)


def test_the_same_under_every_scheduler_of_dask(query, fitted, lazy):
    import dask

    expected = rg.tl.predict(query, fitted, inplace=False)
    for scheduler in ("threads", "synchronous"):
        with dask.config.set(scheduler=scheduler):
            assert_same(rg.tl.predict(query, lazy, inplace=False), expected)


def _die_once(flag):
    """A wrapper for the values of a block that kills the first worker that takes one up."""

    def values_of(part, selection):
        try:
            flag.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        return run.values_of(part, selection)

    return values_of


@pytest.mark.slow
def test_blocks_of_a_worker_that_is_killed_are_done_again(sections, query, fitted, tmp_path, monkeypatch):
    functions = {}
    for name in ("donor1", "donor2"):
        sections[name].write(tmp_path / f"{name}.zarr")
        # A function of this very place travels to the workers by value.
        functions[name] = lambda path=tmp_path / f"{name}.zarr": sd.read_zarr(path)
    distributed = pytest.importorskip("distributed")
    expected = rg.tl.predict(query, fitted, inplace=False)
    # The wrapper is made here, so it travels to the workers by value.
    monkeypatch.setattr(run, "values_of", _die_once(tmp_path / "died"))
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None)
    try:
        with distributed.Client(cluster):
            found = rg.tl.predict(query, fitted, inplace=False)
            assert (tmp_path / "died").exists()
            stored = rg.tl.predict(query, fitted, store=tmp_path / "p.zarr", inplace=False)
            built = rg.tl.build_reference(functions, use_rep="X_colour")
    finally:
        # On a busy machine the processes may take longer to go than the cluster waits for them.
        with suppress(TimeoutError):
            cluster.close(timeout=60)
    assert_same(found, expected)
    assert_same(stored, expected)
    assert built.uns["ragst"]["content_hash"] == fitted.uns["ragst"]["content_hash"]
    np.testing.assert_array_equal(built.obsm["thumbnail"], fitted.obsm["thumbnail"])
