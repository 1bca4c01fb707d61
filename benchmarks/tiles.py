"""Reading tiles of a large zarr image: ours beside zarr alone, spatialdata and LazySlide, and peak memory.

python benchmarks/tiles.py --write docs/benchmarks.md --lazyslide-python path/to/venv/bin/python

The image is made: RGB uint8 in chunks of 1024 px, written by spatialdata with its defaults. Tiles of 224 px lie at random. All
read the same store. LazySlide is measured in the environment of the interpreter given, in which it is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lines import as_table, row

TILE_PX = 224
BATCH = 64
IMAGE, SHAPES = "he", "spots"


def tissue_like(edge: int, chunk: int):
    """Dask array (3, edge, edge): colours like stained tissue, structure of some pixels, noise of a camera."""
    import dask.array as da
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    size = min(chunk, edge)
    smooth = np.stack([gaussian_filter(rng.normal(size=(size, size)), 3, mode="wrap") for _ in range(3)])
    block = np.array([200, 140, 180])[:, None, None] + 25 * smooth / smooth.std()
    block = np.clip(block + rng.normal(0, 3, block.shape), 0, 255).astype(np.uint8)
    repeats = -(-edge // size)
    return da.tile(da.from_array(block, chunks=-1), (1, repeats, repeats))[:, :edge, :edge]


def make(folder: Path, edge: int, chunk: int, n_tiles: int) -> Path:
    """SpatialData store with the image and circles at the centres of the tiles."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel

    path = folder / f"image_{edge}_{chunk}_{n_tiles}.zarr"
    if path.exists():
        return path
    half = TILE_PX // 2
    xy = np.random.default_rng(1).uniform(half, edge - half, (n_tiles, 2)).round()
    image = Image2DModel.parse(tissue_like(edge, chunk), dims=("c", "y", "x"), chunks=(3, chunk, chunk))
    sd.SpatialData(images={IMAGE: image}, shapes={SHAPES: ShapesModel.parse(xy, geometry=0, radius=TILE_PX / 2)}).write(
        path
    )
    return path


def opened(store: Path):
    """The pyramid as `embed_tiles` sees it, and the centres."""
    import spatialdata as sd

    from ragst_sd._elements import image_pyramid
    from ragst_sd._workers import read_in_calling_thread

    sdata = sd.read_zarr(store)
    centroids = sdata.shapes[SHAPES].geometry.centroid
    return read_in_calling_thread(image_pyramid(sdata, IMAGE)), np.column_stack([centroids.x, centroids.y])


def read_ours(pyramid, centers: np.ndarray, num_workers: int = 1) -> int:
    from ragst_sd.image.colours import Colours
    from ragst_sd.image.frames import FieldOfView, LevelGrid
    from ragst_sd.image.tiles import iter_tiles

    field = FieldOfView(level=0, grid=LevelGrid((1.0, 1.0)), window_px=TILE_PX, tile_px=TILE_PX, upsampling=1.0)
    batches = iter_tiles(
        pyramid.levels[0], centers, field,
        chunk=pyramid.chunks[0], colours=Colours(), batch_size=BATCH, num_workers=num_workers,
    )  # fmt: skip
    return sum(len(tiles) for _, tiles in batches)


def touched_chunks(store: Path, centers: np.ndarray) -> tuple:
    """The zarr array, and the regions of the chunks in which there is a pixel of some tile."""
    import zarr

    array = zarr.open_array(store / "images" / IMAGE / "s0", mode="r")
    _, height, width = array.shape
    rows, columns = array.chunks[1:]
    found = set()
    for x, y in (centers - TILE_PX / 2).astype(int):
        for r in range(y // rows, (y + TILE_PX - 1) // rows + 1):
            found |= {(r, c) for c in range(x // columns, (x + TILE_PX - 1) // columns + 1)}
    return array, [
        (slice(r * rows, min((r + 1) * rows, height)), slice(c * columns, min((c + 1) * columns, width)))
        for r, c in sorted(found)
    ]


def read_spatialdata(store: Path, n: int) -> float:
    """Seconds per tile of `ImageTilesDataset`, pixels in memory."""
    import spatialdata as sd
    from spatialdata.dataloader import ImageTilesDataset

    sdata = sd.read_zarr(store)
    dataset = ImageTilesDataset(
        sdata, {SHAPES: IMAGE}, {SHAPES: "global"}, tile_dim_in_units=float(TILE_PX), table_name=None
    )
    start = time.perf_counter()
    for i in range(n):
        pixels = np.asarray(dataset[i][IMAGE].data)
        if pixels.shape != (3, TILE_PX, TILE_PX):
            msg = f"Expected a tile of {TILE_PX} px, found {pixels.shape}."
            raise ValueError(msg)
    return (time.perf_counter() - start) / n


def child_lazyslide(store: Path, n: int) -> None:
    """Print the seconds per tile of LazySlide's reader, as its feature extraction reads."""
    import spatialdata as sd
    import wsidata
    from geopandas import GeoDataFrame
    from wsidata.dataset.image import TileImagesDataset

    sdata = sd.read_zarr(store)
    centroids = sdata.shapes[SHAPES].geometry.centroid[:n]
    slide = wsidata.open_wsi(sdata, image_key=IMAGE, store=None)
    squares = centroids.buffer(TILE_PX / 2, cap_style="square")
    slide.shapes["tiles"] = sd.models.ShapesModel.parse(GeoDataFrame(geometry=list(squares)))
    dataset = TileImagesDataset(slide, key="tiles", image_size=(TILE_PX, TILE_PX))
    start = time.perf_counter()
    for i in range(n):
        pixels = dataset[i]["image"]
        if pixels.shape != (TILE_PX, TILE_PX, 3):
            msg = f"Expected a tile of {TILE_PX} px, found {pixels.shape}."
            raise ValueError(msg)
    print(f"seconds_per_tile {(time.perf_counter() - start) / n} lazyslide {wsidata.__version__}")


def child_memory(store: Path, n: int) -> None:
    """Print the megabytes that reading `n` tiles adds to the peak after the imports and a first tile."""

    def peak() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

    pyramid, centers = opened(store)
    read_ours(pyramid, centers[:1])
    before = peak()
    read_ours(pyramid, centers[:n])
    print(f"added_mb {peak() - before:.0f} peak_mb {peak():.0f}")


def run_child(mode: str, store: Path, n: int, python: str = sys.executable) -> list[str]:
    command = [python, __file__, "--child", mode, "--store", str(store), "--tiles", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)} failed:\n{done.stderr[-2000:]}"
        raise RuntimeError(msg)
    return done.stdout.strip().splitlines()[-1].split()


def results(
    *,
    edge: int = 20_000,
    chunk: int = 1024,
    tiles: int = 20_000,
    subset: int = 200,
    repeats: int = 4,
    folder: Path | None = None,
    memory: bool = True,
    lazyslide_python: str | None = None,
) -> list[dict]:
    """Rows name, value, target, unit, passed; `lazyslide_python` is the interpreter of an environment with lazyslide."""
    with tempfile.TemporaryDirectory() as temporary:
        store = make(folder or Path(temporary), edge, chunk, tiles)
        pyramid, centers = opened(store)
        array, regions = touched_chunks(store, centers)
        alone, ours = {1: [], 2: []}, {1: [], 2: []}
        # In turns, so that whatever else the machine does falls on both.
        for _ in range(repeats):
            for n in alone:
                start = time.perf_counter()
                with ThreadPoolExecutor(n) as pool:
                    list(pool.map(lambda region: array[:, region[0], region[1]].nbytes, regions))
                alone[n].append(time.perf_counter() - start)
                start = time.perf_counter()
                if read_ours(pyramid, centers, n) != tiles:
                    msg = "Not all tiles were read."
                    raise RuntimeError(msg)
                ours[n].append(time.perf_counter() - start)
        speed = tiles / min(ours[1])
        theirs = 1 / read_spatialdata(store, min(subset, tiles))
        peaks = {n: run_child("memory", store, n) for n in (max(1, tiles // 10), tiles)} if memory else {}
        out = [
            row("tiles read, `num_workers=1` (the default)", speed, None, "tiles/s"),
            row("tiles read, `num_workers=2`", tiles / min(ours[2]), None, "tiles/s"),
            row("zarr alone, every touched chunk once, one thread", min(alone[1]), None, "s"),
            row("zarr alone, two threads", min(alone[2]), None, "s"),
            row("time against zarr alone, one reading thread each", min(ours[1]) / min(alone[1]), 1.3, "x time"),
            row("time against zarr alone, two reading threads each", min(ours[2]) / min(alone[2]), None, "x time"),
            row("spatialdata.dataloader.ImageTilesDataset", theirs, None, "tiles/s"),
            row("speed against ImageTilesDataset", speed / theirs, 8.0, "x speed", at_least=True),
        ]
        if lazyslide_python:
            found = run_child("lazyslide", store, min(5 * subset, tiles), lazyslide_python)
            lazy = 1 / float(found[1])
            out.append(row(f"LazySlide (wsidata {found[3]})", lazy, None, "tiles/s"))
            out.append(row("speed against LazySlide", speed / lazy, 1.0, "x speed", at_least=True))
        for n, found in peaks.items():
            out.append(row(f"memory that reading {n:,} tiles adds", float(found[1]), None, "MB"))
            out.append(row(f"peak memory of the process, {n:,} tiles", float(found[3]), 1024.0, "MB"))
        return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=20_000, help="edge of the image in px")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--tiles", type=int, default=20_000)
    parser.add_argument("--subset", type=int, default=200, help="tiles on which ImageTilesDataset is timed")
    parser.add_argument(
        "--folder", type=Path, help="where the image is written and kept; a temporary folder if left out"
    )
    parser.add_argument("--lazyslide-python", help="interpreter of an environment with lazyslide")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--child", choices=("lazyslide", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        (child_lazyslide if args.child == "lazyslide" else child_memory)(args.store, args.tiles)
        return
    rows = results(
        edge=args.edge, chunk=args.chunk, tiles=args.tiles, subset=args.subset, folder=args.folder,
        lazyslide_python=args.lazyslide_python,
    )  # fmt: skip
    table = as_table(rows)
    print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    if args.write:
        from real_sections import write_between_markers

        write_between_markers(args.write, "tiles", table)


if __name__ == "__main__":
    main()
