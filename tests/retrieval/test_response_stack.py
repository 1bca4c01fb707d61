"""The stack of responses against loops in numpy: what rows teach, what is read of them, and what is chosen."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import nnls

from ragst_sd.retrieval.bank import Query, Run
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.response_shares import ALONE, choose_shares, choose_stack, held_out, stack_of
from ragst_sd.retrieval.response_stack import MEASURED, PARTS, Settings, lessons, part, stack
from ragst_sd.retrieval.responses import pool_mean, shape_halves
from ragst_sd.retrieval.search import unit_rows

from ..screens import respond, response_bank, small_response_bank

SETTINGS = Settings(beta=0.5, alpha=0.7, again=1.5, power=2.0, linear=0.9)


def two_lines(rng, n=24, n_genes=30, noise=0.2, width=0, shared=1.0):
    """Perturbations in two lines; the second one answers with a linear map of what the first one does."""
    programme = rng.normal(size=(n, 4))
    first = programme @ rng.normal(size=(4, n_genes))
    second = shared * programme @ rng.normal(size=(4, n_genes)) + (1 - shared) * rng.normal(size=(n, n_genes))
    values = np.concatenate([first, second]) + noise * rng.normal(size=(2 * n, n_genes))
    names = [(f"P{i}",) for i in range(n)]
    bank = response_bank(
        key=np.tile(rng.normal(size=(n, width)), (2, 1)), values=values, halves=(values, values),
        genes=tuple(names * 2), contexts=np.repeat([0, 1], n), folds=np.tile(np.arange(n), 2),
        state=np.stack([first.mean(axis=0), second.mean(axis=0)]), reliability=np.ones(2 * n),
    )  # fmt: skip
    return replace(bank, screen=replace(bank.screen, from_cells=False))


def ask(bank, rows):
    """Rows of the bank, which may use all but themselves."""
    eligible = ~np.eye(len(bank), dtype=bool)[rows]
    perturbed = tuple(bank.screen.perturbed[row] for row in rows)
    return Query(bank.key[rows], perturbed=perturbed, contexts=bank.sections[rows], eligible=eligible, n_neighbors=4)


def relative(bank, allowed):
    """Responses of rows relative to the mean of those of their context, by a loop."""
    same = [allowed[bank.sections[allowed] == bank.sections[row]] for row in allowed]
    return np.array([bank.values[row] - bank.values[own].mean(axis=0) for row, own in zip(allowed, same, strict=True)])


def test_rows_and_queries_are_known_by_their_responses_elsewhere(rng):
    bank = two_lines(rng)
    (lesson,) = lessons(bank, ask(bank, [3]))
    y = relative(bank, lesson.allowed)
    names = [bank.screen.perturbed[row] for row in lesson.allowed]
    expected = []
    for name in [*[names[i] for i in lesson.here], ("P3",), ("P3",)]:
        rows = [i for i, other in enumerate(names) if other == name and bank.sections[lesson.allowed[i]] == 1]
        expected.append(y[rows].mean(axis=0))
    expected = np.array(expected)
    # On principal components, which keep the products of rows.
    np.testing.assert_allclose(lesson.views[1] @ lesson.views[1].T, expected @ expected.T, atol=1e-8)
    np.testing.assert_allclose(lesson.gram, y[lesson.here] @ y[lesson.here].T, atol=1e-8)
    assert lesson.measured.all()
    np.testing.assert_allclose(lesson.elsewhere[-2:] @ y, expected[-2:], atol=1e-10)


def test_kernel_ridge_by_hand_and_each_row_left_out_of_itself(rng):
    bank = two_lines(rng, width=5)
    (lesson,) = lessons(bank, ask(bank, [3]))
    n = len(lesson.here)
    kernels = []
    for view in lesson.views:
        u = unit_rows(view)
        squared = ((u[:, None] - u[None, :n]) ** 2).sum(axis=2)
        kernels.append(np.exp(-squared / np.median(squared[:n][np.triu_indices(n, 1)])))
    k = kernels[1] + SETTINGS.beta * kernels[0]
    k = k - k.mean(axis=1, keepdims=True) - k[:n].mean(axis=0) + k[:n].mean()
    penalty = SETTINGS.alpha * np.trace(k[:n]) / n
    y = relative(bank, lesson.allowed)[lesson.here]
    expected = k[n] @ np.linalg.solve(k[:n] + penalty * np.eye(n), y)
    found = part(lesson, "kernel_ridge", 1, SETTINGS, 4)[0] @ relative(bank, lesson.allowed)
    np.testing.assert_allclose(found[0], expected)
    smooth = lesson.smooth(lesson.joined(1, SETTINGS.beta), SETTINGS.alpha)
    others = np.delete(np.arange(n), 6)
    left_out = k[6, others] @ np.linalg.solve(k[np.ix_(others, others)] + penalty * np.eye(n - 1), y[others])
    np.testing.assert_allclose(smooth[6] @ y, left_out)


def test_the_nearest_rows_are_read_and_elsewhere_they_are_moved(rng):
    bank = two_lines(rng)
    # P5 was measured in the other line only.
    bank = bank.at_rows(np.delete(np.arange(len(bank)), 5))
    (lesson,) = lessons(bank, ask(bank, [3]))
    n, y = len(lesson.here), relative(bank, lesson.allowed)
    likeness = lesson.like(1, SETTINGS.beta)
    names = [*[bank.screen.perturbed[lesson.allowed[i]] for i in lesson.here], ("P3",), ("P3",), ("P5",)]
    assert len(names) == len(likeness)
    scores = {i: max(0.0, likeness[n, i]) for i in [*range(n), n + 2]}
    best = sorted(scores, key=lambda i: -scores[i])[:4]
    total = sum(scores[i] ** SETTINGS.power for i in best)
    moved = lesson.linear(1, SETTINGS.linear) @ y[lesson.here]
    brings = {i: y[lesson.here[i]] if i < n else moved[i] for i in best}
    expected = sum(scores[i] ** SETTINGS.power / total * brings[i] for i in best)
    np.testing.assert_allclose((part(lesson, "knn", 1, SETTINGS, 4)[0] @ y)[0], expected, atol=1e-10)


def test_shares_add_up_to_what_is_predicted(rng):
    bank = two_lines(rng, width=5)
    asked, shares = ask(bank, [3, 30]), rng.random((3, len(PARTS)))
    found = stack(bank, asked, (SETTINGS,) * 3, shares, 4)
    for lesson in lessons(bank, asked):
        y = relative(bank, lesson.allowed)
        total = sum(s * part(lesson, name, 1, SETTINGS, 4)[0] for name, s in zip(PARTS, shares[MEASURED], strict=True))
        np.testing.assert_allclose((found.coefficients @ bank.values)[lesson.queries], total @ y, atol=1e-10)
    assert (found.cited >= 0).all() and not found.cited[~asked.eligible].any()
    assert found.cited[0, 27] > 0 and found.cited[1, 6] > 0


@pytest.mark.parametrize("name", ["rag", "kernel_ridge"])
def test_rows_that_may_not_be_used_change_nothing(rng, name):
    bank = small_response_bank(rng)
    method = RESPONSE_METHODS[name]
    parameters = method.fit(bank, Run(resolve_options(RESPONSE_METHODS, name, None), n_neighbors=4))
    parameters["stack_shares"] = np.full_like(parameters["stack_shares"], 0.2)
    asked = ask(bank, [2, 9])
    asked.eligible[:, [2, 9, 16]] = False
    other = replace(bank, values=np.where(np.isin(np.arange(17), [2, 9, 16])[:, None], 50.0, bank.values))
    found, again = (respond(method, parameters, one, asked, 4) for one in (bank, other))
    np.testing.assert_allclose(found.evidence + found.adjustment, again.evidence + again.adjustment, atol=1e-8)


def test_what_other_contexts_say_is_found_and_noise_is_not(rng):
    run = Run(n_neighbors=4)
    related, alone = two_lines(rng, n=40), two_lines(rng, n=40, shared=0.0)
    found = choose_stack(related, run, MEASURED, held_out(related, MEASURED, shape_halves(related, None)))
    assert found.gain > 0.8 and found.shares.sum() > 0.5
    assert not found.shares[PARTS.index("ridge")]
    nothing = choose_stack(alone, run, MEASURED, held_out(alone, MEASURED, shape_halves(alone, None)))
    assert nothing.gain < 0.3


def test_nothing_is_given_for_saying_how_long_a_response_is(rng):
    """Single genes do less than the combinations that the mean is made of."""
    bank = two_lines(rng, n=40, width=5)
    mean = 3 * rng.normal(size=30)
    length = np.where(np.arange(40) % 2, 0.4, 1.0)[:, None]
    values = np.tile(length * mean, (2, 1)) + 0.3 * rng.normal(size=(80, 30))
    values -= values.mean(axis=1, keepdims=True)
    bank = replace(bank, values=values, screen=replace(bank.screen, halves=(values, values)))
    held = held_out(bank, 0, shape_halves(bank, None))
    asked = [
        (one.query.perturbed[i], one.query.contexts[i], one.truth[i]) for one in held for i in range(len(one.truth))
    ]
    truth = {(genes, context): line for genes, context, line in asked}
    for one in held:
        assert np.abs((one.beyond(one.truth) * one.level).sum(axis=1)).max() < 1e-8
    run, parts = Run(n_neighbors=4), ("ridge",)

    def knows_more(bank, query):
        return np.array([truth[asked] for asked in zip(query.perturbed, query.contexts, strict=True)])

    def knows(bank, query):
        """Exactly how long each response is, and nothing else."""
        level = pool_mean(bank, query)
        return level * ((knows_more(bank, query) * level).sum(axis=1) / (level**2).sum(axis=1))[:, None]

    assert choose_stack(bank, run, 0, held, parts, knows).gated == 0
    assert choose_stack(bank, run, 0, held, parts, knows_more).gated > 0.8


def held(truth, *, weight=None):
    """Perturbations that were held out, of which `truth` is known."""
    query = SimpleNamespace(perturbed=[(f"P{i}",) for i in range(len(truth))])
    return SimpleNamespace(query=query, truth=truth, weight=np.ones(len(truth)) if weight is None else weight)


@pytest.mark.parametrize("n", [6, 600])
def test_shares_are_least_squares_drawn_towards_equal_ones(rng, n):
    truth = rng.normal(size=(n, 40))
    parts = np.stack([0.5 * truth + 0.2 * rng.normal(size=(n, 40)), truth + 2 * rng.normal(size=(n, 40))])
    weight = rng.uniform(0.2, 1, size=n)
    root = np.sqrt(weight / np.linalg.norm(truth, axis=1))[:, None]
    y, x = (root * truth).ravel(), (root * parts).reshape(2, -1).T
    own = np.array([column @ y / (column @ column) for column in x.T])
    penalty = 5 / n * np.mean([(scale * column) @ (scale * column) for scale, column in zip(own, x.T, strict=True)])
    whole = np.concatenate([x * own, np.sqrt(penalty) * np.eye(2)]), np.concatenate([y, np.full(2, penalty**0.5 / 2)])
    expected = own * nnls(*whole)[0]
    total = x @ expected
    s = total @ y / (total @ total)
    errors = (total * (y - s * total)).reshape(n, -1).sum(axis=1)
    expected *= 1 / (1 + (errors @ errors) / (total @ total) ** 2 / s**2)
    shares = choose_shares([held(truth, weight=weight)], [[part] for part in parts], np.full(2, np.inf))
    np.testing.assert_allclose(shares, expected, rtol=1e-6)
    # Of many perturbations they are those of least squares, of few both parts have some.
    if n > 100:
        np.testing.assert_allclose(shares, nnls(x, y)[0], atol=0.1)


def test_parts_that_agree_share_alike_and_none_is_led_by_what_is_zero(rng):
    truth = rng.normal(size=(12, 40))
    truth[0] = 0
    part = truth + rng.normal(size=truth.shape)
    shares = choose_shares([held(truth)], [[part], [0.1 * part], [-part]], np.full(3, np.inf))
    np.testing.assert_allclose(shares[0], 0.1 * shares[1], rtol=1e-6)
    assert 0.3 < shares[0] + 0.1 * shares[1] < 0.6 and not shares[2]
    assert not choose_shares([held(truth)], [[-part]], np.ones(1)).any()


def test_little_is_added_of_what_few_perturbations_support(rng):
    noise = rng.normal(size=(8, 40))
    supported = np.array([1, -1, 1, 1, -1, 1, -1, 1.0])[:, None] * noise + 3 * rng.normal(size=(8, 40))
    assert choose_shares([held(supported)], [[noise]], np.ones(1))[0] < 0.1
    assert choose_shares([held(noise + 0.1 * supported)], [[noise]], np.ones(1))[0] > 0.9


def test_the_sum_is_at_most_an_average_of_what_was_measured(rng):
    """Parts that are short on what is held out, since it is unlike all others, are not blown up."""
    truth = rng.normal(size=(6, 40))
    short, shrunk = 1e-4 * truth, 0.25 * truth + 0.01 * rng.normal(size=(6, 40))
    assert choose_shares([held(truth)], [[short]], np.ones(1))[0] == pytest.approx(1)
    both = choose_shares([held(truth)], [[short], [short]], np.ones(2))
    assert both.sum() == pytest.approx(1)
    # What a penalty has shrunk is undone.
    assert choose_shares([held(truth)], [[shrunk]], np.array([9.0]))[0] == pytest.approx(4, rel=0.05)
    assert choose_shares([held(truth)], [[shrunk]], np.array([3.0]))[0] == pytest.approx(3, rel=0.01)


def test_what_one_perturbation_supports_is_the_mean(rng):
    truth, part = rng.normal(size=(2, 3, 40))
    part = truth + part
    assert choose_shares([held(truth)], [[part]], np.ones(1))[0] > 0.3
    # Of the others the part says nothing.
    part[1:] = 0
    assert not choose_shares([held(truth)], [[part]], np.ones(1)).any()
    assert not choose_shares([held(truth[:1])], [[part[:1]]], np.ones(1)).any()


def test_few_perturbations_do_not_make_long_responses():
    """Three that point three ways, and one asked for that is like one of them."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        bank = small_response_bank(generator)
        bank = bank.at_rows(np.arange(3))
        bank = replace(bank, key=np.eye(3, bank.key.shape[1]) + 0.01 * generator.normal(size=(3, bank.key.shape[1])))
        method = RESPONSE_METHODS["rag"]
        parameters = method.fit(bank, Run(resolve_options(RESPONSE_METHODS, "rag", None), n_neighbors=4))
        asked = replace(ask(bank, [0]), perturbed=(("new",),), eligible=np.ones((1, 3), dtype=bool))
        found = respond(method, parameters, bank, asked, 4)
        added = found.evidence + found.adjustment - pool_mean(bank, asked)
        assert np.linalg.norm(added) <= 1.1 * np.linalg.norm(bank.values - bank.values.mean(axis=0), axis=1).max()


def test_combinations_with_measured_parts_have_shares_of_their_own(rng):
    bank, shares = small_response_bank(rng), np.zeros((3, len(PARTS)))
    shares[1] = 0.5
    asked = ask(bank, [16, 2])
    asked.eligible[1, [2, 10]] = False
    found = stack(bank, asked, (SETTINGS,) * 3, shares, 4)
    assert np.abs(found.coefficients[0]).sum() > 0
    assert not found.coefficients[1].any() and not found.cited[1].any()


def test_gates_answer_alone_where_shares_say_nothing(rng):
    """In a context of which nothing is measured, and where a perturbation's own response may be used."""
    bank, method = small_response_bank(rng), RESPONSE_METHODS["rag"]
    parameters = method.fit(bank, Run(resolve_options(RESPONSE_METHODS, "rag", None), n_neighbors=4, n_candidates=8))
    parameters["stack_shares"] = np.full((3, len(PARTS)), 0.2)
    asked = replace(ask(bank, [2, 2, 2]), contexts=np.array([0, 0, -1]))
    asked.eligible[1:, 2] = True
    found = stack_of(parameters, bank, asked)
    assert found.coefficients.any(axis=1).tolist() == [True, False, False]
    former = {name: value for name, value in parameters.items() if not name.startswith("stack_")}
    former["gates"] = parameters["gates"][parameters["gates"][:, 0] >= ALONE] - np.eye(8)[0] * ALONE
    now, before = (respond(method, each, bank, asked, 4) for each in (parameters, former))
    np.testing.assert_allclose((now.evidence + now.adjustment)[1:], (before.evidence + before.adjustment)[1:])
    np.testing.assert_allclose(now.weights[1:].sum(axis=0), before.weights[1:].sum(axis=0), atol=1e-12)


def test_what_rows_do_not_span_is_the_mean(rng):
    bank = two_lines(rng, width=5)
    key = np.pad(bank.key, ((0, 0), (0, 1)))
    bank = replace(bank, key=key, embedding=key)
    asked = ask(bank, [3])
    centre = unit_rows(key[np.delete(np.arange(24), 3)]).mean(axis=0)
    asked = replace(asked, key=(centre + np.eye(6)[5] * np.sqrt(1 - (centre**2).sum()))[None])
    asked.eligible[0, 27] = False
    found = stack(bank, asked, (SETTINGS,) * 3, np.ones((3, len(PARTS))), 4)
    assert not found.coefficients.any() and not found.cited.any()


def test_queries_worked_out_at_once_are_those_worked_out_alone(rng):
    bank = two_lines(rng, width=5)
    asked, shares = ask(bank, [3, 30, 5]), np.full((3, len(PARTS)), 0.2)
    found = stack(bank, asked, (SETTINGS,) * 3, shares, 4)
    for i in range(3):
        alone = stack(bank, asked.some(np.array([i])), (SETTINGS,) * 3, shares, 4)
        np.testing.assert_allclose(found.some(np.array([i])).coefficients, alone.coefficients, atol=1e-10)
        np.testing.assert_allclose(found.cited[[i]], alone.cited, atol=1e-10)


def test_held_out_perturbations_are_unseen_or_unseen_here(rng):
    bank = small_response_bank(rng)
    shaped = shape_halves(bank, None)
    for kind in (0, MEASURED):
        for one in held_out(bank, kind, shaped):
            rows = one.lesson.allowed
            assert (one.query.eligible == one.query.eligible[0]).all()
            for name, context in zip(one.query.perturbed, one.query.contexts, strict=True):
                own = [row for row in rows if bank.screen.perturbed[row] == name]
                assert all(bank.sections[row] != context for row in own)
                assert bool(own) == bool(kind)
                assert not any(set(name) < set(bank.screen.perturbed[row]) for row in rows)


@pytest.mark.parametrize(("n", "together"), [(24, 1), (150, 30)])
def test_few_perturbations_are_held_out_one_by_one(rng, n, together):
    bank = two_lines(rng, n=n, width=5)
    parts = held_out(bank, 0, shape_halves(bank, None))
    assert {len(set(one.query.perturbed)) for one in parts} == {together}
    assert {len(one.lesson.allowed) for one in parts} == {2 * (n - together)}


@pytest.mark.parametrize("kind", [0, MEASURED])
def test_many_held_out_perturbations_are_worked_out_some_at_a_time(rng, monkeypatch, kind):
    bank = two_lines(rng, n=150, width=5)
    whole = held_out(bank, kind, shape_halves(bank, None))
    monkeypatch.setattr("ragst_sd.retrieval.response_stack._AT_ONCE", 8)
    parts = held_out(bank, kind, shape_halves(bank, None))
    assert len(parts) > len(whole) and max(len(one.query) for one in parts) == 8
    for name in ("knn", "kernel_ridge"):
        found = [np.concatenate([one.predict(name, kind // 2, SETTINGS, 4) for one in each]) for each in (whole, parts)]
        np.testing.assert_allclose(found[1], found[0], atol=1e-10)


def test_without_embedding_or_other_contexts_the_mean_is_left(rng):
    bank = two_lines(rng)
    for name in ("rag", "kernel_ridge"):
        method = RESPONSE_METHODS[name]
        parameters = method.fit(bank, Run(resolve_options(RESPONSE_METHODS, name, None), n_neighbors=4))
        asked = ask(bank, [3])
        asked.eligible[:, 27] = False
        found = respond(method, parameters, bank, asked, 4)
        np.testing.assert_allclose((found.evidence + found.adjustment), pool_mean(bank, asked))
