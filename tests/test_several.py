"""Functions of one section that take a list or a mapping of them."""

from __future__ import annotations

import traceback

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import ragst_sd as rg
from ragst_sd._several import over_sections

SMALL = {"image_key": "he", "tile_px": 64, "model": "texture", "context": (1,), "progress": False}


@over_sections(not_with="store")
def looked_at(sdata, *, times=1, store=None, bare=False):
    """Said of one section: how many spots it has."""
    n = sdata.tables["table"].n_obs * times
    return {"n": n} if bare else pd.DataFrame({"sample": ["a"], "n": [n]})


def test_one_section_is_left_alone(sections):
    assert list(looked_at(sections["donor1"]).columns) == ["sample", "n"]
    assert looked_at.__doc__.startswith("Said of one section")


def test_frames_come_back_as_one(sections):
    frame = looked_at(sections, times=2)
    assert list(frame.columns) == ["section", "sample", "n"]
    assert list(frame["section"]) == list(sections)
    assert list(frame["n"]) == [2 * sdata.tables["table"].n_obs for sdata in sections.values()]
    assert list(looked_at(sections, bare=True)) == list(sections)


def test_members_of_a_list_are_named_by_their_sample(sections):
    members = list(sections.values())
    for i, sdata in enumerate(members[:-1]):
        sdata.tables["table"].obs["sample"] = f"biopsy{i}"
    members[-1].tables["table"].obs.drop(columns="sample", errors="ignore", inplace=True)
    named = [f"biopsy{i}" for i in range(len(members) - 1)]
    assert list(looked_at(members)["section"]) == [*named, "sample1"]
    assert list(looked_at(tuple(members[:1]))["section"]) == ["biopsy0"]
    with pytest.raises(ValueError, match=r"names in `obs\['sample'\]` are duplicated, for example 'biopsy0'"):
        looked_at([members[0], members[0]])


def test_what_is_no_section_is_refused_before_anything_is_done(sections):
    with pytest.raises(ValueError, match="`sdata` is empty"):
        looked_at([])
    done = dict(sections) | {"scan": "slide.svs"}
    with pytest.raises(TypeError, match=r"`sdata\['scan'\]` is a str; it must be SpatialData or AnnData"):
        rg.pp.embed_tiles(done, **SMALL)
    assert not any("X_texture" in sdata.tables["table"].obsm for sdata in sections.values())
    with pytest.raises(ValueError, match="`store` belongs to one section"):
        looked_at(sections, store="here.zarr")


def test_an_error_tells_its_section_and_those_before(sections):
    sections["bad"] = SpatialData()
    with pytest.raises(KeyError) as caught:
        looked_at(sections)
    told = "".join(traceback.format_exception(caught.value))
    assert "Section 'bad'; done before: 'donor1', 'donor2'" in told


def test_sections_are_embedded_as_one_by_one(sections):
    copies = {name: sdata.tables["table"].copy() for name, sdata in sections.items()}
    assert rg.pp.embed_tiles(sections, **SMALL) is None
    written = {name: sdata.tables["table"].obsm["X_texture"] for name, sdata in sections.items()}
    tables = rg.pp.embed_tiles(list(sections.values()), **SMALL, inplace=False, overwrite=True)
    assert len(tables) == len(sections)
    for (name, embedding), table in zip(written.items(), tables.values(), strict=True):
        np.testing.assert_array_equal(table.obsm["X_texture"], embedding)
        assert len(embedding) == copies[name].n_obs


def test_grids_are_laid_on_every_section(sections):
    rg.pp.tile_grid(sections, tile_px=64, mpp=1.0, tissue=False)
    assert all(len(sdata.shapes["tiles"]) == sdata.tables["tiles_table"].n_obs for sdata in sections.values())


def test_several_sections_are_scored_apart(predicted):
    one = rg.tl.evaluate(predicted, metrics=["pearson", "noise_ceiling"])
    both = rg.tl.evaluate({"a": predicted, "b": predicted}, metrics=["pearson", "noise_ceiling"])
    assert list(both.columns) == ["section", "gene", "sample", "metric", "value"]
    for name in ("a", "b"):
        own = both[both["section"] == name].drop(columns="section").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, one)
    with pytest.raises(ValueError, match="`truth` belongs to one section"):
        rg.tl.evaluate([predicted], truth=predicted.tables["table"])
