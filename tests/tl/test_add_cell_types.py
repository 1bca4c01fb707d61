"""`rg.tl.add_cell_types`, and what predictions make of it."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ragst_sd as rg
from ragst_sd._cell_types import cell_types_hash
from ragst_sd.reference.normalize import log_normalize

TYPES = ("A/b", "B", "C")
EXTRA = ("only_in_cells1", "only_in_cells2")


@pytest.fixture
def cells(reference):
    """Counts of 40 cells of each of three types, in all genes of the reference and two more."""
    rng = np.random.default_rng(0)
    genes = [*reference.var_names, *EXTRA]
    types = np.repeat(np.arange(len(TYPES)), 40)
    rates = rng.gamma(0.7, 5, (len(TYPES), len(genes)))[types]
    return ad.AnnData(
        rng.poisson(rates).astype(np.float32),
        obs=pd.DataFrame({"type": np.asarray(TYPES)[types]}, index=[f"cell{i}" for i in range(len(types))]),
        var=pd.DataFrame(index=genes),
    )


@pytest.fixture
def given(reference):
    """Abundances computed elsewhere."""
    values = np.random.default_rng(1).gamma(1, 3, (reference.n_obs, len(TYPES)))
    return pd.DataFrame(values, index=reference.obs_names, columns=TYPES)


@pytest.fixture
def paired(fitted, cells):
    rg.tl.add_cell_types(fitted, cells, cell_type_key="type", source={"license": "CC-BY-4.0", "citation": "A"})
    return fitted


def hash_of(reference):
    about, fractions = reference.uns["ragst"]["cell_types"], reference.obsm["cell_type_fraction"]
    return cell_types_hash(reference.obs_names.to_numpy(), fractions, about)


def test_made_rows_get_their_fractions_back(reference, cells):
    """Rows of the reference are replaced by mixtures of the cells."""
    rng = np.random.default_rng(2)
    truth = rng.dirichlet(np.full(3, 0.5), reference.n_obs)
    profiles = np.stack([cells.X[cells.obs["type"] == name].sum(axis=0) for name in TYPES])[:, : reference.n_vars]
    profiles /= profiles.sum(axis=1, keepdims=True)
    counts = rng.poisson(3000 * truth @ profiles).astype(np.float32)
    reference.X = log_normalize(sp.csr_matrix(counts), counts.sum(axis=1) / 1e4)
    rg.tl.add_cell_types(reference, cells, cell_type_key="type")
    found = reference.obsm["cell_type_fraction"]
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.99
    assert reference.obs["cell_type_fit"].min() > 0.8


def test_what_is_written(paired, cells):
    fractions = paired.obsm["cell_type_fraction"]
    assert fractions.dtype == np.float32
    np.testing.assert_allclose(fractions.sum(axis=1), 1, atol=1e-6)
    about = paired.uns["ragst"]["cell_types"]
    assert list(about["names"]) == list(TYPES)
    assert about["source"] == {"name": "unknown", "license": "CC-BY-4.0", "citation": "A"}
    assert list(about["n_cells"]) == [40, 40, 40]
    assert list(about["genes"]) == list(cells.var_names)
    assert about["platform_effects"].shape == (len(about["genes_used"]), 1)
    own = cells.X[cells.obs["type"] == "B"].sum(axis=0)
    shared = cells.var_names.isin(paired.var_names)
    np.testing.assert_allclose(about["signatures"][1], own / own[shared].sum() * 1e4, rtol=1e-5)


def test_symbols_may_stand_in_a_column(reference, cells):
    """As in objects from CELLxGENE, whose names are Ensembl ids."""
    cells.var["feature_name"] = cells.var_names
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    rg.tl.add_cell_types(reference, cells, cell_type_key="type")
    assert list(reference.uns["ragst"]["cell_types"]["genes_used"]) == list(reference.var_names)


def test_a_fit_stays_valid_and_predictions_hash_the_fractions(paired, query, given):
    first = rg.tl.predict(query, paired, inplace=False)
    content = paired.uns["ragst"]["content_hash"]
    rg.tl.add_cell_types(paired, fractions=given)
    second = rg.tl.predict(query, paired, inplace=False)
    assert paired.uns["ragst"]["content_hash"] == content
    np.testing.assert_array_equal(first.X, second.X)
    one, two = (table.uns["retrieval"]["cell_types"] for table in (first, second))
    assert one["hash"] != two["hash"]
    assert (one["method"], two["method"]) == ("nnls", "given")
    assert hash_of(paired[::-1].copy()) == two["hash"]


def test_predicted_fractions_are_the_weighted_mean_of_the_cited_rows(paired, query):
    gone = paired.obs_names[:20]
    paired.obsm["cell_type_fraction"][:20] = np.nan
    table = rg.tl.predict(query, paired, inplace=False)
    cited = table.uns["retrieval"]["cited"]["reference"].to_numpy()
    assert np.isin(cited, gone).any()
    for spot in range(table.n_obs):
        names = cited[table.obsm["retrieval_rows"][spot]]
        own = paired[names].obsm["cell_type_fraction"]
        weights = table.obsm["retrieval_weights"][spot] * np.isfinite(own).all(axis=1)
        expected = np.nansum(weights[:, None] * own, axis=0) / weights.sum() if weights.sum() else np.full(3, np.nan)
        np.testing.assert_allclose(table.obsm["cell_type_fraction"][spot], expected, atol=1e-5)


def test_genes_that_no_row_measured_come_from_cell_types(paired, query, caplog):
    measured = list(paired.var_names[[7, 2]])
    asked = [EXTRA[1], measured[0], EXTRA[0], measured[1]]
    with caplog.at_level(logging.WARNING):
        table = rg.tl.predict(query, paired, genes=asked, inplace=False)
    assert "2 of 4 genes were measured in no row" in caplog.text
    assert list(table.var_names) == asked
    assert list(table.var["evidence"]) == ["scRNA-seq", "measured", "scRNA-seq", "measured"]
    assert list(table.var["n_measured"]) == [0, paired.n_obs, 0, paired.n_obs]
    about = paired.uns["ragst"]["cell_types"]
    profile = about["signatures"][:, list(about["genes"]).index(EXTRA[0])]
    expected = np.log1p(table.obsm["cell_type_fraction"] @ profile)
    np.testing.assert_allclose(table[:, EXTRA[0]].X.ravel(), expected, rtol=1e-5)
    np.testing.assert_array_equal(table.layers["evidence"], table.X)
    assert np.isnan(table.layers["disagreement"][:, [0, 2]]).all()
    alone = rg.tl.predict(query, paired, genes=measured, inplace=False)
    np.testing.assert_array_equal(table[:, measured].X, alone.X)
    np.testing.assert_array_equal(table[:, measured].layers["disagreement"], alone.layers["disagreement"])
    only = rg.tl.predict(query, paired, genes=EXTRA[0], inplace=False)
    np.testing.assert_array_equal(only.X, table[:, [EXTRA[0]]].X)
    assert not set(EXTRA) & set(rg.tl.predict(query, paired, inplace=False).var_names)


def test_limits_of_genes_from_single_cells_are_nan(paired, query):
    rg.tl.calibrate(paired, levels=[0.5], progress=False)
    table = rg.tl.predict(query, paired, genes=[EXTRA[0], paired.var_names[0]], intervals=0.5, inplace=False)
    for name in ("lower", "upper"):
        assert np.isnan(table.layers[name][:, 0]).all()
        assert np.isfinite(table.layers[name][:, 1]).any()
    assert np.isnan(table.varm["interval_quantiles"][0]).all()


def test_cells_and_given_fractions_together(fitted, cells, given, query):
    rg.tl.add_cell_types(fitted, cells, cell_type_key="type", fractions=given[["C", "A/b", "B"]])
    about = fitted.uns["ragst"]["cell_types"]
    assert list(about["names"]) == ["C", "A/b", "B"]
    expected = given[["C", "A/b", "B"]].to_numpy()
    np.testing.assert_allclose(
        fitted.obsm["cell_type_fraction"], expected / expected.sum(axis=1, keepdims=True), rtol=1e-5
    )
    assert fitted.obs["cell_type_fit"].isna().all()
    own = cells.X[cells.obs["type"] == "C"].sum(axis=0)
    np.testing.assert_allclose(about["signatures"][0] / about["signatures"][0].sum(), own / own.sum(), rtol=1e-5)
    assert np.isfinite(rg.tl.predict(query, fitted, genes=[EXTRA[0]], inplace=False).X).all()


def test_rows_without_given_fractions_have_none(fitted, given, caplog):
    with caplog.at_level(logging.WARNING):
        rg.tl.add_cell_types(fitted, fractions=given.iloc[5:])
    assert f"5 of {fitted.n_obs} rows" in caplog.text
    assert np.isnan(fitted.obsm["cell_type_fraction"][:5]).all()


def test_methods_that_cite_nobody_leave_no_fractions(reference, cells, query):
    rg.tl.add_cell_types(reference, cells, cell_type_key="type")
    rg.tl.fit(reference, method="ridge")
    table = rg.tl.predict(query, reference, inplace=False)
    assert "cell_type_fraction" not in table.obsm
    with pytest.raises(ValueError, match="cites no rows"):
        rg.tl.predict(query, reference, genes=[EXTRA[0]])


@pytest.mark.slow
def test_survives_the_disk(paired, query, tmp_path):
    import spatialdata as sd

    rg.io.write_reference(paired, tmp_path / "reference.zarr.zip")
    again = rg.io.read_reference(tmp_path / "reference.zarr.zip")
    asked = [EXTRA[0], paired.var_names[0]]
    rg.tl.predict(query, paired, genes=asked)
    query.write(tmp_path / "query.zarr")
    table = sd.read_zarr(tmp_path / "query.zarr").tables["predicted"]
    fresh = rg.tl.predict(query, again, genes=asked, inplace=False)
    np.testing.assert_array_equal(table.X, fresh.X)
    assert [str(name) for name in table.uns["retrieval"]["cell_types"]["names"]] == list(TYPES)
    parts = rg.get.explain(table, again, obs_names=table.obs_names[0], genes=EXTRA[0])
    assert parts["contribution"].sum() == pytest.approx(table[:, [EXTRA[0]]].X[0, 0], abs=1e-5)


class TestBadInput:
    """Each refused by name, and the reference stays as it was."""

    @pytest.fixture(autouse=True)
    def unchanged(self, reference):
        yield
        assert "cell_type_fraction" not in reference.obsm
        assert "cell_types" not in reference.uns["ragst"]

    def refused(self, reference, cells, match, error=ValueError, **kwargs):
        with pytest.raises(error, match=match):
            rg.tl.add_cell_types(reference, cells, **({"cell_type_key": "type"} | kwargs))

    def test_nothing_given(self, reference):
        with pytest.raises(ValueError, match="Neither single cells nor fractions"):
            rg.tl.add_cell_types(reference)

    def test_no_column(self, reference, cells):
        self.refused(reference, cells, "Did you mean 'type'", KeyError, cell_type_key="types")
        self.refused(reference, cells, "`cell_type_key` is missing.*'type'", cell_type_key=None)

    def test_raw_and_logged_values_mixed(self, reference, cells):
        cells.X[:50] = np.log1p(cells.X[:50] / cells.X[:50].sum(axis=1, keepdims=True) * 1e4)
        self.refused(reference, cells, "raw and logged values: 70 rows .* hold whole numbers .* 50 rows")

    def test_logged_values(self, reference, cells):
        cells.X = np.log1p(cells.X / cells.X.sum(axis=1, keepdims=True) * 1e4)
        self.refused(reference, cells, "log-transformed already")

    def test_no_overlap(self, reference, cells):
        cells.var_names = [f"other{i}" for i in range(cells.n_vars)]
        self.refused(reference, cells, "share 0 genes; at least 50 of")

    def test_symbols_of_another_species(self, reference, cells):
        cells.var_names = [name.capitalize() for name in cells.var_names]
        self.refused(reference, cells, "the species differ")

    def test_ids_instead_of_symbols(self, reference, cells):
        cells.var_names = [f"ENSMUSG{i:011d}" for i in range(cells.n_vars)]
        self.refused(reference, cells, "names its genes by symbols, `adata_sc` by Ensembl ids")

    def test_one_type(self, reference, cells):
        self.refused(reference, cells, "leaves 0 cell types with 41 cells", min_cells=41)

    def test_genes(self, reference, cells):
        self.refused(reference, cells, "do not both have 'only_in_cells1'", genes=[*reference.var_names, EXTRA[0]])
        self.refused(reference, cells, "names 2 genes; at least 50", genes=list(reference.var_names[:2]))

    def test_source(self, reference, cells):
        self.refused(reference, cells, "unknown fields 'licence'", source={"licence": "MIT"})

    def test_fractions(self, reference, cells, given):
        self.refused(reference, None, "must be DataFrame", TypeError, fractions=given.to_numpy())
        self.refused(reference, None, "negative", fractions=-given)
        self.refused(reference, None, "names no row", fractions=given.set_axis(range(len(given))))
        self.refused(reference, cells, "only one of them has 'C', 'D'", fractions=given.rename(columns={"C": "D"}))

    def test_genes_that_nobody_has(self, fitted, query):
        with pytest.raises(ValueError, match=r"can be given from single cells: `rg\.tl\.add_cell_types`"):
            rg.tl.predict(query, fitted, genes=[EXTRA[0]])


class TestMerging:
    """`rg.tl.merge_references` keeps the cell types of parts of one reference, and tells where it cannot."""

    def merge(self, caplog, *references):
        caplog.clear()
        merged = rg.tl.merge_references(list(references))
        return merged, "cell types" in caplog.text

    def test_parts_of_one_reference_keep_theirs(self, paired, caplog, tmp_path):
        halves = [paired[paired.obs["sample"] == name].copy() for name in sorted(set(paired.obs["sample"]))]
        rg.io.write_reference(halves[0], tmp_path / "half.zarr.zip")
        halves[0] = rg.io.read_reference(tmp_path / "half.zarr.zip")
        merged, warned = self.merge(caplog, *halves[::-1])
        assert not warned
        assert merged.obs_names.tolist() != paired.obs_names.tolist()
        assert hash_of(merged) == hash_of(paired)
        np.testing.assert_array_equal(merged.obs["cell_type_fit"], paired.obs.loc[merged.obs_names, "cell_type_fit"])
        one, warned = self.merge(caplog, halves[0])
        assert not warned
        np.testing.assert_array_equal(one.obsm["cell_type_fraction"], paired[one.obs_names].obsm["cell_type_fraction"])

    def test_only_effects_of_remaining_panels_stay(self, sections, cells, caplog):
        sections = {name: sections[name] for name in ("donor1", "donor2")}
        sources = {name: {"panel": f"probes of {name}"} for name in sections}
        both = rg.tl.build_reference(sections, use_rep="X_colour", sources=sources)
        rg.tl.add_cell_types(both, cells, cell_type_key="type")
        last, warned = self.merge(caplog, both[both.obs["donor"] == "donor2"])
        assert not warned
        old, new = (one.uns["ragst"]["cell_types"]["platform_effects"] for one in (both, last))
        at = list(both.uns["ragst"]["panels"]).index("probes of donor2")
        np.testing.assert_array_equal(new, old[:, [at]])
        assert old.shape[1] == 2 and not np.array_equal(old[:, 0], old[:, 1])

    def test_others_lose_them_with_a_warning(self, paired, cells, caplog):
        names = sorted(set(paired.obs["sample"]))
        first, second = (paired[paired.obs["sample"] == name].copy() for name in names[:2])
        bare = rg.tl.merge_references(second)
        for key in (bare.uns["ragst"].pop("cell_types"), bare.obsm.pop("cell_type_fraction")):
            assert key is not None
        merged, _ = self.merge(caplog, first, bare)
        assert "no cell types: references[1] has none" in caplog.text
        assert "Run `rg.tl.add_cell_types` on it again" in caplog.text
        rg.tl.add_cell_types(second, cells[cells.obs["type"] != "B"], cell_type_key="type")
        merged, _ = self.merge(caplog, first, second)
        assert "references[1] has other types, signatures or platform effects than the first" in caplog.text
        assert "cell_types" not in merged.uns["ragst"] and "cell_type_fraction" not in merged.obsm

    def test_rows_on_another_scale_lose_them(self, sections, cells, caplog):
        table = sections["donor3"].tables["table"]
        sections["donor3"].tables["table"] = table[:, 20:].copy()
        everything = rg.tl.build_reference(sections, use_rep="X_colour")
        rg.tl.add_cell_types(everything, cells, cell_type_key="type")
        rest, _ = self.merge(caplog, everything[everything.obs["donor"] != "donor3"])
        assert "normalised anew, and the signatures of its cell types are on the old scale" in caplog.text
        assert "cell_types" not in rest.uns["ragst"]
