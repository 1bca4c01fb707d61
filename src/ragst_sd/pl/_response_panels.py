"""Panels of `rg.pl.perturbation`: the map, predicted against measured, retrieved perturbations, weights by cell state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import rows_in_order, single_region
from ragst_sd._elements import resolve_shapes
from ragst_sd.image.embedding import Pyramid
from ragst_sd.pl import _style
from ragst_sd.pl._maps import Map, limits_of
from ragst_sd.pl._responses import correlation
from ragst_sd.pl._section import Section, draw_spots, read_section

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

    from ragst_sd.pl._responses import Measured, Shown

_LONGEST = 24
_MOST_STATES = 12
_AIR = 1.0


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
        style: dict[str, Any] = {"fontsize": "small", "zorder": 4, "path_effects": _style.halo(1.5), "gid": "gene"}
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


def response_section(sdata: SpatialData, table: AnnData, header: dict[str, Any], prediction_key: str) -> Section:
    """The spots on their picture; on white where the object has none."""
    if str(header["image_key"]) in sdata.images:
        return read_section(sdata, table, header, prediction_key)
    region = resolve_shapes(sdata, single_region(table))
    element = sdata[region]
    order = rows_in_order(table, prediction_key, region, element.index)
    if hasattr(element, "compute"):
        centers, shapes = element[["x", "y"]].compute().to_numpy(float)[order], None
    else:
        shapes = element.iloc[order]
        centroids = shapes.geometry.centroid
        centers = np.column_stack([centroids.x, centroids.y])
    # Spots do not reach the rim of the white picture, whatever frame they lie in.
    low, high = centers.min(axis=0), centers.max(axis=0)
    reach = 0.0 if shapes is None or "radius" not in shapes else float(shapes["radius"].max())
    rim = 1.2 * reach + 0.08 * float((high - low).max()) + _AIR
    affine = np.eye(3)
    affine[:2, 2] = rim - low
    width, height = (int(np.ceil(edge)) for edge in high - low + 2 * rim)
    # Takes no memory, whatever the units of the element are.
    white = np.broadcast_to(np.uint8(255), (3, height, width))
    stated = float(header["image_mpp"])
    mpp = stated if np.isfinite(stated) else None
    return Section(Pyramid((white,), ((height, width),), 255.0), mpp, centers + affine[:2, 2], shapes, affine)


def response_map(
    table: AnnData,
    header: dict[str, Any],
    perturbation: str,
    cmap: str | Colormap,
    vmin: float | None,
    vmax: float | None,
) -> Map:
    """What the map shows and says."""
    from matplotlib.colors import ListedColormap

    values = table.obs[_keys.RESPONSE_MAGNITUDE].to_numpy(float)
    constant, far = bool(header["constant"]), float(header["far_from_screen"])
    if constant and len(np.atleast_1d(header["variance_shuffled"])):
        words = "no more variation over the tissue than among shuffled spots"
    else:
        words = "the same response for every state"
    note = f"constant ({_style.number(values[0], 3)}): {words}"
    if not constant:
        p_value = _style.number(float(header["variance_p_value"]), 2)
        note = f"varies more than among shuffled spots (p = {p_value})"
    if far > 0:
        note += f". ringed: far from the screen's cells ({_style.percent(far)} of spots)"
    one_colour = ListedColormap([_style.OTHERS])
    return Map(
        "map",
        f"Response to {perturbation}",
        values,
        limits_of(values, vmin, vmax),
        one_colour if constant else cmap,
        "" if constant else "root mean square response",
        note,
    )


def ring_far_spots(ax: Axes, section: Section, table: AnnData) -> None:
    """Draw a ring around spots that the screen holds no cells like."""
    far = np.flatnonzero(table.obs[_keys.FAR_FROM_SCREEN].to_numpy(bool))
    if len(far):
        style: dict[str, Any] = {"facecolors": "none", "edgecolors": "0.15", "linewidths": 0.8, "zorder": 4}
        draw_spots(ax, section, far, label="far from the screen", **style)
