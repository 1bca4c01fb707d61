"""Cell types as a condition of the search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.methods import METHODS, fit_method, phi_of
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.type_inputs import fit_types, typed_queries

N, P, T, G = 240, 12, 3, 30
QUICK = {"n_components": P, "n_latent": P, "max_steps": 10, "n_seeds": 1, "regression": False}


@pytest.fixture
def training(rng):
    """Types decide expression and show in three of twelve features, the others are of no use and as large."""
    types = rng.dirichlet(np.full(T, 0.5), N)
    embedding = rng.normal(size=(N, P))
    embedding[:, :T] = 2 * np.sqrt(types) + 0.5 * rng.normal(size=(N, T))
    profiles = rng.gamma(1.0, size=(T, G))
    donors = np.repeat(np.arange(4), N // 4)
    return Bank(
        embedding=embedding,
        key=embedding - embedding.mean(axis=0),
        values=np.log1p(types @ profiles * 10) + 0.1 * rng.normal(size=(N, G)),
        panels=np.zeros(N, dtype=np.int64),
        measured=np.ones((1, G), dtype=bool),
        folds=donors,
        sections=donors,
        donors=donors,
        types=types,
    )


def test_queries_are_predicted_from_other_groups(training, rng):
    """Shuffling the types of a group changes what its own rows carry as rows, not what they carry as queries."""
    queries, bank, parameters = fit_types(training)
    shuffled = training.types.copy()
    own = training.folds == 2
    shuffled[own] = rng.permutation(shuffled[own])
    again, rows, other = fit_types(replace(training, types=shuffled))
    plain = [q / p["types_weight"] + p["types_mean"] for p, q in ((parameters, queries), (other, again))]
    np.testing.assert_allclose(plain[1][own], plain[0][own], atol=1e-9)
    assert not np.allclose(plain[1][~own], plain[0][~own], atol=1e-3)
    own_types = bank[own] / parameters["types_weight"] + parameters["types_mean"]
    np.testing.assert_allclose(own_types**2, training.types[own], atol=1e-9)
    assert not np.allclose(rows[own], bank[own])


def test_prediction_against_plain_least_squares(training):
    """With hardly any penalty, what a query carries is the least-squares prediction of the roots."""
    key = training.key
    _, _, parameters = fit_types(training)
    alpha = 1e-3
    roots = np.sqrt(training.types)
    best = None
    for alpha in np.logspace(-3, 3, 13):
        coefficients = np.linalg.solve(key.T @ key + alpha * N * np.eye(P), key.T @ (roots - roots.mean(axis=0)))
        if np.allclose(coefficients, parameters["types_map"], atol=1e-8):
            best = alpha
    assert best is not None, "no penalty of the grid gives the map"
    found = typed_queries(parameters, key[:5])
    expected = key[:5] @ parameters["types_map"] + roots.mean(axis=0) - parameters["types_mean"]
    np.testing.assert_allclose(found[:, :T], parameters["types_weight"] * expected, atol=1e-8)
    np.testing.assert_array_equal(found[:, T:], key[:5])


def test_rows_without_fractions_carry_what_is_predicted(training):
    key = training.key
    types = training.types.copy()
    types[::7] = np.nan
    _, bank, parameters = fit_types(replace(training, types=types))
    np.testing.assert_allclose(bank[::7], typed_queries(parameters, key)[::7, :T], atol=1e-9)


def evidence(training, options, rng):
    """Mean correlation of genes on a fifth donor, by the weights of the rows nearest in phi-space."""
    held = training.folds == 3
    inner = training.at_rows(~held)
    given = resolve_options(METHODS, "rag", {**QUICK, **options})
    parameters, bank, *_ = fit_method("rag", inner, Run(given, n_neighbors=20, n_candidates=20))
    phi = phi_of("rag", parameters, training.embedding[held])
    squared = ((phi[:, None] - bank[None]) ** 2).sum(axis=2)
    near = np.argsort(squared, axis=1)[:, :20]
    found = inner.values[near].mean(axis=1)
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, training.values[held].T, strict=True)])


def test_types_that_matter_are_retrieved_by(training, rng):
    plain, typed = (evidence(training, {"cell_types": on}, rng) for on in (False, True))
    assert typed > plain + 0.02


def test_types_that_mean_nothing_do_little_harm(training, rng):
    noise = replace(training, types=rng.dirichlet(np.full(T, 0.5), N))
    plain, typed = (evidence(one, {"cell_types": on}, rng) for one, on in ((training, False), (noise, True)))
    assert typed > plain - 0.08


def test_without_types_they_cannot_count(training):
    with pytest.raises(ValueError, match="the rows have none"):
        fit_types(replace(training, types=None))
    with pytest.raises(ValueError, match="`cell_types` is 'yes'"):
        resolve_options(METHODS, "rag", {"cell_types": "yes"})


def test_rows_beside_held_out_ones_do_not_teach_their_types(training, rng):
    """Changing types in the margin of a fold changes nothing for the queries of that fold."""
    beside = np.zeros((N, 4), dtype=bool)
    beside[N // 4 : N // 2, 0] = True
    with_margin = replace(training, beside=beside)
    types = training.types.copy()
    types[beside[:, 0]] = rng.permutation(types[beside[:, 0]])
    (before, _, old), (after, _, new) = fit_types(with_margin), fit_types(replace(with_margin, types=types))
    plain = [q / p["types_weight"] + p["types_mean"] for q, p in ((before, old), (after, new))]
    np.testing.assert_allclose(plain[1][training.folds == 0], plain[0][training.folds == 0], atol=1e-9)
    assert not np.allclose(plain[1][training.folds == 3], plain[0][training.folds == 3], atol=1e-3)
