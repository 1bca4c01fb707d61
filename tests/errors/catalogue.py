"""What goes wrong, as one table: the call, the error, and what its message must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import Image2DModel, Image3DModel, ShapesModel
from spatialdata.transformations import Identity

import ragst_sd as rg
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import Options


@dataclass
class World:
    """What the cases call the functions with; no case changes any of it."""

    query: SpatialData
    """A section with a prediction."""
    bare: SpatialData
    """A section without resolution, embedding or prediction."""
    sections: dict[str, SpatialData]
    reference: AnnData
    """Fitted."""
    unfitted: AnnData
    screen: AnnData
    embedding: pd.DataFrame
    bank: AnnData
    """A fitted reference of perturbations."""
    perturbed: AnnData
    scores: pd.DataFrame
    folder: Path

    @property
    def spot(self) -> str:
        return str(self.query.tables["predicted"].obs_names[0])

    @property
    def gene(self) -> str:
        return str(self.reference.var_names[0])


def without_variance(world: World) -> AnnData:
    """The predicted table as an earlier release wrote it."""
    table = world.query.tables["predicted"].copy()
    del table.var["reference_variance"]
    return table


class Case(NamedTuple):
    """One error."""

    key: str
    """Its name, and its anchor where `docs/errors.md` quotes it."""
    function: str
    """As it is called, without `rg.`."""
    error: type[Exception]
    parts: tuple[str, ...]
    """Of the message: what was found, and what is available or asked for."""
    run: Callable[[World], Any]


KEYS = {"perturbation_key": "perturbation", "control": "control"}
LOGS = {"unit": "log1p_cp10k"}
SCREEN = {"context_key": "cell_type", "batch_key": "batch"}
DONOR = {"donor_key": "donor"}


def embed(w: World, **kwargs: Any) -> Any:
    return rg.pp.embed_tiles(
        w.query, **({"image_key": "he", "tile_px": 32, "key_added": "X_new", "progress": False} | kwargs)
    )


def embed_other(w: World, *, image: Any = None, obs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """The same spots on another picture, or with other columns."""
    table, images = w.query.tables["table"].copy(), dict(w.query.images)
    sdata = SpatialData(
        images=images if image is None else {"he": image},
        shapes=dict(w.query.shapes),
        tables={"table": table},
        attrs=w.query.attrs,
    )
    table.obs = table.obs.assign(**(obs or {}))
    return rg.pp.embed_tiles(sdata, **({"key_added": "X_new", "progress": False} | kwargs))


def resampled(w: World) -> Any:
    coarse = get_pyramid_levels(w.query.images["he"], n=1)
    return Image2DModel.parse(coarse.data, dims=coarse.dims, transformations={"small": Identity()})


def without_places(reference: AnnData) -> AnnData:
    """The reference, built of images of unknown resolution."""
    reference = reference.copy()
    reference.obs["x_um"] = np.nan
    return reference


def unmeasured(w: World) -> SpatialData:
    """A section without counts."""
    table = w.query.tables["table"].copy()
    table.X = np.zeros(table.shape, dtype=np.float32)
    return SpatialData(
        images=dict(w.query.images), shapes=dict(w.query.shapes), tables={"table": table}, attrs=w.query.attrs
    )


def calibrated(w: World) -> AnnData:
    """The reference, with intervals for new donors."""
    reference = w.reference.copy()
    rg.tl.calibrate(reference, levels=[0.5], progress=False)
    return reference


def two_sections(w: World) -> AnnData:
    table = w.query.tables["table"].copy()
    table.obs["library_id"] = ["A", *["B"] * (table.n_obs - 1)]
    return table


def turned(w: World) -> Path:
    """A picture that viewers turn."""
    path, picture = w.folder.parent / "turned.png", Image.new("RGB", (64, 64), "white")
    exif = picture.getexif()
    exif[274] = 6
    picture.save(path, exif=exif)
    return path


def without_a_group(w: World) -> AnnData:
    reference = w.unfitted.copy()
    reference.obs["centre"] = ["NA", "A", *["B"] * (reference.n_obs - 2)]
    return reference


def shown(pixels: np.ndarray, names: list[str] | None = None) -> SpatialData:
    """A section of one spot in a picture (c, y, x) or (c, z, y, x)."""
    model = Image2DModel if pixels.ndim == 3 else Image3DModel
    image = model.parse(pixels, dims=("c", "y", "x") if pixels.ndim == 3 else ("c", "z", "y", "x"), c_coords=names)
    spots = ShapesModel.parse(np.array([[32.0, 32.0]]), geometry=0, radius=3)
    return SpatialData(images={"he": image}, shapes={"spots": spots})


def of_cells() -> SpatialData:
    """A section whose shapes lie as cells do."""
    sdata = shown(np.ones((3, 64, 64), np.uint8))
    cells = ShapesModel.parse(np.random.default_rng(0).uniform(0, 64, (50, 2)), geometry=0, radius=1)
    return SpatialData(images=dict(sdata.images), shapes={"cells": cells})


def embed_shown(pixels: np.ndarray, names: list[str] | None = None, **kwargs: Any) -> Any:
    options = {"model": lambda tiles: tiles.mean((2, 3)), "tile_px": 8, "mpp": None, "progress": False} | kwargs
    return rg.pp.embed_tiles(shown(pixels, names), **options)


class OfOneSize(torch.nn.Module):
    """What networks with learned positions say of tiles of another size."""

    image_size = 32

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        torch._assert(tiles.shape[-1] == self.image_size, "wrong height")
        return tiles.mean((2, 3))


def gated(w: World) -> Any:
    """What timm passes on when the hub refuses an account."""
    refused = type("GatedRepoError", (OSError,), {})("403 Client Error")
    with mock.patch("timm.create_model", side_effect=refused):
        return embed(w, model="uni")


def build(w: World, **kwargs: Any) -> Any:
    return rg.tl.build_reference({"donor1": w.sections["donor1"]}, **({"use_rep": "X_colour"} | kwargs))


def predict(w: World, **kwargs: Any) -> Any:
    return rg.tl.predict(w.query, w.reference, inplace=False, **kwargs)


def perturb(w: World, **kwargs: Any) -> Any:
    cells = w.screen[w.screen.obs["perturbation"] == "control"].copy()
    return rg.tl.perturb(cells, w.bank, **({"perturbations": ["P3"], "context_key": "cell_type"} | LOGS | kwargs))


def build_screen(w: World, adata: AnnData | None = None, **kwargs: Any) -> Any:
    options = {"embedding": w.embedding} | SCREEN | LOGS | kwargs
    return rg.tl.build_perturbation_reference(w.screen if adata is None else adata, **options)


def responses(w: World) -> AnnData:
    """Log fold changes, one row per perturbation and context."""
    table = AnnData(w.bank.X.copy(), obs=w.bank.obs[["perturbation", "context"]].copy(), var=w.bank.var[[]].copy())
    table.layers["rank"] = 1 - 2 * (-table.X).argsort(axis=1).argsort(axis=1) / (table.n_vars - 1)
    return table


def places(w: World) -> AnnData:
    """Place of each gene in the ranked list of a response."""
    table = responses(w)
    table.X = ((-table.X).argsort(axis=1).argsort(axis=1) + 1).astype("float32")
    return table


def build_given(w: World, adata: Any = None, **kwargs: Any) -> Any:
    options = {"unit": "log_fold_change", "context_key": "context"} | kwargs
    return rg.tl.build_perturbation_reference(responses(w) if adata is None else adata, **options)


def evaluate_given(w: World, unit: str, metric: str) -> Any:
    """Responses of the same perturbation elsewhere, scored."""
    table = responses(w)
    table.X = table.layers.pop("rank") if unit == "rank" else table.X
    reference = build_given(w, table, unit=unit)
    rg.tl.fit(reference, method="same_perturbation")
    predicted = rg.tl.perturb(table, reference, perturbations="P3", context_key="context")
    return rg.tl.evaluate_perturbation(predicted, table, context_key="context", metrics=[metric])


def edges(*line: Any) -> pd.DataFrame:
    return pd.DataFrame([("A", "B", 0.5), ("B", "C", 0.5), ("C", "D", 0.5), line], columns=["one", "other", "weight"])


def fit_given(w: World, method: str, **kwargs: Any) -> Any:
    return rg.tl.fit(build_given(w, **kwargs), method=method)


def changed(w: World, change: Callable[[AnnData], Any]) -> AnnData:
    """The screen after a change."""
    adata = w.screen.copy()
    change(adata)
    return adata


def relabel(label: str) -> Callable[[AnnData], Any]:
    """Another label for the last cell."""
    return lambda adata: adata.obs.__setitem__("perturbation", [*adata.obs["perturbation"][:-1], label])


def mask(adata: AnnData) -> None:
    adata.X = np.ma.masked_array(adata.X, mask=np.arange(adata.X.size).reshape(adata.shape) == 7)


def rename(adata: AnnData) -> None:
    adata.obs_names = [f"{name}-0" for name in adata.obs_names]


# Topic, then the cases under it.
TOPICS: dict[str, list[Case]] = {
    "The first ten minutes": [
        Case("no-mpp", "pp.embed_tiles", ValueError, ("'he'", "set_image_mpp", "mpp=None"), lambda w: rg.pp.embed_tiles(w.bare, image_key="he", progress=False)),
        Case("wrong-image-key", "pp.embed_tiles", KeyError, ("'hee'", "'he'"), lambda w: embed(w, image_key="hee")),
        Case("wrong-shapes-key", "pp.embed_tiles", KeyError, ("'spot'", "'spots'"), lambda w: embed(w, shapes_key="spot")),
        Case("wrong-table-key", "pp.embed_tiles", KeyError, ("'tabel'", "'table'"), lambda w: embed(w, table_key="tabel")),
        Case("unknown-model", "pp.embed_tiles", ValueError, ("'zzz'", "texture"), lambda w: embed(w, model="zzz")),
        Case("no-onnx-file", "pp.embed_tiles", FileNotFoundError, ("'nowhere.onnx'", "no file"), lambda w: embed(w, model="nowhere.onnx")),
        Case("gated-model", "pp.embed_tiles", PermissionError, ("'uni'", "is gated", "hf auth login", "checkpoint_path"), gated),
        Case("wrong-frame", "pp.embed_tiles", ValueError, ("'visium'", "'global'"), lambda w: embed(w, coordinate_system="visium")),
        Case("not-embedded", "tl.build_reference", KeyError, ("'X_texture'", "'X_colour'"), lambda w: build(w, use_rep="X_texture")),
        Case("wrong-donor-key", "tl.build_reference", KeyError, ("'patient'", "'donor'"), lambda w: build(w, donor_key="patient")),
        Case("not-fitted", "tl.predict", ValueError, ("not fitted", "rg.tl.fit"), lambda w: rg.tl.predict(w.query, w.unfitted)),
        Case("not-all-spatialdata", "pp.embed_tiles", TypeError, ("`sdata['scan']` is a str", "SpatialData"), lambda w: rg.pp.embed_tiles({"scan": "section.zarr"})),
        Case("not-spatialdata", "pp.embed_tiles", TypeError, ("str", "SpatialData"), lambda w: rg.pp.embed_tiles("section.zarr")),
    ],
    "Sections, pictures and spots": [
        Case("mpp-not-positive", "pp.set_image_mpp", ValueError, ("`mpp` is 0",), lambda w: rg.pp.set_image_mpp(w.query, mpp=0)),
        Case("mpp-of-no-image", "pp.set_image_mpp", KeyError, ("'slide'", "'he'"), lambda w: rg.pp.set_image_mpp(w.query, image_key="slide", mpp=0.5)),
        Case("pitch-of-cells", "pp.set_image_mpp", ValueError, ("'cells' do not lie on an array", "`um_between_centers`", "microns per pixel", "bins"), lambda w: rg.pp.set_image_mpp(of_cells(), um_between_centers=8)),
        Case("grid-of-no-image", "pp.tile_grid", KeyError, ("'slide'", "'he'"), lambda w: rg.pp.tile_grid(w.query, image_key="slide")),
        Case("tile-too-large", "pp.tile_grid", ValueError, ("No tile fits", "700"), lambda w: rg.pp.tile_grid(w.query, tile_px=9000, mpp=1.0)),
        Case("features-unknown", "pp.use_features", KeyError, ("'uni2_tile'", "'table'", "'X_colour'", "no file", "h5 file of one slide"), lambda w: rg.pp.use_features(w.query, features="uni2_tile")),
        Case("features-type", "pp.use_features", TypeError, ("`features` is a ndarray", "name of a table"), lambda w: rg.pp.use_features(w.query, features=np.ones((3, 2)))),
        Case("features-unstated", "pp.use_features", ValueError, ("`tables['table'].obsm['spatial']`", "`model=`, `tile_px=`, `mpp=`"), lambda w: rg.pp.use_features(w.query, features="spatial")),
        Case("features-field", "pp.use_features", ValueError, ("`context` is 0.5", "1 and more"), lambda w: rg.pp.use_features(w.query, features="spatial", context=(0.5,))),
        Case("tile-px", "pp.embed_tiles", ValueError, ("`tile_px` is 0",), lambda w: embed(w, tile_px=0)),
        Case("full-brightness", "pp.embed_tiles", ValueError, ("'he'", "uint16", "from 700 to 700", "value_max="), lambda w: embed_shown(np.full((3, 64, 64), 700, np.uint16))),
        Case("full-brightness-of-grid", "pp.tile_grid", ValueError, ("'he'", "float64", "value_max="), lambda w: rg.pp.tile_grid(shown(np.full((3, 64, 64), -3.0)), tile_px=8, mpp=None)),
        Case("value-max", "pp.embed_tiles", ValueError, ("`value_max` is -1",), lambda w: embed_shown(np.ones((3, 64, 64)), value_max=-1)),
        Case("stains", "pp.embed_tiles", ValueError, ("'he'", "'DAPI'", "red, green and blue"), lambda w: embed_shown(np.ones((3, 64, 64)), ["DAPI", "CD3", "CD8"])),
        Case("four-channels", "pp.embed_tiles", ValueError, ("'he'", "four channels without names", "c_coords"), lambda w: embed_shown(np.linspace(0, 1, 4 * 4096).reshape(4, 64, 64))),
        Case("nothing-opaque", "pp.embed_tiles", ValueError, ("'he'", "0 everywhere", "Leave it out"), lambda w: embed_shown(np.eye(4)[:3].sum(0)[:, None, None] * np.ones((4, 64, 64)), list("rgba"))),
        Case("planes", "pp.embed_tiles", ValueError, ("'he'", "5 planes along z", "isel(z=k)"), lambda w: embed_shown(np.ones((3, 5, 64, 64)))),
        Case("size-of-tiles", "pp.embed_tiles", ValueError, ("32 x 32 px", "8 x 8 px", "tile_px=32"), lambda w: embed_shown(np.ones((3, 64, 64)), model=OfOneSize())),
        Case("context-empty", "pp.embed_tiles", ValueError, ("`context` is empty",), lambda w: embed(w, context=())),
        Case("batch-size", "pp.embed_tiles", ValueError, ("`batch_size` is 0",), lambda w: embed(w, batch_size=0)),
        Case("resampled-image", "pp.embed_tiles", ValueError, ("when it had 700 x 700 pixels and has 350 x 350 now", "set_image_mpp"), lambda w: embed_other(w, image=resampled(w))),
        Case("image-cut-with-xarray", "pp.embed_tiles", ValueError, ("cropped or subsampled with xarray", "[100.0, 0.0]", "bounding_box_query"), lambda w: embed_other(w, image=get_pyramid_levels(w.query.images["he"], n=0).isel(x=slice(100, None)), image_mpp=1.0)),
        Case("labels-for-spots", "pp.embed_tiles", ValueError, ("'tissue' are labels", "to_circles"), lambda w: embed(w, shapes_key="tissue")),
        Case("ids-became-floats", "pp.embed_tiles", ValueError, ("'spot_id'", "float64", "astype(int)"), lambda w: embed_other(w, obs={"spot_id": w.query.tables["table"].obs["spot_id"].astype(float)})),
        Case("encoders-argument", "pp.encoders", TypeError, ("encoders",), lambda w: rg.pp.encoders("uni")),
        Case("no-threshold", "pp.filter_predicted", ValueError, ("min_cv_pearson",), lambda w: rg.pp.filter_predicted(w.query)),
        Case("filter-of-no-prediction", "pp.filter_predicted", KeyError, ("'predictd'", "'predicted'"), lambda w: rg.pp.filter_predicted(w.query, min_cv_pearson=0.1, prediction_key="predictd")),
        Case("species", "pp.harmonize_genes", ValueError, ("'rat'", "'human'", "'mouse'"), lambda w: rg.pp.harmonize_genes(w.query, species="rat")),
        Case("names-column", "pp.harmonize_genes", KeyError, ("'symbol'",), lambda w: rg.pp.harmonize_genes(w.query, gene_symbols="symbol")),
        Case("harmonise-unknown", "pp.harmonize_genes", ValueError, ("'guess'", "'keep'", "'drop'"), lambda w: rg.pp.harmonize_genes(w.query, species="human", unknown="guess")),
        Case("synthetic-donors", "datasets.synthetic", ValueError, ("0",), lambda w: rg.datasets.synthetic(n_donors=0)),
    ],
    "References": [
        Case("no-sections", "tl.build_reference", ValueError, ("`sdatas` is empty",), lambda w: rg.tl.build_reference([], use_rep="X")),
        Case("wrong-layer", "tl.build_reference", KeyError, ("'raw'", "to take X"), lambda w: build(w, layer="raw")),
        Case("wrong-gene", "tl.build_reference", ValueError, ("'EPCAMM'", "'EPCAM'"), lambda w: build(w, genes=["EPCAMM"])),
        Case("wrong-unit", "tl.build_reference", ValueError, ("'cpm'", "'counts'"), lambda w: build(w, unit="cpm")),
        Case("sources-of-nobody", "tl.build_reference", ValueError, ("'d9'", "'donor1'"), lambda w: build(w, sources={"d9": {}})),
        Case("sources-field", "tl.build_reference", ValueError, ("'licence'", "'license'"), lambda w: build(w, sources={"donor1": {"licence": "MIT"}})),
        Case("no-group", "tl.fit", ValueError, ("reference.obs['centre']", "empty in 1 rows"), lambda w: rg.tl.fit(without_a_group(w), group_key="centre")),
        Case("wrong-method", "tl.fit", ValueError, ("'knnn'", "'knn'"), lambda w: rg.tl.fit(w.unfitted, method="knnn")),
        Case("by-position", "tl.fit", TypeError, ("'reference' by position", 'method="knn"'), lambda w: rg.tl.fit(w.unfitted, "knn")),
        Case("wrong-option", "tl.fit", ValueError, ("'k'", "'n_components'"), lambda w: rg.tl.fit(w.unfitted, method="knn", options={"k": 3})),
        Case("method-taken", "tl.register_method", ValueError, ("'rag'", "taken"), lambda w: rg.tl.register_method("rag", Method(Options, fit=lambda *_: {}))),
        Case("wrong-rng", "tl.fit", ValueError, ("`rng` is '7'", "whole number", "generator"), lambda w: rg.tl.fit(w.unfitted, method="knn", rng="7")),
        Case("too-many-neighbours", "tl.fit", ValueError, ("10000", "rows of the reference"), lambda w: rg.tl.fit(w.unfitted, method="knn", n_neighbors=10_000)),
        Case("one-group", "tl.fit", ValueError, ("one group only",), lambda w: rg.tl.fit(w.unfitted, method="knn", group_key="tissue")),
        Case("levels", "tl.calibrate", ValueError, ("`levels` is", "above 0 and below 1"), lambda w: rg.tl.calibrate(w.reference, levels=[90])),
        Case("calibrate-not-fitted", "tl.calibrate", ValueError, ("not fitted", "rg.tl.fit"), lambda w: rg.tl.calibrate(w.unfitted)),
        Case("methods-to-compare", "tl.cross_validate", ValueError, ("'knnn'", "'knn'"), lambda w: rg.tl.cross_validate(w.unfitted, methods=["knnn"], progress=False)),
        Case("groups-to-compare", "tl.cross_validate", KeyError, ("'hospital'", "'donor'"), lambda w: rg.tl.cross_validate(w.unfitted, methods=["mean"], group_key="hospital", progress=False)),
        Case("wrong-split-of-sections", "tl.cross_validate", ValueError, ("'blocks'", "'block'"), lambda w: rg.tl.cross_validate(w.unfitted, methods=["mean"], split="blocks", progress=False)),
        Case("blocks-of-groups", "tl.cross_validate", ValueError, ("`group_key` is 'sample'", "split='block'"), lambda w: rg.tl.cross_validate(w.unfitted, methods=["mean"], split="block", group_key="sample", progress=False)),
        Case("margin-of-donors", "tl.cross_validate", ValueError, ("`margin_um`", "split='block'"), lambda w: rg.tl.cross_validate(w.unfitted, methods=["mean"], margin_um=100, progress=False)),
        Case("blocks-too-large", "tl.cross_validate", ValueError, ("Nothing is left to learn from", "'donor1'", "margin of 5,000 µm"), lambda w: rg.tl.cross_validate(w.unfitted, methods=["mean"], split="block", margin_um=5000, progress=False)),
        Case("blocks-without-places", "tl.calibrate", ValueError, ("'donor1'", "rg.pp.set_image_mpp"), lambda w: rg.tl.calibrate(without_places(w.reference), split="block")),
        Case("merge-nothing", "tl.merge_references", ValueError, ("empty",), lambda w: rg.tl.merge_references([])),
        Case("merge-the-same", "tl.merge_references", ValueError, ("'donor1'",), lambda w: rg.tl.merge_references({"a": w.unfitted, "b": w.unfitted})),
        Case("merge-on-duplicate", "tl.merge_references", ValueError, ("'ignore'", "'warn'"), lambda w: rg.tl.merge_references([w.unfitted], on_duplicate="ignore")),
        Case("no-cell-types", "tl.add_cell_types", ValueError, ("Neither single cells nor fractions",), lambda w: rg.tl.add_cell_types(w.unfitted)),
        Case("cell-type-column", "tl.add_cell_types", KeyError, ("'type'", "'cell_type'"), lambda w: rg.tl.add_cell_types(w.unfitted, w.screen, cell_type_key="type")),
        Case("card-of-no-reference", "io.data_card", ValueError, ("build_reference",), lambda w: rg.io.data_card(w.query.tables["table"])),
    ],
    "Predictions": [
        Case("wrong-gene-asked", "tl.predict", ValueError, ("'EPCAMM'", "'EPCAM'"), lambda w: predict(w, genes=["EPCAMM"])),
        Case("where-column", "tl.predict", KeyError, ("'organ'", "'donor'"), lambda w: predict(w, where={"organ": "x"})),
        Case("where-value", "tl.predict", ValueError, ("'x'", "'donor1'"), lambda w: predict(w, where={"donor": "x"})),
        Case("where-mask", "tl.predict", ValueError, ("boolean mask",), lambda w: predict(w, where=[True])),
        Case("exclude-column", "tl.predict", KeyError, ("'organ'",), lambda w: predict(w, exclude=("organ",))),
        Case("where-of-other-order", "tl.predict", ValueError, ("index is not that of", "obs_names"), lambda w: predict(w, where=pd.Series(True, index=w.reference.obs_names[::-1]))),
        Case("exclude-by-value", "tl.predict", TypeError, ("`exclude` is a dict", "`where`"), lambda w: predict(w, exclude={"donor": "donor1"})),
        Case("more-than-fitted", "tl.predict", ValueError, ("`n_neighbors` is 11", "fitted with 10"), lambda w: predict(w, n_neighbors=11)),
        Case("wrong-backend", "tl.predict", ValueError, ("'faiss'", "'exact'"), lambda w: predict(w, backend="faiss")),
        Case("name-taken", "tl.predict", ValueError, ("'table'", "key_added"), lambda w: rg.tl.predict(w.query, w.reference, key_added="table")),
        Case("illegal-name", "tl.predict", ValueError, ("'a b'", "a_b"), lambda w: rg.tl.predict(w.query, w.reference, key_added="a b")),
        Case("no-intervals", "tl.predict", ValueError, ("no intervals", "rg.tl.calibrate"), lambda w: predict(w, intervals=0.9)),
        Case("gaps-of-an-unmeasured-section", "tl.build_reference", ValueError, ("no spot on tissue has both an embedding and counts",), lambda w: rg.tl.build_reference(unmeasured(w), use_rep="X_colour")),
        Case("gaps-from-one-row", "tl.predict", ValueError, ("does not cite itself", "other donors"), lambda w: rg.tl.predict(w.sections["donor1"], w.reference, exclude=(), where=np.arange(w.reference.n_obs) == 0)),
        Case("intervals-of-donors-in-gaps", "tl.predict", ValueError, ("held-out donors", "split='block'"), lambda w: rg.tl.predict(w.sections["donor1"], calibrated(w), exclude=(), intervals=0.5)),
        Case("nothing-held-out", "tl.evaluate", ValueError, ("none is held out", "split='block'"), lambda w: rg.tl.evaluate(rg.tl.predict(w.sections["donor1"], w.reference, exclude=(), inplace=False), truth=w.sections["donor1"]["table"])),
        Case("wrong-truth", "tl.evaluate", KeyError, ("'truth'", "'table'"), lambda w: rg.tl.evaluate(w.query, truth_key="truth")),
        Case("no-truth", "tl.evaluate", ValueError, ("No measured table annotates 'spots'", "'predicted'", "truth="), lambda w: rg.tl.evaluate(type(w.query)(shapes={"spots": w.query["spots"]}, tables={"predicted": w.query["predicted"]}))),
        Case("truth-of-another-donor", "tl.evaluate", ValueError, ("`truth` is of donor 'donor1'", "'donor3'"), lambda w: rg.tl.evaluate(w.query["predicted"], truth=w.sections["donor1"]["table"])),
        Case("predicted-truth", "tl.evaluate", ValueError, ("was predicted", "measured"), lambda w: rg.tl.evaluate(w.query, truth=w.query["predicted"])),
        Case("truth-of-several", "tl.evaluate", ValueError, ("`truth` belongs to one section", "holds 1"), lambda w: rg.tl.evaluate([w.query], truth=w.query["table"])),
        Case("wrong-metric", "tl.evaluate", ValueError, ("'pearsn'", "'pearson'"), lambda w: rg.tl.evaluate(w.query, metrics=["pearsn"])),
        Case("unknown-variance", "tl.evaluate", ValueError, ("'reference_variance'", "n_genes=None"), lambda w: rg.tl.evaluate(without_variance(w), truth=w.query["table"], n_genes=5)),
        Case("no-scores", "get.summary", ValueError, ("lacks 'gene'", "rg.tl.evaluate"), lambda w: rg.get.summary(w.scores.drop(columns="gene"))),
        Case("report-of-no-prediction", "tl.report", KeyError, ("'predictd'", "'predicted'"), lambda w: rg.tl.report(w.query, w.reference, path=w.folder / "r", prediction_key="predictd")),
        Case("report-folder", "tl.report", FileNotFoundError, ("there is no folder", "Make it first"), lambda w: rg.tl.report(w.query, w.reference, path=w.folder / "no" / "r")),
    ],
    "Where a value comes from": [
        Case("explain-gene", "get.explain", KeyError, ("'EPCAMM'", "'EPCAM'"), lambda w: rg.get.explain(w.query, w.reference, obs_names=w.spot, genes="EPCAMM")),
        Case("explain-spot", "get.explain", KeyError, ("`obs_names`", "'nowhere'"), lambda w: rg.get.explain(w.query, w.reference, obs_names="nowhere", genes=w.gene)),
        Case("explain-old-name", "get.explain", TypeError, ("`gene`", 'genes="EPCAM"'), lambda w: rg.get.explain(w.query, w.reference, obs_names=w.spot, gene="EPCAM")),
        Case("explain-other-reference", "get.explain", ValueError, ("made from a reference with hash",), lambda w: rg.get.explain(w.query, w.reference[::2].copy(), obs_names=w.spot, genes=w.gene)),
        Case("neighbours-of-nobody", "get.neighbors", KeyError, ("`obs_names`", "'nowhere'"), lambda w: rg.get.neighbors(w.query, obs_names=["nowhere"])),
        Case("not-a-prediction", "get.neighbors", ValueError, ("lacks uns['retrieval']", "predict again"), lambda w: rg.get.neighbors(w.query, prediction_key="table")),
        Case("influence-column", "get.influence", KeyError, ("'patient'", "'donor'"), lambda w: rg.get.influence(w.query, w.reference, group_key="patient", progress=False)),
        Case("influence-row", "get.influence", ValueError, ("`rows` is empty",), lambda w: rg.get.influence(w.query, rows=[])),
        Case("risk-column", "get.risk_coverage", KeyError, ("'distance_percentil'", "'distance_percentile'"), lambda w: rg.get.risk_coverage(w.query, by="distance_percentil")),
        Case("risk-shares", "get.risk_coverage", ValueError, ("`shares` is",), lambda w: rg.get.risk_coverage(w.query, shares=[2.0])),
    ],
    "Pictures and pages": [
        Case("picture-gene", "pl.retrieval", KeyError, ("'EPCAMM'",), lambda w: rg.pl.retrieval(w.query, w.reference, obs_names=w.spot, genes="EPCAMM")),
        Case("picture-spot", "pl.explain", KeyError, ("'nowhere'",), lambda w: rg.pl.explain(w.query, w.reference, obs_names="nowhere", genes=w.gene)),
        Case("picture-spots", "pl.explain", ValueError, ("`obs_names` names", "place for 1"), lambda w: rg.pl.explain(w.query, w.reference, obs_names=[w.spot, "b"], genes=w.gene)),
        Case("map-gene", "pl.prediction", KeyError, ("'EPCAMM'",), lambda w: rg.pl.prediction(w.query, genes="EPCAMM")),
        Case("map-four-genes", "pl.composite", ValueError, ("4 genes", "3 at most", "rg.pl.prediction"), lambda w: rg.pl.composite(w.query, genes=w.reference.var_names[:4])),
        Case("map-intervals", "pl.prediction", KeyError, ("interval",), lambda w: rg.pl.prediction(w.query, genes=w.gene, interval=True)),
        Case("reliability-map", "pl.reliability", KeyError, ("'distance'", "'distance_percentile'"), lambda w: rg.pl.reliability(w.query, maps=["distance"])),
        Case("sources-column", "pl.sources", ValueError, ("'patient'", "'donor'"), lambda w: rg.pl.sources(w.query, group_by="patient")),
        Case("benchmark-metric", "pl.benchmark", ValueError, ("'pearsn'", "'pearson'"), lambda w: rg.pl.benchmark(w.scores, metric="pearsn")),
        Case("benchmark-table", "pl.benchmark", ValueError, ("method",), lambda w: rg.pl.benchmark(w.scores.drop(columns="method"))),
        Case("responses-of-nobody", "pl.perturbation", (KeyError, ValueError), ("'P99'", "'P3'"), lambda w: rg.pl.perturbation(w.perturbed, w.bank, perturbation="P99")),
        Case("viewer-gene", "pl.viewer", KeyError, ("'EPCAMM'",), lambda w: rg.pl.viewer(w.query, w.reference, genes=["EPCAMM"], path=None)),
        Case("viewer-file", "pl.viewer", FileExistsError, ("is no viewer page",), lambda w: rg.pl.viewer(w.query, w.reference, path=w.folder / "mine.html")),
    ],
    "Files": [
        Case("no-reference-file", "io.read_reference", FileNotFoundError, ("does not exist", "write_reference"), lambda w: rg.io.read_reference(w.folder / "nothing.zarr.zip")),
        Case("not-a-reference-file", "io.read_reference", ValueError, ("is not a reference",), lambda w: rg.io.read_reference(w.folder / "mine")),
        Case("reference-exists", "io.write_reference", FileExistsError, ("overwrite=True",), lambda w: rg.io.write_reference(w.unfitted, w.folder / "mine.zarr.zip")),
        Case("reference-over-mine", "io.write_reference", FileExistsError, ("is not a reference", "not replaced"), lambda w: rg.io.write_reference(w.unfitted, w.folder / "mine.zarr.zip", overwrite=True)),
        Case("reference-as-a-folder", "io.write_reference", ValueError, ("one file", "r.zarr.zip"), lambda w: rg.io.write_reference(w.unfitted, w.folder / "r.zarr")),
        Case("half-a-reference", "io.read_reference", ValueError, ("not the whole of one", "downloaded, do that again"), lambda w: rg.io.read_reference(w.folder / "mine.zarr.zip")),
        Case("table-of-no-store", "io.write_table", ValueError, ("no store", "sdata.write(path)"), lambda w: rg.io.write_table(w.query, "predicted")),
        Case("no-such-table", "io.write_table", KeyError, ("'predictd'", "'predicted'"), lambda w: rg.io.write_table(w.query, "predictd")),
        Case("no-counts-file", "io.read_st", FileNotFoundError, ("counts.h5ad",), lambda w: rg.io.read_st(w.folder / "counts.h5ad", w.folder / "he.png")),
        Case("several-sections", "io.read_st", ValueError, ("2 sections: 'A', 'B'", "`sample=`"), lambda w: rg.io.read_st(two_sections(w), w.folder / "he.png")),
        Case("damaged-counts", "io.read_st", ValueError, ("broken.h5ad", "cannot be read as h5ad", "damaged or incomplete"), lambda w: rg.io.read_st(w.folder / "broken.h5ad", w.folder / "he.png")),
        Case("turned-picture", "io.read_st", ValueError, ("turned.png", "orientation 6", "exif_transpose"), lambda w: rg.io.read_st(w.query.tables["table"], turned(w))),
        Case("no-genes", "io.read_st", ValueError, ("no genes: 'x'",), lambda w: rg.io.read_st(pd.DataFrame({"x": [1.0], "EPCAM": [2.0]}, index=["a"]), w.folder / "he.png")),
        Case("no-hest-sections", "io.read_hest", FileNotFoundError, ("holds no sections", "st, wsis and metadata"), lambda w: rg.io.read_hest(w.folder, sample="TENX1")),
        Case("no-slide", "io.read_slide", FileNotFoundError, ("slide.svs",), lambda w: rg.io.read_slide(w.folder / "slide.svs")),
        Case("no-embeddings", "io.read_embeddings", FileNotFoundError, ("features.h5",), lambda w: rg.io.read_embeddings(w.query, w.folder / "features.h5")),
        Case("no-patches", "io.read_patches", FileNotFoundError, ("TENX95.h5", "pictures"), lambda w: rg.io.read_patches(w.folder / "TENX95.h5", w.folder / "broken.h5ad")),
        Case("damaged-annotations", "io.read_annotations", ValueError, ("mine.html", "cannot be read as GeoJSON"), lambda w: rg.io.read_annotations(w.query, w.folder / "mine.html")),
        Case("no-annotation", "pp.label_spots", KeyError, ("'annotations'", "'spots'", "rg.io.read_annotations"), lambda w: rg.pp.label_spots(w.query)),
        Case("geojson-exists", "io.write_geojson", FileExistsError, ("mine.html", "`overwrite=True`"), lambda w: rg.io.write_geojson(w.query, w.folder / "mine.html", genes=w.gene)),
        Case("cell-eval-of-tissue", "io.write_cell_eval", ValueError, ("prediction of tissue", "rg.tl.perturb"), lambda w: rg.io.write_cell_eval(w.query.tables["predicted"], w.screen, w.folder / "out")),
    ],
    "Public data sets": [
        Case("no-such-data-set", "datasets.load", KeyError, ("'her2stt'", "'her2st'"), lambda w: rg.datasets.load("her2stt")),
        Case("section-leads-out", "datasets.load", ValueError, ("'../TENX1'", "leads out of the folder"), lambda w: rg.datasets.load("hest_1k", samples="../TENX1")),
        Case("catalogue-kind", "datasets.catalog", TypeError, ("catalog",), lambda w: rg.datasets.catalog("breast")),
        Case("references-of-one-organ", "datasets.references", TypeError, ("references",), lambda w: rg.datasets.references("breast")),
        Case("terms-of-upload", "io.upload_reference", ValueError, ("'unknown'", "sources="), lambda w: rg.io.upload_reference(w.reference, "lab/mine")),
        Case("no-recipe", "io.build_recipe", FileNotFoundError, ("recipe.yaml", "'breast'"), lambda w: rg.io.build_recipe(w.folder / "recipe.yaml", path=w.folder / "r.zarr")),
        Case("recipe-field", "io.build_recipe", ValueError, ("`source`", "'sources'"), lambda w: rg.io.build_recipe({"version": 1, "source": []}, path=w.folder / "r.zarr")),
        Case("no-such-screen", "datasets.load_screen", KeyError, ("'norman19'",), lambda w: rg.datasets.load_screen("norman19")),
    ],
    "Perturbations": [
        Case("response-unit", "tl.build_perturbation_reference", ValueError, ("`unit` is 'counts'", "`unit='rank'`"), lambda w: build_given(w, unit="counts")),
        Case("response-unit-and-context", "tl.build_perturbation_reference", ValueError, ("no controls and values below 0", "`unit='log_fold_change'`"), lambda w: rg.tl.build_perturbation_reference(responses(w))),
        Case("places-as-fold-changes", "tl.build_perturbation_reference", ValueError, ("places in ranked lists", "`unit='rank'`"), lambda w: build_given(w, places(w))),
        Case("long-table-without-gene", "tl.build_perturbation_reference", ValueError, ("columns 'target'", "call the column of genes `gene`"), lambda w: build_given(w, responses(w).to_df().rename_axis("perturbation").reset_index().melt("perturbation", var_name="target"), context_key=None)),
        Case("two-responses", "tl.build_perturbation_reference", ValueError, ("more than one row for 'P0 in all'", "`context_key=`"), lambda w: build_given(w, context_key=None)),
        Case("ranks-as-fold-changes", "tl.build_perturbation_reference", ValueError, ("looks like ranks", "`unit='rank'`"), lambda w: build_given(w, layer="rank")),
        Case("fold-changes-as-ranks", "tl.build_perturbation_reference", ValueError, ("ranks lie from 1", "Scale them"), lambda w: build_given(w, unit="rank")),
        Case("long-table-value", "tl.build_perturbation_reference", KeyError, ("'log_fold_change'", "`layer=`"), lambda w: build_given(w, responses(w).to_df().rename_axis("perturbation").reset_index().melt("perturbation", var_name="gene"), context_key=None)),
        Case("dose-among-genes", "tl.build_perturbation_reference", ValueError, ("'dose_nM'", "`genes=`"), lambda w: build_given(w, responses(w).to_df().assign(dose_nM=10.0, perturbation=list(responses(w).obs["perturbation"]), context=list(responses(w).obs["context"])))),
        Case("contexts-share-nothing", "tl.perturbation_folds", ValueError, ("No perturbation was measured in two contexts", "split='perturbation'"), lambda w: rg.tl.perturbation_folds(responses(w)[::2][:3], split="here")),
        Case("no-gene-embedding", "tl.fit", ValueError, ("no embedding of genes, and method 'knn'", "'same_perturbation'"), lambda w: fit_given(w, "knn")),
        Case("metric-needs-cells", "tl.evaluate_perturbation", ValueError, ("'energy' need cells", "'rank_score'"), lambda w: evaluate_given(w, "log_fold_change", "energy")),
        Case("gap-without-baseline", "get.gap_closed", ValueError, ("`scores` has no method 'none'", "'mean'"), lambda w: rg.get.gap_closed(pd.DataFrame({"method": ["mean"], "metric": ["pearson_delta"], "task": "", "ceiling": 1.0}), baseline="none")),
        Case("ranks-have-no-sizes", "tl.evaluate_perturbation", ValueError, ("'mse_delta' compare sizes", "'rank_score'"), lambda w: evaluate_given(w, "rank", "mse_delta")),
        Case("edge-without-gene", "tl.embed_genes", ValueError, ("1 edges", "unknown gene"), lambda w: rg.tl.embed_genes(edges(None, "A", 1.0), n_components=2)),
        Case("edge-of-proteins", "tl.embed_genes", ValueError, ("'9606.ENSP00000269305'", "gene symbols"), lambda w: rg.tl.embed_genes(edges("9606.ENSP00000269305", "A", 1.0), n_components=2)),
        Case("edge-to-itself", "tl.embed_genes", ValueError, ("itself: 'A'", "Remove these loops"), lambda w: rg.tl.embed_genes(edges("A", "A", 1.0), n_components=2)),
        Case("no-edges", "tl.embed_genes", ValueError, ("`data` is empty", "at least one edge"), lambda w: rg.tl.embed_genes(edges("A", "B", 1.0).iloc[:0], n_components=1)),
        Case("network-without-groups", "tl.embed_genes", ValueError, ("3 genes, 3 edges", "no groups", "gene sets"), lambda w: rg.tl.embed_genes(pd.DataFrame([("A", "B"), ("B", "C"), ("A", "C")]), n_components=2)),
        Case("edges-as-tuples", "tl.embed_genes", TypeError, ("is a tuple", "edges as a data frame"), lambda w: rg.tl.embed_genes([("A", "B", 1.0)], n_components=1)),
        Case("no-edges-no-vectors", "tl.embed_genes", ValueError, ("columns 'perturbation', 'context'", "two columns of genes"), lambda w: rg.tl.embed_genes(responses(w).obs.assign(x="a", y=1))),
        Case("gmt-missing", "tl.embed_genes", FileNotFoundError, ("nothing.gmt",), lambda w: rg.tl.embed_genes(w.folder / "nothing.gmt")),
        Case("gmt-components", "tl.embed_genes", ValueError, ("`n_components` is 0", "above zero"), lambda w: rg.tl.embed_genes({"a": ["A", "B"], "b": ["A", "B"]}, n_components=0)),
        Case("perturbation-column", "tl.build_perturbation_reference", KeyError, ("'guide'", "'perturbation'"), lambda w: build_screen(w, perturbation_key="guide")),
        Case("no-control", "tl.build_perturbation_reference", ValueError, ("'NT'", "control"), lambda w: build_screen(w, control="NT")),
        Case("control-is-no-name", "tl.build_perturbation_reference", TypeError, ("`control` is None", "list of names"), lambda w: build_screen(w, control=None)),
        Case("missing-label", "tl.build_perturbation_reference", ValueError, ("1 cells have no label", "Remove them"), lambda w: build_screen(w, adata=changed(w, relabel("+")))),
        Case("guide-label", "tl.build_perturbation_reference", ValueError, ("begins with 'P3'", "guide", "`A+B`"), lambda w: build_screen(w, adata=changed(w, relabel("P3_g1")))),
        Case("nothing-asked", "tl.perturb", ValueError, ("'+' names no perturbation", "'control'"), lambda w: perturb(w, perturbations=["+"])),
        Case("renamed-controls", "tl.evaluate_perturbation", ValueError, ("under other names", "rg.tl.perturbation_folds"), lambda w: rg.tl.evaluate_perturbation(w.perturbed, changed(w, rename), **SCREEN, **LOGS)),
        Case("masked", "tl.build_perturbation_reference", TypeError, ("masked array with 1 masked values", "`.filled(0)`"), lambda w: build_screen(w, adata=changed(w, mask))),
        Case("no-rna", "tl.build_perturbation_reference", ValueError, ("No feature has 'Gene Expression'", "'GEX"), lambda w: build_screen(w, adata=changed(w, lambda adata: adata.var.insert(0, "feature_types", "GEX")))),
        Case("on-missing", "tl.build_perturbation_reference", ValueError, ("'skip'", "'drop'"), lambda w: build_screen(w, on_missing="skip")),
        Case("unknown-perturbation", "tl.perturb", KeyError, ("'P99'",), lambda w: perturb(w, perturbations=["P99"])),
        Case("perturb-tissue-of-cells", "tl.perturb_tissue", TypeError, ("`sdata`", "AnnData"), lambda w: rg.tl.perturb_tissue(w.screen, w.bank, perturbations=["P3"], **LOGS)),
        Case("perturb-of-tissue", "tl.perturb", TypeError, ("rg.tl.perturb_tissue",), lambda w: rg.tl.perturb(w.query, w.bank, perturbations=["P3"], **LOGS)),
        Case("perturb-with-tissue", "tl.perturb", ValueError, ("'histology'", "rg.tl.predict"), lambda w: rg.tl.perturb(w.screen, w.reference, perturbations=["P3"], **LOGS)),
        Case("wrong-split", "tl.perturbation_folds", ValueError, ("'cells'", "'perturbation'"), lambda w: rg.tl.perturbation_folds(w.screen, split="cells", **SCREEN)),
        Case("few-shot", "tl.perturbation_folds", ValueError, ("few_shot",), lambda w: rg.tl.perturbation_folds(w.screen, few_shot=2.0, split="context", **SCREEN)),
        Case("evaluate-nothing", "tl.evaluate_perturbation", ValueError, ("`data` is empty",), lambda w: rg.tl.evaluate_perturbation({}, w.screen, **SCREEN, **LOGS)),
        Case("perturbation-metric", "tl.evaluate_perturbation", ValueError, ("'pearsn'",), lambda w: rg.tl.evaluate_perturbation(w.perturbed, w.screen, metrics=["pearsn"], **SCREEN, **LOGS)),
    ],
}  # fmt: skip
CASES = {case.key: case for cases in TOPICS.values() for case in cases}
