"""Draw the figure of the page on the method, from synthetic tissue: python docs/draw_method.py"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

import ragst_sd as rg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

INK, QUIET, EVIDENCE, ADJUSTMENT, MEAN = "#22303c", "#66727d", "#1f77b4", "#d9822b", "#a9c9e2"
DONORS = ("#7f9bb8", "#c4a46c")
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

    plt.rcParams.update({"font.family": "sans-serif", "font.size": 12, "text.color": INK, "svg.fonttype": "none"})
    figure, ax = plt.subplots(figsize=(13, 6), layout="constrained")
    ax.set(xlim=(0, 130), ylim=(0, 60))
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
    ax.add_patch(Circle((x, 56.5), 1.9, facecolor=INK, edgecolor="none"))
    ax.text(x, 56.4, str(number), color="white", ha="center", va="center", weight="bold")
    ax.text(x + 3.2, 56.5, title, va="center", weight="bold", fontsize=15)
    ax.text(x - 1.9, 53, below, va="top", color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one step to the next."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=QUIET, linewidth=1.6))


def picture(ax: Axes, pixels: np.ndarray, at: tuple[float, float], zoom: float, colour: str) -> None:
    """A tile with a frame."""
    box = OffsetImage(pixels, zoom=zoom, interpolation="bilinear")
    ax.add_artist(AnnotationBbox(box, at, frameon=True, pad=0.15, bboxprops={"edgecolor": colour, "linewidth": 1.6}))


def draw_query(ax: Axes, query: object, spot: str) -> None:
    """The tile around the spot, and the wider field around that."""
    heading(ax, 3, 1, "Look", "The tile of a spot and its\nsurroundings become a\nvector x")
    image = np.asarray(rg.datasets.synthetic(n_donors=3, image_px=1200)["donor3"].images["he"]["scale0"]["image"])
    x, y = query.tables["predicted"][spot].obsm["spatial"][0]
    for radius, at, zoom in ((112, (11, 30), 0.4), (40, (11, 9), 0.65)):
        left, top = (int(np.clip(value - radius, 0, 1200 - 2 * radius)) for value in (x, y))
        picture(ax, image[:, top : top + 2 * radius, left : left + 2 * radius].transpose(1, 2, 0), at, zoom, INK)
    ax.text(11, 39.6, "surroundings", fontsize=11, color=QUIET, ha="center")
    ax.text(11, 15.2, "tile", fontsize=11, color=QUIET, ha="center")
    arrow(ax, (23, 22), (29, 22))


def draw_space(ax: Axes, reference: object, cited: pd.DataFrame) -> None:
    """Reference rows in the space in which neighbours are searched."""
    heading(ax, 34, 2, "Search", "The nearest measured spots\nof other donors, in a\nlearned space φ")
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
    place = np.array([33.0, 10.0]), np.array([59.0, 42.0])
    flat = place[0] + (flat - low) / (high - low) * (place[1] - place[0])
    star = place[0] + (0 - low) / (high - low) * (place[1] - place[0])
    donors = reference.obs["donor"].astype(str).to_numpy()
    for donor, colour in zip(sorted(set(donors)), DONORS, strict=True):
        at = near[donors[near] == donor]
        ax.scatter(*flat[at].T, s=16, color=colour, linewidths=0, label=donor)
    for k in chosen:
        ax.plot([star[0], flat[k, 0]], [star[1], flat[k, 1]], color=EVIDENCE, linewidth=0.9, zorder=2)
    ax.scatter(*flat[chosen].T, s=40, color=EVIDENCE, zorder=3, label="cited")
    ax.scatter(*star, marker="*", s=230, color=INK, zorder=4, label="query")
    ax.legend(
        loc="center",
        bbox_to_anchor=(46, 4),
        bbox_transform=ax.transData,
        ncols=4,
        frameon=False,
        fontsize=11,
        handletextpad=0.1,
        columnspacing=0.8,
        labelcolor=INK,
    )
    arrow(ax, (61.5, 22), (67.5, 22))


def draw_cited(ax: Axes, cited: pd.DataFrame, thumbnails: dict[str, np.ndarray], parts: pd.DataFrame) -> None:
    """The cited rows with weight and value."""
    heading(ax, 72, 3, "Weigh", "A gate says how much\neach counts. The table\nkeeps their names")
    ax.text(81.5, 42.5, "weight w", fontsize=11, color=QUIET, ha="center")
    ax.text(91.5, 42.5, "measured y*", fontsize=11, color=QUIET, ha="center")
    levelled = parts["value"] + parts["correction"]
    ax.text(83.5, 0.8, "* sections brought to one mean", ha="center", fontsize=11, color=QUIET)
    for i, row in enumerate(cited.itertuples()):
        y = 38.2 - i * 8.1
        picture(ax, thumbnails[row.reference], (73.5, y), 0.52, EVIDENCE)
        ax.text(81.5, y, f"{row.weight:.2f}", ha="center", va="center")
        ax.text(91.5, y, f"{levelled[row.reference]:.2f}", ha="center", va="center")
        ax.text(86.5, y, "×", ha="center", va="center", color=QUIET)
    arrow(ax, (97, 22), (103, 22))


def draw_sum(ax: Axes, parts: pd.DataFrame, gene: str) -> None:
    """What adds up to the prediction, as blocks on top of each other."""
    heading(ax, 107, 4, "Add", "Cited spots get a share.\nThe mean and a regression\nmake up the rest")
    mean, regression = parts.index == "reference mean", parts.index == "regression"
    values = parts["contribution"]
    cited, share = values[~mean & ~regression], 1 - parts["weight"][mean].sum()
    total, base, bottom = float(values.sum()), 106.0, 7.0
    scale = 34 / max(total, 1e-9)
    labels = []
    for colour, ink, name, blocks in (
        (EVIDENCE, EVIDENCE, f"{share:.2f} Σ w y", cited),
        (MEAN, "#4f86b0", f"{1 - share:.2f} × mean", values[mean].sum()),
        (ADJUSTMENT, ADJUSTMENT, "regression", values[regression].sum()),
    ):
        start = bottom
        for value in np.atleast_1d(blocks):
            ax.add_patch(
                Rectangle((base, bottom), 8, value * scale, facecolor=colour, edgecolor="white", linewidth=1.2)
            )
            bottom += value * scale
        labels.append(((start + bottom) / 2, f"{name}\n{np.sum(blocks):+.2f}", ink))
    below = np.inf
    for y, text, ink in reversed(labels):
        below = min(y, below - 5.8)
        ax.text(base + 9.5, below, text, va="center", color=ink)
    ax.text(base + 4, 3.6, f"{gene} = {total:.2f}", ha="center", weight="bold", fontsize=14)


if __name__ == "__main__":
    main()
