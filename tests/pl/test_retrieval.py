"""`rg.pl.retrieval`: what the picture says against `rg.get.explain`."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import ragst_sd as rg
from ragst_sd._fields import write_sums

MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def spot(predicted):
    return predicted.tables["predicted"].obs_names[5]


@pytest.fixture
def gene(predicted):
    table = predicted.tables["predicted"]
    return table.var_names[int(np.argmax(np.asarray(table.X).var(axis=0)))]


def texts(axes):
    return [line for text in axes["section"].figure.findobj(Text) for line in text.get_text().split("\n")]


def scale_bars(ax):
    return [one for one in ax.get_children() if one.get_gid() == "scale bar"]


def heights(axes):
    return [bar.get_height() for bar in axes["contributions"].patches]


def test_neighbours_are_named_with_donor_weight_and_measured_value(predicted, fitted, spot, gene):
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, n_shown=4, return_ax=True)
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene).iloc[:-1]
    assert len(axes["neighbors"]) == 4
    written = texts(axes)
    for row in parts.iloc[:4].itertuples():
        assert row.donor in written
        assert f"weight {row.weight:.1%}" in written
        assert f"{gene} {row.value:.2f}" in written
    assert f"and {len(parts) - 4} more" in written
    assert f"weight {parts['weight'].iloc[4:].sum():.1%}" in written


def test_neighbours_show_the_thumbnails_of_the_cited_rows_by_weight(predicted, fitted, spot, gene):
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, n_shown=3, return_ax=True)
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene)
    for ax, name in zip(axes["neighbors"], parts["reference"].iloc[:3], strict=True):
        expected = fitted.obsm["thumbnail"][fitted.obs_names.get_loc(name)]
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)


def test_sample_is_named_where_it_differs_from_the_donor(sections, query, gene):
    renamed = {f"slide_{name}": sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(renamed, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(query, reference)
    name = query.tables["predicted"].obs_names[0]
    axes = rg.pl.retrieval(query, reference, obs_names=name, genes=gene, return_ax=True)
    first = rg.get.explain(query, reference, obs_names=name, genes=gene).iloc[0]
    assert {first["donor"], first["sample"]} <= set(texts(axes))
    assert first["donor"] != first["sample"]


def test_contributions_add_up_to_the_prediction(predicted, fitted, spot, gene):
    table = predicted.tables["predicted"]
    table.X[table.obs_names.get_loc(spot)] -= 0.75  # an adjustment, as methods with one would leave it
    write_sums(table)
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, n_shown=4, return_ax=True)
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene)
    measured = (parts["weight"] * parts["value"]).to_numpy()[:-1]
    corrections, adjustment = (parts["weight"] * parts["correction"]).sum(), parts["contribution"].iloc[-1]
    *steps, total = heights(axes)
    np.testing.assert_allclose(steps, [*measured[:4], measured[4:].sum(), corrections, adjustment], atol=1e-6)
    np.testing.assert_allclose(sum(steps), total, atol=1e-5)
    np.testing.assert_allclose(total, table[spot, gene].X.item(), atol=1e-6)
    bars = axes["contributions"].patches
    for one, following in pairwise(list(bars)[:-1]):
        np.testing.assert_allclose(one.get_y() + one.get_height(), following.get_y(), atol=1e-6)
    labels = [label.get_text() for label in axes["contributions"].get_xticklabels()]
    assert labels == ["1", "2", "3", "4", "6 more", "sections", "adjustment", "predicted"]
    values = [text.get_text() for text in axes["contributions"].texts]
    # How many decimals are shown depends on the largest value.
    shown = [float(text.replace(MINUS, "-")) for text in values[-2:]]
    np.testing.assert_allclose(shown, [-0.75, total], atol=0.005)
    assert "-" not in "".join(values)
    assert f"{gene} predicted {values[-1]}" in texts(axes)
    assert axes["contributions"].get_ylabel().split() == ["contribution", "log1p(counts", "per", "10,000)"]


def test_all_neighbours_shown_leaves_no_lump(predicted, fitted, spot, gene):
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, n_shown=99, return_ax=True)
    assert len(axes["neighbors"]) == 10
    assert len(heights(axes)) == 13
    assert not [text for text in texts(axes) if "more" in text]


def test_tile_is_read_at_the_geometry_of_the_embedding(predicted, fitted, gene):
    """32 px at 2 microns on an image of 1 micron per pixel: cut as it is from the level of 2 microns per pixel."""
    table = predicted.tables["predicted"]
    central = int(np.argmin(np.abs(table.obsm["spatial"] - 350).sum(axis=1)))
    axes = rg.pl.retrieval(predicted, fitted, obs_names=table.obs_names[central], genes=gene, return_ax=True)
    x, y = table.obsm["spatial"][central]
    tile = axes["tile"].images[0]
    np.testing.assert_allclose(tile.get_extent(), (x - 32, x + 32, y + 32, y - 32))
    marks = [patch for patch in axes["section"].patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    np.testing.assert_allclose([mark.get_width() for mark in marks], [64, 160])
    np.testing.assert_allclose(marks[0].get_xy(), (x - 32, y - 32))
    left, top = round(x / 2 - 16), round(y / 2 - 16)
    pixels = np.asarray(predicted.images["he"]["scale1"]["image"].transpose("y", "x", "c"))
    np.testing.assert_array_equal(tile.get_array(), pixels[top : top + 32, left : left + 32])


def test_scale_bar_has_true_length(predicted, fitted, spot, gene):
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, return_ax=True)
    for ax in (axes["section"], axes["tile"]):
        (bar,) = scale_bars(ax)
        (line,) = bar.size_bar.get_children()
        assert bar.txt_label.get_text() == f"{line.get_width() * 1.0:g} µm"


def test_unknown_resolution_draws_no_scale_bar(predicted, fitted, spot, gene):
    table = predicted.tables["predicted"]
    table.uns["retrieval"]["image_mpp"] = np.nan
    table.uns["retrieval"]["encoder"]["mpp"] = np.nan
    del predicted.attrs["ragst"]
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, return_ax=True)
    assert not scale_bars(axes["section"]) and not scale_bars(axes["tile"])
    assert axes["tile"].images[0].get_extent()[1] - axes["tile"].images[0].get_extent()[0] == 32


def test_long_names_are_shortened(sections, query, gene):
    name = "a_very_long_name_of_a_sample_01"
    reference = rg.tl.build_reference({name: sections["donor1"]}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=3)
    rg.tl.predict(query, reference)
    first = query.tables["predicted"].obs_names[0]
    axes = rg.pl.retrieval(query, reference, obs_names=first, genes=gene, return_ax=True)
    assert name not in texts(axes)
    assert "a_very\N{HORIZONTAL ELLIPSIS}le_01" in texts(axes)


def test_row_that_did_not_measure_the_gene_says_so(predicted, fitted, spot, gene):
    """The reference of two panels is emulated by its own mask, which `explain` reads."""
    from ragst_sd._reference import reference_hash

    fitted.obs["panel"] = np.where(fitted.obs["donor"] == "donor1", "lacking", fitted.obs["panel"].astype(str))
    header = fitted.uns["ragst"]
    header["panels"] = np.array([*header["panels"], "lacking"])
    measured = np.ones((fitted.n_vars, 2), dtype=bool)
    measured[fitted.var_names.get_loc(gene), 1] = False
    fitted.varm["measured"] = measured
    table = predicted.tables["predicted"]
    table.uns["retrieval"]["reference_hash"] = reference_hash(fitted)
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene).iloc[:-1]
    assert 0 < parts["value"].isna().sum() < len(parts)
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, n_shown=10, return_ax=True)
    assert texts(axes).count(f"{gene} not measured") == parts["value"].isna().sum()

    measured[fitted.var_names.get_loc(gene)] = False
    fitted.varm["measured"] = measured
    table.uns["retrieval"]["reference_hash"] = reference_hash(fitted)
    table.X[:, table.var_names.get_loc(gene)] = np.nan
    write_sums(table)
    with pytest.raises(ValueError, match=f"has no prediction of '{gene}': .* no cited spot measured the gene"):
        rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene)


@pytest.mark.parametrize("method", ["ridge", "mean"])
def test_method_that_cites_nobody_is_refused(query, reference, gene, method):
    rg.tl.fit(reference, method=method)
    rg.tl.predict(query, reference)
    name = query.tables["predicted"].obs_names[0]
    with pytest.raises(ValueError, match=f"method '{method}', which cites no measured spots.*method=\"knn\""):
        rg.pl.retrieval(query, reference, obs_names=name, genes=gene)
    assert not plt.get_fignums()


def test_reference_without_thumbnails_is_refused(sections, query, gene):
    reference = rg.tl.build_reference({"donor1": sections["donor1"]}, use_rep="X_colour", thumbnails=False)
    rg.tl.fit(reference, method="knn", n_neighbors=3)
    rg.tl.predict(query, reference)
    with pytest.raises(KeyError, match="thumbnails=True"):
        rg.pl.retrieval(query, reference, obs_names=query.tables["predicted"].obs_names[0], genes=gene)


def test_missing_image_is_refused(predicted, fitted, spot, gene):
    del predicted.images["he"]
    with pytest.raises(ValueError, match=r"image 'he', which is not in `sdata.images` \(it has none\)"):
        rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene)


def test_spot_outside_the_image_is_refused(predicted, fitted, spot, gene):
    table = predicted.tables["predicted"]
    row = table.obs_names.get_loc(spot)
    table.obsm["retrieval_rows"][row] = -1
    table.X[row] = table.layers["evidence"][row] = np.nan
    write_sums(table)
    with pytest.raises(ValueError, match=r"has no prediction of .*: it lies outside the image"):
        rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene)


def test_names_that_do_not_exist(predicted, fitted, spot, gene):
    with pytest.raises(KeyError, match="the table has no spot 'nowhere'"):
        rg.pl.retrieval(predicted, fitted, obs_names="nowhere", genes=gene)
    with pytest.raises(KeyError, match="the table has no gene 'NOGENE'"):
        rg.pl.retrieval(predicted, fitted, obs_names=spot, genes="NOGENE")
    with pytest.raises(KeyError, match="the table has no spot 'nowhere'"):
        rg.pl.retrieval(predicted, fitted, obs_names=[spot, "nowhere"], genes=gene)
    with pytest.raises(ValueError, match="`obs_names` is empty"):
        rg.pl.retrieval(predicted, fitted, obs_names=[], genes=gene)
    with pytest.raises(TypeError, match="`obs_names` is a int"):
        rg.pl.retrieval(predicted, fitted, obs_names=3, genes=gene)
    with pytest.raises(ValueError, match=r"`genes` names .* there is place for 1"):
        rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=list(fitted.var_names[:2]))
    with pytest.raises(TypeError, match="SpatialData"):
        rg.pl.retrieval(predicted.tables["predicted"], fitted, obs_names=spot, genes=gene)


def test_save_writes_a_file_and_leaves_no_figure(predicted, fitted, spot, gene, tmp_path):
    path = tmp_path / "retrieval.png"
    assert rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, save=path, dpi=50) is None
    height, width, _ = plt.imread(path).shape
    assert (height, width) == (187, 770)
    assert not plt.get_fignums()


def test_picture_stays_inside_the_given_axes(predicted, fitted, spot, gene, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("shown"))
    monkeypatch.setattr(mpl, "get_backend", lambda: "qtagg")
    figure, (_, right) = plt.subplots(1, 2, figsize=(16, 5))
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, ax=right, show=True, return_ax=True)
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()
    place = right.get_window_extent()
    for ax in [axes["section"], axes["tile"], axes["contributions"], *axes["neighbors"]]:
        box = ax.get_window_extent()
        assert place.x0 - 1 <= box.x0 < box.x1 <= place.x1 + 1
        assert place.y0 - 1 <= box.y0 < box.y1 <= place.y1 + 1
    with pytest.raises(ValueError, match="`figsize` is for a new figure"):
        rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, ax=right, figsize=(3, 3))


def test_show_follows_the_backend(predicted, fitted, spot, gene, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda *_, **__: shown.append(1))
    arguments = {"obs_names": spot, "genes": gene, "n_shown": 1}
    rg.pl.retrieval(predicted, fitted, **arguments, show=True)
    assert not shown
    monkeypatch.setattr(mpl, "get_backend", lambda: "qtagg")
    rg.pl.retrieval(predicted, fitted, **arguments)
    assert len(shown) == 1
    rg.pl.retrieval(predicted, fitted, **arguments, return_ax=True)
    rg.pl.retrieval(predicted, fitted, **arguments, show=False)
    assert len(shown) == 1
    rg.pl.retrieval(predicted, fitted, **arguments, return_ax=True, show=True)
    assert len(shown) == 2


def test_global_settings_of_matplotlib_are_left_alone(predicted, fitted, spot, gene):
    before = dict(mpl.rcParams)
    rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene)
    assert dict(mpl.rcParams) == before


def test_others_are_shown_in_small(predicted, fitted, spot, gene):
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, n_shown=6, return_ax=True)
    others = next(ax for ax in axes["section"].figure.findobj(plt.Axes) if ax.get_label() == "others")
    canvas = np.asarray(others.images[0].get_array())
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene).iloc[6:-1]
    thumbnails = fitted.obsm["thumbnail"][fitted.obs_names.get_indexer(parts["reference"])]
    assert len(thumbnails) == 4
    np.testing.assert_array_equal(canvas[:64, :64, :3], thumbnails[0])
    np.testing.assert_array_equal(canvas[-64:, -64:, :3], thumbnails[3])


def test_spot_that_the_reference_does_not_cover_is_marked(predicted, fitted, spot, gene):
    warning = "unlike any tissue of the reference"
    for value in (False, True):
        predicted.tables["predicted"].obs["out_of_reference"] = value
        axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, return_ax=True)
        assert any(warning in text for text in texts(axes)) == value


def test_several_spots_are_rows_on_one_scale(predicted, fitted, gene):
    table = predicted.tables["predicted"]
    order = np.argsort(np.asarray(table[:, gene].X).ravel())
    names = [str(table.obs_names[i]) for i in (order[-1], order[0], order[len(order) // 2])]
    axes = rg.pl.retrieval(predicted, fitted, obs_names=names, genes=gene, n_shown=3, return_ax=True)
    assert list(axes) == names
    for name, one in axes.items():
        assert set(one) == {"section", "tile", "neighbors", "contributions"}
        parts = rg.get.explain(predicted, fitted, obs_names=name, genes=gene)
        *steps, total = heights(one)
        np.testing.assert_allclose(steps[:3], (parts["weight"] * parts["value"])[:3], atol=1e-6)
        np.testing.assert_allclose([sum(steps), total], parts["contribution"].sum(), atol=1e-5)
        x, y = table[name].obsm["spatial"][0]
        np.testing.assert_allclose(one["tile"].images[0].get_extent(), (x - 32, x + 32, y + 32, y - 32))
        assert one["section"].get_title(loc="left") == f"{gene} predicted {total:.2f}"
        assert [text.get_text() for text in one["section"].texts] == [f"spot {name}"]
    assert len({one["contributions"].get_ylim() for one in axes.values()}) == 1
    axes[names[0]]["section"].figure.canvas.draw()
    places = [one["contributions"].get_position() for one in axes.values()]
    assert places[0].y0 > places[1].y1 and places[1].y0 > places[2].y1
    for one in axes.values():
        assert one["tile"].get_position().x0 > one["section"].get_position().x1
    again = rg.pl.retrieval(predicted, fitted, obs_names=names[:1] * 2, genes=gene, return_ax=True)
    assert list(again) == names[:1]
    again[names[0]]["tile"].figure.canvas.draw()
    assert again[names[0]]["tile"].get_position().x0 > again[names[0]]["section"].get_position().x1


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lines_to_the_tile_keep_clear_of_the_scale_bar(predicted, fitted, gene, several):
    from matplotlib.patches import ConnectionPatch

    table = predicted.tables["predicted"]
    xy = table.obsm["spatial"]
    corners = [int(np.argmax(xy @ way)) for way in ([1, 1], [1, -1], [-1, 1], [-1, -1])]
    names = [str(table.obs_names[i]) for i in corners]
    if several:
        drawn = rg.pl.retrieval(predicted, fitted, obs_names=names, genes=gene, return_ax=True).values()
    else:
        drawn = [rg.pl.retrieval(predicted, fitted, obs_names=name, genes=gene, return_ax=True) for name in names]
    for axes in drawn:
        figure = axes["section"].figure
        figure.canvas.draw()
        bar = scale_bars(axes["section"])[0].get_window_extent()
        lines = [one for one in axes["section"].get_children() if isinstance(one, ConnectionPatch)]
        assert len(lines) == 2
        for line in lines:
            path = line.get_path().transformed(line.get_transform())
            assert not path.intersects_bbox(bar, filled=False)


def test_gene_that_failed_is_grey_and_says_so(predicted, fitted, spot, gene):
    table = predicted.tables["predicted"]
    words = "not to be trusted (cross-validated r = 0.03)"
    for score, failed in ((0.03, True), (0.4, False), (np.nan, False)):
        table.var.loc[gene, "cv_pearson"] = score
        axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, return_ax=True)
        assert (words in texts(axes)) == failed
        assert (len({bar.get_facecolor() for bar in axes["contributions"].patches}) == 1) == failed
    table.var.loc[gene, "cv_pearson"] = 0.03
    axes = rg.pl.retrieval(predicted, fitted, obs_names=spot, genes=gene, min_cv_pearson=0, return_ax=True)
    assert words not in texts(axes)


def test_picture(predicted, fitted, gene, distance_to_baseline):
    names = list(predicted.tables["predicted"].obs_names[[3, 20]])
    axes = rg.pl.retrieval(predicted, fitted, obs_names=names, genes=gene, n_shown=3, return_ax=True)
    figure = axes[names[0]]["section"].figure
    assert distance_to_baseline(figure, "retrieval", dpi=32) < 9
    for ax in (axes[names[0]]["section"], axes[names[1]]["tile"]):
        ax.set_visible(False)
        assert distance_to_baseline(figure, "retrieval", dpi=32) > 13
        ax.set_visible(True)
