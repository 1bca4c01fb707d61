"""Bad input: the error says what was found, what is available and what to do, and nothing changes.

Each case makes a fresh object, breaks it, and names the exception and parts of its message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anndata import AnnData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

import ragst_sd as rg

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass
class World:
    """What a case may break."""

    sections: dict[str, SpatialData]
    embed: dict[str, Any]

    @property
    def query(self) -> SpatialData:
        return self.sections["donor3"]

    @property
    def table(self) -> AnnData:
        return self.query.tables["table"]

    def reference(self, **kwargs: Any) -> AnnData:
        training = {name: self.sections[name] for name in ("donor1", "donor2")}
        return rg.tl.build_reference(training, **({"use_rep": "X_colour"} | kwargs))

    def fitted(self, **kwargs: Any) -> AnnData:
        reference = self.reference()
        rg.tl.fit(reference, **({"method": "knn", "n_neighbors": 10} | kwargs))
        return reference

    def embed_query(self, **kwargs: Any) -> None:
        rg.pp.embed_tiles(self.query, **(self.embed | kwargs))


def edit_counts(world: World, change: Callable[[np.ndarray], np.ndarray]) -> None:
    table = world.sections["donor2"].tables["table"]
    table.X = change(table.X.toarray())


def set_channels(world: World, channels: int) -> None:
    image = np.zeros((channels, 100, 100), dtype=np.uint8)
    world.query.images["he"] = Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=list(range(channels)))


def rename_genes(world: World, sample: str, rename: Callable[[int, str], str]) -> None:
    table = world.sections[sample].tables["table"]
    table.var_names = [rename(i, name) for i, name in enumerate(table.var_names)]


def drop_mpp(world: World) -> None:
    world.query.attrs["ragst"]["image_mpp"].clear()


def add_table(world: World, name: str) -> None:
    world.query.tables[name] = world.table.copy()


def move_spots(world: World) -> None:
    set_transformation(
        world.query.shapes["spots"], Affine(np.array([[1, 0, 9e4], [0, 1, 0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    )


def case_two_frames(world: World) -> None:
    for element in (world.query.shapes["spots"], world.query.images["he"]):
        set_transformation(element, Identity(), "second")
    world.embed_query()


def case_no_frame(world: World) -> None:
    set_transformation(world.query.shapes["spots"], {"elsewhere": Identity()}, set_all=True)
    world.embed_query()


def case_anisotropic(world: World) -> None:
    set_transformation(world.query.shapes["spots"], Scale([1.0, 1.3], axes=("x", "y")))
    world.embed_query()


def case_off_image(world: World) -> None:
    move_spots(world)
    world.embed_query()


def case_channels(world: World, channels: int) -> None:
    set_channels(world, channels)
    world.embed_query()


def case_named_channels(world: World) -> None:
    image = np.zeros((3, 100, 100), dtype=np.uint8)
    names = ["DAPI", "CD8", "PanCK"]
    world.query.images["he"] = Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=names)
    world.embed_query()


def case_float_image(world: World) -> None:
    image = np.full((3, 100, 100), -4.0)
    world.query.images["he"] = Image2DModel.parse(image, dims=("c", "y", "x"))
    world.embed_query()


def case_zero_spots(world: World) -> None:
    # Past the validation of SpatialData, as a query or an edit in place can leave it.
    world.query.shapes.data["spots"] = world.query.shapes["spots"].iloc[:0]
    world.embed_query()


def case_zero_rows(world: World) -> None:
    world.query.tables.data["table"] = world.table[:0].copy()
    world.embed_query()


def case_rows_without_shapes(world: World) -> None:
    world.query.shapes["spots"] = world.query.shapes["spots"].iloc[3:]
    world.embed_query()


def case_duplicated_ids(world: World) -> None:
    ids = world.table.obs["spot_id"].to_numpy().copy()
    ids[1] = ids[0]
    world.table.obs["spot_id"] = ids
    world.embed_query()


def case_two_regions(world: World) -> None:
    shapes = world.query.shapes["spots"].copy()
    world.query.shapes["more"] = ShapesModel.parse(shapes)
    table = world.table.copy()
    half = ["spots"] * (table.n_obs // 2) + ["more"] * (table.n_obs - table.n_obs // 2)
    table.obs["region"] = half
    del table.uns["spatialdata_attrs"]
    world.query.tables["table"] = TableModel.parse(
        table, region=["spots", "more"], region_key="region", instance_key="spot_id"
    )
    world.embed_query(table_key="table")


def case_no_mpp(world: World) -> None:
    drop_mpp(world)
    world.embed_query()


def case_no_pitch(world: World) -> None:
    del world.query.tables["table"], world.query.shapes["spots"]
    rg.pp.set_image_mpp(world.query, image_key="he")


def case_grid_no_mpp(world: World) -> None:
    drop_mpp(world)
    rg.pp.tile_grid(world.query)


def case_empty_slide(world: World) -> None:
    world.query.images["he"] = Image2DModel.parse(np.full((3, 600, 600), 240, dtype=np.uint8), dims=("c", "y", "x"))
    rg.pp.tile_grid(world.query, tile_px=64, mpp=1.0)


def case_nan_encoder(world: World) -> None:
    import torch

    world.embed_query(model=lambda tiles: torch.full((len(tiles), 2), torch.nan), key_added="X_nan")


def case_nan_reference(world: World) -> None:
    world.sections["donor2"].tables["table"].obsm["X_colour"][2] = np.inf
    world.reference()


def case_nan_query(world: World) -> None:
    reference = world.fitted()
    world.table.obsm["X_colour"][2] = np.nan
    rg.tl.predict(world.query, reference)


def case_negative(world: World) -> None:
    edit_counts(world, lambda x: x - 1)
    world.reference()


def case_nonfinite(world: World) -> None:
    edit_counts(world, lambda x: np.where(x > 5, np.nan, x))
    world.reference()


def case_logged(world: World) -> None:
    edit_counts(world, lambda counts: np.log1p(counts / 2))
    world.reference()


def case_not_logged(world: World) -> None:
    world.reference(unit="log1p_cp10k")


def case_truth_logged(world: World) -> None:
    rg.tl.predict(world.query, world.fitted())
    world.table.X = np.log1p(world.table.X.toarray())
    rg.tl.evaluate(world.query)


def case_no_shared_genes(world: World) -> None:
    rename_genes(world, "donor2", lambda i, name: f"OTHER{i}")
    world.reference()


def case_few_shared_genes(world: World) -> None:
    rename_genes(world, "donor2", lambda i, name: name if i < 150 else f"OTHER{i}")
    world.reference()


def case_mixed_names(world: World) -> None:
    rename_genes(world, "donor2", lambda i, name: name if i % 2 else f"ENSG{i:011d}")
    world.reference()


def case_symbols_and_ids(world: World) -> None:
    rename_genes(world, "donor2", lambda i, name: f"ENSG{i:011d}")
    world.reference()


def case_log_duplicates(world: World) -> None:
    for sample in ("donor1", "donor2"):
        table = world.sections[sample].tables["table"]
        counts = table.X.toarray()
        table.X = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    names = list(world.sections["donor2"].tables["table"].var_names)
    names[3] = names[2]
    world.sections["donor2"].tables["table"].var_names = names
    world.reference(unit="log1p_cp10k")


def case_other_encoder(world: World) -> None:
    reference = world.fitted()

    class Other(type(world.embed["model"])):
        name = "other"

    world.embed_query(model=Other(), overwrite=True)
    rg.tl.predict(world.query, reference)


def case_other_width(world: World) -> None:
    reference = world.fitted()
    world.table.obsm["X_colour"] = world.table.obsm["X_colour"][:, :5]
    rg.tl.predict(world.query, reference)


def case_other_mpp_in_bank(world: World) -> None:
    rg.pp.embed_tiles(world.sections["donor2"], **(world.embed | {"mpp": 1.0}))
    world.reference()


def case_only_own_donor(world: World) -> None:
    reference = rg.tl.build_reference({"donor3": world.query}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(world.query, reference)


def case_where_leaves_nothing(world: World) -> None:
    reference = rg.tl.build_reference(world.sections, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(world.query, reference, where={"donor": "donor3"})


def case_n_neighbors_eligible(world: World) -> None:
    reference = world.fitted()
    mask = np.zeros(reference.n_obs, dtype=bool)
    mask[:4] = True
    rg.tl.predict(world.query, reference, n_neighbors=5, where=mask)


def case_changed_reference(world: World) -> None:
    reference = world.fitted()
    rg.tl.predict(world.query, reference[5:].copy())


def case_future_schema(world: World) -> None:
    reference = world.fitted()
    reference.uns["ragst"]["schema_version"] = 99
    rg.tl.predict(world.query, reference)


def case_foreign_header(world: World) -> None:
    world.fitted()
    rg.tl.predict(world.query, AnnData(np.ones((3, 3), dtype=np.float32)))


def case_existing_table(world: World) -> None:
    add_table(world, "counts2")
    rg.tl.predict(world.query, world.fitted(), table_key="table", key_added="counts2")


def case_name_of_shapes(world: World) -> None:
    rg.tl.predict(world.query, world.fitted(), key_added="Spots")


def case_predicted_as_reference(world: World) -> None:
    rg.tl.predict(world.query, world.fitted())
    rg.tl.build_reference({"a": world.query}, use_rep="X_colour", table_key="predicted")


def case_two_tables(world: World) -> None:
    reference = world.fitted()
    add_table(world, "table2")
    rg.tl.predict(world.query, reference)


def case_no_header(world: World) -> None:
    reference = world.fitted()
    del world.table.uns["ragst"]["embeddings"]["X_colour"]
    rg.tl.predict(world.query, reference)


def case_missing_donor(world: World) -> None:
    donor = world.table.obs["donor"].astype(object)
    donor.iloc[0] = None
    world.table.obs["donor"] = donor
    rg.tl.build_reference({"a": world.query}, use_rep="X_colour")


def case_constant_embedding(world: World) -> None:
    reference = world.reference(standardize=False)
    reference.obsm["X_colour"] = np.ones_like(reference.obsm["X_colour"])
    rg.tl.fit(reference, method="knn", n_neighbors=5)


def case_nan_at_fit(world: World, method: str) -> None:
    reference = world.reference()
    reference.obsm["X_colour"][2] = np.nan
    rg.tl.fit(reference, method=method, n_neighbors=5)


def case_older_fit(world: World) -> None:
    reference = world.fitted()
    reference.uns["ragst"]["fit"]["schema_version"] = 0
    rg.tl.predict(world.query, reference)


def case_older_reference(world: World) -> None:
    reference = world.reference()
    reference.uns["ragst"]["schema_version"] = 0
    rg.tl.fit(reference, n_neighbors=10)


def case_rag_n_neighbors_eligible(world: World) -> None:
    reference = world.fitted(method="rag", options=QUICK)
    mask = np.arange(reference.n_obs) < 4
    rg.tl.predict(world.query, reference, n_neighbors=5, where=mask)


def case_nothing_varies(world: World, method: str) -> None:
    reference = world.reference()
    reference.X = type(reference.X)(np.ones(reference.shape, dtype=np.float32))
    rg.tl.fit(reference, method=method, n_neighbors=5)


def fit_rag(**options: Any) -> Callable[[World], Any]:
    """A fit of the default method with some options."""
    return lambda world: world.fitted(method="rag", options=options)


QUICK = {"max_steps": 2, "n_seeds": 1, "n_train_genes": 30}

Case = tuple[Callable[[World], Any], type[Exception], list[str]]
CASES: dict[str, Case] = {
    # keys
    "image key": (lambda w: w.embed_query(image_key="hee"), KeyError, ["'hee'", "'he'", "Did you mean"]),
    "shapes key": (lambda w: w.embed_query(shapes_key="spot"), KeyError, ["'spot'", "'spots'"]),
    "table key": (lambda w: w.embed_query(table_key="tabel"), KeyError, ["'tabel'", "'table'"]),
    "use_rep in the reference": (lambda w: w.reference(use_rep="X_color"), KeyError, ["'X_color'", "'X_colour'"]),
    "use_rep in the query": (
        lambda w: rg.tl.predict(w.query, w.fitted(), use_rep="X_nope"),
        KeyError,
        ["X_nope", "X_colour", "embed_tiles"],
    ),
    "donor key": (lambda w: w.reference(donor_key="patient"), KeyError, ["'patient'", "'donor'", "donor_key="]),
    "obs column": (lambda w: w.reference(obs=["grade"]), KeyError, ["'grade'", "'label'"]),
    "layer": (lambda w: w.reference(layer="raw"), KeyError, ["'raw'", "to take X"]),
    "gene in another case": (
        lambda w: rg.tl.predict(w.query, w.fitted(), genes=["Epcam"]),
        ValueError,
        ["'Epcam'", "Did you mean 'EPCAM'"],
    ),
    "no mpp and no spots": (case_no_pitch, ValueError, ["`mpp=`", "`shapes_key=`", "Found 0 elements"]),
    "frame": (lambda w: w.embed_query(coordinate_system="visium"), ValueError, ["'visium'", "'global'"]),
    "where column": (lambda w: rg.tl.predict(w.query, w.fitted(), where={"organ": "x"}), KeyError, ["'organ'", "'donor'"]),
    "exclude column": (lambda w: rg.tl.predict(w.query, w.fitted(), exclude=("organ",)), KeyError, ["'organ'"]),
    "query gene": (lambda w: rg.tl.predict(w.query, w.fitted(), genes=["EPCAMM"]), ValueError, ["'EPCAMM'", "'EPCAM'"]),
    "reference gene": (lambda w: w.reference(genes=["EPCAMM"]), ValueError, ["'EPCAMM'", "'EPCAM'"]),
    "truth key": (
        lambda w: (rg.tl.predict(w.query, w.fitted()), rg.tl.evaluate(w.query, truth_key="truth")),
        KeyError,
        ["'truth'", "'table'"],
    ),
    "sources of an unknown sample": (lambda w: w.reference(sources={"d9": {}}), ValueError, ["'d9'", "'donor1'"]),
    "unknown field of sources": (
        lambda w: w.reference(sources={"donor1": {"licence": "MIT"}}),
        ValueError,
        ["'licence'", "'license'"],
    ),
    # geometry
    "no shared frame": (case_no_frame, ValueError, ["share no coordinate system", "'elsewhere'", "'global'"]),
    "several shared frames": (case_two_frames, ValueError, ["share 'global', 'second'", "coordinate_system="]),
    "anisotropic scale": (case_anisotropic, ValueError, ["scales x by 1 and y by 1.3"]),
    "no mpp": (case_no_mpp, ValueError, ["'he'", "set_image_mpp", "mpp=None"]),
    "no mpp for a grid": (case_grid_no_mpp, ValueError, ["'he'", "set_image_mpp"]),
    "all spots off the image": (case_off_image, ValueError, ["lie outside image 'he'", "'global'"]),
    "zero spots": (case_zero_spots, ValueError, ["'spots' is empty"]),
    "zero rows": (case_zero_rows, ValueError, ["no rows"]),
    "no tissue": (case_empty_slide, ValueError, ["No tissue", "tissue=False"]),
    "tile larger than the image": (
        lambda w: rg.pp.tile_grid(w.query, tile_px=9000, mpp=1.0),
        ValueError,
        ["No tile fits", "700"],
    ),
    "tile_px": (lambda w: w.embed_query(tile_px=0), ValueError, ["`tile_px` is 0"]),
    "mpp": (lambda w: w.embed_query(mpp=-1), ValueError, ["`mpp` is -1"]),
    "context": (lambda w: w.embed_query(context=()), ValueError, ["`context` is empty"]),
    "image mpp": (lambda w: rg.pp.set_image_mpp(w.query, mpp=0), ValueError, ["`mpp` is 0"]),
    # images
    "one channel": (lambda w: case_channels(w, 1), ValueError, ["1 channel", "RGB"]),
    "five channels": (lambda w: case_channels(w, 5), ValueError, ["5 channel", "RGB"]),
    "channels that are stains": (case_named_channels, ValueError, ["'DAPI'", "c_coords"]),
    "float pixels out of range": (case_float_image, ValueError, ["-4", "[0, 1]"]),
    # tables
    "rows without shapes": (case_rows_without_shapes, ValueError, ["3 of", "have no shape in 'spots'"]),
    "duplicated instance ids": (case_duplicated_ids, ValueError, ["instance ids in", "are duplicated", "spot_id"]),
    "table of two regions": (case_two_regions, ValueError, ["2 elements", "'more'"]),
    "missing donor": (case_missing_donor, ValueError, ["1 rows have no donor"]),
    "embedding without header": (case_no_header, ValueError, ["origin: unknown against encoder colour", "use_features"]),
    # embeddings
    "NaN from the encoder": (case_nan_encoder, ValueError, ["NaN or infinite", "amp=False"]),
    "NaN in the reference": (case_nan_reference, ValueError, ["sdatas['donor2']", "NaN or infinite in 1 rows"]),
    "NaN in the query": (case_nan_query, ValueError, ["NaN or infinite in 1 rows"]),
    "embeddings that do not vary": (case_constant_embedding, ValueError, ["do not vary"]),
    "other mpp within the bank": (case_other_mpp_in_bank, ValueError, ["made differently", "mpp"]),
    # counts and genes
    "negative counts": (case_negative, ValueError, ["sdatas['donor2']", "negative", "layer="]),
    "non-finite counts": (case_nonfinite, ValueError, ["NaN or infinite values where counts"]),
    "logged counts": (case_logged, ValueError, ["log-transformed already", "log1p_cp10k"]),
    "counts called logs": (case_not_logged, ValueError, ["not log1p of", "unit='counts'"]),
    "logged truth": (case_truth_logged, ValueError, ["The measured table", "log-transformed already"]),
    "no shared genes": (case_no_shared_genes, ValueError, ["share 0 genes", "200"]),
    "few shared genes": (case_few_shared_genes, ValueError, ["share 150 genes"]),
    "mixed symbols and ids": (case_mixed_names, ValueError, ["mix Ensembl ids"]),
    "symbols here, ids there": (case_symbols_and_ids, ValueError, ["donor1: symbol", "donor2: ensembl"]),
    "duplicated genes on a log scale": (case_log_duplicates, ValueError, ["names of genes", "are duplicated", "layer="]),
    "unknown unit": (lambda w: w.reference(unit="cpm"), ValueError, ["'cpm'", "'counts'"]),
    # reference and fit
    "empty list": (lambda w: rg.tl.build_reference([], use_rep="X"), ValueError, ["`sdatas` is empty"]),
    "not SpatialData": (lambda w: rg.tl.build_reference(w.table, use_rep="X"), TypeError, ["SpatialData"]),
    "predicted table as reference": (case_predicted_as_reference, ValueError, ["was predicted"]),
    "unknown method": (lambda w: w.fitted(method="knnn"), ValueError, ["'knnn'", "'knn'"]),
    "unknown option": (lambda w: w.fitted(options={"k": 3}), ValueError, ["no option 'k'", "'n_components'"]),
    "unknown metric": (lambda w: w.fitted(metric="l1"), ValueError, ["'l1'", "'cosine'"]),
    "more neighbours than rows": (lambda w: w.fitted(n_neighbors=10_000), ValueError, ["10000", "rows of the reference"]),
    "one group": (lambda w: w.fitted(group_key="tissue"), ValueError, ["one group only"]),
    "unfitted": (lambda w: rg.tl.predict(w.query, w.reference()), ValueError, ["not fitted", "rg.tl.fit"]),
    "reference changed after the fit": (case_changed_reference, ValueError, ["changed after it was fitted"]),
    "schema of the future": (case_future_schema, ValueError, ["schema version 99", "reads versions up to 2", "Install a release that reads version 99"]),
    "no reference": (case_foreign_header, ValueError, ["uns['ragst']", "build_reference"]),
    "older schema of the fit": (case_older_fit, ValueError, ["fit", "schema version 0", "works with version 1", "made again"]),
    "older schema of the reference": (
        case_older_reference,
        ValueError,
        ["header", "schema version 0", "works with version 2", "rg.io.read_reference"],
    ),
    **{
        f"NaN at the fit of {method}": (
            lambda w, method=method: case_nan_at_fit(w, method),
            ValueError,
            ["'X_colour'", "NaN or infinite in 1 rows", "fit again"],
        )
        for method in ("rag", "mlp", "mean")
    },
    **{
        f"nothing varies, {method}": (
            lambda w, method=method: case_nothing_varies(w, method),
            ValueError,
            [f"'{method}' has nothing to learn", "varies within a section"],
        )
        for method in ("rag", "mlp")
    },
    # options of the default method
    "unknown option of rag": (fit_rag(gates="softmax"), ValueError, ["'rag' has no option 'gates'", "'gate'"]),
    "unknown gate": (fit_rag(gate="sigmoid"), ValueError, ["`gate` is 'sigmoid'", "'softmax'", "'entmax'", "'gumbel'"]),
    "negative dropout": (fit_rag(dropout=-0.1), ValueError, ["`dropout` is -0.1", "at least 0"]),
    "dropout of everything": (fit_rag(dropout=1), ValueError, ["`dropout` is 1", "below 1"]),
    "no steps": (fit_rag(max_steps=0), ValueError, ["`max_steps` is 0", "at least 1"]),
    "no seeds": (fit_rag(n_seeds=0), ValueError, ["`n_seeds` is 0", "at least 1"]),
    "no sharpness": (fit_rag(sharpness=0), ValueError, ["`sharpness` is 0", "above 0"]),
    "no components": (fit_rag(n_components=0), ValueError, ["`n_components` is 0", "at least 1"]),
    "negative dropout of mlp": (
        lambda w: w.fitted(method="mlp", options={"dropout": -0.1}),
        ValueError,
        ["dropout", "-0.1"],
    ),
    "unknown weighting": (lambda w: w.fitted(options={"weighting": "near"}), ValueError, ["'near'", "'distance'"]),
    "cosine where a space is learned": (
        lambda w: w.fitted(method="rag", metric="cosine"),
        ValueError,
        ["'cosine'", "'rag' learns a space", "euclidean", "Leave it out"],
    ),
    "rng with a fraction": (lambda w: w.fitted(method="rag", rng=1.5), ValueError, ["`rng` is 1.5", "whole number"]),
    "rng that is a truth value": (lambda w: w.fitted(rng=True), ValueError, ["`rng` is True", "generator"]),
    "negative rng": (lambda w: w.fitted(method="rag", rng=-1), ValueError, ["`rng` is -1", "at least 0"]),
    "more neighbours of rag than rows": (
        lambda w: w.fitted(method="rag", n_neighbors=10_000),
        ValueError,
        ["`n_neighbors` is 10000", "rows of the reference"],
    ),
    "fewer candidates than neighbours": (
        lambda w: w.fitted(method="rag", n_candidates=9),
        ValueError,
        ["`n_candidates` is 9", "fewer than `n_neighbors` (10)"],
    ),
    "more neighbours of rag than eligible": (
        case_rag_n_neighbors_eligible,
        ValueError,
        ["`n_neighbors` is 5", "only 4 rows may be used", "Ask for 4"],
    ),
    # prediction
    "other encoder": (case_other_encoder, ValueError, ["made differently", "other", "colour"]),
    "other width": (case_other_width, ValueError, ["width: 5 against 12"]),
    "only the query's donor": (case_only_own_donor, ValueError, ["No row", "'donor3'"]),
    "where leaves nothing": (case_where_leaves_nothing, ValueError, ["No row", "`where`"]),
    "where value": (
        lambda w: rg.tl.predict(w.query, w.fitted(), where={"donor": "x"}),
        ValueError,
        ["no row has donor 'x'", "'donor1'"],
    ),
    "where mask": (lambda w: rg.tl.predict(w.query, w.fitted(), where=[True]), ValueError, ["boolean mask"]),
    "more neighbours than fitted": (
        lambda w: rg.tl.predict(w.query, w.fitted(), n_neighbors=11),
        ValueError,
        ["`n_neighbors` is 11", "fitted with 10"],
    ),
    "more neighbours than eligible": (case_n_neighbors_eligible, ValueError, ["`n_neighbors` is 5", "4 rows may be used"]),
    "unknown backend": (lambda w: rg.tl.predict(w.query, w.fitted(), backend="faiss"), ValueError, ["'faiss'", "'exact'"]),
    "existing table": (case_existing_table, ValueError, ["'counts2'", "key_added"]),
    "name of an element": (case_name_of_shapes, ValueError, ["'Spots'", "'spots'"]),
    "illegal name": (lambda w: rg.tl.predict(w.query, w.fitted(), key_added="a b"), ValueError, ["'a b'", "a_b"]),
    "two tables with the embedding": (case_two_tables, ValueError, ["`table_key` is needed", "'table2'"]),
    "unknown metric of evaluate": (
        lambda w: (rg.tl.predict(w.query, w.fitted()), rg.tl.evaluate(w.query, metrics=["pearsn"])),
        ValueError,
        ["'pearsn'", "'pearson'"],
    ),
}  # fmt: skip


def fingerprint(sdata: SpatialData) -> str:
    """Everything of an object that a failed call could have changed."""
    digest = hashlib.sha256(repr(sorted(name for _, name, _ in sdata.gen_elements())).encode())
    digest.update(repr(sdata.attrs).encode())
    for name, shapes in sorted(sdata.shapes.items()):
        digest.update(
            name.encode() + shapes.to_wkb().to_csv().encode() + repr(get_transformation(shapes, get_all=True)).encode()
        )
    for name, table in sorted(sdata.tables.items()):
        x = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
        digest.update(name.encode() + np.ascontiguousarray(x).tobytes())
        digest.update(table.obs.to_csv().encode() + repr(sorted(map(str, table.uns))).encode())
        digest.update(repr(table.uns.get("ragst", {}).get("embeddings", {})).encode())
        for key in sorted(table.obsm):
            digest.update(key.encode() + np.asarray(table.obsm[key]).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, sections, embed, monkeypatch):
    case, error, parts = CASES[name]
    world = World(sections, embed)
    states = {}
    # The state just before the call that fails, so that a case may break its object first.
    for module, function in [
        (rg.pp, "embed_tiles"), (rg.pp, "tile_grid"), (rg.pp, "set_image_mpp"), (rg.tl, "predict"),
        (rg.tl, "build_reference"), (rg.tl, "evaluate"), (rg.tl, "fit"),
    ]:  # fmt: skip
        original = getattr(module, function)

        def recorded(*args, _original=original, **kwargs):
            states.update({key: fingerprint(sdata) for key, sdata in sections.items()})
            return _original(*args, **kwargs)

        monkeypatch.setattr(module, function, recorded)
    with pytest.raises(error) as caught:
        case(world)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    if states:
        assert states == {key: fingerprint(sdata) for key, sdata in sections.items()}
