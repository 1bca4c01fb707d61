"""Time and memory against tiles, rows, genes and neighbours: a table, and the pictures of the page on scaling.

python benchmarks/scaling.py --measure docs/_static/scaling.csv --draw docs/_static/scaling.png

Everything is made up: an image of 3,000 px, normal embeddings of 256 dimensions, sparse profiles with 18 % of the genes. Memory is how far
the process rises above where it stands. faiss (flat, exact) is measured where it is installed, on the same queries and rows.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import search as search_benchmark
import torch
from prediction import made
from search import CLOCKS, DIM, best_of, peak_megabytes

from ragst_sd.retrieval.evidence import weighted_average
from ragst_sd.retrieval.search import search

FIELDS = ("step", "against", "size", "who", "seconds", "megabytes")
QUERIES, ROWS, SPOTS, GENES, K = 200, 40_000, 64, 6000, 50
TILES, EDGE_PX = (200, 400, 800, 1600), 3000
OURS = "ragst_sd"


def measured(function, repeats: int = 2) -> tuple[float, float]:
    """Seconds of the fastest of some calls, and how far memory rises."""
    megabytes = peak_megabytes(function)
    return best_of(repeats, function)[0], megabytes


def searches() -> list[tuple]:
    rng = np.random.default_rng(0)
    bank, queries = (
        rng.standard_normal((2 * ROWS, DIM), dtype=np.float32),
        rng.standard_normal((QUERIES, DIM), dtype=np.float32),
    )
    search(queries[:8], bank[:5000], K)
    plans = [("rows", m, m, K) for m in (ROWS // 4, ROWS // 2, ROWS, 2 * ROWS)]
    plans += [("neighbours", k, ROWS // 2, k) for k in (10, 25, 50, 100, 200)]
    try:
        import faiss
    except ImportError:
        faiss = None
    out = []
    for against, size, m, k in plans:
        out.append(("search", against, size, OURS, *measured(lambda m=m, k=k: search(queries, bank[:m], k))))
        if faiss is not None:
            index = faiss.IndexFlatL2(DIM)
            index.add(bank[:m])
            out.append(("search", against, size, "faiss, flat", *measured(lambda i=index, k=k: i.search(queries, k))))
    return out


def predictions() -> list[tuple]:
    plans = [("genes", g, g, K) for g in (1500, 3000, 6000, 12_000)]
    plans += [("neighbours", k, GENES, k) for k in (10, 25, 50, 100, 200)]
    out = []
    for against, size, genes, k in plans:
        bank, _, _ = made(1, 500, genes, 0.18)
        rng = np.random.default_rng(0)
        rows, weights = rng.integers(0, bank.shape[0], (SPOTS, k)), rng.dirichlet(np.ones(k), SPOTS)
        weighted_average(rows[:2], weights[:2], bank)
        line = measured(lambda r=rows, w=weights, b=bank: weighted_average(r, w, b))
        out.append(("evidence", against, size, OURS, *line))
    return out


class MeanColour:
    """An encoder that costs nothing, so that reading is what is measured."""

    name = "mean colour"

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.float().mean(dim=(2, 3))


def tiles(lazyslide_python: str | None = None) -> list[tuple]:
    import anndata as ad
    import pandas as pd
    import spatialdata as sd
    from spatialdata.models import TableModel
    from tiles import make, run_child

    import ragst_sd as rg

    out = []
    with tempfile.TemporaryDirectory() as name:
        for n in TILES:
            store = make(Path(name), EDGE_PX, 1024, n)
            if lazyslide_python:
                seconds = n * float(run_child("lazyslide", store, n, lazyslide_python)[1])
                out.append(("tiles", "tiles", n, "LazySlide, reading", seconds, float("nan")))
            sdata = sd.read_zarr(store)
            obs = pd.DataFrame({"region": pd.Categorical(["spots"] * n), "instance_id": sdata.shapes["spots"].index})
            obs.index = obs.index.astype(str)
            sdata.tables["cells"] = TableModel.parse(
                ad.AnnData(obs=obs), region="spots", region_key="region", instance_key="instance_id"
            )
            for who in ("reading", "texture")[: 1 + (n <= TILES[1])]:

                def embed(sdata=sdata, who=who) -> None:
                    rg.pp.embed_tiles(
                        sdata, image_key="he", model="texture" if who == "texture" else MeanColour(), mpp=None, tile_px=224, context=(1,),
                        key_added=f"X_{who}", table_key="cells", overwrite=True, progress=False,
                    )  # fmt: skip

                out.append(("tiles", "tiles", n, f"{OURS}, {who}", *measured(embed, repeats=1)))
    return out


STEPS = {"search": searches, "evidence": predictions, "tiles": tiles}
PANELS = (
    ("tiles", "tiles", "Reading tiles of 224 px", "tiles"),
    ("search", "rows", f"Search, {QUERIES:,} spots", "rows of the reference"),
    ("search", "neighbours", f"Search in {ROWS // 2:,} rows", "neighbours"),
    ("evidence", "genes", f"Averages, {SPOTS} spots", "genes"),
    ("evidence", "neighbours", f"Averages, {GENES:,} genes", "neighbours"),
)
COLOURS = {
    OURS: "#0072b2",
    "faiss, flat": "#e69f00",
    f"{OURS}, reading": "#0072b2",
    f"{OURS}, texture": "#cc79a7",
    "LazySlide, reading": "#e69f00",
}


def draw(lines: list[dict], path: Path) -> None:
    """Seconds of each size that grows, and below the megabytes where there are any."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(8.6, 7.2), layout="constrained")
    shown = [(panel, field) for field in ("seconds", "megabytes") for panel in PANELS[:3]]
    shown += [(panel, "seconds") for panel in PANELS[3:]]
    for ax, ((step, against, title, grows), field) in zip(axes.flat, shown, strict=False):
        own = [line for line in lines if (line["step"], line["against"]) == (step, against)]
        for who in dict.fromkeys(line["who"] for line in own):
            points = sorted((float(p["size"]), float(p[field])) for p in own if p["who"] == who)
            if not np.isnan(points[0][1]):
                ax.plot(*zip(*points, strict=True), "o-", label=who, color=COLOURS[who], markersize=4, linewidth=1.5)
        top = np.nanmax([float(line[field]) for line in own])
        ax.set(title=title, xlabel=grows, xlim=(0, None), ylim=(0, 1.45 * top))
        ax.set_ylabel("seconds" if field == "seconds" else "memory, MB")
        if (step, field) == ("tiles", "seconds"):
            ax.set(yscale="log", ylim=(0.1, 60 * top))
        ax.title.set_size(11)
        ax.legend(frameon=False, fontsize=9, loc="upper left", borderpad=0.1, labelspacing=0.2)
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    most = max(float(line["megabytes"]) for line in lines if line["step"] == "evidence")
    axes[2, 2].axis("off")
    note = f"Memory of the averages:\nbelow {np.floor(most) + 1:.0f} MB"
    axes[2, 2].text(0.1, 0.5, note, transform=axes[2, 2].transAxes, va="center", color="0.3")
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    """Measure, draw, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, help="table to write; lines of the steps measured are replaced")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--draw", type=Path, help="picture to write")
    parser.add_argument(
        "--table", type=Path, default=Path("docs/_static/scaling.csv"), help="table to draw, unless measured now"
    )
    parser.add_argument("--lazyslide-python", help="interpreter of an environment with lazyslide, for tiles")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="processor")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    search_benchmark.clock = args.clock
    path = args.measure or args.table
    lines = list(csv.DictReader(path.open())) if path.exists() else []
    if args.measure:
        for step in args.steps:
            given = {"lazyslide_python": args.lazyslide_python} if step == "tiles" else {}
            found = [dict(zip(FIELDS, line, strict=True)) for line in STEPS[step](**given)]
            lines = [line for line in lines if line["step"] != step] + found
            for line in found:
                line |= {"seconds": f"{line['seconds']:.4g}", "megabytes": f"{line['megabytes']:.1f}"}
                print(*line.values(), flush=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
    if args.draw:
        draw(lines, args.draw)


if __name__ == "__main__":
    main()
