"""The network baseline: its arrays against torch, its choices against what the data were made of."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from ragst_sd.retrieval import mlp
from ragst_sd.retrieval.bank import Bank, Run, Selection
from ragst_sd.retrieval.loop import History, best_step
from ragst_sd.retrieval.mlp import MlpOptions, fit_mlp, mlp_adjustment
from ragst_sd.retrieval.ridge import fit_ridge, ridge_adjustment
from ragst_sd.retrieval.training import held_out_splits, standardised_targets, within_section_pearson

OPTIONS = MlpOptions(n_train_genes=8, hidden=16, max_steps=60, n_seeds=2, learning_rate=1e-2)


def planted(rng, n_groups=3, n=50):
    """Expression bends with the embedding, in sections of different level; panel 1 lacks gene 3, nobody has gene 11."""
    groups = np.repeat(np.arange(n_groups), n)
    key = rng.normal(size=(len(groups), 4))
    bends = np.stack([np.abs(key[:, 0]), np.abs(key[:, 1]), key[:, 2]], axis=1)
    values = bends @ rng.normal(size=(3, 12)) + 0.2 * rng.normal(size=(len(key), 12)) + groups[:, None] + 5
    panels = (groups == 1).astype(int)
    measured = np.ones((2, 12), dtype=bool)
    measured[1, 3] = False
    measured[:, 11] = False
    values = sp.csr_matrix(values * measured[panels])
    return Bank(key, values, panels, measured, groups, groups, key=key)


def added(adjustment, fitted, key):
    """What a regression adds for queries at these places."""
    nothing = np.zeros((len(key), 1))
    return adjustment(fitted, None, Selection(key, np.full((len(key), 1), -1), nothing, nothing))


@pytest.fixture(scope="module")
def training():
    return planted(np.random.default_rng(3))


@pytest.fixture(scope="module")
def fitted(training):
    return fit_mlp(training, Run(OPTIONS, rng=1))


def test_networks_lie_side_by_side_and_stop_at_one_step(fitted):
    assert fitted["first"].shape == (4, 32)
    assert 1 <= fitted["steps"] <= 60


def test_the_number_of_threads_changes_nothing(training, fitted):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = fit_mlp(training, Run(OPTIONS, rng=1))
    finally:
        torch.set_num_threads(before)
    for name, value in fitted.items():
        np.testing.assert_array_equal(value, again[name])


def test_adjustment_is_the_mean_of_the_networks(training, monkeypatch):
    networks, real = [], mlp._train

    def keep(*args, **kwargs):
        result = real(*args, **kwargs)
        networks.append(result[0])
        return result

    monkeypatch.setattr(mlp, "_train", keep)
    fitted = fit_mlp(training, Run(OPTIONS))
    x = torch.as_tensor(training.embedding / fitted["scale"]).float()
    targets = standardised_targets(training, np.arange(150), 8, "mlp")
    np.testing.assert_array_equal(fitted["trained_genes"], targets.genes)
    with torch.no_grad():
        expected = np.mean([network(x).double().numpy() for network in networks[-2:]], axis=0) * targets.sd
    got = added(mlp_adjustment, fitted, training.embedding)[:, targets.genes]
    np.testing.assert_allclose(got, expected - expected.mean(axis=0), atol=1e-4)


def test_other_genes_are_ridge_on_the_hidden_units(training, fitted):
    units = mlp.gelu(training.embedding / fitted["scale"] @ fitted["first"] + fitted["first_bias"])
    values = training.values.toarray()
    got = added(mlp_adjustment, fitted, training.embedding)
    others = np.setdiff1d(np.arange(11), fitted["trained_genes"])
    assert 3 in others
    for gene in others:
        rows = np.flatnonzero(training.measured[training.panels, gene])
        sections = training.sections[rows]
        h, y = units[rows].copy(), values[rows, gene].copy()
        for section in np.unique(sections):
            h[sections == section] -= h[sections == section].mean(axis=0)
            y[sections == section] -= y[sections == section].mean()
        # Two networks: their hidden units count half each in the penalty.
        penalty = 2 * fitted["head_alpha"] * len(rows) * np.eye(h.shape[1])
        expected = (units - units[rows].mean(axis=0)) @ np.linalg.solve(h.T @ h + penalty, h.T @ y)
        np.testing.assert_allclose(got[:, gene], expected, atol=1e-8)
    assert not got[:, 11].any()


def test_adjustment_does_not_depend_on_company(training, fitted):
    many = np.tile(training.embedding, (2, 1))
    whole = added(mlp_adjustment, fitted, many)
    for i in (0, 255, 256, 299):
        np.testing.assert_array_equal(added(mlp_adjustment, fitted, many[i : i + 1])[0], whole[i])


@pytest.mark.slow
def test_it_learns_what_ridge_cannot():
    everything = planted(np.random.default_rng(3), n_groups=4)
    rows, held = np.flatnonzero(everything.folds < 3), np.flatnonzero(everything.folds == 3)
    part = everything.at_rows(rows)
    network = fit_mlp(part, Run(replace(OPTIONS, max_steps=150)))
    ridge = fit_ridge(part, alphas=np.logspace(-3, 2, 6))
    key, truth = everything.embedding[held], everything.values.toarray()[held][:, :11]
    score, linear = (
        within_section_pearson(more[:, :11], truth, everything.sections[held])
        for more in (added(mlp_adjustment, network, key), added(ridge_adjustment, ridge, key))
    )
    assert score > linear + 0.1
    assert network["inner_score"] == pytest.approx(score, abs=0.15)


def test_held_out_groups_take_no_part(training, monkeypatch):
    seen, real = [], mlp._train

    def keep(training, x, rows, *args, **kwargs):
        seen.append(rows)
        return real(training, x, rows, *args, **kwargs)

    monkeypatch.setattr(mlp, "_train", keep)
    fit_mlp(training, Run(replace(OPTIONS, max_steps=2, n_seeds=1)))
    assert [sorted(set(training.folds[rows])) for rows in seen] == [[1, 2], [0, 2], [0, 1], [0, 1, 2]]


def test_an_interrupt_ends_a_stage_and_keeps_what_there_is(training, monkeypatch, caplog):
    calls, real = [], mlp.section_correlation

    def interrupted(*args):
        calls.append(len(args[0]))
        if len(calls) in (25, 40):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(mlp, "section_correlation", interrupted)
    fitted = fit_mlp(training, Run(OPTIONS))
    # The first held-out group ends after 24 steps, and the first of the two networks after 14 more.
    assert calls == [100] * 25 + [150] * 15
    assert fitted["steps"] in (10, 20)
    assert fitted["first"].shape == (4, 16)
    assert caplog.text.count("interrupted") == 2
    assert fitted["interrupted"]


def test_one_group_takes_half_of_the_steps(training):
    single = replace(training, folds=np.zeros(150, int))
    fitted = fit_mlp(single, Run(replace(OPTIONS, max_steps=8)))
    assert fitted["steps"] == 4
    assert np.isnan(fitted["inner_score"])


def test_batches_of_rows(training):
    fitted = fit_mlp(training, Run(replace(OPTIONS, batch_size=40, n_seeds=1)))
    assert fitted["inner_score"] > 0.3


def test_splits_and_steps():
    splits = held_out_splits(SimpleNamespace(folds=np.repeat(np.arange(7), [4, 4, 4, 2, 4, 4, 4]), beside=None))
    assert [len(held) for _, held in splits] == [4, 4, 4]
    assert [inner[0] for inner, _ in splits] == [4, 0, 0]
    assert held_out_splits(SimpleNamespace(folds=np.zeros(5, int), beside=None)) == []
    # Parts of sections are all held out, with the rows beside them; a row in no part is always learned from.
    folds, beside = np.repeat([0, 1, 2, 3, -1], 5), np.zeros((25, 4), dtype=bool)
    beside[[5, 24], 0] = True
    parts = held_out_splits(SimpleNamespace(folds=folds, beside=beside))
    assert [held[0] for _, held in parts] == [0, 5, 10, 15]
    assert parts[0][0].tolist() == list(range(6, 24))
    assert parts[1][0].tolist() == [*range(5), *range(10, 25)]
    histories = [History(scores=[(10, 0.1), (20, 0.5), (30, 0.2)]), History(scores=[(10, 0.2), (20, 0.2)]), History()]
    assert best_step(histories, 99) == (20, pytest.approx(0.35))
    assert best_step([History()], 99)[0] == 99


def test_nothing_that_varies_is_an_error(training):
    flat = replace(training, values=np.ones((150, 12)), measured=np.ones((2, 12), dtype=bool))
    with pytest.raises(ValueError, match="none of the 8 genes tried varies"):
        fit_mlp(flat, Run(OPTIONS))
