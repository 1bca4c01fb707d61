"""What `status: tested` of the catalogue means: `rg.datasets.load(name)` reads the section from files laid out as listed.

Each entry is taken as it ships. Its files are small made ones in the owner's layout, served on 127.0.0.1 under the path of
their address; sizes and checksums are those of the made files, everything else is the catalogue's.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd._elements import centers_in_pixels
from ragst_sd.datasets import _load
from ragst_sd.datasets._catalog import catalog_entries

from .catalog_schema import LOADERS
from .deposited import MADE_MPP, Deposits

# What `rg.datasets.load` reads. Queries of the Census and screens have functions of their own: test_load_census.py, test_load_screen.py.
FILE_LAYOUTS = set(LOADERS) - {"census", "screen"}
TESTED = sorted(
    name
    for name, entry in catalog_entries().items()
    if entry["status"] == "tested" and entry["loader"] not in ("census", "screen")
)


@pytest.fixture(scope="session")
def deposits(tmp_path_factory):
    return Deposits(tmp_path_factory.mktemp("deposits"))


@pytest.fixture
def served(server, cache, deposits, tmp_path, monkeypatch):
    """An entry whose section lies on the server; gives the entry and the section's name."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))

    def put(name: str) -> tuple[dict, str]:
        entry = catalog_entries()[name]
        sample = next(iter(entry["samples"]))
        for file, content in deposits.files(entry, sample).items():
            listed = next(one for one in entry["files"] if one["name"] == file)
            address = urlsplit(listed["url"])
            listed.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            if address.netloc == "huggingface.co":
                # The hub's own client asks for these: the server answers at the hub's paths.
                server.files[f"/{file}"] = content
            else:
                listed["url"] = f"{server.url}/{address.netloc}{address.path}"
                server.files[f"/{address.netloc}{address.path}"] = content
        monkeypatch.setattr(_load, "catalog_entry", lambda asked: {name: entry}[asked])
        return entry, sample

    return put


def darkness_follows_expression(sdata) -> float:
    """Correlation of brightness around a spot with the share of the genes of cellular tissue."""
    table = sdata["table"]
    centers = centers_in_pixels(sdata, shapes_key="spots", image_key="he", coordinate_system="global").xy
    image = sdata["he"] if hasattr(sdata["he"], "data") else sdata["he"]["scale0"]["image"]
    pixels = np.asarray(image.data)
    blocks = [pixels[:, max(y - 12, 0) : y + 13, max(x - 12, 0) : x + 13].mean() for x, y in centers.astype(int)]
    counts = np.asarray(table.X.sum(1)).ravel()
    return float(np.corrcoef(blocks, np.asarray(table.X[:, ::3].sum(1)).ravel() / counts)[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_a_section_of_every_tested_entry_is_loaded(name, served, server):
    entry, sample = served(name)
    sdata = rg.datasets.load(name, samples=sample)[sample]
    assert server.asked, "nothing was downloaded"
    if entry["loader"] == "slide":
        assert sdata.attrs["ragst"]["image_mpp"]["he"] == entry["image_mpp"]
        source = sdata.attrs["ragst"]["source"]
    else:
        table = sdata["table"]
        assert table.n_obs > 50
        assert set(table.obs["sample"]) == {sample}
        assert set(table.obs["donor"]) == {entry["samples"][sample]["donor"]}
        source = table.uns["ragst"]["source"]
    if entry["loader"] == "hest":
        # A section names its own study, and the terms of the collection.
        assert (source["license"], source["citation"][:20]) == ("CC BY-NC-SA 4.0 (HEST-1k)", "Atlas of drawn tissu")
    else:
        assert source["license"] == entry["license"]
        assert str(entry["citation"].get("doi") or entry["citation"]["url"]) in source["citation"]
    if entry["loader"] == "h5ad":
        assert set(sdata.tables) == {"table"}
        assert not sdata.images
    elif entry["loader"] != "slide":
        assert (set(sdata.images), set(sdata.shapes), set(sdata.tables)) == ({"he"}, {"spots"}, {"table"})
        measured = entry["um_between_centers"] is not None or entry["loader"] not in ("st_tsv", "st_h5ad")
        overview = 2 if entry["loader"] == "visium" and "image" not in entry["samples"][sample]["files"] else 1
        stated = sdata.attrs.get("ragst", {}).get("image_mpp", {}).get("he")
        expected = MADE_MPP[entry["loader"]] * overview if measured else entry["image_mpp"]
        assert stated == (expected if expected is None else pytest.approx(expected, rel=0.03))
        assert darkness_follows_expression(sdata) < -0.5


def test_every_layout_of_files_and_at_least_twelve_entries_are_tested():
    entries = catalog_entries()
    assert {entries[name]["loader"] for name in TESTED} == FILE_LAYOUTS
    assert len(TESTED) >= 12


def test_what_has_a_loader_of_files_is_tested_and_nothing_else():
    entries = catalog_entries()
    assert {name for name, entry in entries.items() if entry["loader"] in FILE_LAYOUTS} == set(TESTED)
