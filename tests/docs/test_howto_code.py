"""The code of the how-to pages runs as it is printed, from top to bottom, on small files of the layouts that it names."""

from __future__ import annotations

import json
import os
import re
import shutil
from copy import deepcopy
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

from ..io import layouts
from ..io.slides import paint, write_geojson, write_patches, write_pyramid
from ..pp import foreign
from ..screens import given_responses
from ..sections import mean_colour

DOCS = Path(__file__).parents[2] / "docs"
# Not installed along: what needs them is run by hand.
OPTIONAL = ("napari_spatialdata", "lazyslide", "vitessce")
# As printed, pages compare methods and fit learned retrieval; unless asked to be thorough, plain neighbours stand in, to be quick.
THOROUGH = os.environ.get("RAGST_SD_THOROUGH") == "1"
QUICK = {
    'methods=["rag", "knn", "ridge", "mean"]': 'methods=["knn", "ridge"]',
    'methods=["rag", "ridge", "mean"]': 'methods=["knn", "ridge"]',
    "rg.tl.fit(reference)": 'rg.tl.fit(reference, method="knn", n_neighbors=20)',
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def blocks(page: str) -> list[str]:
    """Fenced python of a page, in order; of one section, if its title stands behind a `#`."""
    page, _, title = page.partition("#")
    text = (DOCS / page).read_text(encoding="utf-8")
    if title:
        text = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found, page
    return found


def run(page: str, scope: dict[str, object], **changes: str) -> None:
    """All blocks of a page in one scope, without those of packages that are not there."""
    for code in blocks(page):
        for printed, here in (changes if THOROUGH else QUICK | changes).items():
            code = code.replace(printed, here)
        if any(f"import {name}" in code or f"from {name}" in code for name in OPTIONAL if find_spec(name) is None):
            continue
        try:
            exec(compile(code, page, "exec"), scope)
        except Exception as error:
            error.add_note(f"in {page}:\n{code}")
            raise


def as_tensor(tile):
    """What `zs.tl.feature_extraction` hands to an encoder."""
    import torch

    return torch.from_numpy(np.array(tile)).permute(2, 0, 1) / 255


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    with rg.settings.override(progress=False):
        yield tmp_path
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="session")
def drawn():
    """Three small donors, embedded."""
    sections = rg.datasets.synthetic(n_donors=3, image_px=600)
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, image_key="he", model="texture", progress=False)
    return sections


def test_visium(workplace):
    layouts.write_visium(workplace, seed=1)
    shutil.move(workplace / "he.tif", workplace / "S1_he.tif")
    scope: dict[str, object] = {}
    run("howto/visium.md", scope)
    assert scope["reference"].obs["donor"].unique().tolist() == ["patient_1"]


def test_visium_hd(workplace):
    folder = layouts.write_visium_hd(workplace / "outs", seed=1)
    picture = next(path for path in folder.rglob("*") if path.suffix in (".tif", ".btf"))
    shutil.move(picture, workplace / "S2_he.btf")
    scope: dict[str, object] = {}
    # The small files have bins of 8 microns.
    run("howto/visium_hd.md", scope, **{"016um": "008um", "=16": "=8"})
    assert scope["reference"].n_obs > 0


def test_xenium(workplace):
    layouts.write_xenium(workplace / "xenium_outs", seed=1)
    scope: dict[str, object] = {}
    run("howto/xenium.md", scope)
    assert "X_texture" in scope["sdata"].tables["table"].obsm


def test_build_reference(drawn):
    run("howto/build_reference.md", {"sections": dict(drawn)})


def test_own_slide(drawn, workplace):
    pixels = paint(3, 1500, 1500)
    write_pyramid(workplace / "slide.svs", pixels, mpp=0.5)
    scope: dict[str, object] = {"section_a": drawn["donor1"], "section_b": drawn["donor2"], "pixels": pixels}
    # The encoder that the page names asks for a login.
    stand_in = 'zs.tl.feature_extraction(wsi, zs_encoder, transform=zs_transform, model_name="uni2", pbar=False)'
    scope |= {"zs_encoder": mean_colour, "zs_transform": as_tensor}
    run("howto/own_slide.md", scope, **{'zs.tl.feature_extraction(wsi, "uni2")': stand_in})
    if find_spec("lazyslide") is not None:
        assert scope["wsi"].tables["uni2_tiles"].obsm["X_uni2"].shape[1] == 9


def test_features_made_elsewhere(drawn, workplace):
    sections = deepcopy(dict(drawn))
    for sdata in sections.values():
        foreign.add_lazyslide(sdata)
        foreign.add_squidpy(sdata)
        sdata.tables["table"].obsm["X_mine"] = sdata.tables["table"].obsm["img_features"]
    query, slide = sections.pop("donor3"), deepcopy(drawn["donor3"])
    (workplace / "features_uni_v1").mkdir()
    foreign.write_trident(workplace / "features_uni_v1" / "slide.h5", slide)
    scope = {"sdata": query, "slide": slide, "sections": sections, "query": query, "rg": rg}
    run("howto/embeddings.md#Embeddings made elsewhere", scope)
    assert {"X_uni2", "X_summary"} < set(query.tables["table"].obsm)
    assert "X_uni_v1" in slide.tables["table"].obsm
    assert "predicted" in query.tables


def test_responses(workplace):
    responses, _ = given_responses(n=20, contexts=("K562", "RPE1"))
    responses.obs = responses.obs.rename(columns={"context": "cell_line"})
    responses.obs["perturbation"] = responses.obs["perturbation"].replace("P0", "STAT1")
    genes = responses.obs["perturbation"].unique()
    sets = {f"set {i}": [*genes[i::4], genes[i + 1]] for i in range(4)} | {"rest": genes[:9]}
    edges = pd.DataFrame([(*pair, 1.0) for pair in pairwise(genes)])
    embedding = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 4)), index=genes)
    scope = {"responses": responses, "embedding": embedding, "gene_sets": sets, "edges": edges}
    run("howto/responses.md", scope)
    assert set(scope["scores"]["task"]) == {"unseen here"}
    assert list(scope["predicted"].obs_names) == ["K562:STAT1", "RPE1:STAT1"]
    assert scope["embedding"].attrs["parts"] == {"sets": 2, "network": 2}


def test_annotations(drawn, workplace):
    write_pyramid(workplace / "slide.svs", paint(3, 1500, 1500))
    write_geojson(workplace / "slide.geojson", {"Tumor": (300, 200, 900, 1200), "Stroma": (900, 200, 1400, 1200)})
    reference = rg.tl.build_reference({name: drawn[name] for name in ("donor1", "donor2")}, use_rep="X_texture")
    rg.tl.fit(reference, method="knn", n_neighbors=20)
    scope: dict[str, object] = {"reference": reference}
    run("howto/annotations.md", scope)
    labels = scope["sdata"].tables["tiles_table"].obs["label"]
    assert set(labels.dropna()) == {"Tumor"}
    written = json.loads((workplace / "predicted.geojson").read_text())["features"]
    assert len(written) == len(labels)


def test_benchmark_files(workplace):
    for k, sample in enumerate(("TENX95", "TENX99")):
        folder = write_patches(workplace / "hest_data", sample, seed=k, edge=6, meta={"patient": sample})
    (folder / "features").mkdir()
    with h5py.File(folder / "patches" / "TENX95.h5") as file:
        barcodes = file["barcode"][()]
    with h5py.File(folder / "features" / "TENX95.h5", "w") as file:
        file["embeddings"], file["barcodes"] = np.ones((len(barcodes), 4), np.float32), barcodes
    scope: dict[str, object] = {}
    run("howto/benchmark_files.md", scope)
    assert "predicted" in scope["query"].tables


def test_references_of_organs(drawn, workplace, capsys):
    from ragst_sd.__main__ import main

    reference = rg.tl.build_reference(dict(drawn), use_rep="X_texture")
    rg.io.write_reference(reference, "breast.zarr.zip")
    for k, sample in enumerate(("TENX95", "TENX99")):
        write_patches(workplace / "hest_data", sample, seed=k, edge=6, meta={"patient": sample})
    write_pyramid(workplace / "slide.svs", paint(3, 1500, 1500), mpp=0.5)
    scope: dict[str, object] = {}
    # The drawn sections measure no human genes.
    run("howto/organ_references.md", scope, **{", harmonize=True": "", '"rag", "ridge", "mean"': '"knn", "mean"'})
    assert "name: Human breast cancer" in (workplace / "own_breast.yaml").read_text()
    assert scope["reference"].obs["donor"].nunique() == 2
    page = (DOCS / "howto" / "organ_references.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("ragst-sd predict") and "own_organ" in line)
    assert main(line.split()[1:]) == 0, capsys.readouterr()
    assert (workplace / "predicted_organ" / "slide.zarr").is_dir()


def test_an_onnx_file(drawn, workplace):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from ..onnx_files import write

    write(workplace / "model.onnx", outputs=("map", "vector"))
    (code,) = (block for block in blocks("howto/embeddings.md") if ".onnx" in block)
    exec(code.replace('"features"', '"vector"'), {"rg": rg, "sdata": drawn["donor1"]})
    assert drawn["donor1"].tables["table"].obsm.pop("X_onnx_model").shape[1] == 18


@pytest.mark.parametrize("page", ["howto/going_on.md", "howto/report_honestly.md"])
def test_pages_that_begin_with_a_prediction(drawn, page):
    sections = dict(drawn)
    query = sections.pop("donor3")
    reference = rg.tl.build_reference(sections, use_rep="X_texture")
    rg.tl.fit(reference, method="knn", n_neighbors=20)
    rg.tl.calibrate(reference, levels=[0.5])
    rg.tl.predict(query, reference, intervals=0.5)
    run(page, {"query": query, "reference": reference})
    query.tables.pop("predicted")
