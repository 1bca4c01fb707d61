"""Perturbation screens: small made files in the layout of each deposit, from a server of 127.0.0.1."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import ragst_sd as rg
from ragst_sd.datasets import _load_screen
from ragst_sd.datasets._catalog import catalog_entries, catalog_entry
from ragst_sd.datasets._load_screen import SCREEN_LAYOUTS

# Labels and further columns as the deposits have them, and what they become.
DEPOSITS = {
    "adamson_2016_upr_perturb_seq": (
        {"perturbation": ["XBP1_pBA578", "OST4_pDS353", "62(mod)_pBA581", "63(mod)_pBA580", "*", None]},
        ["XBP1", "OST4", "control", "control"],
        "CRISPRi",
    ),
    "nadig_2025_hepg2": (
        {"gene": ["AARS", "non-targeting"] * 3, "perturbation": ["AARS", "control"] * 3, "batch": [1, 2, 3] * 2},
        ["AARS", "control"] * 3,
        "CRISPRi",
    ),
    "nadig_2025_jurkat": (
        {"perturbation": ["control", "ZNF1", "ZNF1"] * 2},
        ["control", "ZNF1", "ZNF1"] * 2,
        "CRISPRi",
    ),
    "norman_2019": (
        {"perturbation": ["CEBPE_SPI1", "SPI1", "control"] * 2, "gemgroup": [1, 1, 2, 2, 3, 3]},
        ["CEBPE+SPI1", "SPI1", "control"] * 2,
        "CRISPRa",
    ),
    "papalexi_2021": (
        {"perturbation": ["STAT1g2", "STAT5Ag4", "control"] * 2, "replicate": ["rep1"] * 3 + ["rep2"] * 3},
        ["STAT1", "STAT5A", "control"] * 2,
        "CRISPRko",
    ),
    "replogle_2022_k562_essential": (
        {"perturbation": ["AAAS", "non-targeting", "H1-2"] * 2, "batch": [1, 2, 3] * 2, "cell_line": ["K562"] * 6},
        ["AAAS", "control", "H1-2"] * 2,
        "CRISPRi",
    ),
    "replogle_2022_rpe1": (
        {"perturbation": ["AAAS", "control"] * 3, "cell_line": ["hTERT-RPE1"] * 6},
        ["AAAS", "control"] * 3,
        "CRISPRi",
    ),
}


def make(columns: dict, copies: int = 1, dense: bool = False) -> ad.AnnData:
    obs = pd.DataFrame({name: list(values) * copies for name, values in columns.items()})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = np.random.default_rng(0).poisson(2.0, (len(obs), 30)).astype("float32")
    adata = ad.AnnData(counts if dense else csr_matrix(counts), obs=obs)
    adata.var_names = [f"GENE{i}" for i in range(30)]
    return adata


@pytest.fixture
def offer(server, cache, monkeypatch, tmp_path):
    """Put a made file in the place of the one that the catalogue names."""

    def add(name: str, adata: ad.AnnData) -> str:
        entry = catalog_entry(name)
        file = entry["files"][0]["name"]
        adata.write_h5ad(tmp_path / "made.h5ad")
        entry["files"] = [server.add(file, (tmp_path / "made.h5ad").read_bytes())]
        monkeypatch.setattr(
            _load_screen, "catalog_entry", lambda asked: entry if asked == name else catalog_entry(asked)
        )
        return name

    return add


def test_every_screen_of_the_catalogue_has_a_layout_and_a_made_file():
    screens = {name for name, entry in catalog_entries().items() if entry["loader"] == "screen"}
    assert screens == set(SCREEN_LAYOUTS) == set(DEPOSITS) == set(rg.datasets.catalog(kind="screen").index)
    assert rg.datasets.catalog(kind="screen")["unverified"].str.contains("license").all()


@pytest.mark.parametrize("name", DEPOSITS)
def test_labels_of_every_deposit(offer, server, name):
    columns, expected, kind = DEPOSITS[name]
    made = make(columns)
    offer(name, made)
    cells = rg.datasets.load_screen(name)
    assert list(cells.obs["perturbation"]) == expected
    entry = catalog_entry(name)
    assert set(cells.obs["context"]) == set(entry["samples"])
    assert [str(one) for one in cells.obs["perturbation_type"]] == [
        "control" if p == "control" else kind for p in expected
    ]
    batch = next((columns[key] for key in ("batch", "gemgroup", "replicate") if key in columns), None)
    assert list(cells.obs["batch"]) == (["one"] * len(expected) if batch is None else [str(one) for one in batch])
    np.testing.assert_array_equal(cells.X.toarray(), made[: len(expected)].X.toarray())
    assert cells.uns["ragst"]["source"]["license"] == "CC-BY-4.0"
    n = len(server.asked)
    rg.datasets.load_screen(name)
    assert len(server.asked) == n


def test_a_reference_is_built_from_it(offer):
    name = offer("papalexi_2021", make(DEPOSITS["papalexi_2021"][0], copies=40))
    cells = rg.datasets.load_screen(name)
    cells = ad.AnnData(np.tile(cells.X.toarray(), (1, 7)), obs=cells.obs)
    reference = rg.tl.build_perturbation_reference(
        cells, embedding={"STAT1": [1, 0], "STAT5A": [0, 1]}, context_key="context", batch_key="batch"
    )
    assert list(reference.obs_names) == ["THP-1:STAT1", "THP-1:STAT5A"]
    assert set(reference.obs["perturbation_type"]) == {"CRISPRko"}


@pytest.mark.parametrize("dense", [True, False])
def test_a_part_of_a_large_screen(offer, dense):
    made = make(DEPOSITS["nadig_2025_hepg2"][0], copies=100, dense=dense)
    name = offer("nadig_2025_hepg2", made)
    cells = rg.datasets.load_screen(name, max_cells=20)
    assert dict(cells.obs["perturbation"].value_counts()) == {"control": 200, "AARS": 20}
    rows = made.obs_names.get_indexer(cells.obs_names)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.asarray(cells.to_df()), made.to_df().iloc[rows])
    again = rg.datasets.load_screen(name, max_cells=20)
    assert list(again.obs_names) == list(cells.obs_names)
    assert list(rg.datasets.load_screen(name, max_cells=20, rng=1).obs_names) != list(cells.obs_names)


def test_own_file_mirror_and_folder(server, cache, tmp_path, monkeypatch):
    made = make(DEPOSITS["norman_2019"][0])
    made.write_h5ad(tmp_path / "norman.h5ad")
    assert rg.datasets.load_screen("norman_2019", path=tmp_path / "norman.h5ad").n_obs == 6
    file = catalog_entry("norman_2019")["files"][0]["name"]
    (tmp_path / "mirror" / "norman_2019").mkdir(parents=True)
    made.write_h5ad(tmp_path / "mirror" / "norman_2019" / file)
    monkeypatch.setenv("RAGST_SD_DATA_DIR", str(tmp_path / "mirror"))
    assert rg.datasets.load_screen("norman_2019").n_obs == 6
    assert rg.datasets.load_screen("norman_2019", path=tmp_path / "mirror" / "norman_2019").n_obs == 6
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rg.datasets.load_screen("norman_2019", path=tmp_path / "nowhere.h5ad")
    assert server.asked == [] and not cache.exists()


def test_columns_of_pertpy(tmp_path):
    """`perturbation` says only whether, `gene_target` what, as pertpy's Papalexi has it; several lines keep their names."""
    adata = make(
        {
            "perturbation": ["Perturbed", "NT", "Perturbed"] * 2,
            "gene_target": ["STAT1", "NT", "JAK2"] * 2,
            "cell_line": ["THP-1", "U937"] * 3,
        }
    )
    adata.write_h5ad(tmp_path / "one.h5ad")
    cells = rg.datasets.load_screen("papalexi_2021", path=tmp_path / "one.h5ad")
    assert list(cells.obs["perturbation"]) == ["STAT1", "control", "JAK2"] * 2
    assert list(cells.obs["context"]) == ["THP-1", "U937"] * 3
    del adata.obs["gene_target"]
    adata.obs["gene"] = ["STAT1", "NT", "JAK2"] * 2
    adata.write_h5ad(tmp_path / "one.h5ad")
    cells = rg.datasets.load_screen("papalexi_2021", path=tmp_path / "one.h5ad")
    assert list(cells.obs["perturbation"]) == ["STAT1", "control", "JAK2"] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"guide": ["a"] * 6}, "no column of perturbations.*it has 'guide'"),
        ({"perturbation": ["Perturbed", "NT"] * 3}, "tells whether a cell was perturbed, and no column tells of which"),
        ({"perturbation": ["A", "B"] * 3}, "No cell of `obs\\['perturbation'\\]` is a control; it has 'A', 'B'"),
    ],
)
def test_files_that_are_no_screens(tmp_path, columns, message):
    make(columns).write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(ValueError, match=message):
        rg.datasets.load_screen("norman_2019", path=tmp_path / "one.h5ad")


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"loads it, and not `rg\.datasets\.load_screen`"):
        rg.datasets.load_screen("her2st")
    with pytest.raises(ValueError, match="load_screen"):
        rg.datasets.load("norman_2019")
    with pytest.raises(KeyError, match=r"Did you mean .*norman_2019"):
        rg.datasets.load_screen("norman_2018")
    with pytest.raises(ValueError, match="`max_cells` is 0"):
        rg.datasets.load_screen("norman_2019", max_cells=0)
    (tmp_path / "one.h5ad").write_bytes(b"not an h5ad")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        rg.datasets.load_screen("norman_2019", path=tmp_path / "one.h5ad")
