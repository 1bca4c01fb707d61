"""`rg.pl.sources`: discs, bars and maps against the weights in the table."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

import ragst_sd as rg
from ragst_sd.pl import _style


def drawn(ax, label):
    return next(one for one in ax.collections if one.get_label() == label)


def column(axes, gid):
    cells = [one for one in axes["weights"].texts if one.get_gid() == gid]
    return [one.get_text() for one in sorted(cells, key=lambda one: one.xy[1])]


def shares(table, group_by="donor"):
    """Share of each group in each spot, written out; groups by falling weight."""
    cited = table.uns["retrieval"]["cited"]
    groups = np.append(cited[group_by].astype(str).to_numpy(), "")
    rows, weights = np.asarray(table.obsm["retrieval_rows"]), np.asarray(table.obsm["retrieval_weights"])
    out = {name: np.where(groups[rows] == name, weights, 0).sum(axis=1) for name in sorted(set(groups[:-1]))}
    total = sum(out.values())
    out = {name: one / total for name, one in out.items()}
    return dict(sorted(out.items(), key=lambda item: -np.nanmean(item[1])))


def test_discs_take_the_colour_and_the_share_of_the_leading_group(predicted):
    table = predicted.tables["predicted"]
    expected = shares(table)
    axes = rg.pl.sources(predicted, return_ax=True)
    discs = drawn(axes["section"], "leading group")
    np.testing.assert_allclose(discs.get_offsets(), table.obsm["spatial"])
    stacked = np.stack(list(expected.values()), axis=1)
    area = np.asarray(discs.get_widths()) ** 2
    np.testing.assert_allclose(area / area.max(), stacked.max(axis=1) / stacked.max(), rtol=1e-5)
    colors = [to_hex(color).upper() for color in discs.get_facecolor()]
    assert colors == [_style.PALETTE[group] for group in stacked.argmax(axis=1)]
    assert len(set(colors)) == 2


def test_bars_name_weight_and_cited_rows(predicted):
    table = predicted.tables["predicted"]
    expected = shares(table)
    axes = rg.pl.sources(predicted, return_ax=True)
    bars = axes["weights"].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [one.mean() for one in expected.values()], rtol=1e-6)
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == list(_style.PALETTE[:2])
    assert column(axes, "donor") == list(expected)
    assert column(axes, "weight") == [f"{one.mean():.0%}".replace("%", " %") for one in expected.values()]
    cited = table.uns["retrieval"]["cited"]["donor"].value_counts()
    assert column(axes, "rows cited") == [str(cited[name]) for name in expected]


def test_each_group_has_a_map_on_one_scale(predicted):
    expected = shares(predicted.tables["predicted"])
    groups = rg.pl.sources(predicted, return_ax=True)["groups"]
    assert list(groups) == list(expected)
    highest = max(one.max() for one in expected.values())
    for name, ax in groups.items():
        found = drawn(ax, "share of weight")
        np.testing.assert_allclose(found.get_array(), expected[name], atol=1e-6)
        np.testing.assert_allclose(found.get_clim(), (0, highest))


def regroup(table, n, column="donor"):
    cited = table.uns["retrieval"]["cited"]
    cited[column] = [f"patient{i % n:02d}" for i in range(len(cited))]


def test_many_groups_are_lumped_and_told(predicted):
    table = predicted.tables["predicted"]
    regroup(table, 8)
    axes = rg.pl.sources(predicted, return_ax=True)
    assert len(axes["groups"]) == 8 and not [name for name in axes["groups"] if "other" in name]
    regroup(table, 11)
    expected = shares(table)
    axes = rg.pl.sources(predicted, return_ax=True)
    names = [*list(expected)[:7], "other (4 donors)"]
    assert column(axes, "donor") == list(axes["groups"]) == names
    stacked = np.stack(list(expected.values()), axis=1)
    others = axes["weights"].patches[-1]
    assert others.get_width() == pytest.approx(stacked[:, 7:].sum(axis=1).mean())
    assert to_hex(others.get_facecolor()).upper() == _style.OTHER_GROUPS
    # A spot is led by one group, never by several together.
    colors = [to_hex(color).upper() for color in drawn(axes["section"], "leading group").get_facecolor()]
    palette = [*_style.PALETTE[:7], *[_style.OTHER_GROUPS] * 4]
    assert colors == [palette[group] for group in stacked.argmax(axis=1)]
    area = np.asarray(drawn(axes["section"], "leading group").get_widths()) ** 2
    np.testing.assert_allclose(area / area.max(), stacked.max(axis=1) / stacked.max(), rtol=1e-5)
    few = rg.pl.sources(predicted, n_shown=2, return_ax=True)
    assert column(few, "donor") == [*list(expected)[:2], "other (9 donors)"]


@pytest.mark.parametrize("group_by", ["sample", "tissue", "technology"])
def test_other_groups(predicted, group_by):
    table = predicted.tables["predicted"]
    regroup(table, 3, group_by)
    if group_by == "sample":
        sources = table.uns["retrieval"]["sources"].iloc[[0, 0, 1]]
        table.uns["retrieval"]["sources"] = sources.set_axis([f"patient{i:02d}" for i in range(3)])
    axes = rg.pl.sources(predicted, group_by=group_by, return_ax=True)
    assert column(axes, group_by) == list(shares(table, group_by))
    assert axes["section"].get_title(loc="left") == f"{group_by.capitalize()} that leads"


def test_licences_and_citations_come_from_the_sources(predicted):
    table = predicted.tables["predicted"]
    table.uns["retrieval"]["sources"]["license"] = ["CC0", ""]
    table.uns["retrieval"]["sources"]["citation"] = ["A very long citation " * 5, np.nan]
    axes = rg.pl.sources(predicted, group_by="license", return_ax=True)
    assert set(axes["groups"]) == {"CC0", "unknown"}
    axes = rg.pl.sources(predicted, group_by="citation", return_ax=True)
    assert ("A very long citation " * 5).strip() in axes["groups"]
    assert max(len(text) for text in column(axes, "citation")) <= 34


def test_one_group_needs_no_maps(predicted):
    regroup(predicted.tables["predicted"], 1)
    axes = rg.pl.sources(predicted, return_ax=True)
    assert axes["groups"] == {}
    assert column(axes, "weight") == ["100 %"]


def test_spot_that_cites_nobody_is_hollow(predicted):
    table = predicted.tables["predicted"]
    table.obsm["retrieval_rows"][[1, 4]] = -1
    table.obsm["retrieval_weights"][[1, 4]] = 0
    axes = rg.pl.sources(predicted, return_ax=True)
    np.testing.assert_allclose(drawn(axes["section"], "no value").get_offsets(), table.obsm["spatial"][[1, 4]])
    kept = np.setdiff1d(np.arange(table.n_obs), [1, 4])
    np.testing.assert_allclose(drawn(axes["section"], "leading group").get_offsets(), table.obsm["spatial"][kept])
    first = next(iter(axes["groups"].values()))
    assert len(drawn(first, "share of weight").get_array()) == len(kept)
    expected = [np.nanmean(one) for one in shares(table).values()]
    np.testing.assert_allclose([bar.get_width() for bar in axes["weights"].patches], expected, rtol=1e-6)


def test_a_single_spot(predicted):
    predicted.tables["predicted"] = predicted.tables["predicted"][[3]].copy()
    axes = rg.pl.sources(predicted, return_ax=True)
    assert len(drawn(axes["section"], "leading group").get_offsets()) == 1


def test_errors(predicted, query, reference):
    with pytest.raises(ValueError, match=r"`group_by` is 'organ'; it must be one of 'donor'"):
        rg.pl.sources(predicted, group_by="organ")
    with pytest.raises(ValueError, match="`n_shown` is 9; there are colours for 7 groups at most"):
        rg.pl.sources(predicted, n_shown=9)
    with pytest.raises(ValueError, match="`n_shown` is 0"):
        rg.pl.sources(predicted, n_shown=0)
    with pytest.raises(ValueError, match="`image_fade` is -1"):
        rg.pl.sources(predicted, image_fade=-1)
    with pytest.raises(TypeError, match="SpatialData"):
        rg.pl.sources(predicted.tables["predicted"])
    rg.tl.fit(reference, method="ridge")
    rg.tl.predict(query, reference)
    with pytest.raises(ValueError, match="method 'ridge', which cites no measured spots"):
        rg.pl.sources(query)
    assert not plt.get_fignums()


def test_save_and_given_axes(predicted, tmp_path):
    path = tmp_path / "sources.png"
    assert rg.pl.sources(predicted, save=path, dpi=50) is None
    assert path.stat().st_size > 3000 and not plt.get_fignums()
    figure, (_, right) = plt.subplots(1, 2, figsize=(16, 5))
    axes = rg.pl.sources(predicted, ax=right, return_ax=True)
    figure.canvas.draw()
    place = right.get_window_extent()
    for ax in [axes["section"], axes["weights"], *axes["groups"].values()]:
        box = ax.get_window_extent()
        assert place.x0 - 1 <= box.x0 < box.x1 <= place.x1 + 1 and place.y0 - 1 <= box.y0 < box.y1 <= place.y1 + 1
    assert plt.get_fignums() == [figure.number]


def test_picture(predicted, distance_to_baseline):
    axes = rg.pl.sources(predicted, return_ax=True)
    assert distance_to_baseline(axes["section"].figure, "sources") < 6
    for ax in (axes["weights"], axes["groups"]["donor2"]):
        ax.set_visible(False)
        assert distance_to_baseline(axes["section"].figure, "sources") > 8
        ax.set_visible(True)
