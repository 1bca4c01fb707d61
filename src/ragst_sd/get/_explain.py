"""`rg.get.explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._reference import mean_shift, panel_codes, section_codes
from ragst_sd._results import gene_index, matching_reference, predicted, spot_index
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


_NOT_MEASURED = ("not measured", "", "", np.nan, np.nan, np.nan, np.nan)
_COLUMNS = ["reference", "donor", "sample", "weight", "value", "correction", "contribution"]


def explain(
    sdata: SpatialData | AnnData,
    reference: AnnData,
    *,
    obs_name: str | Sequence[str],
    gene: str | Sequence[str],
    prediction_key: str = "predicted",
) -> pd.DataFrame:
    """Take a predicted value apart into the measured values it was made from.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself.
    reference
        The very reference that the prediction was made from.
    obs_name
        Spot or spots.
    gene
        Gene or genes.
    prediction_key
        Name of the predicted table.

    Returns
    -------
    For each spot and gene one line per cited row by falling weight, and a last line `adjustment`: `query`, `gene`,
    `reference`, `donor`, `sample`, `weight`, `value` (measured, in the unit of the prediction), `correction` (what brings
    the row's section to the mean of the reference; 0 where sections were not centred), `contribution` (weight times the
    sum of value and correction). Contributions add up to the prediction. Rows that did not measure the gene have weight 0
    and value NaN, and the others share their weight. Methods that cite nobody give `reference mean` and `adjustment`. A
    spot without an embedding, or a gene that no cited row measured, gives a line `not measured` with NaN.

    Raises
    ------
    KeyError
        If the table, spot or gene does not exist.
    ValueError
        If the table has lost its provenance or the reference is another one.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> spot, gene = query.tables["predicted"].obs_names[0], reference.var_names[0]
    >>> parts = rg.get.explain(query, reference, obs_name=spot, gene=gene)
    >>> difference = parts["contribution"].sum() - query.tables["predicted"][spot, gene].X.item()
    >>> bool(abs(difference) < 1e-5)
    True
    """
    import pandas as pd

    table, header = predicted(sdata, prediction_key)
    matching_reference(reference, header)
    spots, genes = spot_index(table, obs_name, "obs_name"), gene_index(table, gene)
    bank = CitedValues(reference, header, table, genes)
    prediction = dense(table.X[spots][:, genes])
    evidence = dense(table.layers[_keys.EVIDENCE][spots][:, genes])
    parts = []
    for i, spot in enumerate(spots):
        for j, one in enumerate(genes):
            lines = bank.lines(spot, j, evidence[i, j])
            added = float(prediction[i, j]) - float(evidence[i, j])
            lines.append(("adjustment", "", "", np.nan, np.nan, np.nan, added))
            frame = pd.DataFrame(lines, columns=_COLUMNS)
            frame.insert(0, "gene", table.var_names[one])
            frame.insert(0, "query", table.obs_names[spot])
            parts.append(frame)
    return pd.concat(parts, ignore_index=True)


class CitedValues:
    """Measured values of the cited rows for a few genes, and what brings them to one level.

    `values`, `measured` and `corrections` are (cited rows, genes), the last to the mean of the row's section; `levels`
    (patterns, genes) is the mean that evidence is put back on, `level_of` (spots,) the pattern of each spot.
    """

    def __init__(self, reference: AnnData, header: dict[str, Any], table: AnnData, genes: np.ndarray) -> None:
        self.cited = header[_keys.CITED]
        self.rows = np.asarray(table.obsm[_keys.ROWS])
        self.weights = np.asarray(table.obsm[_keys.WEIGHTS], dtype=np.float64)
        at = reference.obs_names.get_indexer(self.cited["reference"])
        columns = reference.var_names.get_indexer(table.var_names[genes])
        self.values = dense(reference.X[at][:, columns]) if len(at) else np.zeros((0, len(columns)))
        panels = panel_codes(reference, reference.uns[_keys.ATTRS])[at]
        self.measured = np.asarray(reference.varm[_keys.MEASURED])[columns][:, panels].T
        shifts = reference.uns[_keys.ATTRS][_keys.FIT]["parameters"].get("section_shifts")
        self.corrections, self.levels = np.zeros_like(self.values), np.zeros((1, len(columns)))
        self.level_of = np.zeros(table.n_obs, dtype=int)
        if shifts is not None and _keys.LEVEL_ROWS in header:
            shifts = np.asarray(shifts)[:, columns]
            self.corrections = -shifts[section_codes(reference)[at]]
            rows = np.atleast_2d(np.asarray(header[_keys.LEVEL_ROWS]))
            self.levels = mean_shift(reference, reference.uns[_keys.ATTRS], shifts, columns, rows)
            if _keys.LEVEL in table.obs:
                self.level_of = table.obs[_keys.LEVEL].to_numpy(int)
        self.cites_nobody = bool((self.rows < 0).all()) and len(self.cited) == 0

    def lines(self, spot: int, gene: int, evidence: float) -> list[tuple]:
        rows, weights = self.rows[spot], self.weights[spot]
        used = (rows >= 0) & (weights > 0)
        rows, weights = rows[used], weights[used]
        if not len(rows):
            if self.cites_nobody and np.isfinite(evidence):
                return [("reference mean", "", "", 1.0, float(evidence), 0.0, float(evidence))]
            return [_NOT_MEASURED]
        measured = self.measured[rows, gene]
        if not measured.any():
            return [_NOT_MEASURED]
        weights = np.where(measured, weights, 0.0)
        weights = weights / weights.sum()
        values = np.where(measured, self.values[rows, gene], np.nan)
        corrections = np.where(measured, self.corrections[rows, gene] + self.levels[self.level_of[spot], gene], np.nan)
        contributions = np.where(weights > 0, weights * (values + corrections), 0.0)
        order = np.lexsort((rows, -weights))
        cited = self.cited.iloc[rows[order]]
        names = (cited[name].astype(str) for name in ("reference", _keys.DONOR, _keys.SAMPLE))
        numbers = (part[order].tolist() for part in (weights, values, corrections, contributions))
        return list(zip(*names, *numbers, strict=True))
