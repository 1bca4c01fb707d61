"""What a report tells: numbers from the headers, `.var` and `.obs` of a predicted table, and from its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._encoder_facts import encoder_facts
from ragst_sd._licenses import NO_DERIVATIVES, NON_COMMERCIAL, UNKNOWN, UNRECOGNISED, ranked, terms_of
from ragst_sd._metrics import finite_mean
from ragst_sd._page import number
from ragst_sd._results import MIN_CV_PEARSON, N_GENES, Prediction, most_variable
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.grounding import FLAGGED, unlike_share


def gather(prediction: Prediction, bank: Bank, measured: pd.DataFrame | None) -> dict[str, Any]:
    """The facts of a prediction, under the names that `_report.md.jinja` and `_caveats.yaml` have for them.

    `measured` is the agreement with measured values of the section, one line per gene, or `None`.
    """
    table, header = prediction.table, prediction.header
    obs, var, method = table.obs, table.var, str(header["method"])
    encoder = encoder_facts(header["encoder"])
    sources = _sources(prediction, bank)
    licenses = ranked(sources["license"])
    n_donors, exclude = len(np.unique(bank.donors)), [str(column) for column in np.atleast_1d(header["exclude"])]
    held_out = "donor" if n_donors > 1 else "section" if len(sources) > 1 else "block"
    terms = {terms for terms, _, _ in licenses}
    score = var[_keys.CV_PEARSON].to_numpy(float)
    predicted_spots = np.isfinite(np.asarray(table.X)).any(axis=1)
    out = obs[_keys.OUT_OF_REFERENCE].to_numpy(bool)
    unlike = unlike_share(obs[_keys.APPEARANCE_DISTANCE].to_numpy(float))
    return {
        "name": prediction.key,
        "table": table,
        "header": header,
        "method": method,
        "cites": bool(len(prediction.cited)),
        "section_donors": list(obs[header["donor_key"]].astype(str).unique()) if header["donor_key"] in obs else [],
        "embeddings": f"tables[{header['table_key']!r}].obsm[{header['use_rep']!r}]",
        "encoder": encoder,
        "measured": measured,
        # Of the reference.
        "sources": sources,
        "n_sections": len(sources),
        "n_rows": len(bank),
        "n_donors": n_donors,
        "held_out": held_out if "donor" in exclude else "block",
        "exclude": exclude,
        "licenses": licenses,
        "known_licenses": [license for kind, license, _ in licenses if kind is not UNKNOWN],
        "unclear_terms": bool({UNKNOWN, UNRECOGNISED} & terms),
        "restricted_terms": bool({NON_COMMERCIAL, NO_DERIVATIVES} & {*terms, terms_of(encoder["license"])}),
        "n_unlicensed": int((sources["license"].map(terms_of) == UNKNOWN).sum()),
        "n_uncited": int((sources["citation"] == _keys.UNKNOWN).sum()),
        "unknown_tissue": bool((sources["tissue"] == _keys.UNKNOWN).any()),
        # Of genes.
        "score": score,
        "genes": _assessed_genes(var),
        "n_genes": table.n_vars,
        "assessed": bool(np.isfinite(score).any()),
        "n_assessed": int(np.isfinite(score).sum()),
        "n_low": int((score < MIN_CV_PEARSON).sum()),
        "accuracy": _means(table, var[_keys.CV_PEARSON]),
        "agreement": None if measured is None else _means(table, measured["pearson"]),
        "has_noise_ceiling": bool(var[_keys.NOISE_CEILING].notna().any()),
        "dropped": _dropped(header),
        # Of spots.
        "predicted_spots": predicted_spots,
        "n_out": int(out.sum()),
        "out_share": float(out.mean()),
        "flagged": FLAGGED,
        "unlike_share": unlike if np.isfinite(unlike) else None,
        "disagreement": finite_mean(table.layers[_keys.DISAGREEMENT], axis=1)
        if _keys.DISAGREEMENT in table.layers
        else None,
        "effective_n": float(obs[_keys.EFFECTIVE_N].median()),
        "evidence_share": float(obs[_keys.EVIDENCE_SHARE].median()),
        **_fit(header, bank),
        **_intervals(prediction, predicted_spots),
    }


def _means(table: AnnData, pearson: pd.Series) -> dict[str, Any]:
    """Mean correlation over the genes that vary most in the reference, and over all; the same where that is not known."""
    known = pearson.dropna()
    genes = list(known.index)
    if np.isfinite(table.var.reindex(columns=[_keys.REFERENCE_VARIANCE]).loc[genes].to_numpy(float)).any():
        genes = list(known.index[most_variable(table, genes, N_GENES)])
    return {
        "mean": finite_mean(known[genes].to_numpy()),
        "n": len(genes),
        "mean_all": finite_mean(known.to_numpy()),
        "n_all": len(known),
    }


def _sources(prediction: Prediction, bank: Bank) -> pd.DataFrame:
    """One line per section of the reference: donors, tissue, technology, license, citation, rows, cited, weight."""
    rows, weights = prediction.citations()
    cited = pd.DataFrame({"row": rows[rows >= 0], "weight": weights[rows >= 0].astype(float)})
    cited["sample"] = prediction.cited[_keys.SAMPLE].astype(str).to_numpy()[cited["row"]]
    by_sample = cited.groupby("sample")
    donors = bank.obs[[_keys.SAMPLE, _keys.DONOR]].astype(str).groupby(_keys.SAMPLE)[_keys.DONOR]
    sources = prediction.header["sources"]
    frame = sources.set_axis(sources.index.astype(str))
    frame["donors"] = donors.agg(lambda names: ", ".join(sorted(set(names)))).reindex(frame.index, fill_value="")
    frame["rows"] = donors.size().reindex(frame.index, fill_value=0)
    frame["cited"] = by_sample["row"].nunique().reindex(frame.index, fill_value=0)
    weight = by_sample["weight"].sum().reindex(frame.index, fill_value=0.0)
    frame["weight"] = weight / cited["weight"].sum()
    return frame


def _assessed_genes(var: pd.DataFrame) -> pd.DataFrame:
    """The genes that were assessed, the best first."""
    var = var[var[_keys.CV_PEARSON].notna()].sort_values(_keys.CV_PEARSON, ascending=False, kind="stable")
    columns = {
        "gene": var.index,
        "correlation": var[_keys.CV_PEARSON].map(number),
        "noise ceiling": var[_keys.NOISE_CEILING].map(number),
        "measured in spots": var[_keys.N_MEASURED].astype(int),
        "evidence": var[_keys.EVIDENCE].astype(str),
    }
    return pd.DataFrame(columns)


def _dropped(header: dict[str, Any]) -> dict[str, Any] | None:
    """What `rg.pp.filter_predicted` has left out before."""
    if "filter" not in header:
        return None
    # A store gives the names back in any order.
    reasons = [f"{int(n)} by {name}" for name, n in sorted(header["filter"]["dropped"].items()) if int(n)]
    return {"n_genes": int(header["filter"]["n_genes"]), "reasons": ", ".join(reasons)}


def _fit(header: dict[str, Any], bank: Bank) -> dict[str, Any]:
    """The fit that made the prediction; `None` if the reference was fitted anew since."""
    fit = bank.fit
    if fit is None or fit.fit_hash != str(header["fit_hash"]):
        return {"fit": None}
    # A store gives the names back in any order; of many values the first and the last are told.
    options = sorted(fit.options.items())
    shown = [(name, np.ravel(value)[[0, -1]].tolist() if np.size(value) > 4 else value) for name, value in options]
    return {
        "fit": fit,
        "options": ", ".join(f"{name} {value}" for name, value in shown),
        "share": float(np.mean(fit.parameters.get(_keys.RETRIEVAL_SHARE, np.nan))),
    }


def _intervals(prediction: Prediction, predicted_spots: np.ndarray) -> dict[str, Any]:
    intervals = prediction.intervals(prediction.genes(None))
    if intervals is None:
        return {"interval_unit": ""}
    return {
        "interval_unit": intervals.unit,
        "interval_level": intervals.level,
        "interval_width": intervals.width,
        "n_without_interval": int(np.isnan(intervals.width[predicted_spots]).all(axis=0).sum()),
    }
