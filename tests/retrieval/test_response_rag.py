"""Parts of `rag` for responses against loops in numpy: what a row brings, how rows are weighed, what is chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ragst_sd.retrieval import response_rag
from ragst_sd.retrieval.bank import Query, Run
from ragst_sd.retrieval.gate import entmax
from ragst_sd.retrieval.response_baselines import choose_alpha
from ragst_sd.retrieval.response_gates import TRUST, Gate, choose, held_out_correlations, weigh
from ragst_sd.retrieval.response_phi import Neighbors, bend, fit_space, no_bend, relative_responses
from ragst_sd.retrieval.response_rag import ResponseRagOptions, _best, fit_rag
from ragst_sd.retrieval.responses import closed_rows

from ..screens import response_bank, small_response_bank


@pytest.fixture
def bank(rng):
    return small_response_bank(rng)


def test_rows_bring_their_response_by_dose_relative_to_the_rows_that_may_be_used(bank):
    eligible = np.ones((3, 17), dtype=bool)
    eligible[0, [3, 9, 10]], eligible[1, [16, 12]] = False, False
    perturbed = (("P3",), ("P0", "P1"), ("Q",))
    query = Query(bank.key[:3], perturbed=perturbed, contexts=np.array([0, 0, -1]), eligible=eligible)
    rows = np.array([[1, 16, 8], [0, 13, 2], [16, 4, 11]])
    found = relative_responses(bank, query, rows)
    for i, j in np.ndindex(rows.shape):
        row = rows[i, j]
        dose = len(perturbed[i]) / len(bank.screen.perturbed[row])
        pool = eligible[i] & (bank.sections == bank.sections[row])
        np.testing.assert_allclose(found[i, j], dose * bank.values[row] - bank.values[pool].mean(axis=0))


def test_candidates_are_weighed_against_a_null_slot(rng):
    rows = np.array([[4, 2, 9, 7, 1], [3, 5, 6, -1, -1]])
    distance = rng.random((2, 5))
    distance[0, 3] = distance[0, 0]
    neighbors = Neighbors(rows, distance, {1.0: no_bend(2, 5, 1)}, np.ones((2, 1)))
    found = weigh(neighbors, Gate(1.0, 0.0, 2.0, 0.4), 3, np.array([1, 0]), np.zeros((2, 1)))
    for line, query in enumerate((1, 0)):
        logits = np.where(rows[query] >= 0, -2.0 * distance[query], -np.inf)
        taken = sorted(range(5), key=lambda j: (-logits[j], j))[:3]
        with_null = torch.tensor([[*logits[taken], -0.8]])
        expected = np.zeros(5)
        expected[taken] = entmax(with_null)[0, :-1].numpy()
        np.testing.assert_allclose(found[line], expected)


def test_squared_distances_follow_the_state(rng):
    blocks, candidates, z = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 6, 5)), rng.normal(size=(7, 2))
    line = np.array([0, 3, 1, 1, 2, 0, 3])
    found = bend(blocks, candidates).at(line, z)
    at = blocks[line, 0] + np.einsum("nl,nlr->nr", z, blocks[line, 1:])
    np.testing.assert_allclose(found, ((at[:, None] - candidates[line]) ** 2).sum(axis=2))


def test_the_best_rows_take_over_what_the_others_had():
    found = _best(np.array([[0.1, 0.4, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]]), 2)
    np.testing.assert_allclose(found, [[0, 0.4 * 0.8 / 0.7, 0, 0.3 * 0.8 / 0.7], [0, 0, 0, 0]])


def test_a_gain_counts_less_its_error(rng):
    """Of two trusts the one with the larger gain is doubtful: all of it comes from one row."""
    correlation = np.zeros((1, len(TRUST), 20))
    correlation[0, 3] = 0.1 + 0.01 * rng.normal(size=20)
    correlation[0, 5, 0] = 4.0
    places, shares, gain, error = choose(correlation, np.ones(20))
    assert places[0] == (0, 3)
    assert (gain, error) == pytest.approx((correlation[0, 3].mean(), correlation[0, 3].std() / np.sqrt(20)))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == max(shares)


def test_noise_of_shared_controls_predicts_nothing(bank, rng):
    """Either half of the controls has noise of its own in all rows, which the mean of other rows would hold too."""
    first, second = (np.tile(rng.normal(size=(1, 12)), (17, 1)) + 0.01 * rng.normal(size=(17, 12)) for _ in range(2))
    halves = first, second
    noisy = replace(bank, values=first, screen=replace(bank.screen, halves=halves))
    run = Run(ResponseRagOptions(penalties=(1.0,), sharpnesses=(1.0,)), n_neighbors=3, n_candidates=6)
    found, _, _ = held_out_correlations(noisy, run, fit_space(noisy, 4))
    expected = np.corrcoef(first.mean(axis=0), second.mean(axis=0))[0, 1]
    np.testing.assert_allclose(found[0, 0], expected, atol=0.05)


def test_the_penalty_is_chosen_on_the_other_half_of_the_controls(rng):
    key, n = rng.normal(size=(30, 4)), 30
    effect = key @ rng.normal(size=(4, 6))
    bank = response_bank(
        key=key, values=effect, halves=(effect, -effect), genes=tuple((f"P{i}",) for i in range(n)), folds=np.arange(n),
        contexts=np.zeros(n, int), state=np.zeros((1, 6)), reliability=np.ones(n),
    )  # fmt: skip
    assert choose_alpha(bank, (1e-3, 1.0, 1e3)) == 1e3


def test_held_out_rows_use_neither_their_perturbation_nor_what_holds_it(bank):
    closed = closed_rows(bank)
    assert closed[0, [0, 8, 16]].all() and closed[0].sum() == 3
    # The combination may use its parts.
    assert np.flatnonzero(closed[16]).tolist() == [16]


def test_gates_are_judged_on_perturbations_that_they_were_not_chosen_for(bank, monkeypatch):
    chosen, chose = [], response_rag.chosen_gates

    def watched(bank, run, correlation, rows, kind):
        chosen.append({bank.screen.perturbed[row] for row in rows})
        return chose(bank, run, correlation, rows, kind)

    monkeypatch.setattr(response_rag, "chosen_gates", watched)
    fit_rag(bank, Run(ResponseRagOptions(penalties=(1.0,), sharpnesses=(1.0,)), n_neighbors=4, n_candidates=8))
    everybody, *others = chosen
    # So few are held out one by one; the combination alone is too few to be judged on.
    assert {frozenset(everybody - one) for one in others} == {frozenset({name}) for name in everybody if len(name) == 1}
