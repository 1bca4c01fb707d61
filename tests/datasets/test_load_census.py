"""`rg.datasets.load_census`, against a module with the functions of cellxgene-census that it calls."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

OBS = ["cell_type", "assay", "donor_id", "dataset_id", "disease", "tissue"]


@pytest.fixture
def census(monkeypatch):
    """120 made cells; calls are kept."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(dict.fromkeys(OBS, "x"), index=range(120))
    obs["cell_type"] = np.repeat(["T cell", "B cell", "mast cell"], [80, 30, 10])
    obs["dataset_id"] = np.where(np.arange(120) < 60, "first", "second")
    obs["soma_joinid"] = np.arange(120) + 1000
    var = pd.DataFrame({"feature_id": [f"ENSG{i:011d}" for i in range(5)], "feature_name": list("ABCDE")})
    counts = rng.poisson(3, (120, 5)).astype(np.float32)
    calls = {}

    @contextmanager
    def open_soma(*, census_version):
        calls["version"] = census_version
        yield "open"
        calls["closed"] = True

    def get_obs(handle, organism, *, value_filter, column_names):
        calls.update(organism=organism, value_filter=value_filter)
        found = obs if "nothing" not in value_filter else obs.iloc[:0]
        return found[column_names]

    def get_anndata(handle, organism, *, obs_coords, obs_column_names, var_column_names):
        rows = obs["soma_joinid"].isin(obs_coords).to_numpy()
        part = obs.loc[rows, [*obs_column_names, "soma_joinid"]].copy()
        return ad.AnnData(
            counts[rows], obs=part.set_axis(part.index.astype(str)), var=var[var_column_names].set_axis(list("01234"))
        )

    fake = SimpleNamespace(open_soma=open_soma, get_obs=get_obs, get_anndata=get_anndata)
    monkeypatch.setitem(sys.modules, "cellxgene_census", fake)
    return calls


def test_draws_so_many_cells_of_each_type(census):
    cells = rg.datasets.load_census("census_human_breast", max_cells_per_type=25)
    assert cells.obs["cell_type"].value_counts().to_dict() == {"T cell": 25, "B cell": 25, "mast cell": 10}
    assert list(cells.obs) == OBS
    assert list(cells.var_names) == [f"ENSG{i:011d}" for i in range(5)]
    assert list(cells.var["feature_name"]) == list("ABCDE")
    entry = rg.datasets.catalog().loc["census_human_breast"]
    assert census["version"] == entry["accession"].removeprefix("Census ")
    assert census["organism"] == "Homo sapiens"
    assert census["value_filter"] == entry["query"]
    assert census["closed"]
    source = cells.uns["ragst"]["source"]
    assert source["license"] == "CC-BY-4.0"
    assert list(source["dataset_ids"]) == ["first", "second"]


def test_the_draw_is_repeatable(census):
    first, again, other = (
        rg.datasets.load_census("census_human_breast", max_cells_per_type=25, rng=i) for i in (0, 0, 1)
    )
    assert list(first.obs_names) == list(again.obs_names)
    assert list(first.obs_names) != list(other.obs_names)


def test_conditions_are_added(census):
    rg.datasets.load_census("census_human_breast", value_filter="disease == 'normal'", census_version="2024-07-01")
    assert census["value_filter"].endswith(") and (disease == 'normal')")
    assert census["version"] == "2024-07-01"
    with pytest.raises(ValueError, match="No cell of Census"):
        rg.datasets.load_census("census_human_breast", value_filter="nothing")


def test_bad_input(census):
    with pytest.raises(KeyError, match="census_human_breast"):
        rg.datasets.load_census("census_human_brest")
    with pytest.raises(
        ValueError, match=r"`rg\.datasets\.load\('her2st'\)` loads it, and not `rg\.datasets\.load_census`"
    ):
        rg.datasets.load_census("her2st")
    with pytest.raises(ValueError, match="`max_cells_per_type` is 0"):
        rg.datasets.load_census("census_human_breast", max_cells_per_type=0)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    with pytest.raises(ImportError, match=r'pip install "ragst-sd\[census\]"'):
        rg.datasets.load_census("census_human_breast")
