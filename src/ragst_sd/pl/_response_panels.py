"""Panels of `rg.pl.perturbation`: map, predicted against measured, retrieved perturbations, weights by cell state."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap

from ragst_sd import _keys
from ragst_sd.pl import _style
from ragst_sd.pl._maps import Map, limits_of
from ragst_sd.pl._responses import Measured, Shown, correlation
from ragst_sd.pl._section import Section, draw_rims
from ragst_sd.retrieval.training import dense

_MOST_STATES = 12


def scatter(ax: Axes, shown: Shown, measured: Measured, n_genes: int) -> None:
    """Predicted response of each gene against the measured one, with its standard error."""
    x, y = measured.values, measured.predicted
    low, high = min(x.min(), y.min(), 0), max(x.max(), y.max(), 0)
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin
    ax.plot([low, high], [low, high], color="0.75", lw=0.8, zorder=1, label="equal")
    ax.axhline(0, color="0.88", lw=0.8, zorder=0)
    ax.axvline(0, color="0.88", lw=0.8, zorder=0)
    if _keys.STANDARD_ERROR in measured.row.layers:
        error = dense(measured.row.layers[_keys.STANDARD_ERROR]).ravel()
        ax.errorbar(x, y, xerr=error, fmt="none", ecolor="0.7", elinewidth=0.5, zorder=2)
    ax.scatter(x, y, s=12, color=_style.EVIDENCE, linewidths=0, alpha=0.8, zorder=3, label="genes")
    _name_genes(ax, measured, n_genes, high - low)
    ax.set(xlim=(low, high), ylim=(low, high), xlabel=measured.labels[0], ylabel=measured.labels[1])
    ax.set(box_aspect=1, anchor="NW", label="response")
    where = "" if shown.context == _keys.ALL_CONTEXTS else f" in {_style.shorten(shown.context, 14)}"
    facts = measured.row.obs.iloc[0]
    known = {
        f"{int(facts[_keys.N_CELLS]):,} cells measured": facts[_keys.N_CELLS] > 0,
        f"reliability {_style.number(facts[_keys.RELIABILITY], 2)}": np.isfinite(facts[_keys.RELIABILITY]),
    }
    note = ", ".join(text for text, there in known.items() if there)
    _style.set_title(ax, f"{shown.perturbation}{where}, r = {_style.number(correlation(y, x), 2)}", note)


def _name_genes(ax: Axes, measured: Measured, n_genes: int, size: float) -> None:
    """Names of the genes that respond most, as far as they have room."""
    points = np.column_stack([measured.values, measured.predicted])
    middle = 0.5 * (measured.values.min() + measured.values.max())
    style: dict[str, Any] = {"fontsize": "small", "zorder": 4, "path_effects": _style.halo(1.5), "gid": "gene"}
    named: list[int] = []
    for gene in np.argsort(-np.abs(points).max(axis=1), kind="stable")[:n_genes]:
        near = np.abs(points[named] - points[gene]) < [0.28 * size, 0.045 * size]
        if near.all(axis=1).any():
            continue
        named.append(gene)
        name, point = measured.row.var_names[gene], tuple(points[gene])
        shift, align = (-3, "right") if point[0] > middle else (3, "left")
        _style.beside(ax, name, point, (shift, 0), "data", ha=align, va="center", **style)


def _row_names(shown: Shown, n: int) -> list[str]:
    """Perturbation of the first cited rows, with their contexts where those are not the one shown."""
    names, contexts = (shown.cited[name].astype(str) for name in (_keys.PERTURBATION, _keys.CONTEXT))
    if contexts.nunique() > 1 or not set(contexts) <= {shown.context, _keys.ALL_CONTEXTS}:
        names = names + " in " + contexts
    return [_style.shorten(name, 24) for name in names[:n]]


def bar_rows(shown: Shown, n_shown: int) -> int:
    """Rows of the list of retrieved perturbations."""
    return min(max(1, _used_here(shown)), n_shown + 1)


def _used_here(shown: Shown) -> int:
    """Rows that are cited in the context shown; those that only other states cite come after them."""
    return int((shown.cited["weight"] > 0).sum())


def bars(ax: Axes, shown: Shown, n_shown: int) -> None:
    """Weights of the retrieved perturbations, how reliable each is, and how it agrees with the measured response."""
    n, title = min(n_shown, _used_here(shown)), "Retrieved perturbations"
    ax.set(ylim=(bar_rows(shown, n_shown) - 0.5, -0.5), label="retrieved")
    ax.set_axis_off()
    if not n:
        words = f"{shown.header['method']!r} cites no measured response"
        if shown.perturbation == shown.header["control"]:
            words = "no response: this is the control"
        _style.set_title(ax, title)
        _style.beside(ax, words, (0, 1), (0, -0.5 * _style.em()), va="top", color=_style.MUTED, gid="no rows")
        return
    weights = shown.cited["weight"].to_numpy()
    ax.barh(np.arange(n), weights[:n], height=0.66, color=_style.EVIDENCE)
    ax.set_xlim(0, weights[0])
    columns = {
        "weight": [_style.percent(weight) for weight in weights[:n]],
        "reliability": [_style.number(value, 2) for value in shown.cited[_keys.RELIABILITY][:n]],
    }
    if shown.cited["agreement"].notna().any():
        columns["r measured"] = [_style.number(value, 2) for value in shown.cited["agreement"][:n]]
    _style.write_columns(ax, columns)
    reach = _titled_rows(ax, title, {"perturbation": _row_names(shown, n)})
    rest = _used_here(shown) - n
    if rest > 0:
        words, coords = f"{rest} more, {_style.percent(weights[n:].sum())}", ("axes fraction", "data")
        _style.beside(ax, words, (0, n), (-reach, 0), coords, va="center", color=_style.MUTED, gid="more")


def heat(ax: Axes, shown: Shown, n_shown: int, group_by: str, cmap: Any) -> None:
    """Weights of the retrieved perturbations by the state of the cells."""
    states = [_style.shorten(state, 16) for state in shown.states[:_MOST_STATES]]
    values = shown.weights[:n_shown, : len(states) or None]
    highest = float(values.max())
    picture = ax.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=highest, interpolation="nearest")
    ax.set(xticks=[], yticks=[], label="weights")
    ax.spines[:].set_visible(False)
    if states:
        ax.set_xticks(range(len(states)), states, rotation=60, ha="right", rotation_mode="anchor")
        ax.tick_params(axis="x", length=0)
        hidden = len(shown.states) - len(states)
        note = f"by {group_by}" + (f", {hidden} more not shown" if hidden else "")
    else:
        ax.set_xlabel(f"{values.shape[1]:,} spots, ordered by their weights")
        note = "each column a spot and its neighbours"
    _titled_rows(ax, "Weight by cell state", {note: _row_names(shown, n_shown)})
    bar = ax.figure.colorbar(picture, cax=ax.inset_axes((1.04, 0, 0.06, 1), label="colorbar"), ticks=[0, highest])
    bar.outline.set_linewidth(0)
    bar.ax.set_yticklabels(["0", _style.number(highest, 2)])
    bar.ax.tick_params(length=0)


def _titled_rows(ax: Axes, title: str, column: dict[str, list[str]]) -> float:
    """Write the names of rows before axes, and a title above them; how far they reach in points."""
    reach = _style.write_columns(ax, column, before=True)
    _style.beside(ax, title, (0, 1), (-reach, 2 * _style.em()), fontsize=1.1 * _style.em())
    return reach


def response_map(shown: Shown, cmap: str | Colormap, vmin: float | None, vmax: float | None) -> Map:
    """What the map shows and says."""
    header, title = shown.header, f"Response to {shown.perturbation}"
    values = shown.table.obs[_keys.RESPONSE_MAGNITUDE].to_numpy(float)
    constant, far = bool(header["constant"]), float(header["far_from_screen"])
    label = "root mean square response"
    p_value = _style.number(float(header["variance_p_value"]), 2)
    note = f"varies more than among shuffled spots (p = {p_value})"
    if constant:
        cmap, label = ListedColormap([_style.OTHERS]), ""
        words = "the same response for every state"
        if len(np.atleast_1d(header["variance_shuffled"])):
            words = "no more variation over the tissue than among shuffled spots"
        note = f"constant ({_style.number(values[0], 3)}): {words}"
    if far > 0:
        note += f". ringed: far from the screen's cells ({_style.percent(far)} of spots)"
    return Map("map", title, values, limits_of(values, vmin, vmax), cmap, label, note)


def ring_far_spots(ax: Axes, section: Section, table: AnnData) -> None:
    """Draw a ring around spots that the screen holds no cells like."""
    far = np.flatnonzero(table.obs[_keys.FAR_FROM_SCREEN].to_numpy(bool))
    if len(far):
        draw_rims(ax, section, far, "0.15", 0.8, zorder=4, label="far from the screen")
