"""The regression of `rag`, resolved into sections and rows: lines add up however the rows were restricted."""

from __future__ import annotations

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.reference.hashing import fit_hash

GENES = 3


def change_fit(reference, **parameters):
    """The fit with other parameters, as if held-out donors had asked for them."""
    header = reference.uns["ragst"]
    header["fit"]["parameters"] |= parameters
    header["fit"]["fit_hash"] = fit_hash(
        header, header["fit"], *(reference.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )


@pytest.fixture(scope="module")
def _stack(_reference, quick):
    stack = _reference.copy()
    rg.tl.fit(stack, n_neighbors=8, options=quick("rag"), progress=False)
    change_fit(stack, retrieval_share=np.linspace(0.3, 0.8, stack.n_vars))
    return stack


@pytest.fixture
def stack(_stack):
    return _stack.copy()


def lines_of(query, reference, **kwargs):
    table = query.tables["predicted"]
    spots, genes = list(table.obs_names[:4]), list(table.var_names[:GENES])
    frame = rg.get.explain(query, reference, obs_names=spots, genes=genes, **kwargs)
    total = frame.groupby(["query", "gene"])["contribution"].sum().unstack().loc[spots, genes]
    np.testing.assert_allclose(total, table[spots, genes].X, atol=1e-5)
    return frame


@pytest.mark.parametrize(
    "restricted",
    [
        {},
        {"where": {"donor": ["donor1"]}},
        {"where": "half"},
        {"exclude": ()},
        {"n_neighbors": 3},
    ],
)
def test_lines_add_up(query, stack, restricted):
    if restricted.get("where") == "half":
        restricted = {"where": np.arange(stack.n_obs) % 2 == 0}
    rg.tl.predict(query, stack, **restricted)
    by_section, by_row = lines_of(query, stack), lines_of(query, stack, terms="all")
    # Rows may lie in another order than when the table was predicted.
    shuffled = stack[np.random.default_rng(0).permutation(stack.n_obs)].copy()
    lines_of(query, shuffled, terms="all")

    names = stack.obs_names
    spot, gene = query.tables["predicted"].obs_names[0], stack.var_names[1]
    share = np.linspace(0.3, 0.8, stack.n_vars)[1]
    cited = by_section[(by_section["query"] == spot) & (by_section["gene"] == gene)]
    weights = cited.set_index("reference")["weight"]
    assert weights[weights.index.isin(names)].sum() == pytest.approx(share)
    assert weights["reference mean"] == pytest.approx(1 - share)
    assert set(cited["reference"]) - set(names) == {"reference mean", "regression"}

    rows = by_row[(by_row["query"] == spot) & (by_row["gene"] == gene)]
    rows = rows.iloc[list(rows["reference"]).index("reference mean") + 1 :]
    allowed = np.ones(stack.n_obs, dtype=bool)
    if isinstance(restricted.get("where"), np.ndarray):
        allowed = restricted["where"]
    elif "where" in restricted:
        allowed = (stack.obs["donor"] == "donor1").to_numpy()
    assert set(rows["reference"]) <= set(names[allowed])
    np.testing.assert_allclose(rows["weight"] * (rows["value"] + rows["correction"]), rows["contribution"])
    np.testing.assert_allclose(rows["value"], stack[rows["reference"].to_numpy(), gene].X.toarray().ravel())


@pytest.mark.parametrize("restricted", [{}, {"exclude": ()}])
def test_lines_of_the_regression_alone_add_up(sections, query, reference, quick, restricted):
    rg.tl.fit(reference, method="kernel_ridge", options=quick("kernel_ridge"), progress=False)
    asked = sections["donor1"] if "exclude" in restricted else query
    rg.tl.predict(asked, reference, **restricted)
    lines_of(asked, reference)
    lines_of(asked, reference, terms="all")


def test_nothing_is_cited_where_the_regression_says_all(query, stack):
    change_fit(stack, retrieval_share=np.zeros(stack.n_vars))
    rg.tl.predict(query, stack)
    table = query.tables["predicted"]
    assert (table.obsm["retrieval_rows"] == -1).all()
    assert (table.obsm["retrieval_weights"] == 0).all()
    assert table.obs["effective_n"].isna().all()
    assert table.obs["n_donors"].min() >= 1
    assert np.isfinite(table.layers["disagreement"]).all()
    frame = lines_of(query, stack)
    assert set(frame["reference"]) == {"reference mean", "regression"}
    assert (frame.loc[frame["reference"] == "reference mean", "weight"] == 1).all()


def test_lazy_reference(query, stack, tmp_path):
    rg.io.write_reference(stack, tmp_path / "r.zarr.zip")
    lazy = rg.io.read_reference(tmp_path / "r.zarr.zip", lazy=True)
    rg.tl.predict(query, stack, key_added="whole")
    rg.tl.predict(query, lazy)
    np.testing.assert_array_equal(query.tables["predicted"].X, query.tables["whole"].X)
    frame = lines_of(query, lazy)
    assert (frame["reference"] == "regression").sum() == 4 * GENES
    with pytest.raises(ValueError, match=r"to_memory\(\)"):
        rg.tl.predict(query, lazy, where={"donor": ["donor1"]})


def test_uncited_rows_that_changed_are_noticed(query, stack):
    rg.tl.predict(query, stack)
    table = query.tables["predicted"]
    spot, gene = table.obs_names[0], table.var_names[0]
    cited = set(rg.get.neighbors(query, obs_names=spot)["reference"])
    row = next(name for name in stack.obs_names if name not in cited)
    changed = stack.copy()
    changed.X = changed.X.toarray()
    changed.X[changed.obs_names.get_loc(row), changed.var_names.get_loc(gene)] = 90.0
    with pytest.raises(ValueError, match=r"do not cite changed|changed"):
        rg.get.explain(query, changed, obs_names=spot, genes=gene)


def test_terms_is_one_of_two(query, stack):
    rg.tl.predict(query, stack)
    with pytest.raises(ValueError, match="`terms` is 'rows'"):
        rg.get.explain(query, stack, obs_names=query.tables["predicted"].obs_names[0], genes=GENES, terms="rows")


def without_genes(sections, **dropped):
    """Sections whose tables lack some genes, as those of another panel do."""
    for name, genes in dropped.items():
        table = sections[name].tables["table"]
        sections[name].tables["table"] = table[:, ~table.var_names.isin(genes)].copy()


@pytest.fixture
def panels(sections, query, quick):
    """A reference of two panels, each of which lacks three genes of the other, fitted; half of it is retrieval."""
    names = query.tables["table"].var_names
    without_genes(sections, donor1=names[:3], donor2=names[3:6])
    reference = rg.tl.build_reference({key: sections[key] for key in ("donor1", "donor2")}, use_rep="X_colour")
    rg.tl.fit(reference, n_neighbors=4, options=quick("rag"), progress=False)
    change_fit(reference, retrieval_share=np.full(reference.n_vars, 0.5))
    return reference, list(names[:3]), list(names[3:6])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_gene_that_no_usable_row_measured_is_missing_throughout(query, panels, share):
    reference, absent, present = panels
    change_fit(reference, retrieval_share=np.full(reference.n_vars, share))
    rg.tl.predict(query, reference, where={"donor": ["donor1"]})
    table = query.tables["predicted"]
    for values in (table.X, table.layers["evidence"]):
        columns = table.var_names.isin(absent)
        assert np.isnan(values[:, columns]).all()
        assert np.isfinite(values[:, ~columns]).all()
    frame = rg.get.explain(query, reference, obs_names=table.obs_names[0], genes=absent[:1])
    assert "not measured" in set(frame["reference"])
    assert np.isnan(frame["contribution"].sum(skipna=False))
    frame = rg.get.explain(query, reference, obs_names=table.obs_names[0], genes=present[0])
    assert frame["contribution"].sum() == pytest.approx(table[table.obs_names[0], present[0]].X.item(), abs=1e-5)


def test_the_mean_is_that_of_the_rows_that_may_be_used_without_centred_sections(query, reference, quick):
    options = {**quick("rag"), "center_sections": False}
    rg.tl.fit(reference, n_neighbors=8, options=options, progress=False)
    change_fit(reference, retrieval_share=np.zeros(reference.n_vars))
    rg.tl.predict(query, reference, where={"donor": ["donor1"]})
    table = query.tables["predicted"]
    mean = reference[reference.obs["donor"] == "donor1"].X.toarray().mean(axis=0)
    np.testing.assert_allclose(table.layers["evidence"], np.tile(mean, (table.n_obs, 1)), atol=1e-5)
    np.testing.assert_allclose(table.obs["evidence_share"], 0, atol=1e-6)
    lines_of(query, reference)


def test_a_lost_regression_is_named(query, stack):
    rg.tl.predict(query, stack)
    table = query.tables["predicted"]
    spot, gene = table.obs_names[0], table.var_names[0]
    refitted = stack.copy()
    rg.tl.fit(refitted, method="knn", n_neighbors=8)
    with pytest.raises(ValueError, match=r"Fit it as it was: `rg.tl.fit\(reference, method='rag'\)`"):
        rg.get.explain(query, refitted, obs_names=spot, genes=gene)
    del table.obsm["regression_key"]
    with pytest.raises(KeyError, match="regression_key"):
        rg.get.explain(query, stack, obs_names=spot, genes=gene)


def test_pictures_of_genes_with_and_without_cited_rows(query, panels):
    reference, absent, present = panels
    change_fit(reference, retrieval_share=np.ones(reference.n_vars))
    rg.tl.predict(query, reference, n_neighbors=1)
    spot = query.tables["predicted"].obs_names[0]
    rg.pl.explain(query, reference, obs_names=spot, genes=[absent[0], present[0], reference.var_names[9]], show=False)
