"""Embedding of points: fields of view side by side, spots off the image, NaN encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ragst_sd.image.embedding import Pyramid, plan_fields, tile_padding
from ragst_sd.image.parts import collect_parts, embed_parts, plan_parts


@pytest.fixture
def pyramid():
    image = np.random.default_rng(0).integers(0, 256, size=(3, 200, 160), dtype=np.uint8)
    levels = (image, image[:, ::2, ::2])
    return Pyramid(levels, ((64, 64), (64, 64)))


def embed_centers(pyramid, centers, fields, encoder, *, batch_size, **options):
    parts = plan_parts(pyramid, centers, fields, batch_size=batch_size)
    values = embed_parts(pyramid, centers, fields, parts, encoder, batch_size=batch_size, **options)
    return collect_parts(len(centers), len(fields), parts, list(values))


def channel_means(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.float().mean(dim=(2, 3))


def test_fields_are_concatenated_in_order(pyramid):
    centers = np.array([[80.0, 100.0], [30.0, 50.0]])
    fields = plan_fields(pyramid, tile_px=16, mpp=1.0, image_mpp=1.0, context=(1, 3))
    assert [field.level for field in fields] == [0, 1]
    out = embed_centers(pyramid, centers, fields, channel_means, batch_size=8)
    alone = [embed_centers(pyramid, centers, [field], channel_means, batch_size=8) for field in fields]
    np.testing.assert_array_equal(out, np.hstack(alone))
    expected = pyramid.levels[0][:, 92:108, 72:88].mean(axis=(1, 2))
    np.testing.assert_allclose(out[0, :3], expected, rtol=1e-5)


def test_spots_outside_are_nan_and_fully_padded(pyramid):
    centers = np.array([[80.0, 100.0], [-1.0, 50.0], [160.0, 10.0], [5.0, 199.9]])
    fields = plan_fields(pyramid, tile_px=16, mpp=None, image_mpp=None, context=(1,))
    out = embed_centers(pyramid, centers, fields, channel_means, batch_size=2)
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), [False, True, True, False])
    padding = tile_padding(pyramid, centers, fields[0])
    np.testing.assert_array_equal(padding[:3], [0, 1, 1])
    assert 0 < padding[3] < 1


def test_progress_counts_every_tile_of_every_field(pyramid):
    done = []
    fields = plan_fields(pyramid, tile_px=8, mpp=None, image_mpp=None, context=(1, 2))
    centers = np.random.default_rng(0).uniform(0, 150, size=(11, 2))
    embed_centers(pyramid, centers, fields, channel_means, batch_size=4, advance=done.append)
    assert sum(done) == 22


def test_nan_from_the_encoder_is_an_error(pyramid):
    fields = plan_fields(pyramid, tile_px=8, mpp=None, image_mpp=None, context=(1,))
    with pytest.raises(ValueError, match="NaN or infinite values for 1 of 1"):
        embed_centers(
            pyramid, np.array([[50.0, 50.0]]), fields, lambda t: torch.full((len(t), 2), torch.nan), batch_size=4
        )
