from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import ragst_sd as rg

from ..screens import given_responses, planted_screen

LOGS = {"unit": "log1p_cp10k", "context_key": "cell_type"}
KEYS = {"context_key": "cell_type", "batch_key": "batch"}


@pytest.fixture(scope="module")
def fold():
    adata, embedding = planted_screen(n_genes=30, n_cells=12, n_controls=40)
    role = rg.tl.perturbation_folds(adata, n_folds=5, **KEYS)["fold1"]
    seen = adata[role.isin(["train", "control_train"])].copy()
    reference = rg.tl.build_perturbation_reference(seen, embedding=embedding, batch_key="batch", **LOGS)
    rg.tl.fit(reference, method="knn", n_neighbors=3)
    held = sorted(set(adata.obs["perturbation"][role == "test"]))
    table = rg.tl.perturb(adata[role == "control_train"].copy(), reference, perturbations=[*held, "control"], **LOGS)
    return adata, role, table, held


def test_pairs_of_files(fold, tmp_path):
    adata, role, table, held = fold
    rg.io.write_cell_eval(table, adata, tmp_path / "pairs", **LOGS)
    assert sorted(p.name for p in (tmp_path / "pairs").iterdir()) == [
        f"{context}_{kind}.h5ad" for context in "ab" for kind in ("pred", "real")
    ]
    pred, real = (ad.read_h5ad(tmp_path / f"pairs/a_{kind}.h5ad") for kind in ("pred", "real"))
    for cells in (pred, real):
        assert set(cells.obs["perturbation"]) == {*held, "control"}
        assert list(cells.var_names) == list(table.var_names)
        assert cells.X.min() >= 0 and (np.rint(cells.X) != cells.X).any()
    here = (adata.obs["cell_type"] == "a").to_numpy()
    unseen = adata[here & (role == "control_test").to_numpy()].X
    own = real[real.obs["perturbation"] == "control"].X
    np.testing.assert_allclose(np.sort(own, axis=0), np.sort(unseen, axis=0))
    source = pred[pred.obs["perturbation"] == "control"].X
    assert len(source) == (here & (role == "control_train").to_numpy()).sum()
    predicted = table[(table.obs["perturbation"] == held[0]) & (table.obs["context"] == "a")].X
    written = pred[pred.obs["perturbation"] == held[0]].X
    np.testing.assert_allclose(written, np.maximum(predicted, 0))


def test_nothing_is_replaced_unasked(fold, tmp_path):
    adata, _, table, _ = fold
    rg.io.write_cell_eval(table, adata, tmp_path, **LOGS)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        rg.io.write_cell_eval(table, adata, tmp_path, **LOGS)
    rg.io.write_cell_eval(table, adata, tmp_path, overwrite=True, **LOGS)


def test_only_responses(fold, predicted, tmp_path):
    with pytest.raises(ValueError, match="prediction of tissue"):
        rg.io.write_cell_eval(predicted.tables["predicted"], fold[0], tmp_path)


def test_metrics_agree_with_cell_eval(fold, tmp_path):
    """Where that package is installed."""
    cell_eval = pytest.importorskip("cell_eval")
    adata, _, table, held = fold
    rg.io.write_cell_eval(table, adata, tmp_path, **LOGS)
    evaluator = cell_eval.MetricsEvaluator(
        str(tmp_path / "a_pred.h5ad"),
        str(tmp_path / "a_real.h5ad"),
        control_pert="control",
        pert_col="perturbation",
        num_threads=1,
        outdir=str(tmp_path / "out"),
    )
    found, _ = evaluator.compute(profile="anndata", write_csv=False)
    found = found.to_pandas().set_index("perturbation")
    own = rg.tl.evaluate_perturbation(table, adata, **LOGS)
    own = own[(own["context"] == "a") & (own["subset"] == "each")].pivot(
        index="perturbation", columns="metric", values="value"
    )
    for name in ("pearson_delta", "mae", "mse", "mae_delta"):
        np.testing.assert_allclose(found.loc[held, name], own.loc[held, name], rtol=0, atol=1e-5)


def test_responses_without_cells_are_refused(tmp_path):
    adata, _ = given_responses()
    reference = rg.tl.build_perturbation_reference(adata, unit="log_fold_change", context_key="context")
    rg.tl.fit(reference, method="mean")
    predicted = rg.tl.perturb(adata.obs, reference, perturbations="P2", context_key="context")
    with pytest.raises(ValueError, match=r"responses without cells.*cell-eval compares cells"):
        rg.io.write_cell_eval(predicted, adata, tmp_path / "out", context_key="context")
