"""Methods that learn, on a screen where the nearest embeddings mislead and the right neighbours depend on the cell state."""

from __future__ import annotations

import numpy as np
import pytest

import ragst_sd as rg

from ..screens import two_state_screen

pytestmark = pytest.mark.slow

LOGS = {"unit": "log1p_cp10k", "context_key": "cell_type"}
BATCH = {**LOGS, "batch_key": "batch"}
LEARNED = ["rag", "pt_rag"]
BASELINES = ["knn", "naive_rag", "ridge", "random_rag"]
# Every baseline of this list with eight candidates: a softmax over the nearest, equal weights, and as many random ones.
ARGUMENTS = {name: {"n_candidates": 8} for name in ("naive_rag", "random_rag")}


@pytest.fixture(scope="module")
def screen():
    return two_state_screen()


@pytest.fixture(scope="module")
def fold(screen):
    """Reference without a fifth of the perturbations, the cells to predict from, and what is held out."""
    adata, embedding = screen
    role = rg.tl.perturbation_folds(adata, n_folds=5, context_key="cell_type", batch_key="batch")["fold1"]
    reference = rg.tl.build_perturbation_reference(
        adata[role.isin(["train", "control_train"])].copy(), embedding=embedding, **BATCH
    )
    source = adata[role == "control_train"].copy()
    return reference, source, sorted(set(adata.obs["perturbation"][role == "test"]))


def right_share(table, members):
    """Weight on rows that belong to the query's programme in the query's state, by context."""
    cited = table.uns["retrieval"]["cited"]
    rows, weights = table.obsm["retrieval_rows"], table.obsm["retrieval_weights"]
    out = {}
    for context in members.columns:
        programme = members[context]
        at = np.flatnonzero(table.obs["context"] == context)
        own = programme.loc[table.obs["perturbation"].iloc[at]].to_numpy()[:, None]
        theirs = programme.loc[cited["perturbation"]].to_numpy()[np.maximum(rows[at], 0)]
        out[context] = float((weights[at] * (own == theirs)).sum() / max(weights[at].sum(), 1e-9))
    return out


def test_learned_retrieval_beats_what_is_fixed(screen, fold):
    reference, source, held = fold
    tables = {}
    for method in [*LEARNED, *BASELINES]:
        rg.tl.fit(reference, method=method, **ARGUMENTS.get(method, {}))
        tables[method] = rg.tl.perturb(source, reference, perturbations=held, **LOGS)
    scores = rg.tl.evaluate_perturbation(tables, screen[0], metrics=["pearson_delta"], **BATCH)
    each = scores[(scores["subset"] == "each") & (scores["metric"] == "pearson_delta")]
    means = each.groupby("method")["value"].mean()
    for learned in LEARNED:
        for method in BASELINES:
            assert means[learned] > means[method] + 0.1, means.to_dict()
    assert means["rag"] > 0.7


def test_neighbours_follow_the_state_of_the_cells(screen, fold):
    """The right programme of either state is cited; with the states exchanged, that of the other one."""
    reference, source, held = fold
    members = screen[0].uns["members"]
    rg.tl.fit(reference, method="rag")
    right = right_share(rg.tl.perturb(source, reference, perturbations=held, **LOGS), members)
    assert min(right.values()) > 0.7
    exchanged = source.copy()
    means = {name: np.asarray(source[source.obs["cell_type"] == name].X.mean(axis=0)) for name in ("a", "b")}
    other = {"a": means["b"] - means["a"], "b": means["a"] - means["b"]}
    exchanged.X = np.maximum(source.X + np.array([other[name] for name in source.obs["cell_type"]]), 0)
    wrong = right_share(rg.tl.perturb(exchanged, reference, perturbations=held, **LOGS), members)
    assert max(wrong.values()) < min(right.values()) - 0.3, (right, wrong)
    shuffled = source.copy()
    shuffled.X = source.X[np.random.default_rng(0).permutation(source.n_obs)]
    between = right_share(rg.tl.perturb(shuffled, reference, perturbations=held, **LOGS), members)
    assert np.mean(list(between.values())) < np.mean(list(right.values())) - 0.1, (right, between)
