"""Columns of sections in a reference: missing labels stay missing, and every dtype can be written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

BUILD = {"use_rep": "X_colour", "thumbnails": False}


def annotate(sections, make, column="kind"):
    for sdata in sections.values():
        table = sdata.tables["table"]
        table.obs[column] = make(table.n_obs)
    return sections


def some_missing(missing):
    """Two labels in turn, and every third one missing."""
    return lambda n: np.array([missing if i % 3 == 0 else "ab"[i % 2] for i in range(n)], dtype=object)


def written(reference, folder):
    folder.mkdir(exist_ok=True)
    rg.io.write_reference(reference, folder / "r.zarr.zip", overwrite=True)
    return rg.io.read_reference(folder / "r.zarr.zip")


def test_missing_labels_stay_missing(sections, tmp_path):
    columns = {f"column{i}": some_missing(one) for i, one in enumerate([None, np.nan, pd.NA, "", " ", "nan", "None"])}
    for column, make in columns.items():
        annotate(sections, make, column)
    reference = rg.tl.build_reference(sections, obs=list(columns), **BUILD)
    back = written(reference, tmp_path)
    n_missing = sum(-(-s.tables["table"].n_obs // 3) for s in sections.values())
    for one in (reference, back):
        for column in columns:
            assert set(one.obs[column].dropna()) == {"a", "b"}, column
            assert one.obs[column].isna().sum() == n_missing, column
    assert back.uns["ragst"]["content_hash"] == reference.uns["ragst"]["content_hash"]


@pytest.mark.slow
def test_they_score_as_no_class_before_and_after(sections, tmp_path):
    scores = []
    for missing in (None, "nan"):
        reference = rg.tl.build_reference(annotate(sections, some_missing(missing)), obs=["kind"], **BUILD)
        for one in (reference, written(reference, tmp_path / str(missing))):
            found = rg.tl.cross_validate(one, methods=["knn"], label_key="kind", progress=False)
            scores.append(found[found["metric"].isin(["label_share", "label_share_random", "domain_ari"])])
    assert len(scores[0])
    for other in scores[1:]:
        pd.testing.assert_frame_equal(other, scores[0])


def test_they_are_no_choice_and_no_group_of_their_own(sections):
    annotate(sections, some_missing(None))
    query = sections.pop("donor3")
    reference = rg.tl.build_reference(sections, obs=["kind"], **BUILD)
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    with pytest.raises(ValueError, match="no row has kind 'nan'; there are 'a', 'b'"):
        rg.tl.predict(query, reference, where={"kind": "nan"})
    rg.tl.predict(query, reference)
    assert set(rg.get.influence(query, reference, group_key="kind")["group"]) == {"a", "b", "unknown"}


@pytest.mark.parametrize("missing", [None, "", "nan"])
def test_a_donor_must_not_be_missing(sections, missing):
    donors = sections["donor1"].tables["table"].obs["donor"].astype(object).copy()
    donors.iloc[:2] = missing
    sections["donor1"].tables["table"].obs["donor"] = donors
    with pytest.raises(ValueError, match=r"2 rows have no donor in `obs\['donor'\]`"):
        rg.tl.build_reference(sections, **BUILD)


def test_missing_organ_and_sample_are_unknown(sections):
    for sdata in sections.values():
        sdata.tables["table"].obs["sample"] = None
        sdata.tables["table"].uns["ragst"].pop("source", None)
    annotate(sections, some_missing(None), "tissue")
    reference = rg.tl.build_reference(list(sections.values()), obs=["tissue"], **BUILD)
    assert set(reference.obs["tissue"]) == {"a", "b", "unknown"}
    assert set(reference.obs["sample"]) == {"sample1", "sample2", "sample3"}


COLUMNS = {
    "string": lambda n: pd.array(["a", None] * (n // 2) + ["b"] * (n % 2), dtype="string"),
    "str": lambda n: pd.Series(["a"] * n).astype("str").array,
    "Int64": lambda n: pd.array([None, *range(n - 1)], dtype="Int64"),
    "Float64": lambda n: pd.array([None, *range(n - 1)], dtype="Float64"),
    "boolean": lambda n: pd.array([None] + [True] * (n - 1), dtype="boolean"),
    "datetime": lambda n: pd.date_range("2020-01-01", periods=n, tz="UTC"),
    "timedelta": lambda n: pd.to_timedelta(np.arange(n), unit="s"),
    "period": lambda n: pd.period_range("2020-01", periods=n, freq="M"),
    "interval": lambda n: pd.arrays.IntervalArray.from_breaks(np.arange(n + 1)),
    "cut": lambda n: pd.cut(np.arange(n, dtype=float), [0, 5, 10]),
    "sparse": lambda n: pd.arrays.SparseArray(np.arange(n) * 1.0),
    "mixed": lambda n: np.array([1, "1", None, True] * n, dtype=object)[:n],
}


def test_every_dtype_is_written_and_read(sections, tmp_path):
    for kind, make in COLUMNS.items():
        annotate(sections, make, kind)
    reference = rg.tl.build_reference(sections, obs=list(COLUMNS), **BUILD)
    back = written(reference, tmp_path)
    for kind in COLUMNS:
        given = pd.concat([sdata.tables["table"].obs[kind] for sdata in sections.values()])
        found, built = back.obs[kind], reference.obs[kind]
        assert found.isna().tolist() == built.isna().tolist() == given.isna().tolist(), kind
        assert found.dropna().astype(str).tolist() == built.dropna().astype(str).tolist(), kind
        assert found.dropna().nunique() == given.dropna().astype(str).nunique(), kind


@pytest.mark.skipif(pd.__version__.startswith("2.2"), reason="anndata does not write the strings of pandas 2.2")
def test_strings_of_the_pandas_to_come(sections, tmp_path):
    with pd.option_context("future.infer_string", True):
        for sdata in sections.values():
            obs = sdata.tables["table"].obs
            obs["kind"], obs["donor"] = list(some_missing(None)(len(obs))), obs["donor"].astype(str).tolist()
        query = sections.pop("donor3")
        back = written(rg.tl.build_reference(sections, obs=["kind"], **BUILD), tmp_path)
        assert set(back.obs["kind"].dropna()) == {"a", "b"} and back.obs["kind"].isna().any()
        rg.tl.fit(back, method="knn", n_neighbors=5)
        rg.tl.predict(query, back)
        assert np.isfinite(rg.tl.evaluate(query)["value"]).any()


def test_lists_are_refused(sections):
    annotate(sections, lambda n: pd.Series([[1, 2]] * n, dtype=object).array)
    with pytest.raises(ValueError, match=r"`obs\['kind'\]` holds a list \(\[1, 2\]\) where a label is expected"):
        rg.tl.build_reference(sections, obs=["kind"], **BUILD)


def test_an_order_of_obs_alone_is_told(sections, caplog):
    """Assigning a sorted data frame to `.obs` leaves values and embeddings where they were."""
    table = sections["donor1"].tables["table"]
    rg.tl.build_reference(sections, **BUILD)
    assert "lie elsewhere" not in caplog.text
    table.obs = table.obs.sort_values("n_nuclei", kind="stable")
    rg.tl.build_reference(sections, **BUILD)
    assert "sdatas['donor1']: by `obsm['spatial']` the spots lie elsewhere" in caplog.text
    caplog.clear()
    rg.pp.embed_tiles(sections["donor1"], model=lambda tiles: tiles.mean((2, 3)), tile_px=8, progress=False)
    assert "Table 'table': by `obsm['spatial']` the spots lie elsewhere" in caplog.text
    caplog.clear()
    rg.pp.embed_tiles(sections["donor2"], model=lambda tiles: tiles.mean((2, 3)), tile_px=8, progress=False)
    assert "lie elsewhere" not in caplog.text


def test_clusters_taken_for_donors_are_told(sections, caplog):
    rg.tl.build_reference(sections, **BUILD)
    assert "beside a spot of another one" not in caplog.text
    annotate(sections, lambda n: np.arange(n) % 3, "leiden")
    rg.tl.build_reference(sections, donor_key="leiden", **BUILD)
    assert "sdatas['donor2']: 3 donors by `obs['leiden']`" in caplog.text
