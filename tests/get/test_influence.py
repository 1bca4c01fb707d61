"""`rg.get.influence`: against predictions restricted by `where`, and against neighbours found in plain numpy."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd.retrieval.methods import METHODS

from ..methods import marked
from ..sections import copied

CITING = [name for name, method in METHODS.items() if method.cites]
COLUMNS = ["n_rows", "n_spots", "weight", "lost", "mean_change", "mean_abs_change", "max_abs_change", "pearson"]


def influence(*args, **kwargs):
    return rg.get.influence(*args, progress=False, **kwargs)


def by_hand(before, after):
    """Mean, mean size and largest size of the change, and mean correlation of the genes that vary."""
    change = (after - before)[np.isfinite(after) & np.isfinite(before)]
    correlations = [
        np.corrcoef(a[ok], b[ok])[0, 1]
        for a, b in zip(after.T, before.T, strict=True)
        if np.ptp(b[ok := np.isfinite(a) & np.isfinite(b)]) > 1e-4
    ]
    return [change.mean(), np.abs(change).mean(), np.abs(change).max(), np.mean(correlations)]


@pytest.fixture(scope="module")
def _fourth(embed):
    more = rg.datasets.synthetic(n_donors=4, n_genes=260, image_px=700, mpp=1.0, rng=0)["donor4"]
    rg.pp.embed_tiles(more, **embed)
    return more


@pytest.fixture
def three(sections, _fourth):
    """A reference of three donors, with a fourth to predict."""
    more = copied(_fourth)
    sources = {"donor1": {"license": "MIT"}, "donor2": {"license": "CC0"}, "donor3": {"license": "CC0"}}
    return rg.tl.build_reference(sections, use_rep="X_colour", sources=sources), more


@pytest.mark.parametrize("method", marked(CITING))
def test_a_group_less_is_a_prediction_without_it(three, method, quick):
    reference, query = three
    rg.tl.fit(reference, method=method, n_neighbors=10, options=quick(method), progress=False)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    frame = influence(query, reference).set_index("group")
    assert list(frame.columns) == COLUMNS
    assert set(frame.index) == {"donor1", "donor2", "donor3"}
    cited = rg.get.neighbors(query)
    for donor, line in frame.iterrows():
        rest = [other for other in frame.index if other != donor]
        without = rg.tl.predict(query, reference, where={"donor": rest}, inplace=False)
        assert list(line[COLUMNS[4:]]) == pytest.approx(by_hand(table.X, without.X), abs=1e-5)
        own = cited[cited["donor"] == donor]
        assert line["n_rows"] == (reference.obs["donor"] == donor).sum()
        assert line["n_spots"] == own["query"].nunique()
        assert line["weight"] == pytest.approx(own["weight"].sum() / table.n_obs, abs=1e-5)
        assert line["lost"] == 0
    assert frame["weight"].sum() == pytest.approx(1, abs=1e-5)
    assert frame["mean_abs_change"].is_monotonic_decreasing
    assert frame["mean_abs_change"].min() > 0.01


def test_nearest_neighbours_without_a_donor_in_numpy(sections, query, reference):
    rg.tl.fit(reference, method="knn", n_neighbors=5, options={"weighting": "uniform", "center_sections": False})
    rg.tl.predict(query, reference)
    parameters = reference.uns["ragst"]["fit"]["parameters"]

    def key(sdata):
        table = sdata.tables["table"]
        header = table.uns["ragst"]["embeddings"]["X_colour"]
        own = (table.obsm["X_colour"].astype(float) - header["section_mean"]) / header["section_std"]
        return (own - parameters["projection_mean"]) @ parameters["projection"]

    left = sections["donor1"].tables["table"]
    counts = left.X.toarray().astype(float)
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    distances = ((key(query)[:, None] - key(sections["donor1"])[None]) ** 2).sum(axis=2)
    after = values[np.argsort(distances, axis=1)[:, :5]].mean(axis=1)
    table = query.tables["predicted"]
    after = after[:, left.var_names.get_indexer(table.var_names)]
    line = influence(query, reference).set_index("group").loc["donor2"]
    assert list(line[COLUMNS[4:]]) == pytest.approx(by_hand(table.X, after), abs=1e-4)


def test_lines_of_genes_and_spots(three):
    reference, query = three
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    genes, spots = list(table.var_names[[7, 2]]), list(table.obs_names[3:12])
    frame = influence(query, reference, genes=genes, obs_names=spots)
    assert list(frame.columns) == ["group", "gene", *COLUMNS]
    assert list(frame["gene"]) == genes * 3
    without = rg.tl.predict(query, reference, where={"donor": ["donor1", "donor3"]}, inplace=False)
    for gene in genes:
        line = frame[(frame["group"] == "donor2") & (frame["gene"] == gene)].iloc[0]
        before, after = table[spots, gene].X, without[spots, gene].X
        assert list(line[COLUMNS[4:]]) == pytest.approx(by_hand(before, after), abs=1e-5)
    whole = influence(query, reference, obs_names=spots, genes=genes[0])
    assert len(whole) == 3


def test_groups_from_the_sources(three):
    reference, query = three
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    by_license = influence(query, reference, group_key="license").set_index("group")
    by_donor = influence(query, reference).set_index("group")
    assert set(by_license.index) == {"MIT", "CC0"}
    np.testing.assert_allclose(by_license.loc["MIT"], by_donor.loc["donor1"])
    assert by_license.loc["CC0", "weight"] == pytest.approx(by_donor.loc[["donor2", "donor3"], "weight"].sum())
    with pytest.raises(
        KeyError, match=r"'licence' not found in `reference\.obs and its sources`.*Did you mean 'license'"
    ):
        influence(query, reference, group_key="licence")


def test_own_donor_stays_out(sections, three):
    reference, _ = three
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(sections["donor2"], reference)
    frame = influence(sections["donor2"], reference).set_index("group")
    assert list(frame.loc["donor2"]) == pytest.approx([0, 0, 0, 0, 0, 0, 0, 1])
    assert frame.index[-1] == "donor2"
    without = rg.tl.predict(sections["donor2"], reference, where={"donor": "donor3"}, inplace=False)
    expected = np.abs(without.X - sections["donor2"].tables["predicted"].X).mean()
    assert frame.loc["donor1", "mean_abs_change"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("as_mask", [False, True])
def test_where_and_fewer_neighbours_are_kept(three, as_mask):
    reference, query = three
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    mask = reference.obs["donor"].isin(["donor1", "donor2"]).to_numpy()
    where = mask if as_mask else {"donor": ["donor1", "donor2"]}
    rg.tl.predict(query, reference, where=where, n_neighbors=4)
    shuffled = reference[np.random.default_rng(0).permutation(reference.n_obs)].copy()
    rg.tl.fit(shuffled, method="knn", n_neighbors=10)
    frame = influence(query, reference).set_index("group")
    assert frame.loc["donor3", "n_rows"] == 0 and frame.loc["donor3", "mean_abs_change"] == 0
    without = rg.tl.predict(query, reference, where={"donor": "donor1"}, n_neighbors=4, inplace=False)
    expected = by_hand(query.tables["predicted"].X, without.X)
    assert list(frame.loc["donor2"][COLUMNS[4:]]) == pytest.approx(expected, abs=1e-5)


def test_says_nothing_of_the_embedding_that_predict_has_said(sections, caplog):
    for sdata in sections.values():
        table = sdata.tables["table"]
        table.obsm["X_bare"] = np.asarray(table.obsm["X_colour"]).copy()
    query = sections["donor3"]
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_bare")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    assert "has no header" in caplog.text
    caplog.clear()
    influence(query, reference)
    assert "has no header" not in caplog.text


def test_a_group_without_which_nothing_is_left(query, fitted, caplog):
    rg.tl.predict(query, fitted)
    with caplog.at_level(logging.WARNING):
        frame = influence(query, fitted, group_key="tissue")
    assert "Without tissue 'unknown' nothing can be predicted" in caplog.text
    line = frame.iloc[0]
    assert line["lost"] == 1 and line["weight"] == pytest.approx(1)
    assert line[COLUMNS[4:]].isna().all()


def test_genes_that_one_donor_alone_measured_are_lost(sections, query):
    small = sections["donor2"]
    genes = small.tables["table"].var_names
    small.tables["table"] = small.tables["table"][:, genes != genes[4]].copy()
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    frame = influence(query, reference, genes=[genes[4], genes[5]]).set_index(["group", "gene"])
    assert frame.loc[("donor1", genes[4]), "lost"] == 1
    assert np.isnan(frame.loc[("donor1", genes[4]), "mean_change"])
    assert frame.loc[("donor1", genes[5]), "lost"] == 0
    overall = influence(query, reference).set_index("group")
    present = np.isfinite(query.tables["predicted"].X)
    share = present[:, query.tables["predicted"].var_names.get_loc(genes[4])].sum() / present.sum()
    assert overall.loc["donor1", "lost"] == pytest.approx(share)


def test_spots_off_the_image_count_for_nothing(query, fitted, embed):
    from shapely.affinity import translate

    shapes = query.shapes["spots"].copy()
    shapes.loc[shapes.index[0], "geometry"] = translate(shapes.geometry.iloc[0], -5000, 0)
    query.shapes["spots"] = shapes
    rg.pp.embed_tiles(query, **embed)
    rg.tl.predict(query, fitted)
    frame = influence(query, fitted)
    assert frame["weight"].sum() == pytest.approx(1, abs=1e-5)
    assert (frame["lost"] == 0).all()
    lost = query.tables["predicted"].obs_names[np.isnan(query.tables["predicted"].X).all(axis=1)]
    assert len(lost) == 1
    with pytest.raises(ValueError, match="No spot has an embedding"):
        influence(query, fitted, obs_names=list(lost))


def test_a_part_of_the_table(predicted, fitted):
    """Spots and genes may have been left out since, in any order."""
    whole = predicted.tables["predicted"]
    spots, genes = list(whole.obs_names[[9, 1, 5]]), list(whole.var_names[[8, 3]])
    expected = influence(predicted, fitted, obs_names=spots, genes=genes)
    predicted.tables["predicted"] = whole[spots, genes].copy()
    pd.testing.assert_frame_equal(influence(predicted, fitted, genes=genes), expected)


@pytest.mark.slow
def test_object_read_back(predicted, fitted, tmp_path):
    expected = influence(predicted, fitted)
    predicted.write(tmp_path / "s.zarr")
    rg.io.write_reference(fitted, tmp_path / "r.zarr.zip")
    back = influence(sd.read_zarr(tmp_path / "s.zarr"), rg.io.read_reference(tmp_path / "r.zarr.zip"))
    pd.testing.assert_frame_equal(back, expected)


def test_reverse_map_is_neighbors_read_backwards(predicted):
    whole = rg.get.neighbors(predicted)
    rows = list(whole["reference"].value_counts().index[[3, 0]])
    frame = rg.get.influence(predicted, rows=rows)
    assert list(frame.columns) == ["reference", "query", "rank", "distance", "weight"]
    assert list(frame["reference"].unique()) == rows
    for row, part in frame.groupby("reference"):
        expected = whole[whole["reference"] == row].set_index("query")
        assert set(part["query"]) == set(expected.index)
        assert part["weight"].is_monotonic_decreasing
        for line in part.itertuples():
            assert [line.rank, line.distance, line.weight] == list(
                expected.loc[line.query, ["rank", "distance", "weight"]]
            )
    spot = frame["query"].iloc[0]
    few = rg.get.influence(predicted.tables["predicted"], rows=rows[0], obs_names=spot)
    assert list(few["query"]) == [spot]


def test_rows_that_nobody_cites(query, fitted):
    rg.tl.predict(query, fitted, n_neighbors=1)
    cited = set(rg.get.neighbors(query)["reference"])
    never = next(name for name in fitted.obs_names if name not in cited)
    assert rg.get.influence(query, fitted, rows=never).empty
    with pytest.raises(KeyError, match=r"no spot of the prediction cites.*Give the `reference`"):
        rg.get.influence(query, rows=never)
    with pytest.raises(KeyError, match="the reference has no row 'donor1:nowhere'"):
        rg.get.influence(query, fitted, rows=[never, "donor1:nowhere"])


def test_a_table_that_lost_its_queries_still_answers(predicted):
    """Rows that are cited by spots no longer in the table give no lines."""
    row = rg.get.neighbors(predicted)["reference"].iloc[0]
    others = ~predicted.tables["predicted"].obs_names.isin(rg.get.influence(predicted, rows=row)["query"])
    assert others.sum() > 0
    assert rg.get.influence(predicted.tables["predicted"][others].copy(), rows=row).empty


@pytest.mark.slow
def test_real_sections(data_dir, embed, quick):
    """Olfactory bulb of two mice: what each section of the one does to a section of the other."""
    folder = data_dir / "histology" / "mob2k"
    names = ("MOB1", "MOB2", "MOB3")
    sections = {name: rg.io.read_st(folder / f"{name}.h5ad", folder / f"{name}.jpg", sample=name) for name in names}
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, **{**embed, "mpp": 4.5})
    query = sections.pop("MOB3")
    reference = rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)
    rg.tl.fit(reference, method="rag", n_neighbors=20, options={**quick("rag"), "regression": False}, progress=False)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    frame = influence(query, reference, group_key="sample").set_index("group")
    without = rg.tl.predict(query, reference, where={"sample": "MOB1"}, inplace=False)
    assert list(frame.loc["MOB2"][COLUMNS[4:]]) == pytest.approx(by_hand(table.X, without.X), abs=1e-4)
    assert frame["weight"].sum() == pytest.approx(1, abs=1e-5)
    row = rg.get.neighbors(query)["reference"].iloc[0]
    assert rg.get.influence(query, reference, rows=row)["query"].is_unique
