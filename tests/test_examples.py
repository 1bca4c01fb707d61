"""The examples of public docstrings run as they are written, offline, in a folder with the files that they name."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg
from ragst_sd._settings import Settings
from ragst_sd.retrieval import methods

from .io.hub_server import TOKEN, serve_hub
from .io.layouts import write_st
from .io.recipes import deposit
from .io.slides import paint, write_geojson, write_patches, write_pyramid
from .sections import copied

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
SUBMODULES = ("pp", "tl", "pl", "get", "io", "datasets")
PUBLIC = [f"{submodule}.{name}" for submodule in SUBMODULES for name in import_module(f"ragst_sd.{submodule}").__all__]
# These draw and embed for themselves: it is what they show.
FROM_SCRATCH = {"pp.embed_tiles", "datasets.synthetic"}
# These talk to a hub.
SHARED = {"io.upload_reference", "io.download_reference"}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST


@pytest.fixture(scope="module")
def drawn() -> Callable[..., dict[str, Any]]:
    """`rg.datasets.synthetic`, with sections that are drawn and embedded once; embedding them again finds that done."""
    synthetic, kept = rg.datasets.synthetic, {}

    def draw(*, n_donors: int = 3, **options: Any) -> dict[str, Any]:
        known = kept.setdefault(tuple(sorted(options.items())), {})
        # A donor stays the same whatever the number of donors.
        if len(known) < n_donors:
            known |= synthetic(n_donors=max(n_donors, 4), **options)
            for sdata in known.values():
                rg.pp.embed_tiles(sdata, model="texture", progress=False)
        return {name: copied(known[name]) for name in list(known)[:n_donors]}

    return draw


@pytest.fixture(scope="module")
def deposits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files under the names that examples use."""
    folder = tmp_path_factory.mktemp("deposits")
    write_st(folder / "ST", seed=1, edge=7)
    write_patches(folder / "hest_data", "TENX95", edge=6)
    write_pyramid(folder / "slide.tif", paint(1, 512, 512))
    write_geojson(folder / "slide.geojson", {"Tumor": (100, 50, 300, 400), "Stroma": (300, 50, 450, 400)})
    (folder / "features_uni_v1").mkdir()
    with h5py.File(folder / "features_uni_v1" / "slide.h5", "w") as file:
        y, x = np.mgrid[0:512:128, 0:512:128]
        file["coords"] = np.column_stack([x.ravel(), y.ravel()])
        file["features"] = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
        file["features"].attrs.update(encoder="uni_v1", name="slide")
        file["coords"].attrs.update(
            patch_size=64, patch_size_level0=128, level0_magnification=20, target_magnification=10, overlap=0
        )
    for sample, donor in (("B4", 4), ("C2", 2)):
        made = write_st(folder / f"made_{sample}", seed=donor, edge=7)
        mirror = folder / "mirror" / "her2st"
        mirror.mkdir(parents=True, exist_ok=True)
        for name, file in (
            ("counts.tsv.gz", f"{sample}.tsv.gz"),
            ("selection.tsv", f"{sample}_selection.tsv"),
            ("he.jpg", f"{sample}.jpg"),
        ):
            shutil.move(made / name, mirror / file)
    write_screen(folder / "mirror" / "papalexi_2021" / "PapalexiSatija2021_eccite_RNA.h5ad")
    deposit(folder / "sections", n_donors=2)
    return folder


def write_screen(path: Path) -> None:
    """Cells with the labels of the screen of Papalexi et al., one guide for each of two genes."""
    import anndata as ad

    obs = pd.DataFrame({"perturbation": ["STAT1g2", "IRF1g4", "control"] * 30}, index=[f"cell{i}" for i in range(90)])
    obs["replicate"] = ["rep1", "rep2"] * 45
    counts = np.random.default_rng(0).poisson(2.0, (90, 30)).astype("float32")
    path.parent.mkdir(parents=True)
    ad.AnnData(counts, obs=obs).write_h5ad(path)


def census_of_cells() -> SimpleNamespace:
    """The functions of cellxgene-census that `load_census` calls, on 60 made cells."""
    import anndata as ad

    columns = ["cell_type", "assay", "donor_id", "dataset_id", "disease", "tissue"]
    obs = pd.DataFrame(dict.fromkeys(columns, "x"), index=range(60))
    obs["cell_type"], obs["soma_joinid"] = np.repeat(["T cell", "B cell"], 30), np.arange(60)
    var = pd.DataFrame({"feature_id": ["ENSG00000000001"], "feature_name": ["A"]})

    @contextmanager
    def open_soma(*, census_version: str) -> Any:
        yield census_version

    def get_anndata(
        handle: Any, organism: str, *, obs_coords: Any, obs_column_names: Any, var_column_names: Any
    ) -> Any:
        part = obs.loc[obs["soma_joinid"].isin(obs_coords), [*obs_column_names, "soma_joinid"]]
        part = part.set_axis(part.index.astype(str))
        return ad.AnnData(np.ones((len(part), 1), np.float32), obs=part, var=var[var_column_names].set_axis(["0"]))

    return SimpleNamespace(
        open_soma=open_soma,
        get_obs=lambda handle, organism, *, value_filter, column_names: obs[column_names],
        get_anndata=get_anndata,
    )


@pytest.fixture
def workplace(deposits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of an example: the files that it reads lie there, and what it writes goes there."""
    for source in deposits.iterdir():
        if source.name in ("sections", "ST", "hest_data", "features_uni_v1", "slide.tif", "slide.geojson"):
            (tmp_path / source.name).symlink_to(source, target_is_directory=source.is_dir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGST_SD_DATA_DIR", str(deposits / "mirror"))
    monkeypatch.setenv("RAGST_SD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RAGST_SD_PROGRESS", "false")
    monkeypatch.setitem(sys.modules, "cellxgene_census", census_of_cells())
    return tmp_path


def run(name: str, described: Any) -> None:
    found = doctest.DocTestParser().get_doctest(
        inspect.getdoc(described), {}, name, inspect.getsourcefile(described) or name, 0
    )
    assert found.examples
    told: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(found, out=told.append)
    assert not told, "".join(told)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on 127.0.0.1 in place of the Hugging Face hub, with an account that may write."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with serve_hub() as running, rg.settings.override(cache_dir=tmp_path / "cache"):
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name, workplace, drawn, monkeypatch, request):
    import matplotlib.pyplot as plt

    if name in SHARED:
        request.getfixturevalue("hub")
    submodule, _, function = name.partition(".")
    described = getattr(getattr(rg, submodule), function)
    if name not in FROM_SCRATCH:
        monkeypatch.setattr(rg.datasets, "synthetic", drawn)
    # What an example registers goes with it.
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    try:
        run(name, described)
    finally:
        plt.close("all")


def test_example_of_settings_runs():
    run("settings", Settings)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "docs" / "llms.txt").exists(), reason="no documentation beside the tests")
def test_code_that_assistants_read_runs(workplace, drawn, monkeypatch):
    import matplotlib.pyplot as plt

    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8").partition("## All functions")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    # On smaller pictures, so that it takes seconds.
    monkeypatch.setattr(rg.datasets, "synthetic", lambda **options: drawn(image_px=500, **options))
    names: dict[str, Any] = {}
    try:
        for code in blocks:
            exec(compile(code, "llms.txt", "exec"), names)
    finally:
        plt.close("all")
    parts = rg.get.explain(names["query"], names["reference"], obs_names=names["spot"], genes=names["gene"])
    value = names["query"].tables["predicted"][names["spot"], names["gene"]].X.item()
    assert abs(parts["contribution"].sum() - value) < 1e-5
    assert (workplace / "viewer.html").exists() and (workplace / "card.html").exists()


def test_a_wrong_example_fails(workplace):
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    with pytest.raises(AssertionError, match="Expected"):
        run("wrong", wrong)
