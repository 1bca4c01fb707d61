"""The sections of a report, written from its facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._licenses import UNKNOWN, terms_of
from ragst_sd._results import MIN_CV_PEARSON
from ragst_sd.retrieval.grounding import FLAGGED
from ragst_sd.tl._report_caveats import not_assessed, what_not_to_conclude
from ragst_sd.tl._report_facts import MISSING, count, number, percent, quartiles
from ragst_sd.tl._report_page import Bullets, Page, Section, Table, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ragst_sd.tl._report_facts import Facts
    from ragst_sd.tl._report_page import Picture

_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
_LISTED = 10
_HASH = 16


def page_of(facts: Facts, pictures: Sequence[Picture], why_no_pictures: str) -> Page:
    """The whole report."""
    table, header = facts.table, facts.header
    missing = not_assessed(facts)
    maps: list[Picture | str] = list(pictures) or [f"No maps: {why_no_pictures}"]
    sections = [
        Section("What not to conclude", [Bullets(what_not_to_conclude(facts))], notice=True),
        Section(
            "What was not assessed", [Bullets(missing) if missing else "Nothing that this page looks for is missing."]
        ),
        Section("Maps", maps),
        Section("Sources and licences", _sources(facts)),
        Section(f"Accuracy on held-out {facts.held_out}s", _accuracy(facts)),
        *(
            []
            if facts.measured is None
            else [Section("Agreement with this section", _agreement(facts, facts.measured))]
        ),
        Section("How well grounded the spots are", _groundedness(facts)),
        Section("Intervals", _intervals(facts)),
        Section("Encoder", [_pairs(_encoder(facts))]),
        Section("Fit", [_pairs(_fit(facts))]),
        Section("Provenance", _provenance(facts)),
    ]
    title = f"Prediction card: {plain(facts.name)}"
    donor = table.obs[header["donor_key"]].astype(str).unique() if header["donor_key"] in table.obs else []
    of = f" of {'donor' if len(donor) == 1 else 'donors'} {', '.join(map(plain, donor))}" if 0 < len(donor) <= 5 else ""
    subtitle = (
        f"Expression of {count(table.n_vars, 'gene')} in {count(table.n_obs, 'spot')}{of}, predicted from H&E image "
        f"`{plain(header['image_key'])}` by retrieval of measured tissue."
    )
    footer = f"Made by rg.tl.report of ragst_sd from the provenance of the table. Predicted with {plain(header['software'])}."
    return Page(title, subtitle, _glance(facts), sections, footer)


def _glance(facts: Facts) -> list[tuple[str, str, str]]:
    terms, license, n = facts.licenses[0]
    sections = count(len(facts.sources), "section")
    remark = f"{n} of {sections}: {terms.meaning}"
    known = [name for others, name, _ in facts.licenses if others is not UNKNOWN]
    if terms is UNKNOWN and known:
        remark += f". Of those that are known: {plain(known[0])}"
    out = [("Most restrictive licence", plain(license), remark)]
    encoder = facts.encoder["license"]
    out.append(("Licence of the encoder", plain(encoder or "not known"), facts.encoder["name"]))
    size = f"{sections}, {count(facts.n_rows, 'spot')}"
    out.append(("Reference", count(facts.n_donors, "donor"), size))
    score = number(float(np.nanmedian(facts.cv_pearson))) if facts.assessed else MISSING
    above = (
        f"median r of {int(np.isfinite(facts.cv_pearson).sum()):,} genes" if facts.assessed else "no cross-validation"
    )
    out.append((f"Accuracy on held-out {facts.held_out}s", score, above))
    out.append(
        ("Spots out of reference", percent(facts.out_share), f"of held-out spots, {percent(FLAGGED)} are too far away")
    )
    if facts.interval_unit is None:
        out.append(("Intervals", "none", ""))
    else:
        level = float(facts.header.get(_keys.INTERVAL_LEVEL, np.nan))
        out.append(("Intervals", percent(level), f"calibrated over {plain(facts.interval_unit)}s"))
    return out


def _sources(facts: Facts) -> list[str | Table | Bullets]:
    lines = [
        f"{plain(name)} ({n} of {count(len(facts.sources), 'section')}): {t.meaning}." for t, name, n in facts.licenses
    ]
    if facts.encoder["license"] is not None:
        lines.append(
            f"Encoder {facts.encoder['name']}, {plain(facts.encoder['license'])}: {terms_of(facts.encoder['license']).meaning}."
        )
    else:
        lines.append(f"Encoder {facts.encoder['name']}: its licence is not known here; see its own page.")
    rows = [
        [
            plain(name), plain(row["donors"]), plain(row["tissue"]), plain(row["technology"]), plain(row["license"]),
            f"{row['rows']:,}", f"{row['cited']:,}" if facts.cites else "", percent(row["weight"]) if facts.cites else "",
        ]
        for name, row in facts.sources.iterrows()
    ]  # fmt: skip
    columns = ["section", "donor", "tissue", "technology", "licence", "spots", "cited", "weight"]
    cited = (
        "`cited` counts the measured spots that the prediction rests on, `weight` is their share of it."
        if facts.cites
        else "The method cites no rows: every section took part in the fit alone."
    )
    citations = facts.sources.groupby("citation", sort=False).groups
    return [
        "All sections of the reference count, cited or not: the fit has seen all of them. Most restrictive first:",
        Bullets(lines),
        Table(columns, rows, ["spots", "cited", "weight"]),
        cited,
        "To cite:",
        Bullets([f"{plain(text)} ({', '.join(plain(name) for name in names)})" for text, names in citations.items()]),
    ]


def _accuracy(facts: Facts) -> list[str | Table]:
    if not facts.assessed:
        return [
            'Not assessed: `.var["cv_pearson"]` is empty. Run `rg.tl.cross_validate(reference, genes="all")` or '
            "`rg.tl.calibrate(reference)`, and predict again."
        ]
    var = facts.table.var
    score, ceiling = facts.cv_pearson, var[_keys.NOISE_CEILING].to_numpy(float)
    known = np.isfinite(score)
    text = (
        f"Each {facts.held_out} of the reference was predicted from the others, by the fitted method (`rg.tl.calibrate`) or the first "
        "citing one that was compared (`rg.tl.cross_validate`). Pearson correlation within sections, gene by gene: median "
        f"{quartiles(score)}, quartiles in brackets, over {count(int(known.sum()), 'gene')}."
    )
    if np.isfinite(ceiling).any():
        text += f" The most that the noise of the counts allows: {quartiles(ceiling)}."
    n = int(known.sum())
    above = [
        [f"at least {t}", f"{int((score >= t).sum()):,}", percent(float((score[known] >= t).mean()))]
        for t in _THRESHOLDS
    ]
    above.append(["below 0.1", f"{int((score < 0.1).sum()):,}", percent(float((score[known] < 0.1).mean()))])
    order = np.flatnonzero(known)[np.argsort(-score[known], kind="stable")]
    out: list[str | Table] = [text, Table(["correlation", "genes", "share"], above, ["genes", "share"])]
    if dropped := facts.header.get("filter"):
        # A store gives the names back in any order.
        reasons = ", ".join(f"{int(k)} by {name}" for name, k in sorted(dropped["dropped"].items()) if int(k))
        out.append(
            f"`rg.pp.filter_predicted` has dropped {int(dropped['n_genes']) - facts.table.n_vars:,} of "
            f"{int(dropped['n_genes']):,} genes before ({plain(reasons) or 'none'}); the figures are of those left."
        )
    if n > 2 * _LISTED:
        out += [
            f"The {_LISTED} best:",
            _genes(var, order[:_LISTED]),
            f"The {_LISTED} worst:",
            _genes(var, order[-_LISTED:]),
        ]
    else:
        out.append(_genes(var, order))
    return out


def _genes(var: pd.DataFrame, which: np.ndarray) -> Table:
    rows = []
    for gene, line in var.iloc[which].iterrows():
        score, ceiling = float(line[_keys.CV_PEARSON]), float(line[_keys.NOISE_CEILING])
        rows.append(
            [plain(gene), number(score), number(ceiling), f"{int(line[_keys.N_MEASURED]):,}", str(line[_keys.EVIDENCE])]
        )
    columns = ["gene", "correlation", "noise ceiling", "measured in spots", "evidence"]
    return Table(columns, rows, ["correlation", "noise ceiling", "measured in spots"])


def _agreement(facts: Facts, measured: pd.DataFrame) -> list[str | Table]:
    rows = [[name, quartiles(measured[name].to_numpy(float))] for name in measured if name != "n_spots"]
    columns = ["over genes", "median (quartiles)"]
    trusted = (
        measured[measured[_keys.CV_PEARSON] >= MIN_CV_PEARSON] if _keys.CV_PEARSON in measured else measured.iloc[:0]
    )
    rows = [row for row in rows if row[0] != _keys.CV_PEARSON]
    out: list[str | Table] = [
        f"Compared with what was measured in this very section: {count(len(measured), 'gene')}. One section tells how well this "
        "section is predicted, not the next.",
        Table(columns, rows, ["median (quartiles)"]),
    ]
    if len(trusted):
        out.append(
            f"The {count(len(trusted), 'gene')} with a correlation of at least {MIN_CV_PEARSON} on held-out {facts.held_out}s reach "
            f"{quartiles(trusted['pearson'].to_numpy(float))} here."
        )
    return out


def _groundedness(facts: Facts) -> list[str | Table]:
    obs, header = facts.table.obs, facts.header
    rows = [
        ["spots without a prediction (off the image)", f"{int((~facts.predicted_spots).sum()):,}"],
        ["spots out of reference", f"{int(obs[_keys.OUT_OF_REFERENCE].sum()):,} ({percent(facts.out_share)})"],
        [
            "distance to the nearest measured tissue, percentile among held-out spots",
            quartiles(obs[_keys.DISTANCE_PERCENTILE], 0),
        ],
        ["donors among the cited (or nearest) spots", quartiles(obs[_keys.N_DONORS], 0)],
    ]
    if facts.cites:
        rows += [
            ["effective number of measured spots per prediction", quartiles(obs[_keys.EFFECTIVE_N], 1)],
            ["share of evidence in the departure from the average profile", quartiles(obs[_keys.EVIDENCE_SHARE])],
        ]
    own, among = (float(header.get(name, np.nan)) for name in ("section_distance", "section_distance_reference"))
    rows.append(["distance of the whole section to those of the reference, in spreads", number(own)])
    rows.append(["largest such distance among the reference's own sections", number(among)])
    return [
        "Median over spots, quartiles in brackets. `out_of_reference` means that the nearest measured tissue is further than for 98 % of "
        "held-out spots of the reference, or looks unlike it.",
        Table(["", "this section"], rows, ["this section"]),
    ]


def _intervals(facts: Facts) -> list[str | Table]:
    unit = facts.interval_unit
    if unit is None:
        return ["None. `rg.tl.calibrate(reference)` and `rg.tl.predict(..., intervals=0.9)` add them."]
    table = facts.table
    width = np.asarray(table.layers[_keys.UPPER], dtype=float) - np.asarray(table.layers[_keys.LOWER], dtype=float)
    n_without = int(np.isnan(width[facts.predicted_spots]).all(axis=0).sum())
    rows = [
        ["level", percent(float(facts.header.get(_keys.INTERVAL_LEVEL, np.nan)))],
        ["calibrated over", f"{plain(unit)}s"],
        [f"width, in {plain(facts.header['unit'])}", quartiles(width)],
        ["genes without an interval", f"{n_without:,}"],
    ]
    if facts.measured is not None and "inside the interval" in facts.measured:
        rows.append(
            ["measured values of this section inside", percent(float(facts.measured["inside the interval"].mean()))]
        )
    meaning = (
        "The level is the share of values expected inside for a new donor like those of the reference."
        if unit == "donor"
        else f"The level was met on held-out spots, counted by {plain(unit)} and not by donor: on a new donor the intervals may be too narrow."
    )
    return [meaning, Table(["", "intervals"], rows, ["intervals"])]


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    return Table(["", ""], [list(pair) for pair in pairs])


def _encoder(facts: Facts) -> list[tuple[str, str]]:
    header = facts.header["encoder"]
    tile, mpp = int(header["tile_px"]), float(header["mpp"])
    size = f"{tile} px" + (f", {tile * mpp:g} µm at {mpp:g} µm per pixel" if np.isfinite(mpp) else ", native pixels")
    views = ", ".join(f"{one:g}" for one in np.atleast_1d(header["context"]))
    out = [
        ("name", facts.encoder["name"]),
        ("licence", plain(facts.encoder["license"] or "not known here; see its own page")),
        ("citation", plain(facts.encoder["citation"])),
        ("weights", f"`{str(header['weights_hash'])[:_HASH]}`" if header["weights_hash"] else "none"),
        ("tile", size),
        ("fields of view", f"{views} times the tile"),
        ("image of this section", f"{number(float(facts.header['image_mpp']), 3)} µm per pixel"),
    ]
    return [pair for pair in out if pair[1]]


def _fit(facts: Facts) -> list[tuple[str, str]]:
    header, fit = facts.header, facts.fit
    excluded = ", ".join(plain(one) for one in np.atleast_1d(header["exclude"])) or "nothing"
    where = {"": "none", "mask": "a mask over rows"}.get(str(header["where"]), plain(header["where"]))
    out = [
        ("method", f"`{plain(header['method'])}`{'' if facts.cites else ', which cites no measured spots'}"),
        ("spots cited per prediction, at most", str(int(header["n_neighbors"])) if facts.cites else "none"),
        ("rows left out that share with the section", excluded),
        ("restriction of rows (`where`)", where),
        ("sections centred", "yes" if bool(header["center_sections"]) else "no"),
        ("held out to choose what was chosen", plain(header["inner_groups"])),
        ("unit", plain(header["unit"])),
    ]
    if fit is None:
        return [*out, ("options", "not known: the reference has been fitted anew since")]
    if "adjustment_alpha" in fit["parameters"]:
        on = np.isfinite(float(fit["parameters"]["adjustment_alpha"]))
        out.append(("adjustment T", "learned" if on else "zero: it did not improve what was held out"))
    options = ", ".join(
        f"{name} {np.asarray(value).ravel()[[0, -1]].tolist() if np.size(value) > 4 else value}"
        for name, value in fit["options"].items()
    )
    return [
        *out,
        ("candidates", str(int(fit["n_candidates"]))),
        ("seed", str(int(fit["rng"]))),
        ("options", plain(options)),
    ]


def _provenance(facts: Facts) -> list[str | Table]:
    header = facts.header
    pairs = [
        ("reference", f"`{header['reference_hash']}`"),
        ("fit", f"`{header['fit_hash']}`"),
        ("predicted with", plain(header["software"])),
        ("schema version", str(int(header["schema_version"]))),
        ("embeddings", f"`tables[{plain(header['table_key'])!r}].obsm[{plain(header['use_rep'])!r}]`"),
    ]
    return [
        _pairs(pairs),
        "Every value can be traced: `rg.get.neighbors(sdata)` lists the measured spots behind it, "
        "`rg.get.explain(sdata, reference, obs_name=..., gene=...)` what each contributed, and `rg.get.influence(sdata, reference)` "
        "what changes without a donor.",
    ]
