"""Which rows a query may use, and how a prediction remembers `where`."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from spatialdata import get_pyramid_levels
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import ragst_sd as rg
from ragst_sd._eligibility import recorded_where, where_of


@pytest.fixture
def shuffled(reference):
    """The same rows in another order."""
    return reference[np.random.default_rng(3).permutation(reference.n_obs)].copy()


@pytest.mark.parametrize("n_rows", [8, 13, None])
def test_a_mask_finds_its_rows_in_another_order(reference, n_rows):
    """Whatever the number of rows left over in the last byte."""
    rows = reference[:n_rows].copy()
    random = np.random.default_rng(0)
    mask = random.random(rows.n_obs) < 0.4
    ids = rows.obs_names.to_numpy()
    kept = recorded_where(ids, mask)
    np.testing.assert_array_equal(where_of(ids, kept), mask)
    order = random.permutation(rows.n_obs)
    np.testing.assert_array_equal(where_of(ids[order], kept), mask[order])


def test_a_mapping_is_kept_by_meaning(reference):
    where = {"donor": "donor1", "tissue": ["breast", 3, 4.0, "é"]}
    expected = {"donor": ["donor1"], "tissue": ["breast", "3", "4", "é"]}
    ids = reference.obs_names.to_numpy()
    assert where_of(ids, recorded_where(ids, where)) == expected
    assert where_of(ids, recorded_where(ids, None)) is None


@pytest.mark.parametrize(
    ("own", "is_said"), [("Donor_1", True), ("donor01", True), ("donor10", False), ("else", False)]
)
def test_a_donor_that_is_written_in_another_way_is_said(query, reference, caplog, own, is_said):
    query.tables["table"].obs["donor"] = own
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(query, reference)
    assert (f"donor {own!r} and 'donor1' of the reference count as different" in caplog.text) == is_said


def test_a_series_in_another_order_is_no_mask(query, fitted):
    sorted_rows = fitted.obs.sort_values("x_um")["donor"] == "donor1"
    with pytest.raises(ValueError, match=r"`where` is a Series whose index is not that of `reference\.obs`"):
        rg.tl.predict(query, fitted, where=sorted_rows)
    with pytest.raises(ValueError, match="`where` is a Series whose index"):
        rg.tl.predict(query, fitted, where=sorted_rows.reset_index(drop=True)[::-1])
    ordered = sorted_rows.loc[fitted.obs_names]
    numbered, named = ordered.reset_index(drop=True), ordered.set_axis(ordered.index.astype("string"))
    for mask in (ordered, named, numbered, numbered.sample(frac=1, random_state=0).sort_index()):
        table = rg.tl.predict(query, fitted, where=mask, inplace=False)
        assert set(table.uns["retrieval"]["cited"]["donor"]) == {"donor1"}


def test_values_of_where_that_no_row_has_are_said(query, fitted, caplog):
    rg.tl.predict(query, fitted, where={"donor": {"donor1", "donor2"}})
    assert "no row has" not in caplog.text
    table = rg.tl.predict(query, fitted, where={"donor": ["donor1", "donor02"]}, inplace=False)
    assert set(table.uns["retrieval"]["cited"]["donor"]) == {"donor1"}
    assert "`where`: no row has donor 'donor02'; there are 'donor1', 'donor2'." in caplog.text


@pytest.mark.parametrize("exclude", [{"donor": "donor1"}, None])
def test_exclude_names_columns_and_no_values(query, fitted, exclude):
    with pytest.raises(TypeError, match=r"`exclude` is a \w+; it names columns .*with `where`"):
        rg.tl.predict(query, fitted, exclude=exclude)


def as_another(query, embed, pixels, **transformations):
    """The spots on other pixels, of a donor with another name."""
    table = query.tables["table"]
    table.obs["donor"] = "someone"
    del table.obsm["X_colour"]
    query.images["he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=list("rgb"), **transformations)
    rg.pp.embed_tiles(query, **embed)
    return query


def brighter(pixels):
    return np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8), {}


def half_as_large(pixels):
    low = pixels.reshape(3, pixels.shape[1] // 2, 2, pixels.shape[2] // 2, 2).mean((2, 4)).round().astype(np.uint8)
    return low, {"transformations": {"global": Scale([2, 2], ("x", "y"))}}


def test_a_section_whose_name_begins_with_a_space_is_looked_at(sections):
    reference = rg.tl.build_reference({f" {name}": sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn")
    assert len(rg.tl.predict(sections["donor3"], reference, inplace=False))


@pytest.mark.parametrize("change", [brighter, half_as_large])
def test_a_section_of_the_reference_in_other_pixels_is_told(sections, fitted, embed, caplog, change):
    """Another hash, and the same tissue: nothing is as like it as it is itself."""
    query = sections["donor1"]
    pixels, parse = change(get_pyramid_levels(query.images["he"], n=0).to_numpy())
    rg.tl.predict(as_another(query, embed, pixels, **parse), fitted)
    assert "The query is the tissue of 'donor1' in the reference" in caplog.text
    # The resolution follows the pixels, of which nothing is to be said.
    assert "was embedded at" not in caplog.text
    caplog.clear()
    query.tables["table"].obs["donor"] = "donor1"
    rg.tl.predict(query, fitted)
    rg.tl.predict(sections["donor3"], fitted)
    assert "is the tissue of" not in caplog.text


def test_a_section_without_statistics_can_be_cited(sections):
    """Without standardisation they are not needed, so that sections can be renamed."""
    measured = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(measured, use_rep="X_colour", standardize=False)
    reference.obs["sample"] = [f"renamed {name}" for name in reference.obs["sample"]]
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    table = rg.tl.predict(sections["donor3"], reference, inplace=False)
    assert np.isfinite(table.X).all()


def test_spots_without_shapes_are_predicted(query, fitted):
    expected = rg.tl.predict(query, fitted, inplace=False).X
    del query.shapes["spots"]
    np.testing.assert_array_equal(rg.tl.predict(query, fitted, inplace=False).X, expected)


def test_a_reference_that_is_backed_by_a_file_is_named(query, fitted, tmp_path):
    fitted.write_h5ad(tmp_path / "r.h5ad")
    backed = ad.read_h5ad(tmp_path / "r.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"backed by .*r\.h5ad.*to_memory.*lazy=True"):
        rg.tl.predict(query, backed)
    rg.tl.predict(query, backed.to_memory())


EXCLUDED = [(), ("donor",), ("donor", "tissue")]


@pytest.fixture(scope="module")
def read_back(_sections, _reference, tmp_path_factory):
    """A section with a prediction for every way to restrict the rows, from disk."""
    query, reference = sd.deepcopy(_sections["donor3"]), _reference.copy()
    query.tables["table"].obs["tissue"] = "elsewhere"
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    mask = (reference.obs["donor"] == "donor2").to_numpy()
    for kind, where in {"mask": mask, "mapping": {"donor": ["donor2"]}, "nothing": None}.items():
        rg.tl.predict(query, reference, where=where, key_added=kind)
    for exclude in EXCLUDED:
        rg.tl.predict(query, reference, exclude=exclude, key_added="_".join(["without", *exclude]))
    path = tmp_path_factory.mktemp("eligible") / "s.zarr"
    query.write(path)
    return sd.read_zarr(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "mapping", "nothing"])
def test_where_outlives_zarr_and_a_new_order(read_back, query, shuffled, kind):
    table = read_back.tables[kind]
    found = where_of(shuffled.obs_names.to_numpy(), table.uns["retrieval"])
    rg.tl.fit(shuffled, method="knn", n_neighbors=5)
    again = rg.tl.predict(query, shuffled, where=found, inplace=False)
    assert list(rg.get.neighbors(again)["reference"]) == list(rg.get.neighbors(table)["reference"])
    np.testing.assert_allclose(again.X, table.X, atol=1e-5)
    if kind == "mask":
        np.testing.assert_array_equal(found, (shuffled.obs["donor"] == "donor2").to_numpy())


@pytest.mark.slow
@pytest.mark.parametrize("exclude", EXCLUDED)
def test_exclude_outlives_zarr(read_back, reference, exclude):
    key = "_".join(["without", *exclude])
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    assert [str(one) for one in np.atleast_1d(read_back.tables[key].uns["retrieval"]["exclude"])] == list(exclude)
    frame = rg.get.influence(read_back, reference, prediction_key=key, progress=False)
    assert set(frame["group"]) == {"donor1", "donor2"}
