"""The network of PT-RAG: what must not depend on order, company or chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ragst_sd.retrieval.model import state_to_arrays
from ragst_sd.retrieval.pt_rag_model import NET, PtRag, energy_distance, net_from_arrays

B, S, G, K, P = 3, 6, 10, 4, 5


@pytest.fixture(params=[True, False], ids=["cell", "set"])
def net(request):
    torch.manual_seed(0)
    net = PtRag(G, P, 16, 2, 4, per_cell=request.param).eval()
    with torch.no_grad():
        net.alpha.fill_(0.5)
    return net


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(B, S, G), torch.randn(B, P), torch.randn(B, K, P), torch.zeros(B, K, dtype=torch.bool)


def test_the_order_of_cells_and_candidates_and_the_other_sets_change_nothing(net, batch):
    x, e, candidates, absent = batch
    with torch.no_grad():
        whole, chosen, _ = net(*batch)
        np.testing.assert_array_equal(net(*batch)[0].numpy(), whole.numpy())
        cells, rows = torch.randperm(S), torch.randperm(K)
        np.testing.assert_allclose(net(x[:, cells], e, candidates, absent)[0], whole[:, cells], atol=1e-5)
        np.testing.assert_allclose(net(x, e, candidates[:, rows], absent)[0], whole, atol=1e-5)
        alone = net(x[:1], e[:1], candidates[:1], absent[:1])
    np.testing.assert_allclose(alone[0], whole[:1], atol=1e-5)
    np.testing.assert_array_equal(alone[1], chosen[:1])


def test_an_empty_selection_is_the_prediction_without_retrieval(net, batch):
    x, e, candidates, absent = batch
    with torch.no_grad():
        empty, chosen, _ = net(x, e, candidates, torch.ones_like(absent))
        net.alpha.zero_()
        without = net(*batch)[0]
    assert not chosen.any()
    np.testing.assert_array_equal(empty.numpy(), without.numpy())


def test_absent_candidates_say_nothing(net, batch):
    x, e, candidates, absent = batch
    absent[:, 1] = True
    with torch.no_grad():
        before = net(x, e, candidates, absent)[0]
        candidates[:, 1] = 100.0
        np.testing.assert_array_equal(net(x, e, candidates, absent)[0].numpy(), before.numpy())


def test_choices_are_learned_through_the_hard_gate(net, batch):
    response, _, _ = net(*batch, temperature=0.5)
    (response**2).sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in net.parameters())
    assert net.select[0].weight.grad.abs().sum() > 0


def test_weights_are_plain_arrays(net, batch):
    parameters = {**state_to_arrays(net, NET), "heads": 4, "per_cell": net.per_cell}
    with torch.no_grad():
        np.testing.assert_array_equal(net_from_arrays(parameters)(*batch)[0].numpy(), net(*batch)[0].numpy())


def test_energy_distance_by_brute_force():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))

    def mean(x, y):
        return np.mean([[np.linalg.norm(p - q) for q in y] for p in x])

    found = energy_distance(torch.from_numpy(a)[None], torch.from_numpy(b)[None]).item()
    assert found == pytest.approx(mean(a, b) - 0.5 * mean(a, a) - 0.5 * mean(b, b), abs=1e-6)
