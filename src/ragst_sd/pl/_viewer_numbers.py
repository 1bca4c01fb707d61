"""The numbers of a viewer page: what is predicted, and what it is made of, small enough to travel with the page.

Values are kept as whole multiples of the last decimal that the page shows, so that predictions, evidence, measured
values and intervals are shown as exactly as if they were printed from the table. The page multiplies and adds by itself:
a contribution is `weight * (value + correction)` as in :func:`ragst_sd.get.explain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._cited_values import level_means, measured_values
from ragst_sd._results import OBS_COLUMNS, gene_index
from ragst_sd._validate import require_type
from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

N_GENES = 200
MISSING = -32768
# Lower bounds that are zero, as many are, take one value, which compresses to little.
AT_ZERO = 32767


@dataclass(frozen=True)
class Numbers:
    """Arrays of a page, and what to know about them."""

    arrays: dict[str, np.ndarray]
    names: dict[str, list[str]]
    """Names of spots and of cited rows: too many for the head of the page."""
    facts: dict[str, Any]
    shown: np.ndarray
    """Cited rows that the page shows one by one, as positions in the table's list."""


def choose_genes(table: AnnData, genes: str | Sequence[str] | None) -> np.ndarray:
    """Positions of the genes asked for, or of the best trusted ones: by `cv_pearson`, then by predicted variance."""
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
        if not wanted:
            msg = "`genes` is empty; name at least one gene, or leave it out."
            raise ValueError(msg)
        for one in wanted:
            require_type(one, str, "genes", "Give names.")
        return gene_index(table, wanted)
    values = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    rows = np.isfinite(values).all(axis=1)
    spread = values[rows].var(axis=0) if rows.any() else np.zeros(table.n_vars)
    trust = _trust(table, _keys.CV_PEARSON)
    return np.lexsort((-spread, -np.where(np.isnan(trust), -np.inf, trust)))[:N_GENES]


def collect_numbers(
    reference: AnnData,
    table: AnnData,
    header: dict[str, Any],
    genes: np.ndarray,
    measured: np.ndarray | None,
    n_shown: int,
    most_decimals: int,
) -> Numbers:
    """Everything but pictures, for the given genes; `measured` is (spots, genes) or `None`."""
    values = {"prediction": dense(table.X[:, genes]), "evidence": dense(table.layers[_keys.EVIDENCE][:, genes])}
    if measured is not None:
        values["measured"] = measured
    bounds = {name: dense(table.layers[name][:, genes]) for name in (_keys.LOWER, _keys.UPPER) if name in table.layers}
    names = table.var_names[genes]
    cited_values, was_measured, corrections = measured_values(reference, header, header[_keys.CITED], names)
    levels, level_of = level_means(reference, header, table, names)
    decimals = _decimals([*values.values(), *bounds.values(), cited_values], most_decimals)
    whole = {name: _whole(one, decimals) for name, one in values.items()}
    arrays = {
        "prediction": whole["prediction"],
        # Mostly zeros where a method has no adjustment, which compresses to nothing.
        "adjustment": _difference(whole["prediction"], whole["evidence"]),
        **({"measured": whole["measured"]} if measured is not None else {}),
        **(_intervals(bounds, whole["prediction"], decimals) if len(bounds) == 2 else {}),
        **{name: table.obs[name].to_numpy(np.float32) for name in OBS_COLUMNS},
    }
    neighbours, shown = _neighbours(table, was_measured, n_shown)
    arrays |= neighbours | {"levels": levels.astype(np.float32), "level_of": level_of.astype(np.int32)}
    lines = header[_keys.CITED].iloc[shown]
    of_cited = {name: _codes(lines[name].astype(str).to_numpy()) for name in (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE)}
    arrays |= _cited(lines, cited_values[shown], corrections[shown], decimals)
    arrays |= {f"cited_{name}": codes for name, (codes, _) in of_cited.items()}
    facts = {
        "genes": [
            {"name": str(table.var_names[gene]), "trust": _number(trust), "ceiling": _number(ceiling)}
            for gene, trust, ceiling in zip(
                genes, _trust(table, _keys.CV_PEARSON)[genes], _trust(table, _keys.NOISE_CEILING)[genes], strict=True
            )
        ],
        "decimals": decimals,
        "missing": MISSING,
        "at_zero": AT_ZERO,
        "cites": bool(len(header[_keys.CITED])),
        "labels": {name: list(labels) for name, (_, labels) in of_cited.items()},
        "interval": _interval_facts(header) if len(bounds) == 2 else None,
    }
    named = {"spots": list(map(str, table.obs_names)), "cited": list(map(str, lines["reference"]))}
    return Numbers(arrays, named, facts, shown)


def _trust(table: AnnData, name: str) -> np.ndarray:
    return table.var[name].to_numpy(float) if name in table.var else np.full(table.n_vars, np.nan)


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _decimals(values: list[np.ndarray], most: int) -> int:
    """As many decimals as 16 bits hold for the largest value, `most` at most, one at least."""
    largest = max((float(np.nanmax(np.abs(one), initial=0.0)) for one in values if one.size), default=0.0)
    fitting = [d for d in range(most, 0, -1) if largest * 10**d < -MISSING - 1]
    if not fitting:
        msg = f"The table holds values up to {largest:.4g}; expression on a log scale is expected."
        raise ValueError(msg)
    return fitting[0]


def _whole(values: np.ndarray, decimals: int) -> np.ndarray:
    """(genes, spots) int16 multiples of the last decimal."""
    scaled = np.rint(values * 10.0**decimals)
    return np.where(np.isfinite(scaled), scaled, MISSING).astype(np.int16).T.copy()


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lost = (one == MISSING) | (other == MISSING)
    return np.where(lost, MISSING, one.astype(np.int32) - other).astype(np.int16)


def _intervals(bounds: dict[str, np.ndarray], prediction: np.ndarray, decimals: int) -> dict[str, np.ndarray]:
    """Bounds with one decimal less than values, as distances from the prediction, the lower one relative to the upper."""
    centre = np.floor((prediction.astype(np.int32) + 5) / 10).astype(np.int32)
    lower, upper = (_whole(bounds[name], decimals - 1) for name in (_keys.LOWER, _keys.UPPER))
    lost = (lower == MISSING) | (upper == MISSING) | (prediction == MISSING)
    above, below = upper - centre, centre - lower
    return {
        "above": np.where(lost, MISSING, above).astype(np.int16),
        "skew": np.where(lost, MISSING, np.where(lower == 0, AT_ZERO, below - above)).astype(np.int16),
    }


def _interval_facts(header: dict[str, Any]) -> dict[str, Any]:
    return {
        "level": _number(float(header.get(_keys.INTERVAL_LEVEL, np.nan))),
        "unit": str(header.get(_keys.INTERVAL_UNIT, _keys.UNKNOWN)),
    }


def _neighbours(table: AnnData, measured: np.ndarray, n_shown: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first rows of each spot by falling weight, and what the genes of all of its rows need to be weighed."""
    rows, n_rows = np.asarray(table.obsm[_keys.ROWS]).astype(np.int64), len(measured)
    weights = np.where(rows >= 0, np.asarray(table.obsm[_keys.WEIGHTS], dtype=np.float64), 0.0)
    used = (rows >= 0) & (weights > 0)
    by_row = np.argsort(np.where(used, rows, n_rows), axis=1, kind="stable")
    sorted_weights = np.take_along_axis(np.where(used, weights, -1.0), by_row, axis=1)
    by_weight = np.argsort(-sorted_weights, axis=1, kind="stable")
    order = np.take_along_axis(by_row, by_weight, axis=1)[:, :n_shown]
    top, kept = np.take_along_axis(rows, order, axis=1), np.take_along_axis(used, order, axis=1)
    shown = np.unique(top[kept])
    place = np.full(n_rows + 1, -1, dtype=np.int32)
    place[shown] = np.arange(len(shown), dtype=np.int32)
    masks, pattern = _patterns(measured)
    votes = np.stack([np.where(used & (pattern[rows] == p), weights, 0.0).sum(axis=1) for p in range(len(masks))])
    arrays = {
        "neighbours": np.where(kept, place[np.where(kept, top, -1)], -1).astype(np.int32),
        "weights": np.where(kept, np.take_along_axis(weights, order, axis=1), 0.0).astype(np.float32),
        "n_cited": used.sum(axis=1).astype(np.int32),
        "votes": votes.astype(np.float32),
        "masks": masks.astype(np.uint8),
        "cited_mask": pattern[shown].astype(np.uint16),
    }
    return arrays, shown


def _patterns(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which genes were measured: the distinct lines, and the line of each cited row (with one more for no row at all)."""
    if not len(measured):
        return np.ones((1, measured.shape[1]), dtype=bool), np.zeros(1, dtype=np.int64)
    masks, pattern = np.unique(measured, axis=0, return_inverse=True)
    return masks, np.append(pattern.ravel(), -1)


def _cited(lines: pd.DataFrame, values: np.ndarray, corrections: np.ndarray, decimals: int) -> dict[str, np.ndarray]:
    """Measured values of the rows shown, and the corrections, which rows of one section share."""
    import pandas as pd

    pairs = lines[_keys.SAMPLE].astype(str) + "\x1f" + lines[_keys.DONOR].astype(str)
    codes, sections = pd.factorize(pairs)
    first = np.array([np.argmax(codes == code) for code in range(len(sections))], dtype=np.int64)
    return {
        "cited_values": _whole(values, decimals),
        "cited_section": codes.astype(np.uint16),
        "corrections": corrections[first].astype(np.float32),
    }


def _codes(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    labels, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.uint16), [str(label) for label in labels]
