"""`rg.pl.viewer` in a headless Chromium: what one sees and hears against `rg.get.explain`."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import ragst_sd as rg
from ragst_sd._fields import write_sums

pytestmark = pytest.mark.slow

MINUS = "\N{MINUS SIGN}"
HOSTILE = "</script><img src=x onerror=alert(1)>"


def written(value: float, decimals: int = 3, *, sign: bool = False) -> str:
    text = f"{round(float(value), decimals) + 0.0:.{decimals}f}".replace("-", MINUS)
    return f"+{text}" if sign and round(float(value), decimals) > 0 else text


FAR = "no measured tissue looks like this spot as compared with others of its section"
UNLIKE = "it looks unlike every section of the reference"


def read(text: str) -> float:
    return float(text.replace(MINUS, "-").replace(" %", "").replace("+", ""))


@pytest.fixture
def path(predicted, fitted, tmp_path):
    """A page with truth, intervals of spots, trust in genes and an adjustment."""
    table = predicted.tables["predicted"]
    table.X += np.linspace(-0.2, 0.3, table.n_vars, dtype=np.float32)
    write_sums(table)
    table.layers["lower"], table.layers["upper"] = table.X - 0.25, table.X + 0.5
    table.uns["retrieval"] |= {"interval_level": 0.9, "interval_unit": "spot"}
    table.var["cv_pearson"] = np.linspace(0.9, -0.2, table.n_vars)
    table.obs["out_of_reference"] = np.arange(table.n_obs) == 4
    table.obs["distance_percentile"] = np.where(np.arange(table.n_obs) == 4, 99.5, 40.0) + np.linspace(
        0, 0.4, table.n_obs
    )
    table.obs["appearance_distance"] = np.linspace(0.3, 0.9, table.n_obs)
    path = tmp_path / "viewer.html"
    rg.pl.viewer(predicted, fitted, truth_key="table", path=path, title="section <b>1</b>")
    return path


def place_of(page, table, name: str) -> tuple[float, float]:
    """Where a spot lies in the window, from its place in the image."""
    map_ = page.locator("#map")
    scale, left, top = (float(map_.get_attribute(f"data-{one}")) for one in ("scale", "left", "top"))
    corner = page.evaluate("() => JSON.parse(document.getElementById('head').textContent).image.corner")
    x, y = table.obsm["spatial"][table.obs_names.get_loc(name)]
    box = map_.bounding_box()
    return box["x"] + (x - corner[0]) * scale + left, box["y"] + (y - corner[1]) * scale + top


def lines_of(page) -> list[dict]:
    """The rows of the table of neighbours."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#neighbours tbody tr, #neighbours tfoot tr")].map((row) => ({
            kind: row.className.split(" ")[0],
            reference: row.querySelector("small")?.title ?? "",
            donor: row.querySelector(".donor")?.textContent ?? "",
            ...Object.fromEntries([...row.querySelectorAll("[data-column]")].map((cell) => [cell.dataset.column, cell.textContent])),
        }))"""
    )


def check_against_explain(page, predicted, fitted, spot: str, gene: str) -> None:
    table = predicted.tables["predicted"]
    parts = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene)
    value = table[spot, gene].X.item()
    assert page.locator("#spot-title").text_content() == f"Spot {spot}"
    assert page.locator("#predicted").text_content() == written(value)
    rows, lines = parts.iloc[:-1], lines_of(page)
    cited = [line for line in lines if line["kind"] == "neighbour"]
    assert [line["reference"] for line in cited] == list(rows["reference"])[:12]
    assert [line["donor"] for line in cited] == list(rows["donor"])[:12]
    for line, row in zip(cited, rows.itertuples(), strict=False):
        assert line["weight"] == f"{100 * row.weight:.1f} %"
        assert line["value"] == written(row.value)
        assert line["correction"] == written(row.correction, sign=True)
        assert abs(read(line["contribution"]) - row.contribution) <= 0.0011
    assert lines[-2]["kind"] == "adjustment"
    assert abs(read(lines[-2]["contribution"]) - parts["contribution"].iloc[-1]) <= 0.0011
    assert lines[-1]["contribution"] == written(value)
    assert abs(sum(read(line["contribution"]) for line in lines[:-1]) - value) < 0.0011 * len(lines)


def test_numbers_of_a_clicked_spot_are_those_of_explain(path, open_page, predicted, fitted):
    table = predicted.tables["predicted"]
    page = open_page(path)
    assert page.locator("#title").text_content() == "section <b>1</b>"
    for spot, gene in ((table.obs_names[10], table.var_names[3]), (table.obs_names[30], table.var_names[20])):
        page.select_option("#gene", label=f"{gene} (r {written(table.var.loc[gene, 'cv_pearson'], 2)})")
        page.mouse.click(*place_of(page, table, spot))
        check_against_explain(page, predicted, fitted, spot, gene)
        x = table[spot, gene].X.item()
        assert page.locator("#interval").text_content() == (
            f" (90 % interval {written(x - 0.25, 2)} to {written(x + 0.5, 2)})"
        )
        assert page.locator("#measured").text_content() == written(_measured(predicted, spot, gene))
        said = page.locator("#announce").text_content()
        assert said.startswith(f"Spot {spot}. {gene} predicted {written(x)}, ")
        facts = page.locator("#facts").text_content()
        assert f"Effective number{table.obs.loc[spot, 'effective_n']:.1f}" in facts


def test_a_spot_is_selected_at_the_start_and_a_click_takes_the_nearest(path, open_page, predicted, fitted):
    table = predicted.tables["predicted"]
    page = open_page(path)
    gene = table.var_names[0]
    highest = table.obs_names[int(np.argmax(np.asarray(table[:, gene].X)))]
    check_against_explain(page, predicted, fitted, highest, gene)
    # In the corner of the map, off the tissue.
    box, corner = page.locator("#map").bounding_box(), place_of(page, table, table.obs_names[0])
    x, y = box["x"] + 3, box["y"] + 3
    places = np.array([place_of(page, table, name) for name in table.obs_names])
    distance = np.hypot(*(places - [x, y]).T)
    assert distance.min() > 20 and corner in map(tuple, places.tolist())
    page.mouse.click(x, y)
    assert page.locator("#spot-title").text_content() == f"Spot {table.obs_names[distance.argmin()]}"


def test_cited_tiles_are_large_and_enlarged_beside_the_spot(path, open_page, predicted, fitted):
    page = open_page(path)
    tiles = page.locator("#gallery canvas")
    cited = [line for line in lines_of(page) if line["kind"] == "neighbour"]
    assert tiles.count() == len(cited) > 1
    assert all(min(tiles.nth(i).bounding_box()[side] for side in ("width", "height")) >= 96 for i in range(len(cited)))
    assert page.locator("#pair").is_hidden()
    button = page.locator("#gallery button").nth(1)
    assert cited[1]["donor"] in button.text_content() and cited[1]["weight"] in button.text_content()
    shown = fitted.obsm["thumbnail"][fitted.obs_names.get_loc(cited[1]["reference"])]
    for show in (button.hover, button.focus):
        page.mouse.move(2, 2)
        page.evaluate("() => document.activeElement.blur()")
        assert page.locator("#pair").is_hidden()
        show()
        page.wait_for_selector("#pair:not([hidden])")
        boxes = [page.locator(f"#pair-{one}").bounding_box() for one in ("query", "cited")]
        assert boxes[0]["width"] == boxes[1]["width"] > 200
        # Never under the pointer.
        around, tile = page.locator("#pair").bounding_box(), button.bounding_box()
        assert (
            around["x"] + around["width"] <= tile["x"]
            or around["y"] >= tile["y"] + tile["height"]
            or (around["y"] + around["height"] <= tile["y"])
        )
        page.wait_for_timeout(100)
        png = page.evaluate("() => document.querySelector('#pair-cited').toDataURL('image/png')")
        drawn = np.asarray(Image.open(BytesIO(base64.b64decode(png.partition(",")[2]))).convert("RGB"), dtype=float)
        assert drawn.shape == shown.shape == (64, 64, 3)
        # As JPEG.
        assert np.abs(drawn - shown).mean() < 8


def test_predicted_and_measured_have_one_scale_or_their_own(path, open_page):
    page = open_page(path)

    def ticks(colour: str) -> list[str]:
        page.select_option("#colour", colour)
        return page.locator("#legend-ticks span").all_text_contents()

    assert ticks("prediction") == ticks("measured")
    page.check("#own-scale")
    assert ticks("prediction") != ticks("measured")
    page.uncheck("#own-scale")
    assert ticks("prediction") == ticks("measured")


def test_browsers_of_2023_open_the_page(path, browser, predicted):
    page = browser.new_page()
    page.add_init_script("delete Uint8Array.fromBase64")
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    page.click("#go-highest")
    gene = predicted.tables["predicted"].var_names[0]
    value = np.asarray(predicted.tables["predicted"][:, gene].X).max()
    assert page.locator("#predicted").text_content() == written(value)
    page.close()


def _measured(sdata, spot: str, gene: str) -> float:
    table, predicted = sdata.tables["table"], sdata.tables["predicted"]
    counts = table[spot].to_df().iloc[0]
    total = counts[[str(one) for one in predicted.uns["retrieval"]["size_factor_genes"]]].sum()
    return float(np.log1p(counts[gene] / total * 1e4))


def test_neighbours_beyond_those_shown_are_lumped(predicted, fitted, tmp_path, open_page):
    path = tmp_path / "viewer.html"
    rg.pl.viewer(predicted, fitted, n_shown=3, truth_key=False, path=path)
    page = open_page(path)
    page.click("#go-highest")
    spot, lines = page.locator("#spot-title").text_content().removeprefix("Spot "), lines_of(page)
    gene = page.locator("#gene option:checked").text_content()
    assert [line["kind"] for line in lines] == ["neighbour"] * 3 + ["others", "adjustment", "total"]
    rest = rg.get.explain(predicted, fitted, obs_names=spot, genes=gene).iloc[3:-1]
    assert lines[3]["weight"] == f"{100 * rest['weight'].sum():.1f} %"
    assert abs(read(lines[3]["contribution"]) - rest["contribution"].sum()) <= 0.0021
    assert page.locator("#neighbours tfoot th").first.text_content() == f"{len(rest)} more"
    values = predicted.tables["predicted"][:, gene].X
    assert np.asarray(values).max() == predicted.tables["predicted"][spot, gene].X.item()


def test_arrow_keys_go_from_spot_to_spot_and_plus_zooms(path, open_page, predicted, fitted):
    table = predicted.tables["predicted"]
    page = open_page(path)
    middle = np.hypot(*(table.obsm["spatial"] - table.obsm["spatial"].mean(axis=0)).T).argmin()
    page.fill("#spot-name", table.obs_names[middle])
    page.press("#spot-name", "Enter")
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    first = page.locator("#spot-title").text_content().removeprefix("Spot ")
    page.keyboard.press("ArrowRight")
    second = page.locator("#spot-title").text_content().removeprefix("Spot ")
    (x0, y0), (x1, y1) = (table.obsm["spatial"][table.obs_names.get_loc(name)] for name in (first, second))
    assert x1 > x0
    assert abs(y1 - y0) < x1 - x0
    check_against_explain(page, predicted, fitted, second, table.var_names[0])
    page.keyboard.press("ArrowLeft")
    assert page.locator("#spot-title").text_content() == f"Spot {first}"
    before = float(page.locator("#map").get_attribute("data-scale"))
    page.keyboard.press("+")
    page.wait_for_function(f"() => Number(document.querySelector('#map').dataset.scale) > {before * 1.4}")
    page.keyboard.press("0")
    page.wait_for_function(f"() => Math.abs(Number(document.querySelector('#map').dataset.scale) - {before}) < 1e-9")


def test_everything_is_reached_by_tab_in_the_order_of_the_page(path, open_page):
    page = open_page(path)
    seen = []
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => document.activeElement.id || document.activeElement.getAttribute('href')"))
    wanted = ["#gene", "#map", "#details", "gene-filter", "gene", "colour", "opacity", "spot-name", "map", "zoom-in"]
    assert [one for one in seen if one in wanted][: len(wanted)] == wanted
    ring = page.evaluate(
        "() => { const m = document.querySelector('#map'); m.focus(); return getComputedStyle(m).outlineStyle; }"
    )
    assert ring == "solid"


def test_wheel_zooms_and_drag_moves_once_the_map_has_the_focus(path, open_page):
    page = open_page(path)
    map_ = page.locator("#map")
    box = map_.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    scale = float(map_.get_attribute("data-scale"))
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert float(map_.get_attribute("data-scale")) == scale
    page.focus("#map")
    page.mouse.wheel(0, -300)
    page.wait_for_function(f"() => Number(document.querySelector('#map').dataset.scale) > {scale * 1.2}")
    left, selected = float(map_.get_attribute("data-left")), page.locator("#spot-title").text_content()
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=3)
    page.mouse.up()
    page.wait_for_function(f"() => Math.abs(Number(document.querySelector('#map').dataset.left) - {left + 30}) < 2")
    assert page.locator("#spot-title").text_content() == selected


def test_warnings_name_what_to_doubt(path, open_page, predicted):
    table = predicted.tables["predicted"]
    page = open_page(path)
    doubtful = page.locator("#gene option.doubtful")
    trust = table.var["cv_pearson"].sort_values(ascending=False).iloc[:200]
    assert doubtful.count() == (trust < 0.1).sum() > 0
    assert "not to be trusted" in doubtful.last.get_attribute("title")
    page.fill("#spot-name", table.obs_names[4])
    page.press("#spot-name", "Enter")
    page.select_option("#gene", doubtful.last.get_attribute("value"))
    text = page.locator("#warnings").text_content()
    assert f"Out of reference: {FAR}." in text and UNLIKE not in text
    assert "not to be trusted" in text
    assert "counted by spot, not by donor" in text
    assert "Warnings: Out of reference" in page.locator("#announce").text_content()
    page.fill("#spot-name", table.obs_names[5])
    page.press("#spot-name", "Enter")
    assert "Out of reference" not in page.locator("#warnings").text_content()
    page.fill("#spot-name", "no such spot")
    page.press("#spot-name", "Enter")
    assert page.locator("#spot-note").text_content() == "No spot of that name."
    assert page.locator("#spot-title").text_content() == f"Spot {table.obs_names[5]}"


def test_why_a_spot_is_out_of_reference(predicted, fitted, tmp_path, open_page):
    table = predicted.tables["predicted"]
    far, unlike = np.zeros(table.n_obs, dtype=bool), np.zeros(table.n_obs, dtype=bool)
    far[[3, 5]], unlike[[4, 5]] = True, True
    table.obs["out_of_reference"] = far | unlike
    table.obs["distance_percentile"] = np.where(far, 99.0, 50.0)
    table.obs["appearance_distance"] = np.where(unlike, 2.25, 0.5)
    path = tmp_path / "viewer.html"
    rg.pl.viewer(predicted, fitted, genes=fitted.var_names[0], truth_key=False, path=path)
    page = open_page(path)
    for spot in (3, 4, 5, 6):
        page.fill("#spot-name", table.obs_names[spot])
        page.press("#spot-name", "Enter")
        assert page.locator("#spot-title").text_content() == f"Spot {table.obs_names[spot]}"
        text = page.locator("#warnings").text_content()
        assert (f"Out of reference: {FAR}." in text) == far[spot]
        assert (f"Out of reference: {UNLIKE}." in text) == unlike[spot]
        facts = page.locator("#facts").text_content()
        assert f"Difference in look (limit 1){'2.25' if unlike[spot] else '0.50'}" in facts
    page.select_option("#colour", "appearance_distance")
    assert page.locator("#legend-title").text_content().startswith("Difference in look from the nearest section")
    assert "0.50" in page.locator("#legend-ticks").text_content()


def test_map_takes_the_colours_of_the_legend(predicted, fitted, tmp_path, open_page):
    import matplotlib as mpl

    path = tmp_path / "viewer.html"
    rg.pl.viewer(predicted, fitted, genes=fitted.var_names[0], truth_key=False, path=path)
    table = predicted.tables["predicted"]
    page = open_page(path)
    page.fill("#opacity", "100")
    gene = table.var_names[0]
    values = np.asarray(table[:, gene].X).ravel()
    spot = table.obs_names[int(np.argmax(values))]
    x, y = place_of(page, table, spot)

    def colour():
        page.wait_for_timeout(100)
        pixel = page.screenshot(clip={"x": round(x), "y": round(y), "width": 1, "height": 1})
        return np.asarray(Image.open(BytesIO(pixel)).convert("RGB")).ravel().astype(int)

    np.testing.assert_allclose(colour(), 255 * np.array(mpl.colormaps["viridis"](1.0)[:3]), atol=2)
    page.select_option("#colour", "effective_n")
    few = table.obs["effective_n"].astype(np.float32)
    low, high = np.quantile(few, [0.01, 0.99], method="nearest")
    share = np.clip((few[spot] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(colour(), 255 * np.array(mpl.colormaps["cividis"](float(share))[:3]), atol=3)
    assert page.locator("#legend-title").text_content().startswith("Effective number of measured spots")


def test_legend_of_a_constant_names_it_once(predicted, fitted, tmp_path, open_page):
    predicted.tables["predicted"].obs["n_donors"] = 2
    path = tmp_path / "viewer.html"
    rg.pl.viewer(predicted, fitted, genes=fitted.var_names[0], truth_key=False, path=path)
    page = open_page(path)
    page.select_option("#colour", "n_donors")
    assert page.locator("#legend-ticks span").all_text_contents() == ["2"]


def test_genes_can_be_searched(path, open_page, predicted):
    page = open_page(path)
    wanted = predicted.tables["predicted"].var_names[7]
    page.fill("#gene-filter", wanted.lower())
    options = page.locator("#gene option").all_text_contents()
    assert options
    assert all(wanted.lower() in option.lower() for option in options)
    assert f"of {200}" in page.locator("#gene-count").text_content()


def test_narrow_page_has_everything_below_each_other(path, open_page):
    page = open_page(path, width=700, height=900)
    page.click("#go-nearest")
    boxes = [page.locator(name).bounding_box() for name in ("#controls", "#view", "#details")]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_page_shows_itself_in_a_notebook(predicted, fitted, tmp_path, open_page, browser):
    made = rg.pl.viewer(predicted, fitted, truth_key=False, path=None)
    notebook = tmp_path / "notebook.html"
    notebook.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body data-ready><div style="width: 700px">{made._repr_html_()}</div></body>',
        encoding="utf-8",
    )
    page = open_page(notebook)
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.locator("#go-highest").click()
    gene = frame.locator("#gene option:checked").text_content()
    values = np.asarray(predicted.tables["predicted"][:, gene].X)
    assert frame.locator("#predicted").text_content() == written(values.max())


def test_methods_that_cite_nobody_show_the_mean_and_the_adjustment(query, reference, tmp_path, open_page):
    rg.tl.fit(reference, method="ridge")
    rg.tl.predict(query, reference)
    path = tmp_path / "viewer.html"
    rg.pl.viewer(query, reference, truth_key=False, path=path)
    page = open_page(path)
    page.click("#go-highest")
    spot = page.locator("#spot-title").text_content().removeprefix("Spot ")
    gene = page.locator("#gene option:checked").text_content()
    parts = rg.get.explain(query, reference, obs_names=spot, genes=gene)
    lines = lines_of(page)
    assert [line["kind"] for line in lines] == ["mean", "adjustment", "total"]
    assert "Method ridge cites no measured spots" in page.locator("#warnings").text_content()
    assert lines[0]["contribution"] == written(parts["contribution"].iloc[0])
    assert abs(read(lines[1]["contribution"]) - parts["contribution"].iloc[1]) <= 0.0011


def test_hostile_names_are_shown_as_text(sections, tmp_path, open_page):
    for i, sdata in enumerate(sections.values()):
        table = sdata.tables["table"]
        table.var_names = [HOSTILE, *table.var_names[1:]]
        table.obs["donor"] = f"{HOSTILE} donor {i}"
        table.obs_names = [f"{HOSTILE} {name}" for name in table.obs_names]
    query = sections.pop("donor3")
    reference = rg.tl.build_reference({f"{HOSTILE} {name}": one for name, one in sections.items()}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=5)
    rg.tl.predict(query, reference)
    path = tmp_path / "viewer.html"
    rg.pl.viewer(query, reference, genes=HOSTILE, title=HOSTILE, truth_key=False, path=path)
    page = open_page(path)
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    page.hover("#map")
    page.wait_for_timeout(200)
    assert page.locator("img").count() == 0
    assert page.locator("#title").text_content() == HOSTILE
    assert page.locator("#gene option").first.text_content() == HOSTILE
    assert page.locator("#spot-title").text_content().startswith(f"Spot {HOSTILE}")
    assert lines_of(page)[0]["donor"].startswith(f"{HOSTILE} donor ")
    assert HOSTILE in page.locator("#announce").text_content()


def test_spot_without_a_value_says_so(predicted, fitted, tmp_path, open_page):
    table = predicted.tables["predicted"]
    for values in (table.X, table.layers["evidence"]):
        values[2] = np.nan
    write_sums(table)
    table.obsm["retrieval_rows"][2], table.obsm["retrieval_weights"][2] = -1, 0
    table.obs["n_donors"] = np.where(np.arange(table.n_obs) == 2, 0, table.obs["n_donors"])
    table.obs["out_of_reference"] = np.arange(table.n_obs) == 2
    path = tmp_path / "viewer.html"
    rg.pl.viewer(predicted, fitted, truth_key=False, path=path)
    page = open_page(path)
    page.fill("#spot-name", table.obs_names[2])
    page.press("#spot-name", "Enter")
    assert page.locator("#value strong").text_content() == "no value: outside the image"
    assert "Out of reference: it lies outside the image." in page.locator("#warnings").text_content()
    assert page.locator("#neighbours").is_hidden()
    assert "Hollow: no value." in page.locator("#key").text_content()
