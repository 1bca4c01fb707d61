"""The command line as a whole, `build` and `inspect`; the other commands have files of their own."""

from __future__ import annotations

import logging
import re
import textwrap

import pytest

import ragst_sd as rg
from ragst_sd.__main__ import _parser, main
from ragst_sd.io._recipe import read_recipe


@pytest.mark.slow
def test_build_and_inspect_a_real_folder(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAGST_SD_TEST_DATA", str(data_dir))
    recipe = tmp_path / "bulb.yaml"
    recipe.write_text(
        "version: 1\nname: Bulb\nsources:\n  - folder: $RAGST_SD_TEST_DATA/histology/mob2k\n    samples: [MOB1, MOB3]\n"
        "    license: MIT\ntiles: {tile_px: 64, mpp: native, context: 1}\n"
    )
    out = tmp_path / "bulb.zarr.zip"
    with rg.settings.override(progress=False):
        assert main(["build", str(recipe), "--out", str(out), "--drop-parts"]) == 0
    told = capsys.readouterr().out
    reference = rg.io.read_reference(out)
    assert "Section 2 of 2: MOB3, 438 spots" in told
    assert f"content hash {reference.uns['ragst']['content_hash']}" in told
    assert set(reference.obs["donor"]) == {"ind1", "ind2"}
    assert not (tmp_path / "bulb.zarr.zip.parts").exists()
    assert not logging.getLogger("ragst_sd.io._build_recipe").handlers

    assert main(["inspect", str(out)]) == 0
    card = capsys.readouterr().out
    assert card.splitlines()[2] == "# Bulb"
    assert "**Licence: MIT**" in card
    assert "composition.png" not in card
    assert main(["inspect", str(out), "--out", str(tmp_path / "own")]) == 0
    assert "composition.png" in capsys.readouterr().out
    assert (tmp_path / "own" / "README.md").read_text() == (tmp_path / "bulb.card" / "README.md").read_text()


def test_inspect_any_reference(reference, tmp_path, capsys):
    rg.io.write_reference(reference, tmp_path / "own.zarr.zip")
    assert main(["inspect", str(tmp_path / "own.zarr.zip")]) == 0
    assert capsys.readouterr().out == rg.io.data_card(reference)


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("version: 1\nsource: []\n")
    for arguments, told in (
        (["build", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "x.zarr")], "none.yaml does not exist"),
        (["build", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "x.zarr")], "Did you mean 'sources'?"),
        (["inspect", str(tmp_path / "none.zarr.zip")], "none.zarr.zip does not exist"),
        (["inspect", str(tmp_path)], "is not a reference"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"ragst-sd {arguments[0]}: ") and told in error
        assert error.count("\n") == 1


def parser_of(command: str):
    return next(action for action in _parser()._actions if action.dest == "command").choices[command]


def examples_of(parser) -> list[list[str]]:
    """Command lines in the examples of a help text, without what is said beside them."""
    lines = [line.strip() for line in parser.epilog.splitlines()]
    return [re.split(r"\s{2,}", line)[0].split()[1:] for line in lines if line.startswith("ragst-sd ")]


@pytest.mark.parametrize("command", ["demo", "build", "inspect", "embed", "predict", "doctor"])
def test_help_of_a_command_has_examples_that_it_understands(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert parser_of(command).epilog.strip() in told
    found = examples_of(parser_of(command))
    assert len(found) >= 2
    for arguments in found:
        assert _parser().parse_args(arguments).command == command
    # Every option says what it does.
    assert [action.dest for action in parser_of(command)._actions if not action.help] == []


def test_help_names_every_command_and_first_steps(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(command in told for command in ("demo", "build", "inspect", "embed", "predict", "doctor"))
    assert ["demo"] in examples_of(_parser())


def test_recipe_of_the_help_is_one(tmp_path):
    text = textwrap.dedent(parser_of("build").epilog.partition("the least that a recipe holds:\n")[2])
    (tmp_path / "recipe.yaml").write_text(text)
    recipe, _, _ = read_recipe(tmp_path / "recipe.yaml")
    assert len(recipe.sources) == 2
