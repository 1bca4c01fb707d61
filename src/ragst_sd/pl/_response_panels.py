"""Panels of `rg.pl.perturbation`: predicted against measured, retrieved perturbations, weights by cell state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.pl import _style
from ragst_sd.pl._responses import correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ragst_sd.pl._responses import Measured, Shown

_LONGEST = 24
_MOST_STATES = 12


def scatter(ax: Axes, shown: Shown, measured: Measured, n_genes: int) -> None:
    """Predicted response of each gene against the measured one, with its standard error."""
    x, y = measured.values, measured.predicted
    low, high = min(x.min(), y.min(), 0), max(x.max(), y.max(), 0)
    air = 0.06 * (high - low or 1.0)
    low, high = low - air, high + air
    ax.plot([low, high], [low, high], color="0.75", lw=0.8, zorder=1, label="equal")
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.88", lw=0.8, zorder=0)
    ax.errorbar(x, y, xerr=measured.error, fmt="none", ecolor="0.7", elinewidth=0.5, zorder=2)
    ax.scatter(x, y, s=12, color=_style.EVIDENCE, linewidths=0, alpha=0.8, zorder=3, label="genes")
    _name_genes(ax, shown, measured, n_genes, high - low)
    ax.set(xlim=(low, high), ylim=(low, high), xlabel=measured.labels[0], ylabel=measured.labels[1])
    ax.set(box_aspect=1, anchor="NW", label="response")
    where = "" if shown.context == _keys.ALL_CONTEXTS else f" in {_style.shorten(shown.context, 14)}"
    note = f"{measured.n_cells:,} cells measured, reliability {_style.number(measured.reliability, 2)}"
    _style.set_title(ax, f"{shown.perturbation}{where}, r = {_number(correlation(y, x))}", note)


def _name_genes(ax: Axes, shown: Shown, measured: Measured, n_genes: int, size: float) -> None:
    """Names of the genes that respond most, as far as they have room."""
    strongest = np.argsort(-np.maximum(np.abs(measured.values), np.abs(measured.predicted)), kind="stable")[:n_genes]
    taken: list[tuple[float, float]] = []
    for gene in strongest:
        x, y = float(measured.values[gene]), float(measured.predicted[gene])
        if any(abs(x - a) < 0.28 * size and abs(y - b) < 0.045 * size for a, b in taken):
            continue
        taken.append((x, y))
        shift, align = (-3, "right") if x > 0.5 * (measured.values.min() + measured.values.max()) else (3, "left")
        style = {"fontsize": "small", "zorder": 4, "path_effects": _style.halo(1.5), "gid": "gene"}
        _style.beside(ax, str(shown.table.var_names[gene]), (x, y), (shift, 0), "data", ha=align, va="center", **style)


def _row_names(shown: Shown, n: int) -> list[str]:
    """Perturbation of the first cited rows, with their contexts where those are not the one shown."""
    contexts = shown.cited[_keys.CONTEXT].astype(str)
    with_context = contexts.nunique() > 1 or not set(contexts) <= {shown.context, _keys.ALL_CONTEXTS}
    names = shown.cited[_keys.PERTURBATION].astype(str)
    return [_style.shorten(name, _LONGEST) for name in (names + " in " + contexts if with_context else names)][:n]


def bar_rows(shown: Shown, n_shown: int) -> int:
    """Rows of the list of retrieved perturbations."""
    return min(max(1, used_here(shown)), n_shown + 1)


def used_here(shown: Shown) -> int:
    """Rows that are cited in the context shown; those that only other states cite come after them."""
    return int((shown.cited["weight"] > 0).sum())


def bars(ax: Axes, shown: Shown, n_shown: int) -> None:
    """Weights of the retrieved perturbations, with how reliable each is and how it agrees with the measured response."""
    n, title = min(n_shown, used_here(shown)), "Retrieved perturbations"
    ax.set(ylim=(bar_rows(shown, n_shown) - 0.5, -0.5), label="retrieved")
    ax.set_axis_off()
    if not n:
        cites_none = f"{shown.header['method']!r} cites no measured response"
        is_control = shown.perturbation == shown.header["control"]
        _style.set_title(ax, title)
        words = "no response: this is the control" if is_control else cites_none
        _style.beside(ax, words, (0, 1), (0, -0.5 * _style.em()), va="top", color=_style.MUTED, gid="nobody")
        return
    weights = shown.cited["weight"].to_numpy()
    ax.barh(np.arange(n), weights[:n], height=0.66, color=_style.EVIDENCE)
    ax.set_xlim(0, max(weights.max(), 1e-9))
    columns = {
        "weight": [_style.percent(weight) for weight in weights[:n]],
        "reliability": [_number(value) for value in shown.cited[_keys.RELIABILITY][:n]],
    }
    if np.isfinite(shown.agreement).any():
        columns["r measured"] = [_number(value) for value in shown.agreement[:n]]
    _style.write_columns(ax, columns)
    rest = used_here(shown) - n
    reach = _style.write_columns(ax, {"perturbation": _row_names(shown, n)}, before=True)
    if rest > 0:
        words, coords = f"{rest} more, {_style.percent(weights[n:].sum())}", ("axes fraction", "data")
        _style.beside(ax, words, (0, n), (-reach, 0), coords, va="center", color=_style.MUTED, gid="more")
    _style.beside(ax, title, (0, 1), (-reach, 2 * _style.em()), fontsize=1.1 * _style.em())


def heat(ax: Axes, shown: Shown, n_shown: int, group_by: str, cmap: Any) -> None:
    """Weights of the retrieved perturbations by the state of the cells."""
    n, states = min(n_shown, len(shown.cited)), shown.states[:_MOST_STATES]
    values = shown.weights[:n, : len(states)] if states else shown.weights[:n]
    highest = float(values.max())
    picture = ax.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=max(highest, 1e-9), interpolation="nearest")
    ax.set(xticks=[], yticks=[], label="weights")
    ax.spines[:].set_visible(False)
    note = "each column a spot and its neighbours"
    if states:
        names = [_style.shorten(state, 16) for state in states]
        ax.set_xticks(range(len(states)), names, rotation=60, ha="right", rotation_mode="anchor")
        ax.tick_params(axis="x", length=0)
        hidden = len(shown.states) - len(states)
        note = f"by {group_by}" + (f", {hidden} more not shown" if hidden > 0 else "")
    else:
        ax.set_xlabel(f"{values.shape[1]:,} spots, ordered by their weights")
    reach = _style.write_columns(ax, {note: _row_names(shown, n)}, before=True)
    _style.beside(ax, "Weight by cell state", (0, 1), (-reach, 2 * _style.em()), fontsize=1.1 * _style.em())
    bar = ax.figure.colorbar(picture, cax=ax.inset_axes((1.04, 0, 0.06, 1), label="colorbar"), ticks=[0, highest])
    bar.outline.set_linewidth(0)
    bar.ax.set_yticklabels(["0", _style.number(highest, 2)])
    bar.ax.tick_params(length=0)


def _number(value: float) -> str:
    return _style.number(value, 2) if np.isfinite(value) else "n/a"
