"""Methods of responses against brute force in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ragst_sd.retrieval.bank import Query, Run
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.pt_rag import stage_one
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.responses import candidates

from ..screens import QUICK, respond, response_bank, small_response_bank

N_GENES, WIDTH, K = 12, 4, 3


@pytest.fixture
def bank(rng):
    return small_response_bank(rng)


def ask(bank, rows, contexts=None):
    """Rows of the bank as queries that may not use themselves."""
    rows = np.asarray(rows)
    eligible = np.ones((len(rows), len(bank.key)), dtype=bool)
    if contexts is None:
        eligible[np.arange(len(rows)), rows] = False
    return Query(
        bank.key[rows],
        perturbed=tuple(bank.screen.perturbed[row] for row in rows),
        contexts=bank.sections[rows] if contexts is None else np.asarray(contexts),
        eligible=eligible,
    )


def answer(bank, asked, method, k=K, **options):
    one = RESPONSE_METHODS[method]
    parameters = one.fit(bank, Run(resolve_options(RESPONSE_METHODS, method, {**QUICK.get(method, {}), **options})))
    return respond(one, parameters, bank, asked, k)


def others(bank, row, context=None):
    keep = np.arange(len(bank.key)) != row
    return np.flatnonzero(keep if context is None else keep & (bank.sections == context))


def test_none_and_mean(bank):
    asked = ask(bank, [0, 9])
    np.testing.assert_array_equal(answer(bank, asked, "none").evidence, 0)
    found = answer(bank, asked, "mean")
    np.testing.assert_allclose(found.evidence[0], bank.values[others(bank, 0, 0)].mean(axis=0))
    np.testing.assert_allclose(found.evidence[1], bank.values[others(bank, 9, 1)].mean(axis=0))
    new = answer(bank, ask(bank, [0], contexts=[-1]), "mean")
    np.testing.assert_allclose(new.evidence[0], bank.values.mean(axis=0))


def test_additive_is_the_sum_of_the_singles(bank):
    found = answer(bank, ask(bank, [16]), "additive")
    np.testing.assert_allclose((found.evidence + found.adjustment)[0], bank.values[0] + bank.values[1])
    np.testing.assert_allclose(found.evidence[0], (bank.values[0] + bank.values[1]) / 2)
    assert sorted(found.rows[0]) == [0, 1] and (found.weights == 0.5).all()
    new = answer(bank, ask(bank, [16], contexts=[-1]), "additive")
    total = (new.evidence + new.adjustment)[0]
    np.testing.assert_allclose(total, bank.values[[0, 8]].mean(axis=0) + bank.values[[1, 9]].mean(axis=0))
    lacks = RESPONSE_METHODS["additive"].lacks
    without = ask(bank, [16])
    without.eligible[0, 1] = False
    assert lacks(bank, without) == ["no row of 'P1' alone may be used"]
    assert "single gene" in lacks(bank, ask(bank, [2]))[0]


def test_responses_in_other_contexts(bank):
    found = answer(bank, ask(bank, [2]), "same_perturbation")
    np.testing.assert_allclose(found.evidence[0], bank.values[10])
    assert found.rows.tolist() == [[10]]
    found = answer(bank, ask(bank, [2]), "context_additive")
    expected = bank.values[others(bank, 2, 0)].mean(axis=0) + bank.values[10] - bank.values[8:16].mean(axis=0)
    np.testing.assert_allclose((found.evidence + found.adjustment)[0], expected)
    lacks = RESPONSE_METHODS["context_additive"].lacks
    assert lacks(bank, ask(bank, [2])) == [""]
    assert "no other context" in lacks(bank, ask(bank, [16]))[0]
    assert "no row" in lacks(bank, ask(bank, [2], contexts=[-1]))[0]


def cosine_distances(bank, row, rows):
    unit = bank.key / np.linalg.norm(bank.key, axis=1, keepdims=True)
    return 1 - unit[rows] @ unit[row]


@pytest.mark.parametrize("within", [True, False])
def test_nearest_by_cosine(bank, within):
    found = answer(bank, ask(bank, [4]), "knn", within_context=within, weighting="uniform")
    rows = others(bank, 4, 0 if within else None)
    near = rows[np.argsort(cosine_distances(bank, 4, rows), kind="stable")[:K]]
    assert found.rows[0].tolist() == near.tolist()
    if not within:
        assert near[0] == 12
    np.testing.assert_allclose(found.evidence[0], bank.values[near].mean(axis=0))
    np.testing.assert_allclose(found.distances[0], cosine_distances(bank, 4, near), atol=1e-12)


def test_weights_that_fall_with_distance(bank):
    found = answer(bank, ask(bank, [4]), "knn", weighting="distance", sharpness=3.0)
    squared = found.distances[0] ** 2
    expected = np.exp(-3.0 * squared / squared.max())
    np.testing.assert_allclose(found.weights[0], expected / expected.sum())


def test_fewer_rows_than_neighbours(bank):
    asked = ask(bank, [4])
    asked.eligible[0, 2:] = False
    found = answer(bank, asked, "knn", k=5)
    assert sorted(found.rows[0]) == [-1, -1, -1, 0, 1]
    np.testing.assert_allclose(found.weights[0].sum(), 1)


def test_random_rows_differ_between_perturbations_but_not_between_calls(bank):
    asked = ask(bank, [4, 5, 6])
    first, again = (answer(bank, asked, "random_rag") for _ in range(2))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert len({tuple(sorted(rows)) for rows in first.rows}) > 1
    assert (bank.sections[first.rows] == 0).all()


def test_ridge_and_bilinear_agree_with_brute_force(bank):
    row, alpha = 3, 0.7
    rows = others(bank, row)
    keys, levels = bank.key[rows].copy(), bank.values[rows].copy()
    for context in (0, 1):
        at = bank.sections[rows] == context
        keys[at] -= keys[at].mean(axis=0)
        levels[at] -= levels[at].mean(axis=0)
    here = rows[bank.sections[rows] == 0]
    offset = bank.key[row] - bank.key[here].mean(axis=0)
    coefficients = np.linalg.inv(keys.T @ keys + alpha * np.eye(WIDTH)) @ keys.T @ levels
    found = answer(bank, ask(bank, [row]), "ridge", alphas=(alpha,))
    np.testing.assert_allclose(found.evidence[0], bank.values[here].mean(axis=0))
    np.testing.assert_allclose(found.adjustment[0], offset @ coefficients)
    _, s, v = np.linalg.svd(levels, full_matrices=False)
    genes = v[:2].T * s[:2]
    projected = coefficients @ genes @ np.linalg.inv(genes.T @ genes + alpha * np.eye(2)) @ genes.T
    found = answer(bank, ask(bank, [row]), "bilinear", alpha=alpha, rank=2)
    np.testing.assert_allclose(found.adjustment[0], offset @ projected)


def test_ridge_is_the_same_in_rows_and_in_components(bank, rng):
    wide = replace(bank, key=rng.normal(size=(len(bank.key), 40)))
    found = answer(wide, ask(wide, [3]), "ridge", alphas=(1.0,))
    rows = others(wide, 3)
    keys, levels = wide.key[rows].copy(), wide.values[rows].copy()
    for context in (0, 1):
        at = wide.sections[rows] == context
        keys[at] -= keys[at].mean(axis=0)
        levels[at] -= levels[at].mean(axis=0)
    here = rows[wide.sections[rows] == 0]
    expected = np.linalg.inv(keys.T @ keys + np.eye(40)) @ keys.T @ levels
    np.testing.assert_allclose(found.adjustment[0], (wide.key[3] - wide.key[here].mean(axis=0)) @ expected)


def test_penalty_follows_the_signal(rng):
    n, width = 60, 6
    key = rng.normal(size=(n, width))
    shared = {
        "key": key,
        "genes": tuple((f"P{i}",) for i in range(n)),
        "contexts": np.zeros(n, dtype=int),
        "folds": np.arange(n),
        "state": np.zeros((1, N_GENES)),
        "reliability": np.ones(n),
    }
    signal = key @ rng.normal(size=(width, N_GENES))
    noise = [rng.normal(size=signal.shape) for _ in range(2)]
    strong = response_bank(values=signal, halves=(signal + 0.1 * noise[0], signal + 0.1 * noise[1]), **shared)
    empty = response_bank(values=noise[0], halves=(noise[0], noise[1]), **shared)
    fit = RESPONSE_METHODS["ridge"].fit
    options = resolve_options(RESPONSE_METHODS, "ridge", None)
    assert fit(strong, Run(options))["alpha"] < 1 < fit(empty, Run(options))["alpha"]


def test_what_retrieval_is_worth_to_pt_rag_can_be_asked(bank):
    """Candidates of stage 1 are the nearest, as many random ones of the same pool, or nobody."""
    asked = ask(bank, [0, 3, 9])
    near, random, again, nobody = (
        stage_one(bank, asked, K, how).rows for how in ("nearest", "random", "random", "none")
    )
    np.testing.assert_array_equal(near, candidates(bank, asked, asked.pool(bank), K).rows)
    np.testing.assert_array_equal(random, again)
    assert (random != near).any() and np.take_along_axis(asked.pool(bank), random, axis=1).all()
    assert (nobody == -1).all() and nobody.shape == near.shape
    alone = answer(bank, asked, "pt_rag", candidates="none")
    assert (alone.rows == -1).all() and not alone.weights.any() and not alone.adjustment.any() and alone.evidence.any()
    with pytest.raises(ValueError, match="`candidates` is 'far'; for method 'pt_rag' it must be one of 'nearest'"):
        resolve_options(RESPONSE_METHODS, "pt_rag", {"candidates": "far"})


def test_wrong_options():
    with pytest.raises(ValueError, match="has no option 'gate'; it has none"):
        resolve_options(RESPONSE_METHODS, "mean", {"gate": "softmax"})
    with pytest.raises(ValueError, match="`rank` is 0"):
        resolve_options(RESPONSE_METHODS, "bilinear", {"rank": 0})
    with pytest.raises(ValueError, match="`within_context` is 'yes'"):
        resolve_options(RESPONSE_METHODS, "knn", {"within_context": "yes"})
