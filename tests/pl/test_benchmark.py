"""`rg.pl.benchmark`: what is drawn against the scores."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ragst_sd._metrics import group_means
from ragst_sd.pl import _style
from ragst_sd.pl._benchmark import benchmark, differences_to

UNIT = "log1p(counts per 10,000)"
ACCURACY = {"mean": 0.0, "knn": 0.42, "ridge": 0.44, "rag": 0.46}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def make_scores(donors="ABC", *, methods=ACCURACY, ceiling=True):
    """Scores of two genes, one section per donor; donors differ, and so do the differences between methods."""
    rng = np.random.default_rng(0)
    lines = []
    for i, donor in enumerate(donors):
        shared = {"fold": donor, "sample": donor, "unit": UNIT}
        for method, accuracy in methods.items():
            for gene in ("g1", "g2"):
                value = accuracy and accuracy + 0.05 * i + rng.normal(0, 0.002)
                lines.append({"method": method, **shared, "gene": gene, "metric": "pearson", "value": value})
                lines.append({"method": method, **shared, "gene": gene, "metric": "rmse", "value": 1 - value})
            cited = 30.0 + i if method in ("rag", "knn") else np.nan
            lines.append({"method": method, **shared, "gene": "", "metric": "effective_n", "value": cited})
        if ceiling:
            lines.append({"method": "", **shared, "gene": "g1", "metric": "noise_ceiling", "value": 0.7 + 0.05 * i})
    return pd.DataFrame(lines)


def named(ax, gid):
    return [one for one in ax.get_children() if one.get_gid() == gid]


def column(ax, gid):
    """Texts of a column of numbers, from the top."""
    cells = [one for one in ax.texts if one.get_gid() == gid]
    return [one.get_text() for one in sorted(cells, key=lambda one: one.xy[1])]


def rows_of(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_one_mark_per_method_and_donor_best_first():
    scores = make_scores()
    ax = benchmark(scores, return_ax=True)
    assert rows_of(ax) == ["rag", "ridge", "knn", "mean"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    marks = {(line.get_ydata()[0], round(float(line.get_xdata()[0]), 9)) for line in named(ax, "donor")}
    means = group_means(scores, "pearson")
    expected = {(rows_of(ax).index(m), round(v, 9)) for m, v in zip(means["method"], means["value"], strict=True)}
    assert marks == expected
    bars = {int(line.get_ydata().mean()): line.get_xdata()[0] for line in ax.lines if line.get_gid() == "mean"}
    summary = means.groupby("method")["value"].mean()
    np.testing.assert_allclose([bars[i] for i in range(4)], summary[rows_of(ax)])
    assert column(ax, "mean") == [f"{value:.3f}" for value in summary[rows_of(ax)]]


def test_a_line_follows_each_donor():
    ax = benchmark(make_scores(), return_ax=True)
    for donor in "ABC":
        (line,) = named(ax, donor)
        np.testing.assert_array_equal(line.get_ydata(), range(4))
        assert (np.diff(line.get_xdata()) < 0).all()


def test_effective_n_stands_beside_methods_that_cite():
    ax = benchmark(make_scores(), return_ax=True)
    assert column(ax, "rows cited (effective)") == ["31", "none", "31", "none"]
    colors = [label.get_color() for label in ax.get_yticklabels()]
    assert [color == _style.EVIDENCE for color in colors] == [True, False, True, False]


def test_noise_ceiling():
    ax = benchmark(make_scores(), return_ax=True)
    band, line = named(ax, "noise ceiling")
    assert line.get_xdata()[0] == pytest.approx(0.75)
    assert band.get_x() == pytest.approx(0.7) and band.get_width() == pytest.approx(0.1)
    assert any("noise ceiling 0.75" in text.get_text() for text in ax.texts)
    assert named(benchmark(make_scores(), metric="rmse", return_ax=True), "noise ceiling") == []
    assert named(benchmark(make_scores(ceiling=False), return_ax=True), "noise ceiling") == []


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_lower_is_better_for_errors(metric):
    scores = make_scores().replace({"metric": {"rmse": metric}})
    assert rows_of(benchmark(scores, metric=metric, return_ax=True)) == ["rag", "ridge", "knn", "mean"]


def test_a_curve_over_the_donors_learned_from():
    parts = [make_scores(methods={"knn": 0.3 + n / 20, "ridge": 0.35 + n / 40}).assign(n_donors=n) for n in (1, 2, 4)]
    scores = pd.concat(parts, ignore_index=True)
    ax = benchmark(scores, return_ax=True)
    means = group_means(scores, "pearson")
    for line, method in zip(named(ax, "mean"), ("knn", "ridge"), strict=True):
        assert line.get_label() == method
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4])
        own = means[means["method"] == method].groupby("n_donors")["value"].mean()
        np.testing.assert_allclose(line.get_ydata(), own)
    assert len(named(ax, "A")) == 2
    assert ax.figure.legends[0].get_title().get_text() == "noise ceiling 0.75"
    assert ax.get_xlabel() == "donors learned from"
    with pytest.raises(ValueError, match=r"`baseline`: .* several numbers of donors.*'n_donors'\] == 4"):
        benchmark(scores, baseline="ridge")
    assert rows_of(benchmark(scores[scores["n_donors"] == 4], baseline="ridge", return_ax=True)) == ["knn", "ridge"]


def test_differences_are_paired_by_donor():
    from scipy.stats import ttest_rel

    values = pd.DataFrame({"A": [0.4, 0.52], "B": [0.6, 0.66], "C": [0.2, 0.33]}, index=["base", "better"])
    line = differences_to(values, "base").loc["better"]
    low, high = ttest_rel(values.loc["better"], values.loc["base"]).confidence_interval(0.95)
    np.testing.assert_allclose([line["low"], line["high"]], [low, high])
    assert line["difference"] == pytest.approx((0.12 + 0.06 + 0.13) / 3)
    of_two = differences_to(values[["A", "B"]], "base").loc["better"]
    assert of_two["difference"] == pytest.approx(0.09)
    assert np.isnan(of_two["low"]) and np.isnan(of_two["high"])


def test_differences_to_a_baseline():
    scores = make_scores()
    ax = benchmark(scores, baseline="ridge", return_ax=True)
    texts = column(ax, "difference (95 % interval)")
    values = group_means(scores, "pearson").pivot_table(index="method", columns="fold", values="value")
    line = differences_to(values, "ridge").loc["rag"]
    assert texts[0] == f"+{line['difference']:.3f} ({line['low']:.3f} to {line['high']:.3f})"
    assert texts[1] == "baseline"
    assert texts[3].startswith(_style.MINUS)
    two = benchmark(make_scores("AB"), baseline="ridge", return_ax=True)
    assert "(" not in column(two, "difference")[0]


def test_donors_are_told_apart_by_shape_while_there_are_shapes():
    def legend(ax):
        return [text.get_text() for text in ax.figure.legends[0].get_texts()]

    assert legend(benchmark(make_scores(), return_ax=True))[:3] == ["A", "B", "C"]
    many = benchmark(make_scores("ABCDEFGH"), return_ax=True)
    assert legend(many)[0] == "one of 8 held-out donors"
    assert {line.get_marker() for line in named(many, "donor")} == {"o"}


def test_a_donor_without_a_score_of_one_method():
    scores = make_scores()
    gap = (scores["method"] == "knn") & (scores["fold"] == "B") & (scores["metric"] == "pearson")
    ax = benchmark(scores[~gap], return_ax=True)
    assert np.isnan(named(ax, "B")[0].get_xdata()).sum() == 1


def test_methods_without_a_single_score_are_left_out():
    scores = make_scores()
    scores.loc[(scores["method"] == "knn") & (scores["metric"] == "pearson"), "value"] = np.nan
    assert rows_of(benchmark(scores, return_ax=True)) == ["rag", "ridge", "mean"]


def test_unit():
    both = pd.concat([make_scores(), make_scores(methods={"rag": 0.6}).assign(unit="log1p(counts)")])
    assert rows_of(benchmark(both, return_ax=True)) == ["rag", "ridge", "knn", "mean"]
    ax = benchmark(both, unit="log1p(counts)", return_ax=True)
    assert rows_of(ax) == ["rag"]
    assert ax.get_xlabel() == "Pearson correlation, log1p(counts)"


def test_save_and_own_axes(tmp_path):
    assert benchmark(make_scores(), save=tmp_path / "benchmark.png") is None
    assert (tmp_path / "benchmark.png").stat().st_size > 5000
    assert plt.get_fignums() == []
    figure, (_, right) = plt.subplots(1, 2, figsize=(12, 3))
    ax = benchmark(make_scores(), ax=right, return_ax=True)
    figure.canvas.draw()
    place, inside = right.get_window_extent(), ax.get_window_extent()
    assert place.x0 <= inside.x0 < inside.x1 <= place.x1 and place.y0 <= inside.y0 < inside.y1 <= place.y1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "pearsn"}, "Did you mean 'pearson'"),
        ({"metric": "noise_ceiling"}, "`metric`"),
        ({"baseline": "ridg"}, "Did you mean 'ridge'"),
        ({"unit": "counts"}, "`unit`"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark(make_scores(), **arguments)


def test_not_a_frame_of_scores():
    with pytest.raises(ValueError, match="no value of 'pearson'"):
        benchmark(make_scores().assign(value=np.nan))
    with pytest.raises(TypeError, match="`scores` is a dict"):
        benchmark({})
    with pytest.raises(ValueError, match="lacks the columns 'fold'"):
        benchmark(make_scores().drop(columns="fold"))
    with pytest.raises(ValueError, match="is empty"):
        benchmark(make_scores().iloc[:0])
