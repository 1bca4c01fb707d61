"""Speed of encoders on a processor, and of `embed_tiles` against the encoder on tiles already in memory.

python benchmarks/encoders.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md

Networks are timed in float32 and under bfloat16 autocast, with channels first and last; speed does not depend on the weights,
which are random unless a file is found.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gpu_embed import tissue_like
from lines import as_table, row
from tiles import IMAGE, SHAPES, TILE_PX, make, read_ours

NETWORKS = ("mobilenetv2_100", "vit_small_patch16_224")
MOBILENET = Path("weights") / "mobilenetv2_100_tf.safetensors"


def best(run, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_texture(n: int, repeats: int) -> dict:
    """Fields of view of 224 px per second."""
    from ragst_sd.image.texture import texture_features

    tiles = tissue_like(n, np.random.default_rng(0))
    texture_features(tiles[:8])
    return row("texture, fields of view of 224 px", n / best(lambda: texture_features(tiles), repeats), 200.0,
               f"per second on {torch.get_num_threads()} threads", at_least=True)  # fmt: skip


def measure_formats(name: str, n: int, repeats: int) -> list[dict]:
    """Tiles per second of a network by precision and order of channels."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    pixels = torch.rand(n, 3, TILE_PX, TILE_PX)
    rows = []
    for layout in ("contiguous_format", "channels_last"):
        order = getattr(torch, layout)
        network.to(memory_format=order)
        batch = pixels.contiguous(memory_format=order)
        for amp in (False, True):
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                network(batch[:4])
                seconds = best(lambda: network(batch), repeats)  # noqa: B023
            label = "channels last" if layout == "channels_last" else "channels first"
            rows.append(row(f"{name}, {'bfloat16' if amp else 'float32'}, {label}", n / seconds, None, "tiles/s"))
    return rows


def measure_overlap(model: str, model_kwargs: dict, *, edge: int, n: int, folder: Path) -> list[dict]:
    """`embed_tiles` from a zarr store against the same encoder on tiles in memory."""
    import spatialdata as sd

    import ragst_sd as rg
    from ragst_sd._elements import image_pyramid
    from ragst_sd.image.colours import Colours
    from ragst_sd.image.frames import FieldOfView, LevelGrid
    from ragst_sd.image.resolve_encoder import resolve_encoder
    from ragst_sd.image.tiles import iter_tiles

    store = make(folder, edge, 1024, n)
    sdata = sd.read_zarr(store)
    encoder = resolve_encoder(model, model_kwargs=model_kwargs)
    centroids = sdata.shapes[SHAPES].geometry.centroid
    centers = np.column_stack([centroids.x, centroids.y])
    pyramid = image_pyramid(sdata, IMAGE)
    field = FieldOfView(level=0, grid=LevelGrid((1.0, 1.0)), window_px=TILE_PX, tile_px=TILE_PX, upsampling=1.0)
    batches = list(
        iter_tiles(pyramid.levels[0], centers, field, chunk=pyramid.chunks[0], colours=Colours(), batch_size=64)
    )
    reading = best(lambda: read_ours(pyramid, centers), 1)
    encoder(batches[0][1])
    memory, ours = [], []
    for _ in range(2):
        start = time.perf_counter()
        for _, tiles in batches:
            encoder(tiles)
        memory.append(time.perf_counter() - start)
        start = time.perf_counter()
        rg.pp.embed_tiles(
            sdata, model=encoder, mpp=None, context=(1,), key_added="X", batch_size=64, overwrite=True, progress=False
        )
        ours.append(time.perf_counter() - start)
    slower = min(memory) / reading
    rows = [
        row(f"{model} on tiles in memory", n / min(memory), None, "tiles/s"),
        row(f"{model} against reading the same tiles", slower, None, "x time"),
    ]
    ratio = min(ours) / min(memory)
    rows.append(row(f"embed_tiles against {model} on tiles in memory", ratio, 1.1, "x time"))
    return rows


def results(
    *, texture_tiles: int = 512, network_tiles: int = 32, overlap_tiles: int = 512, edge: int = 4096,
    networks: tuple[str, ...] = NETWORKS, overlap: str = "mobilenetv2_100", repeats: int = 3, data: Path | None = None,
) -> list[dict]:  # fmt: skip
    """Rows name, value, target, unit, passed."""
    rows = [measure_texture(texture_tiles, repeats)]
    for name in networks:
        rows += measure_formats(name, network_tiles, repeats)
    data = data or os.environ.get("RAGST_SD_TEST_DATA")
    weights = Path(data) / MOBILENET if data else None
    found = weights is not None and weights.is_file() and overlap == "mobilenetv2_100"
    kwargs = {"checkpoint_path": str(weights)} if found else {"pretrained": False}
    with tempfile.TemporaryDirectory() as folder:
        rows += measure_overlap(overlap, kwargs, edge=edge, n=overlap_tiles, folder=Path(folder))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAGST_SD_TEST_DATA"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--overlap", default="mobilenetv2_100", help="network of the comparison with embed_tiles")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = results(overlap=args.overlap, repeats=args.repeats, data=args.data)
    table = as_table(rows)
    print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    if args.write:
        from real_sections import write_between_markers

        write_between_markers(args.write, "encoders", table)


if __name__ == "__main__":
    main()
