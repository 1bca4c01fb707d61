"""What a report tells: numbers from the headers, `.var` and `.obs` of a predicted table, and from its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._licenses import terms_of
from ragst_sd.tl._report_page import plain

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ragst_sd._licenses import Terms

MISSING = "not assessed"


@dataclass(frozen=True)
class Facts:
    """Everything that the sections of a report are written from."""

    name: str
    """Of the predicted table."""
    table: AnnData
    header: dict[str, Any]
    fit: dict[str, Any] | None
    """The fit that made the prediction; `None` if the reference was fitted anew since."""
    sources: pd.DataFrame
    """One line per section of the reference: donors, tissue, technology, license, citation, rows, cited, weight."""
    n_rows: int
    n_donors: int
    """Of the reference."""
    encoder: dict[str, Any]
    """Name, licence (`None` if not known) and what else the registry knows."""
    cites: bool
    measured: pd.DataFrame | None
    """Agreement with measured values of this section, one line per gene, if a truth was given."""

    @property
    def predicted_spots(self) -> np.ndarray:
        """(spots,) which spots have a prediction."""
        distance = self.table.obs[_keys.DISTANCE_PERCENTILE].to_numpy(float)
        return (
            np.isfinite(distance) if np.isfinite(distance).any() else np.isfinite(np.asarray(self.table.X)).any(axis=1)
        )

    @property
    def out_share(self) -> float:
        """Share of spots out of reference."""
        return float(self.table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool).mean())

    @property
    def cv_pearson(self) -> np.ndarray:
        """(genes,) accuracy on what was held out."""
        return self.table.var[_keys.CV_PEARSON].to_numpy(float)

    @property
    def assessed(self) -> bool:
        """Whether any gene was cross-validated."""
        return bool(np.isfinite(self.cv_pearson).any())

    @property
    def held_out(self) -> str:
        """What could be held out of the reference to assess it."""
        if self.n_donors > 1:
            return "donor"
        return "section" if len(self.sources) > 1 else "block"

    @property
    def interval_unit(self) -> str | None:
        """Unit of exchange of the intervals, `None` without intervals."""
        if _keys.LOWER not in self.table.layers or _keys.UPPER not in self.table.layers:
            return None
        return str(self.header.get(_keys.INTERVAL_UNIT, _keys.UNKNOWN))

    @property
    def licenses(self) -> list[tuple[Terms, str, int]]:
        """Terms, name and number of sections of each licence, the most restrictive first."""
        count = self.sources["license"].value_counts()
        return sorted(((terms_of(name), str(name), int(n)) for name, n in count.items()), key=lambda one: -one[0].rank)


def gather(
    name: str,
    table: AnnData,
    header: dict[str, Any],
    reference: AnnData,
    measured: pd.DataFrame | None,
) -> Facts:
    """Read the facts from a predicted table and the reference that it was made from."""
    from ragst_sd.retrieval.methods import METHODS

    fit = reference.uns[_keys.ATTRS].get(_keys.FIT)
    own = fit is not None and str(fit["fit_hash"]) == str(header["fit_hash"])
    return Facts(
        name=name,
        table=table,
        header=header,
        fit=dict(fit) if own else None,
        sources=_sources(table, header, reference),
        n_rows=reference.n_obs,
        n_donors=int(reference.obs[_keys.DONOR].astype(str).nunique()),
        encoder=_encoder(header["encoder"]),
        cites=METHODS[str(header["method"])].cites
        if str(header["method"]) in METHODS
        else bool(len(header[_keys.CITED])),
        measured=measured,
    )


def _sources(table: AnnData, header: dict[str, Any], reference: AnnData) -> pd.DataFrame:
    rows, weights = np.asarray(table.obsm[_keys.ROWS]), np.asarray(table.obsm[_keys.WEIGHTS], dtype=float)
    cited = header[_keys.CITED]
    of_row = cited[_keys.SAMPLE].astype(str).to_numpy()
    used = (rows >= 0) & (weights > 0)
    frame = header["sources"].copy()
    frame.index = frame.index.astype(str)
    samples = reference.obs[_keys.SAMPLE].astype(str).to_numpy()
    donors = reference.obs[_keys.DONOR].astype(str)
    named = of_row[rows[used]] if used.any() else np.zeros(0, dtype=str)
    total = weights[used].sum()
    frame["donors"] = [", ".join(sorted(donors[samples == one].unique())) for one in frame.index]
    frame["rows"] = [int((samples == one).sum()) for one in frame.index]
    frame["cited"] = [len(np.unique(rows[used][named == one])) for one in frame.index]
    frame["weight"] = [weights[used][named == one].sum() / total if total > 0 else np.nan for one in frame.index]
    return frame


def _encoder(header: dict[str, Any]) -> dict[str, Any]:
    """Name and terms of the encoder, as far as :func:`ragst_sd.pp.encoders` knows it."""
    import pandas as pd

    from ragst_sd.pp._encoders import encoders

    known = encoders()
    name = str(header["encoder"])
    line = known[(known.index == name) | ((known["source"] == name) & known["source"].str.startswith("hf-hub:"))]
    out: dict[str, Any] = {
        "name": plain(name) or "an encoder without a name",
        "license": None,
        "citation": "",
        "commercial_use": None,
    }
    if len(line):
        row = line.iloc[0]
        out |= {"license": str(row["license"]), "citation": str(row["citation"])}
        out["commercial_use"] = None if pd.isna(row["commercial_use"]) else bool(row["commercial_use"])
    return out


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, or that it is not known."""
    if value is None or not np.isfinite(value):
        return MISSING
    rounded = round(float(value), digits) + 0.0
    return f"{rounded:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """A share as a percentage; what is not quite none or all does not become it."""
    if not np.isfinite(share):
        return MISSING
    if 0 < share < 0.005:
        return "under 1 %"
    if 0.995 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def count(n: int, what: str) -> str:
    """A number of things, in the singular for one."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def quartiles(values: np.ndarray, digits: int = 2) -> str:
    """Median with quartiles."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return MISSING
    low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75])
    return f"{number(middle, digits)} ({number(low, digits)} to {number(high, digits)})"
