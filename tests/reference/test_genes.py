"""Gene names."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.reference.genes import (
    available_names,
    changed_capitals,
    common_naming,
    naming,
    strip_version,
    sum_duplicates,
    take_genes,
)


def test_naming():
    assert naming(["EPCAM", "CD3E", "mt-Nd1"]) == "symbol"
    assert naming(["ENSG00000119888", "ENSMUSG00000064339.2"]) == "ensembl"
    with pytest.raises(ValueError, match="mix Ensembl ids"):
        naming(["EPCAM", "ENSG00000119888"])


def test_a_few_odd_names_do_not_matter():
    assert naming([f"ENSG{i:011d}" for i in range(50)] + ["ERCC-1"]) == "ensembl"


def test_versions_are_stripped_from_ids_only():
    assert strip_version(["ENSG00000119888.12", "RP11-34P13.7"]) == ["ENSG00000119888", "RP11-34P13.7"]


def test_other_naming_is_found_in_a_column():
    ids = ["ENSG00000000001.4", "ENSG00000000002"]
    found = available_names(ids, {"feature_name": ["A", "B"], "n_cells": ["3", "4"]})
    assert found == {"ensembl": ["ENSG00000000001", "ENSG00000000002"], "symbol": ["A", "B"]}


def test_mixed_names_are_resolved_by_a_column():
    found = available_names(["A", "ENSG00000000002"], {"gene_ids": ["ENSG00000000001", "ENSG00000000002"]})
    assert found == {"ensembl": ["ENSG00000000001", "ENSG00000000002"]}


def test_common_naming_prefers_symbols():
    both, ids = {"symbol": ["A"], "ensembl": ["E"]}, {"ensembl": ["E"]}
    assert common_naming({"a": both, "b": both}) == "symbol"
    assert common_naming({"a": both, "b": ids}) == "ensembl"
    with pytest.raises(ValueError, match="a: symbol; b: ensembl"):
        common_naming({"a": {"symbol": ["A"]}, "b": ids})


def test_duplicates_are_added_up():
    matrix = sp.csr_matrix(np.array([[1, 2, 4], [0, 3, 5]], dtype=np.float32))
    summed, names = sum_duplicates(matrix, ["A", "B", "A"])
    assert names == ["A", "B"]
    np.testing.assert_array_equal(summed.toarray(), [[5, 2], [5, 3]])


def test_take_genes_orders_and_fills():
    matrix = sp.csr_matrix(np.array([[1, 2, 4]], dtype=np.float32))
    np.testing.assert_array_equal(take_genes(matrix, ["A", "B", "C"], ["C", "X", "A"]).toarray(), [[4, 0, 1]])


def test_genes_without_a_symbol_keep_their_id():
    ids = [f"ENSG{i:011d}" for i in range(40)]
    symbols = [f"S{i}" for i in range(38)] + ["nan", ""]
    found = available_names(ids, {"gene_symbols": symbols})
    assert found["symbol"] == [*symbols[:38], *ids[38:]]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["epcam", "cd3e"], "2 names differ in capitals only.* Did you mean 'EPCAM' for 'epcam'"),
        (["ePcAm"], "Did you mean 'EPCAM' for 'ePcAm'"),
        (["EPCAM", "other"], "^$"),
        (["Epcam", "Cd3e"], "^$"),
    ],
)
def test_capitals_that_another_tool_has_changed(found, message):
    """Symbols of the mouse are other genes, not changed names."""
    assert re.search(message, changed_capitals(["EPCAM", "CD3E"], found))
