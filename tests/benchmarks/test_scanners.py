"""`benchmarks/scanners.py` and `benchmarks/cells.py`: what they do to pictures and to counts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from skimage.color import rgb2hed


@pytest.fixture(scope="module")
def scripts(import_script):
    return {name: import_script(name) for name in ("scanners", "cells")}


def picture(sdata):
    return np.moveaxis(sdata.images["he"]["scale0"]["image"].to_numpy(), 0, -1)


def test_pictures_change_as_they_are_said_to(scripts, sections):
    one = picture(sections["donor1"])
    changed = {name: change(one) for name, change in scripts["scanners"].CHANGES.items()}
    assert np.array_equal(changed["none"], one)
    assert all(pixels.dtype == np.uint8 for pixels in changed.values())
    assert [2 * edge for edge in changed["half the resolution"].shape[:2]] == list(one.shape[:2])
    detail = {name: np.abs(np.diff(pixels.astype(float), axis=0)).mean() for name, pixels in changed.items()}
    assert detail["out of focus (sigma of 1 px)"] < 0.8 * detail["none"]
    assert changed["darker (gamma 1.3)"].mean() < one.mean()
    before, after = (rgb2hed(pixels).mean(axis=(0, 1)) for pixels in (one, changed["haematoxylin x 1.3, eosin x 0.7"]))
    assert after[0] > 1.1 * before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize("how", ["reinhard", "macenko"])
def test_stains_come_nearer_to_the_target(scripts, sections, how):
    script = scripts["scanners"]
    target = picture(sections["donor1"])
    query = script.CHANGES["haematoxylin x 1.3, eosin x 0.7"](target)

    def colour(pixels):
        # Of the amounts of stain, Macenko leaves the sum as it is.
        density = -np.log(np.maximum(pixels, 1) / 255).mean(axis=(0, 1))
        return density / density.sum()

    mended = script.normalized(query, target, how)
    assert mended.shape == query.shape
    assert np.abs(colour(mended) - colour(target)).sum() < 0.6 * np.abs(colour(query) - colour(target)).sum()


def test_counts_are_thinned_and_summed(scripts, rng):
    counts = sp.csr_matrix(rng.poisson(2.0, (200, 30)).astype(np.float32))
    thin = scripts["cells"].thinned(counts, 15, rng)
    assert thin.sum() / 200 == pytest.approx(15, rel=0.1)
    assert (thin > counts).nnz == 0
    assert (scripts["cells"].thinned(counts, None, rng) != counts).nnz == 0
    xy = rng.uniform(size=(200, 2))
    summed = scripts["cells"].summed(thin, xy, 4).toarray()
    nearest = np.linalg.norm(xy - xy[7], axis=1).argsort()[:4]
    np.testing.assert_array_equal(summed[7], thin.toarray()[nearest].sum(axis=0))


def test_table_has_a_row_per_change_and_a_column_per_normalisation(scripts):
    lines = [
        {"row": row, "column": column, "Pearson": value, "out of reference": 0.25}
        for row, column, value in (
            ("none", "none", 0.4),
            ("none", "none", 0.5),
            ("none", "other", 0.3),
            ("blur", "none", 0.2),
        )
    ]
    table = scripts["scanners"].markdown(lines, "change").splitlines()
    assert table[0] == "| change | none | other |"
    assert table[2] == "| none | 0.450 (25%) | 0.300 (25%) |"
    assert table[3] == "| blur | 0.200 (25%) |  |"
