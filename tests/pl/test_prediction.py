"""`rg.pl.prediction`: spots, colours and titles against the tables."""

from __future__ import annotations

from types import SimpleNamespace

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import shapely
from matplotlib.collections import EllipseCollection, PathCollection

import ragst_sd as rg
from ragst_sd.pl._section import draw_spots


@pytest.fixture
def genes(predicted):
    table = predicted.tables["predicted"]
    return list(table.var_names[np.argsort(-np.asarray(table.X).var(axis=0))[:4]])


def normalized(table, gene):
    """log1p of counts per 10,000, written out."""
    counts = table.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, table.var_names.get_loc(gene)]


def spots(ax, label):
    return next(one for one in ax.collections if one.get_label() == label)


def colorbars(ax):
    return [one for panel in ax.figure.axes for one in panel.child_axes if one.get_label() == "colorbar"]


def test_spots_are_circles_of_true_size_coloured_by_the_prediction(predicted, genes):
    axes = rg.pl.prediction(predicted, genes=genes[0], truth_key=False, return_ax=True)
    assert list(axes) == genes[:1]
    assert list(axes[genes[0]]) == ["predicted"]
    ax, table = axes[genes[0]]["predicted"], predicted.tables["predicted"]
    drawn = spots(ax, "predicted")
    assert isinstance(drawn, EllipseCollection)
    np.testing.assert_allclose(drawn.get_array(), table[:, genes[0]].X.ravel(), atol=1e-6)
    np.testing.assert_allclose(drawn.get_offsets(), table.obsm["spatial"])
    np.testing.assert_allclose(drawn.get_widths(), 2 * predicted.shapes["spots"]["radius"])
    assert len(ax.images) == 1
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_title(loc="left") == f"{genes[0]} predicted"
    assert [one.get_ylabel() for one in colorbars(ax)] == ["log1p(counts per 10,000)"]
    (bar,) = [one for one in ax.get_children() if one.get_gid() == "scale bar"]
    (line,) = bar.size_bar.get_children()
    assert bar.txt_label.get_text() == f"{line.get_width():g} µm"


def test_measured_and_predicted_share_a_scale_and_the_difference_has_its_own(predicted, genes):
    gene = genes[0]
    axes = rg.pl.prediction(predicted, genes=gene, truth_key="table", return_ax=True)[gene]
    assert list(axes) == ["measured", "predicted", "difference"]
    values = predicted.tables["predicted"][:, gene].X.ravel().astype(float)
    truth = normalized(predicted.tables["table"], gene)
    drawn = {kind: spots(ax, kind) for kind, ax in axes.items()}
    np.testing.assert_allclose(drawn["measured"].get_array(), truth, atol=1e-5)
    np.testing.assert_allclose(drawn["predicted"].get_array(), values, atol=1e-6)
    np.testing.assert_allclose(drawn["difference"].get_array(), values - truth, atol=1e-5)
    assert drawn["measured"].get_clim() == drawn["predicted"].get_clim()
    low, high = drawn["difference"].get_clim()
    assert low == -high
    assert low <= np.quantile(values - truth, 0.01) and high >= np.quantile(values - truth, 0.99)
    r = np.corrcoef(values, truth)[0, 1]
    assert axes["predicted"].get_title(loc="left") == f"predicted, r = {r:.2f}"
    assert axes["measured"].get_title(loc="left") == f"{gene} measured"
    # Each map has a bar, so that the gaps between them are even.
    labels = [one.get_ylabel() for one in colorbars(axes["measured"])]
    assert labels == ["log1p(counts per 10,000)", "log1p(counts per 10,000)", "difference"]
    assert np.all(drawn["difference"].get_linewidths() > 0) and np.all(drawn["predicted"].get_linewidths() == 0)


def test_limits_can_be_given_and_clipped_ends_are_pointed(predicted, genes):
    gene = genes[0]
    axes = rg.pl.prediction(predicted, genes=gene, vmin=-1, vmax=0.5, return_ax=True)[gene]
    drawn = spots(axes["predicted"], "predicted")
    assert drawn.get_clim() == (-1, 0.5)
    assert drawn.colorbar.extend == "max"
    with pytest.raises(ValueError, match=r"run from 3 to 0\.5"):
        rg.pl.prediction(predicted, genes=gene, vmin=3, vmax=0.5)


def test_constant_gene_gets_a_scale(predicted, genes):
    table = predicted.tables["predicted"]
    table.X[:, table.var_names.get_loc(genes[0])] = 2.0
    axes = rg.pl.prediction(predicted, genes=genes[0], truth_key=False, return_ax=True)[genes[0]]
    assert spots(axes["predicted"], "predicted").get_clim() == (1.5, 2.5)


def test_genes_are_rows_beside_the_truth(predicted, genes):
    axes = rg.pl.prediction(predicted, genes=genes[:2], truth_key="table", return_ax=True)
    assert list(axes) == genes[:2]
    axes[genes[0]]["predicted"].figure.canvas.draw()
    first, second = (axes[gene]["predicted"].get_position() for gene in genes[:2])
    assert first.y0 > second.y1
    assert first.x0 == pytest.approx(second.x0)


def test_genes_without_truth_are_wrapped(predicted, genes):
    axes = rg.pl.prediction(predicted, genes=genes, truth_key=False, return_ax=True)
    axes[genes[0]]["predicted"].figure.canvas.draw()
    places = [axes[gene]["predicted"].get_position() for gene in genes]
    assert places[0].y0 == pytest.approx(places[2].y0)
    assert places[0].x1 < places[1].x0
    assert places[3].y1 < places[0].y0
    assert places[3].x0 == pytest.approx(places[0].x0)


def test_spots_without_a_value_are_hollow(predicted, genes):
    gene, table = genes[0], predicted.tables["predicted"]
    table.X[[1, 4]] = np.nan
    axes = rg.pl.prediction(predicted, genes=gene, truth_key="table", return_ax=True)[gene]
    for kind, n_hollow in {"measured": 0, "predicted": 2, "difference": 2}.items():
        hollow = [one for one in axes[kind].collections if one.get_label() == "no value"]
        assert sum(len(one.get_offsets()) for one in hollow) == n_hollow
        assert len(spots(axes[kind], kind).get_array()) == table.n_obs - n_hollow
    hollow = next(one for one in axes["predicted"].collections if one.get_label() == "no value")
    np.testing.assert_allclose(hollow.get_offsets(), table.obsm["spatial"][[1, 4]])
    assert len(hollow.get_facecolor()) == 0
    kept = np.setdiff1d(np.arange(table.n_obs), [1, 4])
    r = np.corrcoef(table[:, gene].X.ravel()[kept], normalized(predicted.tables["table"], gene)[kept])[0, 1]
    assert axes["predicted"].get_title(loc="left") == f"predicted, r = {r:.2f}"


def test_spots_that_were_not_measured_are_hollow(predicted, genes):
    predicted.tables["table"] = predicted.tables["table"][3:].copy()
    axes = rg.pl.prediction(predicted, genes=genes[0], truth_key="table", return_ax=True)[genes[0]]
    for kind, n_hollow in {"measured": 3, "predicted": 0, "difference": 3}.items():
        hollow = [one for one in axes[kind].collections if one.get_label() == "no value"]
        assert sum(len(one.get_offsets()) for one in hollow) == n_hollow


def test_gene_without_any_value_is_drawn_hollow(predicted, genes):
    table = predicted.tables["predicted"]
    table.X[:, table.var_names.get_loc(genes[0])] = np.nan
    axes = rg.pl.prediction(predicted, genes=genes[0], truth_key="table", return_ax=True)[genes[0]]
    axes["predicted"].figure.canvas.draw()
    assert axes["predicted"].get_title(loc="left") == "predicted, r = n/a"


def test_tiles_are_squares_in_pixels_of_the_image(query, fitted, genes, embed):
    from spatialdata.transformations import Scale, set_transformation

    rg.pp.tile_grid(query, image_key="he", tile_px=32, mpp=2.0, key_added="tiles", table_key="tiles_table")
    edges = query.shapes["tiles"].geometry.scale(0.5, 0.5, origin=(0, 0))
    query.shapes["tiles"]["geometry"] = edges.to_numpy()
    set_transformation(query.shapes["tiles"], Scale([2.0, 2.0], axes=("x", "y")), to_coordinate_system="global")
    rg.pp.embed_tiles(query, table_key="tiles_table", **embed)
    rg.tl.predict(query, fitted, table_key="tiles_table", key_added="on_tiles")
    axes = rg.pl.prediction(query, genes=genes[0], prediction_key="on_tiles", return_ax=True)[genes[0]]
    drawn = spots(axes["predicted"], "predicted")
    assert isinstance(drawn, PathCollection)
    extents = np.array([path.get_extents().size for path in drawn.get_paths()])
    np.testing.assert_allclose(extents, 64)
    centers = [path.get_extents().get_points().mean(axis=0) for path in drawn.get_paths()]
    np.testing.assert_allclose(centers, query.tables["on_tiles"].obsm["spatial"])


@pytest.mark.parametrize("is_clockwise", [False, True])
def test_holes_of_outlines_stay_empty(is_clockwise):
    outer, inner = ([(a, a), (b, a), (b, b), (a, b)] for a, b in ((0, 9), (3, 6)))
    outline = shapely.Polygon(outer, [inner[::-1] if is_clockwise else inner])
    section = SimpleNamespace(radii=None, affine=np.eye(3), element=gpd.GeoDataFrame(geometry=[outline]))
    fig = plt.figure(figsize=(1, 1), dpi=90)
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 9), ylim=(0, 9))
    ax.axis("off")
    draw_spots(ax, section, np.array([0]), facecolors="black", edgecolors="none")
    fig.canvas.draw()
    shade = np.asarray(fig.canvas.buffer_rgba())[..., 0]
    assert (shade[45, 45], shade[45, 10]) == (255, 0)


def test_only_part_of_the_spots_was_predicted(predicted, genes):
    predicted.tables["predicted"] = predicted.tables["predicted"][::-2].copy()
    axes = rg.pl.prediction(predicted, genes=genes[0], truth_key="table", return_ax=True)[genes[0]]
    table = predicted.tables["predicted"]
    np.testing.assert_allclose(spots(axes["predicted"], "predicted").get_offsets(), table.obsm["spatial"])
    truth = normalized(predicted.tables["table"], genes[0])[::-2]
    np.testing.assert_allclose(spots(axes["measured"], "measured").get_array(), truth, atol=1e-5)


def test_errors(predicted, genes):
    with pytest.raises(KeyError, match="the table has no gene 'NOGENE'"):
        rg.pl.prediction(predicted, genes=[genes[0], "NOGENE"])
    with pytest.raises(KeyError, match=r"'other' not found in `sdata\.tables`"):
        rg.pl.prediction(predicted, genes=genes[0], truth_key="other")
    with pytest.raises(ValueError, match="the truth must be measured"):
        rg.pl.prediction(predicted, genes=genes[0], truth_key="predicted")
    with pytest.raises(ValueError, match="`genes` is empty"):
        rg.pl.prediction(predicted, genes=[])
    with pytest.raises(ValueError, match="`image_fade` is 2"):
        rg.pl.prediction(predicted, genes=genes[0], image_fade=2)
    with pytest.raises(ValueError, match="`figsize`"):
        rg.pl.prediction(predicted, genes=genes[0], figsize=(3, 0))
    del predicted.images["he"]
    with pytest.raises(ValueError, match=r"image 'he', which is not in `sdata\.images`"):
        rg.pl.prediction(predicted, genes=genes[0])
    assert not plt.get_fignums()


def test_save_and_axes(predicted, genes, tmp_path):
    path = tmp_path / "prediction.svg"
    assert rg.pl.prediction(predicted, genes=genes[0], save=path, dpi=50) is None
    assert path.stat().st_size > 1000
    assert not plt.get_fignums()
    figure, ax = plt.subplots()
    before = dict(mpl.rcParams)
    axes = rg.pl.prediction(predicted, genes=genes[0], ax=ax, return_ax=True)
    place, inside = ax.get_window_extent(), axes[genes[0]]["predicted"].get_window_extent()
    assert place.x0 <= inside.x0 < inside.x1 <= place.x1 and place.y0 <= inside.y0 < inside.y1 <= place.y1
    assert plt.get_fignums() == [figure.number]
    assert dict(mpl.rcParams) == before
    assert rg.pl.prediction(predicted, genes=genes[0], figsize=(4, 3)) is None
    np.testing.assert_allclose(plt.gcf().get_size_inches(), (4, 3))


def test_points_are_drawn_apart_from_each_other(query, fitted, genes, embed):
    import pandas as pd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    xy = pd.DataFrame({"x": [200.0, 260.0, 320.0], "y": [300.0, 300.0, 300.0]})
    query.points["cells"] = PointsModel.parse(xy, transformations={"global": Identity()})
    rg.pp.embed_tiles(query, shapes_key="cells", **embed)
    rg.tl.predict(query, fitted, table_key="cells_table", key_added="on_cells")
    axes = rg.pl.prediction(query, genes=genes[0], prediction_key="on_cells", return_ax=True)[genes[0]]
    drawn = spots(axes["predicted"], "predicted")
    np.testing.assert_allclose(drawn.get_offsets(), xy)
    np.testing.assert_allclose(drawn.get_widths(), 0.8 * 60)


def note(ax):
    return "".join(one.get_text() for one in ax.get_children() if one.get_gid() == "note")


def test_gene_that_failed_is_grey_and_says_so(predicted, genes):
    table = predicted.tables["predicted"]
    table.var.loc[genes[:3], "cv_pearson"] = [0.03, 0.4, np.nan]
    axes = rg.pl.prediction(predicted, genes=genes[:3], truth_key="table", return_ax=True)
    cmaps = {gene: {kind: spots(ax, kind).get_cmap().name for kind, ax in axes[gene].items()} for gene in genes[:3]}
    assert cmaps[genes[0]]["predicted"] == cmaps[genes[0]]["measured"] == "distrust"
    assert cmaps[genes[0]]["difference"] == cmaps[genes[1]]["difference"] != "distrust"
    assert note(axes[genes[0]]["predicted"]) == "not to be trusted (cross-validated r = 0.03)"
    for gene in genes[1:3]:
        assert cmaps[gene]["predicted"] == "viridis"
        assert note(axes[gene]["predicted"]) == ""
    assert (
        spots(axes[genes[0]]["predicted"], "predicted").get_clim()
        == spots(axes[genes[0]]["measured"], "measured").get_clim()
    )
    trusting = rg.pl.prediction(predicted, genes=genes[0], min_cv_pearson=-1, return_ax=True)[genes[0]]["predicted"]
    assert note(trusting) == "" and spots(trusting, "predicted").get_cmap().name == "viridis"
    with pytest.raises(ValueError, match="`min_cv_pearson` is 7"):
        rg.pl.prediction(predicted, genes=genes[0], min_cv_pearson=7)


def test_interval_width_is_a_map_of_its_own(predicted, genes, with_intervals):
    table = predicted.tables["predicted"]
    with pytest.raises(KeyError, match="The table has no intervals"):
        rg.pl.prediction(predicted, genes=genes[0], interval=True)
    with_intervals(table)
    width = (table[:, genes[0]].layers["upper"] - table[:, genes[0]].layers["lower"]).ravel()
    assert "interval" not in rg.pl.prediction(predicted, genes=genes[0], truth_key=False, return_ax=True)[genes[0]]
    for unit in ("donor", "section"):
        table.uns["retrieval"]["interval_unit"] = unit
        axes = rg.pl.prediction(predicted, genes=genes[0], interval=True, truth_key=False, return_ax=True)[genes[0]]
        assert list(axes) == ["predicted", "interval"]
        ax = axes["interval"]
        np.testing.assert_allclose(spots(ax, "interval").get_array(), width, atol=1e-6)
        hatched = [one.get_hatch() for one in ax.patches if one.get_gid() == "hatch"]
        assert bool(hatched) == (unit == "section") and all(hatched)
        assert note(ax) == ("" if unit == "donor" else "calibrated over sections, not donors")
        bar = colorbars(ax)[1]
        assert bar.get_ylabel() == "width of the 90 % interval"
        assert [one.get_hatch() for one in bar.patches if one.get_gid() == "hatch"] == hatched


def test_words_of_a_narrow_section_stay_off_the_next_map(predicted, genes):
    table = predicted.tables["predicted"]
    table.var.loc[genes[:2], "cv_pearson"] = 0.03
    x, y = table.obsm["spatial"].T
    predicted.tables["predicted"] = table[np.abs(x - np.median(x)) < 0.3 * (y.max() - y.min())].copy()
    axes = rg.pl.prediction(predicted, genes=genes[:2], truth_key=False, return_ax=True)
    first, second = (axes[gene]["predicted"] for gene in genes[:2])
    figure = first.figure
    figure.canvas.draw()
    words = next(one for one in first.get_children() if one.get_gid() == "note")
    assert words.get_window_extent().x1 < second.get_window_extent().x0
    assert words.get_window_extent().y1 < first._left_title.get_window_extent().y0 + 2


def test_picture(predicted, genes, with_intervals, distance_to_baseline):
    table = predicted.tables["predicted"]
    with_intervals(table, unit="section")
    table.var.loc[genes[0], "cv_pearson"] = 0.03
    axes = rg.pl.prediction(
        predicted, genes=genes[0], truth_key="table", interval=True, image_fade=0.7, return_ax=True
    )[genes[0]]
    figure = axes["measured"].figure
    assert distance_to_baseline(figure, "prediction", dpi=27) < 6
    for ax in axes.values():
        ax.set_visible(False)
        assert distance_to_baseline(figure, "prediction", dpi=27) > 8
        ax.set_visible(True)
