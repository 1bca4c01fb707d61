"""`rg.get.influence`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from tqdm.auto import tqdm

from ragst_sd import _keys
from ragst_sd._bank import open_bank
from ragst_sd._cell_types import measured_columns
from ragst_sd._eligibility import eligible_rows, where_of
from ragst_sd._labels import labels
from ragst_sd._metrics import finite_mean, pearson, score
from ragst_sd._query import read_query
from ragst_sd._reference import read_header
from ragst_sd._results import Prediction, predicted, require_matching
from ragst_sd._settings import settings
from ragst_sd._validate import as_names, hint, listing, require_key, require_some
from ragst_sd._workers import spread_blocks
from ragst_sd.get._neighbors import neighbors
from ragst_sd.retrieval.bank import Bank, Selection
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import part_of, predict, select

logger = logging.getLogger(__name__)

_CHANGES = ["lost", "mean_change", "mean_abs_change", "max_abs_change", "pearson"]


def influence(
    sdata: SpatialData | AnnData,
    reference: AnnData | None = None,
    *,
    group_key: str = "donor",
    rows: str | Sequence[str] | None = None,
    prediction_key: str = "predicted",
    obs_names: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Measure the effect of a donor, section or source on a prediction, or list spots that rest on a measured spot.

    Without `rows`, each group of reference rows is removed in turn and the prediction is repeated, both stages: the
    search finds other rows instead, and the gate weights them again. The change is

    .. math:: \Delta_{ig} = \hat y_{ig}^{(-c)} - \hat y_{ig}

    for spot i, gene g and group c. If sections are centred, it includes the change of the level, which is the mean of
    the remaining rows. The fit stays the same: phi, the gate and T were trained on the group's rows as well. So this
    measures the effect of the rows as evidence, not the effect of a reference without them. For the latter, fit
    `reference[mask].copy()` and predict again. Rows of the query's own donor and rows that `where` excluded are never
    used.

    With `rows`, the function returns all spots that cite these reference rows. This needs neither the reference nor the
    embeddings. It also works on predicted responses (:func:`ragst_sd.tl.perturb`), where it returns the cells whose
    response rests on a measured one.

    Parameters
    ----------
    sdata
        Object with a predicted table. Without `rows` also with the table of embeddings that it was made from; with
        `rows` the bare predicted table does.
    reference
        The very reference that the prediction was made from, fitted as it was then. Not needed with `rows`.
    group_key
        Column of `reference.obs` (`"donor"`, `"sample"`, `"tissue"`, `"technology"`, ...), or of its sources
        (`"license"`, `"citation"`).
    rows
        Reference id or ids, `<sample>:<spot>` (`<context>:<perturbation>`), as :func:`ragst_sd.get.neighbors` gives
        them.
    prediction_key
        Name of the predicted table.
    obs_names
        Spot or spots to look at; all if left out.
    genes
        Gene or genes: one line for each of them. One line over all genes of the table if left out.
    progress
        Show a progress bar; the setting if left out.

    Returns
    -------
    Without `rows` one line per group (and gene), the most influential group first:

    - `group`, and `gene` if `genes` are given;
    - `n_rows`: its rows in the reference that could be used by some spot; 0 for the query's own donor;
    - `n_spots`, `weight`: spots that cite it, and the mean share of the weights that it holds;
    - `lost`: share of the predicted values that cannot be predicted without it, because no row is left that may be
      used or has measured the gene. If all are lost, the columns below are NaN, which is logged;
    - `mean_change`, `mean_abs_change`, `max_abs_change`: mean, mean size and largest size of the change over spots
      (and genes), in the unit of the prediction;
    - `pearson`: correlation over spots between the predictions without and with the group, averaged over genes; NaN for
      genes that do not vary.

    With `rows` one line per row and spot that cites it, by falling weight: `reference`, `query`, `rank` (place of the
    row among those that the spot cites), `distance`, `weight` (before genes that a row did not measure are left out).

    Read from `.X`, `.obsm["retrieval_rows"]`, `["retrieval_weights"]`, `["retrieval_distances"]` and
    `.uns["retrieval"]`.

    Raises
    ------
    KeyError
        If the table, a spot, a gene or the column does not exist, or no spot cites a row that is asked for and it is
        not in the reference either.
    TypeError
        If a bare table is given without `rows`: it has no embeddings.
    ValueError
        If the table has lost its provenance; the reference is missing, is another one or was fitted anew; the method
        cites no rows; no spot lies on the image; or the prediction cannot be reproduced, because embeddings changed
        since.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> changes = rg.get.influence(query, reference, group_key="donor", progress=False)
    >>> sorted(changes["group"])
    ['donor1', 'donor2']
    >>> row = rg.get.neighbors(query)["reference"].iloc[0]
    >>> rests_on_it = rg.get.influence(query, rows=row)
    """
    if rows is not None:
        if genes is not None:
            raise ValueError(
                "`genes` has no meaning with `rows`: a spot cites the same rows for all genes. Leave one of them out."
            )
        prediction = predicted(sdata, prediction_key, any_task=True)
        return _citing(prediction, reference, as_names(rows), obs_names)

    prediction = predicted(sdata, prediction_key, exact=True)
    reference = require_matching(prediction, reference)
    groups = _groups(reference, group_key)
    columns = prediction.genes(genes)
    rerun = Rerun(prediction, reference, spots=prediction.spots(obs_names), genes=columns)
    show = settings.progress if progress is None else progress
    lines = []
    for group in tqdm(np.unique(groups), unit="group", disable=not show):
        members = groups == group
        after, share = rerun.without(members), rerun.weight_of(members)
        about = {
            "group": group,
            "n_rows": int((members & rerun.usable).sum()),
            "n_spots": int((share > 0).sum()),
            "weight": float(finite_mean(share)),
        }
        if not np.isfinite(after).any():
            logger.warning("Without %s %r nothing can be predicted: no row is left that may be used.", group_key, group)
        lines.append((about, *_changes(rerun.prediction, after)))
    lines.sort(key=lambda line: (-line[1]["lost"], -np.nan_to_num(line[1]["mean_abs_change"]), line[0]["group"]))
    if genes is None:
        return pd.DataFrame([{**about, **overall} for about, overall, _ in lines])
    names = prediction.table.var_names[columns]
    parts = [by_gene.assign(**about, gene=names) for about, _, by_gene in lines]
    return pd.concat(parts, ignore_index=True)[["group", "gene", "n_rows", "n_spots", "weight", *_CHANGES]]


def _groups(reference: AnnData, group_key: str) -> np.ndarray:
    """(rows,) group of each row of the reference, from a column of its `.obs` or of its sources."""
    sources = read_header(reference, "histology")["sources"]
    if group_key in reference.obs:
        return labels(reference.obs[group_key], missing=_keys.UNKNOWN)
    require_key(group_key, [*reference.obs, *sources], "reference.obs and its sources", "Name one of them.")
    return labels(sources[group_key].reindex(reference.obs[_keys.SAMPLE].astype(str)))


def _changes(before: np.ndarray, after: np.ndarray) -> tuple[dict[str, float], pd.DataFrame]:
    """What became of (spots, genes) predictions: over all of them, and gene by gene."""
    had = np.isfinite(before)
    change = pd.DataFrame(np.where(had & np.isfinite(after), after - before, np.nan))
    lost = pd.DataFrame(np.where(had, change.isna(), np.nan))
    parts = {
        "lost": (lost, "mean"),
        "mean_change": (change, "mean"),
        "mean_abs_change": (change.abs(), "mean"),
        "max_abs_change": (change.abs(), "max"),
    }
    by_gene = pd.DataFrame({name: values.agg(how) for name, (values, how) in parts.items()})
    by_gene["pearson"] = score(pearson, after, before, change.notna().to_numpy())
    overall = {name: float(values.melt()["value"].agg(how)) for name, (values, how) in parts.items()}
    return {**overall, "pearson": float(by_gene["pearson"].mean())}, by_gene


def _citing(
    prediction: Prediction, reference: AnnData | None, rows: list[str], obs_names: str | Sequence[str] | None
) -> pd.DataFrame:
    """Lines of :func:`ragst_sd.get.neighbors` that cite the given rows of the reference."""
    require_some(rows, "rows", "Name at least one row of the reference.")
    known = pd.Index(prediction.cited["reference"])
    if reference is not None:
        require_matching(prediction, reference)
        known = reference.obs_names
    missing = [row for row in rows if row not in known]
    if missing:
        where, todo = "the reference has no row", ""
        if reference is None:
            where = f"no {'cell' if prediction.of_responses else 'spot'} of the prediction cites"
            todo = " Give the `reference` to tell rows that are never cited from wrong names."
        raise KeyError(
            f"`rows`: {where} {listing(missing)}; there are {listing(known)}.{hint(missing[0], known)}{todo}"
        )
    frame = neighbors(prediction.data, prediction_key=prediction.key, obs_names=obs_names)
    place = pd.Index(rows).get_indexer(frame["reference"])
    frame = frame.assign(place=place)[place >= 0]
    frame = frame.sort_values(["place", "weight"], ascending=[True, False], kind="stable")
    return frame[["reference", "query", "rank", "distance", "weight"]].reset_index(drop=True)


# The unit is log1p of counts per 10,000 in float32; a prediction does not depend on the other spots beyond rounding.
_SAME = 1e-4


class Rerun:
    """Both stages for some spots and genes of a predicted table, as they were run for it.

    Raises
    ------
    TypeError
        If a bare table is given, which has no embeddings.
    ValueError
        If the fit is another one, the method cites no rows, spots are gone or off the image, or the result is not the
        stored prediction.
    """

    def __init__(self, prediction: Prediction, reference: AnnData, *, spots: np.ndarray, genes: np.ndarray) -> None:
        table, header, names = prediction.table, prediction.header, prediction.table.obs_names[spots]
        if not isinstance(prediction.data, SpatialData):
            raise TypeError(
                "A bare predicted table has no embeddings, from which the search is made again. Give the SpatialData "
                f"with table {str(header['table_key'])!r} and its `obsm[{str(header['use_rep'])!r}]`; `rows=` does "
                "without."
            )
        self._bank = _bank_of(prediction, reference)
        made_of = {name: str(header[name]) for name in ("table_key", "use_rep")}
        query = replace(read_query(prediction.data, self._bank, **made_of), donor_key=str(header["donor_key"]))
        at = query.table.obs_names.get_indexer(names)
        if (at < 0).any():
            raise ValueError(
                f"Table {query.table_key!r} no longer has {int((at < 0).sum())} of the predicted spots: "
                f"{listing(names[at < 0])}. Predict again."
            )
        # Spots off the image were never predicted.
        self._on_image = query.finite[at]
        if not self._on_image.any():
            raise ValueError(f"No spot has an embedding, and so no prediction that could change: {listing(names)}.")
        eligibility = eligible_rows(
            self._bank,
            query,
            where=where_of(self._bank.ids, header),
            exclude=[str(column) for column in np.atleast_1d(header["exclude"])],
        )
        self._eligibility = eligibility.of_queries(at)
        self._embedding, self._state = query.standardized[at], query.state[at]
        self._genes = measured_columns(self._bank.genes, table.var_names[genes], self._bank.header.cell_types)
        self._n_neighbors, self._backend = int(header["n_neighbors"]), str(header["backend"])
        self._selection, self.prediction = self._predict(np.ones(len(at), dtype=bool), eligibility.allowed)
        self.prediction[~self._on_image] = np.nan
        """(spots, genes) prediction with nothing taken out; NaN for spots off the image."""
        same = np.isclose(self.prediction, prediction.values(genes, spots), rtol=0, atol=_SAME, equal_nan=True)
        changed = ~same.all(axis=1)
        if changed.any():
            raise ValueError(
                f"The stored prediction is not what its provenance gives today: {int(changed.sum())} of {len(changed)} "
                f"spots differ (first: {names[changed][0]!r}). "
                f"`tables[{str(header['table_key'])!r}].obsm[{str(header['use_rep'])!r}]`, its header, the donors of "
                "the spots, or the predicted values changed since. Predict again, and then ask what they rest on."
            )

    @property
    def usable(self) -> np.ndarray:
        """(rows,) which rows of the reference some spot may use."""
        return np.asarray(self._eligibility.of_queries(self._on_image).pattern_masks().any(axis=0))

    def weight_of(self, rows: np.ndarray) -> np.ndarray:
        """(spots,) share of the weights that the rows of a mask hold; NaN for spots off the image."""
        cited, weights = self._selection.rows, self._selection.weights
        held = np.where((cited >= 0) & rows[np.maximum(cited, 0)], weights, 0.0)
        return np.where(self._on_image, held.sum(axis=1), np.nan)

    def without(self, rows: np.ndarray) -> np.ndarray:
        """(spots, genes) prediction without the rows of a mask; NaN for spots that are left without any."""
        allowed = self._eligibility.allowed & ~rows
        served = self._on_image & (replace(self._eligibility, allowed=allowed).count() > 0)
        out = np.full((len(served), len(self._genes)), np.nan, dtype=np.float32)
        if served.any():
            out[served] = self._predict(served, allowed)[1]
        return out

    def _predict(self, spots: np.ndarray, allowed: np.ndarray) -> tuple[Selection, np.ndarray]:
        selected = select(
            self._bank,
            self._embedding[spots],
            state=self._state[spots],
            eligibility=replace(self._eligibility.of_queries(spots), allowed=allowed),
            n_neighbors=self._n_neighbors,
            backend=self._backend,
        )
        part = part_of(self._bank, self._genes, selected, spread=False)
        return selected.selection, predict(part, selected.selection, spread_blocks)["prediction"]


def _bank_of(prediction: Prediction, reference: AnnData) -> Bank:
    """The opened reference with the fit that made the prediction, of a method that cites."""
    bank, header = open_bank(reference), prediction.header
    fit = bank.fit
    if fit.fit_hash != str(header["fit_hash"]):
        raise ValueError(
            f"The prediction was made with fit {str(header['fit_hash'])[:12]} ({str(header['method'])!r}); the "
            f"reference has been fitted anew since: {fit.fit_hash[:12]} ({fit.method!r}). Predict again, or read the "
            "reference as it was written then."
        )
    if not METHODS[fit.method].cites:
        raise ValueError(
            f"Method {fit.method!r} cites no rows: its predictions are in its fit, and taking rows out of the bank "
            "changes nothing. To see what a donor contributes, fit without it (`reference[mask].copy()`, then "
            "`rg.tl.fit`) and predict."
        )
    return bank
