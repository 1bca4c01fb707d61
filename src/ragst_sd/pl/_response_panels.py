"""Panels of `rg.pl.perturbation`: predicted against measured, retrieved perturbations, weights by cell state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd.pl import _style
from ragst_sd.pl._responses import correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ragst_sd.pl._figure import Stage
    from ragst_sd.pl._responses import Measured, Shown

# Inches of the design.
SCATTER, HEAD, LEFT, BELOW = 3.3, 0.62, 0.72, 0.55
LINE, BARS, COLUMN, HEAT_TOP = 0.3, 1.4, 0.84, 0.62
_LETTER, _LONGEST, _CELL, _SPOTS = 0.085, 24, 0.62, 2.6
_MOST_STATES = 12


def scatter(stage: Stage, shown: Shown, measured: Measured, left: float, top: float, n_genes: int) -> Axes:
    """Predicted response of each gene against the measured one, with its standard error."""
    ax = stage.axes(left + LEFT, top + HEAD, SCATTER - LEFT, SCATTER - LEFT, "response")
    low = min(measured.values.min(), measured.predicted.min(), 0)
    high = max(measured.values.max(), measured.predicted.max(), 0)
    air = 0.06 * (high - low or 1.0)
    low, high = low - air, high + air
    ax.plot([low, high], [low, high], color="0.75", lw=stage.points(0.8), zorder=1, label="equal")
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.88", lw=stage.points(0.8), zorder=0)
    ax.errorbar(
        measured.values,
        measured.predicted,
        xerr=measured.error,
        fmt="none",
        ecolor="0.7",
        elinewidth=stage.points(0.5),
        zorder=2,
    )
    ax.scatter(
        measured.values, measured.predicted, s=stage.points(12), color=_style.EVIDENCE, linewidths=0, alpha=0.8, zorder=3,
        label="genes",
    )  # fmt: skip
    _name_genes(ax, stage, shown, measured, n_genes, high - low)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_xlabel(measured.labels[0], fontsize=stage.points(9.5))
    ax.set_ylabel(measured.labels[1], fontsize=stage.points(9.5))
    ax.tick_params(labelsize=stage.points(8.5))
    ax.spines[["top", "right"]].set_visible(False)
    where = "" if shown.context == _keys.ALL_CONTEXTS else f" in {_style.shorten(shown.context, 14)}"
    agreement = correlation(measured.predicted, measured.values)
    text = _style.number(agreement, 2) if np.isfinite(agreement) else "n/a"
    _heading(ax, stage, f"{shown.perturbation}{where}, r = {text}",
             f"{measured.n_cells:,} cells measured, reliability {_style.number(measured.reliability, 2)}")  # fmt: skip
    return ax


def _name_genes(ax: Axes, stage: Stage, shown: Shown, measured: Measured, n_genes: int, size: float) -> None:
    """Names of the genes that respond most, as far as they have room."""
    strongest = np.argsort(-np.maximum(np.abs(measured.values), np.abs(measured.predicted)), kind="stable")[:n_genes]
    taken: list[tuple[float, float]] = []
    for gene in strongest:
        x, y = float(measured.values[gene]), float(measured.predicted[gene])
        if any(abs(x - a) < 0.28 * size and abs(y - b) < 0.045 * size for a, b in taken):
            continue
        taken.append((x, y))
        right = x > 0.5 * (measured.values.min() + measured.values.max())
        ax.annotate(
            str(shown.table.var_names[gene]), (x, y), xytext=(-3 if right else 3, 0), textcoords="offset points",
            fontsize=stage.points(8), ha="right" if right else "left", va="center", zorder=4, path_effects=_style.halo(1.5),
            gid="gene",
        )  # fmt: skip


def bars_size(shown: Shown, n_shown: int) -> tuple[float, float]:
    """Width and height of the list of retrieved perturbations."""
    columns = 3 if np.isfinite(shown.agreement).any() else 2
    n = max(1, min(n_shown, used_here(shown)))
    more = 1 if used_here(shown) > n_shown else 0
    return names_width(shown) + BARS + columns * COLUMN, HEAD + (n + more) * LINE + 0.25


def names_width(shown: Shown) -> float:
    """Room for the names of retrieved perturbations."""
    return _LETTER * max([14, *(len(one) for one in row_names(shown))]) + 0.1


def row_names(shown: Shown) -> list[str]:
    """Perturbation of each cited row, with its context where that is not the one shown."""
    contexts = shown.cited[_keys.CONTEXT].astype(str)
    named = contexts.nunique() > 1 or not set(contexts) <= {shown.context, _keys.ALL_CONTEXTS}
    names = shown.cited[_keys.PERTURBATION].astype(str)
    return [_style.shorten(one, _LONGEST) for one in (names + " in " + contexts if named else names)]


def used_here(shown: Shown) -> int:
    """Rows that are cited in the context shown; those that only other states cite come after them."""
    return int((shown.cited["weight"] > 0).sum())


def bars(stage: Stage, shown: Shown, left: float, top: float, n_shown: int) -> Axes:
    """Weights of the retrieved perturbations, with how reliable each is and how it agrees with the measured response."""
    n = min(n_shown, used_here(shown))
    start = left + names_width(shown)
    ax = stage.axes(start, top + HEAD, BARS, max(1, n) * LINE, "retrieved")
    ax.set_axis_off()
    stage.text(left, top + 0.24, "Retrieved perturbations", size=11, ha="left", va="center")
    if not n:
        what = "no response: this is the control" if shown.perturbation == shown.header["control"] else (
            f"{shown.header['method']!r} cites no measured response"
        )  # fmt: skip
        stage.text(left, top + HEAD, what, size=9.5, ha="left", va="center", color=_style.MUTED, gid="nobody")
        return ax
    weights = shown.cited["weight"].to_numpy()
    ax.barh(np.arange(n), weights[:n], height=0.66, color=_style.EVIDENCE)
    ax.set(xlim=(0, max(weights.max(), 1e-9)), ylim=(n - 0.5, -0.5))
    texts = {
        "weight": [f"{weight:.0%}".replace("%", " %") for weight in weights[:n]],
        "reliability": [_number(one) for one in shown.cited[_keys.RELIABILITY][:n]],
    }
    if np.isfinite(shown.agreement).any():
        texts["r measured"] = [_number(one) for one in shown.agreement[:n]]
    for j, (head, column) in enumerate(texts.items()):
        at = start + BARS + (j + 1) * COLUMN
        stage.text(at, top + HEAD - 0.08, head, size=8.5, ha="right", va="bottom", color=_style.MUTED)
        for i, text in enumerate(column):
            stage.text(at, top + HEAD + (i + 0.5) * LINE, text, size=9.5, ha="right", va="center", gid=head)
    for i, name in enumerate(row_names(shown)[:n]):
        stage.text(left, top + HEAD + (i + 0.5) * LINE, name, size=10, ha="left", va="center", gid="perturbation")
    rest = used_here(shown) - n
    if rest > 0:
        share = f"{weights[n:].sum():.0%}".replace("%", " %")
        stage.text(
            left, top + HEAD + (n + 0.5) * LINE, f"{rest} more, {share}", size=9, ha="left", va="center",
            color=_style.MUTED, gid="more",
        )  # fmt: skip
    return ax


def heat_size(shown: Shown, n_shown: int) -> tuple[float, float]:
    """Width and height of the heat map; nothing where all states share their weights."""
    if not shown.weights.shape[1]:
        return 0.0, 0.0
    n = min(n_shown, len(shown.cited))
    width = _SPOTS if not shown.states else _CELL * min(len(shown.states), _MOST_STATES)
    return names_width(shown) + width + 0.75, HEAT_TOP + n * LINE + (0.4 if not shown.states else _names_height(shown))


def _names_height(shown: Shown) -> float:
    return 0.15 + 0.07 * max(len(_style.shorten(name, 16)) for name in shown.states)


def heat(stage: Stage, shown: Shown, left: float, top: float, n_shown: int, group_by: str, cmap: Any) -> Axes:
    """Weights of the retrieved perturbations by the state of the cells."""
    n = min(n_shown, len(shown.cited))
    states = shown.states[:_MOST_STATES]
    width = _SPOTS if not states else _CELL * len(states)
    values = shown.weights[:n, : len(states)] if states else shown.weights[:n]
    start = left + names_width(shown)
    ax = stage.axes(start, top + HEAT_TOP, width, n * LINE, "weights")
    picture = ax.imshow(
        values, aspect="auto", cmap=cmap, vmin=0, vmax=max(float(values.max()), 1e-9), interpolation="nearest"
    )
    ax.set_yticks([])
    for i, name in enumerate(row_names(shown)[:n]):
        stage.text(left, top + HEAT_TOP + (i + 0.5) * LINE, name, size=10, ha="left", va="center", gid="row")
    if states:
        ax.set_xticks(
            range(len(states)),
            [_style.shorten(one, 16) for one in states],
            rotation=60,
            ha="right",
            rotation_mode="anchor",
        )
        ax.tick_params(axis="x", labelsize=stage.points(8.5), length=0)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{values.shape[1]:,} spots, ordered by their weights", fontsize=stage.points(9))
    for spine in ax.spines.values():
        spine.set_visible(False)
    hidden = len(shown.states) - len(states)
    stage.text(left, top + 0.16, "Weight by cell state", size=11, ha="left", va="center")
    note = (
        f"by {group_by}" + (f", {hidden} more not shown" if hidden > 0 else "")
        if states
        else "each column a spot and its neighbours"
    )
    stage.text(left, top + 0.38, note, size=9, ha="left", va="center", color=_style.MUTED)
    cax = stage.axes(start + width + 0.1, top + HEAT_TOP, 0.1, n * LINE, "colorbar")
    bar = stage.figure.colorbar(picture, cax=cax, ticks=[0, float(values.max())])
    bar.outline.set_linewidth(0)
    bar.ax.set_yticklabels(["0", _style.number(float(values.max()), 2)])
    bar.ax.tick_params(labelsize=stage.points(8.5), length=0)
    return ax


def _heading(ax: Axes, stage: Stage, title: str, note: str) -> None:
    ax.set_title(title, fontsize=stage.points(11), loc="left", pad=stage.points(18))
    ax.annotate(
        note, (0, 1), xycoords="axes fraction", xytext=(0, stage.points(5)), textcoords="offset points", ha="left",
        va="bottom", fontsize=stage.points(9), color=_style.MUTED, annotation_clip=False, gid="note",
    )  # fmt: skip


def _number(value: float) -> str:
    return _style.number(value, 2) if np.isfinite(value) else "n/a"
