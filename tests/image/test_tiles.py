"""Tiles against windows cut by brute force out of a padded image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ragst_sd.image import tiles as tiles_module
from ragst_sd.image.colours import Colours
from ragst_sd.image.frames import FieldOfView, LevelGrid, plan_field
from ragst_sd.image.tiles import (
    iter_tiles,
    padded_fraction,
    reflect,
    resize_tiles,
    storage_order,
    window_starts,
)


class CountingArray:
    """An image that records what is read of it."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.dtype, self.reads = pixels, pixels.shape, pixels.dtype, []

    def __getitem__(self, key):
        self.reads.append((key[1].start, key[1].stop, key[2].start, key[2].stop))
        return self.pixels[key]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, size=(3, 300, 420), dtype=np.uint8)


def field_of(window, tile_px=None, downsample=1.0):
    return FieldOfView(
        level=0,
        grid=LevelGrid((downsample, downsample)),
        window_px=window,
        tile_px=tile_px or window,
        upsampling=1 / downsample,
    )


def brute_force(image, center, window):
    pad = 2 * window
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    x, y = (int(np.rint(c - window / 2)) + pad for c in center)
    return padded[:, y : y + window, x : x + window]


def collect(image, centers, field, **kwargs):
    options = {"chunk": (64, 64), "colours": Colours(), "batch_size": 7} | kwargs
    out = np.zeros((len(centers), 3, field.tile_px, field.tile_px), dtype=np.uint8)
    seen = []
    for index, tiles in iter_tiles(image, centers, field, **options):
        assert len(index) == len(tiles) <= options["batch_size"]
        out[index] = tiles.numpy()
        seen.extend(index.tolist())
    assert sorted(seen) == list(range(len(centers)))
    return out


@pytest.mark.parametrize("window", [1, 8, 31, 90])
@pytest.mark.parametrize("chunk", [(64, 64), (300, 420), (17, 100)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_tiles_equal_brute_force_windows(image, window, chunk, num_workers, monkeypatch):
    monkeypatch.setattr(tiles_module, "_UNIT_PX", 100 * 100)
    monkeypatch.setattr(tiles_module, "_BAND_BYTES", 200_000)
    rng = np.random.default_rng(window)
    centers = rng.uniform([0, 0], [420, 300], size=(60, 2))
    centers[:4] = [[0, 0], [419.9, 299.9], [0, 299.9], [210.5, 0.2]]
    out = collect(image, centers, field_of(window), chunk=chunk, num_workers=num_workers)
    for center, tile in zip(centers, out, strict=True):
        np.testing.assert_array_equal(tile, brute_force(image, center, window))


def test_window_larger_than_the_image_is_mirrored_repeatedly():
    image = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4)
    out = collect(image, np.array([[2.0, 2.5]]), field_of(20))
    np.testing.assert_array_equal(out[0], brute_force(image, (2.0, 2.5), 20))


def test_reflect_matches_numpy_pad():
    for size in (1, 2, 3, 10):
        padded = np.pad(np.arange(size), 25, mode="reflect" if size > 1 else "edge")
        np.testing.assert_array_equal(reflect(np.arange(-25, size + 25), size), padded)


def test_coarser_level_is_read_at_its_own_pixels(image):
    half = image[:, ::2, ::2]
    center = np.array([[200.0, 120.0]])
    out = collect(half, center, field_of(32, downsample=2.0))
    np.testing.assert_array_equal(out[0], brute_force(half, (100.0, 60.0), 32))


@pytest.mark.parametrize("window", [16, 90])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_chunk_is_read_once_whatever_the_number_of_tiles(image, window, num_workers, monkeypatch):
    monkeypatch.setattr(tiles_module, "_UNIT_PX", 64 * 64)
    centers = np.random.default_rng(1).uniform([0, 0], [420, 300], size=(2000, 2))
    counting = CountingArray(image)
    collect(counting, centers, field_of(window), chunk=(64, 64), batch_size=64, num_workers=num_workers)
    assert len(counting.reads) == len(set(counting.reads)) == -(-420 // 64) * -(-300 // 64)
    assert all(y0 % 64 == 0 and x0 % 64 == 0 and y1 - y0 <= 64 and x1 - x0 <= 64 for y0, y1, x0, x1 in counting.reads)


def test_chunks_that_no_tile_touches_are_not_read(image, monkeypatch):
    monkeypatch.setattr(tiles_module, "_UNIT_PX", 64 * 64)
    counting = CountingArray(image)
    collect(counting, np.array([[32.0, 32.0], [200.0, 128.0]]), field_of(16), chunk=(64, 64))
    assert sorted(counting.reads) == [(0, 64, 0, 64), (64, 128, 192, 256), (128, 192, 192, 256)]


@pytest.mark.parametrize("band_bytes", [1, 3 * 2 * 64 * 64 * 4])
def test_a_wide_image_is_read_in_bands_that_bound_the_memory(image, band_bytes, monkeypatch):
    monkeypatch.setattr(tiles_module, "_UNIT_PX", 64 * 64)
    monkeypatch.setattr(tiles_module, "_BAND_BYTES", band_bytes)
    wide = np.tile(image, (1, 1, 4))
    centers = np.random.default_rng(1).uniform([0, 0], [1680, 300], size=(3000, 2))
    sweep = tiles_module.Sweep.over(window_starts(centers, field_of(16)), 16, (300, 1680), (64, 64))
    assert sweep.band == (1 if band_bytes == 1 else 2)
    order = sweep.order()
    units = sweep.last_uses(order)
    first = {}
    for at, index in enumerate(order):
        for unit in sweep.touched(index):
            first.setdefault(unit, at)
    held = [sum(first[unit] <= at <= last for unit, last in units.items()) for at in range(len(order))]
    assert max(held) <= 2 * (sweep.band + 1)
    # At the edge between two bands a column of units is read for both.
    assert len(units) <= -(-300 // 64) * (27 + 27 // sweep.band)
    out = collect(wide, centers, field_of(16))
    for k in range(0, 3000, 50):
        np.testing.assert_array_equal(out[k], brute_force(wide, centers[k], 16))


@pytest.mark.parametrize(
    ("chunk", "unit"),
    [((1024, 1024), (1024, 1024)), ((256, 256), (1024, 1024)), ((1, 5000), (128, 5000)), ((4096, 4096), (4096, 4096))],
)
def test_units_are_whole_chunks_of_about_a_megapixel(chunk, unit):
    assert tiles_module.unit_shape((5000, 5000), chunk) == unit


def test_one_huge_chunk_is_read_once(image):
    centers = np.random.default_rng(1).uniform([0, 0], [420, 300], size=(50, 2))
    counting = CountingArray(image)
    collect(counting, centers, field_of(16), chunk=(300, 420))
    assert len(counting.reads) == 1


def test_order_of_some_tiles_is_their_order_among_all(monkeypatch):
    monkeypatch.setattr(tiles_module, "_UNIT_PX", 64 * 64)
    centers = np.random.default_rng(2).uniform([0, 0], [420, 300], size=(500, 2))
    order = storage_order(centers, field_of(30), (300, 420), (64, 64))
    assert sorted(order.tolist()) == list(range(500))
    some = np.sort(order[100:300])
    np.testing.assert_array_equal(
        some[storage_order(centers[some], field_of(30), (300, 420), (64, 64))], order[100:300]
    )


def test_an_abandoned_reader_leaves_no_thread(image):
    import threading

    reading = iter_tiles(
        image,
        np.random.default_rng(1).uniform([0, 0], [420, 300], size=(50, 2)),
        field_of(16),
        chunk=(64, 64),
        colours=Colours(),
        batch_size=5,
        num_workers=2,
    )
    next(reading)
    reading.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ragst-read")] == []


def test_padded_fraction_counts_pixels_outside():
    starts = np.array([[0, 0], [-5, 0], [-5, -5], [415, 295], [500, 0]])
    got = padded_fraction(starts, 10, 300, 420)
    expected = [
        1 - np.mean([0 <= x < 420 and 0 <= y < 300 for x in range(sx, sx + 10) for y in range(sy, sy + 10)])
        for sx, sy in starts
    ]
    np.testing.assert_allclose(got, expected)


def test_window_starts_centre_the_window():
    field = plan_field([LevelGrid((1, 1))], tile_px=10, mpp=None, image_mpp=None, multiple=1)
    np.testing.assert_array_equal(window_starts(np.array([[20.0, 30.0]]), field), [[15, 25]])


@pytest.mark.parametrize(
    ("dtype", "value_max"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1), (np.float64, 255)]
)
def test_pixels_of_any_range_become_uint8(dtype, value_max):
    grey = np.linspace(0, 255, 12).reshape(1, 3, 4).repeat(3, axis=0)
    pixels = (grey / 255 * value_max).astype(dtype)
    assert np.abs(Colours(value_max=value_max).to_rgb(pixels).astype(int) - np.rint(grey)).max() <= 1


def test_transparent_pixels_are_white():
    rgba = np.zeros((4, 1, 3), dtype=np.uint8)
    rgba[0] = 200
    rgba[3] = [0, 255, 128]
    out = Colours(alpha=3).to_rgb(rgba)
    np.testing.assert_array_equal(out[:, 0, 0], [255, 255, 255])
    np.testing.assert_array_equal(out[:, 0, 1], [200, 0, 0])
    assert 225 <= out[0, 0, 2] <= 229
    assert 125 <= out[1, 0, 2] <= 129


def test_resize_keeps_means_and_equal_sizes():
    windows = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    assert torch.equal(resize_tiles(windows, 64), torch.from_numpy(windows))
    small = resize_tiles(windows, 16)
    assert small.dtype == torch.uint8
    np.testing.assert_allclose(small.float().mean((2, 3)), windows.mean((2, 3)), atol=1.5)


def test_a_tile_does_not_depend_on_its_company(image):
    centers = np.random.default_rng(3).uniform([0, 0], [420, 300], size=(30, 2))
    field = field_of(40, tile_px=24)
    together = collect(image, centers, field, batch_size=30)
    alone = np.concatenate([collect(image, centers[i : i + 1], field) for i in range(30)])
    np.testing.assert_array_equal(together, alone)
