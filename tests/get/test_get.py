"""`rg.get.neighbors` and `rg.get.explain`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.methods import METHODS

from ..methods import marked


def test_neighbors_are_ranked_and_complete(predicted):
    frame = rg.get.neighbors(predicted)
    assert list(frame.columns) == [
        "reference", "donor", "weight", "sample", "tissue", "technology", "x_um", "y_um", "license", "citation",
        "distance", "query", "rank",
    ]  # fmt: skip
    table = predicted.tables["predicted"]
    assert len(frame) == (table.obsm["retrieval_weights"] > 0).sum()
    for _, one in frame.groupby("query"):
        assert list(one["rank"]) == list(range(1, len(one) + 1))
        assert one["weight"].is_monotonic_decreasing
        assert one["weight"].sum() == pytest.approx(1, abs=1e-5)
    assert list(frame["query"].unique()) == list(table.obs_names)
    assert set(frame["license"]) == {"unknown"}


def test_frames_show_donor_and_weight_on_a_narrow_screen(predicted, fitted, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = predicted.tables["predicted"]
    for frame in (
        rg.get.neighbors(predicted),
        rg.get.explain(predicted, fitted, obs_names=table.obs_names[3], genes=table.var_names[5]),
    ):
        with pd.option_context("display.max_columns", 0, "display.width", 80):
            names = repr(frame).splitlines()[0].split()
        assert {"reference", "donor", "weight", "..."} <= set(names)
        assert "contribution" in names or "query" in names


def test_neighbors_name_their_source(sections, query):
    sources = {"donor1": {"license": "CC-BY-4.0", "citation": "A"}, "donor2": {"license": "MIT", "citation": "B"}}
    reference = rg.tl.build_reference(
        {name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour", sources=sources
    )
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    frame = rg.get.neighbors(rg.tl.predict(query, reference, inplace=False))
    assert set(zip(frame.donor, frame.license, frame.citation, strict=True)) == {
        ("donor1", "CC-BY-4.0", "A"),
        ("donor2", "MIT", "B"),
    }


def test_positions_are_those_of_the_cited_spots(sections, predicted):
    line = rg.get.neighbors(predicted).iloc[0]
    source = sections[line["sample"]].tables["table"]
    xy = source.obsm["spatial"][source.obs_names.get_loc(line["reference"].split(":", 1)[1])]
    np.testing.assert_allclose([line["x_um"], line["y_um"]], xy * 1.0)


@pytest.mark.parametrize("method", marked(METHODS))
def test_contributions_add_up_and_values_are_measured(sections, query, reference, method, quick):
    rg.tl.fit(reference, method=method, n_neighbors=10, options=quick(method))
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    spots, genes = list(table.obs_names[[0, 4]]), list(table.var_names[[1, 9]])
    frame = rg.get.explain(query, reference, obs_names=spots, genes=genes)
    for (spot, gene), part in frame.groupby(["query", "gene"]):
        assert part["contribution"].sum() == pytest.approx(table[spot, gene].X.item(), abs=1e-5)
        assert list(part["reference"])[-1] in ("adjustment", "regression")
        if not METHODS[method].cites:
            rest = "adjustment" if METHODS[method].regress is None else "regression"
            assert list(dict.fromkeys(part["reference"])) == ["reference mean", rest]
            continue
        beside = part["reference"].isin(["reference mean", "regression", "adjustment"])
        for _, line in part[~beside].iterrows():
            source = sections[line["sample"]].tables["table"]
            assert set(source.obs["donor"]) == {line["donor"]}
            counts = source.X[source.obs_names.get_loc(line["reference"].split(":", 1)[1])].toarray().ravel()
            value = np.log1p(counts[source.var_names.get_loc(gene)] / counts.sum() * 1e4)
            assert line["value"] == pytest.approx(value, abs=1e-5)
            rows = reference.X[:, reference.var_names.get_loc(gene)].toarray().ravel()
            own = rows[(reference.obs["sample"] == line["sample"]).to_numpy()].mean()
            assert line["correction"] == pytest.approx(rows.mean() - own, abs=1e-5)
            brought = line["weight"] * (value + line["correction"])
            assert line["contribution"] == pytest.approx(brought, abs=1e-5)
        evidence = part["contribution"][~part["reference"].isin(["regression", "adjustment"])].sum()
        assert evidence == pytest.approx(table[spot, gene].layers["evidence"].item(), abs=1e-5)
    assert len(frame.groupby(["query", "gene"])) == 4


def test_own_donor_in_the_reference_is_taken_off_the_level(sections, query):
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    spot, gene = table.obs_names[0], table.var_names[3]
    part = rg.get.explain(query, reference, obs_names=spot, genes=gene)
    assert part["contribution"].sum() == pytest.approx(table[spot, gene].X.item(), abs=1e-5)
    others = (reference.obs["donor"] != "donor3").to_numpy()
    values = reference.X[:, reference.var_names.get_loc(gene)].toarray().ravel()
    for _, line in part.iloc[:-1].iterrows():
        own = values[(reference.obs["sample"] == line["sample"]).to_numpy()].mean()
        assert line["correction"] == pytest.approx(values[others].mean() - own, abs=1e-5)


def test_everything_at_once(sections, embed):
    """All spots and some genes of a query of two donors, a spot off the image and a gene that one panel lacks."""
    from shapely.affinity import translate

    query, genes = sections["donor3"], sections["donor1"].tables["table"].var_names
    shapes = query.shapes["spots"].copy()
    shapes.loc[shapes.index[0], "geometry"] = translate(shapes.geometry.iloc[0], -5000, 0)
    query.shapes["spots"] = shapes
    rg.pp.embed_tiles(query, **embed)
    query.tables["table"].obs["donor"] = np.where(np.arange(query.tables["table"].n_obs) % 2, "donor1", "new")
    sections["donor2"].tables["table"] = sections["donor2"].tables["table"][:, genes != genes[4]].copy()
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    chosen = [genes[4], genes[0], genes[9]]
    frame = rg.get.explain(query, reference, obs_names=list(table.obs_names), genes=chosen)
    order = frame[["query", "gene"]].drop_duplicates()
    assert list(map(tuple, order.to_numpy())) == [(spot, gene) for spot in table.obs_names for gene in chosen]
    assert (frame.groupby(["query", "gene"], sort=False)["reference"].last() == "adjustment").all()
    sums = frame.groupby(["query", "gene"], sort=False)["contribution"].apply(lambda part: part.sum(skipna=False))
    stored = table[:, chosen].X.ravel()
    np.testing.assert_allclose(sums.to_numpy(), stored, atol=1e-5)
    assert np.isnan(stored).any() and np.isfinite(stored).any()
    for (spot, gene), part in frame.groupby(["query", "gene"]):
        if np.isnan(table[spot, gene].X.item()):
            assert list(part["reference"]) == ["not measured", "adjustment"]
            continue
        cited = part.iloc[:-1]
        assert cited["weight"].is_monotonic_decreasing
        assert cited["weight"].sum() == pytest.approx(1, abs=1e-6)
        expected = rg.get.neighbors(table, obs_names=spot)
        assert set(cited["reference"]) == set(expected["reference"])
        votes = expected.set_index("reference")["weight"].astype(float)
        if gene == genes[4]:
            votes = votes.where(expected.set_index("reference")["donor"] == "donor1", 0.0)
        np.testing.assert_allclose(cited["weight"], votes[cited["reference"]] / votes.sum(), atol=1e-6)
        allowed = (reference.obs["donor"] != table.obs.loc[spot, "donor"]).to_numpy()
        values = reference.X[:, reference.var_names.get_loc(gene)].toarray().ravel()
        measured = (reference.obs["donor"] == "donor1").to_numpy() | (gene != genes[4])
        samples = reference.obs["sample"].to_numpy()
        for line in cited[cited["weight"] > 0].itertuples():
            shift = {one: values[(samples == one) & measured].mean() for one in set(samples[measured])}
            level = np.mean([shift[one] for one in samples[allowed & measured]])
            assert line.correction == pytest.approx(level - shift[line.sample], abs=1e-5)


def test_genes_that_some_rows_did_not_measure(sections, query):
    """A second panel lacks genes: its rows get no vote, and the rest share the weight."""
    genes = list(sections["donor1"].tables["table"].var_names)
    dropped = genes[10]
    small = sections["donor2"]
    small.tables["table"] = small.tables["table"][:, [gene for gene in genes if gene != dropped]].copy()
    reference = rg.tl.build_reference({"donor1": sections["donor1"], "donor2": small}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    assert table.var.loc[dropped, "n_measured"] == sections["donor1"].tables["table"].n_obs
    column = table.var_names.get_loc(dropped)
    mixed = 0
    for spot in table.obs_names:
        part = rg.get.explain(query, reference, obs_names=spot, genes=dropped)
        value = table[spot].X[0, column]
        if np.isnan(value):
            assert "not measured" in set(part["reference"])
            continue
        cited = part.iloc[:-1]
        assert (cited.loc[cited["donor"] == "donor2", "weight"] == 0).all()
        assert cited.loc[cited["donor"] == "donor1", "weight"].sum() == pytest.approx(1)
        assert part["contribution"].sum() == pytest.approx(value, abs=1e-5)
        mixed += cited["donor"].nunique() == 2
    assert mixed > 0


def test_methods_without_neighbours_list_none(query, reference):
    rg.tl.fit(reference, method="ridge", n_neighbors=10)
    rg.tl.predict(query, reference)
    assert rg.get.neighbors(query).empty


def test_lost_provenance_is_named(predicted):
    table = predicted.tables["predicted"].copy()
    del table.uns["retrieval"]
    with pytest.raises(ValueError, match=r"lacks uns\['retrieval'\]"):
        rg.get.neighbors(table)
    table = predicted.tables["predicted"].copy()
    del table.obsm["retrieval_rows"]
    with pytest.raises(ValueError, match=r"lacks obsm\['retrieval_rows'\]"):
        rg.get.neighbors(table)


def test_another_reference_is_refused(query, fitted):
    """Also where all cited rows are as they were: a reference without a section has others' means in its place."""
    rg.tl.predict(query, fitted, where={"donor": "donor2"})
    gene, spot = fitted.var_names[0], query.tables["predicted"].obs_names[0]
    for other in (fitted[1:].copy(), fitted[(fitted.obs["donor"] == "donor2").to_numpy()].copy()):
        with pytest.raises(ValueError, match="made from a reference with hash"):
            rg.get.explain(query, other, obs_names=spot, genes=gene)


def test_unknown_names(predicted, fitted):
    spot = predicted.tables["predicted"].obs_names[0]
    with pytest.raises(KeyError, match="no gene 'NOPE'"):
        rg.get.explain(predicted, fitted, obs_names=spot, genes="NOPE")
    with pytest.raises(KeyError, match="no spot 'nowhere'"):
        rg.get.neighbors(predicted, obs_names="nowhere")
    with pytest.raises(KeyError, match="'predictd' not found"):
        rg.get.neighbors(predicted, prediction_key="predictd")
