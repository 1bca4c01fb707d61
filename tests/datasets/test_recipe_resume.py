"""Builds that are killed, and what they leave behind."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

import ragst_sd as rg

from .deposit import RECIPE, Nursery, deposit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="builds are forked")]


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
        if killed >= 3:
            break
    assert killed >= 3
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, expected)


# 4 parts of 7 events each (h5ad 3, note 2, rename 2), then the store, its places, pictures and page of the card
STEPS_OF_A_PART = 7


def test_killed_at_every_kind_of_step(nursery, recipe, undisturbed, tmp_path):
    """One build, killed in a part, at its note, between parts, in the store, when it is moved, and at the card."""
    out = tmp_path / "reference.zarr"
    parts = out.parent / "reference.zarr.parts"
    kept = {}
    for step, expected in ((2, 0), (6, 0), (16, 2), (16, 4), (5, 4), (6, 4)):
        assert nursery.build(recipe, "--out", out, step=step) == 9, nursery.log.read_text()
        whole = {part.name: part / "table.h5ad" for part in parts.iterdir() if "." not in part.name}
        assert len(whole) == expected
        written = {name: path.stat().st_mtime_ns for name, path in whole.items()}
        assert kept.items() <= written.items(), "a part was made again"
        kept = written
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, undisturbed[0])
    assert {name: (parts / name / "table.h5ad").stat().st_mtime_ns for name in kept} == kept


@pytest.mark.skipif(os.environ.get("RAGST_SD_THOROUGH") != "1", reason="each step by itself: RAGST_SD_THOROUGH=1")
@pytest.mark.parametrize("step", range(1, 41))
def test_killed_at_each_step(nursery, recipe, undisturbed, tmp_path, step):
    out = tmp_path / "reference.zarr"
    assert nursery.build(recipe, "--out", out, step=step) == 9
    parts = out.parent / "reference.zarr.parts"
    whole = {part.name for part in parts.iterdir() if "." not in part.name}
    assert len(whole) == min(4, step // STEPS_OF_A_PART)
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, undisturbed[0])


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


def test_a_replaced_reference_is_not_lost(nursery, recipe, undisturbed, tmp_path):
    out = tmp_path / "reference.zarr"
    assert nursery.build(recipe, "--out", out) == 0
    smaller = recipe.with_name("smaller.yaml")
    smaller.write_text(RECIPE.replace("folder: sections\n", "folder: sections\n    samples: [donor1_section1]\n"))
    assert nursery.build(smaller, "--out", out) == 1
    assert "another recipe" in nursery.log.read_text().splitlines()[-1]
    assert nursery.build(smaller, "--out", out, "--overwrite", made_room=out.name) == 9
    assert not out.exists(), "the old one has made room, the new one is not there yet"
    assert nursery.build(recipe, "--out", out) == 0
    check_whole(out, undisturbed[0])
    assert nursery.build(smaller, "--out", out, "--overwrite", made_room=out.name) == 9
    assert not out.exists(), "the old one has made room, the new one is not there yet"
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


REAL = """\
version: 1
sources:
  - folder: ${RAGST_SD_TEST_DATA}/histology/mob2k
    SAMPLES
    tissue: olfactory bulb
    technology: Spatial Transcriptomics
    license: MIT
encoder: {model: texture}
tiles: TILES
"""


def test_real_sections_killed_three_times(nursery, data_dir, tmp_path):
    """The same hash as an undisturbed build: all sections in full if asked for, else two with one field of view each."""
    thorough = os.environ.get("RAGST_SD_THOROUGH") == "1"
    text = REAL.replace("    SAMPLES\n", "" if thorough else "    samples: [MOB1, MOB2]\n")
    text = text.replace("TILES", "{}" if thorough else "{tile_px: 64, mpp: native, context: [1]}")
    recipe = tmp_path / "bulb.yaml"
    recipe.write_text(text)
    n_parts = 4 if thorough else 2
    alone, out = tmp_path / "alone" / "reference.zarr", tmp_path / "killed" / "reference.zarr"
    assert nursery.build(recipe, "--out", alone) == 0, nursery.log.read_text()
    # in the first part; in the last one; while the reference is written
    for step in (2, STEPS_OF_A_PART * (n_parts - 1) + 3, STEPS_OF_A_PART + 2):
        assert nursery.build(recipe, "--out", out, step=step) == 9, nursery.log.read_text()
        assert not out.exists()
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    undisturbed, resumed = rg.io.read_reference(alone), rg.io.read_reference(out)
    assert content_hash(resumed) == content_hash(undisturbed)
    assert undisturbed.obs["sample"].nunique() == n_parts
    assert undisturbed.n_obs > 400
