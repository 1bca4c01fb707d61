from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._reference import reference_hash
from ragst_sd.reference.hashing import fit_hash
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

from ..screens import QUICK, planted_screen

BUILD = {"unit": "log1p_cp10k", "context_key": "cell_type", "batch_key": "batch"}
ASK = {"unit": "log1p_cp10k", "context_key": "cell_type"}
ALWAYS = [name for name, method in RESPONSE_METHODS.items() if method.lacks is None]


@pytest.fixture(scope="module")
def _screen():
    return planted_screen(combinations=("P0+P7",))


@pytest.fixture
def embedding(_screen):
    return _screen[1].copy()


@pytest.fixture
def screen(_screen):
    return _screen[0].copy()


@pytest.fixture
def controls(screen):
    at = np.flatnonzero(screen.obs["perturbation"] == "control")
    return screen[at[::20]].copy()


@pytest.fixture(scope="module")
def _bank(_screen):
    return rg.tl.build_perturbation_reference(_screen[0], embedding=_screen[1], **BUILD)


@pytest.fixture
def fit(_rag):
    """Fit a method with quick options; `rag`, whose fit takes longest, has been fitted once."""

    def fitted(reference, method):
        if method == "rag":
            return _rag.copy()
        rg.tl.fit(reference, method=method, options=QUICK.get(method))
        return reference

    return fitted


@pytest.fixture
def fitted(bank):
    rg.tl.fit(bank, method="knn", n_neighbors=4)
    return bank


@pytest.mark.parametrize("method", ALWAYS)
def test_every_method_answers(bank, controls, method, fit):
    bank = fit(bank, method)
    table = rg.tl.perturb(controls, bank, perturbations=["P3", "P19", "control"], **ASK)
    n = controls.n_obs
    assert table.shape == (3 * n, bank.n_vars) and table.X.dtype == np.float32
    source = controls.to_df().loc[table.obs["source"]].to_numpy()
    np.testing.assert_array_equal(table.X, source + table.layers["response"])
    assert list(table.obs["perturbation"][::n]) == ["P3", "P19", "control"]
    assert (table.obs["context"].to_numpy() == controls.obs.loc[table.obs["source"], "cell_type"].to_numpy()).all()
    back = table[table.obs["perturbation"] == "control"]
    np.testing.assert_array_equal(back.X, controls.X)
    assert (back.obsm["retrieval_rows"] == -1).all() and (back.layers["evidence"] == 0).all()
    if method != "none":
        assert np.abs(table.layers["response"][: 2 * n]).mean() > 0.02
    total = table.obsm["retrieval_weights"][: 2 * n].sum(axis=1)
    cited = (table.obsm["retrieval_rows"][: 2 * n] >= 0).any(axis=1)
    np.testing.assert_allclose(total, cited, atol=1e-6)
    # Of what is not trusted nothing is cited.
    assert method in ("rag", "pt_rag") or cited.all() == RESPONSE_METHODS[method].cites


def test_provenance_leads_back_to_the_measured_rows(fitted, controls):
    table = rg.tl.perturb(controls, fitted, perturbations=["P3", "P0+P9"], **ASK)
    header = table.uns["retrieval"]
    assert header["task"] == "perturbation" and header["method"] == "knn"
    assert header["reference_hash"] == fitted.uns["ragst"]["content_hash"]
    cited = header["cited"]
    assert list(cited.columns) == [
        "reference",
        "perturbation",
        "context",
        "perturbation_type",
        "n_cells",
        "reliability",
    ]
    rows, weights = table.obsm["retrieval_rows"], table.obsm["retrieval_weights"]
    for i in (0, 5, len(table) - 1):
        measured = fitted[cited["reference"].to_numpy()[rows[i]]].X
        np.testing.assert_allclose(weights[i] @ measured, table.layers["evidence"][i], atol=1e-5)
        assert (cited["context"].to_numpy()[rows[i]] == table.obs["context"].iloc[i]).all()
    np.testing.assert_allclose(table.obs["effective_n"], 1 / (weights**2).sum(axis=1), rtol=1e-5)
    part = table[table.obs["perturbation"] == "P3"]
    np.testing.assert_array_equal(part.obsm["retrieval_rows"], rows[: controls.n_obs])
    expected = (weights * cited["reliability"].to_numpy()[rows]).sum(axis=1)
    np.testing.assert_allclose(table.obs["cited_reliability"], expected, atol=1e-5)


def test_table_is_written_and_read(fitted, controls, tmp_path):
    table = rg.tl.perturb(controls, fitted, perturbations=["P3", "control"], **ASK)
    table.write_zarr(tmp_path / "table.zarr")
    read = ad.read_zarr(tmp_path / "table.zarr")
    np.testing.assert_array_equal(read.X, table.X)
    assert list(read.uns["retrieval"]["cited"]["reference"]) == list(table.uns["retrieval"]["cited"]["reference"])


@pytest.mark.parametrize(
    "methods", [("rag",), pytest.param(("pt_rag", "knn", "ridge", "mean"), marks=pytest.mark.slow)]
)
def test_a_reference_reads_back_with_its_fit(bank, controls, tmp_path, methods, fit):
    for method in methods:
        bank = fit(bank, method)
        before = rg.tl.perturb(controls, bank, perturbations=["P3"], **ASK)
        rg.io.write_reference(bank, tmp_path / "bank.zarr.zip", overwrite=True)
        after = rg.tl.perturb(controls, rg.io.read_reference(tmp_path / "bank.zarr.zip"), perturbations=["P3"], **ASK)
        np.testing.assert_array_equal(after.X, before.X)
        assert after.uns["retrieval"]["fit_hash"] == before.uns["retrieval"]["fit_hash"]


def transplant(source, target):
    """Give `target` the fit of `source`, as if it had been found on it."""
    fit = dict(source.uns["ragst"]["fit"])
    target.obsm["retrieval_key"] = np.asarray(target.obsm["perturbation_embedding"], dtype=np.float64)
    fit["reference_hash"] = reference_hash(target)
    fit["fit_hash"] = fit_hash(
        target.uns["ragst"], fit, *(target.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )
    target.uns["ragst"] = {**target.uns["ragst"], "fit": fit, "content_hash": fit["reference_hash"]}


@pytest.mark.parametrize("method", ALWAYS)
def test_the_own_perturbation_in_its_context_is_never_used(bank, controls, method):
    """A second row of the very perturbation and context, with a response of its own, changes nothing."""
    own = bank["a:P3"].copy()
    own.obs_names = ["a:P3 again"]
    own.X = own.X + 100
    doubled = ad.concat([bank, own], merge="same", uns_merge="first")
    of_a = controls[controls.obs["cell_type"] == "a"].copy()
    # Whatever was learned was learned without the second row: what a query may use is the question here.
    rg.tl.fit(bank, method=method, n_neighbors=4, n_candidates=4, options=QUICK.get(method))
    transplant(bank, doubled)
    tables = [rg.tl.perturb(of_a, one, perturbations=["P3"], **ASK) for one in (bank, doubled)]
    np.testing.assert_allclose(tables[1].X, tables[0].X, atol=1e-5)
    used = rg.tl.perturb(of_a, doubled, perturbations=["P3"], exclude=(), **ASK)
    # Random rows need not hold it, and pt_rag looks at embeddings, not at responses.
    if method not in ("none", "random_rag", "pt_rag"):
        assert np.abs(used.X - tables[0].X).max() > 1


def test_other_contexts_are_used_unless_excluded(bank, controls):
    rg.tl.fit(bank, method="same_perturbation")
    of_a = controls[controls.obs["cell_type"] == "a"].copy()
    table = rg.tl.perturb(of_a, bank, perturbations=["P3"], **ASK)
    np.testing.assert_allclose(table.layers["response"], np.tile(bank["b:P3"].X, (of_a.n_obs, 1)), atol=1e-6)
    with pytest.raises(ValueError, match=r"nothing to answer from for 'P3 in a \(no other context"):
        rg.tl.perturb(of_a, bank, perturbations=["P3"], exclude=("perturbation",), **ASK)


def test_a_new_context_uses_all_rows(bank, controls, caplog):
    rg.tl.fit(bank, method="same_perturbation")
    table = rg.tl.perturb(controls, bank, perturbations=["P3"], unit="log1p_cp10k")
    assert "of a new context" in caplog.text
    expected = (np.asarray(bank["a:P3"].X) + np.asarray(bank["b:P3"].X)) / 2
    np.testing.assert_allclose(table.layers["response"][:1], expected, atol=1e-5)
    assert set(table.obs["context"]) == {"unknown"}


def test_one_context_without_a_name_is_the_same_in_query_and_reference(screen, embedding):
    one = screen[screen.obs["cell_type"] == "a"].copy()
    reference = rg.tl.build_perturbation_reference(one, embedding=embedding, unit="log1p_cp10k")
    rg.tl.fit(reference, method="knn", n_neighbors=3)
    cells = one[one.obs["perturbation"] == "control"].copy()
    table = rg.tl.perturb(cells, reference, perturbations=["P3"], unit="log1p_cp10k")
    assert "P3" not in set(table.uns["retrieval"]["cited"]["perturbation"])


def test_additive_for_combinations_only(bank, controls):
    rg.tl.fit(bank, method="additive")
    of_a = controls[controls.obs["cell_type"] == "a"].copy()
    table = rg.tl.perturb(of_a, bank, perturbations=["P7+P0"], **ASK)
    assert set(table.obs["perturbation"]) == {"P7+P0"}
    expected = np.asarray(bank["a:P0"].X) + np.asarray(bank["a:P7"].X)
    np.testing.assert_allclose(table.layers["response"][:1], expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"Method 'additive' has nothing to answer from for 'P1 in a \(a single gene"):
        rg.tl.perturb(of_a, bank, perturbations=["P1"], **ASK)


def test_rows_and_genes_are_chosen(fitted, controls):
    table = rg.tl.perturb(controls, fitted, perturbations=["P3"], genes=["GENE5", "GENE2"], n_neighbors=2, **ASK)
    assert list(table.var_names) == ["GENE5", "GENE2"] and table.obsm["retrieval_rows"].shape[1] == 2
    whole = rg.tl.perturb(controls, fitted, perturbations=["P3"], n_neighbors=2, **ASK)
    np.testing.assert_array_equal(whole[:, ["GENE5", "GENE2"]].X, table.X)
    only = rg.tl.perturb(controls, fitted, perturbations=["P3"], where={"perturbation": ["P9", "P8"]}, **ASK)
    assert set(only.uns["retrieval"]["cited"]["perturbation"]) == {"P8", "P9"}


def test_data_with_fewer_genes_or_another_order(fitted, controls, caplog):
    whole = rg.tl.perturb(controls, fitted, perturbations=["P3"], **ASK)
    part = controls[:, controls.var_names[::-1][:20]].copy()
    table = rg.tl.perturb(part, fitted, perturbations=["P3"], **ASK)
    assert "Only 20 of the reference's 60 genes" in caplog.text
    np.testing.assert_array_equal(table.X, whole[:, table.var_names].X)
    assert (
        table.uns["retrieval"]["gene_overlap"] == pytest.approx(1 / 3) and whole.uns["retrieval"]["gene_overlap"] == 1
    )


def test_the_order_of_rows_changes_nothing(bank, controls, fit):
    shuffled = bank[np.random.default_rng(0).permutation(bank.n_obs)].copy()
    for method in ("rag", "knn", "ridge", "bilinear", "random_rag"):
        rg.tl.fit(shuffled, method=method)
        both = (fit(bank, method), shuffled)
        tables = [rg.tl.perturb(controls, one, perturbations=["P3", "P11"], **ASK) for one in both]
        np.testing.assert_array_equal(tables[0].X, tables[1].X)
        assert tables[0].uns["retrieval"]["fit_hash"] != ""
        assert list(tables[0].uns["retrieval"]["cited"]["reference"]) == list(
            tables[1].uns["retrieval"]["cited"]["reference"]
        )


def test_counts_are_normalised_as_the_reference_was():
    generator = np.random.default_rng(0)
    adata = ad.AnnData(generator.poisson(2.0, size=(120, 210)).astype("float32"))
    adata.obs["perturbation"] = np.repeat(["control", "A", "B", "C"], 30)
    embedding = {"A": [1.0, 0.2], "B": [0.9, 0.4], "C": [0.3, 1.0]}
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, target_sum=None)
    rg.tl.fit(reference, method="mean")
    cells = adata[:10, ::-1].copy()
    table = rg.tl.perturb(cells, reference, perturbations=["control"])
    target = float(np.median(adata.X.sum(axis=1)))
    expected = np.log1p(adata.X[:10] / adata.X[:10].sum(axis=1, keepdims=True) * target)
    np.testing.assert_allclose(table.X, expected, atol=1e-5)
    with pytest.raises(ValueError, match="looks log-transformed already"):
        rg.tl.perturb(table, reference, perturbations=["A"])
    with pytest.raises(ValueError, match="150 genes that size factors can rest on"):
        rg.tl.perturb(cells[:, :150].copy(), reference, perturbations=["A"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"perturbations": ["P3", "STAT9"]}, KeyError, "The embedding of the reference has no 'STAT9'"),
        ({"perturbations": ["P3+STAT9"]}, KeyError, r"has no 'STAT9', which 'P3\+STAT9' needs"),
        ({"perturbations": []}, ValueError, "`perturbations` is empty"),
        ({"context_key": "celltype"}, KeyError, "Did you mean 'cell_type'"),
        ({"n_neighbors": 5}, ValueError, "was fitted with 4"),
        (
            {"where": {"perturbation": "P3", "context": "a"}},
            ValueError,
            "No row of the reference may be used for 'P3 in a'",
        ),
        ({"where": {"perturbation": "nobody"}}, ValueError, "no row has perturbation 'nobody'"),
        ({"exclude": ["donor"]}, ValueError, "`exclude` names 'donor'"),
        ({"genes": ["nothing"]}, ValueError, "do not share 'nothing'"),
        ({"unit": "counts"}, ValueError, "looks log-transformed already"),
        ({"layer": "counts"}, KeyError, "Key 'counts' not found"),
    ],
)
def test_bad_input(fitted, controls, arguments, error, message):
    before = controls.copy()
    with pytest.raises(error, match=message):
        rg.tl.perturb(controls, fitted, **({"perturbations": ["P3"]} | ASK | arguments))
    pd.testing.assert_frame_equal(controls.obs, before.obs)


def test_more_neighbours_than_may_be_used(bank, controls):
    rg.tl.fit(bank, method="knn", n_neighbors=30)
    of_a = controls[controls.obs["cell_type"] == "a"].copy()
    where = {"perturbation": ["P8", "P9"], "context": "a"}
    with pytest.raises(ValueError, match="`n_neighbors` is 3, but only 2 rows may be used"):
        rg.tl.perturb(of_a, bank, perturbations=["P3"], n_neighbors=3, where=where, **ASK)
    table = rg.tl.perturb(of_a, bank, perturbations=["P3"], where=where, **ASK)
    assert ((table.obsm["retrieval_rows"] >= 0).sum(axis=1) == 2).all()


def test_state_of_the_reference_is_checked(bank, controls, reference, caplog):
    with pytest.raises(ValueError, match="not fitted"):
        rg.tl.perturb(controls, bank, perturbations=["P3"], **ASK)
    with pytest.raises(ValueError, match=r"for the task 'histology', not 'perturbation'. Use `rg.tl.predict`"):
        rg.tl.perturb(controls, reference, perturbations=["P3"], **ASK)
    rg.tl.fit(bank, method="mean")
    changed = bank.copy()
    changed.X[0, 0] += 1
    with pytest.raises(ValueError, match="changed after it was fitted"):
        rg.tl.perturb(controls, changed, perturbations=["P3"], **ASK)
    changed = bank.copy()
    changed.uns["ragst"]["fit"]["metric"] = "euclidean"
    with pytest.raises(ValueError, match="does not match its hash"):
        rg.tl.perturb(controls, changed, perturbations=["P3"], **ASK)
    strangers = controls.copy()
    strangers.var_names = [f"OTHER{i}" for i in range(strangers.n_vars)]
    with pytest.raises(ValueError, match="share 0 genes"):
        rg.tl.perturb(strangers, bank, perturbations=["P3"], **ASK)
    twice = ad.concat([controls, controls])
    with pytest.raises(ValueError, match="names of cells of `adata` are duplicated"):
        rg.tl.perturb(twice, bank, perturbations=["P3"], **ASK)
    with pytest.raises(TypeError, match="`adata` is a dict"):
        rg.tl.perturb({}, bank, perturbations=["P3"])
    with caplog.at_level(logging.WARNING):
        rg.tl.perturb(controls, bank, perturbations=["P3"], exclude=(), **ASK)
    assert "`exclude` is empty" in caplog.text


def test_learning_from_what_is_left_out_is_said(screen, embedding, caplog):
    """A row that may not be cited has still taught the network: the header says so, and an evaluation refuses it."""
    kept = np.ones(screen.n_obs, dtype=bool)
    kept[np.flatnonzero(screen.obs["perturbation"] == "control")[1::2]] = False
    reference = rg.tl.build_perturbation_reference(screen[kept].copy(), embedding=embedding, **BUILD)
    source = screen[kept & (screen.obs["perturbation"] == "control").to_numpy()][::10].copy()
    for method, what in (("pt_rag", "responses"), ("rag", "settings"), ("ridge", "settings"), ("knn", "")):
        caplog.clear()
        rg.tl.fit(reference, method=method, options=QUICK.get(method))
        table = rg.tl.perturb(source, reference, perturbations=["P3", "P0+P9", "control"], **ASK)
        learned = table.uns["retrieval"]["learned_from"]
        assert str(learned["what"]) == what
        pairs = list(zip(learned["perturbation"], learned["context"], strict=True))
        assert pairs == ([("P3", "a"), ("P3", "b")] if what else [])
        assert ("was trained on the measured responses to 'P3 in a', 'P3 in b'" in caplog.text) == (method == "pt_rag")
        evaluate = {"metrics": ["pearson_delta"], **BUILD}
        if what == "responses":
            with pytest.raises(
                ValueError, match="'pt_rag' was trained on the measured responses to 'P3 in a', 'P3 in b'"
            ):
                rg.tl.evaluate_perturbation(table, screen, **evaluate)
        else:
            assert len(rg.tl.evaluate_perturbation(table, screen, **evaluate))
    without = reference[~reference.obs["perturbation"].isin(["P3"])].copy()
    rg.tl.fit(without, method="pt_rag", options=QUICK["pt_rag"])
    table = rg.tl.perturb(source, without, perturbations="P3", **ASK)
    assert not len(table.uns["retrieval"]["learned_from"]["perturbation"])
    assert len(rg.tl.evaluate_perturbation(table, screen, **evaluate))


@pytest.mark.parametrize("method", ["rag", "same_perturbation"])
def test_many_perturbations_are_answered_in_parts(bank, controls, method, capsys, monkeypatch, fit):
    """Also by a method that cites as many rows as the query with most of them has; the bar counts all."""
    bank = fit(bank, method)
    controls.obs["cell_type"] = controls.obs["cell_type"].astype(str).replace("b", "new")
    ask = {"perturbations": ["P3", "P19", "P8"], **ASK}
    monkeypatch.setattr("ragst_sd._respond.BAR_AFTER", np.inf)
    whole = rg.tl.perturb(controls, bank, progress=True, **ask)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("ragst_sd.retrieval.response_run._AT_ONCE", 1)
    monkeypatch.setattr("ragst_sd._respond.BAR_AFTER", 0)
    parts = rg.tl.perturb(controls, bank, progress=True, **ask)
    assert "6/6" in capsys.readouterr().err
    for name in whole.obsm:
        np.testing.assert_allclose(parts.obsm[name], whole.obsm[name], atol=1e-6)
    np.testing.assert_allclose(parts.X, whole.X, atol=1e-6)
    assert ("embedding_share" in whole.obs) == (method == "rag")
