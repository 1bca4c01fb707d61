"""How much of an embedding the rows of a bank span, and what `rag` makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ragst_sd.retrieval.bank import Query, Run
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.response_phi import explained

from ..screens import respond, response_bank


@pytest.fixture
def bank():
    """Ten rows in the first four of six dimensions, whose responses are linear in the embedding."""
    generator = np.random.default_rng(0)
    key = np.concatenate([generator.normal(size=(10, 4)), np.zeros((10, 2))], axis=1)
    values = key[:, :4] @ generator.normal(size=(4, 15)) + generator.normal(size=15)
    return response_bank(
        key=key, values=values, halves=(values, values), genes=tuple((f"P{i}",) for i in range(10)), contexts=np.zeros(10, int),
        folds=np.arange(10), state=np.zeros((1, 15)), reliability=np.ones(10),
    )  # fmt: skip


def ask(bank, key):
    key = np.atleast_2d(key)
    return Query(
        key,
        perturbed=tuple((f"Q{i}",) for i in range(len(key))),
        contexts=np.zeros(len(key), int),
        eligible=np.ones((len(key), 10), bool),
    )


def test_share_by_brute_force(bank):
    key = np.random.default_rng(1).normal(size=(3, 6))
    asked = ask(bank, key)
    asked.eligible[1, :4] = False
    for i, found in enumerate(explained(bank, asked)):
        rows = np.flatnonzero(asked.eligible[i])
        unit = bank.key[rows] / np.linalg.norm(bank.key[rows], axis=1, keepdims=True)
        x, q = unit - unit.mean(axis=0), key[i] / np.linalg.norm(key[i]) - unit.mean(axis=0)
        penalty = 0.1 * (x**2).sum(axis=1).mean()
        # Ridge regression of the query on the rows, seen from the components.
        expected = q @ np.linalg.solve(x.T @ x + penalty * np.eye(6), x.T @ x) @ q / (q @ q)
        assert found == pytest.approx(expected, abs=1e-9)
        assert 0 < found < 1


def test_a_perturbation_unlike_all_others_has_their_mean(bank):
    one = RESPONSE_METHODS["rag"]
    fit = one.fit(bank, Run(resolve_options(RESPONSE_METHODS, "rag", None), n_neighbors=8, n_candidates=10))
    assert (np.atleast_2d(fit["gates"])[:, -3:-1].sum(axis=1) > 0).any(), (
        "nothing is trusted, so that nothing is tested"
    )
    unit = bank.key / np.linalg.norm(bank.key, axis=1, keepdims=True)
    # Seen from the mean of the rows it lies at a right angle to all of them.
    strange = unit.mean(axis=0) + np.array([0, 0, 0, 0, 1.0, 0]) * np.sqrt(1 - (unit.mean(axis=0) ** 2).sum())
    related = unit[0] + 0.1 * unit[1]
    found = respond(one, fit, bank, ask(bank, [strange, related]), 8)
    response = found.evidence + found.adjustment
    np.testing.assert_allclose(response[0], bank.values.mean(axis=0), atol=1e-9)
    assert found.weights[0].sum() == pytest.approx(0, abs=1e-9) and (found.rows[0] == -1).all()
    assert np.abs(response[1] - bank.values.mean(axis=0)).max() > 0.1 and found.weights[1].sum() == pytest.approx(1)


def test_embeddings_that_all_point_one_way_say_nothing(bank, caplog):
    """Doses, say."""
    doses = replace(bank, key=np.arange(1.0, 11)[:, None], embedding=np.arange(1.0, 11)[:, None])
    one = RESPONSE_METHODS["rag"]
    fit = one.fit(doses, Run(resolve_options(RESPONSE_METHODS, "rag", None), n_neighbors=8, n_candidates=10))
    assert not len(fit["gates"])
    assert caplog.text.count("point one way") == 1 and "several columns" in caplog.text
    found = respond(one, fit, doses, ask(doses, [[3.5]]), 8)
    np.testing.assert_allclose((found.evidence + found.adjustment)[0], bank.values.mean(axis=0))


def test_a_single_row_is_its_own_mean_and_is_cited(bank):
    asked = ask(bank, bank.key[:1])
    asked.eligible[:] = False
    asked.eligible[0, 3] = True
    assert explained(bank, asked)[0] == 1
    one = RESPONSE_METHODS["rag"]
    fit = one.fit(bank, Run(resolve_options(RESPONSE_METHODS, "rag", None), n_neighbors=8, n_candidates=10))
    found = respond(one, fit, bank, asked, 8)
    assert found.rows[0, 0] == 3 and found.weights[0].sum() == pytest.approx(1)
    np.testing.assert_allclose(found.evidence[0] + found.adjustment[0], bank.values[3], atol=1e-9)
