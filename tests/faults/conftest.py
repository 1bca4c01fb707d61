"""Two versions of a small reference, of which a store holds one or the other."""

from __future__ import annotations

import os

import numpy as np
import pytest

import ragst_sd as rg

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def versions(_sections):
    """A fitted reference and a smaller one, both as small as they can be."""
    whole = rg.tl.build_reference({"donor1": _sections["donor1"], "donor2": _sections["donor2"]}, use_rep="X_colour")
    found = []
    for n in (40, 30):
        part = whole[np.r_[: n // 2, -(n // 2) : 0]].copy()
        part.uns["ragst"]["content_hash"] = _hash(part)
        rg.tl.fit(part, method="knn", n_neighbors=5)
        # Neither expression nor embedding: nothing but the store's own checksum would notice a mixture.
        part.obsm["thumbnail"] = np.full_like(part.obsm["thumbnail"], n)
        found.append(part)
    return found


def _hash(reference):
    from ragst_sd._reference import reference_hash

    return reference_hash(reference)


def is_one_of(found, versions):
    """Which version a store holds; it must be the whole of one."""
    (same,) = [one for one in versions if one.n_obs == found.n_obs]
    assert found.uns["ragst"]["content_hash"] == same.uns["ragst"]["content_hash"]
    assert found.uns["ragst"]["fit"]["fit_hash"] == same.uns["ragst"]["fit"]["fit_hash"]
    assert list(found.obs_names) == list(same.obs_names)
    np.testing.assert_array_equal(found.obsm["thumbnail"], same.obsm["thumbnail"])
    np.testing.assert_array_equal(found.obsm["retrieval_key"], same.obsm["retrieval_key"])
    return same.n_obs
