"""State of a spot: the tissue around it, its organ and its technology."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._state import fit_state, state_of


@pytest.fixture
def rows(rng):
    embedding = rng.normal(size=(40, 24)) * np.linspace(1, 3, 24)
    obs = pd.DataFrame(
        {"tissue": np.resize(["breast", "brain", "kidney"], 40), "technology": np.resize(["st", "visium"], 40)}
    )
    return obs, embedding


def test_components_of_the_outermost_view(rows):
    obs, embedding = rows
    state = state_of(fit_state(obs, embedding, 2), obs, embedding)
    around = embedding[:, 12:] - embedding[:, 12:].mean(axis=0)
    left = np.linalg.svd(around, full_matrices=False)[0][:, :8] * np.sqrt(40)
    assert state.shape == (40, 8 + 3 + 2)
    np.testing.assert_allclose(np.abs(state[:, :8]), np.abs(left), atol=1e-6)
    inner = embedding.copy()
    inner[:, :12] = 0
    np.testing.assert_array_equal(state_of(fit_state(obs, embedding, 2), obs, inner), state)


def test_organ_and_technology_are_indicators(rows):
    obs, embedding = rows
    state = state_of(fit_state(obs, embedding, 1), obs, embedding)
    expected = [[t == n for n in ("brain", "breast", "kidney")] + [k == n for n in ("st", "visium")]
                for t, k in obs.to_numpy()]  # fmt: skip
    np.testing.assert_array_equal(state, np.asarray(expected, float))


def test_what_tells_no_rows_apart_is_left_out(rows):
    obs, embedding = rows
    obs["tissue"] = "breast"
    assert state_of(fit_state(obs, embedding, 1), obs, embedding).shape == (40, 2)
    obs["technology"] = "st"
    fitted = fit_state(obs, embedding, 1)
    assert fitted == {}
    assert state_of(fitted, obs, embedding).shape == (40, 0)
    embedding[:, 12:] = 1
    assert fit_state(obs, embedding, 2) == {}


def test_unknown_or_missing_columns_are_zero(rows):
    obs, embedding = rows
    fitted = fit_state(obs, embedding, 1)
    query = pd.DataFrame({"tissue": ["lung", "brain"]})
    np.testing.assert_array_equal(state_of(fitted, query, embedding[:2]), [[0] * 5, [1, 0, 0, 0, 0]])


def test_a_missing_organ_is_none(rows):
    obs, embedding = rows
    obs["tissue"] = np.resize(["breast", "nan", "kidney"], 40)
    state = state_of(fit_state(obs, embedding, 1), obs, embedding)
    assert state.shape == (40, 2 + 2)
    np.testing.assert_array_equal(state[1, :2], 0)


def test_a_row_alone_has_the_state_it_has_in_company(rows):
    obs, embedding = rows
    fitted = fit_state(obs, embedding, 3)
    whole = state_of(fitted, obs, embedding)
    for i in (0, 7, 39):
        np.testing.assert_allclose(state_of(fitted, obs.iloc[[i]], embedding[[i]])[0], whole[i], atol=1e-12)


def test_fit_keeps_a_state_only_for_a_gate_that_looks_at_it(reference, quick):
    kept = {}
    for gate_hidden in (0, 4):
        rg.tl.fit(reference, method="rag", n_neighbors=10, options={**quick("rag"), "gate_hidden": gate_hidden})
        kept[gate_hidden] = reference.uns["ragst"]["fit"]["parameters"]
    assert not [name for name in kept[0] if name.startswith("state_")]
    assert int(kept[4]["state_scales"]) == 2
    width = kept[4]["model_members-0-conditioning-inner-weight"].shape[1]
    latent = len(kept[4]["model_members-0-projection-linear-weight"])
    assert width == 3 * latent + kept[4]["state_axes"].shape[1]
