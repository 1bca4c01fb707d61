"""PT-RAG on given responses: what it reads, moves and adds, against loops; and what retrieval is worth to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ragst_sd.retrieval.bank import Run
from ragst_sd.retrieval.gate import entmax
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.pt_rag_responses import scenes
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.responses import pool_mean

from ..screens import respond
from .test_response_stack import ask, relative, two_lines

METHOD = RESPONSE_METHODS["pt_rag"]


def fitted(bank, **options):
    chosen = resolve_options(RESPONSE_METHODS, "pt_rag", {"max_steps": 10, **options})
    return METHOD.fit(bank, Run(chosen, n_neighbors=6, n_candidates=6))


def test_a_prediction_by_hand(rng):
    bank = two_lines(rng, width=5)
    parameters, asked = fitted(bank), ask(bank, [27])
    (scene,) = scenes(bank, asked, np.asarray(parameters["response_axes"], dtype=np.float64))
    z = np.clip((bank.screen.states[1] - parameters["state_mean"]) @ parameters["state_axes"], -1, 1)
    maps = {name: np.asarray(parameters[f"net_{name}"], dtype=np.float64) for name in ("phi", "move", "direct")}
    phi, move, direct = (maps[name][0] + np.tensordot(z, maps[name][1:], 1) for name in ("phi", "move", "direct"))
    group, n = scene.group, len(scene.group.here)
    placed = [x @ phi for x in (scene.features[n : n + 1], scene.features[:n])]
    cosine = (placed[0] @ placed[1].T)[0] / np.linalg.norm(placed[0]) / np.linalg.norm(placed[1], axis=1)
    sharp = np.exp(parameters["net_sharpness"])
    best = np.argsort(-cosine)[:6]
    weights = entmax(torch.tensor([[*(sharp * cosine[best]), sharp + parameters["net_bias"]]])).numpy()[0]
    y, axes = relative(bank, group.allowed), parameters["response_axes"]
    own = y[list(group.allowed).index(3)]
    np.testing.assert_allclose(scene.elsewhere[n], own @ axes, atol=1e-6)
    there = y[group.here]
    alpha = float(parameters["net_alpha"])
    read = weights[:-1] @ there[best] + weights[-1] * (own @ axes @ move @ axes.T)
    key = bank.key[27] / np.linalg.norm(bank.key[27])
    expected = pool_mean(bank, asked)[0] + key @ direct @ axes.T + alpha * read
    found = respond(METHOD, parameters, bank, asked, 7)
    np.testing.assert_allclose((found.evidence + found.adjustment)[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.weights.sum(), 1)
    assert set(found.rows[0][found.rows[0] >= 0]) <= {3, *group.allowed[group.here[best]]}


def test_retrieval_is_what_it_gains_from(rng):
    """Half of the perturbations are like others; nothing is known of them but what the other line says."""
    bank = two_lines(rng, n=40)
    training = bank.at_rows(np.delete(np.arange(80), np.arange(64, 70)))
    rows = np.arange(64, 70)
    asked = ask(bank, rows)
    asked.eligible[:, rows] = False
    truth = bank.values[rows] - pool_mean(bank, asked)

    def score(**options):
        found = respond(METHOD, fitted(training, **options), bank, asked, 6)
        added = found.evidence + found.adjustment - pool_mean(bank, asked)
        size = np.linalg.norm(added, axis=1) * np.linalg.norm(truth, axis=1)
        return float(((added * truth).sum(axis=1) / np.maximum(size, 1e-12)).mean())

    near, random, nobody = score(), score(candidates="random"), score(candidates="none")
    assert near > 0.7
    assert random < near - 0.3
    # Without an embedding nothing but the mean is left.
    assert nobody == pytest.approx(0, abs=1e-6)


def test_the_state_of_the_context_is_read_only_if_asked(rng):
    bank = two_lines(rng)
    assert fitted(bank)["net_phi"].shape[0] == 2
    assert fitted(bank, context_aware=False)["net_phi"].shape[0] == 1


def test_answers_do_not_depend_on_the_other_queries(rng):
    bank = two_lines(rng, width=5)
    parameters = fitted(bank)
    together = respond(METHOD, parameters, bank, ask(bank, [2, 27, 5]), 6)
    alone = respond(METHOD, parameters, bank, ask(bank, [27]), 6)
    np.testing.assert_allclose(
        (together.evidence + together.adjustment)[1], (alone.evidence + alone.adjustment)[0], rtol=1e-5, atol=1e-5
    )


def test_something_has_to_be_known_of_perturbations(rng):
    bank = two_lines(rng).at_rows(np.arange(24))
    with pytest.raises(ValueError, match="nothing to compare perturbations by"):
        fitted(bank)
