"""Co-occurrence matrices against scikit-image and brute force."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image.texture_maps import (  # noqa: E402
    PROPERTIES,
    cooccurrence,
    cooccurrence_properties,
    halve,
    quarter_offsets,
)


@pytest.fixture(scope="module")
def random_grey() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 40, 53))).float()


@pytest.mark.parametrize("distance", [1, 3])
def test_cooccurrence_matches_scikit_image(random_grey, distance) -> None:
    feature = pytest.importorskip("skimage.feature")
    levels = (random_grey / 32).floor()
    found = cooccurrence(levels, quarter_offsets(distance), n_levels=8).numpy()
    # scikit-image rounds distance * cos(angle); diagonal steps of (1, 1) are distance * sqrt(2) there.
    straight, diagonal = [0, np.pi / 2], [np.pi / 4, 3 * np.pi / 4]
    for image, matrix in zip(levels.numpy().astype(np.uint8), found, strict=True):
        kinds = [
            feature.graycomatrix(image, [length], angles, levels=8, symmetric=True, normed=True)[:, :, 0]
            for length, angles in ((distance, straight), (distance * np.sqrt(2), diagonal))
        ]
        expected = np.concatenate(kinds, axis=2).mean(axis=2)
        np.testing.assert_allclose(matrix, expected, atol=1e-6)
        assert matrix.sum() == pytest.approx(1, abs=1e-5)


def test_cooccurrence_matches_brute_force() -> None:
    levels = np.random.default_rng(4).integers(0, 4, (2, 6, 9))
    offsets = ((1, -2), (0, 3))
    expected = np.zeros((2, 4, 4))
    for n in range(2):
        for dy, dx in offsets:
            counts = np.zeros((4, 4))
            for y in range(6):
                for x in range(9):
                    if 0 <= y + dy < 6 and 0 <= x + dx < 9:
                        counts[levels[n, y, x], levels[n, y + dy, x + dx]] += 1
            counts += counts.T
            expected[n] += counts / counts.sum() / len(offsets)
    np.testing.assert_allclose(cooccurrence(torch.from_numpy(levels), offsets, n_levels=4).numpy(), expected, atol=1e-6)


def test_cooccurrence_properties_match_scikit_image(random_grey) -> None:
    feature = pytest.importorskip("skimage.feature")
    blurred = halve(halve(random_grey))  # neighbours that go together, so that the correlation is not 0
    matrix = cooccurrence((blurred / 32).floor(), quarter_offsets(1), n_levels=8)
    found = cooccurrence_properties(matrix)
    assert tuple(found) == PROPERTIES
    stacked = matrix.double().permute(1, 2, 0)[:, :, :, None].numpy()
    for name in PROPERTIES[:-1]:
        np.testing.assert_allclose(found[name].numpy(), feature.graycoprops(stacked, name)[:, 0], rtol=1e-4, atol=1e-5)
    p = matrix.double().numpy()
    expected = [-(m[m > 0] * np.log(m[m > 0])).sum() for m in p]
    np.testing.assert_allclose(found["entropy"].numpy(), expected, rtol=1e-4)


def test_cooccurrence_of_a_constant_image() -> None:
    found = cooccurrence_properties(cooccurrence(torch.full((1, 5, 5), 3), quarter_offsets(1), n_levels=8))
    values = {name: float(value) for name, value in found.items()}
    assert values == pytest.approx(
        {"contrast": 0, "dissimilarity": 0, "homogeneity": 1, "energy": 1, "correlation": 1, "entropy": 0}, abs=1e-6
    )
