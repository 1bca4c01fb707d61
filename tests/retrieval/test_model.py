"""The model against loops in numpy, and its way to plain arrays and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ragst_sd.retrieval.bank import Query
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.loop import seeded
from ragst_sd.retrieval.model import Member, Projection, RetrievalModel, model_from_arrays, state_to_arrays
from ragst_sd.retrieval.rag import gate_weights, rag_phi
from ragst_sd.retrieval.search import Candidates

N_IN, N_PHI, N_STATE = 8, 4, 3


def build(hidden, gate_hidden, members=2, seed=0, n_in=N_IN):
    """A model in float64 whose every weight is away from its start."""
    with seeded(seed):
        model = RetrievalModel(
            [Member(n_in, N_STATE, n_phi=N_PHI, hidden=hidden, gate_hidden=gate_hidden) for _ in range(members)]
        ).double()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(tensor + 0.3 * torch.randn_like(tensor))
                if name.endswith("scale"):
                    tensor.copy_(tensor.abs() + 0.5)
    return model.eval()


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def weights_of(model, member):
    prefix = f"members.{member}."
    return {name.removeprefix(prefix): t.numpy() for name, t in model.state_dict().items() if name.startswith(prefix)}


def phi_by_hand(weights, x):
    out = weights["projection.linear.weight"] @ x
    if "projection.inner.weight" in weights:
        inner = gelu(weights["projection.inner.weight"] @ x + weights["projection.inner.bias"])
        out = out + weights["projection.outer.weight"] @ inner
    return out / weights["scale"]


def logit_by_hand(weights, query, candidate, farthest, state):
    out = -np.exp(weights["log_sharpness"]) * ((query - candidate) ** 2).sum() / farthest
    if "conditioning.inner.weight" in weights:
        # g was trained on phi before it was brought to one scale.
        seen = np.concatenate([*(part * weights["scale"] for part in (candidate, query, query - candidate)), state])
        inner = gelu(weights["conditioning.inner.weight"] @ seen + weights["conditioning.inner.bias"])
        out += (weights["conditioning.outer.weight"] @ inner)[0]
    return out


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("gate_hidden", [0, 6])
def test_phi_and_logits_written_out(rng, hidden, gate_hidden):
    model = build(hidden, gate_hidden)
    x, rows, state = rng.normal(size=(5, N_IN)), rng.normal(size=(5, 6, N_IN)), rng.normal(size=(5, N_STATE))
    absent = rng.random(size=(5, 6)) < 0.3
    absent[0] = [True, True, True, True, True, False]
    absent[1] = False
    with torch.no_grad():
        query, candidates = model(torch.from_numpy(x)), model(torch.from_numpy(rows.reshape(30, -1)))
        got = model.logits(query, candidates.reshape(5, 6, -1), torch.from_numpy(state), torch.from_numpy(absent))
    each = [weights_of(model, m) for m in range(2)]
    np.testing.assert_allclose(query[2], np.concatenate([phi_by_hand(w, x[2]) for w in each]))
    for i in range(5):
        logits = np.zeros((2, 6))
        for m, weights in enumerate(each):
            own, others = phi_by_hand(weights, x[i]), [phi_by_hand(weights, row) for row in rows[i]]
            farthest = max(
                ((own - other) ** 2).sum() for other, gone in zip(others, absent[i], strict=True) if not gone
            )
            logits[m] = [logit_by_hand(weights, own, other, farthest, state[i]) for other in others]
        np.testing.assert_allclose(got[i], np.where(absent[i], -np.inf, logits.mean(axis=0)))


def test_null_is_the_members_mean():
    model = build(0, 0, members=3)
    expected = np.mean([weights_of(model, m)["null"] for m in range(3)])
    np.testing.assert_allclose(model.null.detach().numpy(), [expected])


def test_starts_as_nearest_neighbours(rng):
    with seeded(0):
        member = Member(N_IN, N_STATE, n_phi=N_PHI, hidden=5, gate_hidden=6).eval()
        linear = Projection(N_IN, N_PHI, 0, 0.0)
        linear.linear.load_state_dict(member.projection.linear.state_dict())
    x = torch.from_numpy(rng.normal(size=(4, N_IN))).float()
    candidates = torch.from_numpy(rng.normal(size=(4, 9, N_PHI))).float()
    state = torch.from_numpy(rng.normal(size=(4, N_STATE))).float()
    with torch.no_grad():
        query = member(x)
        np.testing.assert_array_equal(query.numpy(), linear(x).numpy())
        logits = member.logits(query, candidates, state).numpy()
    squared = ((query[:, None] - candidates) ** 2).sum(dim=2).numpy()
    np.testing.assert_allclose(logits, -2 * squared / squared.max(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("gate_hidden", [0, 6])
def test_way_to_arrays_and_back(rng, hidden, gate_hidden):
    model = build(hidden, gate_hidden, members=3)
    arrays = state_to_arrays(model)
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert not any("." in name or "/" in name for name in arrays)
    again = model_from_arrays({**arrays, "input_scale": np.float64(2), "gate": "softmax"})
    assert not again.training
    assert (again.members[0].conditioning is not None) == bool(gate_hidden)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), again.state_dict()[name].numpy())
    assert model.state_dict().keys() == again.state_dict().keys()
    assert state_to_arrays(again).keys() == arrays.keys()


@pytest.fixture
def hood(rng):
    def make(model, n=300, k=8):
        parameters = {**state_to_arrays(model), "input_scale": np.float64(1.7)}
        key, bank = rng.normal(size=(n, N_IN)), rag_phi(parameters, rng.normal(size=(40, N_IN)))
        phi = rag_phi(parameters, key)
        rows = np.stack([rng.permutation(40)[:k] for _ in range(n)])
        rows[1, 3:], rows[2, 1:], rows[3] = -1, -1, -1
        distances = np.where(rows >= 0, np.linalg.norm(phi[:, None] - bank[rows], axis=2), np.nan)
        return parameters, key, bank, Query(phi, Candidates(rows, distances), rng.normal(size=(n, N_STATE)))

    return make


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize(("hidden", "gate_hidden"), [(0, 0), (6, 6)])
def test_a_row_alone_is_the_row_in_a_batch(rng, hood, gate, hidden, gate_hidden):
    parameters, key, bank, many = hood(build(hidden, gate_hidden))
    parameters["gate"] = gate
    weights = gate_weights(parameters, bank, many)
    np.testing.assert_array_equal(weights, gate_weights(parameters, bank, many))
    order = rng.permutation(len(key))
    np.testing.assert_array_equal(rag_phi(parameters, key[order]), many.key[order])
    rows, distances, _ = many.candidates
    for i in (0, 1, 2, 3, 255, 256, 299):
        np.testing.assert_array_equal(rag_phi(parameters, key[i : i + 1])[0], many.key[i])
        one = Query(many.key[[i]], Candidates(rows[[i]], distances[[i]]), many.state[[i]])
        np.testing.assert_array_equal(gate_weights(parameters, bank, one)[0], weights[i])
    # The order of the bank does not matter either.
    place = rng.permutation(40)
    moved = np.where(rows >= 0, np.argsort(place)[np.maximum(rows, 0)], -1)
    moved = replace(many, candidates=Candidates(moved, distances))
    np.testing.assert_array_equal(gate_weights(parameters, bank[place], moved), weights)


@pytest.mark.parametrize("n_in", [1, 5, 7, 8, 15, 50, 64])
def test_phi_does_not_depend_on_the_place_in_a_block(rng, n_in):
    parameters = {**state_to_arrays(build(0, 0, n_in=n_in)), "input_scale": np.float64(1.7)}
    key, order = rng.normal(size=(300, n_in)), rng.permutation(300)
    whole, moved = rag_phi(parameters, key), rag_phi(parameters, key[order])
    np.testing.assert_array_equal(moved, whole[order])


@pytest.mark.parametrize("gate", list(GATES))
def test_gate_gives_absent_candidates_nothing(hood, gate):
    parameters, _, bank, many = hood(build(0, 6))
    weights = gate_weights({**parameters, "gate": gate}, bank, many)
    assert (weights[many.candidates.rows < 0] == 0).all()
    assert weights[2, 0] == 1
    assert not weights[3].any()
    np.testing.assert_allclose(np.delete(weights, 3, axis=0).sum(axis=1), 1)


def test_gate_is_the_models_logits(hood):
    model = build(6, 6)
    parameters, key, bank, many = hood(model, n=10)
    phi = np.concatenate([[phi_by_hand(weights_of(model, m), x / 1.7) for x in key] for m in range(2)], axis=1)
    np.testing.assert_allclose(many.key, phi)
    with torch.no_grad():
        logits = model.logits(
            torch.from_numpy(many.key), torch.from_numpy(bank[many.candidates.rows]), torch.from_numpy(many.state)
        )
    expected = torch.softmax(logits, dim=1).numpy()
    np.testing.assert_allclose(
        gate_weights({**parameters, "gate": "softmax"}, bank, many)[4:], expected[4:], atol=1e-12
    )
