"""`rg.pl.explain`: bars and words against `rg.get.explain`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import ragst_sd as rg
from ragst_sd._fields import write_sums
from ragst_sd.pl import _style
from ragst_sd.reference.hashing import fit_hash

MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def spot(predicted):
    return predicted.tables["predicted"].obs_names[5]


@pytest.fixture
def genes(predicted):
    table = predicted.tables["predicted"]
    return list(table.var_names[np.argsort(-np.asarray(table.X).var(axis=0))[:3]])


def column(ax, gid):
    """Texts of a column, from the top."""
    return [one.get_text() for one in sorted(named(ax, gid), key=lambda one: one.xy[1]) if one.get_text()]


def bars(ax):
    return [patch for patch in ax.patches if patch.get_gid() is None]


def named(ax, gid):
    return [one for one in ax.get_children() if one.get_gid() == gid]


def test_bars_are_the_contributions_and_add_up(predicted, fitted, spot, genes):
    table = predicted.tables["predicted"]
    table.X[table.obs_names.get_loc(spot)] -= 0.75  # an adjustment, as methods with one would leave it
    write_sums(table)
    ax = rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[0], n_shown=4, return_ax=True)[genes[0]]
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=genes[0])
    measured = (parts["weight"] * parts["value"]).to_numpy()[:-1]
    corrections = (parts["weight"] * parts["correction"]).sum()
    *steps, total = [bar.get_width() for bar in bars(ax)]
    np.testing.assert_allclose(steps, [*measured[:4], measured[4:].sum(), corrections, -0.75], atol=1e-6)
    np.testing.assert_allclose(sum(steps), parts["contribution"].sum(), atol=1e-6)
    np.testing.assert_allclose(total, table[spot, genes[0]].X.item(), atol=1e-6)
    np.testing.assert_allclose([bar.get_x() for bar in bars(ax)], [0, *np.cumsum(steps)[:-1], 0], atol=1e-6)
    places = [bar.get_y() for bar in bars(ax)]
    assert places == sorted(places) and ax.yaxis.get_inverted()
    assert ax.get_xlabel() == "log1p(counts per 10,000)"


def test_columns_name_spot_weight_value_and_contribution(predicted, fitted, spot, genes):
    ax = rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[0], n_shown=4, return_ax=True)[genes[0]]
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=genes[0]).iloc[:-1]
    rest = parts.iloc[4:]
    steps = ["6 more", "sections brought to one mean", "adjustment", "predicted"]
    assert column(ax, "measured spot") == [*parts["reference"].iloc[:4], *steps]
    assert column(ax, "weight") == [
        f"{one:.1%}".replace("%", " %") for one in (*parts["weight"][:4], rest["weight"].sum())
    ]
    mean = (rest["weight"] * rest["value"]).sum() / rest["weight"].sum()
    assert column(ax, "value") == [f"{one:.2f}" for one in (*parts["value"][:4], mean)]
    brings = column(ax, "contribution")
    assert brings[:4] == [f"{one:+.2f}" for one in (parts["weight"] * parts["value"])[:4]]
    assert brings[-2:] == ["0.00", f"{predicted.tables['predicted'][spot, genes[0]].X.item():.2f}"]
    assert any(text.get_text() == f"{genes[0]} predicted {brings[-1]}" for text in ax.texts)


def test_all_shown_leaves_no_lump(predicted, fitted, spot, genes):
    ax = rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[0], return_ax=True)[genes[0]]
    assert len(bars(ax)) == 10 + 3
    assert not [label for label in column(ax, "measured spot") if "more" in label]


@pytest.mark.parametrize("group_by", ["donor", "sample"])
def test_groups_are_summed(sections, query, genes, group_by):
    renamed = {f"slide_{name}": sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(renamed, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    parts = None
    for name in query.tables["predicted"].obs_names:
        parts = rg.get.explain(query, reference, obs_names=name, genes=genes[0]).iloc[:-1]
        if parts["donor"].nunique() == 2:
            break
    ax = rg.pl.explain(query, reference, obs_names=name, genes=genes[0], group_by=group_by, return_ax=True)[genes[0]]
    groups = parts.assign(brings=parts["weight"] * parts["value"]).groupby(group_by)
    order = groups["weight"].sum().sort_values(ascending=False).index
    np.testing.assert_allclose([bar.get_width() for bar in bars(ax)[:2]], groups["brings"].sum()[order], atol=1e-6)
    sizes = groups.size()[order]
    for label, one in zip(column(ax, group_by), order, strict=False):
        spots = "1 spot" if sizes[one] == 1 else f"{sizes[one]} spots"
        assert label.startswith(one) and label.endswith(f", {spots}")
        assert (f"({one.removeprefix('slide_')})" in label) == (group_by == "sample")
    assert len(bars(ax)) == 2 + 3
    lumped = rg.pl.explain(
        query, reference, obs_names=name, genes=genes[0], group_by=group_by, n_shown=1, return_ax=True
    )[genes[0]]
    assert column(lumped, group_by)[1] == f"1 more {group_by}"


def test_truth_is_a_line(predicted, fitted, spot, genes):
    counts = predicted.tables["table"].X.toarray().astype(float)
    row, gene = predicted.tables["table"].obs_names.get_loc(spot), predicted.tables["table"].var_names.get_loc(genes[0])
    truth = np.log1p(counts[row, gene] / counts[row].sum() * 1e4)
    arguments = {"obs_names": spot, "genes": genes[0], "return_ax": True}
    ax = rg.pl.explain(predicted, fitted, **arguments, truth_key="table")[genes[0]]
    (line,) = named(ax, "truth")
    np.testing.assert_allclose(line.get_xdata(), truth, atol=1e-5)
    assert line.get_linestyle() != "-"
    assert column(ax, "measured") == [f"measured {truth:.2f}"]
    assert ax.get_xlim()[0] <= truth <= ax.get_xlim()[1]
    assert named(rg.pl.explain(predicted, fitted, **arguments)[genes[0]], "truth")
    assert not named(rg.pl.explain(predicted, fitted, **arguments, truth_key=False)[genes[0]], "truth")


def test_interval_is_a_box_that_is_hatched_unless_calibrated_over_donors(
    predicted, fitted, spot, genes, with_intervals
):
    table = predicted.tables["predicted"]
    arguments = {"obs_names": spot, "genes": genes[0], "return_ax": True}
    assert not named(rg.pl.explain(predicted, fitted, **arguments)[genes[0]], "interval")
    with_intervals(table)
    low, high = (table[spot, genes[0]].layers[name].item() for name in ("lower", "upper"))
    ax = rg.pl.explain(predicted, fitted, **arguments)[genes[0]]
    (box,) = named(ax, "interval")
    assert isinstance(box, Rectangle) and not box.get_hatch()
    np.testing.assert_allclose([box.get_x(), box.get_x() + box.get_width()], [low, high])
    np.testing.assert_allclose(box.get_y() + box.get_height() / 2, len(bars(ax)) - 1)
    assert column(ax, "interval text") == [f"90 % interval: {low:.2f} to {high:.2f}"]
    assert not column(ax, "caveat")
    assert ax.get_xlim()[1] > high
    table.uns["retrieval"]["interval_unit"] = "section"
    ax = rg.pl.explain(predicted, fitted, **arguments)[genes[0]]
    (box,) = named(ax, "interval")
    assert isinstance(box, Rectangle) and box.get_hatch()
    np.testing.assert_allclose([box.get_x(), box.get_x() + box.get_width()], [low, high])
    assert column(ax, "caveat") == ["calibrated over sections, not donors"]
    table.layers["upper"][:] = np.nan
    assert not named(rg.pl.explain(predicted, fitted, **arguments)[genes[0]], "interval")


def test_gene_that_failed_is_grey_and_says_so(predicted, fitted, spot, genes):
    table = predicted.tables["predicted"]
    words = "not to be trusted (cross-validated r = 0.03)"
    arguments = {"obs_names": spot, "genes": genes[0], "return_ax": True}
    for score, failed in ((0.03, True), (0.4, False), (np.nan, False)):
        table.var.loc[genes[0], "cv_pearson"] = score
        ax = rg.pl.explain(predicted, fitted, **arguments)[genes[0]]
        assert column(ax, "facts")[0].endswith(words) == failed
        colors = {to_hex(bar.get_facecolor()) for bar in bars(ax)}
        assert (len(colors) == 1) == failed
        assert (_style.EVIDENCE.lower() in colors) != failed
    table.var.loc[genes[0], "cv_pearson"] = 0.03
    ax = rg.pl.explain(predicted, fitted, **arguments, min_cv_pearson=-1)[genes[0]]
    assert words not in column(ax, "facts")[0]


def test_genes_are_panels_two_in_a_row(predicted, fitted, spot, genes):
    axes = rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes, return_ax=True)
    assert list(axes) == genes
    axes[genes[0]].figure.canvas.draw()
    first, second, third = (axes[gene].get_position() for gene in genes)
    assert first.x1 < second.x0 and first.y0 == pytest.approx(second.y0)
    assert third.y1 < first.y0 and third.x0 == pytest.approx(first.x0)
    table = predicted.tables["predicted"]
    for gene in genes:
        assert bars(axes[gene])[-1].get_width() == pytest.approx(table[spot, gene].X.item(), abs=1e-6)


def test_method_that_cites_nobody(query, reference, genes):
    rg.tl.fit(reference, method="ridge")
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    ax = rg.pl.explain(query, reference, obs_names=table.obs_names[0], genes=genes[0], return_ax=True)[genes[0]]
    assert column(ax, "measured spot") == ["reference mean", "adjustment", "predicted"]
    assert column(ax, "facts")[0].endswith("ridge: cites no measured spots")
    *steps, total = [bar.get_width() for bar in bars(ax)]
    assert sum(steps) == pytest.approx(total, abs=1e-5)


def test_row_that_did_not_measure_the_gene_says_so(predicted, fitted, spot, genes, monkeypatch):
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=genes[0])
    parts.loc[1, ["weight", "value", "correction", "contribution"]] = [0.0, np.nan, np.nan, 0.0]
    monkeypatch.setattr(rg.get, "explain", lambda *_, **__: parts)
    ax = rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[0], return_ax=True)[genes[0]]
    assert column(ax, "value")[9] == "not measured"
    assert column(ax, "measured spot")[9] == parts["reference"][1]


def test_numbers_stand_beside_their_steps_when_a_regression_takes_part(query, reference, quick):
    rg.tl.fit(reference, n_neighbors=5, options=quick("rag"), progress=False)
    header = reference.uns["ragst"]
    header["fit"]["parameters"]["retrieval_share"] = np.full(reference.n_vars, 0.4)
    header["fit"]["fit_hash"] = fit_hash(
        header, header["fit"], *(reference.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )
    rg.tl.predict(query, reference)
    spot, gene = query.tables["predicted"].obs_names[5], reference.var_names[0]
    ax = rg.pl.explain(query, reference, obs_names=spot, genes=gene, n_shown=2, return_ax=True)[gene]
    row = {text.get_text(): text.xy[1] for text in named(ax, "measured spot")}
    beside = {
        gid: {text.xy[1]: text.get_text() for text in named(ax, gid) if text.get_text()} for gid in ("weight", "value")
    }
    assert list(row)[-3:] == ["reference mean", "regression", "predicted"]
    assert beside["weight"][row["reference mean"]] == "60.0 %"
    mean = float(
        rg.get.explain(query, reference, obs_names=spot, genes=gene)
        .set_index("reference")
        .loc["reference mean", "value"]
    )
    assert float(beside["value"][row["reference mean"]]) == pytest.approx(mean, abs=0.01)
    for name in ("regression", "predicted", "sections brought to one mean"):
        assert row[name] not in beside["weight"]
        assert row[name] not in beside["value"]
    assert named(ax, "facts")[0].get_text().startswith(f"spot {spot}  ·  ")


def test_a_bare_table_will_do(predicted, fitted, spot, genes):
    table = predicted.tables["predicted"]
    axes = rg.pl.explain(table, fitted, obs_names=spot, genes=genes[0], return_ax=True)
    assert list(axes) == genes[:1]
    with pytest.raises(ValueError, match="bare predicted table"):
        rg.pl.explain(table, fitted, obs_names=spot, genes=genes[0], truth_key="table")


def test_errors(predicted, fitted, spot, genes):
    def draw(**changed):
        return rg.pl.explain(predicted, fitted, **({"obs_names": spot, "genes": genes[0]} | changed))

    with pytest.raises(ValueError, match=r"`obs_names` names .* there is place for 1"):
        draw(obs_names=list(predicted.tables["predicted"].obs_names[:2]))
    with pytest.raises(KeyError, match="the table has no spot 'nowhere'"):
        draw(obs_names="nowhere")
    with pytest.raises(KeyError, match="the table has no gene 'NOGENE'"):
        draw(genes="NOGENE")
    with pytest.raises(ValueError, match=r"`group_by` is 'donr'.*Did you mean 'donor'"):
        draw(group_by="donr")
    with pytest.raises(ValueError, match="`n_shown` is 0"):
        draw(n_shown=0)
    with pytest.raises(ValueError, match="`min_cv_pearson` is 3"):
        draw(min_cv_pearson=3)
    with pytest.raises(KeyError, match=r"'other' not found in `sdata\.tables`"):
        draw(truth_key="other")
    predicted.tables["predicted"].X[5] = np.nan
    write_sums(predicted.tables["predicted"])
    with pytest.raises(ValueError, match=f"Spot '{spot}' has no prediction of '{genes[0]}'"):
        draw()
    assert not plt.get_fignums()


def test_save_and_given_axes(predicted, fitted, spot, genes, tmp_path):
    path = tmp_path / "explain.png"
    assert rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[0], save=path, dpi=50) is None
    assert path.stat().st_size > 3000 and not plt.get_fignums()
    figure, (_, right) = plt.subplots(1, 2, figsize=(16, 5))
    axes = rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[:2], ax=right, return_ax=True)
    figure.canvas.draw()
    place = right.get_window_extent()
    for ax in axes.values():
        box = ax.get_window_extent()
        assert place.x0 - 1 <= box.x0 < box.x1 <= place.x1 + 1 and place.y0 - 1 <= box.y0 < box.y1 <= place.y1 + 1
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="`figsize` is for a new figure"):
        rg.pl.explain(predicted, fitted, obs_names=spot, genes=genes[0], ax=right, figsize=(3, 3))


def test_picture(predicted, fitted, spot, genes, with_intervals, distance_to_baseline):
    table = predicted.tables["predicted"]
    with_intervals(table, unit="section")
    table.var.loc[genes[1], "cv_pearson"] = 0.03
    axes = rg.pl.explain(
        predicted, fitted, obs_names=spot, genes=genes[:2], truth_key="table", n_shown=6, return_ax=True
    )
    assert distance_to_baseline(axes[genes[0]].figure, "explain") < 6
    axes[genes[1]].set_visible(False)
    assert distance_to_baseline(axes[genes[0]].figure, "explain") > 8
