"""What every method of either task promises, whatever it does inside, on banks of a few rows."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import ragst_sd as rg
from ragst_sd.retrieval import run as runner
from ragst_sd.retrieval.bank import Bank, Query, Run
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.evidence import cite
from ragst_sd.retrieval.gate import distance_gate
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import CitingOptions, choice, resolve_options
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.responses import select_none
from ragst_sd.tl._fit import fit_tissue

from .screens import QUICK, small_response_bank

K, N_CANDIDATES = 4, 6
SHARE = 0.6


@dataclass(frozen=True)
class OwnOptions(CitingOptions):
    flavour: str = choice("plain", "plain", "sour")


def nearest_two(parameters, bank, query):
    distances = query.candidates.distances.copy()
    distances[:, 2:] = np.nan
    return cite(query, distance_gate(distances, 0.0))


OWN = Method(OwnOptions, fit=lambda bank, run: {"flavour": run.options.flavour}, select=nearest_two)


def several_donors():
    """Three donors, one of whom gave two sections; the last section was measured by a panel that lacks two genes."""
    rng = np.random.default_rng(0)
    sections = np.repeat([0, 1, 2, 3], [7, 8, 13, 14])
    panels, measured = (sections == 3).astype(int), np.ones((2, 9), dtype=bool)
    measured[1, [2, 6]] = False
    embedding = rng.normal(size=(42, 5))
    values = embedding @ rng.normal(size=(5, 9)) + rng.normal(size=(42, 9)) + rng.normal(size=(4, 9))[sections]
    ids = np.array([f"row{i:02}" for i in rng.permutation(42)])
    donors = np.array([0, 0, 1, 2])[sections]
    return Bank(
        embedding,
        values * measured[panels],
        panels,
        measured,
        folds=None,
        sections=sections,
        donors=donors,
        ids=ids,
        obs=pd.DataFrame({"donor": donors.astype(str), "sample": sections.astype(str)}, index=ids),
    )


class Tissue:
    """Ten spots, the first four of a donor whom the bank holds too."""

    methods, atol = METHODS, 1e-5
    small = {"max_steps": 6, "n_seeds": 2, "n_train_genes": 5, "n_latent": 4}  # noqa: RUF012

    def __init__(self):
        rng = np.random.default_rng(1)
        self.bank, self.n = several_donors(), 10
        self.embedding = rng.normal(size=(self.n, 5))
        self.donors = np.where(np.arange(self.n) < 4, 1, -1)[:, None]

    def fit(self, name, bank, rng=0, **options):
        small = {key: value for key, value in self.small.items() if key in names_of(METHODS[name])}
        options = resolve_options(METHODS, name, {**small, **options})
        run = Run(options, rng=rng, n_neighbors=K, n_candidates=N_CANDIDATES)
        fitted = fit_tissue(replace(bank, raw=bank.embedding), name, run, group_key=None)
        if name == "rag":
            # Both parts of the stack, whatever held-out donors say of so few rows.
            fitted.fit.parameters["retrieval_share"] = np.full(9, SHARE)
        return fitted

    def eligible(self, bank):
        return np.ones((self.n, 1), dtype=bool) & (self.donors != bank.donors)

    def ask(self, name, bank, queries):
        eligibility = Eligibility(self.donors[queries], bank.donors[:, None], np.ones(len(bank), dtype=bool))
        state = np.zeros((len(queries), 0))
        asked = runner.select(
            bank, self.embedding[queries], state=state, eligibility=eligibility, n_neighbors=K, backend="exact"
        )
        return asked.selection, runner.part_of(bank, np.arange(9), asked)

    def answer(self, name, bank, queries, step=None):
        selection, part = self.ask(name, bank, queries)
        found = runner.predict(part, selection, lambda function, items, shared: (function(shared, i) for i in items))
        return selection, found["evidence"], found["prediction"]

    def expected_evidence(self, name, bank, selection):
        """Measured values on the mean of the rows that may be used, averaged over rows that measured them, by loops."""
        out = np.full((self.n, 9), np.nan)
        known = bank.measured[bank.panels]
        values = np.where(known, bank.values, np.nan)
        own = [bank.sections == code for code in range(4)]
        level = np.stack([np.nansum(values[at], axis=0) / np.maximum(known[at].sum(axis=0), 1) for at in own])
        for i, eligible in enumerate(self.eligible(bank)):
            put_on = np.nansum(np.where(known, level[bank.sections], 0)[eligible], axis=0) / known[eligible].sum(axis=0)
            for gene in range(9):
                votes = [(w, r) for w, r in zip(selection.weights[i], selection.rows[i], strict=True) if r >= 0]
                votes = [(w, values[r, gene] - level[bank.sections[r], gene]) for w, r in votes if known[r, gene]]
                if votes:
                    share = SHARE if name == "rag" else 1
                    out[i, gene] = put_on[gene] + share * sum(w * v for w, v in votes) / sum(w for w, _ in votes)
                elif name == "rag":
                    out[i, gene] = put_on[gene]
        return out

    def shuffled(self, bank, order):
        return bank.at_rows(order)

    def spoiled(self, bank, rows):
        values = bank.values.copy()
        values[rows] = (1e3 * (1 + np.arange(9))) * bank.measured[bank.panels[rows]]
        return replace(bank, values=values)


class Responses:
    """Perturbations of a small screen, none of which may use itself; the last one in a context of which nothing is known."""

    methods, atol = RESPONSE_METHODS, 1e-9

    def __init__(self):
        self.rows, self.n = np.array([0, 3, 9, 12, 16, 5]), 6
        self.contexts = np.array([0, 0, 1, 1, 0, -1])
        bank = small_response_bank(np.random.default_rng(0))
        names = np.array([f"{'+'.join(g)} {c}" for g, c in zip(bank.screen.perturbed, bank.sections, strict=True)])
        self.bank = replace(bank, ids=names)
        self.own, self.key = self.bank.ids[self.rows], bank.key[self.rows]
        self.perturbed = [bank.screen.perturbed[row] for row in self.rows]

    def fit(self, name, bank, rng=0, **options):
        chosen = resolve_options(RESPONSE_METHODS, name, {**QUICK.get(name, {}), **options})
        run = Run(chosen, rng=rng, n_neighbors=K, n_candidates=N_CANDIDATES)
        parameters = RESPONSE_METHODS[name].fit(bank.at_rows(np.argsort(bank.ids)), run)
        return replace(bank, fit=SimpleNamespace(method=name, parameters=parameters))

    def eligible(self, bank):
        return self.own[:, None] != bank.ids

    def ask(self, name, bank, queries):
        method = RESPONSE_METHODS[name]
        query = Query(
            self.key, None, None, K, tuple(self.perturbed), contexts=self.contexts, eligible=self.eligible(bank)
        )
        query = query.some(queries)
        if method.select is None:
            return select_none(query), bank
        return method.select(bank.fit.parameters, bank, query), bank

    def answerable(self, name):
        method = RESPONSE_METHODS[name]
        if method.lacks is None:
            return np.arange(self.n)
        query = Query(
            self.key, perturbed=tuple(self.perturbed), contexts=self.contexts, eligible=self.eligible(self.bank)
        )
        return np.array([i for i, reason in enumerate(method.lacks(self.bank, query)) if not reason])

    def answer(self, name, bank, queries, step=None):
        selection, bank = self.ask(name, bank, queries)
        step = step or len(queries)
        blocks = [selection.some(slice(start, start + step)) for start in range(0, len(queries), step)]
        parts = [RESPONSE_METHODS[name].answers(bank.fit.parameters, bank, block) for block in blocks]
        evidence, adjustment = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        return selection, evidence, evidence + adjustment

    def expected_evidence(self, name, bank, selection):
        pairs = zip(selection.weights, selection.rows, strict=True)
        nothing = np.zeros(bank.values.shape[1])
        return np.array([sum((w * bank.values[r] for w, r in zip(*p, strict=True) if r >= 0), nothing) for p in pairs])

    def shuffled(self, bank, order):
        return bank.at_rows(order)

    def spoiled(self, bank, rows):
        values, halves = bank.values.copy(), tuple(half.copy() for half in bank.screen.halves)
        for one in (values, *halves):
            one[rows] = 1e3 * (1 + np.arange(one.shape[1]))
        return replace(bank, values=values, screen=replace(bank.screen, halves=halves))


TASKS = {"tissue": Tissue(), "responses": Responses()}
EVERY = [("tissue", name) for name in (*METHODS, "own")] + [("responses", name) for name in RESPONSE_METHODS]
CITING = [(task, name) for task, name in EVERY if name == "own" or TASKS[task].methods[name].cites]
every = pytest.mark.parametrize(("task", "name"), EVERY)
citing = pytest.mark.parametrize(("task", "name"), CITING)


@pytest.fixture(scope="module", autouse=True)
def _own():
    rg.tl.register_method("own", OWN)
    yield
    del METHODS["own"]


@pytest.fixture(scope="module")
def fitted():
    """(task, name) -> fitted bank, each made once."""
    made = {}

    def of(task, name):
        if (task, name) not in made:
            made[task, name] = TASKS[task].fit(name, TASKS[task].bank)
        return made[task, name]

    return of


def names_of(method):
    return [option.name for option in fields(method.options)]


def asked(task, name):
    """Queries that the method can answer."""
    return TASKS[task].answerable(name) if task == "responses" else np.arange(TASKS[task].n)


def answered(task, name, bank, queries=None, step=None):
    """Ids of cited rows, weights, evidence and prediction."""
    queries = asked(task, name) if queries is None else queries
    selection, evidence, prediction = TASKS[task].answer(name, bank, queries, step)
    return np.append(bank.ids, "")[selection.rows], selection.weights, evidence, prediction


def assert_same(first, second, atol):
    np.testing.assert_array_equal(first[0], second[0])
    for one, other in zip(first[1:], second[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.asarray(value).tobytes() == np.asarray(second[name]).tobytes(), name


@every
def test_options_have_defaults_and_are_refused_by_name(task, name):
    methods = TASKS[task].methods
    options = resolve_options(methods, name, None)
    assert options == methods[name].options()
    assert methods[name].learns in ("", "settings", "values")
    for option in fields(options):
        value = getattr(options, option.name)
        assert resolve_options(methods, name, {option.name: value}) == options
        with pytest.raises(ValueError, match=f"`{option.name}` is .*for method '{name}' it must be"):
            resolve_options(methods, name, {option.name: object()})
    with pytest.raises(ValueError, match=f"Method '{name}' has no option 'flavor'; it has "):
        resolve_options(methods, name, {"flavor": 1})


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_method_is_refused_by_name(task):
    with pytest.raises(ValueError, match="`method` is 'rags'; available: 'rag', "):
        resolve_options(TASKS[task].methods, "rags", None)


@every
def test_one_seed_gives_one_fit_and_leaves_the_callers_random_numbers_alone(fitted, task, name):
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    again = TASKS[task].fit(name, TASKS[task].bank)
    answered(task, name, again)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    torch.manual_seed(8)
    assert_identical(dict(fitted(task, name).fit.parameters), dict(again.fit.parameters))
    np.testing.assert_array_equal(fitted(task, name).key, again.key)


@every
def test_the_order_of_the_rows_changes_nothing(fitted, task, name):
    bank = TASKS[task].bank
    order = np.random.default_rng(3).permutation(len(bank))
    shuffled = TASKS[task].fit(name, TASKS[task].shuffled(bank, order))
    whole = answered(task, name, fitted(task, name))
    assert_same(answered(task, name, shuffled), whole, TASKS[task].atol)


@every
def test_other_queries_and_blocks_of_them_change_nothing(fitted, monkeypatch, task, name):
    bank, queries = fitted(task, name), asked(task, name)
    whole = answered(task, name, bank)
    for part in (queries[::-1], queries[-1:], queries[:2]):
        found = answered(task, name, bank, part)
        at = np.searchsorted(queries, part)
        width = found[0].shape[1]
        # Width is that of the query with most rows.
        expected = [whole[0][at, :width], whole[1][at, :width], whole[2][at], whole[3][at]]
        assert not whole[1][at, width:].any()
        assert_same(found, expected, TASKS[task].atol)
    monkeypatch.setattr(runner, "_QUERIES", 2)
    monkeypatch.setattr(runner, "_BLOCK_VALUES", 1)
    assert_same(answered(task, name, bank, step=2), whole, TASKS[task].atol)


@every
def test_rows_that_may_not_be_used_change_nothing(fitted, task, name):
    """Nonsense in the own rows; what a method has learned is learned before, or anew where it learns nothing of values."""
    one, bank = TASKS[task], fitted(task, name)
    for query in (0, 3):
        if query not in asked(task, name):
            continue
        closed = np.flatnonzero(~one.eligible(bank)[query])
        assert len(closed)
        spoiled, before = one.spoiled(bank, closed), answered(task, name, bank, np.array([query]))
        assert_same(answered(task, name, spoiled, np.array([query])), before, one.atol)
        if not one.methods[name].learns:
            spoiled = one.fit(name, one.spoiled(one.bank, closed))
            assert_same(
                answered(task, name, spoiled, np.array([query])), before, 1e-3 if task == "tissue" else one.atol
            )


@citing
def test_weights_add_up_to_one_and_belong_to_rows_that_may_be_used(fitted, task, name):
    bank, queries = fitted(task, name), asked(task, name)
    selection = TASKS[task].answer(name, bank, queries)[0]
    rows, weights = selection.rows, selection.weights
    assert (weights >= 0).all()
    np.testing.assert_array_equal(rows >= 0, weights > 0)
    np.testing.assert_array_equal(rows >= 0, np.isfinite(selection.distances))
    nobody = ~weights.any(axis=1)
    # Only who weighs rows against citing nobody may cite no rows.
    assert not nobody.any() or (task, name) in (("responses", "rag"), ("responses", "pt_rag"))
    np.testing.assert_allclose(weights.sum(axis=1), np.where(nobody, 0, 1))
    for query, own in zip(queries, rows, strict=True):
        own = own[own >= 0]
        assert len(set(own)) == len(own)
        assert TASKS[task].eligible(bank)[query, own].all()
        # What cites the very rows that its equation names cites all of these.
        assert len(own) <= K or TASKS[task].methods[name].lacks is not None


@pytest.mark.parametrize(("task", "name"), [pair for pair in EVERY if pair not in CITING])
def test_who_cites_nobody_gives_no_row_and_no_weight(fitted, task, name):
    selection = TASKS[task].answer(name, fitted(task, name), asked(task, name))[0]
    assert (selection.rows == -1).all()
    assert not selection.weights.any()


@every
def test_prediction_is_evidence_and_adjustment(fitted, task, name):
    bank, queries = fitted(task, name), asked(task, name)
    selection, part = TASKS[task].ask(name, bank, queries)
    _, evidence, prediction = TASKS[task].answer(name, bank, queries)
    if task == "tissue":
        answer = METHODS[name].answers(part.parameters, part.bank, selection)
        np.testing.assert_array_equal(answer.evidence + answer.adjustment, prediction)
    assert evidence.shape == prediction.shape == (len(queries), bank.values.shape[1])
    cites = selection.weights.any(axis=1)
    if cites.any():
        expected = TASKS[task].expected_evidence(name, bank, selection)
        np.testing.assert_allclose(evidence[cites], expected[cites], atol=TASKS[task].atol)
    elif task == "tissue":
        measured = bank.measured[bank.panels]
        mean = (bank.values * measured).sum(axis=0) / measured.sum(axis=0)
        np.testing.assert_allclose(evidence, np.tile(mean, (len(queries), 1)), atol=1e-5)


@every
def test_parameters_are_plain_and_survive_a_file(fitted, task, name):
    bank = fitted(task, name)
    file = io.BytesIO()
    np.savez(file, **bank.fit.parameters)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        again = {key: stored[key] for key in stored.files}
    assert_identical(dict(bank.fit.parameters), again)
    fit = SimpleNamespace(**{**vars(bank.fit), "parameters": again, "cites_level": "section_shifts" in again})
    assert_same(answered(task, name, replace(bank, fit=fit)), answered(task, name, bank), 0)


@pytest.mark.parametrize("name", [*METHODS, "own"])
def test_a_bank_on_disk_gives_the_same(fitted, name):
    import dask.array as da

    bank = fitted("tissue", name)
    lazy = replace(bank, values=da.from_array(bank.values, chunks=(5, 9)), key=da.from_array(bank.key, chunks=(5, -1)))
    if name in {"rag", "kernel_ridge"}:
        with pytest.raises(ValueError, match=rf"method '{name}' solves its regression again"):
            answered("tissue", name, lazy)
        return
    if METHODS[name].candidates == "random":
        with pytest.raises(ValueError, match="The reference is lazy, and method 'random_rag' needs all of its rows"):
            answered("tissue", name, lazy)
        return
    assert_same(answered("tissue", name, lazy), answered("tissue", name, bank), 1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].cites])
def test_disagreement_of_who_cites_nobody_is_that_of_the_nearest_rows(fitted, name):
    bank = fitted("tissue", name)
    selection, part = TASKS["tissue"].ask(name, bank, np.arange(10))
    found = runner.values_of(part, selection)["disagreement"]
    for i, nearest in enumerate(selection.nearest):
        rows = nearest[nearest >= 0]
        for gene in range(9):
            known = rows[bank.measured[bank.panels[rows], gene]]
            expected = bank.values[known, gene].std() if len(known) else np.nan
            # The difference of two moments in single precision, under a root.
            np.testing.assert_allclose(found[i, gene], expected, atol=1e-3)
