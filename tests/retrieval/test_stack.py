"""The two parts of the stack, by their shares."""

from __future__ import annotations

import numpy as np

from ragst_sd.retrieval.bank import Bank, Query, Selection
from ragst_sd.retrieval.stack import nothing_cited, stacked


def asked(share, measured=None):
    """Two queries that cite rows of three, with a regression of one feature."""
    values = np.array([[1.0, 2.0], [3.0, 5.0], [8.0, 1.0]])
    measured = np.ones((1, 2), dtype=bool) if measured is None else measured
    panels = np.zeros(3, dtype=int) if len(measured) == 1 else np.array([0, 0, 1])
    bank = Bank(None, values * measured[panels], panels, measured, panels, np.array([0, 0, 1]))
    shifts = np.array([[-1.0, 0.5], [2.0, -1.0]])
    parameters = {
        "reference_mean": np.array([4.0, 3.0]),
        "section_shifts": shifts,
        "level": np.array([[0.25, 0.5]]),
        "retrieval_share": np.full(2, share),
        "regression_coefficients": np.array([[2.0, -1.0]], dtype=np.float32),
        "regression_intercept": np.array([0.1, 0.2]),
    }
    rows, weights = np.array([[0, 2], [1, -1]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    selection = Selection(
        np.zeros((2, 1)), rows, weights, weights, pattern=np.zeros(2, int), features=np.array([[1.0], [-2.0]])
    )
    return parameters, bank, selection


def test_shares_by_hand():
    answer = stacked(*asked(0.6))
    mean = np.array([4.25, 3.5])
    first = [0.25 * (1 + 1) + 0.75 * (8 - 2), 0.25 * (2 - 0.5) + 0.75 * (1 + 1)]
    cited = np.array([first, [3 + 1, 5 - 0.5]]) + np.array([0.25, 0.5])
    h = np.array([[2.1, -0.8], [-3.9, 2.2]])
    np.testing.assert_allclose(answer.evidence, mean + 0.6 * (cited - mean), rtol=1e-6)
    np.testing.assert_allclose(answer.adjustment, 0.4 * h, rtol=1e-6)


def test_all_retrieval_is_evidence_alone():
    parameters, bank, selection = asked(1.0)
    plain = {name: value for name, value in parameters.items() if not name.startswith(("regression", "retrieval"))}
    answer = stacked(parameters, bank, selection)
    np.testing.assert_array_equal(answer.evidence, stacked(plain, bank, selection).evidence)
    np.testing.assert_array_equal(answer.adjustment, np.zeros((2, 2), dtype=np.float32))


def test_no_retrieval_is_the_mean_and_the_regression():
    parameters, bank, selection = asked(0.0)
    nobody = nothing_cited(Query(selection.key, n_neighbors=2))
    nobody = Selection(nobody.key, nobody.rows, nobody.weights, nobody.distances, pattern=selection.pattern,
                       features=selection.features)  # fmt: skip
    answer = stacked(parameters, bank, nobody)
    np.testing.assert_allclose(answer.evidence, [[4.25, 3.5]] * 2)
    np.testing.assert_allclose(answer.adjustment, [[2.1, -0.8], [-3.9, 2.2]], rtol=1e-6)


def test_a_gene_that_no_cited_row_measured_comes_from_the_regression():
    parameters, bank, selection = asked(1.0, measured=np.array([[True, False], [True, True]]))
    answer = stacked(parameters, bank, selection)
    assert answer.evidence[1, 1] == 3.5
    np.testing.assert_allclose(answer.adjustment, [[0, 0], [0, 2.2]], rtol=1e-6)
