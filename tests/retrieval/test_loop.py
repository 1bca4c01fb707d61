"""Training loop: the best state is what remains, also after Ctrl-C."""

from __future__ import annotations

import logging

import pytest
import torch

from ragst_sd.retrieval.loop import AdamW, optimise, seeded


class Counter(torch.nn.Module):
    """Its weight is minus the number of steps taken."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def run(scores=None, *, steps=20, stop=None, **kwargs):
    model = Counter()
    given = iter(scores or [])
    modes = []

    def step(i):
        modes.append(model.training)
        if i == stop:
            raise KeyboardInterrupt
        return model.weight.sum()

    def score():
        assert not model.training
        assert not torch.is_grad_enabled()
        return next(given)

    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    history = optimise(model, step, optimiser, steps=steps, score=score if scores else None, **kwargs)
    assert all(modes)
    assert not model.training
    return -round(model.weight.item()), history


def test_keeps_the_best_state():
    taken, history = run([0.1, 0.5, 0.3, 0.4], every=5)
    assert taken == history.best_step == 10
    assert history.best_score == 0.5
    assert history.scores == [(5, 0.1), (10, 0.5), (15, 0.3), (20, 0.4)]


def test_scores_the_last_step_also_where_it_is_not_due():
    taken, history = run([0.1, 0.2, 0.3], every=5, steps=12)
    assert [step for step, _ in history.scores] == [5, 10, 12]
    assert taken == 12


def test_a_first_score_of_nan_is_not_kept():
    taken, history = run([float("nan"), 0.1, float("nan"), 0.05], every=5)
    assert (taken, history.best_score) == (10, 0.1)


def test_without_score_the_last_state_counts():
    taken, history = run(steps=7)
    assert taken == history.best_step == 7
    assert history.best_score != history.best_score


@pytest.mark.parametrize(("stop", "kept"), [(17, 10), (3, 3)])
def test_interrupt_keeps_the_best_state(stop, kept, caplog):
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        taken, history = run([0.1, 0.5, 0.3, 0.2], every=5, stop=stop, label="this fit")
    assert history.interrupted
    assert taken == history.best_step == kept
    assert f"this fit was interrupted after {stop} of 20 steps" in caplog.text


def test_seeded_repeats_itself_and_leaves_the_callers_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in range(2):
        with seeded(1):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    assert torch.equal(torch.rand(3), expected)


def test_steps_are_those_of_adamw_in_torch():
    x, settings, states = torch.linspace(-1, 1, 12).reshape(4, 3), {"lr": 0.05, "weight_decay": 0.1}, []
    for kind in (AdamW, torch.optim.AdamW):
        with seeded(3):
            model = torch.nn.Linear(3, 2)
        unused = torch.nn.Parameter(torch.ones(2))
        optimiser = kind([*model.parameters(), unused], **settings)
        for _ in range(25):
            optimiser.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimiser.step()
        assert torch.equal(unused, torch.ones(2))
        states.append(torch.cat([one.detach().ravel() for one in model.parameters()]))
    torch.testing.assert_close(*states)


@pytest.mark.parametrize("allowed", [1, 2])
def test_trains_on_one_thread_and_gives_the_others_back(allowed):
    before, seen = torch.get_num_threads(), []
    model = Counter()

    def step(i):
        seen.append(torch.get_num_threads())
        if i == 2:
            raise ZeroDivisionError
        return model.weight.sum()

    torch.set_num_threads(allowed)
    try:
        with pytest.raises(ZeroDivisionError):
            optimise(model, step, torch.optim.SGD(model.parameters(), lr=1.0), steps=5)
        assert seen == [1, 1, 1]
        assert torch.get_num_threads() == allowed
    finally:
        torch.set_num_threads(before)
