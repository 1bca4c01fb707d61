"""Methods of responses against brute force in numpy, and what all of them promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ragst_sd.retrieval.bank import Cells, Query, Run
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.pt_rag import stage_one
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.responses import candidates

from ..screens import QUICK, respond, response_bank

N_GENES, WIDTH, K = 12, 4, 3
SINGLES = [f"P{i}" for i in range(8)]
# Of what is not trusted nothing is cited.
MAY_CITE_NOBODY = ("rag", "pt_rag")
ALWAYS = [name for name, method in RESPONSE_METHODS.items() if method.lacks is None]


@pytest.fixture
def bank(rng):
    """Eight singles in two contexts, one combination in the first."""
    vectors = {name: rng.normal(size=WIDTH) for name in SINGLES}
    rows = [((name,), context) for context in (0, 1) for name in SINGLES] + [(("P0", "P1"), 0)]
    values = rng.normal(size=(len(rows), N_GENES)) + np.array([context for _, context in rows])[:, None]
    return response_bank(
        key=np.array([sum(vectors[gene] for gene in genes) for genes, _ in rows]),
        values=values,
        halves=(values + 0.1 * rng.normal(size=values.shape), values + 0.1 * rng.normal(size=values.shape)),
        genes=tuple(genes for genes, _ in rows),
        contexts=np.array([context for _, context in rows]),
        folds=np.array([hash(genes) for genes, _ in rows]),
        state=np.array([[0.0], [1.0]]) + rng.normal(size=(2, N_GENES)),
        reliability=np.ones(len(rows)),
        cells=Cells(
            controls=rng.normal(size=(24, N_GENES)).astype(np.float32),
            contexts=np.repeat([0, 1], 12),
            treated=np.repeat(values, 6, axis=0).astype(np.float32),
            rows=np.repeat(np.arange(len(rows)), 6),
        ),
    )


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


@pytest.mark.parametrize("method", ALWAYS)
def test_every_method_keeps_its_promises(bank, method):
    asked = ask(bank, [0, 3, 9])
    found = answer(bank, asked, method)
    total = found.weights.sum(axis=1)
    assert found.evidence.shape == found.adjustment.shape == (3, N_GENES)
    if RESPONSE_METHODS[method].cites:
        nobody = (total == 0) & (method in MAY_CITE_NOBODY)
        np.testing.assert_allclose(total, np.where(nobody, 0, 1))
        assert ((found.rows >= 0) == (found.weights > 0)).all() and (
            np.isnan(found.distances) == (found.rows < 0)
        ).all()
        assert not (found.rows == np.array([0, 3, 9])[:, None]).any()
        expected = np.einsum("qk,qkg->qg", found.weights, bank.values[np.maximum(found.rows, 0)])
        np.testing.assert_allclose(found.evidence[~nobody], expected[~nobody])
    else:
        assert (found.rows == -1).all() and (total == 0).all()
    alone = answer(bank, ask(bank, [3]), method)
    np.testing.assert_allclose(alone.evidence[0], found.evidence[1], atol=1e-12)
    np.testing.assert_allclose(alone.adjustment[0], found.adjustment[1], atol=1e-12)


@pytest.mark.parametrize("method", ALWAYS)
def test_rows_that_may_not_be_used_change_nothing(bank, method):
    """The value of the own row is replaced by nonsense: nobody may have looked at it."""
    one, asked = RESPONSE_METHODS[method], ask(bank, [5])
    options = resolve_options(RESPONSE_METHODS, method, QUICK.get(method))
    parameters = one.fit(bank, Run(options, n_neighbors=K, n_candidates=16))
    before = respond(one, parameters, bank, asked, K)
    values = bank.values.copy()
    values[5] = 1e3
    after = respond(one, parameters, replace(bank, values=values), asked, K)
    np.testing.assert_allclose(after.evidence + after.adjustment, before.evidence + before.adjustment, atol=1e-9)


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


def test_unknown_methods_and_options():
    with pytest.raises(ValueError, match="`method` is 'rags'; available: 'rag', 'pt_rag', 'none'"):
        resolve_options(RESPONSE_METHODS, "rags", None)
    with pytest.raises(ValueError, match="has no option 'gate'; it has none"):
        resolve_options(RESPONSE_METHODS, "mean", {"gate": "softmax"})
    with pytest.raises(ValueError, match="`rank` is 0"):
        resolve_options(RESPONSE_METHODS, "bilinear", {"rank": 0})
    with pytest.raises(ValueError, match="`within_context` is 'yes'"):
        resolve_options(RESPONSE_METHODS, "knn", {"within_context": "yes"})
