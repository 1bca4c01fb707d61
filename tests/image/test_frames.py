"""Affines, scale checks and the choice of pyramid level."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.image.frames import LevelGrid, apply_affine, plan_field, similarity_scale


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
@pytest.mark.parametrize("flip", [1, -1])
def test_similarity_scale_survives_rotation_flip_and_shift(degrees, flip):
    matrix = rotation(degrees) @ np.diag([2.5, flip * 2.5, 1])
    matrix[:2, 2] = [100, -7]
    assert similarity_scale(matrix) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([1.0, 1.05, 1]), "scales x by 1 and y by 1.05"),
        (np.array([[1, 0.2, 0], [0, np.sqrt(1 - 0.04), 0], [0, 0, 1]]), "or shears"),
        (np.diag([1.0, 0.0, 1]), "scales x by 1 and y by 0"),
        (np.diag([0.0, 0.0, 1]), "scales x by 0 and y by 0"),
        (np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]), "or shears"),
        (np.diag([np.nan, 1.0, 1]), "scales x by nan"),
    ],
)
def test_similarity_scale_refuses(matrix, message):
    with pytest.raises(ValueError, match=message):
        similarity_scale(matrix)


def test_similarity_scale_accepts_one_percent():
    assert similarity_scale(np.diag([1.0, 1.009, 1])) == pytest.approx(1.0045, abs=1e-3)


def test_apply_affine_is_the_matrix_product():
    matrix = rotation(33) @ np.diag([2, 2, 1.0])
    matrix[:2, 2] = [5, 9]
    points = np.random.default_rng(0).normal(size=(7, 2))
    expected = (matrix @ np.column_stack([points, np.ones(7)]).T).T[:, :2]
    np.testing.assert_allclose(apply_affine(matrix, points), expected)


GRIDS = [LevelGrid((factor, factor)) for factor in (1, 2, 4, 8)]


@pytest.mark.parametrize(
    ("mpp", "image_mpp", "multiple", "level", "window", "upsampling"),
    [
        (0.5, 0.25, 1, 1, 224, 0.5),
        (0.5, 0.5, 1, 0, 224, 1.0),
        (1.0, 0.5, 1, 1, 224, 0.5),
        (0.9, 0.5, 1, 0, 403, 1 / 1.8),
        (0.5, 0.25, 2.5, 2, 280, 0.2),
        (0.5, 0.5, 6, 2, 336, 1 / 6),
        (0.5, 0.5, 100, 3, 2800, 0.01),
        (0.5, 2.0, 1, 0, 56, 4.0),
        (None, None, 1, 0, 224, 1.0),
        (None, 3.0, 2, 1, 224, 0.5),
    ],
)
def test_plan_field_takes_the_coarsest_level_that_is_fine_enough(mpp, image_mpp, multiple, level, window, upsampling):
    field = plan_field(GRIDS, tile_px=224, mpp=mpp, image_mpp=image_mpp, multiple=multiple)
    assert (field.level, field.window_px, field.tile_px) == (level, window, 224)
    assert field.upsampling == pytest.approx(upsampling)


def test_plan_field_tolerates_odd_heights():
    field = plan_field(
        [LevelGrid((1, 1)), LevelGrid((2318 / 1159, 2483 / 1241))], tile_px=100, mpp=1.0, image_mpp=0.5, multiple=1
    )
    assert field.level == 1


def test_plan_field_without_resolution():
    with pytest.raises(ValueError, match="needs the microns per pixel"):
        plan_field(GRIDS, tile_px=224, mpp=0.5, image_mpp=None, multiple=1)
