from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

from ..screens import planted_screen

KEYS = {"context_key": "cell_type", "batch_key": "batch"}


@pytest.fixture(scope="module")
def screen():
    adata, _ = planted_screen(
        n_programmes=2, per_programme=3, n_cells=6, n_controls=20, n_genes=10, combinations=("P0+P1", "P2+P3")
    )
    return adata


def test_perturbations_are_held_out_one_by_one(screen):
    folds = rg.tl.perturbation_folds(screen, **KEYS)
    names = screen.obs["perturbation"]
    assert sorted(folds.columns) == sorted(set(names) - {"control"})
    role = folds["P0"]
    assert set(names[role == "test"]) == {"P0"} and (role == "test").sum() == 12
    # a combination would give the single away
    assert set(names[role == "unused"]) == {"P0+P1"}
    assert set(folds["P0+P1"][names == "P0"]) == {"train"}
    assert set(names[folds["P0+P1"] == "unused"]) == set()


def test_controls_are_halved_once_in_every_context_and_batch(screen):
    folds = rg.tl.perturbation_folds(screen, **KEYS)
    control = screen.obs["perturbation"] == "control"
    first = folds["P0"][control]
    assert set(first) == {"control_train", "control_test"}
    counts = pd.crosstab([screen.obs["cell_type"][control], screen.obs["batch"][control]], first)
    assert (counts == 5).all(axis=None)
    for name in folds:
        assert (folds[name][control] == first).all()
        assert not folds[name][~control].str.startswith("control").any()
    other = rg.tl.perturbation_folds(screen, rng=1, **KEYS)
    assert (other["P0"][control] != first).any()


def test_several_perturbations_in_a_fold(screen):
    folds = rg.tl.perturbation_folds(screen, n_folds=3, **KEYS)
    assert list(folds.columns) == ["fold1", "fold2", "fold3"]
    tested = [set(screen.obs["perturbation"][folds[name] == "test"]) for name in folds]
    assert set.union(*tested) == set(screen.obs["perturbation"]) - {"control"}
    assert sum(map(len, tested)) == 8
    for name, held in zip(folds, tested, strict=True):
        train = set(screen.obs["perturbation"][folds[name] == "train"])
        assert not train & held
        assert not {gene for one in train for gene in one.split("+") if "+" in one} & held


def test_contexts(screen):
    folds = rg.tl.perturbation_folds(screen, split="context", few_shot=0.25, **KEYS)
    assert list(folds.columns) == ["a", "b"]
    names, context = screen.obs["perturbation"], screen.obs["cell_type"]
    test = folds["a"] == "test"
    assert set(context[test]) == {"a"} and names[test].nunique() == 6
    train = folds["a"] == "train"
    assert names[train & (context == "a")].nunique() == 2 and names[train & (context == "b")].nunique() == 8
    both = rg.tl.perturbation_folds(screen, split="both", few_shot=0.25, **KEYS)
    held = set(names[both["a"] == "test"])
    assert not held & set(names[both["a"] == "train"])
    assert set(names[both["a"] == "unused"]) == held
    none = rg.tl.perturbation_folds(screen, split="context", few_shot=0, **KEYS)
    assert not ((none["a"] == "train") & (context == "a")).any()


def test_the_order_of_cells_changes_nothing(screen):
    shuffled = screen[np.random.default_rng(0).permutation(screen.n_obs)].copy()
    for arguments in ({}, {"n_folds": 4}, {"split": "context"}):
        first = rg.tl.perturbation_folds(screen, **KEYS, **arguments)
        again = rg.tl.perturbation_folds(shuffled, **KEYS, **arguments).loc[screen.obs_names]
        pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "donor"}, ValueError, "`split` is 'donor'"),
        ({"n_folds": 9}, ValueError, "cannot make 9 folds: 2 to 8 are possible"),
        ({"n_folds": 1}, ValueError, "cannot make 1 folds"),
        ({"split": "context", "n_folds": 2}, ValueError, "one fold per context"),
        ({"split": "context", "context_key": None}, ValueError, r"one context \('all'\)"),
        ({"split": "both", "few_shot": 1.0}, ValueError, "`few_shot` is 1.0"),
        ({"split": "context", "few_shot": 0.99}, ValueError, "all of which `few_shot` 0.99 shows"),
        ({"perturbation_key": "gene"}, KeyError, "Key 'gene' not found"),
        ({"control": "ctrl"}, ValueError, "No cell has 'ctrl'"),
    ],
)
def test_bad_input(screen, arguments, error, message):
    with pytest.raises(error, match=message):
        rg.tl.perturbation_folds(screen, **{**KEYS, **arguments})
