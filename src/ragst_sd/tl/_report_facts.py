"""What a report tells: numbers from the headers, `.var` and `.obs` of a predicted table, and from its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._encoder_facts import encoder_facts
from ragst_sd._licenses import NO_DERIVATIVES, NON_COMMERCIAL, UNKNOWN, UNRECOGNISED, Terms, ranked, terms_of
from ragst_sd._results import MIN_CV_PEARSON, unlike_share

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True)
class Facts:
    """A prediction and its reference in numbers; the sentences of `_caveats.yaml` name them as they are called here."""

    name: str
    """Of the predicted table."""
    table: AnnData
    header: dict[str, Any]
    method: str
    cites: bool
    fit: dict[str, Any] | None
    """The fit that made the prediction; `None` if the reference was fitted anew since."""
    encoder: dict[str, Any]
    measured: pd.DataFrame | None
    """Agreement with measured values of this section, one line per gene, if a truth was given."""
    has_truth: bool

    sources: pd.DataFrame
    """One line per section of the reference: donors, tissue, technology, license, citation, rows, cited, weight."""
    n_sections: int
    n_rows: int
    n_donors: int
    held_out: str
    """What could be held out of the reference to assess it: donor, section or block."""
    own_donor_used: bool
    """Whether rows of the section's own donor could be used."""
    licenses: list[tuple[Terms, str, int]]
    """Terms, name and number of sections of each, the most restrictive first."""
    unclear_terms: bool
    restricted_terms: bool
    """Of the sources or of the encoder."""
    n_unlicensed: int
    n_uncited: int
    unknown_tissue: bool

    score: np.ndarray
    """(genes,) correlation on what was held out."""
    assessed: bool
    """Whether any gene was cross-validated."""
    n_genes: int
    n_assessed: int
    n_not_assessed: int
    n_low: int
    """Genes that are not to be trusted."""
    has_noise_ceiling: bool

    predicted_spots: np.ndarray
    """(spots,) which have a prediction."""
    n_out: int
    out_share: float
    """Of the spots, out of reference."""
    unlike_share: float | None
    """Of the spots that look unlike every section of the reference; `None` where that could not be told."""
    effective_n: float
    evidence_share: float
    """Medians over spots."""
    interval_unit: str
    """Unit of exchange of the intervals, empty without intervals."""
    interval_level: float


def gather(
    name: str, table: AnnData, header: dict[str, Any], reference: AnnData, measured: pd.DataFrame | None
) -> Facts:
    """Read the facts from a predicted table and the reference that it was made from."""
    from ragst_sd.retrieval.methods import METHODS

    obs, method = table.obs, str(header["method"])
    fit = reference.uns[_keys.ATTRS].get(_keys.FIT)
    encoder = encoder_facts(header["encoder"])
    sources = _sources(table, header, reference)
    n_donors = reference.obs[_keys.DONOR].astype(str).nunique()
    licenses = ranked(sources["license"])
    terms = {terms for terms, _, _ in licenses}
    score = table.var[_keys.CV_PEARSON].to_numpy(float)
    has_distance = np.isfinite(obs[_keys.DISTANCE_PERCENTILE].to_numpy(float))
    out = obs[_keys.OUT_OF_REFERENCE].to_numpy(bool)
    unlike = unlike_share(obs[_keys.APPEARANCE_DISTANCE].to_numpy(float))
    has_intervals = _keys.LOWER in table.layers and _keys.UPPER in table.layers
    return Facts(
        name=name,
        table=table,
        header=header,
        method=method,
        cites=METHODS[method].cites if method in METHODS else bool(len(header[_keys.CITED])),
        fit=fit if fit is not None and str(fit["fit_hash"]) == str(header["fit_hash"]) else None,
        encoder=encoder,
        measured=measured,
        has_truth=measured is not None,
        sources=sources,
        n_sections=len(sources),
        n_rows=reference.n_obs,
        n_donors=n_donors,
        held_out="donor" if n_donors > 1 else "section" if len(sources) > 1 else "block",
        own_donor_used=_keys.DONOR not in [str(column) for column in np.atleast_1d(header["exclude"])],
        licenses=licenses,
        unclear_terms=bool({UNKNOWN, UNRECOGNISED} & terms),
        restricted_terms=bool({NON_COMMERCIAL, NO_DERIVATIVES} & {*terms, terms_of(encoder["license"])}),
        n_unlicensed=sum(n for one, _, n in licenses if one is UNKNOWN),
        n_uncited=int((sources["citation"] == _keys.UNKNOWN).sum()),
        unknown_tissue=bool((sources["tissue"] == _keys.UNKNOWN).any()),
        score=score,
        assessed=bool(np.isfinite(score).any()),
        n_genes=table.n_vars,
        n_assessed=int(np.isfinite(score).sum()),
        n_not_assessed=int(np.isnan(score).sum()),
        n_low=int((score < MIN_CV_PEARSON).sum()),
        has_noise_ceiling=bool(table.var[_keys.NOISE_CEILING].notna().any()),
        predicted_spots=has_distance if has_distance.any() else np.isfinite(np.asarray(table.X)).any(axis=1),
        n_out=int(out.sum()),
        out_share=float(out.mean()),
        unlike_share=unlike if np.isfinite(unlike) else None,
        effective_n=_median(obs[_keys.EFFECTIVE_N]),
        evidence_share=_median(obs[_keys.EVIDENCE_SHARE]),
        interval_unit=str(header.get(_keys.INTERVAL_UNIT, _keys.UNKNOWN)) if has_intervals else "",
        interval_level=float(header.get(_keys.INTERVAL_LEVEL, np.nan)),
    )


def _median(values: pd.Series) -> float:
    known = values.to_numpy(float)[values.notna()]
    return float(np.median(known)) if len(known) else np.nan


def _sources(table: AnnData, header: dict[str, Any], reference: AnnData) -> pd.DataFrame:
    import pandas as pd

    rows, weights = np.asarray(table.obsm[_keys.ROWS]), np.asarray(table.obsm[_keys.WEIGHTS], dtype=float)
    used = (rows >= 0) & (weights > 0)
    cited = pd.DataFrame({"row": rows[used], "weight": weights[used]})
    cited["sample"] = header[_keys.CITED][_keys.SAMPLE].astype(str).to_numpy()[cited["row"]]
    by_sample = cited.groupby("sample")
    donors = reference.obs[[_keys.SAMPLE, _keys.DONOR]].astype(str).groupby(_keys.SAMPLE)[_keys.DONOR]
    frame = header["sources"].set_axis(header["sources"].index.astype(str))
    frame["donors"] = donors.agg(lambda names: ", ".join(sorted(set(names)))).reindex(frame.index, fill_value="")
    frame["rows"] = donors.size().reindex(frame.index, fill_value=0)
    frame["cited"] = by_sample["row"].nunique().reindex(frame.index, fill_value=0)
    frame["weight"] = by_sample["weight"].sum().reindex(frame.index, fill_value=0.0) / cited["weight"].sum()
    return frame
