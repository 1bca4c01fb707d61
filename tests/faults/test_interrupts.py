"""Ctrl-C during embedding, fit, prediction and build: objects are as they were, and the same call succeeds afterwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import ragst_sd as rg


class Interrupted:
    """An encoder during whose n-th batch the user presses Ctrl-C."""

    name = "interrupted colour"

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, tiles):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        tiles = tiles.float()
        return tiles.mean(dim=(2, 3))


def state(sdata):
    """Everything of a section that a call could have changed."""
    tables = {
        name: (table.obs.copy(), sorted(table.obsm), copy.deepcopy(dict(table.uns)))
        for name, table in sdata.tables.items()
    }
    return sorted(name for _, name, _ in sdata.gen_elements()), copy.deepcopy(sdata.attrs), tables


def unchanged(before, sdata):
    names, attrs, tables = state(sdata)
    assert (names, attrs) == before[:2]
    for name, (obs, obsm, uns) in before[2].items():
        assert tables[name][0].equals(obs) and tables[name][1] == obsm
        assert repr(tables[name][2]) == repr(uns)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_embedding(query, at, num_workers):
    before = state(query)
    options = {"tile_px": 32, "key_added": "X_new", "batch_size": 16, "progress": False, "num_workers": num_workers}
    with pytest.raises(KeyboardInterrupt):
        rg.pp.embed_tiles(query, model=Interrupted(at), **options)
    unchanged(before, query)
    rg.pp.embed_tiles(query, model=Interrupted(-1), **options)
    assert np.isfinite(query.tables["table"].obsm["X_new"]).any()


def interrupts(monkeypatch, module, name, at=1):
    """Ctrl-C when a function is called for the n-th time."""
    original, calls = getattr(module, name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)
    return calls


def reference_state(reference):
    return repr(reference.uns["ragst"]), sorted(reference.obsm), reference.obs.copy(), reference.var.copy()


def same_reference(before, reference):
    uns, obsm, obs, var = reference_state(reference)
    assert uns == before[0] and obsm == before[1] and obs.equals(before[2]) and var.equals(before[3])


def test_fit_leaves_the_earlier_fit(fitted, monkeypatch, query):
    from ragst_sd.tl import _fit

    expected = rg.tl.predict(query, fitted, inplace=False)
    before = reference_state(fitted)
    interrupts(monkeypatch, _fit, "fit_hash")
    with pytest.raises(KeyboardInterrupt):
        rg.tl.fit(fitted, method="knn", n_neighbors=4)
    same_reference(before, fitted)
    monkeypatch.undo()
    np.testing.assert_array_equal(rg.tl.predict(query, fitted, inplace=False).X, expected.X)
    rg.tl.fit(fitted, method="knn", n_neighbors=4)
    assert fitted.uns["ragst"]["fit"]["n_neighbors"] == 4


@pytest.mark.parametrize("name", ["select", "predicted_table"])
def test_predict_leaves_the_section(query, fitted, monkeypatch, name):
    from ragst_sd.tl import _predict

    before, of_reference = state(query), reference_state(fitted)
    interrupts(monkeypatch, _predict, name)
    with pytest.raises(KeyboardInterrupt):
        rg.tl.predict(query, fitted)
    unchanged(before, query)
    same_reference(of_reference, fitted)
    monkeypatch.undo()
    rg.tl.predict(query, fitted)
    assert "predicted" in query.tables


def test_build_leaves_the_sections(sections, monkeypatch):
    from ragst_sd.tl import _build_reference

    before = {name: state(sdata) for name, sdata in sections.items()}
    interrupts(monkeypatch, _build_reference, "measured_mask")
    with pytest.raises(KeyboardInterrupt):
        rg.tl.build_reference(sections, use_rep="X_colour")
    for name, sdata in sections.items():
        unchanged(before[name], sdata)
    monkeypatch.undo()
    assert rg.tl.build_reference(sections, use_rep="X_colour").n_obs


@pytest.mark.slow
def test_a_write_leaves_the_old_version(fitted, tmp_path, monkeypatch):
    from ragst_sd.io import _write_reference

    path = tmp_path / "r.zarr.zip"
    rg.io.write_reference(fitted, path)
    expected = fitted.uns["ragst"]["content_hash"]
    interrupts(monkeypatch, _write_reference, "_pack")
    with pytest.raises(KeyboardInterrupt):
        rg.io.write_reference(fitted[:-1].copy(), path, overwrite=True)
    assert rg.io.read_reference(path).uns["ragst"]["content_hash"] == expected
    assert [one.name for one in tmp_path.iterdir() if not one.name.endswith(".lock")] == ["r.zarr.zip"]
    monkeypatch.undo()
    rg.io.write_reference(fitted[:-1].copy(), path, overwrite=True)
    assert rg.io.read_reference(path).n_obs == fitted.n_obs - 1
