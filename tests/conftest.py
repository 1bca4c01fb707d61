"""Small sections built in code, shared by the tests of the rim."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
# Most objects are modules and tests, which stay: looking through them as often as Python does takes a tenth of the time.
gc.set_threshold(50_000, 20, 20)

TEST_DATA = "RAGST_SD_TEST_DATA"


def pytest_configure(config):
    """Workers that each start as many threads as there are cores are slower than one alone."""
    if config.getoption("numprocesses", None):
        # Set here, for the workers to inherit: there, plugins of other packages import numpy before any conftest is read.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("NUMBA_NUM_THREADS", "1")


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


class ColourEncoder:
    """Mean and spread of each channel: enough to tell tissues apart, and fast."""

    name = "colour"

    def __call__(self, tiles):
        import torch

        tiles = tiles.float()
        return torch.cat([tiles.mean(dim=(2, 3)), tiles.std(dim=(2, 3))], dim=1)


EMBED = {
    "model": ColourEncoder(),
    "tile_px": 32,
    "mpp": 2.0,
    "context": (1, 2.5),
    "key_added": "X_colour",
    "progress": False,
}


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real sections; tests that need it are skipped where it is absent."""
    folder = os.environ.get(TEST_DATA)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{TEST_DATA} is not set: no real sections")
    return Path(folder)


@pytest.fixture(scope="session")
def embed() -> dict:
    """Arguments of `rg.pp.embed_tiles` with which the sections below are embedded."""
    return dict(EMBED)


def make_sections(n_donors: int = 3, **kwargs):
    import ragst_sd as rg

    options = {"n_genes": 260, "image_px": 700, "mpp": 1.0, "rng": 0} | kwargs
    sections = rg.datasets.synthetic(n_donors=n_donors, **options)
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, **EMBED)
    return sections


@pytest.fixture(scope="session")
def _sections():
    return make_sections()


@pytest.fixture(scope="session")
def _reference(_sections):
    import ragst_sd as rg

    return rg.tl.build_reference({name: _sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")


@pytest.fixture(scope="session")
def _fitted(_reference):
    import ragst_sd as rg

    fitted = _reference.copy()
    rg.tl.fit(fitted, method="knn", n_neighbors=10)
    return fitted


@pytest.fixture(scope="session")
def _fitted_store(_fitted, tmp_path_factory):
    import ragst_sd as rg

    path = tmp_path_factory.mktemp("fitted") / "r.zarr.zip"
    rg.io.write_reference(_fitted, path)
    return path


@pytest.fixture(scope="session")
def _predicted(_sections, _fitted):
    import ragst_sd as rg

    return rg.tl.predict(_sections["donor3"], _fitted, inplace=False)


@pytest.fixture
def sections(_sections):
    """Three embedded sections of three donors; every test gets its own copy."""
    from .sections import copied

    return {name: copied(sdata) for name, sdata in _sections.items()}


@pytest.fixture
def query(request, _sections):
    """The section of the third donor; the very one of `sections` for a test that takes both."""
    from .sections import copied

    if "sections" in request.fixturenames:
        return request.getfixturevalue("sections")["donor3"]
    return copied(_sections["donor3"])


@pytest.fixture
def reference(_reference):
    """Unfitted reference of the first two donors."""
    return _reference.copy()


@pytest.fixture
def fitted(_fitted):
    """The same reference, fitted with knn."""
    return _fitted.copy()


@pytest.fixture
def predicted(query, _predicted):
    """The query with its predicted table."""
    query.tables["predicted"] = _predicted.copy()
    return query


@pytest.fixture(scope="session")
def quick():
    """Options with which a method that trains is fitted in a second."""
    from ragst_sd.retrieval.methods import METHODS

    small = {"max_steps": 6, "n_seeds": 2, "n_train_genes": 60}
    return lambda method: {
        name: value for name, value in small.items() if name in METHODS[method].options.__dataclass_fields__
    }


@pytest.fixture
def rng():
    return np.random.default_rng(0)
