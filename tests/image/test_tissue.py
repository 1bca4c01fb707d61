"""Where tissue is: glass, black, grey and fields without glass."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.image.tissue import tissue_mask

PINK, GLASS = (185, 105, 165), (242, 241, 240)


def scan(*areas, noise=4.0, size=240):
    """Picture of areas (colour, noise, left, right), from left to right."""
    rng = np.random.default_rng(3)
    pixels = np.empty((3, size, size))
    for colour, own, left, right in areas:
        block = pixels[:, :, left:right]
        block[...] = np.array(colour)[:, None, None] + rng.normal(0, own or noise, block.shape)
    return np.clip(pixels.round(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.1, 3, 15, 40])
def test_black_is_no_tissue_whatever_its_noise(noise):
    mask, is_all = tissue_mask(scan((GLASS, 0, 0, 80), (PINK, 10, 80, 160), ((2, 2, 3), noise, 160, 240)))
    assert not is_all
    assert mask[:, 90:150].all()
    assert not mask[:, :70].any()
    assert not mask[:, 170:].any()


@pytest.mark.parametrize("grey", [(25, 25, 25), (70, 66, 72), (120, 120, 120), (170, 168, 170)])
def test_grey_is_no_tissue(grey):
    mask, _ = tissue_mask(scan((GLASS, 0, 0, 80), (PINK, 10, 80, 160), (grey, 6, 160, 240)))
    assert mask[:, 90:150].all()
    assert not mask[:, 170:].any()


@pytest.mark.parametrize("glass", [GLASS, (246, 240, 224), (150, 150, 150)])
def test_glass_may_be_tinted_or_dim(glass):
    stained = PINK if glass[0] > 200 else (110, 60, 100)
    mask, is_all = tissue_mask(scan((glass, 0, 0, 120), (stained, 8, 120, 240)))
    assert not is_all
    assert mask[:, 130:].all()
    assert not mask[:, :110].any()


@pytest.mark.parametrize("areas", [[(PINK, 12, 0, 240)], [((228, 195, 215), 8, 0, 120), ((130, 75, 150), 8, 120, 240)]])
def test_without_glass_all_is_tissue(areas):
    mask, is_all = tissue_mask(scan(*areas))
    assert is_all
    assert mask.all()


def test_black_around_a_field_of_tissue():
    mask, is_all = tissue_mask(scan(((1, 1, 1), 5, 0, 60), (PINK, 12, 60, 240)))
    assert is_all
    assert mask[:, 70:].all()
    assert not mask[:, :50].any()


def test_glass_alone_has_none():
    mask, is_all = tissue_mask(scan((GLASS, 0, 0, 200), ((0, 0, 0), 8, 200, 240)))
    assert not is_all
    assert not mask.any()


@pytest.mark.parametrize("tissue", [(243, 235, 240), (240, 228, 237)])
def test_very_pale_tissue(tissue):
    mask, is_all = tissue_mask(scan((GLASS, 0.6, 0, 120), (tissue, 4, 120, 200), ((70, 66, 72), 4, 200, 240)))
    assert not is_all
    assert mask[:, 130:190].mean() > 0.9
    assert not mask[:, :110].any()
    assert not mask[:, 210:].any()


def test_pale_tissue_beside_dark_tissue():
    rng = np.random.default_rng(0)
    picture = scan((GLASS, 1, 0, 140), ((238, 222, 233), 0.1, 140, 220), ((120, 40, 110), 6, 220, 240), noise=1)
    picture[:, :, 140:220] -= np.kron(rng.integers(0, 12, (24, 8)), np.ones((10, 10))).astype(np.uint8)[None]
    picture[1, :, 140:220] -= np.kron(rng.integers(0, 12, (24, 8)), np.ones((10, 10))).astype(np.uint8)
    mask, _ = tissue_mask(picture)
    assert mask[:, 150:].mean() > 0.95
    assert not mask[:, :130].any()


def test_glass_of_two_tints():
    mask, _ = tissue_mask(scan(((244, 244, 244), 1.5, 0, 60), ((243, 240, 232), 1.5, 60, 180), (PINK, 10, 180, 240)))
    assert mask[:, 190:].all()
    assert not mask[:, :170].any()


def test_tinted_glass_alone_has_none():
    mask, is_all = tissue_mask(scan(((235, 230, 220), 3, 0, 240)))
    assert not is_all
    assert not mask.any()
