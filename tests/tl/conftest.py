"""What tests of several functions share: a reference of three donors; references of responses, made as a file says."""

from __future__ import annotations

import pytest

import ragst_sd as rg


@pytest.fixture(scope="module")
def _three(_sections):
    return rg.tl.build_reference(_sections, use_rep="X_colour", thumbnails=False)


@pytest.fixture
def three(_three):
    """Unfitted reference of three donors, one section each."""
    return _three.copy()


@pytest.fixture
def bank(_bank):
    """The reference of responses that the file makes."""
    return _bank.copy()


@pytest.fixture(scope="module")
def _rag(_bank):
    reference = _bank.copy()
    rg.tl.fit(reference, method="rag")
    return reference
