"""Builds that are killed, and what they leave behind."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

import ragst_sd as rg

from .deposit import RECIPE, Nursery, deposit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="builds are forked")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    running = Nursery(tmp_path_factory.mktemp("nursery"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    deposit(folder / "sections", n_donors=2, n_sections=2)
    (folder / "small.yaml").write_text(RECIPE)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def undisturbed(nursery, recipe, tmp_path_factory):
    """The reference of a build that nobody disturbs, and the seconds it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "reference.zarr"
    started = time.perf_counter()
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    return rg.io.read_reference(out), time.perf_counter() - started


def content_hash(reference):
    return reference.uns["ragst"]["content_hash"]


def check_whole(out, expected):
    found = rg.io.read_reference(out)
    assert content_hash(found) == content_hash(expected)
    assert list(found.obs_names) == list(expected.obs_names)
    for column in ("x_um", "y_um"):
        np.testing.assert_array_equal(found.obs[column], expected.obs[column])
    np.testing.assert_array_equal(found.obsm["thumbnail"], expected.obsm["thumbnail"])
    assert content_hash(expected) in (out.parent / "reference.card" / "README.md").read_text()
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"reference.zarr", "reference.zarr.parts", "reference.card", ".reference.zarr.lock"}
    parts = sorted((out.parent / "reference.zarr.parts").iterdir())
    assert len(parts) == 4
    assert all({file.name for file in part.iterdir()} == {"table.h5ad", "part.json"} for part in parts)
    assert {file.name for file in (out.parent / "reference.card").iterdir()} == {
        "README.md",
        "composition.png",
        "depth.png",
    }


def test_killed_at_random_moments(nursery, recipe, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng = np.random.default_rng()
    out = tmp_path / "reference.zarr"
    killed = 0
    for attempt in range(12):
        after = float(rng.uniform(0.05, 0.8) * seconds)
        status = nursery.build(recipe, "--out", out, kill_after=after)
        killed += status == -9
        if status == 0:
            check_whole(out, expected)
            out = tmp_path / f"again{attempt}" / "reference.zarr"
        if killed >= 4:
            break
    assert killed >= 3
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, expected)


# 4 parts of 7 events each (h5ad 3, note 2, rename 2), then the store, its places, pictures and page of the card
@pytest.mark.parametrize("step", [2, 6, 16, 30, 33, 38])
def test_killed_at_every_kind_of_step(nursery, recipe, undisturbed, tmp_path, step):
    out = tmp_path / "reference.zarr"
    assert nursery.build(recipe, "--out", out, step=step) == 9
    parts = out.parent / "reference.zarr.parts"
    whole = {part.name for part in parts.iterdir() if "." not in part.name}
    assert len(whole) == min(4, step // 7)
    before = {name: (parts / name / "table.h5ad").stat().st_mtime_ns for name in whole}
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, undisturbed[0])
    after = {name: (parts / name / "table.h5ad").stat().st_mtime_ns for name in whole}
    assert before == after


def test_damaged_parts_are_made_again(nursery, recipe, undisturbed, tmp_path, caplog):
    out = tmp_path / "reference.zarr"
    assert nursery.build(recipe, "--out", out, step=29) == 9
    half, changed, unnoted, _ = sorted((tmp_path / "reference.zarr.parts").glob("*/table.h5ad"))
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(bytes(data))
    (unnoted.parent / "part.json").unlink()
    with rg.settings.override(progress=False):
        rg.datasets.build_recipe(recipe, path=out)
    assert caplog.text.count("is damaged") == 3
    check_whole(out, undisturbed[0])


def test_two_builds_do_not_meet(nursery, recipe, tmp_path):
    from filelock import FileLock

    out = tmp_path / "reference.zarr"
    with FileLock(tmp_path / ".reference.zarr.lock"):
        assert nursery.build(recipe, "--out", out) == 1
        with pytest.raises(BlockingIOError, match="is being built by another process"):
            rg.datasets.build_recipe(recipe, path=out)
    assert not out.exists()
    assert "is being built by another process" in nursery.log.read_text().splitlines()[-1]


def kill_between_the_old_and_the_new(nursery, recipe, out):
    """Kill builds one step later each time, until one dies when the old reference has made room for the new one."""
    for step in range(1, 40):
        assert nursery.build(recipe, "--out", out, "--overwrite", step=step) == 9, f"finished before step {step}"
        if not out.exists():
            return
    pytest.fail("the old reference never made room")


def test_a_replaced_reference_is_not_lost(nursery, recipe, undisturbed, tmp_path):
    out = tmp_path / "reference.zarr"
    assert nursery.build(recipe, "--out", out) == 0
    smaller = recipe.with_name("smaller.yaml")
    smaller.write_text(RECIPE.replace("folder: sections\n", "folder: sections\n    samples: [donor1_section1]\n"))
    assert nursery.build(smaller, "--out", out) == 1
    assert "another recipe" in nursery.log.read_text().splitlines()[-1]
    kill_between_the_old_and_the_new(nursery, smaller, out)
    assert nursery.build(recipe, "--out", out) == 0
    check_whole(out, undisturbed[0])
    kill_between_the_old_and_the_new(nursery, smaller, out)
    assert nursery.build(smaller, "--out", out, "--overwrite") == 0
    assert set(rg.io.read_reference(out).obs["sample"]) == {"donor1_section1"}


def test_a_note_tells_what_a_part_is(recipe, nursery, tmp_path):
    out = tmp_path / "reference.zarr"
    assert nursery.build(recipe, "--out", out, step=8) == 9
    (note,) = (tmp_path / "reference.zarr.parts").glob("*/part.json")
    facts = json.loads(note.read_text())["facts"]
    assert facts["sample"] == "donor1_section1"
    assert len(facts["inputs"]) == 2
    assert str(tmp_path) not in note.read_text() and str(recipe.parent) not in note.read_text()
