"""Episodes: who serves whom, in which batches, and the evidence that comes of it."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from ragst_sd.retrieval import episodes as module
from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.episodes import Episodes
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.loop import seeded
from ragst_sd.retrieval.model import Member
from ragst_sd.retrieval.rag import RagOptions
from ragst_sd.retrieval.training import within_section_pearson

N, OPTIONS = 90, RagOptions(gate="softmax", correlation=1.0, sparsity=0.0)
GROUPS = np.stack([np.repeat([0, 1, 2], 30), np.repeat([0, 1, 0, 2, 2, 3], 15)], axis=1)


def episodes_of(rng, groups):
    training = Bank(
        embedding=None,
        values=rng.normal(size=(N, 11)),
        panels=np.zeros(N, dtype=int),
        measured=np.ones((1, 11), dtype=bool),
        folds=groups[:, 0],
        donors=groups[:, 1],
        sections=np.repeat(np.arange(6), 15),
        state=rng.normal(size=(N, 2)),
    )
    return Episodes(training, rng.normal(size=(N, 6)), Run(OPTIONS, n_candidates=7))


@pytest.fixture
def episodes(rng):
    return episodes_of(rng, GROUPS)


def member_of(gate_hidden=0, seed=0):
    with seeded(seed):
        member = Member(6, 2, n_phi=6, hidden=0, gate_hidden=gate_hidden).eval()
        with torch.no_grad():
            for weight in member.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return member


def spread_weights(episodes, member, queries, bank):
    """(queries, N) weight on every row, read off the evidence of profiles that name their row."""
    named = copy(episodes)
    named.y = torch.eye(N)
    with torch.no_grad():
        return named.predict(member, queries, bank)[0].numpy()


@pytest.mark.parametrize("candidates", ["nearest", "random"])
@pytest.mark.parametrize("gate", list(GATES))
def test_no_weight_on_rows_of_the_own_group_or_donor(episodes, candidates, gate):
    episodes.options, episodes.candidates = replace(OPTIONS, gate=gate), candidates
    # More candidates than some queries have eligible rows.
    episodes.n_candidates = 50
    with seeded(0):
        weights = spread_weights(episodes, member_of(4), np.arange(N), np.arange(N))
    closed = (GROUPS[:, None, :] == GROUPS[None, :, :]).any(axis=2)
    assert (weights[closed] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_what_is_kept_grows_with_rows_not_with_pairs_of_groups(rng):
    groups = np.stack([np.arange(N), GROUPS[:, 1]], axis=1)
    episodes = episodes_of(rng, groups)
    assert max(x.numel() for x in vars(episodes).values() if isinstance(x, torch.Tensor)) <= 11 * N
    episodes.n_candidates = 80
    weights = spread_weights(episodes, member_of(), np.arange(0, N, 3), np.arange(0, N, 2))
    open_rows = (groups[::3, None, :] != groups[None, ::2, :]).all(axis=2)
    np.testing.assert_array_equal(weights[:, ::2] > 0, open_rows)


@pytest.mark.parametrize("gate_hidden", [0, 4])
def test_evidence_written_out(episodes, gate_hidden):
    member, queries, bank = member_of(gate_hidden), np.arange(0, N, 4), np.arange(0, N, 2)
    weights = spread_weights(episodes, member, queries, bank)
    with torch.no_grad():
        evidence = episodes.predict(member, queries, bank)[0].numpy()
        phi = member(episodes.x)
    for i, query in enumerate(queries):
        eligible = [j for j in bank if not (GROUPS[j] == GROUPS[query]).any()]
        squared = ((phi[query] - phi[eligible]) ** 2).sum(dim=1).numpy()
        nearest = [eligible[place] for place in np.argsort(squared)[:7]]
        with torch.no_grad():
            logits = member.logits(phi[[query]], phi[nearest][None], episodes.state[[query]])
        expected = np.zeros(N)
        expected[nearest] = torch.softmax(logits, dim=1)[0].numpy()
        np.testing.assert_allclose(weights[i], expected, atol=2e-5)
        np.testing.assert_allclose(evidence[i], expected @ episodes.y.numpy(), atol=1e-4)


def test_a_pass_over_the_batches_holds_each_row_once(episodes, monkeypatch):
    rows = np.setdiff1d(np.arange(N), [3, 50])
    assert len(episodes.batches(rows)) == 1
    monkeypatch.setattr(module, "_BATCH", 40)
    batches = episodes.batches(rows)
    assert max(map(len, batches)) <= 40
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), rows)
    sections = [set(episodes.sections.numpy()[batch]) for batch in batches]
    assert sum(map(len, sections)) == len(set.union(*sections)) == 6


def test_a_large_section_is_thinned_to_one_batch(episodes, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 12)
    batches = episodes.batches(np.arange(N))
    assert [len(set(batch)) for batch in batches] == [12] * 6


def test_score_is_that_of_all_queries_at_once(episodes, monkeypatch):
    member, held = member_of(), np.arange(60, N)
    bank = np.arange(60)
    with torch.no_grad():
        evidence = episodes.predict(member, held, bank)[0].numpy()
        expected = within_section_pearson(evidence, episodes.y[held].numpy(), episodes.sections[held].numpy())
        monkeypatch.setattr(module, "_BATCH", 8)
        assert episodes.score(member, held, bank) == pytest.approx(expected, abs=1e-6)


def test_loss_written_out(episodes):
    member, queries = member_of(), np.arange(N)
    episodes.options = replace(OPTIONS, correlation=0.7, sparsity=0.3)
    with torch.no_grad():
        evidence, weights = (t.numpy() for t in episodes.predict(member, queries, queries))
        got = float(episodes.loss(member, queries, 0.0))
    target, sections = episodes.y.numpy(), episodes.sections.numpy()
    pearson = within_section_pearson(evidence, target, sections)
    rows = (1 / (weights**2).sum(axis=1)).mean() / 7
    assert got == pytest.approx(((evidence - target) ** 2).mean() + 0.7 * (1 - pearson) + 0.3 * rows, abs=1e-4)


@pytest.mark.parametrize("gate", list(GATES))
def test_gradients_reach_phi_and_gate(episodes, gate):
    episodes.options = replace(OPTIONS, gate=gate)
    member = member_of(4)
    with seeded(0):
        episodes.loss(member, np.arange(N), 0.5).backward()
    for name, weight in member.named_parameters():
        if name == "null" and gate != "gumbel":
            continue
        assert torch.isfinite(weight.grad).all()
        assert weight.grad.abs().sum() > 0, name
