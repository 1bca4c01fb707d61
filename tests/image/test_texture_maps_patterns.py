"""Local binary patterns against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image.texture_maps import binary_patterns, pattern_histogram  # noqa: E402


@pytest.fixture(scope="module")
def random_grey() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 40, 53))).float()


@pytest.mark.parametrize(("points", "radius"), [(8, 1.0), (8, 2.0), (8, 3.0), (16, 2.0)])
def test_patterns_match_scikit_image(random_grey, points, radius) -> None:
    feature = pytest.importorskip("skimage.feature")
    margin = int(np.ceil(radius))
    found = binary_patterns(random_grey, points=points, radius=radius).numpy()
    for image, codes in zip(random_grey.numpy(), found, strict=True):
        expected = feature.local_binary_pattern(image.astype(np.uint8), points, radius, method="uniform")
        np.testing.assert_array_equal(codes, expected[margin:-margin, margin:-margin])


def test_patterns_of_flat_and_single_pixel_images() -> None:
    flat = torch.full((1, 9, 9), 117.0)
    assert (binary_patterns(flat, points=8, radius=2.0) == 8).all()
    spot = flat.clone()
    spot[0, 4, 4] += 50
    codes = binary_patterns(spot, points=8, radius=1.0)
    assert codes[0, 3, 3] == 0  # all neighbours are darker
    assert (codes[0, 0] == 8).all()
    shares = pattern_histogram(codes, points=8)
    np.testing.assert_allclose(shares[0].numpy(), np.bincount(codes.flatten().numpy(), minlength=10) / 49, rtol=1e-6)


def test_pattern_histogram_keeps_images_apart(random_grey) -> None:
    codes = binary_patterns(random_grey, points=8, radius=1.0)
    together = pattern_histogram(codes, points=8)
    for i in range(len(codes)):
        np.testing.assert_array_equal(together[i].numpy(), pattern_histogram(codes[i : i + 1], points=8)[0].numpy())
    assert not torch.equal(together[0], together[1])
