"""What every method gives for tissue that is drawn, beside what `tests/test_methods_common.py` holds of its arrays."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.retrieval.methods import METHODS

from ..methods import marked
from ..sections import copied

N_NEIGHBORS, N_CANDIDATES = 10, 15
VARIANTS = {
    **{method: (method, {}) for method in METHODS},
    "rag, entmax": ("rag", {"gate": "entmax", "gate_hidden": 4, "hidden": 8}),
    "rag, gumbel": ("rag", {"gate": "gumbel", "sparsity": 0.1}),
}
CITING = [name for name, (method, _) in VARIANTS.items() if METHODS[method].cites]
LEARNING = [name for name, (method, _) in VARIANTS.items() if METHODS[method].learns == "values"]
ONLY_CITING = [name for name in VARIANTS if name not in LEARNING]
# What the common suite holds of the arrays of every method is tried here on tables of one that cites and one that does not.
ONE_OF_EACH = ("rag", "ridge")
DRAWING = {"rag", "random_rag", "mlp"}
FEW_PANEL, NO_PANEL = slice(10, 14), slice(14, 17)


class Bench:
    """Three donors; references fitted once per variant and kind, and their predictions of the third donor."""

    def __init__(self, sections, embed, quick):
        self.sections, self.embed, self.quick = sections, embed, quick
        self.query = self.copy("donor3")
        self.fits, self.tables = {}, {}
        self.unfitted = {
            "plain": self.reference("donor1", "donor2"),
            "everybody": self.reference("donor1", "donor2", "donor3"),
            "two panels": self.two_panels(),
        }
        shuffled = np.random.default_rng(0).permutation(self.unfitted["plain"].n_obs)
        self.unfitted["shuffled"] = self.unfitted["plain"][shuffled].copy()
        self.unfitted["other rng"] = self.unfitted["plain"]

    def copy(self, name):
        return copied(self.sections[name])

    def reference(self, *names):
        return rg.tl.build_reference({name: self.sections[name] for name in names}, use_rep="X_colour")

    def two_panels(self):
        """Donor 2 did not measure some genes that donor 1 did, and neither measured some that only donor 3 did."""
        sections = {name: self.copy(name) for name in self.sections}
        genes = np.arange(self.query.tables["table"].n_vars)
        for name, lacks in (("donor1", np.r_[NO_PANEL]), ("donor2", np.r_[FEW_PANEL, NO_PANEL])):
            table = sections[name].tables["table"]
            sections[name].tables["table"] = table[:, ~np.isin(genes, lacks)].copy()
        reference = rg.tl.build_reference(sections, use_rep="X_colour")
        return reference[(reference.obs["donor"] != "donor3").to_numpy()].copy()

    def fit(self, name, reference, rng=0):
        method, options = VARIANTS[name]
        options = {**self.quick(method), **options}
        rg.tl.fit(
            reference, method=method, n_neighbors=N_NEIGHBORS, n_candidates=N_CANDIDATES, options=options, rng=rng,
            progress=False,
        )  # fmt: skip
        return reference

    def fitted(self, name, kind="plain"):
        if (name, kind) not in self.fits:
            self.fits[name, kind] = self.fit(name, self.unfitted[kind].copy(), rng=int(kind == "other rng"))
        return self.fits[name, kind]

    def predicted(self, name, kind="plain"):
        if (name, kind) not in self.tables:
            self.tables[name, kind] = rg.tl.predict(self.query, self.fitted(name, kind), inplace=False)
        return self.tables[name, kind]


@pytest.fixture(scope="module")
def bench(_sections, embed, quick):
    return Bench(_sections, embed, quick)


def cites(name):
    return METHODS[VARIANTS[name][0]].cites


def cited_ids(table):
    """(n, k) ids of the cited rows, in the order in which they are given."""
    ids = np.append(table.uns["retrieval"]["cited"]["reference"].to_numpy(dtype=object), "")
    return ids[table.obsm["retrieval_rows"]]


def assert_same(first, second, atol=1e-6):
    """Two tables cite the same rows and predict the same."""
    np.testing.assert_array_equal(cited_ids(first), cited_ids(second))
    np.testing.assert_allclose(first.obsm["retrieval_weights"], second.obsm["retrieval_weights"], atol=atol)
    np.testing.assert_allclose(first.layers["evidence"], second.layers["evidence"], atol=atol, rtol=0)
    np.testing.assert_allclose(first.X, second.X, atol=atol, rtol=0)
    for column in ("effective_n", "distance_percentile", "evidence_share"):
        np.testing.assert_allclose(first.obs[column], second.obs[column], atol=1e-4, err_msg=column)
    for column in ("n_donors", "out_of_reference"):
        np.testing.assert_array_equal(first.obs[column], second.obs[column])


@pytest.mark.parametrize("name", marked(VARIANTS))
def test_shapes_and_dtypes(bench, name):
    reference, table = bench.fitted(name), bench.predicted(name)
    n = bench.query.tables["table"].n_obs
    assert table.shape == (n, reference.n_vars)
    assert list(table.var_names) == list(reference.var_names)
    assert list(table.obs_names) == list(bench.query.tables["table"].obs_names)
    for values in (table.X, table.layers["evidence"], table.layers["disagreement"]):
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    for key, dtype in (("rows", np.int32), ("weights", np.float32), ("distances", np.float32)):
        assert table.obsm[f"retrieval_{key}"].shape == (n, N_NEIGHBORS)
        assert table.obsm[f"retrieval_{key}"].dtype == dtype
    key = reference.obsm["retrieval_key"]
    assert key.shape[0] == reference.n_obs
    assert key.dtype == np.float64
    assert np.isfinite(key).all()
    assert table.obs["out_of_reference"].dtype == bool
    assert np.issubdtype(table.obs["n_donors"].dtype, np.integer)
    assert table.obs["n_donors"].between(1, 2).all()
    assert table.obs["distance_percentile"].between(0, 100).all()
    share = table.obs["evidence_share"].dropna()
    assert share.between(0, 1).all()
    assert len(share) == (0 if name == "mean" else n)
    header = table.uns["retrieval"]
    assert header["method"] == VARIANTS[name][0]
    assert header["fit_hash"] == reference.uns["ragst"]["fit"]["fit_hash"]


@pytest.mark.parametrize("name", marked(VARIANTS))
def test_cited_rows_stand_in_the_table_by_falling_weight(bench, name):
    table = bench.predicted(name)
    weights = table.obsm["retrieval_weights"].astype(float)
    if not cites(name):
        assert len(table.uns["retrieval"]["cited"]) == 0
        assert table.obs["effective_n"].isna().all()
        return
    assert (np.diff(weights, axis=1) <= 0).all()
    np.testing.assert_allclose(table.obs["effective_n"], 1 / (weights**2).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", marked(CITING))
def test_fewer_neighbours_may_be_asked_for(bench, name):
    whole = bench.predicted(name)
    table = rg.tl.predict(bench.query, bench.fitted(name), n_neighbors=3, inplace=False)
    np.testing.assert_array_equal(cited_ids(table), cited_ids(whole)[:, :3])
    np.testing.assert_allclose(table.obsm["retrieval_weights"].sum(axis=1), 1, atol=1e-6)
    assert np.isfinite(table.X).all()


@pytest.mark.parametrize("name", marked(VARIANTS))
def test_another_seed_matters_only_to_methods_that_draw(bench, name):
    first, other = bench.predicted(name), bench.predicted(name, "other rng")
    if VARIANTS[name][0] in DRAWING:
        assert not np.array_equal(first.X, other.X)
    else:
        assert_same(first, other, atol=0)


@pytest.mark.parametrize("name", marked(LEARNING))
def test_methods_that_learn_refuse_a_donor_they_saw(bench, name):
    with pytest.raises(ValueError, match="was fitted on donor 'donor3', which the query holds too"):
        rg.tl.predict(bench.query, bench.fitted(name, "everybody"), inplace=False)


@pytest.mark.parametrize("name", marked(ONLY_CITING))
def test_methods_that_only_cite_leave_the_own_donor_out(bench, name):
    table = bench.predicted(name, "everybody")
    assert set(table.uns["retrieval"]["cited"]["donor"]) == {"donor1", "donor2"}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_expression_of_the_query_changes_nothing(bench, name):
    query = copied(bench.query)
    table = query.tables["table"]
    table.X = table.X[::-1] * 3
    np.testing.assert_array_equal(rg.tl.predict(query, bench.fitted(name), inplace=False).X, bench.predicted(name).X)


@pytest.mark.parametrize("centred", [False, True])
def test_the_own_donors_expression_in_the_reference_changes_nothing(bench, centred):
    references = [bench.unfitted["everybody"].copy() for _ in range(2)]
    values = references[1].X.toarray()
    own = (references[1].obs["donor"] == "donor3").to_numpy()
    values[own] = values[own][::-1] * 3
    references[1].X = type(references[1].X)(values)
    for reference in references:
        rg.tl.fit(
            reference,
            method="knn",
            n_neighbors=N_NEIGHBORS,
            options={"center_sections": centred},
            progress=False,
        )
    assert_same(*(rg.tl.predict(bench.query, reference, inplace=False) for reference in references))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_prediction_does_not_depend_on_company(bench, name):
    reference, whole = bench.fitted(name), bench.predicted(name)
    assert_same(rg.tl.predict(bench.query, reference, inplace=False), whole, atol=0)
    query = copied(bench.query)
    table = query.tables["table"]
    shuffled = np.random.default_rng(1).permutation(table.n_obs)
    for part in (shuffled, shuffled[:7], shuffled[7:8]):
        query.tables["part"] = table[part].copy()
        assert_same(rg.tl.predict(query, reference, table_key="part", inplace=False), whole[part])


@pytest.mark.parametrize("name", marked(VARIANTS))
def test_a_subset_of_genes_gets_the_same_values(bench, name):
    for kind in ("plain", "two panels"):
        whole = bench.predicted(name, kind)
        genes = list(whole.var_names[[20, 15, 2, 11]])
        part = rg.tl.predict(bench.query, bench.fitted(name, kind), genes=genes, inplace=False)
        assert list(part.var_names) == genes
        np.testing.assert_allclose(part.X, whole[:, genes].X, atol=1e-6)
        np.testing.assert_array_equal(cited_ids(part), cited_ids(whole))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_row_order_of_the_reference_does_not_matter(bench, name):
    assert_same(bench.predicted(name), bench.predicted(name, "shuffled"))


@pytest.mark.parametrize("name", marked(VARIANTS))
def test_genes_that_some_or_all_rows_did_not_measure(bench, name):
    reference, table = bench.fitted(name, "two panels"), bench.predicted(name, "two panels")
    genes = bench.query.tables["table"].var_names
    few, nowhere = (table.var_names.isin(genes[part]) for part in (FEW_PANEL, NO_PANEL))
    assert (few.sum(), nowhere.sum()) == (4, 3)
    n_donor1 = int((reference.obs["donor"] == "donor1").sum())
    assert set(table.var["n_measured"][few]) == {n_donor1}
    assert set(table.var["n_measured"][nowhere]) == {0}
    np.testing.assert_array_equal(np.isnan(table.X), np.isnan(table.layers["evidence"]))
    assert np.isnan(table.X[:, nowhere]).all()
    assert np.isfinite(table.X[:, ~few & ~nowhere]).all()
    assert np.isfinite(table.X[:, few]).any()
    for column in ("distance_percentile",) if name == "mean" else ("distance_percentile", "evidence_share"):
        assert table.obs[column].notna().all()


@pytest.fixture(scope="module")
def partly_outside(bench):
    """The query with its first spot moved off the image, and which row that is."""
    from shapely.affinity import translate

    query = copied(bench.query)
    shapes = query.shapes["spots"].copy()
    shapes.loc[shapes.index[0], "geometry"] = translate(shapes.geometry.iloc[0], -5000, 0)
    query.shapes["spots"] = shapes
    rg.pp.embed_tiles(query, **bench.embed)
    return query, query.tables["table"].obs["spot_id"].to_numpy() == shapes.index[0]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_spot_outside_the_image_gets_nan(bench, partly_outside, name):
    query, lost = partly_outside
    table = rg.tl.predict(query, bench.fitted(name), inplace=False)
    assert lost.sum() == 1
    for values in (table.X, table.layers["evidence"], table.layers["disagreement"]):
        assert np.isnan(values[lost]).all()
        assert np.isfinite(values[~lost]).all()
    assert (table.obsm["retrieval_rows"][lost] == -1).all()
    assert (table.obsm["retrieval_weights"][lost] == 0).all()
    assert (table.obs["n_donors"][lost] == 0).all()
    assert table.obs["out_of_reference"][lost].all()
    assert table.obs[["effective_n", "distance_percentile", "evidence_share"]][lost].isna().all(axis=None)


@pytest.mark.slow
def test_a_new_process_predicts_the_same_bit_for_bit(bench, tmp_path):
    code = (
        "import json, sys, numpy as np, spatialdata as sd, ragst_sd as rg\n"
        "folder, kinds = sys.argv[1], json.loads(sys.argv[2])\n"
        "query, out = sd.read_zarr(f'{folder}/query.zarr'), {}\n"
        "for i, kind in enumerate(kinds):\n"
        "    table = rg.tl.predict(query, rg.io.read_reference(f'{folder}/{i}.zarr.zip'), inplace=False)\n"
        "    out |= {f'{i}-X': table.X, f'{i}-evidence': table.layers['evidence']}\n"
        "    out |= {f'{i}-{key}': table.obsm[key] for key in table.obsm if key.startswith('retrieval')}\n"
        "np.savez(f'{folder}/out.npz', **out)\n"
    )
    kinds = [(name, "two panels") for name in VARIANTS]
    bench.query.write(tmp_path / "query.zarr")
    for i, (name, kind) in enumerate(kinds):
        rg.io.write_reference(bench.fitted(name, kind), tmp_path / f"{i}.zarr.zip")
    subprocess.run([sys.executable, "-c", code, str(tmp_path), json.dumps(kinds)], check=True)
    found = np.load(tmp_path / "out.npz")
    for i, (name, kind) in enumerate(kinds):
        table = bench.predicted(name, kind)
        np.testing.assert_array_equal(found[f"{i}-X"], table.X, err_msg=f"{name}, {kind}")
        np.testing.assert_array_equal(found[f"{i}-evidence"], table.layers["evidence"], err_msg=f"{name}, {kind}")
        for key in ("rows", "weights", "distances"):
            np.testing.assert_array_equal(found[f"{i}-retrieval_{key}"], table.obsm[f"retrieval_{key}"])
