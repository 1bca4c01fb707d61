"""`rg.pl.viewer`: what the page carries against the table and `rg.get.explain`, read back without a browser."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import ragst_sd as rg
from ragst_sd._fields import write_sums

DTYPES = {"int16": 2, "int32": 4, "uint8": 1, "uint16": 2, "float32": 4}
HOSTILE = '</script><script>alert("&amp;")</script><img src=x onerror=alert(1)>'


class Elements(HTMLParser):
    """Elements of a page and the text in those that carry data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self._open = attributes.get("id") or (attributes.get("data-kind"), attributes.get("data-name"))

    def handle_data(self, data):
        self.text[self._open] = self.text.get(self._open, "") + data

    @property
    def head(self):
        return json.loads(self.text["head"])

    def array(self, name):
        block = self.head["blocks"][name]
        planes = np.frombuffer(gzip.decompress(base64.b64decode(self.text["numbers", name])), dtype=np.uint8)
        size = DTYPES[block["dtype"]]
        values = (
            np.ascontiguousarray(planes.reshape(size, -1).T).reshape(-1).view("<" + np.dtype(block["dtype"]).str[1:])
        )
        return values.reshape(block["shape"])

    def values(self, name):
        whole, head = self.array(name), self.head
        return np.where(whole == head["missing"], np.nan, whole / 10 ** head["decimals"]).T

    @property
    def names(self):
        return self.head["names"]


def explained(page, gene, spot):
    """The decomposition as the page computes it: reference id, weight, value, correction and contribution of each row."""
    votes = sum(page.array("votes")[p, spot] for p in range(len(page.array("masks"))) if page.array("masks")[p, gene])
    level = page.array("levels")[page.array("level_of")[spot], gene]
    lines = []
    for row, raw in zip(page.array("neighbours")[spot], page.array("weights")[spot], strict=True):
        if row < 0:
            break
        has = page.array("masks")[page.array("cited_mask")[row], gene]
        weight = raw / votes if has else 0.0
        value = page.array("cited_values")[gene, row] / 10 ** page.head["decimals"] if has else np.nan
        correction = page.array("corrections")[page.array("cited_section")[row], gene] + level if has else np.nan
        lines.append(
            (page.names["cited"][row], weight, value, correction, weight * (value + correction) if has else 0.0)
        )
    return lines


def page_of(sdata, reference, **kwargs):
    return Elements(rg.pl.viewer(sdata, reference, path=None, **kwargs).html)


@pytest.fixture
def page(predicted, fitted):
    return page_of(predicted, fitted, truth_key="table")


def test_values_are_those_of_the_table_to_the_last_digit(page, predicted):
    table, measured = predicted.tables["predicted"], predicted.tables["table"]
    names = [gene["name"] for gene in page.head["genes"]]
    assert len(names) == 200
    assert page.head["decimals"] == 3
    expected = np.asarray(table[:, names].X, dtype=float)
    np.testing.assert_array_equal(page.values("prediction"), np.round(expected, 3))
    evidence = page.values("prediction") - page.values("adjustment")
    np.testing.assert_allclose(evidence, np.round(np.asarray(table[:, names].layers["evidence"], float), 3), atol=1e-9)
    counts = np.asarray(measured.X.todense() if hasattr(measured.X, "todense") else measured.X, dtype=float)
    shared = [measured.var_names.get_loc(str(gene)) for gene in table.uns["retrieval"]["size_factor_genes"]]
    normalised = np.log1p(counts / counts[:, shared].sum(axis=1, keepdims=True) * 1e4)
    columns = measured.var_names.get_indexer(names)
    np.testing.assert_allclose(page.values("measured"), normalised[:, columns], atol=5.1e-4)
    assert page.names["spots"] == list(table.obs_names)
    for name in (
        "effective_n",
        "n_donors",
        "distance_percentile",
        "appearance_distance",
        "out_of_reference",
        "evidence_share",
    ):
        np.testing.assert_array_equal(page.array(name), table.obs[name].to_numpy(np.float32))


def test_fields_of_view_and_disagreement_of_the_spots(page, predicted):
    table = predicted.tables["predicted"]
    encoder = table.uns["retrieval"]["encoder"]
    tile = encoder["tile_px"] * encoder["mpp"] / page.head["image"]["mpp"]
    np.testing.assert_allclose(page.head["image"]["fields"], [tile, 2.5 * tile])
    spread = np.asarray(table[:, [gene["name"] for gene in page.head["genes"]]].layers["disagreement"], dtype=float)
    usual = spread.mean(axis=0)
    expected = (spread[:, usual > 0] / usual[usual > 0]).mean(axis=1)
    np.testing.assert_allclose(page.array("disagreement"), expected, rtol=1e-4)


@pytest.mark.parametrize("n_shown", [4, 12])
def test_decomposition_agrees_with_explain(predicted, fitted, n_shown):
    table = predicted.tables["predicted"]
    page = page_of(predicted, fitted, n_shown=n_shown)
    for spot in (0, 17):
        for gene in (0, 5):
            name = page.head["genes"][gene]["name"]
            parts = rg.get.explain(predicted, fitted, obs_names=table.obs_names[spot], genes=name).iloc[:-1]
            lines = explained(page, gene, spot)
            assert len(lines) == min(n_shown, len(parts))
            expected = parts.iloc[: len(lines)]
            assert [line[0] for line in lines] == list(expected["reference"])
            columns = ["weight", "value", "correction", "contribution"]
            np.testing.assert_allclose([line[1:] for line in lines], expected[columns].to_numpy(float), atol=6e-4)
            labels = page.head["labels"]["donor"]
            rows = page.array("neighbours")[spot][: len(lines)]
            assert [labels[code] for code in page.array("cited_donor")[rows]] == list(expected["donor"])


def test_genes_that_a_cited_row_did_not_measure_leave_its_weight_to_others(sections, query):
    few = sections["donor1"]
    few.tables["table"] = few.tables["table"][:, :230].copy()
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    table = query.tables["predicted"]
    gene = next(name for name in table.var_names if name not in few.tables["table"].var_names)
    cited = table.uns["retrieval"]["cited"]["donor"].to_numpy()[table.obsm["retrieval_rows"]]
    spot = int(np.flatnonzero((cited == "donor1").any(axis=1) & (cited == "donor2").any(axis=1))[0])
    parts = (
        rg.get.explain(query, reference, obs_names=table.obs_names[spot], genes=gene).iloc[:-1].set_index("reference")
    )
    lines = explained(page_of(query, reference, genes=gene), 0, spot)
    assert (parts["weight"] == 0).any()
    for name, weight, *rest in lines:
        np.testing.assert_allclose(weight, parts.loc[name, "weight"], atol=1e-6)
        np.testing.assert_allclose(
            rest, parts.loc[name, ["value", "correction", "contribution"]].astype(float), atol=6e-4
        )


def test_bounds_of_intervals_have_one_decimal_less(predicted, fitted, rng):
    table = predicted.tables["predicted"]
    width = rng.uniform(0.1, 1, table.shape).astype(np.float32)
    table.layers["lower"], table.layers["upper"] = np.maximum(table.X - width, 0), table.X + 1.5 * width
    table.layers["upper"][3] = np.nan
    table.uns["retrieval"] |= {"interval_level": 0.9, "interval_unit": "donor"}
    page = page_of(predicted, fitted)
    assert page.head["interval"] == {"level": 0.9, "unit": "donor"}
    missing = page.head["missing"]
    centre, above = (page.array("prediction").astype(int) + 5) // 10, page.array("above").astype(int)
    names = [gene["name"] for gene in page.head["genes"]]
    has = (above != missing).T
    assert has.sum() == has.size - has.shape[1]
    skew = page.array("skew").astype(int)
    assert (skew == page.head["at_zero"]).any() and (skew != page.head["at_zero"]).any()
    lower = np.where(skew == page.head["at_zero"], 0, centre - above - skew)
    for whole, layer in ((centre + above, "upper"), (lower, "lower")):
        expected = np.round(np.asarray(table[:, names].layers[layer], float), 2)
        np.testing.assert_allclose((whole.T / 100)[has], expected[has], atol=1e-9)


def test_methods_that_cite_nobody_have_a_page(query, reference):
    rg.tl.fit(reference, method="ridge")
    rg.tl.predict(query, reference)
    page = page_of(query, reference)
    assert page.head["cites"] is False
    assert page.names["cited"] == []
    assert not [tag for tag, attributes in page.tags if attributes.get("data-kind") == "thumbnails"]
    evidence = page.values("prediction") - page.values("adjustment")
    assert (np.ptp(evidence, axis=0) < 1e-9).all()


def test_spots_outside_the_image_have_no_value(predicted, fitted):
    table = predicted.tables["predicted"]
    for values in (table.X, table.layers["evidence"]):
        values[2] = np.nan
    write_sums(table)
    table.obsm["retrieval_rows"][2], table.obsm["retrieval_weights"][2] = -1, 0
    page = page_of(predicted, fitted)
    assert (page.array("prediction")[:, 2] == page.head["missing"]).all()
    assert (page.array("neighbours")[2] == -1).all()


def test_genes_are_the_best_trusted_ones(predicted, fitted):
    table = predicted.tables["predicted"]
    table.var["cv_pearson"] = np.nan
    table.var.loc[table.var_names[[7, 3, 9]], "cv_pearson"] = [0.2, 0.9, 0.05]
    page = page_of(predicted, fitted)
    names = [gene["name"] for gene in page.head["genes"]]
    assert names[:3] == list(table.var_names[[3, 7, 9]])
    assert [gene["trust"] for gene in page.head["genes"][:4]] == [0.9, 0.2, 0.05, None]
    spread = np.asarray(table[:, names[3:]].X).var(axis=0)
    assert (np.diff(spread) <= 0).all()
    chosen = page_of(predicted, fitted, genes=list(table.var_names[[5, 1]]))
    assert [gene["name"] for gene in chosen.head["genes"]] == list(table.var_names[[5, 1]])


def test_pictures_show_the_tiles_and_the_cited_thumbnails(page, predicted, fitted):
    def sheet(kind):
        return np.asarray(Image.open(BytesIO(base64.b64decode(page.text[kind, "0"]))).convert("RGB")).astype(int)

    edge = page.head["image"]["thumbnail_px"]
    assert edge == 64
    across = page.head["image"]["sheet_px"] // edge
    for row in (0, 40):
        y, x = edge * (row // across), edge * (row % across)
        shown = sheet("thumbnails")[y : y + edge, x : x + edge]
        expected = fitted.obsm["thumbnail"][fitted.obs_names.get_loc(page.names["cited"][row])]
        assert np.abs(shown - expected).mean() < 8
    # 32 px at 2 microns, from the level of 2 microns per pixel
    table = predicted.tables["predicted"]
    central = int(np.argmin(np.abs(table.obsm["spatial"] - 350).sum(axis=1)))
    left, top = np.rint(table.obsm["spatial"][central] / 2 - 16).astype(int)
    pixels = np.asarray(predicted.images["he"]["scale1"]["image"].transpose("y", "x", "c"))
    assert page.head["image"]["tile_px"] == 32
    across = page.head["image"]["sheet_px"] // 32
    y, x = 32 * (central // across), 32 * (central % across)
    shown = sheet("tiles")[y : y + 32, x : x + 32]
    assert np.abs(shown - pixels[top : top + 32, left : left + 32]).mean() < 8
    spots = page.array("xy")
    np.testing.assert_allclose(np.diff(spots, axis=0), np.diff(table.obsm["spatial"], axis=0), atol=1e-3)


def test_page_loads_nothing_from_elsewhere(predicted, fitted):
    text = rg.pl.viewer(predicted, fitted, path=None).html
    elements = Elements(text)
    for tag, attributes in elements.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not attributes.keys() & {"src", "srcset", "data", "action"}
        assert attributes.get("href", "#").startswith("#")
    policy = next(a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "unsafe" not in policy
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", without_data)
    assert not re.search(
        r"url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|innerHTML|document\.write|\beval\(", without_data
    )


def test_hostile_names_cannot_become_markup(predicted, fitted):
    table = predicted.tables["predicted"]
    table.obs_names = [f"{HOSTILE}{i}" for i in range(table.n_obs)]
    table.uns["retrieval"]["cited"]["donor"] = HOSTILE + "\u2028"
    plain = Elements(rg.pl.viewer(predicted, fitted, path=None).html)
    page = Elements(rg.pl.viewer(predicted, fitted, path=None, title=HOSTILE + "{{data}}").html)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.head["title"] == HOSTILE + "{{data}}"
    assert page.head["labels"]["donor"] == [HOSTILE + "\u2028"]
    assert page.names["spots"][0] == f"{HOSTILE}0"
    assert not set("<>&\u2028\u2029") & set(page.text["head"])


def test_page_is_written_and_shows_itself_in_a_notebook(predicted, fitted, tmp_path):
    path = tmp_path / "viewer.html"
    page = rg.pl.viewer(predicted, fitted, path=path, title="a section", height=700)
    assert path.read_text(encoding="utf-8") == page.html
    assert page.path == path
    assert len(repr(page)) < 200
    frame = page._repr_html_()
    source = re.search(r'srcdoc="([^"]*)"', frame)[1]
    assert html.unescape(source) == page.html
    assert 'height="700"' in frame
    assert 'sandbox="allow-scripts"' in frame
    rg.pl.viewer(predicted, fitted, path=path)
    assert "a section" not in path.read_text(encoding="utf-8")


def test_the_same_input_gives_the_same_page(predicted, fitted):
    first, second = (rg.pl.viewer(predicted, fitted, path=None).html for _ in range(2))
    assert first == second


def test_other_files_are_not_replaced(predicted, fitted, tmp_path):
    path = tmp_path / "notes.html"
    path.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match="no viewer page"):
        rg.pl.viewer(predicted, fitted, path=path)
    assert path.read_text() == "<p>mine</p>"


def test_bad_input_is_refused(predicted, fitted, sections):
    with pytest.raises(KeyError, match="nosuch"):
        rg.pl.viewer(predicted, fitted, genes=["nosuch"], path=None)
    with pytest.raises(ValueError, match="`genes` is empty"):
        rg.pl.viewer(predicted, fitted, genes=[], path=None)
    with pytest.raises(TypeError, match="genes"):
        rg.pl.viewer(predicted, fitted, genes=3, path=None)
    with pytest.raises(ValueError, match="n_shown"):
        rg.pl.viewer(predicted, fitted, n_shown=0, path=None)
    with pytest.raises(TypeError, match="SpatialData"):
        rg.pl.viewer(predicted.tables["predicted"], fitted, path=None)
    other = rg.tl.build_reference({"donor1": sections["donor1"]}, use_rep="X_colour")
    with pytest.raises(ValueError, match="hash"):
        rg.pl.viewer(predicted, other, path=None)
    del predicted.images["he"]
    with pytest.raises(ValueError, match=r"sdata\.images"):
        rg.pl.viewer(predicted, fitted, path=None)


def test_too_large_a_page_is_refused(predicted, fitted, monkeypatch):
    monkeypatch.setattr("ragst_sd.pl._viewer.LIMIT", 100_000)
    with pytest.raises(ValueError, match="Choose fewer genes"):
        rg.pl.viewer(predicted, fitted, path=None)


def test_a_decimal_is_given_up_before_the_page_is_refused(predicted, fitted, monkeypatch):
    low, high = 100_000, len(rg.pl.viewer(predicted, fitted, path=None).html)
    while high - low > 1_000:
        monkeypatch.setattr("ragst_sd.pl._viewer.LIMIT", middle := (low + high) // 2)
        try:
            page = page_of(predicted, fitted)
        except ValueError:
            low = middle
            continue
        if page.head["decimals"] == 2:
            break
        high = middle
    table = predicted.tables["predicted"]
    names = [gene["name"] for gene in page.head["genes"]]
    np.testing.assert_array_equal(page.values("prediction"), np.round(np.asarray(table[:, names].X, float), 2))


def test_nothing_is_changed(predicted, fitted):
    table = predicted.tables["predicted"]
    before = table.copy()
    rg.pl.viewer(predicted, fitted, path=None)
    np.testing.assert_array_equal(table.X, before.X)
    assert table.uns["retrieval"].keys() == before.uns["retrieval"].keys()
    assert list(table.obs) == list(before.obs)


def test_tiles_of_a_grid_are_drawn_as_squares(query, fitted, embed):
    rg.pp.tile_grid(query, image_key="he", tile_px=32, mpp=2.0)
    rg.pp.embed_tiles(query, shapes_key="tiles", table_key="tiles_table", **embed)
    rg.tl.predict(query, fitted, table_key="tiles_table")
    page = page_of(query, fitted)
    assert page.head["image"]["square"] is True
    np.testing.assert_allclose(page.array("radius"), 32.0, atol=1e-3)
    assert page.head["image"]["tile_um"] == 64.0
    rg.tl.predict(query, fitted, table_key="table", key_added="of_spots")
    discs = page_of(query, fitted, prediction_key="of_spots")
    assert discs.head["image"]["square"] is False
    np.testing.assert_allclose(discs.array("radius"), query.shapes["spots"]["radius"])
