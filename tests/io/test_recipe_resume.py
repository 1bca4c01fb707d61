"""Builds that are killed, and what they leave behind."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

import ragst_sd as rg

from .recipes import RECIPE, Nursery, deposit

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
    out = tmp_path_factory.mktemp("undisturbed") / "reference.zarr.zip"
    started = time.perf_counter()
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    return rg.io.read_reference(out), time.perf_counter() - started


def content_hash(reference):
    return reference.uns["ragst"]["content_hash"]


def embeddings(out):
    """When each file of embeddings was written."""
    return {path: path.stat().st_mtime_ns for path in out.with_name(f"{out.name}.parts").glob("*/*/part-*.npy")}


def check_whole(out, expected):
    found = rg.io.read_reference(out)
    assert content_hash(found) == content_hash(expected)
    assert list(found.obs_names) == list(expected.obs_names)
    for column in ("x_um", "y_um"):
        np.testing.assert_array_equal(found.obs[column], expected.obs[column])
    np.testing.assert_array_equal(found.obsm["thumbnail"], expected.obsm["thumbnail"])
    assert content_hash(expected) in (out.parent / "reference.card" / "README.md").read_text()
    names = {path.name for path in out.parent.iterdir()}
    assert names == {out.name, f"{out.name}.parts", "reference.card", f".{out.name}.lock"}
    assert len(list((out.parent / f"{out.name}.parts").iterdir())) == 4
    assert {file.name for file in (out.parent / "reference.card").iterdir()} == {
        "README.md",
        "composition.png",
        "depth.png",
    }


def test_killed_at_random_moments(nursery, recipe, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng = np.random.default_rng()
    out = tmp_path / "reference.zarr.zip"
    killed = 0
    for attempt in range(12):
        after = float(rng.uniform(0.05, 0.8) * seconds)
        status = nursery.build(recipe, "--out", out, kill_after=after)
        killed += status == -9
        if status == 0:
            check_whole(out, expected)
            out = tmp_path / f"again{attempt}" / "reference.zarr.zip"
        if killed >= 3:
            break
    assert killed >= 3
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, expected)


# Of each of the 4 sections, two files are moved to their places, and each move is two events: a note, and the embeddings.
STEPS_OF_A_SECTION = 4


def test_killed_at_every_kind_of_step(nursery, recipe, undisturbed, tmp_path):
    """One build, killed at a note, and before and after embeddings are moved to their place."""
    out = tmp_path / "reference.zarr.zip"
    kept = {}
    # Of a section that was embedded before, the note alone is moved.
    for step, expected in ((1, 0), (3, 0), (4, 1), (5, 1), (6, 2)):
        assert nursery.build(recipe, "--out", out, step=step) == 9, nursery.log.read_text()
        written = embeddings(out)
        assert len(written) == expected
        assert kept.items() <= written.items(), "embedded again"
        assert not out.exists()
        kept = written
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, undisturbed[0])
    assert kept.items() <= embeddings(out).items(), "embedded again"


@pytest.mark.skipif(os.environ.get("RAGST_SD_THOROUGH") != "1", reason="each step by itself: RAGST_SD_THOROUGH=1")
@pytest.mark.parametrize("step", range(1, 4 * STEPS_OF_A_SECTION + 3))
def test_killed_at_each_step(nursery, recipe, undisturbed, tmp_path, step):
    out = tmp_path / "reference.zarr.zip"
    assert nursery.build(recipe, "--out", out, step=step) == 9
    assert len(embeddings(out)) == min(4, step // STEPS_OF_A_SECTION)
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    check_whole(out, undisturbed[0])


def test_damaged_embeddings_are_made_again(nursery, recipe, undisturbed, tmp_path, caplog):
    out = tmp_path / "reference.zarr.zip"
    assert nursery.build(recipe, "--out", out, step=4 * STEPS_OF_A_SECTION) == 9
    half, empty, other, _ = sorted(embeddings(out))
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    empty.write_bytes(b"")
    np.save(other, np.full((3, 2), np.nan))
    with rg.settings.override(progress=False):
        rg.io.build_recipe(recipe, path=out)
    assert caplog.text.count("it is embedded again") == 3
    check_whole(out, undisturbed[0])


def test_two_builds_do_not_meet(nursery, recipe, tmp_path):
    from filelock import FileLock

    out = tmp_path / "reference.zarr.zip"
    with FileLock(tmp_path / ".reference.zarr.zip.lock"):
        assert nursery.build(recipe, "--out", out) == 1
        with pytest.raises(BlockingIOError, match="is being built by another process"):
            rg.io.build_recipe(recipe, path=out)
    assert not out.exists()
    assert "is being built by another process" in nursery.log.read_text().splitlines()[-1]


def test_a_replaced_reference_is_not_lost(nursery, recipe, undisturbed, tmp_path):
    out = tmp_path / "reference.zarr.zip"
    assert nursery.build(recipe, "--out", out) == 0
    smaller = recipe.with_name("smaller.yaml")
    smaller.write_text(RECIPE.replace("folder: sections\n", "folder: sections\n    samples: [donor1_section1]\n"))
    assert nursery.build(smaller, "--out", out) == 1
    assert "another recipe" in nursery.log.read_text().splitlines()[-1]
    # The note of the one section is moved first, and then the reference.
    assert nursery.build(smaller, "--out", out, "--overwrite", step=3) == 9
    assert content_hash(rg.io.read_reference(out)) == content_hash(undisturbed[0])
    assert nursery.build(smaller, "--out", out, "--overwrite") == 0
    assert set(rg.io.read_reference(out).obs["sample"]) == {"donor1_section1"}


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
    alone, out = tmp_path / "alone" / "reference.zarr.zip", tmp_path / "killed" / "reference.zarr.zip"
    assert nursery.build(recipe, "--out", alone) == 0, nursery.log.read_text()
    # In the first section, in the second one, and while the reference is written.
    for step in (2, STEPS_OF_A_SECTION + 3, 2 * n_parts + 3):
        assert nursery.build(recipe, "--out", out, step=step) == 9, nursery.log.read_text()
        assert not out.exists()
    assert nursery.build(recipe, "--out", out) == 0, nursery.log.read_text()
    undisturbed, resumed = rg.io.read_reference(alone), rg.io.read_reference(out)
    assert content_hash(resumed) == content_hash(undisturbed)
    assert undisturbed.obs["sample"].nunique() == n_parts
    assert undisturbed.n_obs > 400
