"""Stain separation against scikit-image and known mixtures."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image.texture import luminance, optical_density, separate_stains  # noqa: E402


def test_stains_match_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).integers(1, 256, (2, 3, 17, 23), dtype=np.uint8)
    found = separate_stains(optical_density(torch.from_numpy(rgb))).numpy()
    # scikit-image divides densities by log(1e-6) and cuts negative amounts off.
    expected = color.rgb2hed(rgb, channel_axis=1) * -np.log(1e-6)
    np.testing.assert_allclose(np.clip(found, 0, None), expected, atol=1e-5)
    assert (found < 0).any()


def test_stains_recover_the_amounts_that_were_mixed() -> None:
    amounts = np.random.default_rng(0).uniform(0.1, 0.8, (1, 3, 8, 8))
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    density = torch.from_numpy(np.einsum("nshw,sc->nchw", amounts, vectors)).float()
    np.testing.assert_allclose(separate_stains(density).numpy(), amounts, atol=1e-5)


def test_density_and_luminance_of_known_colours() -> None:
    rgb = torch.tensor([[255, 0, 1], [255, 0, 10], [255, 0, 100]], dtype=torch.uint8)[None, :, None, :]
    np.testing.assert_allclose(
        optical_density(rgb)[0, :, 0].numpy(), -np.log(np.maximum(rgb[0, :, 0].numpy(), 1) / 255), rtol=1e-6, atol=1e-7
    )
    assert luminance(rgb)[0, 0, 0] == 255
    assert luminance(rgb)[0, 0, 1] == 0
    assert luminance(rgb)[0, 0, 2] == round((77 * 1 + 150 * 10 + 29 * 100) / 256)
