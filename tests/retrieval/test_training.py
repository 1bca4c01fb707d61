"""Shifts of sections against loops over rows, with panels that differ."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.bank import Bank, Query
from ragst_sd.retrieval.evidence import cite, weighted_average, weighted_shift
from ragst_sd.retrieval.search import Candidates
from ragst_sd.retrieval.training import held_out_splits, reference_mean, section_shifts

PANELS = np.repeat([0, 1, 0], [10, 8, 6])
SECTIONS = np.repeat([0, 1, 2], [14, 4, 6])


@pytest.fixture
def training(rng):
    measured = rng.random(size=(2, 7)) < 0.7
    measured[:, 0], measured[:, 1] = True, False
    measured[:, 2] = [True, False]
    values = rng.normal(size=(24, 7)) * measured[PANELS]
    return Bank(rng.normal(size=(24, 2)), values, PANELS, measured, SECTIONS, SECTIONS)


def test_shifts(training):
    got = section_shifts(training)
    np.testing.assert_allclose(got, section_shifts(replace(training, values=sp.csr_matrix(training.values))))
    for section in range(3):
        for gene in range(7):
            rows = training.measured[PANELS, gene]
            own = rows & (section == SECTIONS)
            expected = training.values[own, gene].mean() - training.values[rows, gene].mean() if own.any() else 0
            assert got[section, gene] == pytest.approx(expected, abs=1e-12)


def test_weighted_shift_is_what_the_evidence_has_too_much_of(rng, training):
    rows = np.stack([rng.permutation(24)[:5] for _ in range(9)])
    rows[1, 2:], rows[2], rows[3] = -1, -1, [10, 11, 12, 13, 14]
    weights = rng.random(size=rows.shape)
    shifts = rng.normal(size=(3, 7))
    panels, measured = training.panels, training.measured
    got = weighted_shift(rows, weights, SECTIONS, shifts, panels=panels, measured=measured)
    for i in range(9):
        for gene in range(7):
            voters = [
                (w, shifts[SECTIONS[j], gene])
                for j, w in zip(rows[i], weights[i], strict=True)
                if j >= 0 and measured[PANELS[j], gene]
            ]
            if not voters:
                assert np.isnan(got[i, gene])
                continue
            assert got[i, gene] == pytest.approx(sum(w * v for w, v in voters) / sum(w for w, _ in voters))
    centred = (training.values - shifts[SECTIONS]) * measured[PANELS]
    raw, direct = (
        weighted_average(rows, weights, v, panels=panels, measured=measured) for v in (training.values, centred)
    )
    np.testing.assert_allclose(raw - got, direct, atol=1e-5)


def test_centred_sections_share_the_mean_of_the_reference(training):
    shifts, mean = section_shifts(training), reference_mean(training)
    for section in (0, 1, 2):
        own = section == SECTIONS
        for gene in np.flatnonzero(training.measured.all(axis=0)):
            assert (training.values[own, gene] - shifts[section, gene]).mean() == pytest.approx(mean[gene])


def test_the_best_candidates_are_cited(rng):
    weights = rng.random(size=(30, 8))
    weights[0, 1:], weights[1] = 0, 0
    weights[2] = 0.125
    rows = np.stack([rng.permutation(50)[:8] for _ in range(30)])
    distances = np.sort(rng.random(size=(30, 8)), axis=1)
    got = cite(Query(np.zeros((30, 2)), Candidates(rows, distances), n_neighbors=3), weights)
    got_rows, got_weights, got_distances = got.rows, got.weights, got.distances
    for i in range(30):
        order = sorted(range(8), key=lambda j: (-weights[i, j], j))[:3]
        total = weights[i, order].sum()
        for place, j in enumerate(order):
            if weights[i, j] == 0:
                assert got_rows[i, place] == -1
                assert got_weights[i, place] == 0
                assert np.isnan(got_distances[i, place])
            else:
                assert (got_rows[i, place], got_distances[i, place]) == (rows[i, j], distances[i, j])
                assert got_weights[i, place] == pytest.approx(weights[i, j] / total)
    # Among equals the nearer rows are cited.
    np.testing.assert_array_equal(got_rows[2], rows[2, :3])


def test_very_many_groups_take_little_memory():
    n = 2001
    training = SimpleNamespace(folds=np.arange(n) // 3, beside=None)
    tracemalloc.start()
    splits = held_out_splits(training)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [held.tolist() for _, held in splits] == [[0, 1, 2], [999, 1000, 1001], [1998, 1999, 2000]]
    assert all(len(inner) == n - 3 for inner, _ in splits)
    # Three splits and what one more takes; all 667 would take 10 MB.
    assert peak < 8 * 8 * n
