"""Draw the figure of the page on the method, from synthetic tissue: python docs/draw_method.py"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

import ragst_sd as rg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

INK, QUIET, EVIDENCE, ADJUSTMENT = "#22303c", "#8a97a3", "#1f77b4", "#d9822b"
N_CITED = 5


def main() -> None:
    """Predict one spot of synthetic tissue and draw how its value came about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "_static")
    args = parser.parse_args()
    sections = rg.datasets.synthetic(n_donors=3, image_px=1200)
    rg.pp.embed_tiles(sections, progress=False)
    query = sections.pop("donor3")
    reference = rg.tl.build_reference(sections, use_rep="X_texture")
    rg.tl.fit(reference, progress=False)
    gene = "CD3E"
    rg.tl.predict(query, reference, genes=[gene], n_neighbors=N_CITED)
    table = query.tables["predicted"]
    spot = table.obs_names[int(np.argmax(np.asarray(table.X).ravel()))]
    cited = rg.get.neighbors(query, obs_names=spot)
    parts = rg.get.explain(query, reference, obs_names=spot, genes=gene).set_index("reference")
    thumbnails = dict(zip(reference.obs_names, reference.obsm["thumbnail"], strict=True))

    plt.rcParams.update({"font.family": "sans-serif", "font.size": 10, "text.color": INK, "svg.fonttype": "none"})
    figure, ax = plt.subplots(figsize=(12, 5.2), layout="constrained")
    ax.set(xlim=(0, 120), ylim=(0, 52))
    ax.axis("off")
    draw_query(ax, query, spot)
    draw_space(ax, reference, cited)
    draw_cited(ax, cited, thumbnails, parts)
    draw_sum(ax, parts, gene)
    args.out.mkdir(exist_ok=True)
    for name in ("method.svg", "method.png"):
        figure.savefig(
            args.out / name, dpi=160, facecolor="white", metadata={"Date": None} if name.endswith("svg") else None
        )
    plt.close(figure)


def heading(ax: Axes, x: float, number: int, title: str, below: str) -> None:
    """A numbered step."""
    ax.add_patch(Circle((x, 49), 1.7, facecolor=INK, edgecolor="none"))
    ax.text(x, 48.85, str(number), color="white", ha="center", va="center", weight="bold")
    ax.text(x + 3, 49, title, va="center", weight="bold", fontsize=11)
    ax.text(x + 3, 46, below, va="top", fontsize=9, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one step to the next."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=QUIET, linewidth=1.6))


def picture(ax: Axes, pixels: np.ndarray, at: tuple[float, float], zoom: float, colour: str) -> None:
    """A tile with a frame."""
    box = OffsetImage(pixels, zoom=zoom, interpolation="bilinear")
    ax.add_artist(AnnotationBbox(box, at, frameon=True, pad=0.15, bboxprops={"edgecolor": colour, "linewidth": 1.6}))


def draw_query(ax: Axes, query: object, spot: str) -> None:
    """The tile around the spot, and the wider field around that."""
    heading(ax, 3, 1, "Look", "a tile of H&E and what\nlies around it, as one\nvector x")
    image = np.asarray(rg.datasets.synthetic(n_donors=3, image_px=1200)["donor3"].images["he"]["scale0"]["image"])
    x, y = query.tables["predicted"][spot].obsm["spatial"][0]
    for radius, at, zoom in ((112, (10, 28), 0.38), (40, (10, 8.3), 0.62)):
        left, top = (int(np.clip(value - radius, 0, 1200 - 2 * radius)) for value in (x, y))
        picture(ax, image[:, top : top + 2 * radius, left : left + 2 * radius].transpose(1, 2, 0), at, zoom, INK)
    ax.text(10, 36.4, "surroundings", fontsize=8, color=QUIET, ha="center")
    ax.text(10, 13.6, "tile", fontsize=8, color=QUIET, ha="center")
    arrow(ax, (21, 20), (28, 20))


def draw_space(ax: Axes, reference: object, cited: pd.DataFrame) -> None:
    """Reference rows in the space in which neighbours are searched."""
    heading(ax, 31, 2, "Search", "measured spots of other\ndonors, nearest in a learned\nspace φ")
    key = np.asarray(reference.obsm["retrieval_key"])
    names = list(reference.obs_names)
    chosen = [names.index(name) for name in cited["reference"]]
    centre = key[chosen].mean(axis=0)
    near = np.argsort(((key - centre) ** 2).sum(axis=1))[:320]
    axes = np.linalg.svd(key[near] - centre, full_matrices=False)[2][:2]
    flat = (key - centre) @ axes.T
    # Far rows are drawn nearer than they are, so that near ones can be told apart.
    far = np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12
    flat = flat / far * np.sqrt(far)
    low, high = flat[near].min(axis=0), flat[near].max(axis=0)
    place = np.array([30.5, 6.0]), np.array([55.5, 36.0])
    flat = place[0] + (flat - low) / (high - low) * (place[1] - place[0])
    star = place[0] + (0 - low) / (high - low) * (place[1] - place[0])
    donors = reference.obs["donor"].astype(str).to_numpy()
    for donor, colour in zip(sorted(set(donors)), ("#9fb3c8", "#c9b79c"), strict=False):
        at = near[donors[near] == donor]
        ax.scatter(*flat[at].T, s=13, color=colour, linewidths=0, label=donor)
    for k in chosen:
        ax.plot([star[0], flat[k, 0]], [star[1], flat[k, 1]], color=EVIDENCE, linewidth=0.9, zorder=2)
    ax.scatter(*flat[chosen].T, s=34, color=EVIDENCE, zorder=3)
    ax.scatter(*star, marker="*", s=190, color=INK, zorder=4)
    ax.text(43, 2.2, "two other donors; the query's own is never used", ha="center", fontsize=8, color=QUIET)
    arrow(ax, (58, 20), (64, 20))


def draw_cited(ax: Axes, cited: pd.DataFrame, thumbnails: dict[str, np.ndarray], parts: pd.DataFrame) -> None:
    """The cited rows with weight and value."""
    heading(ax, 66, 3, "Weigh", "a gate says how much each\ncandidate counts; few do,\nand their names are kept")
    ax.text(75.5, 38.2, "weight", fontsize=8, color=QUIET, ha="center")
    ax.text(84, 38.2, "measured*", fontsize=8, color=QUIET, ha="center")
    levelled = parts["value"] + parts["correction"]
    ax.text(77, 0.8, "* with all sections brought to one mean", ha="center", fontsize=8, color=QUIET)
    for i, row in enumerate(cited.itertuples()):
        y = 34 - i * 7.1
        picture(ax, thumbnails[row.reference], (68.5, y), 0.5, EVIDENCE)
        ax.text(75.5, y, f"{row.weight:.2f}", ha="center", va="center", fontsize=10)
        ax.text(84, y, f"{levelled[row.reference]:.2f}", ha="center", va="center", fontsize=10)
        ax.text(79.8, y, "×", ha="center", va="center", color=QUIET)
    arrow(ax, (89, 20), (95, 20))


def draw_sum(ax: Axes, parts: pd.DataFrame, gene: str) -> None:
    """What adds up to the prediction."""
    heading(ax, 97, 4, "Add", "evidence, somebody's\nmeasurement, plus the share\nof a regression over all rows")
    rest = parts.index.isin(["adjustment", "regression"])
    evidence, adjustment = parts["contribution"][~rest], parts["contribution"][rest].sum()
    total = float(parts["contribution"].sum())
    scale, base, bottom = 27 / max(total, 1e-9), 101.0, 6.0
    for value in evidence:
        height = value * scale
        ax.add_patch(
            FancyBboxPatch(
                (base, bottom), 8, height, boxstyle="square,pad=0", facecolor=EVIDENCE, edgecolor="white", linewidth=1.2
            )
        )
        bottom += height
    ax.plot([base - 0.8, base + 8.8], [bottom, bottom], color=ADJUSTMENT, linewidth=3)
    ax.text(base + 9.5, 6 + (bottom - 6) / 2, "evidence\nΣ w y", va="center", color=EVIDENCE, fontsize=10)
    ax.text(base + 9.5, bottom, f"adjustment\n{adjustment:+.2f}", va="center", color=ADJUSTMENT, fontsize=10)
    ax.text(base + 4, 3.2, f"{gene} = {total:.2f}", ha="center", weight="bold", fontsize=11)


if __name__ == "__main__":
    main()
