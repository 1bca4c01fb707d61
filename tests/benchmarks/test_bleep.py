"""Contrastive alignment: the loss by hand, the arrays against torch, neighbours against what was planted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.training import within_section_pearson

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from methods import bleep  # noqa: E402
from methods.bleep import BleepOptions, bleep_bank, bleep_phi, contrastive_loss, fit_bleep  # noqa: E402

OPTIONS = BleepOptions(width=24, max_steps=40, batch_size=64, n_train_genes=10)

pytestmark = pytest.mark.slow


def planted(rng, noise=0.3):
    """Half of the embedding says nothing about expression; sections differ in level; panel 1 lacks gene 2."""
    groups = np.repeat([0, 1, 2], 60)
    truth = rng.normal(size=(180, 3))
    key = np.concatenate([truth, 2 * rng.normal(size=(180, 3))], axis=1)
    values = truth @ rng.normal(size=(3, 12)) + noise * rng.normal(size=(180, 12)) + 5 + groups[:, None]
    panels = (groups == 1).astype(int)
    measured = np.ones((2, 12), dtype=bool)
    measured[1, 2] = False
    return Bank(key, sp.csr_matrix(values * measured[panels]), panels, measured, groups, groups, key=key)


@pytest.fixture(scope="module")
def training():
    return planted(np.random.default_rng(2))


@pytest.fixture(scope="module")
def fitted(training):
    return fit_bleep(training, Run(OPTIONS, rng=1))


def test_loss_by_hand(rng):
    image, expression = 0.5 * rng.normal(size=(2, 5, 3))
    tau = 0.7

    def softmax(a):
        return np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)

    logits = expression @ image.T / tau
    targets = softmax((image @ image.T + expression @ expression.T) / 2 * tau)
    spots = -(targets * np.log(softmax(logits))).sum(axis=1).mean()
    images = -(targets.T * np.log(softmax(logits.T))).sum(axis=1).mean()
    got = contrastive_loss(torch.as_tensor(image), torch.as_tensor(expression), tau)
    assert float(got) == pytest.approx((spots + images) / 2)


def test_parameters_are_plain_and_the_same_twice(training, fitted):
    again = fit_bleep(training, Run(OPTIONS, rng=1))
    for name, value in fitted.items():
        assert isinstance(value, np.ndarray | int | float)
        np.testing.assert_array_equal(value, again[name])
    assert 2 not in fitted["genes"]


def test_projections_are_those_of_the_trained_heads(training, monkeypatch):
    kept, real = [], bleep._train

    def keep(*args, **kwargs):
        result = real(*args, **kwargs)
        kept.append(result[0])
        return result

    monkeypatch.setattr(bleep, "_train", keep)
    fitted = fit_bleep(training, Run(OPTIONS))
    values = training.values.toarray()[:, fitted["genes"]]
    for section in range(3):
        values[training.sections == section] -= values[training.sections == section].mean(axis=0)
    with torch.no_grad():
        image = kept[-1].image(torch.as_tensor(training.embedding / fitted["scale"]).float())
        expression = kept[-1].expression(torch.as_tensor(values / fitted["sd"]).float())
    for got, expected in (
        (bleep_phi(fitted, training.embedding), image),
        (bleep_bank(fitted, training), expression),
    ):
        assert got.shape == (180, 24)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1)
        np.testing.assert_allclose(got, torch.nn.functional.normalize(expected, dim=1).numpy(), atol=1e-5)


def test_bank_ignores_genes_that_a_panel_lacks_and_levels_of_sections(training, fitted):
    changed = training.values.toarray()
    changed[training.panels == 0, 2] += 7
    changed += 3 * training.sections[:, None]
    got = bleep_bank(fitted, replace(training, values=sp.csr_matrix(changed)))
    np.testing.assert_allclose(got, bleep_bank(fitted, training), atol=1e-10)


def test_phi_does_not_depend_on_company(training, fitted):
    many = np.tile(training.embedding, (2, 1))
    whole = bleep_phi(fitted, many)
    for i in (0, 255, 256, 359):
        np.testing.assert_array_equal(bleep_phi(fitted, many[i : i + 1])[0], whole[i])


def test_neighbours_across_kinds_predict_an_unseen_group(training):
    rows, held = np.flatnonzero(training.folds < 2), np.flatnonzero(training.folds == 2)
    part = training.at_rows(rows)
    fitted = fit_bleep(part, Run(OPTIONS))
    queries, bank = bleep_phi(fitted, training.embedding[held]), bleep_bank(fitted, part)
    nearest = np.argsort(((queries[:, None] - bank[None]) ** 2).sum(axis=2), axis=1)[:, :10]
    np.testing.assert_array_equal(nearest[:, 0], (queries @ bank.T).argmax(axis=1))
    values = training.values.toarray()
    centred = values[rows] - np.stack([values[training.folds == f].mean(axis=0) for f in (0, 1)])[part.folds]
    truth = values[held]
    score = within_section_pearson(centred[nearest].mean(axis=1), truth, training.sections[held])
    shuffled = np.random.default_rng(0).permutation(nearest.ravel()).reshape(nearest.shape)
    chance = within_section_pearson(centred[shuffled].mean(axis=1), truth, training.sections[held])
    assert score > 0.6
    assert abs(chance) < 0.2


def test_held_out_groups_take_no_part(training, monkeypatch):
    seen, real = [], bleep._train

    def keep(x, *args, **kwargs):
        seen.append(x)
        return real(x, *args, **kwargs)

    monkeypatch.setattr(bleep, "_train", keep)
    fitted = fit_bleep(training, Run(replace(OPTIONS, max_steps=2)))
    for fold, x in enumerate(seen[:3]):
        np.testing.assert_array_equal(x, training.embedding[training.folds != fold] / fitted["scale"])
    assert len(seen) == 4
    assert len(seen[3]) == 180


def test_a_loss_at_chance_is_a_warning(training, caplog):
    fit_bleep(training, Run(OPTIONS))
    assert "at chance" not in caplog.text
    # Logits flattened by a huge temperature cannot tell spots apart, whatever the heads do.
    fit_bleep(training, Run(replace(OPTIONS, temperature=1e6, max_steps=2, learning_rate=0)))
    assert "the contrastive loss" in caplog.text and "at chance" in caplog.text
