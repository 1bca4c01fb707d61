"""The lines of the page on the shell run as they are printed, in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import ragst_sd as rg
from ragst_sd.__main__ import main

from ..io.slides import paint, write_pyramid

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "shell.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_lines_of_the_page(tmp_path, monkeypatch, capsys):
    import spatialdata as sd

    monkeypatch.chdir(tmp_path)
    sections = rg.datasets.synthetic(n_donors=2, n_genes=260, image_px=500, rng=0)
    (tmp_path / "slides").mkdir()
    write_pyramid(tmp_path / "slides" / "slide1.tif", paint(1, 900, 900))
    with rg.settings.override(progress=False):
        rg.pp.embed_tiles(sections, model="texture")
        reference = rg.tl.build_reference(sections, use_rep="X_texture")
        rg.tl.fit(reference, method="knn", n_neighbors=5)
        rg.io.write_reference(reference, "reference.zarr.zip")
        rg.datasets.synthetic(n_donors=3, n_genes=260, image_px=500, rng=0)["donor3"].write("section.zarr")
        blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
        lines = [line for kind, block in blocks if kind == "bash" for line in block.splitlines()]
        inline = re.findall(r"`(ragst-sd doctor --[^`]+)`", PAGE)
        assert len(lines) == 5 and len(inline) == 1
        for line in [*lines, *inline]:
            program, *arguments = shlex.split(line)
            assert program == "ragst-sd"
            assert main(arguments) == 0, (line, capsys.readouterr())
        (code,) = (block for kind, block in blocks if kind == "python")
        monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
        exec(compile(code, "shell.md", "exec"), {})
    direct, later, section = (
        sd.read_zarr(path).tables["predicted"]
        for path in ("predicted/slide1.zarr", "predicted_later/slide1.zarr", "predicted/section.zarr")
    )
    assert (direct.X == later.X).all()
    assert list(section.var_names) == ["EPCAM", "KRT8"]
