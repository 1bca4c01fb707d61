"""Averages of tiles over fields of view, against the areas of shapely and cases that can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from ragst_sd.image.pooling import pool_tiles

EDGE = 10.0


def grid(n=12, step=EDGE):
    x, y = np.meshgrid(np.arange(n), np.arange(n))
    return np.column_stack([x.ravel(), y.ravel()]) * step + step / 2


def square(center, edge):
    (x, y), half = center, edge / 2
    return shapely.box(x - half, y - half, x + half, y + half)


@pytest.mark.parametrize("step", [EDGE, EDGE / 2, 2 * EDGE])
@pytest.mark.parametrize("field", [1, 2.5, 6])
def test_areas_are_those_of_shapely(rng, step, field):
    tiles = grid(step=step)
    vectors = rng.normal(size=(len(tiles), 3)).astype(np.float32)
    places = rng.uniform(step, tiles.max() - step, (40, 2))
    pooled = pool_tiles(vectors, tiles, places, edge=EDGE, context=(field,))
    stands_for = min(EDGE, step)
    squares = np.array([square(tile, stands_for) for tile in tiles])
    for place, found in zip(places, pooled, strict=True):
        if np.abs(tiles - place).max(axis=1).min() > EDGE / 2:
            assert np.isnan(found).all(), "between tiles that lie apart"
            continue
        area = shapely.area(shapely.intersection(squares, square(place, (field - 1) * EDGE + stands_for)))
        np.testing.assert_allclose(found, area @ vectors / area.sum(), rtol=1e-4, atol=1e-5)


def test_a_tile_on_the_spot_is_taken_alone_even_where_tiles_overlap(rng):
    tiles = grid(step=3.0)
    vectors = rng.normal(size=(len(tiles), 4)).astype(np.float32)
    np.testing.assert_array_equal(pool_tiles(vectors, tiles, tiles, edge=EDGE, context=(1,)), vectors)


def test_fields_stand_side_by_side_and_wider_ones_are_smoother(rng):
    tiles = grid(30)
    vectors = rng.normal(size=(len(tiles), 2)).astype(np.float32)
    pooled = pool_tiles(vectors, tiles, grid(10) + 100, edge=EDGE, context=(1, 2.5, 6))
    assert pooled.shape == (100, 6)
    spread = pooled.std(axis=0).reshape(3, 2).mean(axis=1)
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]


def test_places_off_the_tiles_are_nan_and_the_rim_is_averaged_over_what_is_there():
    tiles = grid(2)
    vectors = np.array([[1.0], [2.0], [3.0], [4.0]], dtype=np.float32)
    pooled = pool_tiles(vectors, tiles, np.array([[0.0, 0.0], [-0.1, 5.0], [10.0, 10.0]]), edge=EDGE, context=(1, 9))
    np.testing.assert_allclose(pooled, [[1.0, 2.5], [np.nan, np.nan], [2.5, 2.5]])


def test_a_spot_near_the_rim_of_overlapping_tiles_takes_the_nearest(rng):
    tiles = grid(4, step=1.0)
    vectors = np.arange(16, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(pool_tiles(vectors, tiles, np.array([[-3.0, 0.5]]), edge=EDGE, context=(1,)), [[0.0]])


def test_one_tile():
    np.testing.assert_array_equal(
        pool_tiles(np.ones((1, 2), np.float32), np.zeros((1, 2)), np.zeros((1, 2)), edge=EDGE, context=(1, 6)),
        np.ones((1, 4)),
    )


def test_many_places_in_blocks(rng, monkeypatch):
    tiles = grid(20)
    vectors, places = rng.normal(size=(400, 3)).astype(np.float32), rng.uniform(0, 200, (300, 2))
    whole = pool_tiles(vectors, tiles, places, edge=EDGE, context=(1, 2.5))
    monkeypatch.setattr("ragst_sd.image.pooling._BLOCK", 7)
    np.testing.assert_allclose(pool_tiles(vectors, tiles, places, edge=EDGE, context=(1, 2.5)), whole, rtol=1e-6)
