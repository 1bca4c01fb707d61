"""What tests of several pictures share: intervals written by hand, and pictures to compare with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

BASELINE = Path(__file__).parent / "baseline"
LEVELS = np.array([0.5, 0.8, 0.9, 0.95])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def with_intervals():
    """Write intervals into a predicted table, as `rg.tl.predict(..., intervals=level)` does; the scale is returned."""

    def write(table, *, unit="donor", level=0.9):
        rng = np.random.default_rng(1)
        prediction = np.asarray(table.X, dtype=np.float32)
        quantiles = np.cumsum(rng.uniform(0.3, 0.8, (table.n_vars, len(LEVELS))), axis=1).astype(np.float32)
        scale = rng.uniform(0.3, 1.0, table.shape).astype(np.float32)
        half = quantiles[:, int(np.argmin(abs(LEVELS - level)))] * scale
        table.layers["lower"] = np.maximum(prediction - half, np.minimum(prediction, 0))
        table.layers["upper"] = prediction + half
        table.varm["interval_quantiles"] = quantiles
        # As strings come back from a store.
        units = np.array([unit] * len(LEVELS), dtype=np.dtypes.StringDType())
        about = {"interval_level": level, "interval_unit": unit, "interval_levels": LEVELS, "interval_units": units}
        table.uns["retrieval"] |= about
        return scale

    return write


@pytest.fixture
def distance_to_baseline(tmp_path):
    """How far a figure is from a stored picture, in root mean squared grey levels of 256.

    Without letters, which every matplotlib draws in its own way; the tests of artists read them.
    `RAGST_SD_NEW_BASELINES=1` stores the first figure of a test anew.
    """
    from matplotlib.testing.compare import compare_images
    from matplotlib.text import Text

    renewed = set() if os.environ.get("RAGST_SD_NEW_BASELINES") else None

    def compare(figure, name, *, dpi=40):
        made, stored = tmp_path / f"{name}.png", BASELINE / f"{name}.png"
        for text in figure.findobj(Text):
            text.set_visible(False)
        figure.savefig(made, dpi=dpi)
        if renewed is not None and name not in renewed:
            shutil.copy(made, stored)
            renewed.add(name)
        difference = compare_images(str(stored), str(made), tol=0, in_decorator=True)
        return 0.0 if difference is None else difference["rms"]

    return compare
