"""`rg.tl.predict` against values computed from the sections' own counts."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg


def normalized(table):
    """log1p of counts per 10,000, written out."""
    counts = table.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_evidence_is_recomputed_from_the_counts_of_the_cited_spots(sections, predicted):
    table = predicted.tables["predicted"]
    cited = table.uns["retrieval"]["cited"]
    values = {
        f"{name}:{spot}": row
        for name in ("donor1", "donor2")
        for spot, row in zip(
            sections[name].tables["table"].obs_names, normalized(sections[name].tables["table"]), strict=True
        )
    }
    order = sections["donor1"].tables["table"].var_names.get_indexer(table.var_names)
    everything = np.stack(list(values.values()))
    donors = np.array([name.split(":")[0] for name in values])
    # Sections are brought to the mean of the reference.
    shift = {donor: everything[donors == donor].mean(axis=0) - everything.mean(axis=0) for donor in set(donors)}
    values = {name: row - shift[name.split(":")[0]] for name, row in values.items()}
    for i in range(table.n_obs):
        rows, weights = table.obsm["retrieval_rows"][i], table.obsm["retrieval_weights"][i]
        expected = sum(w * values[cited["reference"].iloc[r]][order] for r, w in zip(rows, weights, strict=True))
        np.testing.assert_allclose(table.layers["evidence"][i], expected, atol=1e-5)
    np.testing.assert_allclose(table.X, table.layers["evidence"], atol=1e-6)


def test_table_has_every_documented_field(predicted, fitted):
    table = predicted.tables["predicted"]
    n, k = table.n_obs, 10
    assert table.shape == (predicted.tables["table"].n_obs, fitted.n_vars)
    assert table.X.dtype == table.layers["evidence"].dtype == np.float32
    for name in ("retrieval_rows", "retrieval_weights", "retrieval_distances"):
        assert table.obsm[name].shape == (n, k)
    np.testing.assert_allclose(table.obsm["retrieval_weights"].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(table.obsm["spatial"], predicted.tables["table"].obsm["spatial"])
    for name in ("effective_n", "n_donors", "distance_percentile", "out_of_reference", "evidence_share"):
        assert name in table.obs
    assert table.obs["effective_n"].between(1, k).all()
    assert set(table.obs["n_donors"]) <= {1, 2}
    assert table.obs["distance_percentile"].between(0, 100).all()
    assert table.obs["out_of_reference"].dtype == bool
    assert (table.var["n_measured"] == fitted.n_obs).all()
    assert (table.var["evidence"] == "measured").all()
    header = table.uns["retrieval"]
    assert header["unit"] == "log1p(counts per 10,000)"
    assert header["reference_hash"] == fitted.uns["ragst"]["content_hash"]
    assert header["fit_hash"] == fitted.uns["ragst"]["fit"]["fit_hash"]
    described = ["reference", "donor", "sample", "tissue", "technology", "x_um", "y_um"]
    assert list(header["cited"].columns) == [*described, "digest"]
    assert table.uns["spatialdata_attrs"]["region"] == "spots"


def test_prediction_relates_to_the_tissue(predicted):
    scores = rg.tl.evaluate(predicted, metrics=["pearson"])
    markers = predicted.tables["table"].var.query("kind == 'marker'").index
    assert scores[scores.gene.isin(markers)].value.mean() > 0.35


@pytest.mark.parametrize("method", ["knn", "ridge", "mean"])
def test_methods_share_one_interface(query, reference, method):
    rg.tl.fit(reference, method=method, n_neighbors=10)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    assert np.isfinite(table.X).all()
    assert table.obs["distance_percentile"].notna().all()
    assert (table.obs["n_donors"] >= 1).all()
    if method == "knn":
        assert (table.obsm["retrieval_rows"] >= 0).all()
        return
    assert (table.obsm["retrieval_rows"] == -1).all()
    assert table.obs["effective_n"].isna().all()
    mean = np.asarray(reference.X.mean(axis=0)).ravel()
    np.testing.assert_allclose(table.layers["evidence"], np.tile(mean, (table.n_obs, 1)), atol=1e-5)
    if method == "mean":
        np.testing.assert_allclose(table.X, table.layers["evidence"])
    else:
        assert (table.obs["evidence_share"] == 0).all()
        assert np.ptp(table.X, axis=0).max() > 0.1


def test_own_donor_is_never_cited(sections):
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(sections["donor2"], reference)
    assert set(rg.get.neighbors(sections["donor2"])["donor"]) == {"donor1", "donor3"}


def test_exclusion_can_be_switched_off_loudly(sections, caplog):
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    with caplog.at_level(logging.WARNING):
        table = rg.tl.predict(sections["donor2"], reference, exclude=(), inplace=False)
    assert "`exclude` is empty" in caplog.text
    assert "41 of 41 spots are rows of the reference themselves" in caplog.text
    cited = rg.get.neighbors(table)
    assert "donor2" in set(cited["donor"])
    assert not (cited["reference"] == "donor2:" + cited["query"]).any()


def test_same_image_under_another_donor_name_is_left_out(sections, fitted, caplog):
    copy = sections["donor2"]
    copy.tables["table"].obs["donor"] = "somebody else"
    with caplog.at_level(logging.WARNING):
        rg.tl.predict(copy, fitted)
    assert "rows of donor 'donor2' are left out" in caplog.text
    assert set(rg.get.neighbors(copy)["donor"]) == {"donor1"}


@pytest.mark.parametrize("method", ["ridge", "mean"])
def test_methods_that_saw_the_donor_refuse(sections, method):
    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    rg.tl.fit(reference, method=method, n_neighbors=10)
    with pytest.raises(ValueError, match="was fitted on donor 'donor2', which the query holds too"):
        rg.tl.predict(sections["donor2"], reference)


def test_query_without_donor_is_a_new_donor(query, fitted, caplog):
    del query.tables["table"].obs["donor"]
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        rg.tl.predict(query, fitted)
    assert "taken as a new donor" in caplog.text


def test_where_restricts_the_rows(query, fitted):
    by_column = rg.tl.predict(query, fitted, where={"donor": "donor1"}, inplace=False)
    assert set(rg.get.neighbors(by_column)["donor"]) == {"donor1"}
    mask = (fitted.obs["donor"] == "donor1").to_numpy()
    by_mask = rg.tl.predict(query, fitted, where=mask, inplace=False)
    np.testing.assert_array_equal(by_mask.X, by_column.X)


def test_fewer_neighbours_may_be_asked_for(query, fitted):
    table = rg.tl.predict(query, fitted, n_neighbors=3, inplace=False)
    assert table.obsm["retrieval_rows"].shape[1] == 3
    np.testing.assert_allclose(table.obsm["retrieval_weights"].sum(axis=1), 1, atol=1e-6)
    assert (table.obs["effective_n"] <= 3).all()


def test_subset_of_genes_gives_the_same_values(query, fitted):
    whole = rg.tl.predict(query, fitted, inplace=False)
    genes = list(fitted.var_names[[5, 2, 77]])
    part = rg.tl.predict(query, fitted, genes=genes, inplace=False)
    assert list(part.var_names) == genes
    np.testing.assert_allclose(part.X, whole[:, genes].X, atol=1e-6)


@pytest.mark.parametrize("method", ["knn", "ridge"])
def test_a_spot_alone_is_predicted_as_in_its_section(query, reference, method):
    rg.tl.fit(reference, method=method, n_neighbors=10)
    whole = rg.tl.predict(query, reference, inplace=False)
    shuffled = np.random.default_rng(0).permutation(query.tables["table"].n_obs)[:7]
    query.tables["few"] = query.tables["table"][shuffled].copy()
    few = rg.tl.predict(query, reference, table_key="few", inplace=False)
    np.testing.assert_allclose(few.X, whole.X[shuffled], atol=1e-6)
    np.testing.assert_array_equal(
        rg.get.neighbors(few).reference, rg.get.neighbors(whole, obs_names=few.obs_names).reference
    )


def test_row_order_of_the_reference_does_not_matter(query, reference):
    shuffled = reference[np.random.default_rng(0).permutation(reference.n_obs)].copy()
    for one in (reference, shuffled):
        rg.tl.fit(one, method="knn", n_neighbors=10)
    assert reference.uns["ragst"]["content_hash"] == shuffled.uns["ragst"]["content_hash"]
    first, second = (rg.tl.predict(query, one, inplace=False) for one in (reference, shuffled))
    np.testing.assert_allclose(first.X, second.X, atol=1e-5)
    assert list(rg.get.neighbors(first).reference) == list(rg.get.neighbors(second).reference)


def test_spot_outside_the_image_is_flagged(sections, fitted, embed):
    from shapely.affinity import translate

    query = sections["donor3"]
    shapes = query.shapes["spots"].copy()
    shapes.loc[shapes.index[0], "geometry"] = translate(shapes.geometry.iloc[0], -5000, 0)
    query.shapes["spots"] = shapes
    rg.pp.embed_tiles(query, **embed)
    table = query.tables["table"]
    lost = table.obs["spot_id"].to_numpy() == shapes.index[0]
    assert lost.sum() == 1
    assert np.isnan(table.obsm["X_colour"][lost]).all()
    assert table.obs["tile_padded_fraction"][lost].item() == 1
    rg.tl.predict(query, fitted)
    predicted = query.tables["predicted"]
    assert np.isnan(predicted.X[lost]).all()
    assert np.isfinite(predicted.X[~lost]).all()
    assert predicted.obs["out_of_reference"][lost].all()
    assert (predicted.obsm["retrieval_rows"][lost] == -1).all()


def test_rerun_replaces_ours_and_refuses_others(predicted, fitted):
    rg.tl.predict(predicted, fitted, n_neighbors=5)
    assert predicted.tables["predicted"].obsm["retrieval_rows"].shape[1] == 5
    before = predicted.tables["table"]
    with pytest.raises(ValueError, match=r"was not made by `rg\.tl\.predict`"):
        rg.tl.predict(predicted, fitted, key_added="table")
    assert predicted.tables["table"] is before


def test_inplace_false_leaves_sdata_alone(query, fitted):
    table = rg.tl.predict(query, fitted, inplace=False)
    assert list(query.tables) == ["table"]
    assert table.uns["spatialdata_attrs"]["region"] == "spots"


@pytest.mark.slow
def test_provenance_survives_subset_crop_and_zarr(predicted, fitted, tmp_path):
    whole = rg.get.neighbors(predicted)
    spot = predicted.tables["predicted"].obs_names[3]
    expected = whole[whole["query"] == spot].drop(columns="query").reset_index(drop=True)

    def check(table):
        got = rg.get.neighbors(table, obs_names=spot).drop(columns="query").reset_index(drop=True)
        assert got.astype(str).equals(expected.astype(str))
        parts = rg.get.explain(table, fitted, obs_names=spot, genes=fitted.var_names[0])
        assert parts["contribution"].sum() == pytest.approx(float(table[spot, fitted.var_names[0]].X.item()), abs=1e-5)

    check(predicted.tables["predicted"][2:9].copy())
    x, y = predicted.tables["predicted"].obsm["spatial"][3]
    crop = sd.bounding_box_query(
        predicted,
        axes=("x", "y"),
        min_coordinate=[x - 150, y - 150],
        max_coordinate=[x + 150, y + 150],
        target_coordinate_system="global",
    )
    assert 0 < crop.tables["predicted"].n_obs < predicted.tables["predicted"].n_obs
    check(crop.tables["predicted"])
    predicted.write(tmp_path / "s.zarr")
    check(sd.read_zarr(tmp_path / "s.zarr").tables["predicted"])


@pytest.mark.slow
def test_squidpy_runs_on_the_table_read_back(predicted, tmp_path):
    import squidpy as sq

    predicted.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr")
    sq.gr.spatial_neighbors_knn(back, elements_to_coordinate_systems={"spots": "global"}, table_key="predicted")
    genes = list(back.tables["predicted"].var_names[:5])
    sq.gr.spatial_autocorr(back, table_key="predicted", mode="moran", genes=genes)
    assert back.tables["predicted"].uns["moranI"]["I"].notna().all()


@pytest.fixture
def same_donor(sections):
    """A second section of donor 1, whose image the reference does not hold."""
    section = sections["donor3"]
    section.tables["table"].obs["donor"] = "donor1"
    return section


def numbered(sections, names, values):
    for name, value in zip(names, values, strict=True):
        obs = sections[name].tables["table"].obs
        obs["donor"] = np.full(len(obs), value)


@pytest.mark.parametrize("own", [1, 1.0, "1", " 1"])
def test_a_donor_is_the_same_however_its_number_is_stored(sections, own):
    numbered(sections, ["donor1", "donor2", "donor3"], [1, 2, own])
    training = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(training, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    table = rg.tl.predict(sections["donor3"], reference, inplace=False)
    assert set(rg.get.neighbors(table)["donor"]) == {"2"}
    rg.tl.fit(reference, method="ridge", n_neighbors=10)
    with pytest.raises(ValueError, match="was fitted on donor '1'"):
        rg.tl.predict(sections["donor3"], reference)


def test_spots_without_a_donor_are_refused(query, fitted):
    donor = query.tables["table"].obs["donor"].astype(object)
    donor.iloc[2] = np.nan
    query.tables["table"].obs["donor"] = donor
    with pytest.raises(ValueError, match="1 spots of the query have no donor"):
        rg.tl.predict(query, fitted)


def test_the_donor_column_of_the_reference_is_remembered(sections, same_donor):
    for sdata in sections.values():
        obs = sdata.tables["table"].obs
        sdata.tables["table"].obs = obs.rename(columns={"donor": "patient"})
    training = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(training, use_rep="X_colour", donor_key="patient")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    table = rg.tl.predict(same_donor, reference, inplace=False)
    assert set(rg.get.neighbors(table)["donor"]) == {"donor2"}


def test_excluding_something_else_than_donors_is_loud(same_donor, fitted, caplog):
    with caplog.at_level(logging.WARNING):
        table = rg.tl.predict(same_donor, fitted, exclude=("sample",), inplace=False)
    assert "without 'donor'" in caplog.text
    assert "donor1" in set(rg.get.neighbors(table)["donor"])


def test_methods_that_do_not_cite_cannot_be_restricted(sections, query, reference):
    rg.tl.fit(reference, method="ridge", n_neighbors=10)
    with pytest.raises(ValueError, match="`where` cannot restrict it"):
        rg.tl.predict(query, reference, where={"donor": "donor1"})
    twin = sections["donor2"]
    twin.tables["table"].obs["donor"] = "somebody else"
    with pytest.raises(ValueError, match="with the query's very image"):
        rg.tl.predict(twin, reference)


@pytest.mark.parametrize("value", [np.int64(1), np.bool_(True), 1.0, "1", ["1", "2"]])
def test_where_takes_any_scalar(sections, query, value):
    for i, name in enumerate(("donor1", "donor2")):
        obs = sections[name].tables["table"].obs
        obs["lane"] = (i == 0) if isinstance(value, np.bool_) else i + 1
    training = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(training, use_rep="X_colour", obs="lane")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    table = rg.tl.predict(query, reference, where={"lane": value}, inplace=False)
    assert ("donor2" in set(rg.get.neighbors(table)["donor"])) == isinstance(value, list)


def test_grounding_does_not_depend_on_how_many_are_cited(query, fitted):
    whole, few = (rg.tl.predict(query, fitted, n_neighbors=n, inplace=False) for n in (None, 2))
    np.testing.assert_array_equal(whole.obs["distance_percentile"], few.obs["distance_percentile"])
    np.testing.assert_array_equal(whole.obs["out_of_reference"], few.obs["out_of_reference"])


def test_spots_with_fewer_eligible_rows_do_not_lower_the_others(sections, query):
    training = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(training, use_rep="X_colour")
    reference = reference[(reference.obs["donor"] == "donor1") | (np.arange(reference.n_obs) % 8 == 0)].copy()
    rg.tl.fit(reference, method="knn", n_neighbors=20)
    query.tables["table"].obs["donor"] = ["donor1"] + ["donor3"] * (query.tables["table"].n_obs - 1)
    cited = (rg.tl.predict(query, reference, inplace=False).obsm["retrieval_rows"] >= 0).sum(axis=1)
    assert cited[0] == (reference.obs["donor"] == "donor2").sum() < 20
    assert (cited[1:] == 20).all()


def test_a_tampered_fit_is_refused(query, fitted):
    fitted.obsm["retrieval_key"] = np.random.default_rng(0).normal(size=fitted.obsm["retrieval_key"].shape)
    with pytest.raises(ValueError, match="does not match its hash"):
        rg.tl.predict(query, fitted)


def test_notes_in_the_reference_do_not_undo_the_fit(query, fitted):
    fitted.obs["cluster"] = "a"
    rg.tl.predict(query, fitted)
    fitted.obs["tissue"] = "liver"
    with pytest.raises(ValueError, match="changed after it was fitted"):
        rg.tl.predict(query, fitted)


def test_a_foreign_table_that_looks_like_ours_is_not_replaced(query, fitted):
    query.tables["predicted"] = query.tables["table"].copy()
    query.tables["predicted"].uns["retrieval"] = {"my": 1}
    with pytest.raises(ValueError, match="not replaced"):
        rg.tl.predict(query, fitted, table_key="table")


def test_one_spot_has_no_section_statistics(query, fitted, embed, caplog):
    query.tables["table"] = query.tables["table"][:1].copy()
    rg.pp.embed_tiles(query, **embed)
    with pytest.raises(ValueError, match="do not vary within the section"):
        rg.tl.predict(query, fitted)


def test_provenance_is_a_copy(predicted, fitted):
    predicted.tables["predicted"].uns["retrieval"]["encoder"]["mean"] = "changed"
    predicted.tables["predicted"].uns["retrieval"]["size_factor_genes"][0] = "changed"
    assert fitted.uns["ragst"]["encoder"]["mean"] is not None
    assert fitted.uns["ragst"]["normalization"]["size_factor_genes"][0] != "changed"


def test_a_foreign_section_is_announced(query, fitted, caplog):
    """Its tiles are standardised by itself, so only the embeddings as they were made can give it away."""
    header = query.tables["table"].uns["ragst"]["embeddings"]["X_colour"]
    near = rg.tl.predict(query, fitted, inplace=False)
    shift = 30 * header["section_std"]
    query.tables["table"].obsm["X_colour"] = (query.tables["table"].obsm["X_colour"] + shift).astype(np.float32)
    header["section_mean"] = header["section_mean"] + shift
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        far = rg.tl.predict(query, fitted, inplace=False)
    assert f"{far.n_obs} of {far.n_obs} spots look unlike every section" in caplog.text
    assert far.uns["retrieval"]["section_distance"] > 5 * near.uns["retrieval"]["section_distance"]
    assert far.obs["out_of_reference"].all()
    assert (far.obs["distance_percentile"] <= 98).mean() > 0.5
    np.testing.assert_allclose(far.obs["distance_percentile"], near.obs["distance_percentile"], atol=1)


def test_a_resolution_corrected_after_embedding_is_announced(query, fitted, caplog):
    rg.pp.set_image_mpp(query, mpp=2.0)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        rg.tl.predict(query, fitted)
    assert "was embedded at 1 microns per pixel and has 2 now" in caplog.text


def test_evidence_is_put_back_on_the_mean_of_the_rows_that_may_be_used(sections, query):
    """A section of another level, rejected by `where`, does not move the level of the prediction."""
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    lifted = (reference.obs["donor"] == "donor2").to_numpy()
    values = reference.X.toarray()
    values[lifted] += 3
    reference.X = type(reference.X)(values)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    everything = rg.tl.predict(query, reference, inplace=False)
    table = rg.tl.predict(query, reference, where={"donor": "donor1"}, inplace=False)
    assert abs(table.X.mean() - values[~lifted].mean()) < 0.3
    assert everything.X.mean() - table.X.mean() == pytest.approx(1.5, abs=0.5)
    part = rg.get.explain(table, reference, obs_names=table.obs_names[0], genes=table.var_names[0])
    assert part["contribution"].sum() == pytest.approx(float(table.X[0, 0]), abs=1e-5)
    np.testing.assert_allclose(part["correction"].iloc[:-1], 0, atol=1e-6)


def test_encoders_without_name_or_weights_are_warned_about(sections, caplog):
    """Two functions that differ leave no trace in the headers, so that nothing but a warning is possible."""
    few = {name: sections[name] for name in ("donor1", "donor2", "donor3")}
    for name, section in few.items():
        axis = (2,) if name == "donor3" else (2, 3)
        rg.pp.embed_tiles(
            section,
            model=lambda tiles, axis=axis: tiles.float().mean(axis).reshape(len(tiles), -1)[:, :3],
            key_added="X_own",
            progress=False,
        )
    reference = rg.tl.build_reference({name: few[name] for name in ("donor1", "donor2")}, use_rep="X_own")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    with caplog.at_level(logging.WARNING):
        rg.tl.predict(few["donor3"], reference)
    assert "has no name and no weights to compare" in caplog.text
