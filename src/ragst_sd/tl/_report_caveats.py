"""What was not assessed, and what not to conclude: as the facts of a prediction ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._licenses import NO_DERIVATIVES, NON_COMMERCIAL, UNKNOWN, UNRECOGNISED, terms_of
from ragst_sd._results import MIN_CV_PEARSON, MOST_UNLIKE, unlike_share
from ragst_sd.tl._report_facts import count, number, percent

if TYPE_CHECKING:
    from ragst_sd.tl._report_facts import Facts

_FEW_DONORS = 5
# Well above what `fit` lets of held-out spots be out of reference.
_MANY_OUT = 0.1
_MOST_OUT = 0.5


def not_assessed(facts: Facts) -> list[str]:
    """What nothing is known about."""
    out = []
    var = facts.table.var
    if not facts.assessed:
        out.append(
            f"Accuracy on held-out {facts.held_out}s: no gene was cross-validated before this prediction (`rg.tl.cross_validate` with "
            '`genes="all"`, or `rg.tl.calibrate`).'
        )
    elif np.isnan(facts.cv_pearson).any():
        missing = int(np.isnan(facts.cv_pearson).sum())
        out.append(f"Accuracy on held-out {facts.held_out}s of {count(missing, 'gene')} of {facts.table.n_vars:,}.")
    if facts.assessed and var[_keys.NOISE_CEILING].isna().all():
        out.append("How much of the error is noise of the counts: there is no noise ceiling.")
    if facts.interval_unit is None:
        out.append(
            "The error of single values: there are no intervals (`rg.tl.calibrate`, then `rg.tl.predict(..., intervals=0.9)`)."
        )
    if facts.measured is None:
        out.append("Agreement with measured expression of this section: no measured table was given (`truth_key=`).")
    unknown = [name for terms, name, _ in facts.licenses if terms is UNKNOWN]
    if unknown:
        n = int(facts.sources["license"].isin(unknown).sum())
        out.append(
            f"The terms of {n} of {count(len(facts.sources), 'section')} of the reference: no licence was named."
        )
    uncited = int((facts.sources["citation"] == _keys.UNKNOWN).sum())
    if uncited:
        out.append(
            f"Where {uncited} of {count(len(facts.sources), 'section')} of the reference were published: no citation was named."
        )
    if facts.encoder["license"] is None:
        out.append(f"The licence of the encoder ({facts.encoder['name']}): see its own page.")
    if not np.isfinite(unlike_share(facts.table.obs[_keys.APPEARANCE_DISTANCE].to_numpy(float))):
        out.append("Whether the section looks like those of the reference: too few groups could be held out to tell.")
    elif facts.held_out != "donor":
        out.append(
            f"Whether the section looks like other donors: `out_of_reference` rests on held-out {facts.held_out}s."
        )
    if (facts.sources["tissue"] == _keys.UNKNOWN).any():
        out.append(
            "Whether the reference is of the same tissue as the section: the tissue of some of it was not named."
        )
    return out


def what_not_to_conclude(facts: Facts) -> list[str]:
    """Sentences that hold for this prediction."""
    return [*_of_any_prediction(facts), *_of_donors(facts), *_of_genes(facts), *_of_spots(facts), *_of_terms(facts)]


def _of_any_prediction(facts: Facts) -> list[str]:
    level = "the rows of the reference that could be used" if facts.cites else "all rows of the reference"
    out = [
        "The values are predictions from a picture, not measurements. They are no basis for a diagnosis or a treatment.",
        f"The level of a gene is that of {level}, not of this section: do not conclude that a gene is higher or lower here "
        "than in another section or donor. What is predicted is where in the section a gene is higher or lower.",
        "Spots are no independent samples, least of all predicted ones, which share the measured spots they rest on. A test that "
        "counts spots finds differences that are not there; the unit is the donor.",
    ]
    effective = facts.table.obs[_keys.EFFECTIVE_N].to_numpy(float)
    if np.isfinite(effective).any() and np.nanmedian(effective) >= 2:
        out.append(
            f"A value is an average over some {number(np.nanmedian(effective), 0)} measured spots, and varies less than measured "
            "values do. Do not read rare cells, single hot spots, variances or correlations between genes from it as if measured."
        )
    if not facts.cites:
        out.append(
            f"Method {facts.header['method']!r} cites no measured spots: no value can be traced to tissue in which it was seen."
        )
    else:
        share = facts.table.obs[_keys.EVIDENCE_SHARE].to_numpy(float)
        if np.isfinite(share).any() and np.nanmedian(share) < 0.5:
            out.append(
                f"In the median spot only {percent(float(np.nanmedian(share)))} of the departure from the average profile is measured "
                "evidence; the rest is a learned adjustment, which no measured spot backs."
            )
    return out


def _of_donors(facts: Facts) -> list[str]:
    out = []
    if facts.n_donors == 1:
        out.append(
            "The reference is one donor. Nothing was learned about differences between donors, and no figure from it says how "
            "well another donor is predicted."
        )
    elif facts.n_donors < _FEW_DONORS:
        out.append(
            f"The reference is {facts.n_donors} donors. Accuracy on a new donor differs from donor to donor, and so few "
            "donors do not tell by how much."
        )
    if _keys.DONOR not in [str(column) for column in np.atleast_1d(facts.header["exclude"])]:
        out.append(
            "Rows of the section's own donor could be used. Agreement with what was measured there is no evidence of accuracy on others."
        )
    unit = facts.interval_unit
    if unit is not None and unit != "donor":
        out.append(
            f"The intervals rest on held-out errors counted by {unit}, not by donor: on a new donor they may be too narrow."
        )
    return out


def _of_genes(facts: Facts) -> list[str]:
    if not facts.assessed:
        return [
            "No gene was assessed, so none can be called well predicted: a smooth map is what a wrong prediction looks like, too."
        ]
    low = facts.cv_pearson < MIN_CV_PEARSON
    out = []
    if low.any():
        out.append(
            f"{count(int(low.sum()), 'gene')} of {int(np.isfinite(facts.cv_pearson).sum()):,} assessed had a correlation below "
            f"{MIN_CV_PEARSON} on held-out {facts.held_out}s. Do not interpret their maps; `rg.pp.filter_predicted(sdata, min_cv_pearson={MIN_CV_PEARSON})` "
            "drops them."
        )
    if np.isnan(facts.cv_pearson).any():
        out.append("Genes that were not assessed are not thereby good: nothing is known about them.")
    return out


def _of_spots(facts: Facts) -> list[str]:
    out = []
    share = facts.out_share
    if share >= _MOST_OUT:
        out.append(
            f"{percent(share)} of the spots are out of reference: nothing like most of this tissue was measured. Do not use the "
            "prediction for the section as a whole."
        )
    elif share >= _MANY_OUT:
        out.append(
            f"{percent(share)} of the spots are out of reference (of held-out spots of the reference itself, about one in fifty lies as far away). Leave "
            'them out: `table[~table.obs["out_of_reference"]]`.'
        )
    elif share > 0:
        out.append(
            f"{count(int(facts.table.obs[_keys.OUT_OF_REFERENCE].sum()), 'spot')} ({percent(share)}) out of reference: do not interpret "
            "single values there."
        )
    unlike = unlike_share(facts.table.obs[_keys.APPEARANCE_DISTANCE].to_numpy(float))
    if unlike > MOST_UNLIKE:
        out.append(
            f"{percent(unlike)} of the spots look unlike every section of the reference: stain, scanner, resolution or tissue differ, "
            "and figures from the reference may not hold here."
        )
    return out


def _of_terms(facts: Facts) -> list[str]:
    out = []
    worst = facts.licenses[0][0]
    if worst in (UNKNOWN, UNRECOGNISED):
        out.append(
            "That the data are at hand does not mean that they may be used: not all terms of the sources are known."
        )
    known = {terms for terms, _, _ in facts.licenses}
    if facts.encoder["license"] is not None:
        known.add(terms_of(facts.encoder["license"]))
    if {NON_COMMERCIAL, NO_DERIVATIVES} & known or facts.encoder["commercial_use"] is False:
        out.append(
            "Terms of the sources or of the encoder forbid commercial use, or passing on what is derived from them: see sources and "
            "licences."
        )
    return out
