"""Predictions whose values were changed, or whose genes go by other names, are noticed where they are read."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import ragst_sd as rg


def swapped_names(table):
    table.var_names = [*table.var_names[1::-1], *table.var_names[2:]]


def swapped_values(table):
    table.X[:, [0, 1]] = table.X[:, [1, 0]]


def shifted_genes(table):
    """Rows have the sums that they had."""
    table.X[:, 0] += 0.1
    table.X[:, 1] -= 0.1


@pytest.mark.parametrize("change", [swapped_names, swapped_values, shifted_genes])
def test_changes_of_genes_are_noticed(predicted, reference, change, caplog):
    table = predicted.tables["predicted"].copy()
    change(table)
    with pytest.raises(ValueError, match="changed after the prediction, or its genes got other names, in"):
        rg.get.explain(table, reference, obs_names=table.obs_names[0], genes=table.var_names[5])
    rg.tl.evaluate(table, truth=predicted.tables["table"])
    assert "or its genes got other names" in caplog.text


def test_other_orders_parts_and_storage_are_no_changes(predicted, caplog):
    whole = predicted.tables["predicted"]
    order = np.random.default_rng(0)
    shuffled = whole[order.permutation(whole.n_obs)][:, order.permutation(whole.n_vars)].copy()
    sparse = whole.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    for table in (shuffled, sparse, whole[:7], whole[:, :9].copy()):
        rg.tl.evaluate(table, truth=predicted.tables["table"], metrics="pearson")
    assert "changed after the prediction" not in caplog.text


def test_a_part_of_both_is_said_not_to_be_checked(predicted, caplog):
    caplog.set_level("INFO")
    rg.get.neighbors(predicted.tables["predicted"][:7, :9].copy())
    assert "its values cannot be checked" in caplog.text
