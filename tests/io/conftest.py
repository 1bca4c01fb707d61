"""Sections in the layouts of real instruments, written once per run and read anew for every test; a deposited one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from . import deposits, layouts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


def _read_visium(path: Path, name: str) -> SpatialData:
    from spatialdata_io import visium

    return visium(path / "outs", dataset_id=name, fullres_image_file=path / "he.tif")


def _read_visium_hd(path: Path, name: str) -> SpatialData:
    from spatialdata_io import visium_hd

    return visium_hd(path, dataset_id=name, load_segmentations_only=False)


def _read_visium_hd_cells(path: Path, name: str) -> SpatialData:
    from spatialdata_io import visium_hd

    return visium_hd(path, dataset_id=name, load_segmentations_only=False, bin_size=layouts.HD_BIN_UM)


def _read_xenium_by_default(path: Path, name: str) -> SpatialData:
    from spatialdata_io import xenium

    return xenium(path, transcripts=False)


def _read_xenium(path: Path, name: str) -> SpatialData:
    from spatialdata_io import xenium

    return xenium(path, transcripts=False, cells_as_circles=True)


def _read_st(path: Path, name: str) -> SpatialData:
    from ragst_sd.io import read_st

    return read_st(
        path / "counts.tsv.gz",
        path / "he.jpg",
        coordinates=path / "selection.tsv",
        sample=name,
        um_between_centers=layouts.ST_PITCH_UM,
    )


_LAYOUTS = {
    "st": (layouts.write_st, _read_st),
    "visium": (layouts.write_visium, _read_visium),
    "visium_hd": (layouts.write_visium_hd, _read_visium_hd),
    "visium_hd_cells": (layouts.write_visium_hd_cells, _read_visium_hd_cells),
    "xenium_by_default": (layouts.write_xenium, _read_xenium_by_default),
    "xenium": (layouts.write_xenium, _read_xenium),
}


@pytest.fixture(scope="session")
def section_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Folder of a section, by layout and seed."""
    root, written = tmp_path_factory.mktemp("layouts"), {}

    def files(layout: str, seed: int) -> Path:
        if (layout, seed) not in written:
            written[layout, seed] = _LAYOUTS[layout][0](root / f"{layout}{seed}", seed=seed)
        return written[layout, seed]

    return files


@pytest.fixture
def section(section_files: Callable[[str, int], Path]) -> Callable[[str, int], SpatialData]:
    """A section as spatialdata-io reads it, named `s<seed>` where the reader takes a name."""

    def read(layout: str, seed: int) -> SpatialData:
        return _LAYOUTS[layout][1](section_files(layout, seed), f"s{seed}")

    return read


@pytest.fixture
def picture() -> np.ndarray:
    """Pixels, y x c."""
    return deposits.make_picture()


@pytest.fixture
def picture_path(picture: np.ndarray, tmp_path: Path) -> Path:
    """The picture as a png."""
    path = tmp_path / "section.png"
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def positions() -> pd.DataFrame:
    """Spot positions in the layout of HER2+ ST."""
    return deposits.make_positions()


@pytest.fixture
def counts(positions: pd.DataFrame) -> pd.DataFrame:
    """Spots x genes."""
    return deposits.make_counts(positions)


@pytest.fixture
def adata(counts: pd.DataFrame, positions: pd.DataFrame) -> AnnData:
    """The deposited section as an AnnData."""
    return deposits.make_adata(counts, positions)
