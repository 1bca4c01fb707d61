"""`benchmarks/out_of_reference.py`: pictures are matched in resolution and stain."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2hed


def picture(sdata):
    return np.moveaxis(sdata.images["he"]["scale0"]["image"].to_numpy(), 0, -1)


def test_restained_tissue_has_the_moments_asked_for(script, sections):
    one, other = (picture(sections[name]) for name in ("donor1", "donor2"))
    target = script.moments([other])
    mean, spread = script.tissue_moments(rgb2hed(one), one)
    restained = script.restain(one, target)
    density = -np.log10(np.maximum(one, 1) / 255).mean(axis=2)
    stains = rgb2hed(restained)[density > script.TISSUE]
    # What leaves the range of 8 bits is cut off, so the match is close, not exact.
    assert (np.abs(stains.mean(axis=0) - target[0]) < 0.3 * np.abs(mean - target[0]) + 0.003).all()
    assert (np.abs(stains.std(axis=0) / target[1] - 1) < 0.3).all()
    assert restained.shape == one.shape
    assert spread.min() > 0


def test_shares_of_features_add_up(script, rng):
    from ragst_sd.retrieval.appearance import fit_appearance, section_means

    sections = np.repeat([0, 1, 2], 100)
    embedding = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 12)) + rng.normal(size=(3, 12))[sections]
    embedding[:, 4] = 3.0
    parameters, means = fit_appearance(embedding, sections), section_means(embedding, sections)
    queries = embedding[:50].copy()
    queries[:, 2] += 30 * parameters["scale"][2]
    share = script.feature_shares(queries, means, parameters)
    assert share.sum() == pytest.approx(1)
    assert share.argmax() == 2
    assert share[4] == 0


def test_every_texture_feature_has_a_kind(script):
    from ragst_sd.image.texture import texture_names

    kinds = [script.kind(name) for name in texture_names()]
    assert set(kinds) == {"amount of stain", "detail to 1 µm", "coarser detail"}
    assert script.kind("band_eosin_1px") == "detail to 1 µm"
    assert script.kind("band_eosin_8px") == "coarser detail"
    assert script.kind("darker0.1_spread_haematoxylin_16px") == "amount of stain"
