"""Headers of earlier versions."""

from __future__ import annotations

import numpy as np
import pytest

from ragst_sd.reference.header import check_header, migrated
from ragst_sd.reference.schema import REFERENCE_VERSION


def first(naming: str = "symbol", **fields) -> dict:
    return {
        "schema_version": 1,
        "task": "histology",
        "use_rep": "X",
        "standardize": True,
        "encoder": {},
        "sections": {"sample": np.array(["a", "b"])},
        "normalization": {"naming": naming},
        "panels": np.array(["panel1"]),
        "content_hash": "0",
        **fields,
    }


@pytest.mark.parametrize(
    ("genes", "naming", "species"),
    [
        (["EPCAM", "KRT8"], "symbol", "human"),
        (["Epcam", "Krt8"], "symbol", "mouse"),
        (["ENSG00000119888", "ENSG00000170421"], "ensembl", "human"),
        (["Gene1", "Gene2"], "symbol", "unknown"),
        (["EPCAM", "Epcam"], "symbol", "unknown"),
    ],
)
def test_species_is_told_from_the_genes(genes, naming, species):
    header = first(naming)
    found = migrated(header, genes)
    assert list(found["sections"]["species"]) == [species] * 2
    assert found["schema_version"] == REFERENCE_VERSION
    check_header(found, "histology")
    assert header["schema_version"] == 1
    assert "species" not in header["sections"]


def test_present_and_later_versions_are_left_alone():
    for version in (REFERENCE_VERSION, 99):
        header = first(schema_version=version)
        assert migrated(header, ["EPCAM"]) == header
    assert migrated(None, []) is None


def test_a_later_version_is_named():
    with pytest.raises(
        ValueError,
        match=rf"schema version 99, and this .* up to {REFERENCE_VERSION}\. Install a release that reads version 99",
    ):
        check_header(first(schema_version=99), "histology")
