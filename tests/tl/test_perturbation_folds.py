from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

from ..screens import given_responses, planted_screen

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


def test_held_out_in_one_context_and_seen_in_another(screen):
    folds = rg.tl.perturbation_folds(screen, split="here", n_folds=4, **KEYS)
    assert list(folds) == [f"{context} fold{i}" for context in "ab" for i in (1, 2, 3, 4)]
    names, context = screen.obs["perturbation"], screen.obs["cell_type"]
    tested = {"a": set(), "b": set()}
    for name in folds:
        role, here = folds[name], context == name[0]
        held = set(names[role == "test"])
        assert len(held) == 2 and (here[role == "test"]).all()
        assert not held & set(names[(role == "train") & here])
        assert held <= set(names[(role == "train") & ~here])
        # a combination in this context would give the single away
        assert not any(held & set(one.split("+")) for one in set(names[(role == "train") & here]) if "+" in one)
        tested[name[0]] |= held
    assert tested["a"] == tested["b"] == set(names) - {"control"}


def test_what_another_context_did_not_measure_is_not_unseen_here(screen):
    few = screen[(screen.obs["cell_type"] == "b") | screen.obs["perturbation"].isin(["P0", "P2", "control"])].copy()
    folds = rg.tl.perturbation_folds(few, split="here", n_folds=2, **KEYS)
    for name in folds:
        assert set(few.obs["perturbation"][folds[name] == "test"]) in ({"P0"}, {"P2"})


def test_few_shots_say_what_no_other_context_measured(screen, caplog):
    few = screen[(screen.obs["cell_type"] == "b") | screen.obs["perturbation"].isin(["P0", "P2", "control"])].copy()
    rg.tl.perturbation_folds(few, split="context", few_shot=0, **KEYS)
    assert "6 of 8 perturbations held out in 'b' were measured in no other context" in caplog.text
    assert "held out in 'a'" not in caplog.text


def test_responses_have_no_controls():
    adata, _ = given_responses()
    for arguments in ({"n_folds": 3}, {"split": "here", "n_folds": 3}, {"split": "context"}, {"split": "both"}):
        folds = rg.tl.perturbation_folds(adata, context_key="context", **arguments)
        assert set(folds.stack().astype(str)) <= {"train", "test", "unused"}
        assert (folds == "test").any().all() and (folds == "train").any().all()
    apart = adata[(adata.obs["context"] == "a") == adata.obs["perturbation"].isin(["P0", "P1"])].copy()
    with pytest.raises(ValueError, match=r"No perturbation was measured in two contexts \('a', 'b'\)"):
        rg.tl.perturbation_folds(apart, split="here", context_key="context")


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
        ({"split": "here", "n_folds": 9}, ValueError, "shares 8 perturbations with others, too few for 9 folds"),
        ({"control": "ctrl"}, ValueError, "No cell has 'ctrl'"),
    ],
)
def test_bad_input(screen, arguments, error, message):
    with pytest.raises(error, match=message):
        rg.tl.perturbation_folds(screen, **{**KEYS, **arguments})


@pytest.mark.parametrize("split", ["perturbation", "here", "context", "both"])
def test_responses_as_a_data_frame(split):
    adata, _ = given_responses()
    asked = {"split": split, "context_key": "context"}
    expected = rg.tl.perturbation_folds(adata, **asked)
    wide = adata.to_df().assign(**adata.obs[["perturbation", "context"]], dose=1.0)
    pd.testing.assert_frame_equal(rg.tl.perturbation_folds(wide, **asked), expected)
    indexed = wide.set_index(["perturbation", "context"])
    folds = rg.tl.perturbation_folds(indexed, **asked)
    assert folds.index.equals(indexed.index) and (folds.to_numpy() == expected.to_numpy()).all()
    long = wide.drop(columns="dose").melt(["perturbation", "context"], var_name="gene", value_name="log_fold_change")
    folds = rg.tl.perturbation_folds(long, **asked)
    assert (folds.to_numpy() == np.tile(expected.to_numpy(), (adata.n_vars, 1))).all()
    train = long[folds[folds.columns[0]] == "train"]
    reference = rg.tl.build_perturbation_reference(train, unit="log_fold_change", context_key="context")
    assert reference.n_obs == (expected[expected.columns[0]] == "train").sum()


def test_controls_of_a_data_frame_are_unused():
    frame = pd.DataFrame({"perturbation": ["control", "A", "B"], "GENE1": [0.0, 1.0, 2.0]})
    assert list(rg.tl.perturbation_folds(frame)["A"]) == ["unused", "test", "train"]


def test_neither_cells_nor_a_table():
    with pytest.raises(KeyError, match=r"'drug' not found in `adata`.*'P'"):
        rg.tl.perturbation_folds(pd.DataFrame({"P": ["A", "B"]}), perturbation_key="drug")
    with pytest.raises(TypeError, match=r"`adata`.*dict"):
        rg.tl.perturbation_folds({})


def screen_of_combinations(rng: np.random.Generator) -> ad.AnnData:
    """Cells of random singles, pairs and triples, written in any order, in contexts that measured some of them each."""
    genes, labels = list("ABCDEF"), []
    names = ["+".join(rng.permutation(genes)[: rng.choice([1, 1, 2, 2, 3])]) for _ in range(24)]
    for context in ("x", "y", "z"):
        labels += [(name, context) for name in [*rng.choice(names, 16), *genes[:3], *["control"] * 4]]
    obs = pd.DataFrame(labels, columns=["perturbation", "context"], index=[f"cell{i}" for i in range(len(labels))])
    return ad.AnnData(np.ones((len(obs), 2), dtype="float32"), obs=obs)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"n_folds": 3},
        {"split": "here", "n_folds": 2},
        {"split": "context", "few_shot": 0.4},
        {"split": "both", "few_shot": 0.4},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_of_what_is_held_out_is_trained_on_and_nothing_else_is_lost(arguments, seed):
    """Cell by cell: `train` and `unused` follow from `test` alone."""
    cells = screen_of_combinations(np.random.default_rng(seed))
    folds = rg.tl.perturbation_folds(cells, context_key="context", rng=seed, **arguments)
    genes = [frozenset(name.split("+")) for name in cells.obs["perturbation"]]
    context, treated = cells.obs["context"].to_numpy(), (cells.obs["perturbation"] != "control").to_numpy()
    in_one_context = arguments.get("split") in ("here", "context")
    for name in folds:
        role = folds[name].to_numpy()
        test = [(genes[i], context[i]) for i in np.flatnonzero(role == "test")]
        assert test
        for i in np.flatnonzero(treated & (role != "test")):
            gives_away = any(held <= genes[i] and (not in_one_context or where == context[i]) for held, where in test)
            assert role[i] == ("unused" if gives_away else "train")
