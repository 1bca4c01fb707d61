"""Readers of arguments that all public functions share."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._renamed import SUBMODULES
from ragst_sd._validate import as_names, as_seed, name_list

PUBLIC = {
    f"{submodule}.{name}": inspect.signature(getattr(getattr(rg, submodule), name)).parameters
    for submodule in SUBMODULES
    for name in getattr(rg, submodule).__all__
}


def test_a_whole_number_is_its_own_seed():
    assert as_seed(7) == as_seed(np.int64(7)) == 7


def test_what_numpy_takes_gives_a_seed_that_repeats():
    drawn = [as_seed(np.random.default_rng(3)) for _ in range(2)]
    assert drawn[0] == drawn[1] != as_seed(np.random.default_rng(4))
    for make in (lambda: np.random.SeedSequence(3), lambda: np.random.PCG64(3), lambda: [3, 4]):
        assert as_seed(make()) == as_seed(make())
    # A generator goes on, and nothing at all is new at each call.
    generator = np.random.default_rng(3)
    assert as_seed(generator) != as_seed(generator)
    assert as_seed(None) != as_seed(None)


@pytest.mark.parametrize("rng", [-1, 1.5, True, "7"])
def test_other_seeds_are_refused(rng):
    with pytest.raises(ValueError, match=rf"`rng` is {rng!r}; it must be a whole number, at least 0, a generator"):
        as_seed(rng)


@pytest.mark.parametrize("names", ["A", ["A"], ("A", "A"), np.array(["A"]), pd.Index(["A"]), np.str_("A"), iter(["A"])])
def test_one_name_or_a_list(names):
    assert name_list(names, "genes", most=1) == ["A"]


def test_too_few_and_too_many_names():
    with pytest.raises(ValueError, match="`genes` is empty"):
        name_list([], "genes")
    with pytest.raises(TypeError, match="`genes` is a int"):
        name_list(3, "genes")
    with pytest.raises(ValueError, match="`genes` names 'A', 'B'; there is place for 1"):
        name_list(["A", "B"], "genes", most=1)


@pytest.mark.parametrize("name", PUBLIC)
def test_one_concept_takes_the_same_everywhere(name):
    """A name or a list of spots and genes, and whatever numpy draws from."""
    for argument, takes in {
        "genes": "str | Sequence[str]",
        "obs_names": "str | Sequence[str]",
        "rng": "int | np.random.Generator | np.random.SeedSequence | None",
    }.items():
        if argument in PUBLIC[name]:
            assert str(PUBLIC[name][argument].annotation).removesuffix(" | None") == takes.removesuffix(" | None")


def test_the_fit_records_the_seed_that_was_drawn(reference):
    rg.tl.fit(reference, method="knn", rng=np.random.default_rng(5))
    seed = reference.uns["ragst"]["fit"]["rng"]
    assert isinstance(seed, int)
    assert seed == as_seed(np.random.default_rng(5))


@pytest.mark.slow
def test_a_generator_compares_methods(reference):
    def scores(rng):
        return rg.tl.cross_validate(
            reference, methods=["mean"], n_genes=5, cited=[5], progress=False, inplace=False, rng=rng
        )

    assert scores(np.random.default_rng(1)).equals(scores(np.random.default_rng(1)))


def test_scores_repeat_with_the_same_generator(predicted):
    def scores(rng):
        return rg.tl.evaluate(predicted, metrics="noise_ceiling", genes=["EPCAM", "CD3E"], rng=rng)

    assert scores(np.random.default_rng(1)).equals(scores(np.random.default_rng(1)))
    assert not scores(np.random.default_rng(1)).equals(scores(np.random.default_rng(2)))
    assert len(scores(None)) == len(scores(np.random.SeedSequence(1)))


def test_as_names():
    assert as_names("EPCAM") == ["EPCAM"]
    assert as_names(["b", "a", "b"]) == ["b", "a"]
