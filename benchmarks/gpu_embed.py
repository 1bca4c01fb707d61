"""Embedding on a GPU: tiles in host memory through our path, against the bare forward pass on tiles that lie on the device.

PYTHONPATH=src python benchmarks/gpu_embed.py --out results

Needs torch, timm and numpy only. The network has random weights of the size asked for. Writes `gpu_embed.json`. On a machine
without a GPU: `--model vit_tiny_patch16_224 --tiles 64 --device cpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.frames import FieldOfView, LevelGrid
from ragst_sd.image.parts import embed_batches, embed_parts, in_background, pin, plan_parts
from ragst_sd.image.resolve_encoder import resolve_encoder

if TYPE_CHECKING:
    from ragst_sd.image.encoder import Encoder

TILE_PX = 224
TARGET = 1.1


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best(run, device: torch.device, repeats: int) -> float:
    """Shortest of some runs in seconds, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def tissue_like(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Tiles (n, 3, 224, 224) with colours like stained tissue and structure of some pixels."""
    coarse = torch.from_numpy(rng.normal(size=(n, 3, TILE_PX // 8, TILE_PX // 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(TILE_PX, TILE_PX), mode="bilinear", align_corners=False)
    ground = torch.tensor([200.0, 140.0, 180.0]).view(1, 3, 1, 1)
    noise = torch.from_numpy(rng.normal(size=(1, 3, TILE_PX, TILE_PX)).astype(np.float32))
    return (ground + 40 * smooth + 4 * noise).clamp(0, 255).to(torch.uint8)


def batches_of(tiles: torch.Tensor, size: int):
    for first in range(0, len(tiles), size):
        part = tiles[first : first + size]
        yield np.arange(first, first + len(part)), part


def through_our_path(tiles: torch.Tensor, encoder: Encoder, size: int) -> np.ndarray:
    staged = ((index, pin(part, encoder)) for index, part in batches_of(tiles, size))
    return np.concatenate([values for _, values in embed_batches(in_background(staged), encoder)])


def bare_forward(encoder: Encoder, resident: list[torch.Tensor]) -> None:
    with torch.inference_mode(), torch.autocast(encoder.device.type, dtype=torch.bfloat16, enabled=encoder.amp):
        for pixels in resident:
            encoder.forward(pixels)


def row(name: str, value: float, target: float | None, unit: str, *, passed: bool | None) -> dict:
    return {"name": name, "value": round(float(value), 4), "target": target, "unit": unit, "passed": passed}


def measure_network(
    tiles: torch.Tensor, *, model: str, batch_size: int, device: str | None, amp: bool | None, repeats: int
):
    """Rows for a timm network with random weights, and the encoder."""
    torch.manual_seed(0)
    encoder = resolve_encoder(model, model_kwargs={"pretrained": False}, device=device, amp=amp)
    where = encoder.device
    # What lies on the device for the bare pass: prepared once, reused for as many batches as there are tiles.
    one = encoder.prepare(tiles[:batch_size])
    resident = [one] * (len(tiles) // batch_size)
    bare = best(lambda: bare_forward(encoder, resident), where, repeats)
    ours = best(lambda: through_our_path(tiles, encoder, batch_size), where, repeats)

    edge = int(np.ceil(np.sqrt(len(tiles) / 2.5))) * TILE_PX
    picture = np.tile(tiles[0].numpy(), (1, edge // TILE_PX, edge // TILE_PX))
    centers = np.random.default_rng(0).uniform(0, edge, (len(tiles), 2))
    image = Pyramid((picture,), ((1024, 1024),))
    field = FieldOfView(level=0, grid=LevelGrid((1.0, 1.0)), window_px=TILE_PX, tile_px=TILE_PX, upsampling=1.0)
    parts = plan_parts(image, centers, [field], batch_size=batch_size)
    cutting = best(
        lambda: list(embed_parts(image, centers, [field], parts, encoder, batch_size=batch_size, num_workers=1)),
        where,
        repeats,
    )
    sample = tiles[: 2 * batch_size]
    same = float(
        np.abs(
            through_our_path(sample, encoder, batch_size)
            - torch.cat([encoder(part) for _, part in batches_of(sample, batch_size)]).numpy()
        ).max()
    )
    n = len(resident) * batch_size
    label = f"{model}, {'bfloat16' if encoder.amp else 'float32'}, batches of {batch_size}"
    return [
        row(f"bare forward pass ({label})", n / bare, None, "tiles/s", passed=None),
        row(f"tiles in memory ({label})", len(tiles) / ours, None, "tiles/s", passed=None),
        row(f"tiles in memory against bare forward pass ({label})", ours / len(tiles) * n / bare, TARGET, "x time",
            passed=ours / len(tiles) * n / bare <= TARGET),
        row(f"cut from an image in memory ({label})", len(tiles) / cutting, None, "tiles/s", passed=None),
        row(f"cut from an image against bare forward pass ({label})", cutting / len(tiles) * n / bare, TARGET, "x time",
            passed=cutting / len(tiles) * n / bare <= TARGET),
        row("largest difference between queued and one-by-one batches", same, 0.0, "", passed=same == 0),
    ]  # fmt: skip


def measure_texture(tiles: torch.Tensor, *, batch_size: int, device: str | None, repeats: int) -> list[dict]:
    """Rows for the texture encoder: speed on the device and on the processor, and their agreement."""
    there, here = resolve_encoder("texture", device=device), resolve_encoder("texture", device="cpu")
    few = tiles[: min(len(tiles), 256)]
    rows = []
    for encoder, sample in ((there, tiles), (here, few)):
        seconds = best(lambda: through_our_path(sample, encoder, batch_size), encoder.device, repeats)  # noqa: B023
        rows.append(row(f"texture on {encoder.device.type}", len(sample) / seconds, None, "tiles/s", passed=None))
        if there.device.type == "cpu":
            break
    on_device, on_cpu = through_our_path(few, there, batch_size), through_our_path(few, here, batch_size)
    # The tolerance of the tests: a thousandth of the value, and a thousandth.
    apart = float((np.abs(on_device - on_cpu) / (1e-3 + 1e-3 * np.abs(on_cpu))).max())
    rows.append(row("texture: largest difference between device and processor", apart, 1.0, "tolerances",
                    passed=apart <= 1))  # fmt: skip
    return rows


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def results(
    *,
    model: str = "vit_large_patch16_224",
    tiles: int = 4096,
    texture_tiles: int = 2048,
    batch_size: tuple[int, ...] = (64, 256),
    device: str | None = None,
    amp: bool | None = None,
    repeats: int = 3,
) -> list[dict]:
    """Rows name, value, target, unit, passed."""
    data = tissue_like(tiles, np.random.default_rng(0))
    rows = []
    for size in batch_size:
        if size <= tiles:
            rows += measure_network(data, model=model, batch_size=size, device=device, amp=amp, repeats=repeats)
    return rows + measure_texture(
        data[: min(texture_tiles, tiles)], batch_size=batch_size[0], device=device, repeats=repeats
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu_embed.json")
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--tiles", type=int, default=4096)
    parser.add_argument("--texture-tiles", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--device")
    parser.add_argument("--no-amp", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = results(
        model=args.model,
        tiles=args.tiles,
        texture_tiles=args.texture_tiles,
        batch_size=tuple(args.batch_size),
        device=args.device,
        amp=False if args.no_amp else None,
        repeats=args.repeats,
    )
    where = resolve_encoder("texture", device=args.device).device
    report = {
        "device": device_name(where),
        "torch": torch.__version__,
        "cpu_count": os.cpu_count(),
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu_embed.json").write_text(json.dumps(report, indent=2))
    print(report["device"])
    for item in rows:
        verdict = (
            "" if item["passed"] is None else f"  target {item['target']}: {'met' if item['passed'] else 'MISSED'}"
        )
        print(f"{item['name']}: {item['value']:g} {item['unit']}{verdict}")


if __name__ == "__main__":
    main()
