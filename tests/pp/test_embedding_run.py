"""`rg.pp.embed_tiles(cache=)`: interrupted runs go on, and nothing but the same run is taken from a cache."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest

import ragst_sd as rg

from ..sections import mean_colour, painted
from ..sections import section as section_of

N = 100
PART = 8 * 4


class Named:
    """Mean colour, with a count of the tiles seen, and an error after so many of them."""

    def __init__(self, name="mean colour", fail_after=None, error=KeyboardInterrupt):
        self.name, self.fail_after, self.error, self.seen = name, fail_after, error, 0

    def __call__(self, tiles):
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise self.error
        self.seen += len(tiles)
        return mean_colour(tiles)


@pytest.fixture
def section():
    return section_of(np.random.default_rng(0).uniform(10, 200, (N, 2)))


def embed(sdata, model, **kwargs):
    options = {"tile_px": 16, "mpp": None, "batch_size": 4, "key_added": "X", "progress": False} | kwargs
    rg.pp.embed_tiles(sdata, model=model, **options)
    return sdata.tables["table"].obsm["X"]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_a_run_goes_on_where_it_was_interrupted(section, tmp_path, error, num_workers, caplog):
    expected = embed(section_of(section.shapes["spots"].geometry.get_coordinates().to_numpy()), Named())
    before = section.tables["table"].copy()
    with pytest.raises(error):
        embed(section, Named(fail_after=70, error=error), cache=tmp_path / "c", num_workers=num_workers)
    table = section.tables["table"]
    assert list(table.obsm) == list(before.obsm)
    assert set(table.uns) == set(before.uns)
    assert list(table.obs) == list(before.obs)
    again = Named()
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        out = embed(section, again, cache=tmp_path / "c")
    assert again.seen == N - 2 * PART
    assert "Going on from 2 of 4 parts" in caplog.text
    np.testing.assert_array_equal(out, expected)


def test_a_finished_run_is_read_back(section, tmp_path):
    first = embed(section, Named(), cache=tmp_path, context=(1, 2)).copy()
    again = Named()
    np.testing.assert_array_equal(embed(section, again, cache=tmp_path, context=(1, 2), overwrite=True), first)
    assert again.seen == 0


@pytest.mark.parametrize(
    "change", [{"tile_px": 20}, {"context": (2,)}, {"mpp": 2.0, "image_mpp": 1.0}, {"batch_size": 5}, {"mean": (0.5,) * 3, "std": (1,) * 3}]
)  # fmt: skip
def test_another_run_finds_nothing(section, tmp_path, change):
    embed(section, Named(), cache=tmp_path)
    other = Named()
    embed(section, other, cache=tmp_path, overwrite=True, **change)
    assert other.seen == N


def test_another_encoder_or_image_finds_nothing(section, tmp_path):
    embed(section, Named(), cache=tmp_path)
    other = Named("another")
    embed(section, other, cache=tmp_path)
    assert other.seen == N
    image = painted()
    image[:, :9] = 0
    changed = section_of(section.shapes["spots"].geometry.get_coordinates().to_numpy(), image=image)
    same = Named()
    embed(changed, same, cache=tmp_path)
    assert same.seen == N


@pytest.mark.parametrize(("first", "second"), [((240, 16), (16, 320)), ((64, 64), (240, 32))])
def test_an_image_in_other_chunks_is_never_given_tiles_of_other_places(tmp_path, monkeypatch, first, second):
    # Chunks of a unit each, as in an image that is much larger.
    monkeypatch.setattr("ragst_sd.image.tiles._UNIT_PX", 1)
    xy = np.random.default_rng(0).uniform(10, 200, (N, 2))
    expected = embed(section_of(xy), Named())
    for chunks in (first, second, first):
        image = da.from_array(painted(), chunks=(3, *chunks))
        np.testing.assert_array_equal(embed(section_of(xy, image=image), Named(), cache=tmp_path), expected)
    assert len(list(tmp_path.iterdir())) == 2
    again = Named()
    embed(section_of(xy, image=da.from_array(painted(), chunks=(3, *first))), again, cache=tmp_path)
    assert again.seen == 0


def test_two_runs_at_once_do_not_get_into_each_others_way(section, tmp_path):
    expected = embed(section, Named()).copy()
    sections = [section_of(section.shapes["spots"].geometry.get_coordinates().to_numpy()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda own: embed(own, Named(), cache=tmp_path), sections):
            np.testing.assert_array_equal(found, expected)
    assert list(tmp_path.rglob(".*")) == []


def test_writers_of_one_process_use_names_of_their_own(tmp_path, monkeypatch):
    from ragst_sd.image.parts import Part
    from ragst_sd.pp._embedding_run import EmbeddingCache

    real, values = np.save, np.zeros((3, 2), np.float32)
    caches = [EmbeddingCache(tmp_path, {"encoder": "mine"}, 4, [Part(0, np.arange(3))]) for _ in range(2)]

    def meanwhile(file, array, **kwargs):
        monkeypatch.setattr(np, "save", real)
        caches[1].write(0, values + 1)
        real(file, array, **kwargs)

    monkeypatch.setattr(np, "save", meanwhile)
    caches[0].write(0, values)
    np.testing.assert_array_equal(caches[1].read(0), values)


@pytest.mark.parametrize("damage", ["cut", "empty", "rows", "row", "vector", "nan", "dtype"])
def test_a_damaged_part_is_embedded_again(section, tmp_path, damage, caplog):
    expected = embed(section, Named(), cache=tmp_path).copy()
    path = next(tmp_path.rglob("part-000001.npy"))
    values = np.load(path)
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[:-7] if damage == "cut" else b"")
    else:
        one_nan = np.where(np.arange(len(values))[:, None] == 3, np.float32("nan"), values)
        others = {"rows": values[:-1], "row": values[:1], "vector": values[:, 0], "nan": one_nan}
        np.save(path, (others | {"dtype": values.astype(str)})[damage])
    again = Named()
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        out = embed(section, again, cache=tmp_path, overwrite=True)
    assert again.seen == PART
    assert "cannot be used" in caplog.text
    np.testing.assert_array_equal(out, expected)
    assert [file.name for file in tmp_path.rglob(".*")] == []


def test_a_model_without_name_is_refused(section, tmp_path):
    with pytest.raises(ValueError, match="no name"):
        embed(section, mean_colour, cache=tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(section, tmp_path):
    (tmp_path / "c").write_text("")
    with pytest.raises(NotADirectoryError, match="which is a file"):
        embed(section, Named(), cache=tmp_path / "c")
    with pytest.raises(TypeError, match="cache"):
        embed(section, Named(), cache=3)
