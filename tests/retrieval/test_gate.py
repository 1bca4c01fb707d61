"""Gates against numpy: the threshold of entmax by bisection, and what passes straight through gumbel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ragst_sd.retrieval.gate import GATES, distance_gate, entmax, gumbel, softmax
from ragst_sd.retrieval.loop import seeded

INF = float("inf")


def entmax_by_bisection(logits):
    """Weights (a / 2 - tau)^2 over one row, with tau found by halving an interval."""
    half = logits[np.isfinite(logits)] / 2
    low, high = half.max() - 1, half.max()
    for _ in range(100):
        tau = (low + high) / 2
        if (np.maximum(half - tau, 0) ** 2).sum() > 1:
            low = tau
        else:
            high = tau
    return np.where(np.isfinite(logits), np.maximum(logits / 2 - low, 0) ** 2, 0)


@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_entmax_is_what_bisection_finds(rng, spread):
    logits = spread * rng.normal(size=(40, 17))
    logits[:10, 3:9] = -INF
    logits[10:20] = np.round(logits[10:20])
    logits[20] = 0.5
    weights = entmax(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(weights, [entmax_by_bisection(row) for row in logits], atol=1e-7)
    assert (weights[:10, 3:9] == 0).all()


def test_entmax_leaves_out_what_softmax_keeps(rng):
    logits = torch.from_numpy(3 * rng.normal(size=(20, 30)))
    assert ((entmax(logits) == 0).sum(dim=1) > 10).all()
    assert (softmax(logits) > 0).all()


@pytest.mark.parametrize("gate", [softmax, entmax])
def test_gradients_of_smooth_gates(rng, gate):
    logits = torch.from_numpy(rng.normal(size=(6, 8))).requires_grad_()
    assert torch.autograd.gradcheck(gate, (logits,))
    absent = torch.zeros(6, 8, dtype=torch.bool)
    absent[:, 2:4] = True
    assert torch.autograd.gradcheck(lambda a: gate(a.masked_fill(absent, -INF)), (logits,))


def test_gradient_of_entmax_is_finite_among_ties():
    # Over these four the spread is exactly one, where the square root in the threshold has no slope.
    logits = torch.tensor([[0.0, 0.0, -2.0, -2.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    (entmax(logits) * torch.arange(4.0)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_softmax_is_numpys(rng):
    logits = rng.normal(size=(5, 7))
    logits[2, 1:] = -INF
    raised = np.exp(logits)
    expected = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(torch.from_numpy(logits)).numpy(), expected)


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_absent_candidates_get_nothing(rng, gate, temperature):
    logits = torch.from_numpy(rng.normal(size=(50, 6)))
    absent = torch.from_numpy(rng.random(size=(50, 6)) < 0.6)
    absent[:6] = True
    absent[range(6), range(6)] = False
    absent[torch.arange(50), torch.from_numpy(rng.integers(6, size=50))] = False
    absent[:6] = ~torch.eye(6, dtype=torch.bool)
    with seeded(0):
        weights = GATES[gate](logits.masked_fill(absent, -INF), torch.zeros(1, dtype=torch.float64), temperature)
    assert (weights[absent] == 0).all()
    np.testing.assert_allclose(weights.sum(dim=1).numpy(), 1)
    np.testing.assert_array_equal(weights[:6].numpy(), np.eye(6))


def test_gumbel_without_temperature_takes_what_beats_the_null_slot(rng):
    logits = rng.normal(size=(60, 9))
    logits[0] = [-5, -4, -3, -2, -1, -2, -3, -4, -5]
    null = torch.tensor([0.3], dtype=torch.float64)
    taken = logits > 0.3
    taken[np.arange(60), logits.argmax(axis=1)] = True
    first, second = (gumbel(torch.from_numpy(logits), null).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, taken / taken.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(first[0], np.eye(9)[4])
    without = gumbel(torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(without > 0, (logits > 0) | (logits == logits.max(axis=1, keepdims=True)))


def test_gumbel_takes_a_candidate_as_often_as_its_logit_says():
    logits = torch.tensor([[4.0, 1.5, 0.0, -1.0]]).expand(20000, 4)
    with seeded(0):
        weights = gumbel(logits, torch.tensor([0.5]), 0.5)
    share = (weights > 0).float().mean(dim=0).numpy()
    # The first is the best, which is always in.
    np.testing.assert_allclose(share, [1, *(1 / (1 + np.exp(-(np.array([1.5, 0, -1]) - 0.5))))], atol=0.01)
    assert len(torch.unique(weights.round(decimals=5))) <= 5


def test_gumbel_is_hard_forward_and_soft_backward(rng):
    logits = torch.from_numpy(rng.normal(size=(12, 7))).requires_grad_()
    null = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    values, temperature = torch.from_numpy(rng.normal(size=(12, 7))), 0.6
    with seeded(3):
        weights = gumbel(logits, null, temperature)
    (weights * values).sum().backward()
    with seeded(3):
        uniform = torch.rand_like(values).numpy()
    margin = logits.detach().numpy() - 0.2 + np.log(uniform) - np.log1p(-uniform)
    taken = margin > 0
    taken[np.arange(12), logits.detach().numpy().argmax(axis=1)] = True
    count = taken.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights.detach().numpy(), taken / count, atol=1e-12)
    # The slope of h / sum(h) at the hard choice, times that of the sigmoid in place of the step.
    outer = (values.numpy() - (taken * values.numpy()).sum(axis=1, keepdims=True) / count) / count
    soft = 1 / (1 + np.exp(-margin / temperature))
    expected = outer * soft * (1 - soft) / temperature
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(null.grad.item(), -expected.sum(), atol=1e-10)


def test_fixed_gates(rng):
    distances = np.sort(rng.random(size=(5, 6)), axis=1)
    distances[1, 3:] = np.nan
    distances[2] = np.nan
    distances[3] = 0
    got = distance_gate(distances, 1.7)
    for row, weights, equal in zip(distances, got, distance_gate(distances, 0.0), strict=True):
        present = ~np.isnan(row)
        raw = np.where(present, np.exp(-1.7 * (row / max(np.nanmax(row, initial=0), 1e-300)) ** 2), 0)
        np.testing.assert_allclose(weights, raw / max(raw.sum(), 1))
        np.testing.assert_allclose(equal, present / max(present.sum(), 1))
