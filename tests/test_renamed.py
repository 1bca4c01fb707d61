"""What is said to a caller who uses another name for a function or an argument."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

import ragst_sd as rg
from ragst_sd._renamed import ARGUMENTS, FUNCTIONS, SUBMODULES

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "old_names.md"
PUBLIC = [getattr(getattr(rg, submodule), name) for submodule in SUBMODULES for name in getattr(rg, submodule).__all__]


def message(function, *args, **kwargs) -> str:
    with pytest.raises(TypeError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(("old", "new"), FUNCTIONS.items())
def test_a_function_that_moved_names_its_new_place(old, new):
    submodule, _, name = old.partition(".")
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}': it is `rg\.{new}`"):
        getattr(getattr(rg, submodule), name)


def test_a_function_is_found_in_another_submodule():
    with pytest.raises(AttributeError, match=r"'ragst_sd' has no attribute 'predict': it is `rg\.tl\.predict`"):
        rg.predict  # noqa: B018
    with pytest.raises(AttributeError, match=r"it is `rg\.pp\.embed_tiles`"):
        rg.tl.embed_tiles  # noqa: B018
    assert not hasattr(rg, "_predict")


def test_every_new_name_exists():
    given = {argument for function in PUBLIC for argument in inspect.signature(function).parameters}
    assert set(ARGUMENTS.values()) <= given
    # Right in other functions.
    assert set(ARGUMENTS) & given == {"mpp", "image_mpp", "spots", "gmt"}


def test_an_old_argument_is_answered_with_the_new_one():
    said = message(rg.get.explain, None, None, obs_name="spot1", gene="EPCAM")
    assert '`rg.get.explain` has no argument `gene`: write `genes="EPCAM"`.' in said
    assert '`obs_names="spot1"`' in said
    assert "write `rng=3`" in message(rg.tl.fit, None, random_state=3)
    assert "write `genes=...`" in message(rg.pl.prediction, None, gene=["EPCAM"])
    assert 'write `obs_names="10x10"`' in message(rg.pl.retrieval, None, None, spot="10x10")
    # Of a picture, and of tiles.
    assert "write `image_mpp=0.5`" in message(rg.io.read_st, "counts.h5ad", "he.jpg", mpp=0.5)
    assert "write `mpp=0.5`" in message(rg.io.read_slide, "slide.svs", image_mpp=0.5)


def test_a_name_that_nothing_ever_had_lists_those_there_are():
    said = message(rg.tl.fit, None, methd="knn")
    assert "has no argument `methd`: it has 'reference', 'method'" in said
    assert "Did you mean 'method'?" in said
    # The table speaks of functions that have the new name only.
    assert "rng=" not in message(rg.io.write_table, None, "table", seed=1)


def test_an_argument_by_position_is_answered_with_its_name():
    said = message(rg.tl.fit, None, "knn", 5)
    assert said.startswith("`rg.tl.fit` takes 'reference' by position, and 3 were given")
    assert 'write `method="knn"`, `n_neighbors=5`' in said
    assert "'use_rep'" in message(rg.tl.predict, None, None, "X_texture")
    assert "takes none by position, and 1 were given." in message(rg.pp.encoders, "uni")


def test_other_type_errors_are_left_as_they_are():
    assert "missing 1 required keyword-only argument: 'use_rep'" in message(rg.tl.build_reference, [])
    assert message(rg.pp.embed_tiles, "section.zarr").startswith("`sdata` is a str")


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_functions_stay_what_they_are(function):
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__doc__ == inspect.unwrap(function).__doc__
    assert Path(inspect.getsourcefile(inspect.unwrap(function))).name == f"_{function.__name__}.py"


def test_page_lists_old_and_new_names():
    rows = re.findall(r"^\| `(?:rg\.)?([\w.]+)=?` \| `(?:rg\.)?([\w.]+)=?` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted({**FUNCTIONS, **ARGUMENTS}.items())
