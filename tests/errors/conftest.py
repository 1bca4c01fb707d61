"""The world of the catalogue of errors, made once: no case changes it."""

from __future__ import annotations

import pytest
from spatialdata import deepcopy

import ragst_sd as rg

from ..screens import planted_screen
from .catalogue import LOGS, SCREEN, World


@pytest.fixture(scope="package")
def world(_sections, tmp_path_factory):
    sections = {name: deepcopy(sdata) for name, sdata in _sections.items()}
    unfitted = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    reference = unfitted.copy()
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    query = sections["donor3"]
    rg.tl.predict(query, reference)
    bare = deepcopy(query)
    bare.attrs["ragst"]["image_mpp"].clear()
    del bare.tables["predicted"]
    screen, embedding = planted_screen(n_cells=12, n_controls=40)
    bank = rg.tl.build_perturbation_reference(screen, embedding=embedding, **SCREEN, **LOGS)
    rg.tl.fit(bank, method="mean")
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    perturbed = rg.tl.perturb(controls, bank, perturbations=["P3"], context_key="cell_type", **LOGS)
    scores = rg.tl.cross_validate(unfitted, methods=["mean"], n_genes=20, progress=False, inplace=False)
    folder = tmp_path_factory.mktemp("files")
    (folder / "mine").mkdir()
    (folder / "mine.zarr.zip").write_text("my own file")
    (folder / "broken.h5ad").write_bytes(b"the first bytes of a download")
    (folder / "mine.html").write_text("<p>my own page</p>")
    return World(query, bare, sections, reference, unfitted, screen, embedding, bank, perturbed, scores, folder)
