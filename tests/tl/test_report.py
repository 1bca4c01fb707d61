"""`rg.tl.report`: its numbers are those of the table, and its sentences follow the facts."""

from __future__ import annotations

import re

import numpy as np
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd._licenses import (
    NO_DERIVATIVES,
    NON_COMMERCIAL,
    PERMISSIVE,
    PUBLIC_DOMAIN,
    SHARE_ALIKE,
    UNKNOWN,
    UNRECOGNISED,
    terms_of,
)
from ragst_sd.reference.hashing import fit_hash

from ..html_reader import Reader


def write(tmp_path, *args, **kwargs):
    markdown, page = rg.tl.report(*args, path=tmp_path / "card", **kwargs)
    assert (markdown.name, page.name) == ("card.md", "card.html")
    text = markdown.read_text(encoding="utf-8")
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text), Reader(page.read_text(encoding="utf-8"))


def cells(text, label):
    """Cells of the line of a Markdown table that starts with a label."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch):
    """What is on them is tested in `tests/pl`; fine ones take most of the time."""
    monkeypatch.setattr("ragst_sd.tl._report._DPI", 30)


@pytest.fixture(scope="module")
def _assessed(_sections):
    """A prediction from two donors with two licences, whose genes were cross-validated."""
    sources = {
        "donor1": {"license": "MIT", "citation": "First et al., 2020", "tissue": "breast", "technology": "Visium"},
        "donor2": {
            "license": "CC-BY-NC-4.0",
            "citation": "Second et al., 2021",
            "tissue": "breast",
            "technology": "ST",
        },
    }
    training = {name: _sections[name] for name in sources}
    reference = rg.tl.build_reference(training, use_rep="X_colour", sources=sources)
    random = np.random.default_rng(0)
    reference.var["cv_pearson"] = random.uniform(-0.1, 0.7, reference.n_vars)
    reference.var["noise_ceiling"] = random.uniform(0.7, 0.9, reference.n_vars)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    return rg.tl.predict(_sections["donor3"], reference, inplace=False), reference


@pytest.fixture
def assessed(query, _assessed):
    """Copies of the prediction, beside its section, and of the reference."""
    table, reference = _assessed
    query.tables["predicted"] = table.copy()
    return query, reference.copy()


def test_numbers_are_those_of_the_table(assessed, tmp_path):
    query, reference = assessed
    text, page = write(tmp_path, query, reference, pictures=False)
    table = query.tables["predicted"]
    header, score = table.uns["retrieval"], table.var["cv_pearson"].to_numpy()
    named = rg.get.neighbors(table)
    for donor, license in {"donor1": "MIT", "donor2": "CC-BY-NC-4.0"}.items():
        own = named[named["sample"] == donor]
        share = f"{100 * own['weight'].sum() / named['weight'].sum():.0f} %"
        n_rows = int((reference.obs["sample"] == donor).sum())
        expected = [donor, "breast", "Visium" if donor == "donor1" else "ST", license]
        assert cells(text, donor) == [*expected, str(n_rows), str(own["reference"].nunique()), share]
    for threshold in (0.1, 0.3, 0.5):
        n = int((score >= threshold).sum())
        assert cells(text, f"at least {threshold}") == [str(n), f"{100 * n / len(score):.0f} %"]
    low, median, high = np.quantile(table.obs["effective_n"], [0.25, 0.5, 0.75])
    found = cells(text, "effective number of measured spots per prediction")
    assert found == [f"{median:.1f} ({low:.1f} to {high:.1f})"]
    most = np.sort(np.argsort(-reference.var["reference_variance"].to_numpy(), kind="stable")[:250])
    assert cells(text, "Accuracy on held-out donors")[0] == f"{score[most].mean():.2f}"
    out = table.obs["out_of_reference"]
    assert cells(text, "spots out of reference")[0].startswith(f"{out.sum()} (")
    assert cells(text, "reference") == [f"`{header['reference_hash']}`"]
    assert cells(text, "fit") == [f"`{header['fit_hash']}`"]
    best = table.var["cv_pearson"].idxmax()
    assert cells(text, best)[:2] == [f"{score.max():.2f}", f"{table.var.loc[best, 'noise_ceiling']:.2f}"]
    assert table.var["cv_pearson"].idxmin() in text.partition("The 10 worst")[2]
    for part in ("`knn`", "First et al., 2020", "Second et al., 2021", header["software"], "2 donors"):
        assert part in text
        assert part.strip("`") in page.prose


def test_markdown_and_html_say_the_same(assessed, tmp_path):
    text, page = write(tmp_path, *assessed)
    prose = re.sub(
        r"[`|#]|^- |-{3,}:?|<!--.*?-->|\(Picture in the HTML page: |At a glance", " ", text, flags=re.MULTILINE
    )
    said, shown = (set(re.findall(r"[\w.%]+", one)) for one in (prose, " ".join(page.text)))
    assert said - shown == set()


def test_html_needs_no_other_file(assessed, tmp_path):
    query, reference = assessed
    _, page = write(tmp_path, query, reference)
    assert page.tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    text, page = write(tmp_path, query, reference, pictures=False)
    assert page.sources == [] and "No maps: they were not asked for." in text
    text, page = write(tmp_path, query.tables["predicted"], reference)
    assert page.sources == [] and "without its image" in text
    del query.images["he"]
    assert "No maps: image `he` is not in the object." in write(tmp_path, query, reference)[0]


def test_what_users_write_is_text(sections, query, tmp_path):
    """Names and citations are neither tags, nor tables, nor emphasis."""
    nasty = "<script>alert(1)</script> | *A* `b` & [c](d) \n # e"
    sources = {"donor1": {"citation": nasty, "license": "MIT"}, "donor2": {"license": '"><img src=x>'}}
    training = {name: sections[name] for name in ("donor1", "donor2")}
    reference = rg.tl.build_reference(training, use_rep="X_colour", sources=sources)
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    _, page = write(tmp_path, query, reference, pictures=False)
    assert not {"script", "img", "a", "em"} & set(page.tags)
    assert "<script>alert(1)</script> | *A* `b` & [c](d) # e" in page.prose
    assert '"><img src=x>' in page.prose
    raw = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert r"\<script\>alert(1)\</script\> \| \*A\* \`b\` \& \[c\](d) \# e" in raw


def test_what_was_not_assessed_is_said(predicted, fitted, tmp_path):
    text, _ = write(tmp_path, predicted, fitted, pictures=False, truth_key=False)
    missing = text.partition("## What was not assessed")[2].partition("##")[0]
    for part in (
        "no gene was cross-validated", "there are no intervals", "no measured table was given", "The terms of 2 of 2 sections",
        "no citation was named", "The licence of the encoder (colour)", "the tissue of some of it was not named",
    ):  # fmt: skip
        assert part in missing
    assert cells(text, "Accuracy on held-out donors") == ["not assessed", "no cross-validation"]
    assert "No gene was assessed, so no gene is known to be predicted well" in text
    assert "Not all terms of the sources are known" in text
    assert not re.search(r"\bnan\b", text.lower())


def test_most_restrictive_licence_stands_on_top(assessed, tmp_path):
    text, _ = write(tmp_path, *assessed, pictures=False)
    assert cells(text, "Most restrictive licence") == ["CC-BY-NC-4.0", "1 of 2 sections: no commercial use"]
    assert "forbid commercial use" in text
    assert text.index("CC-BY-NC-4.0 (1 of 2 sections)") < text.index("MIT (1 of 2 sections)")


def caveats(text):
    return text.partition("## What not to conclude")[2].partition("##")[0]


def test_caveats_follow_the_facts(assessed, tmp_path):
    query, reference = assessed
    table = query.tables["predicted"]
    table.obs["out_of_reference"] = False
    table.obs["appearance_distance"] = 0.5
    before = caveats(write(tmp_path, query, reference, pictures=False)[0])
    low = int((table.var["cv_pearson"] < 0.1).sum())
    assert f"{low} genes of 260 assessed had a correlation below 0.1" in before
    assert "The reference is 2 donors" in before
    for absent in (
        "out of reference",
        "look unlike",
        "calibrated over",
        "own donor could be used",
        "regression over all rows",
        "cites no",
    ):
        assert absent not in before
    changes = {
        "% of the spots are out of reference (": lambda: table.obs.__setitem__(
            "out_of_reference", np.arange(table.n_obs) % 4 == 0
        ),
        "Do not use the prediction for the section": lambda: table.obs.__setitem__("out_of_reference", True),
        f"1 spot ({100 / table.n_obs:.0f} %) out of reference": lambda: table.obs.__setitem__(
            "out_of_reference", np.arange(table.n_obs) == 0
        ),
        "100 % of the spots look unlike": lambda: table.obs.__setitem__("appearance_distance", 1.5),
        "is measured evidence; the rest is a regression over all rows": lambda: table.obs.__setitem__(
            "evidence_share", 0.3
        ),
        "own donor could be used": lambda: table.uns["retrieval"].__setitem__("exclude", np.array([], dtype=str)),
        "Nothing is known about the accuracy of genes": lambda: table.var.__setitem__(
            "cv_pearson", table.var["cv_pearson"].where(np.arange(table.n_vars) > 2)
        ),
    }
    for sentence, change in changes.items():
        change()
        assert sentence in caveats(write(tmp_path, query, reference, pictures=False)[0]), sentence


@pytest.mark.parametrize(("unit", "warns"), [("donor", False), ("section", True), ("spot", True)])
def test_intervals_name_their_level_and_unit(assessed, tmp_path, unit, warns):
    query, reference = assessed
    table = query.tables["predicted"]
    table.layers["lower"], table.layers["upper"] = table.X - 0.5, table.X + 1
    table.layers["lower"][:, 4] = np.nan
    table.layers["upper"][:, 4] = np.nan
    table.uns["retrieval"] |= {"interval_level": 0.8, "interval_unit": unit}
    text, _ = write(tmp_path, query, reference, truth_key="table", pictures=False)
    assert cells(text, "Intervals") == ["80 %", f"calibrated over {unit}s"]
    assert cells(text, "genes without an interval") == ["1"]
    assert any(line.startswith("| width, in log1p") and "1.50 (1.50 to 1.50)" in line for line in text.splitlines())
    assert (f"calibrated over {unit}s, not over donors" in caveats(text)) == warns
    assert "there are no intervals" not in text
    counts = query.tables["table"].X.toarray().astype(float)
    truth = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    truth = truth[:, query.tables["table"].var_names.get_indexer(table.var_names)]
    inside = ((truth >= table.layers["lower"]) & (truth <= table.layers["upper"]))[
        :, np.arange(table.n_vars) != 4
    ].mean()
    assert cells(text, "measured values of this section inside") == [f"{100 * inside:.0f} %"]


def test_agreement_is_that_of_evaluate(assessed, tmp_path):
    query, reference = assessed
    text, page = write(tmp_path, query, reference, truth_key="table")
    scores = rg.tl.evaluate(query, metrics=["pearson", "rmse"], n_genes=None)
    for metric in ("pearson", "rmse"):
        values = scores[(scores["metric"] == metric) & (scores["gene"] != "")]["value"]
        low, median, high = values.quantile([0.25, 0.5, 0.75])
        assert cells(text, metric) == [f"{median:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")]
    assert "no measured table was given" not in text
    assert page.tags.count("img") == 2
    # The tile has the figure that `evaluate` and the demo print.
    headline = rg.get.summary(rg.tl.evaluate(query)).iloc[0]
    value, about = cells(text, "Agreement with this section")
    assert value == f"{headline['pearson']:.2f}"
    assert about == (
        f"Pearson r over spots, mean of {headline['n_genes']:.0f} genes that vary most in the reference; "
        f"of all {query.tables['predicted'].n_vars}: {headline['pearson_all_genes']:.2f}"
    )


@pytest.mark.parametrize("method", ["ridge", "mean"])
def test_methods_that_cite_nobody(query, reference, method, tmp_path):
    rg.tl.fit(reference, method=method, n_neighbors=10)
    rg.tl.predict(query, reference)
    text, _ = write(tmp_path, query, reference, pictures=method == "ridge")
    assert f"Method '{method}' cites no measured spots" in text
    assert "The method cites no rows" in text
    assert "effective number" not in text


def test_a_stack_that_is_regression_alone(query, reference, quick, tmp_path):
    rg.tl.fit(reference, n_neighbors=10, options=quick("rag"), progress=False)
    header = reference.uns["ragst"]
    header["fit"]["parameters"]["retrieval_share"] = np.zeros(reference.n_vars)
    header["fit"]["fit_hash"] = fit_hash(
        header, header["fit"], *(reference.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )
    rg.tl.predict(query, reference)
    text, _ = write(tmp_path, query, reference, pictures=False)
    assert "Method 'rag' cites no measured spots in this prediction" in text
    assert "| share of retrieval, the rest being regression | 0 % |" in text
    assert "| spots cited per prediction, at most | none |" in text


def test_one_donor(sections, query, tmp_path):
    reference = rg.tl.build_reference({"donor1": sections["donor1"]}, use_rep="X_colour")
    reference.var["cv_pearson"] = reference.var["noise_ceiling"] = 0.5
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(query, reference)
    text, _ = write(tmp_path, query, reference, pictures=False)
    assert "The reference is one donor." in caveats(text)
    assert "## Accuracy on held-out blocks" in text
    assert "held-out donors" not in text
    assert "`out_of_reference` rests on held-out blocks" in text


def test_after_filtering_and_from_disk(assessed, tmp_path):
    query, reference = assessed
    rg.pp.filter_predicted(query, min_cv_pearson=0.4)
    query.write(tmp_path / "s.zarr")
    n = query.tables["predicted"].n_vars
    text, _ = write(tmp_path, sd.read_zarr(tmp_path / "s.zarr"), reference, pictures=False)
    assert f"has dropped {260 - n} of 260 genes before ({260 - n} by cv_pearson)" in text
    assert "correlation below 0.1" not in text


def test_a_fit_made_anew_is_not_told_for_the_old_one(assessed, tmp_path):
    query, reference = assessed
    assert "sharpness 2.0" in write(tmp_path, query, reference, pictures=False)[0]
    rg.tl.fit(reference, method="knn", n_neighbors=10, options={"sharpness": 3.0})
    text, _ = write(tmp_path, query, reference, pictures=False)
    assert "sharpness" not in text and "fitted anew since" in text


def test_files_of_others_stay(predicted, fitted, tmp_path):
    mine = tmp_path / "card.html"
    mine.write_text("my own page")
    with pytest.raises(FileExistsError, match=r"card\.html exists and was not written by `rg\.tl\.report`"):
        rg.tl.report(predicted, fitted, path=tmp_path / "card.md", pictures=False)
    assert mine.read_text() == "my own page"
    assert [file.name for file in tmp_path.iterdir()] == ["card.html"]
    rg.tl.report(predicted, fitted, path=mine, pictures=False, overwrite=True)
    assert "Prediction card" in mine.read_text(encoding="utf-8")
    first = mine.stat().st_ino
    rg.tl.report(predicted, fitted, path=str(tmp_path / "card"), pictures=False)
    assert mine.stat().st_ino != first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["card.html", "card.md"]


def test_a_page_that_fails_leaves_the_old_one(assessed, tmp_path, monkeypatch):
    query, reference = assessed
    rg.tl.report(query, reference, path=tmp_path / "card", pictures=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        rg.tl.report(query, reference, path=tmp_path / "card", pictures=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_nothing_changes(assessed, tmp_path):
    query, reference = assessed
    table = query.tables["predicted"]
    before = (table.X.copy(), table.obs.copy(), table.var.copy(), sorted(table.uns["retrieval"]), list(query.tables))
    write(tmp_path, query, reference, truth_key="table")
    after = (table.X, table.obs, table.var, sorted(table.uns["retrieval"]), list(query.tables))
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1].equals(after[1]) and before[2].equals(after[2]) and before[3:] == after[3:]


def stripped(sdata, reference):
    del sdata.tables["predicted"].uns["retrieval"]


def no_column(sdata, reference):
    del sdata.tables["predicted"].obs["out_of_reference"]


def other(sdata, reference):
    reference.X = reference.X * 2


BAD = {
    "stripped": (stripped, {}, ValueError, ["lacks uns['retrieval']"]),
    "another tool's table": (None, {"prediction_key": "table"}, ValueError, ["lacks uns['retrieval']"]),
    "no table": (None, {"prediction_key": "predictd"}, KeyError, ["'predictd'"]),
    "column gone": (no_column, {}, KeyError, ["'out_of_reference'", "table.obs"]),
    "another reference": (other, {}, ValueError, ["made from a reference with hash"]),
    "no folder": (None, {"path": "nowhere/card"}, FileNotFoundError, ["nowhere/card", "no folder"]),
    "no truth": (None, {"truth_key": "tabel"}, KeyError, ["'tabel'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(predicted, fitted, name, tmp_path, monkeypatch):
    change, arguments, error, parts = BAD[name]
    monkeypatch.chdir(tmp_path)
    if change is not None:
        change(predicted, fitted)
    with pytest.raises(error) as caught:
        rg.tl.report(predicted, fitted, **arguments)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_reference_and_bare_table(predicted, fitted, tmp_path):
    with pytest.raises(ValueError, match="The reference is needed"):
        rg.tl.report(predicted, None, path=tmp_path / "card")
    with pytest.raises(ValueError, match="`truth_key` names a table of a SpatialData"):
        rg.tl.report(predicted.tables["predicted"], fitted, path=tmp_path / "card", truth_key="table")


@pytest.mark.parametrize(
    ("license", "terms"),
    [
        ("CC0-1.0", PUBLIC_DOMAIN), ("public domain", PUBLIC_DOMAIN), ("MIT", PERMISSIVE), ("BSD-3-Clause", PERMISSIVE),
        ("Apache-2.0", PERMISSIVE), ("CC-BY-4.0", PERMISSIVE), ("CC BY 4.0", PERMISSIVE), ("as ragst_sd", PERMISSIVE),
        ("ODC-By-1.0", PERMISSIVE), ("CC-BY-SA-4.0", SHARE_ALIKE), ("GPL-3.0-only", SHARE_ALIKE), ("GPLv3", SHARE_ALIKE),
        ("CC-BY-NC-4.0", NON_COMMERCIAL), ("cc by-nc-sa 4.0", NON_COMMERCIAL),
        ("Owkin non-commercial licence", NON_COMMERCIAL), ("Apache-2.0, research use only", NON_COMMERCIAL),
        ("CC-BY-ND-4.0", NO_DERIVATIVES), ("CC-BY-NC-ND-4.0", NO_DERIVATIVES), ("unknown", UNKNOWN), ("", UNKNOWN),
        ("none stated", UNKNOWN), ("My Lab Terms", UNRECOGNISED), ("10x end user licence", UNRECOGNISED),
        ("MIT, not for commercial use", NON_COMMERCIAL), ("CC BY 4.0; no commercial use", NON_COMMERCIAL),
        ("BSD-3-Clause, research purposes only", NON_COMMERCIAL), ("non commercial", NON_COMMERCIAL),
        ("CC BY 4.0 non\u2011commercial", NON_COMMERCIAL), ("Attribution-NonCommercial 4.0", NON_COMMERCIAL),
        ("BY-NC-SA 4.0", NON_COMMERCIAL), ("Creative Commons Attribution-NoDerivatives 4.0", NO_DERIVATIVES),
        ("Apache-2.0 with Commons Clause", UNRECOGNISED), ("evaluation only; ISC", UNRECOGNISED),
        ("dbGaP controlled access, MIT code", UNRECOGNISED), ("CC0-1.0, on request", UNRECOGNISED),
        ("GPL-3.0, evaluation only", UNRECOGNISED), ("MIT \u975e\u5546\u7528", UNRECOGNISED), ("CC", UNRECOGNISED),
        ("public license", UNRECOGNISED), ("n/a", UNKNOWN), ("N/A", UNKNOWN), ("<NA>", UNKNOWN), ("not specified", UNKNOWN),
        ("The MIT License", PERMISSIVE), ("Apache License, Version 2.0", PERMISSIVE), ("MIT OR Apache-2.0", PERMISSIVE),
        ("Creative Commons Attribution 4.0 International", PERMISSIVE), ("MIT AND GPL-3.0-or-later", SHARE_ALIKE),
        ("GNU General Public License v3", SHARE_ALIKE), ("Creative Commons Attribution-ShareAlike 4.0", SHARE_ALIKE),
        ("CC0 1.0 Universal Public Domain Dedication", PUBLIC_DOMAIN), ("Unlicense", PUBLIC_DOMAIN),
    ],
)  # fmt: skip
def test_terms_of_licences(license, terms):
    assert terms_of(license) is terms


def test_terms_are_ordered_by_what_they_ask():
    order = [PUBLIC_DOMAIN, PERMISSIVE, SHARE_ALIKE, NON_COMMERCIAL, NO_DERIVATIVES, UNRECOGNISED, UNKNOWN]
    assert sorted(order) == order and len({terms.rank for terms in order}) == len(order)
