"""Learned retrieval on small planted data: what it learns, from whom, and that it does so again."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from ragst_sd.retrieval import rag as module
from ragst_sd.retrieval.bank import Bank, Query, Run
from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.methods import METHODS, fit_method, phi_of
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.search import Eligibility, find_candidates
from ragst_sd.retrieval.training import within_section_pearson

RUN = Run(n_neighbors=12, n_candidates=12)
QUICK = {"n_seeds": 1, "max_steps": 60, "learning_rate": 1e-2, "dropout": 0.0}


def planted(rng, donors=4, rows=50, informative=3, noisy=15, genes=20):
    """Few dimensions that say all about expression, among many that vary more and say nothing."""
    n = donors * rows
    key = np.concatenate([rng.normal(size=(n, informative)), 2 * rng.normal(size=(n, noisy))], axis=1)
    values = np.tanh(key[:, :informative] @ rng.normal(size=(informative, genes)))
    folds = np.repeat(np.arange(donors), rows)
    values = values + rng.normal(size=(donors, genes))[folds]
    return Bank(key, values, np.zeros(n, int), np.ones((1, genes), bool), folds, folds, folds)


def held_out(method, training, options, run=RUN, donor=3):
    """Pearson of the evidence within a donor that the fit has not seen."""
    seen = training.folds != donor
    inner, query = training.at_rows(seen), training.at_rows(~seen)
    parameters, bank, *_ = fit_method(method, inner, replace(run, options=resolve_options(METHODS, method, options)))
    phi = phi_of(method, parameters, query.embedding)
    everyone = Eligibility.everything(len(phi), len(bank))
    found = find_candidates(phi, bank, run.n_candidates, eligibility=everyone, how=METHODS[method].candidates)
    asked = Query(phi, found, query.states, run.n_neighbors)
    cited = METHODS[method].select(parameters, replace(inner, key=bank), asked)
    evidence = weighted_average(cited.rows, cited.weights, inner.values - parameters["section_shifts"][inner.sections])
    return within_section_pearson(evidence.astype(float), query.values, query.sections), parameters


@pytest.fixture(scope="module")
def training():
    return planted(np.random.default_rng(0))


@pytest.fixture(scope="module")
def plain(training):
    return held_out("knn", training, {})[0]


@pytest.mark.parametrize("gate", list(GATES))
def test_learns_where_to_look_with_every_gate(training, plain, gate):
    score, parameters = held_out("rag", training, {**QUICK, "gate": gate})
    assert score > plain + 0.15
    untrained, start = held_out("rag", training, {**QUICK, "gate": gate, "max_steps": 1, "learning_rate": 1e-9})
    assert score > untrained + 0.15
    assert parameters["inner_score"] > start["inner_score"] + 0.02


@pytest.mark.slow
def test_random_candidates_are_worse(training):
    learned, _ = held_out("rag", training, QUICK)
    control, _ = held_out("random_rag", training, QUICK)
    assert control < learned - 0.1


def fit(training, run=RUN, **options):
    given = resolve_options(METHODS, "rag", {**QUICK, "max_steps": 20, **options})
    return fit_method("rag", training, replace(run, options=given))[0]


@pytest.mark.slow
def test_one_seed_one_fit(training):
    first, second = fit(training, n_seeds=2), fit(training, n_seeds=2)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    other = fit(training, replace(RUN, rng=1), n_seeds=2)
    name = "model_members-0-projection-linear-weight"
    assert not np.array_equal(first[name], other[name])
    assert not np.array_equal(first[name], first[name.replace("-0-", "-1-", 1)])


def test_steps_are_chosen_on_held_out_groups_only(training, monkeypatch):
    calls, histories = [], []
    train = module._train

    def watched(episodes, rows, run, **kwargs):
        calls.append((rows, kwargs.get("held"), kwargs["steps"]))
        member, history = train(episodes, rows, run, **kwargs)
        histories.extend([history] * (kwargs.get("held") is not None))
        return member, history

    monkeypatch.setattr(module, "_train", watched)
    three = training.at_rows(training.folds != 3)
    parameters = fit(three)
    *inner, (everything, held, steps) = calls
    assert len(inner) == 3
    for rows, out, most in inner:
        assert most == 20
        assert len(np.unique(three.folds[out])) == 1
        assert not set(three.folds[out]) & set(three.folds[rows])
        np.testing.assert_array_equal(np.sort(np.concatenate([rows, out])), np.arange(150))
    np.testing.assert_array_equal(everything, np.arange(150))
    assert held is None
    assert steps == parameters["training_steps"]
    scores = np.mean([np.asarray(history.scores)[:, 1] for history in histories], axis=0)
    assert histories[0].scores[scores.argmax()][0] == steps
    assert scores.max() == pytest.approx(parameters["inner_score"])


def test_panels_with_missing_genes(training):
    measured = np.ones((2, 20), bool)
    measured[1, :4], measured[0, 4:6], measured[:, 6] = False, False, False
    panels = np.resize([0, 1], 200)
    values = training.values * measured[panels]
    parameters = fit(replace(training, values=values, panels=panels, measured=measured))
    coefficients = parameters["regression_coefficients"]
    np.testing.assert_array_equal(np.isfinite(coefficients).all(axis=0), np.arange(20) != 6)
    assert np.isfinite(parameters["model_members-0-projection-linear-weight"]).all()
    assert np.isnan(parameters["reference_mean"][6])
    # Genes that some panel lacks are not trained on: other values there train the same model.
    changed = values.copy()
    changed[:, :6] += measured[panels][:, :6] * np.random.default_rng(1).normal(size=(200, 6))
    again = fit(replace(training, values=changed, panels=panels, measured=measured))
    for name in (name for name in parameters if name.startswith("model_")):
        np.testing.assert_array_equal(parameters[name], again[name])


def interrupt_at(monkeypatch, when):
    """Ctrl-C in the `when`-th step of all steps."""
    taken = iter(range(10_000))
    loss = module.Episodes.loss

    def stopped(self, *args):
        if next(taken) == when:
            raise KeyboardInterrupt
        return loss(self, *args)

    monkeypatch.setattr(module.Episodes, "loss", stopped)


@pytest.mark.parametrize("when", [15, 65])
def test_interrupt_keeps_the_best_state(training, monkeypatch, caplog, when):
    interrupt_at(monkeypatch, when)
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        parameters = fit(training, n_seeds=3, learning_rate=1e-3)
    assert parameters["interrupted"]
    assert "was interrupted after" in caplog.text
    assert np.isfinite(parameters["model_members-0-projection-linear-weight"]).all()
    if when == 65:
        # Inner training takes sixty steps: the first member was under way, and no other is trained.
        assert "model_members-1-projection-linear-weight" not in parameters
    else:
        assert parameters["training_steps"] == 10


@pytest.mark.parametrize(("option", "value"), [("gate", "sharp"), ("n_latent", 0), ("sparsity", -1), ("dropout", 1)])
def test_wrong_options(training, option, value):
    with pytest.raises(ValueError, match=f"`{option}` is"):
        fit(training, **{option: value})
