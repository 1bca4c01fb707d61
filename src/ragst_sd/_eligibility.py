"""Which rows of the reference a query may use."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from ragst_sd import _keys
from ragst_sd._labels import is_missing, label, labels, warn_of_alike
from ragst_sd._query import Query
from ragst_sd._validate import as_names, listing, require_key, require_positive
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import read_rows

logger = logging.getLogger(__name__)

# Pixels within which two centres on one image are those of one spot.
_SAME_PX = 1.0
# A mapping from column to allowed value(s), or a mask over the rows.
Where: TypeAlias = "Mapping[str, Any] | Sequence[bool] | np.ndarray | None"


def eligible_rows(bank: Bank, query: Query, *, where: Where, exclude: Sequence[str]) -> Eligibility:
    """Rows that share none of the excluded columns with the query and that `where` allows.

    Where rows of the query's donor may be used, a spot that is a row of the reference itself does not cite that row,
    and the level is that of the query's own section.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If a spot is left without any eligible row.
    """
    same_image = _same_image(bank, query)
    renamed = _renamed_donors(bank, query, same_image) if _keys.DONOR in exclude else np.zeros(len(bank), dtype=bool)
    if METHODS[bank.fit.method].learns == "values":
        _refuse_seen_rows(bank, query, renamed, where=where, exclude=exclude)
    allowed = allowed_rows(bank.obs, where) & ~renamed
    query_codes, bank_codes = (np.zeros((n, 0), dtype=np.int64) for n in (query.table.n_obs, len(bank)))
    for column in exclude:
        require_key(column, bank.obs, "reference.obs", "`exclude` names columns of the reference.")
        names, codes = np.unique(labels(bank.obs[column]), return_inverse=True)
        bank_codes = np.column_stack([bank_codes, codes])
        query_codes = np.column_stack([query_codes, _query_codes(query, column, names)])
    eligibility = Eligibility(query_codes, bank_codes, allowed)
    if _keys.DONOR not in exclude:
        eligibility = _with_own_donor(bank, query, eligibility, same_image, exclude)
    _require_rows(bank, eligibility, exclude)
    return eligibility


def _with_own_donor(
    bank: Bank, query: Query, eligibility: Eligibility, same_image: np.ndarray, exclude: Sequence[str]
) -> Eligibility:
    """Where rows of the query's donor may be used: which row each spot is itself, and the rows of its section."""
    measured_row = _reference_rows(bank, query, same_image)
    if METHODS[bank.fit.method].learns != "values":
        # A method that only cites has not seen a row that it may not use.
        apart = (eligibility.query_groups != eligibility.bank_groups[measured_row]).all(axis=1)
        measured_row = np.where(eligibility.allowed[measured_row] & apart, measured_row, -1)
    known = measured_row >= 0
    home = np.isin(bank.sections, bank.sections[measured_row[known]]) if known.any() else same_image
    at_home = replace(eligibility, allowed=eligibility.allowed & home).count().min() > 0
    logger.warning(
        "`exclude` is %s, without 'donor': rows of the query's own donor may be used%s. %d of %d spots are rows of "
        "the reference themselves; they do not cite themselves, but are not held out either.",
        tuple(exclude) or "empty",
        ""
        if query.labels(_keys.DONOR) & set(labels(bank.obs[_keys.DONOR])) or home.any()
        else ", but the reference has none",
        int(known.sum()),
        len(known),
    )
    return replace(eligibility, itself=measured_row, level_rows=home if at_home else None)


def _require_rows(bank: Bank, eligibility: Eligibility, exclude: Sequence[str]) -> None:
    """Raise a `ValueError` if a spot is left without any row."""
    if eligibility.count().min() > 0:
        return
    if eligibility.itself is not None and eligibility.of_groups().count().min() > 0:
        raise ValueError(
            "The reference has one row that may be used, and that is a spot of the query, which does not cite itself. "
            "Add other measured spots, or other donors."
        )
    donors = sorted(bank.obs[_keys.DONOR].astype(str).unique())
    raise ValueError(
        f"No row of the reference is eligible for some spots: {int(eligibility.allowed.sum())} of {len(bank)} rows "
        f"pass `where`, and rows that share {listing(exclude)} with the query are never used (donors in the reference: "
        f"{listing(donors)}). Add other donors to the reference or relax `where`."
    )


def _refuse_seen_rows(bank: Bank, query: Query, renamed: np.ndarray, *, where: Where, exclude: Sequence[str]) -> None:
    """Raise a `ValueError` if a method that learned from rows which it may not use is asked to predict."""
    method = bank.fit.method
    if where is not None and not METHODS[method].cites:
        raise ValueError(
            f"Method {method!r} predicts from all rows that it was fitted on, so `where` cannot restrict it. Fit it on "
            "the rows you want: `part = reference[mask].copy()`, then `rg.tl.fit(part, ...)`."
        )
    if renamed.any():
        raise ValueError(
            f"Method {method!r} was fitted on a section with the query's very image, under another donor's name. "
            "Correct the name, or fit without that donor."
        )
    for column in exclude:
        known = set(labels(bank.obs[column])) if column in bank.obs else set()
        seen = sorted(known & query.labels(column))
        if seen:
            raise ValueError(
                f"Method {method!r} was fitted on {column} {listing(seen)}, which the query holds too. "
                f"Fit on the others: `reference[~reference.obs[{column!r}].isin({seen})].copy()`, then "
                "`rg.tl.fit`. (Methods that only cite leave such rows out by themselves.)"
            )


def allowed_rows(obs: pd.DataFrame, where: Where, argument: str = "where", name: str = "reference") -> np.ndarray:
    """(rows,) mask of the rows of a table that an argument lets through."""
    if where is None:
        return np.ones(len(obs), dtype=bool)
    if not isinstance(where, Mapping):
        # Names of rows, however they are stored, or their numbers.
        if isinstance(where, pd.Series) and not (
            where.index.astype(str).equals(obs.index.astype(str)) or where.index.equals(pd.RangeIndex(len(where)))
        ):
            raise ValueError(
                f"`{argument}` is a Series whose index is not that of `{name}.obs`: its values would be those of other "
                f"rows. Bring it to their order (`mask.loc[{name}.obs_names]`), or give an array."
            )
        mask = np.asarray(where)
        if mask.dtype != bool or mask.shape != (len(obs),):
            raise ValueError(
                f"`{argument}` is an array of {mask.dtype} with shape {mask.shape}; it must be a boolean mask over the "
                f"{len(obs)} rows of `{name}`, or a mapping from column to allowed value(s)."
            )
        return mask.copy()
    allowed = np.ones(len(obs), dtype=bool)
    for column, values in where.items():
        require_key(column, list(obs.columns), f"{name}.obs")
        wanted = set(_labels_of(values))
        present = labels(obs[column], missing="")
        absent = sorted(wanted - set(present))
        msg = f"`{argument}`: no row has {column} {listing(absent)}; there are {listing(sorted(set(present) - {''}))}."
        if len(absent) == len(wanted):
            raise ValueError(msg)
        if absent:
            logger.warning(msg)
        allowed &= np.isin(present, list(wanted))
    return allowed


def _labels_of(values: Any) -> list[str]:
    """One allowed value, or several, as labels."""
    return [label(value) for value in ([values] if np.ndim(values) == 0 and not isinstance(values, Set) else values)]


def excluded_columns(exclude: Sequence[str]) -> list[str]:
    """Names of columns in which a row must differ from the query; a `TypeError` for anything that names values."""
    if exclude is None or isinstance(exclude, Mapping):
        raise TypeError(
            f"`exclude` is a {type(exclude).__name__}; it names columns in which a row must differ from the query, for "
            "instance `('donor',)`, or none: `()`. By value, rows are chosen with `where`, which says which may be "
            "used."
        )
    return as_names(exclude)


def _reference_rows(bank: Bank, query: Query, same_image: np.ndarray) -> np.ndarray:
    """(n,) row of the reference that each spot is itself, -1 for none.

    On the query's own image it lies where the spot lies, within a pixel. Where images or positions are not known, it
    has the spot's name, and its embedding but for rounding: within 1 % of the spread of the section.

    Raises
    ------
    ValueError
        If two sections of the reference hold the same spot.
    """
    names, header = pd.Index(query.table.obs_names.astype(str)), bank.header.sections
    out = np.full(len(names), -1, dtype=np.int64)
    spread = np.linalg.norm(np.asarray(query.header["section_std"], dtype=float))
    mpps = dict(zip(header.sample, header.image_mpp, strict=True))
    centers = query.centers() if same_image.any() else np.full((len(names), 2), np.nan)
    on_slide = np.flatnonzero(np.isfinite(centers).all(axis=1))
    for sample, rows in bank.obs.groupby(bank.obs[_keys.SAMPLE].astype(str)).indices.items():
        at = bank.obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float)[rows] / float(mpps.get(sample, np.nan))
        if same_image[rows].all() and len(on_slide) and np.isfinite(at).all():
            distance, nearest = KDTree(centers[on_slide]).query(at)
            same = distance < _SAME_PX
            spot, rows = on_slide[nearest[same]], rows[same]
            twice = out[spot] >= 0
            if twice.any():
                first = labels(bank.obs[_keys.SAMPLE])[out[spot[twice]]]
                raise ValueError(
                    f"Sections {listing([*np.unique(first), sample])} of the reference hold the same spots of the "
                    f"query's image ({int(twice.sum())} of them): a spot would cite its copy. Build the reference "
                    "again with one of these sections."
                )
            out[spot] = rows
            continue
        # Rows are named `<sample>:<spot>`.
        spot = names.get_indexer([name.removeprefix(f"{sample}:") for name in bank.ids[rows]])
        rows, spot = rows[spot >= 0], spot[spot >= 0]
        apart = np.linalg.norm(read_rows(bank.embedding, rows) - query.embedding[spot], axis=1)
        same = (apart <= 0.01 * spread) & query.finite[spot]
        out[spot[same]] = rows[same]
    return out


def _query_codes(query: Query, column: str, names: np.ndarray) -> np.ndarray:
    name = query.donor_key if column == _keys.DONOR else column
    if name not in query.table.obs:
        if column != _keys.DONOR:
            require_key(name, query.table.obs, f"sdata.tables[{query.table_key!r}].obs")
        logger.warning("The query has no `obs[%r]`: it is taken as a new donor.", name)
        return np.full(query.table.n_obs, -1)
    values = query.table.obs[name]
    n_missing = int(is_missing(values).sum())
    if n_missing:
        raise ValueError(
            f"{n_missing} spots of the query have no {column} in `obs[{name!r}]`. Fill it in, so that rows "
            "of their own can be left out, or drop the column if all spots are new."
        )
    if column == _keys.DONOR:
        warn_of_alike(set(labels(values)), names, "donor", "rows of their own are cited")
    return pd.Index(names).get_indexer(labels(values))


def _renamed_donors(bank: Bank, query: Query, same_image: np.ndarray) -> np.ndarray:
    """(rows,) rows of donors of whom the reference holds the query's very image under another name."""
    donors = labels(bank.obs[_keys.DONOR])
    unexpected = sorted(set(donors[same_image]) - query.labels(_keys.DONOR))
    if unexpected:
        logger.warning(
            "The query's image is in the reference as %s: rows of donor %s are left out.",
            listing(np.unique(labels(bank.obs[_keys.SAMPLE])[same_image])),
            listing(unexpected),
        )
    return np.isin(donors, unexpected)


def _same_image(bank: Bank, query: Query) -> np.ndarray:
    """(rows,) which rows of the reference are of a section with the query's very image."""
    sections, image = bank.header.sections, str(query.header.get("image_hash", ""))
    return np.isin(labels(bank.obs[_keys.SAMPLE]), sections.sample[(sections.image_hash == image) & (image != "")])


def recorded_where(ids: np.ndarray, where: Where) -> dict[str, Any]:
    """What a provenance header keeps of `where`, so that the same rows can be found again: see `where_of`."""
    if where is None:
        return {"where": ""}
    if isinstance(where, Mapping):
        return {"where": json.dumps({str(column): _labels_of(values) for column, values in where.items()})}
    mask = np.asarray(where, dtype=bool)
    return {"where": "mask", "where_mask": np.packbits(mask[np.argsort(ids, kind="stable")])}


def where_of(ids: np.ndarray, header: Mapping[str, Any]) -> Mapping[str, Any] | np.ndarray | None:
    """The `where` of a prediction, from its provenance header; `ids` are those of the rows."""
    stored = str(header["where"])
    if stored == "mask":
        # Masks are kept by reference id, since rows may lie in another order today.
        by_id = np.unpackbits(np.asarray(header["where_mask"], dtype=np.uint8), count=len(ids)).astype(bool)
        return by_id[np.argsort(np.argsort(ids, kind="stable"))]
    return json.loads(stored) if stored else None


def number_cited(n_neighbors: int | None, fitted: int, eligibility: Eligibility) -> int:
    """How many rows a spot cites at most: those asked for, or as many as were fitted and some spot may use."""
    eligible = eligibility.count()
    check_fewer(n_neighbors, fitted, int(eligible.min()))
    if n_neighbors is not None:
        return int(n_neighbors)
    if eligible.min() < fitted:
        logger.info("For some spots only %d rows are eligible; %d neighbours were fitted.", eligible.min(), fitted)
    return int(min(fitted, eligible.max()))


def check_fewer(n_neighbors: int | None, fitted: int, fewest: int | None = None) -> None:
    """Raise a `ValueError` if more neighbours are asked for than were fitted, or than some query may cite."""
    if n_neighbors is None:
        return
    require_positive(n_neighbors, "n_neighbors", whole=True)
    if n_neighbors > fitted:
        raise ValueError(
            f"`n_neighbors` is {n_neighbors}, but the reference was fitted with {fitted}. Ask for fewer, or fit "
            "again with more."
        )
    if fewest is not None and n_neighbors > fewest:
        raise ValueError(
            f"`n_neighbors` is {n_neighbors}, but only {fewest} rows may be used. Ask for {fewest} at most."
        )
