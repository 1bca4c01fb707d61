"""Which table a prediction is compared with where none is named."""

from __future__ import annotations

import logging

import anndata as ad
import pytest

import ragst_sd as rg


@pytest.fixture
def renamed(predicted):
    """Its counts under a name of their own."""
    predicted.tables["visium"] = predicted.tables["table"]
    del predicted.tables["table"]
    return predicted


@pytest.fixture
def twice(predicted):
    """With the same counts under two names."""
    predicted.tables["raw"] = predicted.tables["table"].copy()
    return predicted


def drawn(sdata, genes="EPCAM", **kwargs):
    return list(rg.pl.prediction(sdata, genes=genes, show=False, return_ax=True, **kwargs)["EPCAM"])


def test_the_only_measured_table_of_the_shapes_is_taken(renamed):
    named = rg.tl.evaluate(renamed, truth_key="visium")
    assert rg.tl.evaluate(renamed).equals(named)
    assert rg.get.risk_coverage(renamed).equals(rg.get.risk_coverage(renamed, truth_key="visium"))
    assert drawn(renamed) == ["measured", "predicted", "difference"]
    assert drawn(renamed, truth_key=False) == ["predicted"]


def test_tables_without_genes_and_of_other_shapes_are_none(renamed, sections):
    renamed.tables["empty"] = renamed.tables["visium"][:, []].copy()
    other = sections["donor1"]
    renamed.shapes["elsewhere"] = other.shapes["spots"]
    table = other.tables["table"].copy()
    table.obs["region"] = "elsewhere"
    table.uns["spatialdata_attrs"]["region"] = "elsewhere"
    table.obs["region"] = table.obs["region"].astype("category")
    renamed.tables["other"] = table
    assert len(rg.tl.evaluate(renamed))


def test_several_are_listed(twice):
    for call in (rg.tl.evaluate, rg.get.risk_coverage, drawn):
        with pytest.raises(
            ValueError, match=r"`truth_key` is needed: 2 measured tables annotate 'spots': 'table', 'raw'"
        ):
            call(twice)
    assert drawn(twice, truth_key=False) == ["predicted"]
    assert len(rg.tl.evaluate(twice, truth_key="raw"))


def test_nothing_measured(renamed):
    del renamed.tables["visium"]
    with pytest.raises(
        ValueError, match="No measured table annotates 'spots', which was predicted; tables: 'predicted'"
    ):
        rg.tl.evaluate(renamed)
    assert drawn(renamed) == ["predicted"]


def test_a_picture_tells_why_a_table_that_nobody_named_is_not_shown(renamed, caplog):
    table = renamed.tables["visium"]
    renamed.tables["visium"] = table[:, table.var_names != "EPCAM"].copy()
    with caplog.at_level(logging.WARNING):
        assert drawn(renamed) == ["predicted"]
    assert "Nothing measured is shown" in caplog.text
    assert "'EPCAM'" in caplog.text
    with pytest.raises(KeyError, match="EPCAM"):
        drawn(renamed, truth_key="visium")


def test_a_table_of_another_donor_is_no_truth(predicted, sections):
    """Spots of every section are numbered alike."""
    table, other = predicted.tables["predicted"], sections["donor1"].tables["table"].copy()
    with pytest.raises(ValueError, match="`truth` is of donor 'donor1', the prediction of 'donor3'"):
        rg.tl.evaluate(table, truth=other)
    other.obs["donor"] = None
    assert len(rg.tl.evaluate(table, truth=other))


def test_a_given_table_that_was_predicted_is_no_truth(predicted):
    table = predicted.tables["predicted"]
    with pytest.raises(ValueError, match=r"`truth` was predicted by `rg\.tl\.predict`"):
        rg.tl.evaluate(table, truth=table.copy(), unit="log1p_cp10k")


def test_names_that_two_sections_share_find_no_spot(predicted, sections):
    tables = [predicted.tables["table"], sections["donor1"].tables["table"]]
    with pytest.raises(ValueError, match=r"names of spots of a table are duplicated.*take one section"):
        rg.tl.evaluate(predicted.tables["predicted"], truth=ad.concat(tables))
