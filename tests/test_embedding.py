"""Embeddings of any origin: with a header, without one, in every form that `.obsm` takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg

LINE = "has no header: an embedding of unknown origin"


def table_of(sdata):
    return sdata.tables["table"]


def give(sections, key="X_other", form=np.asarray):
    """The embedding of every section once more, under another name and without a header."""
    for sdata in sections.values():
        table_of(sdata).obsm[key] = form(table_of(sdata).obsm["X_colour"])
    return sections


def frame_of(table):
    return pd.DataFrame(table.obsm["X_colour"], index=table.obs_names).add_prefix("feature")


@pytest.fixture
def foreign(sections):
    return give(sections)


def build(sections, use_rep="X_other", **options):
    own = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(own, use_rep=use_rep, **options)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    return reference


class TestUnknownOrigin:
    def test_predicts_what_it_does_with_a_header(self, foreign, fitted, caplog):
        reference = build(foreign)
        rg.tl.predict(foreign["donor3"], reference)
        assert caplog.text.count(LINE) == 2, "one line for the reference, one for the query"
        rg.tl.fit(fitted, method="knn", n_neighbors=10)
        expected = rg.tl.predict(foreign["donor3"], fitted, use_rep="X_colour", inplace=False)
        np.testing.assert_array_equal(foreign["donor3"].tables["predicted"].X, expected.X)

    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_array, lambda x: (1e3 * x).astype(int)])
    def test_matrices(self, sections, form):
        give(sections, form=form)
        rg.tl.predict(sections["donor3"], build(sections))
        assert np.isfinite(sections["donor3"].tables["predicted"].X).all()

    def test_data_frames(self, sections):
        for sdata in sections.values():
            table_of(sdata).obsm["X_other"] = frame_of(table_of(sdata))
        rg.tl.predict(sections["donor3"], build(sections))
        assert np.isfinite(sections["donor3"].tables["predicted"].X).all()

    def test_the_rest_of_the_way(self, foreign, tmp_path):
        reference = build(foreign)
        query = foreign["donor3"]
        rg.tl.calibrate(reference, levels=[0.5])
        rg.tl.cross_validate(reference, methods=["knn", "ridge"])
        rg.io.write_reference(reference, tmp_path / "reference.zarr.zip")
        reference = rg.io.read_reference(tmp_path / "reference.zarr.zip")
        rg.tl.predict(query, reference, intervals=0.5)
        rg.tl.evaluate(query)
        gene, spot = reference.var_names[0], query.tables["predicted"].obs_names[0]
        rg.get.explain(query, reference, obs_names=spot, genes=gene)
        rg.get.influence(query, reference, obs_names=spot, genes=gene)
        rg.pl.prediction(query, genes=gene, show=False)
        page = rg.pl.viewer(query, reference, genes=[gene], path=None)
        assert len(page.html) > 10_000
        rg.tl.report(query, reference, path=tmp_path / "report")
        rg.io.data_card(reference, path=tmp_path / "card")
        for page in (tmp_path / "report.md", *(tmp_path / "card").glob("*.md")):
            assert "an embedding of unknown origin" in page.read_text(encoding="utf-8")

    def test_merging(self, foreign):
        parts = [rg.tl.build_reference({name: foreign[name]}, use_rep="X_other") for name in ("donor1", "donor2")]
        assert rg.tl.merge_references(parts).n_obs == sum(part.n_obs for part in parts)
        named = rg.tl.build_reference({"donor2": foreign["donor2"]}, use_rep="X_colour")
        with pytest.raises(ValueError, match=r"origin: unknown against encoder colour"):
            rg.tl.merge_references([parts[0], named])

    def test_no_pictures_of_tiles(self, foreign):
        reference = build(foreign)
        assert "thumbnail" not in reference.obsm
        query = foreign["donor3"]
        rg.tl.predict(query, reference)
        with pytest.raises(ValueError, match=r"'X_other' is of unknown origin.*use_features"):
            rg.pl.retrieval(
                query, reference, obs_names=query.tables["predicted"].obs_names[0], genes=reference.var_names[0]
            )

    def test_without_an_image(self, foreign):
        for sdata in foreign.values():
            del sdata.images["he"]
        rg.tl.predict(foreign["donor3"], build(foreign))
        with pytest.raises(ValueError, match=r"'X_other' does not say on which image its spots lie"):
            rg.pl.prediction(foreign["donor3"], genes=foreign["donor3"].tables["predicted"].var_names[0])

    def test_spots_without_features(self, foreign):
        query = foreign["donor3"]
        reference = build(foreign)
        table_of(query).obsm["X_other"][:2] = np.nan
        rg.tl.predict(query, reference)
        predicted = query.tables["predicted"]
        assert np.isnan(predicted.X[:2]).all() and np.isfinite(predicted.X[2:]).all()
        assert list(predicted.obs["out_of_reference"].iloc[:2]) == [True, True]
        table_of(foreign["donor1"]).obsm["X_other"][5] = np.nan
        assert build(foreign).n_obs == reference.n_obs - 1


class TestComparison:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x[:, 1:], r"width: \d+ against \d+"),
            (lambda x: np.where(np.arange(x.shape[1]) == 1, np.nan, x), r"NaN or infinite in \d+ rows.*NaN in every"),
            (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.inf, x), r"NaN or infinite in 1 rows"),
            (lambda x: pd.DataFrame({"a": ["text"] * len(x)}), r"obsm\['X_other'\] holds values that are no numbers"),
            (lambda x: np.full_like(x, np.nan), r"None of the \d+ spots"),
        ],
    )
    def test_what_does_not_fit_is_named(self, foreign, change, message):
        reference, query = build(foreign), foreign["donor3"]
        changed = change(np.asarray(table_of(query).obsm["X_other"]))
        if isinstance(changed, pd.DataFrame):
            changed.index = table_of(query).obs_names
        table_of(query).obsm["X_other"] = changed
        with pytest.raises(ValueError, match=message):
            rg.tl.predict(query, reference)
        assert "predicted" not in query.tables

    def test_names(self, foreign):
        give(foreign, "X_another")
        with pytest.raises(ValueError, match=r"name: X_another against X_other"):
            rg.tl.predict(foreign["donor3"], build(foreign), use_rep="X_another")

    def test_a_lost_header_is_no_way_around_the_comparison(self, sections, fitted):
        del table_of(sections["donor3"]).uns["ragst"]["embeddings"]["X_colour"]
        with pytest.raises(ValueError, match=r"origin: unknown against encoder colour.*use_features"):
            rg.tl.predict(sections["donor3"], fitted)
        with pytest.raises(ValueError, match=r"origin: encoder colour against unknown"):
            rg.tl.build_reference(sections, use_rep="X_colour")
