"""`rg.tl.cross_validate`: against the public path donor by donor, and what a held-out donor must not change."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._bank import open_bank
from ragst_sd._demo import variable_genes
from ragst_sd._metrics import group_means
from ragst_sd._reference import reference_hash
from ragst_sd.tl._cross_validate import cross_validate
from ragst_sd.tl._folds import outer_folds, training_part

FAST = {"n_genes": 20, "n_neighbors": 10, "progress": False}


@pytest.fixture(scope="module")
def scored(_three):
    """A reference with what was written into it, and its scores."""
    reference = _three.copy()
    reference.obs["label"] = np.where(reference.obs["x_um"] > reference.obs["x_um"].median(), "left", "right")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    before = reference_hash(reference)
    scores = cross_validate(reference, methods=["mean", "ridge", "knn"], cited=(5, 10, 50), **FAST)
    assert reference_hash(reference) == before
    return reference, scores


def value(scores, **wanted):
    for name, one in wanted.items():
        scores = scores[scores[name] == one]
    return scores["value"].to_numpy()


def with_one_donor(reference, **names):
    for column, values in names.items():
        reference.obs[column] = pd.Categorical(values if isinstance(values, list) else [values] * reference.n_obs)
    return reference


@pytest.mark.parametrize("method", ["ridge", "knn"])
def test_same_scores_as_build_fit_predict_evaluate(scored, sections, method):
    _, scores = scored
    others = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    genes = variable_genes(others, FAST["n_genes"])
    rg.tl.fit(others, method=method, n_neighbors=FAST["n_neighbors"])
    table = rg.tl.predict(sections["donor3"], others, genes=genes, inplace=False)
    expected = rg.tl.evaluate(table, truth=sections["donor3"].tables["table"], genes=genes)
    own = scores[(scores["method"] == method) & (scores["fold"] == "donor3")]
    for metric in ("pearson", "spearman", "rmse", "variance_kept"):
        theirs = expected[expected["metric"] == metric].set_index("gene")["value"]
        ours = own[own["metric"] == metric].set_index("gene")["value"]
        assert set(ours.index) == set(genes)
        np.testing.assert_allclose(ours[theirs.index], theirs, atol=1e-5)
    np.testing.assert_allclose(
        value(own, metric="effective_n"), value(expected, metric="effective_n"), rtol=1e-5, equal_nan=True
    )


def test_frame(scored):
    _, scores = scored
    assert list(scores.columns) == ["method", "fold", "sample", "gene", "unit", "metric", "value"]
    assert set(scores["fold"]) == {"donor1", "donor2", "donor3"}
    assert set(scores["unit"]) == {"log1p(counts per 10,000)"}
    of_genes, whole = scores[scores["gene"] != ""], scores[scores["gene"] == ""]
    assert set(of_genes["metric"]) == {"pearson", "spearman", "rmse", "variance_kept", "noise_ceiling"}
    assert (of_genes.groupby(["method", "fold", "metric"]).size() == FAST["n_genes"]).all()
    assert set(whole.loc[whole["method"] == "ridge", "metric"]) == {
        "effective_n", "evidence_share", "moran_agreement", "svg_overlap", "gene_correlation_agreement", "domain_ari",
    }  # fmt: skip
    assert set(whole.loc[whole["method"] == "knn", "metric"]) - set(
        whole.loc[whole["method"] == "ridge", "metric"]
    ) == {"evidence_pearson", "pearson_cited_5", "pearson_cited_10", "label_share", "label_share_random"}
    assert set(whole.loc[whole["method"] == "", "metric"]) == {"n_spots"}
    ceiling = value(scores, metric="noise_ceiling")
    assert ((ceiling >= 0) & (ceiling <= 1)).all()


def test_whole_sections(scored):
    _, scores = scored
    knn = scores[(scores["method"] == "knn") & (scores["fold"] == "donor2")]
    mean = value(knn, metric="pearson").mean()
    # knn adjusts nothing, and 10 rows are what it was fitted with.
    np.testing.assert_allclose(value(knn, metric="evidence_pearson"), mean, atol=1e-6)
    np.testing.assert_allclose(value(knn, metric="pearson_cited_10"), mean, atol=1e-6)
    assert abs(value(knn, metric="pearson_cited_5")[0] - mean) > 1e-6
    assert value(knn, metric="evidence_share")[0] == 1
    assert 0 < value(knn, metric="label_share_random")[0] < 1


def test_what_is_written(scored):
    reference, scores = scored
    knn = scores[(scores["method"] == "knn") & (scores["metric"] == "pearson")]
    expected = knn.groupby("gene")["value"].mean()
    np.testing.assert_allclose(reference.var["cv_pearson"].dropna().sort_index(), expected.sort_index())
    assert set(reference.var.index[reference.var["noise_ceiling"].notna()]) == set(expected.index)
    # Still fitted, and what was found comes out with predictions.
    assert open_bank(reference).fit.n_neighbors == 10


def test_written_scores_reach_predictions(scored, query):
    reference, _ = scored
    others = reference[reference.obs["donor"] != "donor3"].copy()
    rg.tl.fit(others, method="knn", n_neighbors=5)
    table = rg.tl.predict(query, others, inplace=False)
    np.testing.assert_array_equal(table.var["cv_pearson"], reference.var["cv_pearson"])


def test_inplace_false_leaves_the_reference_alone(three):
    cross_validate(three, methods="mean", inplace=False, **FAST)
    assert "cv_pearson" not in three.var
    assert "fit" not in three.uns["ragst"]
    assert list(three.obsm) == ["X_colour"]


def test_nothing_is_chosen_on_the_held_out_donor(three):
    changed = three.copy()
    held = (changed.obs["donor"] == "donor3").to_numpy()
    # Another expression altogether: genes in reverse.
    for place, matrix in (("X", changed.X), ("counts", changed.layers["counts"])):
        dense = matrix.toarray()
        dense[held] = dense[held][:, ::-1]
        if place == "X":
            changed.X = type(matrix)(dense)
        else:
            changed.layers["counts"] = type(matrix)(dense)
    kept = ["effective_n", "evidence_share", "label_share"]
    frames = [
        cross_validate(one, methods=["ridge", "knn"], inplace=False, **FAST)[lambda f: f["fold"] == "donor3"]
        for one in (three, changed)
    ]
    assert list(frames[0]["gene"]) == list(frames[1]["gene"])
    first, second = (frame[frame["metric"].isin(kept)]["value"].to_numpy() for frame in frames)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(*(value(frame, metric="pearson", method="knn") for frame in frames))


def test_without_library_size_normalisation(three):
    both = cross_validate(three, methods="knn", library_size="both", **FAST)
    raw = cross_validate(three, methods="knn", library_size="raw", inplace=False, **FAST)
    assert set(both["unit"]) == {"log1p(counts per 10,000)", "log1p(counts)"}
    part = both[both["unit"] == "log1p(counts)"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, raw[raw["unit"] == "log1p(counts)"].reset_index(drop=True))
    per_unit = [set(frame["gene"]) for _, frame in both[both["metric"] == "pearson"].groupby("unit")]
    assert per_unit[0] == per_unit[1]
    # By hand: knn evidence on log1p of counts.
    counted = three.copy()
    counted.X = counted.layers["counts"].astype(np.float32).log1p()
    np.testing.assert_allclose(
        value(raw, metric="rmse", fold="donor1"),
        value(cross_validate(counted, methods="knn", genes=sorted(set(raw["gene"]) - {""}), **FAST)
              .pipe(lambda f: f[f["gene"].isin(raw.loc[raw["fold"] == "donor1", "gene"])]),
              metric="rmse", fold="donor1"),
        atol=1e-6,
    )  # fmt: skip


def test_raw_needs_counts(three):
    del three.layers["counts"]
    with pytest.raises(ValueError, match=r"layers\['counts'\].*Build it from counts"):
        cross_validate(three, library_size="raw", **FAST)
    scores = cross_validate(three, methods="mean", **FAST)
    assert np.isnan(value(scores, metric="noise_ceiling")).all()
    assert three.var["noise_ceiling"].isna().all()


def test_all_genes(three):
    scores = cross_validate(three, methods="knn", genes="all", **FAST)
    assert three.var["cv_pearson"].notna().mean() > 0.95
    whole = scores[(scores["fold"] == "donor1") & (scores["metric"] == "evidence_pearson")]["value"].iloc[0]
    few = cross_validate(three, methods="knn", inplace=False, **FAST)
    assert whole == pytest.approx(value(few, fold="donor1", metric="evidence_pearson")[0])


def test_panels_of_held_out_sections_vanish(three, caplog):
    panels = np.where(three.obs["donor"] == "donor3", "small", "large")
    three.obs["panel"] = pd.Categorical(panels)
    three.uns["ragst"]["panels"] = np.array(["large", "small"])
    in_small = np.arange(three.n_vars) % 4 > 0
    three.varm["measured"] = np.column_stack([np.ones(three.n_vars, dtype=bool), in_small])
    expression = three.X.toarray()
    expression[np.ix_(panels == "small", ~in_small)] = 0
    three.X = type(three.X)(expression)
    bank = open_bank(three, fitted=False)
    large, small = (training_part(bank, np.flatnonzero(panels == name), bank.values) for name in ("large", "small"))
    assert large.measured.shape == (1, three.n_vars) and set(large.panels) == {0}
    assert set(large.sections) == {0, 1} and set(large.obs["sample"]) == {"donor1", "donor2"}
    assert list(small.genes) == list(three.var_names[in_small]) and small.values.shape[1] == in_small.sum()
    assert len(bank.measured) == 2 and list(three.uns["ragst"]["panels"]) == ["large", "small"]
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        scores = cross_validate(three, methods="knn", genes="all", **FAST)
    # Genes that the held-out panel lacks are no zeros to be predicted: they are not scored there.
    assert set(scores.loc[scores["fold"] == "donor3", "gene"]) - {""} == set(three.var_names[in_small])
    assert "did not measure" in caplog.text
    shared = cross_validate(three, methods="knn", **FAST)
    assert set(shared.loc[shared["fold"] == "donor1", "gene"]) - {""} <= set(three.var_names[in_small])


def test_one_donor(three, caplog):
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        scores = cross_validate(with_one_donor(three, donor="only"), methods=["mean", "knn"], **FAST)
    assert set(scores["fold"]) == {"donor1", "donor2", "donor3"}
    assert caplog.messages == ["The reference has one donor only: sections are held out to choose and calibrate."]


def test_what_is_left_of_two_donors_is_divided_as_by_fit(three, caplog):
    three.obs["donor"] = np.where(three.obs["donor"] == "donor3", "B", "A")
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        cross_validate(three, methods=["ridge", "knn"], **FAST)
    assert caplog.messages == ["Without 'A', 'B' one donor is left: parts of its sections are held out to choose."]


def test_one_section(three, caplog):
    part = three[(three.obs["donor"] == "donor1").to_numpy()].copy()
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        scores = cross_validate(part, methods="mean", **FAST)
    assert set(scores["fold"]) == {"block 1", "block 2", "block 3", "block 4"}
    assert "spatial blocks" in caplog.text


def test_group_key(three, caplog):
    three.obs["centre"] = np.where(three.obs["donor"] == "donor1", "x", "y")
    scores = cross_validate(three, methods="mean", group_key="centre", **FAST)
    assert set(scores["fold"]) == {"x", "y"}
    assert set(scores.loc[scores["fold"] == "y", "sample"]) == {"donor2", "donor3"}
    assert "share donors" not in caplog.text
    three.obs["half"] = np.where(np.arange(three.n_obs) % 2, "odd", "even")
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        cross_validate(three, methods="mean", group_key="half", **FAST)
    assert "share donors" in caplog.text


def test_a_donor_with_two_spots_is_predicted_but_not_scored(three, caplog):
    keep = np.ones(three.n_obs, dtype=bool)
    keep[np.flatnonzero(three.obs["donor"] == "donor3")[2:]] = False
    part = three[keep].copy()
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        scores = cross_validate(part, methods="knn", **FAST)
    held = scores[scores["fold"] == "donor3"]
    assert set(held["metric"]) == {"n_spots", "effective_n", "evidence_share"}
    assert value(held, metric="n_spots")[0] == 2
    assert "donor3 has 2 spots only" in caplog.text
    assert group_means(scores, "pearson")["value"].count() == 2


def test_sections_with_the_same_image_are_left_out_together(three, caplog):
    hashes = three.uns["ragst"]["sections"]["image_hash"]
    three.uns["ragst"]["sections"]["image_hash"] = np.array([hashes[0], hashes[0], hashes[2]])
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        folds = {fold.name: fold for fold in outer_folds(open_bank(three, fitted=False), None)}
    donors = three.obs["donor"].astype(str).to_numpy()
    assert set(donors[folds["donor1"].training]) == {"donor3"}
    assert set(donors[folds["donor3"].training]) == {"donor1", "donor2"}
    assert "the same image" in caplog.text


def test_same_rng_same_scores(scored):
    reference, scores = scored
    again = cross_validate(reference, methods=["mean", "ridge", "knn"], cited=(5, 10, 50), inplace=False, **FAST)
    pd.testing.assert_frame_equal(scores, again)


def test_fewer_genes_than_asked_for(three, caplog):
    with caplog.at_level(logging.INFO, logger="ragst_sd"):
        scores = cross_validate(three, methods="mean", **(FAST | {"n_genes": 10_000}))
    assert scores.loc[scores["gene"] != "", "gene"].nunique() == three.n_vars
    assert "fewer than `n_genes`" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"methods": ["kn"]}, ValueError, "'kn'"),
        ({"methods": []}, ValueError, "`methods` is empty"),
        ({"options": {"rigde": {}}}, ValueError, "beside `methods`, 'rigde'"),
        ({"options": {"ridge": {"alpha": 1}}}, ValueError, "no option 'alpha'"),
        ({"group_key": "patient"}, KeyError, "'patient' not found"),
        ({"group_key": "tissue"}, ValueError, "one group only"),
        ({"genes": ["nope"]}, KeyError, "no 'nope'"),
        ({"genes": []}, ValueError, "empty"),
        ({"n_neighbors": 100_000}, ValueError, "rows are left"),
        ({"n_genes": 0}, ValueError, "`n_genes`"),
        ({"cited": (0,)}, ValueError, "`cited`"),
        ({"library_size": "none"}, ValueError, "`library_size`"),
        ({"label_key": "layer"}, KeyError, "'layer' not found"),
    ],
)
def test_bad_arguments(three, arguments, error, message):
    with pytest.raises(error, match=message):
        cross_validate(three, **(FAST | arguments))


def test_missing_group(three):
    three.obs["centre"] = pd.Categorical([None, *["x"] * 10, *["y"] * (three.n_obs - 11)])
    with pytest.raises(ValueError, match="empty in 1 rows"):
        cross_validate(three, group_key="centre", **FAST)


def test_no_section_large_enough(three):
    with pytest.raises(ValueError, match="nothing can be scored"):
        cross_validate(
            three[np.searchsorted(three.obs["donor"], ["donor1", "donor2"])].copy(), methods=["knn"], progress=False
        )


class TestByDonor:
    @pytest.fixture
    def scores(self):
        """Three donors, the first with two sections; gene values whose order of averaging matters."""
        lines = [
            ("A", "a1", [0.1, 0.3]), ("A", "a2", [0.6, np.nan]), ("B", "b", [0.5, 0.7]), ("C", "c", [0.2, 0.2]),
        ]  # fmt: skip
        return pd.DataFrame(
            [
                {
                    "method": m,
                    "fold": d,
                    "sample": s,
                    "gene": f"g{i}",
                    "unit": "u",
                    "metric": "pearson",
                    "value": v + up,
                }
                for m, up in (("base", 0.0), ("better", 0.1))
                for d, s, values in lines
                for i, v in enumerate(values)
            ]
        )

    def test_genes_then_sections_then_donors(self, scores):
        means = group_means(scores, "pearson").set_index(["method", "fold"])["value"]
        np.testing.assert_allclose(means["base"][["A", "B", "C"]], [0.4, 0.6, 0.2])

    def test_unknown_names(self, scores):
        with pytest.raises(ValueError, match="`metric`"):
            group_means(scores, "pearsn")


def test_metrics_that_are_asked_for(three):
    three.obs["label"] = np.where(three.obs["x_um"] > three.obs["x_um"].median(), "left", "right")
    sets = {"some": list(three.var_names[:40])}
    scores = cross_validate(
        three, methods="knn", metrics=["mae", "ssim", "de_ndcg", "gene_set_pearson"], gmt=sets, genes="all",
        inplace=False, **FAST,
    )  # fmt: skip
    knn = scores[scores["method"] == "knn"]
    assert set(knn["metric"]) >= {"pearson", "mae", "ssim", "de_ndcg", "gene_set_pearson"}
    assert not set(knn["metric"]) & {"rmse", "spearman", "moran_agreement", "domain_ari"}
    assert (knn.loc[knn["metric"] == "gene_set_pearson", "gene"] == "some").all()
    assert ((value(knn, metric="de_ndcg") > 0) & (value(knn, metric="de_ndcg") <= 1)).all()
    del three.obs["label"]
    with pytest.raises(KeyError, match="'label'"):
        cross_validate(three, methods="knn", metrics="de_ndcg", **FAST)
    with pytest.raises(ValueError, match="Did you mean 'ssim'"):
        cross_validate(three, methods="knn", metrics="sim", **FAST)


def test_a_curve_over_donors(three):
    whole = cross_validate(three, methods="knn", inplace=False, **FAST)
    curve = cross_validate(three, methods="knn", n_donors=[2, 1, 5], **FAST)
    assert "cv_pearson" not in three.var
    assert sorted(curve["n_donors"].unique()) == [1, 2]
    pd.testing.assert_frame_equal(
        curve[curve["n_donors"] == 2].drop(columns="n_donors").sort_values(list(whole)[:6]).reset_index(drop=True),
        whole.sort_values(list(whole)[:6]).reset_index(drop=True),
    )
    one = curve[(curve["n_donors"] == 1) & (curve["method"] == "knn") & (curve["fold"] == "donor1")]
    # By hand: the same genes, learned from one of the others.
    expected = [
        value(cross_validate(three[three.obs["donor"].isin(["donor1", other])].copy(), methods="knn", inplace=False,
                             genes=sorted(set(one["gene"]) - {""}), **FAST), fold="donor1", metric="rmse").mean()
        for other in ("donor2", "donor3")
    ]  # fmt: skip
    assert np.isclose(value(one, metric="rmse").mean(), expected, atol=1e-6).any()
    summary = rg.get.summary(curve)
    assert list(summary.index) == [("knn", 1), ("knn", 2)]
    with pytest.raises(ValueError, match="`n_donors` is \\[7\\], but without 'donor1' 2 donors are left"):
        cross_validate(three, methods="knn", n_donors=7, **FAST)


def test_rows_on_disk_are_not_read(three, tmp_path):
    rg.io.write_reference(three, tmp_path / "r.zarr.zip")
    with pytest.raises(ValueError, match="The reference is lazy"):
        cross_validate(rg.io.read_reference(tmp_path / "r.zarr.zip", lazy=True), methods="knn", **FAST)
