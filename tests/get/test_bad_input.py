"""Bad input to `rg.get`: the error names what is missing, and nothing changes.

Each case breaks a prediction or its reference and calls a function; it names the exception and parts of its message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd._fields import COMMON_FIELDS, TASK_FIELDS
from ragst_sd._results import OBS_COLUMNS, VAR_COLUMNS, require_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@dataclass
class World:
    """What a case may break."""

    query: SpatialData
    reference: AnnData

    @property
    def table(self) -> AnnData:
        return self.query.tables["predicted"]

    def explain(self, reference="own", **kwargs):
        spot, gene = self.table.obs_names[0], self.table.var_names[0]
        given = self.reference if isinstance(reference, str) else reference
        return rg.get.explain(self.query, given, **({"obs_names": spot, "genes": gene} | kwargs))

    def influence(self, **kwargs):
        return rg.get.influence(self.query, self.reference, progress=False, **kwargs)

    def neighbors(self, **kwargs):
        return rg.get.neighbors(self.query, **kwargs)

    def reverse(self, **kwargs):
        row = self.table.uns["retrieval"]["cited"]["reference"].iloc[0]
        return rg.get.influence(self.query, **({"rows": row} | kwargs))


CALLS: dict[str, Callable[[World], object]] = {
    "neighbors": World.neighbors,
    "reverse": lambda w: rg.get.influence(w.query, rows="donor1:0x0"),
    "influence": World.influence,
    "explain": World.explain,
}
NEED_REFERENCE = {name: CALLS[name] for name in ("influence", "explain")}


def drop(where: str, name: str) -> Callable[[World], None]:
    return lambda w: getattr(w.table, where).__delitem__(name)


def drop_field(name: str) -> Callable[[World], None]:
    return lambda w: w.table.uns["retrieval"].__delitem__(name)


def from_another_tool(w: World) -> None:
    table = w.query.tables["table"].copy()
    w.query.tables["predicted"] = table


def concatenated(w: World) -> None:
    """`anndata.concat` keeps the arrays and drops the header."""
    attrs = w.table.uns["spatialdata_attrs"]
    table = ad.concat([w.table[:5], w.table[5:]])
    table.uns["spatialdata_attrs"] = attrs
    w.query.tables["predicted"] = table


def cut_cited(w: World) -> None:
    header = w.table.uns["retrieval"]
    header["cited"] = header["cited"].iloc[:2]


def newer(w: World) -> None:
    w.table.uns["retrieval"]["schema_version"] = 99


STRIPPED = {
    "no header": (drop("uns", "retrieval"), ["lacks uns['retrieval']", "predict again"]),
    "another tool's table": (from_another_tool, ["lacks uns['retrieval'], obsm['retrieval_rows']"]),
    "concatenated": (concatenated, ["lacks uns['retrieval']", "anndata.concat"]),
    "no cited": (drop_field("cited"), ["lacks uns['retrieval']['cited']"]),
    "no sources": (drop_field("sources"), ["lacks uns['retrieval']['sources']"]),
    "no hash": (drop_field("reference_hash"), ["lacks uns['retrieval']['reference_hash']"]),
    "no pointers": (drop("obsm", "retrieval_rows"), ["lacks obsm['retrieval_rows']"]),
    "no weights": (drop("obsm", "retrieval_weights"), ["lacks obsm['retrieval_weights']"]),
    "cited cut short": (cut_cited, ["lacks lines of uns['retrieval']['cited']"]),
    "newer schema": (newer, ["schema version 99"]),
}


@pytest.fixture
def world(predicted, fitted):
    return World(predicted, fitted)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", STRIPPED)
def test_stripped_provenance(world, name, call):
    change, parts = STRIPPED[name]
    change(world)
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        CALLS[call](world)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


FIELDS = (*COMMON_FIELDS, *TASK_FIELDS["histology"], "level_rows")


def test_header_has_no_other_fields_than_those_that_are_required(world):
    """A field that `rg.tl.predict` comes to write has to be named as required, or here as one that may be missing."""
    # Nothing rests on the share of neighbours that an approximate search finds; of the others, where they are missing, the
    # check that they are for is left out, or made of the whole reference.
    assert set(world.table.uns["retrieval"]) == {*FIELDS, "search_recall", "prediction_id", "n_predicted", "frame_hash"}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_header_is_missed(world, field):
    del world.table.uns["retrieval"][field]
    missing = re.escape(f"lacks uns['retrieval']['{field}']")
    for call in CALLS.values():
        with pytest.raises(ValueError, match=missing):
            call(world)
    for other in (
        lambda: rg.pl.viewer(world.query, world.reference, path=None),
        lambda: rg.tl.report(world.query, world.reference, path="never_written"),
        lambda: rg.tl.evaluate(world.query),
    ):
        with pytest.raises(ValueError, match=missing):
            other()


def test_masks_of_where_and_levels_of_spots_are_missed_too(query, fitted):
    rg.tl.predict(query, fitted, where=np.arange(fitted.n_obs) % 2 == 0)
    header = query.tables["predicted"].uns["retrieval"]
    del header["where_mask"]
    with pytest.raises(ValueError, match=r"lacks uns\['retrieval'\]\['where_mask'\]"):
        rg.get.neighbors(query)
    rg.tl.predict(query, fitted)
    header = query.tables["predicted"].uns["retrieval"]
    header["level_rows"] = np.repeat(np.atleast_2d(header["level_rows"]), 2, axis=0)
    with pytest.raises(ValueError, match=r"lacks obs\['level'\]"):
        rg.get.neighbors(query)


def test_other_tasks_have_fields_of_their_own(world):
    """A table that was predicted from anything but an image is traced all the same."""
    expected = rg.get.neighbors(world.query)
    header = world.table.uns["retrieval"]
    world.table.uns["retrieval"] = {name: header[name] for name in COMMON_FIELDS} | {"task": "other"}
    assert rg.get.neighbors(world.query).equals(expected)


@pytest.mark.parametrize("name", [*OBS_COLUMNS, *VAR_COLUMNS])
def test_columns_are_missed_by_name(world, name):
    columns, where = (world.table.var, "var") if name in VAR_COLUMNS else (world.table.obs, "obs")
    require_columns(world.table, [name])
    del columns[name]
    spot, gene = world.table.obs_names[0], world.table.var_names[0]
    at = {"obs_names": spot, "genes": gene}
    calls = {"report": lambda: rg.tl.report(world.query, world.reference, path="never_written")}
    if where == "obs":
        calls["viewer"] = lambda: rg.pl.viewer(world.query, world.reference, path=None)
    if name in ("n_donors", "out_of_reference"):
        calls["explain"] = lambda: rg.pl.explain(world.query, world.reference, **at)
    if name in ("n_donors", "out_of_reference", "effective_n"):
        calls["retrieval"] = lambda: rg.pl.retrieval(world.query, world.reference, **at)
    if name in ("evidence_share", "out_of_reference", "effective_n"):
        calls["evaluate"] = lambda: rg.tl.evaluate(world.query)
    for call in calls.values():
        with pytest.raises(KeyError, match=f"'{name}' not found in `table.{where}`.*predict again"):
            call()


def test_genes_are_named(world):
    with pytest.raises(TypeError, match="NoneType"):
        world.explain(genes=None)


def other_reference(w: World) -> None:
    w.reference = w.reference[:-1].copy()


def edited_values(w: World) -> None:
    w.reference.X = w.reference.X * 2


def not_a_reference(w: World) -> None:
    w.reference = w.query.tables["table"]


REFERENCES = {
    "another one": (other_reference, ValueError, ["made from a reference with hash"]),
    "edited": (edited_values, ValueError, ["made from a reference with hash"]),
    "missing": (lambda w: setattr(w, "reference", None), ValueError, ["The reference is needed"]),
    "not one": (not_a_reference, ValueError, ["rg.tl.build_reference"]),
    "not a table": (lambda w: setattr(w, "reference", "ref.zarr"), TypeError, ["`reference` is a str"]),
}


@pytest.mark.parametrize("call", NEED_REFERENCE)
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_that_is_not_the_one(world, name, call):
    change, error, parts = REFERENCES[name]
    change(world)
    with pytest.raises(error) as caught:
        NEED_REFERENCE[call](world)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def refit(w: World, **kwargs) -> None:
    rg.tl.fit(w.reference, n_neighbors=10, **kwargs)


def move_embedding(w: World) -> None:
    table = w.query.tables["table"]
    table.obsm["X_colour"] = table.obsm["X_colour"][::-1].copy()


def edit_prediction(w: World) -> None:
    w.table.X[3] += 1


def donor_renamed(w: World) -> None:
    w.query.tables["table"].obs["donor"] = "donor1"


def drop_spots(w: World) -> None:
    w.query.tables["table"] = w.query.tables["table"][4:].copy()


CASES: dict[str, tuple[Callable[[World], object], type[Exception], list[str]]] = {
    "explain: gene": (lambda w: w.explain(genes="EPCAMM"), KeyError, ["no gene 'EPCAMM'", "Did you mean"]),
    "explain: some genes": (lambda w: w.explain(genes=[w.table.var_names[0], "NOPE"]), KeyError, ["no gene 'NOPE'"]),
    "explain: spot": (lambda w: w.explain(obs_names="nowhere"), KeyError, ["`obs_names`", "no spot 'nowhere'"]),
    "explain: no evidence": (
        lambda w: (w.table.layers.__delitem__("evidence"), w.explain()),
        KeyError,
        ["'evidence' not found in `table.layers`"],
    ),
    "explain: fitted anew without sections": (
        lambda w: (refit(w, method="ridge"), w.explain()),
        ValueError,
        ["fitted anew", "'ridge'", "method='knn'"],
    ),
    "neighbors: spot": (lambda w: w.neighbors(obs_names=["nowhere"]), KeyError, ["`obs_names`", "no spot 'nowhere'"]),
    "neighbors: table": (lambda w: w.neighbors(prediction_key="tabel"), KeyError, ["'tabel'", "Did you mean 'table'"]),
    "neighbors: not an object": (lambda w: rg.get.neighbors("x.zarr"), TypeError, ["`sdata` is a str"]),
    "influence: gene": (lambda w: w.influence(genes="NOPE"), KeyError, ["`genes`", "no gene 'NOPE'"]),
    "influence: no genes": (lambda w: w.influence(genes=[]), ValueError, ["`genes` is empty"]),
    "influence: spot": (lambda w: w.influence(obs_names="nowhere"), KeyError, ["no spot 'nowhere'"]),
    "influence: column": (lambda w: w.influence(group_key="patient"), KeyError, ["'patient'", "'donor'", "'license'"]),
    "influence: bare table": (
        lambda w: rg.get.influence(w.table, w.reference),
        TypeError,
        ["bare predicted table has no embeddings", "obsm['X_colour']"],
    ),
    "influence: fitted anew": (
        lambda w: (refit(w, method="knn", options={"sharpness": 3.0}), w.influence()),
        ValueError,
        ["has been fitted anew since"],
    ),
    "influence: changed after the fit": (
        lambda w: (w.reference.obsm["retrieval_key"].__imul__(2), w.influence()),
        ValueError,
        ["does not match its hash"],
    ),
    "influence: embedding gone": (
        lambda w: (w.query.tables["table"].obsm.__delitem__("X_colour"), w.influence()),
        KeyError,
        ["'X_colour' not found", "rg.pp.embed_tiles"],
    ),
    "influence: table gone": (
        lambda w: (w.query.tables.__delitem__("table"), w.influence()),
        KeyError,
        ["'table' not found in `sdata.tables`"],
    ),
    "influence: embedding moved": (
        lambda w: (move_embedding(w), w.influence()),
        ValueError,
        ["not what its provenance gives today", "obsm['X_colour']"],
    ),
    "influence: prediction edited": (
        lambda w: (edit_prediction(w), w.influence()),
        ValueError,
        ["in 1 of ", " spots (first: ", "was changed after the prediction"],
    ),
    "influence: donor renamed": (
        lambda w: (donor_renamed(w), w.influence()),
        ValueError,
        ["not what its provenance gives today", "donors of the spots"],
    ),
    "influence: spots gone": (
        lambda w: (drop_spots(w), w.influence()),
        ValueError,
        ["no longer has 4 of the predicted spots"],
    ),
    "reverse: row": (lambda w: w.reverse(rows="donor1"), KeyError, ["'donor1'", "Give the `reference`"]),
    "reverse: no rows": (lambda w: w.reverse(rows=[]), ValueError, ["`rows` is empty"]),
    "reverse: genes": (lambda w: w.reverse(genes="A"), ValueError, ["`genes` has no meaning with `rows`"]),
    "reverse: spot": (lambda w: w.reverse(obs_names="nowhere"), KeyError, ["no spot 'nowhere'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(world, name):
    case, error, parts = CASES[name]
    with pytest.raises(error) as caught:
        case(world)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("method", ["ridge", "mlp", "mean"])
def test_methods_that_cite_nobody_have_no_influence(query, reference, method, quick):
    rg.tl.fit(reference, method=method, n_neighbors=10, options=quick(method), progress=False)
    rg.tl.predict(query, reference)
    with pytest.raises(ValueError, match=f"Method '{method}' cites no rows.*fit without it"):
        rg.get.influence(query, reference)
    with pytest.raises(KeyError, match="no spot of the prediction cites"):
        rg.get.influence(query, rows="donor1:0x0")


def test_nothing_changes(world):
    """A call that succeeds leaves everything as it is, too."""
    before = {name: np.array(world.table.obsm[name]) for name in world.table.obsm}
    x, obs, allowed = world.table.X.copy(), world.table.obs.copy(), world.reference.obs.copy()
    world.influence(), world.explain(), world.neighbors(), world.reverse()
    np.testing.assert_array_equal(world.table.X, x)
    assert world.table.obs.equals(obs) and world.reference.obs.equals(allowed)
    for name, values in before.items():
        np.testing.assert_array_equal(world.table.obsm[name], values)
