"""The sections of a report, written from its facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._caveats import sentences
from ragst_sd._encoder_facts import encoder_table
from ragst_sd._licenses import UNKNOWN, terms_of
from ragst_sd._page import MISSING, Page, Section, count, number, percent, plain, quartiles, table_of_texts
from ragst_sd._results import MIN_CV_PEARSON
from ragst_sd.retrieval.grounding import FLAGGED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ragst_sd._page import Picture
    from ragst_sd.tl._report_facts import Facts

MADE_BY = "made by rg.tl.report"
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
_LISTED = 10


def page_of(facts: Facts, pictures: Sequence[Picture], why_no_pictures: str) -> Page:
    """The whole report."""
    header = facts.header
    missing = sentences("not_assessed", vars(facts))
    sections = [
        Section("What not to conclude", [sentences("not_to_conclude", vars(facts))], notice=True),
        Section("What was not assessed", [missing or "Nothing that this page looks for is missing."]),
        Section("Maps", pictures or [f"No maps: {why_no_pictures}"]),
        Section("Sources and licences", _sources(facts)),
        Section(f"Accuracy on held-out {facts.held_out}s", _accuracy(facts)),
        Section("How well grounded the spots are", _groundedness(facts)),
        Section("Intervals", _intervals(facts)),
        Section("Encoder", [_encoder(facts)]),
        Section("Fit", [_fit(facts)]),
        Section("Provenance", _provenance(header)),
    ]
    if facts.measured is not None:
        sections.insert(5, Section("Agreement with this section", _agreement(facts, facts.measured)))
    table = facts.table
    donors = table.obs[header["donor_key"]].astype(str).unique() if header["donor_key"] in table.obs else []
    of = f" of donor{'s' * (len(donors) > 1)} {', '.join(map(plain, donors))}" if 0 < len(donors) <= 5 else ""
    return Page(
        generator=MADE_BY,
        title=f"Prediction card: {plain(facts.name)}",
        subtitle=f"Expression of {count(table.n_vars, 'gene')} in {count(table.n_obs, 'spot')}{of}, predicted from H&E image "
        f"`{plain(header['image_key'])}` by retrieval of measured tissue.",
        glance=_glance(facts),
        sections=sections,
        footer="Made by rg.tl.report of ragst_sd from the provenance of the table. Predicted with "
        f"{plain(header['software'])}.",
    )


def _glance(facts: Facts) -> list[tuple[str, str, str]]:
    (terms, license, n), sections = facts.licenses[0], count(facts.n_sections, "section")
    remark = f"{n} of {sections}: {terms.meaning}"
    known = [name for others, name, _ in facts.licenses if others is not UNKNOWN]
    if terms is UNKNOWN and known:
        remark += f". Of those that are known: {plain(known[0])}"
    score, genes, intervals, unit = MISSING, "no cross-validation", "none", ""
    if facts.assessed:
        score, genes = number(np.nanmedian(facts.score)), f"median r of {count(facts.n_assessed, 'gene')}"
    if facts.interval_unit:
        intervals, unit = percent(facts.interval_level), f"calibrated over {plain(facts.interval_unit)}s"
    far = f"of held-out spots, {percent(FLAGGED)} are too far away"
    return [
        ("Most restrictive licence", plain(license), remark),
        ("Licence of the encoder", facts.encoder["license"] or "not known", facts.encoder["name"]),
        ("Reference", count(facts.n_donors, "donor"), f"{sections}, {count(facts.n_rows, 'spot')}"),
        (f"Accuracy on held-out {facts.held_out}s", score, genes),
        ("Spots out of reference", percent(facts.out_share), far),
        ("Intervals", intervals, unit),
    ]


def _sources(facts: Facts) -> list[Any]:
    sources, encoder = facts.sources, facts.encoder
    terms = [
        f"{plain(name)} ({n} of {count(facts.n_sections, 'section')}): {t.meaning}." for t, name, n in facts.licenses
    ]
    if encoder["license"]:
        terms.append(f"Encoder {encoder['name']}, {encoder['license']}: {terms_of(encoder['license']).meaning}.")
    else:
        terms.append(f"Encoder {encoder['name']}: its licence is not known here; see its own page.")
    shown = {"donors": "donor", "tissue": "tissue", "technology": "technology", "license": "licence", "rows": "spots"}
    note = "The method cites no rows: every section took part in the fit alone."
    if facts.cites:
        shown |= {"cited": "cited", "weight": "weight"}
        sources = sources.assign(weight=sources["weight"].map(percent))
        note = "`cited` counts the measured spots that the prediction rests on, `weight` is their share of it."
    citations = sources.groupby("citation", sort=False).groups.items()
    return [
        "All sections of the reference count, cited or not: the fit has seen all of them. Most restrictive first:",
        terms,
        table_of_texts(sources[list(shown)].rename(columns=shown), "section"),
        note,
        "To cite:",
        [f"{plain(citation)} ({', '.join(map(plain, names))})" for citation, names in citations],
    ]


def _accuracy(facts: Facts) -> list[Any]:
    import pandas as pd

    if not facts.assessed:
        return [
            'Not assessed: `.var["cv_pearson"]` is empty. Run `rg.tl.cross_validate(reference, genes="all")` or '
            "`rg.tl.calibrate(reference)`, and predict again."
        ]
    score = facts.score[np.isfinite(facts.score)]
    text = (
        f"Each {facts.held_out} of the reference was predicted from the others, by the fitted method (`rg.tl.calibrate`) or the first "
        "citing one that was compared (`rg.tl.cross_validate`). Pearson correlation within sections, gene by gene: median "
        f"{quartiles(score)}, quartiles in brackets, over {count(len(score), 'gene')}."
    )
    if facts.has_noise_ceiling:
        text += f" The most that the noise of the counts allows: {quartiles(facts.table.var[_keys.NOISE_CEILING])}."
    groups = {f"at least {threshold}": score >= threshold for threshold in _THRESHOLDS} | {"below 0.1": score < 0.1}
    shares = [(label, int(genes.sum()), percent(genes.mean())) for label, genes in groups.items()]
    blocks = [text, pd.DataFrame(shares, columns=["correlation", "genes", "share"])]
    if dropped := facts.header.get("filter"):
        # A store gives the names back in any order.
        reasons = ", ".join(f"{int(n)} by {name}" for name, n in sorted(dropped["dropped"].items()) if int(n))
        n_genes = int(dropped["n_genes"])
        blocks.append(
            f"`rg.pp.filter_predicted` has dropped {n_genes - facts.n_genes:,} of {n_genes:,} genes before "
            f"({plain(reasons) or 'none'}); the figures are of those left."
        )
    genes = _genes(facts.table.var)
    if len(genes) <= 2 * _LISTED:
        return [*blocks, genes]
    return [*blocks, f"The {_LISTED} best:", genes.head(_LISTED), f"The {_LISTED} worst:", genes.tail(_LISTED)]


def _genes(var: pd.DataFrame) -> pd.DataFrame:
    """The genes that were assessed, the best first."""
    var = var[var[_keys.CV_PEARSON].notna()].sort_values(_keys.CV_PEARSON, ascending=False, kind="stable")
    columns = {
        "correlation": var[_keys.CV_PEARSON].map(number),
        "noise ceiling": var[_keys.NOISE_CEILING].map(number),
        "measured in spots": var[_keys.N_MEASURED].astype(int),
        "evidence": var[_keys.EVIDENCE].astype(str),
    }
    return table_of_texts(var.assign(**columns)[list(columns)], "gene")


def _agreement(facts: Facts, measured: pd.DataFrame) -> list[Any]:
    metrics = [
        (name, quartiles(values)) for name, values in measured.items() if name not in ("n_spots", _keys.CV_PEARSON)
    ]
    blocks = [
        f"Compared with what was measured in this very section: {count(len(measured), 'gene')}. One section tells how well this "
        "section is predicted, not the next.",
        _table(metrics, "over genes", "median (quartiles)"),
    ]
    trusted = measured[measured[_keys.CV_PEARSON] >= MIN_CV_PEARSON]
    if len(trusted):
        blocks.append(
            f"The {count(len(trusted), 'gene')} with a correlation of at least {MIN_CV_PEARSON} on held-out {facts.held_out}s reach "
            f"{quartiles(trusted['pearson'])} here."
        )
    return blocks


def _groundedness(facts: Facts) -> list[Any]:
    obs, header = facts.table.obs, facts.header
    distances = (float(header.get(name, np.nan)) for name in ("section_distance", "section_distance_reference"))
    lines = [
        ("spots without a prediction (off the image)", f"{int((~facts.predicted_spots).sum()):,}"),
        ("spots out of reference", f"{facts.n_out:,} ({percent(facts.out_share)})"),
        (
            "distance to the nearest measured tissue, percentile among held-out spots",
            quartiles(obs[_keys.DISTANCE_PERCENTILE], 0),
        ),
        ("donors among the cited (or nearest) spots", quartiles(obs[_keys.N_DONORS], 0)),
        ("effective number of measured spots per prediction", quartiles(obs[_keys.EFFECTIVE_N], 1)),
        ("share of evidence in the departure from the average profile", quartiles(obs[_keys.EVIDENCE_SHARE])),
        ("distance of the whole section to those of the reference, in spreads", number(next(distances))),
        ("largest such distance among the reference's own sections", number(next(distances))),
    ]
    if not facts.cites:
        del lines[4:6]
    return [
        "Median over spots, quartiles in brackets. `out_of_reference` means that the nearest measured tissue is further than for 98 % of "
        "held-out spots of the reference, or looks unlike it.",
        _table(lines, "", "this section"),
    ]


def _intervals(facts: Facts) -> list[Any]:
    unit, table = facts.interval_unit, facts.table
    if not unit:
        return ["None. `rg.tl.calibrate(reference)` and `rg.tl.predict(..., intervals=0.9)` add them."]
    width = np.asarray(table.layers[_keys.UPPER], dtype=float) - np.asarray(table.layers[_keys.LOWER], dtype=float)
    lines = [
        ("level", percent(facts.interval_level)),
        ("calibrated over", f"{plain(unit)}s"),
        (f"width, in {plain(facts.header['unit'])}", quartiles(width)),
        ("genes without an interval", f"{int(np.isnan(width[facts.predicted_spots]).all(axis=0).sum()):,}"),
    ]
    if facts.measured is not None and "inside the interval" in facts.measured:
        lines.append(("measured values of this section inside", percent(facts.measured["inside the interval"].mean())))
    meaning = "The level is the share of values expected inside for a new donor like those of the reference."
    if unit != "donor":
        meaning = (
            f"The level was met on held-out spots, counted by {plain(unit)} and not by donor: on a new donor the intervals may be too "
            "narrow."
        )
    return [meaning, _table(lines, "", "intervals")]


def _encoder(facts: Facts) -> pd.DataFrame:
    mpp = f"{number(float(facts.header['image_mpp']), 3)} µm per pixel"
    return _table([*encoder_table(facts.header["encoder"]), ("image of this section", mpp)])


def _fit(facts: Facts) -> pd.DataFrame:
    header, fit = facts.header, facts.fit
    excluded = ", ".join(map(plain, np.atleast_1d(header["exclude"]))) or "nothing"
    where = {"": "none", "mask": "a mask over rows"}.get(str(header["where"]), plain(header["where"]))
    lines = [
        ("method", f"`{plain(facts.method)}`{'' if facts.cites else ', which cites no measured spots'}"),
        ("spots cited per prediction, at most", str(int(header["n_neighbors"])) if facts.cites else "none"),
        ("rows left out that share with the section", excluded),
        ("restriction of rows (`where`)", where),
        ("sections centred", "yes" if bool(header["center_sections"]) else "no"),
        ("held out to choose what was chosen", plain(header["inner_groups"])),
        ("unit", plain(header["unit"])),
    ]
    if fit is None:
        return _table([*lines, ("options", "not known: the reference has been fitted anew since")])
    if "adjustment_alpha" in fit["parameters"]:
        on = np.isfinite(float(fit["parameters"]["adjustment_alpha"]))
        lines.append(("adjustment T", "learned" if on else "zero: it did not improve what was held out"))
    options = ", ".join(f"{name} {_option(value)}" for name, value in fit["options"].items())
    return _table(
        [
            *lines,
            ("candidates", str(int(fit["n_candidates"]))),
            ("seed", str(int(fit["rng"]))),
            ("options", plain(options)),
        ]
    )


def _option(value: Any) -> Any:
    """An option in a few letters: the first and last of many values."""
    return np.ravel(value)[[0, -1]].tolist() if np.size(value) > 4 else value


def _provenance(header: dict[str, Any]) -> list[Any]:
    lines = [
        ("reference", f"`{header['reference_hash']}`"),
        ("fit", f"`{header['fit_hash']}`"),
        ("predicted with", plain(header["software"])),
        ("schema version", str(int(header["schema_version"]))),
        ("embeddings", f"`tables[{plain(header['table_key'])!r}].obsm[{plain(header['use_rep'])!r}]`"),
    ]
    return [
        _table(lines),
        "Every value can be traced: `rg.get.neighbors(sdata)` lists the measured spots behind it, "
        "`rg.get.explain(sdata, reference, obs_name=..., gene=...)` what each contributed, and `rg.get.influence(sdata, reference)` "
        "what changes without a donor.",
    ]


def _table(lines: Sequence[tuple[str, str]], label: str = "", value: str = "") -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(lines, columns=[label, value])
