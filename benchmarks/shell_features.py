"""Features of SHELL, a small network trained on H&E, pooled around spots: maps of whole sections, no tiles.

The network (PyPI `lavlab-shell`, MIT) takes eosin, haematoxylin and mean optical density, each scaled between the 1st and
99th percentile of its section, at 1 micron per pixel. Its deepest map has 128 channels and one value per 8 x 8 pixels; its
mean and standard deviation are taken over squares of several widths around each spot.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

KEY = "X_shell"
FIELDS_UM = (152, 280, 672)
_STRIDE = 8
_BLOCK, _MARGIN = 1024, 64
# Optical density of haematoxylin and eosin per channel, as measured for a common pair of stains.
_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])


def add_shell(sections: dict[str, SpatialData], weights: Path, cache: Path | None = None) -> str:
    """Add the features to the tables of the sections; the key of `.obsm`. Kept in `cache` from one call to the next."""
    for name, sdata in sections.items():
        table = sdata.tables["table"]
        digest = hashlib.sha256(np.ascontiguousarray(table.obsm["spatial"]).tobytes()).hexdigest()[:8]
        path = None if cache is None else cache / f"shell_{name}_{digest}.npy"
        if path is not None and path.exists():
            features = np.load(path)
        else:
            features = pooled(sdata, weights)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, features)
        table.obsm[KEY] = features
    return KEY


def pooled(sdata: SpatialData, weights: Path) -> np.ndarray:
    """(spots, fields * 256) means and standard deviations of the channels around each spot."""
    from skimage.transform import resize

    mpp = float(sdata.attrs["ragst"]["image_mpp"]["he"])
    picture = np.moveaxis(np.asarray(sdata.images["he"]["scale0"]["image"] if "scale0" in sdata.images["he"]
                                     else sdata.images["he"]), 0, 2)  # fmt: skip
    centers = np.asarray(sdata.tables["table"].obsm["spatial"], dtype=float)
    reach = max(FIELDS_UM) / 2 / mpp
    low = np.maximum(np.floor(centers.min(axis=0) - reach), 0).astype(int)
    high = np.ceil(centers.max(axis=0) + reach).astype(int)
    picture = picture[low[1] : high[1], low[0] : high[0]]
    shape = tuple(round(edge * mpp) for edge in picture.shape[:2])
    stains = stain_maps(resize(picture, (*shape, 3), order=1, preserve_range=True, anti_aliasing=mpp < 1))
    maps = feature_map(stains, weights)
    places = (centers - low) * mpp / _STRIDE
    out = []
    for field in FIELDS_UM:
        half = field / 2 / _STRIDE
        squares = []
        for x, y in places:
            rows = slice(max(round(y - half), 0), round(y + half) + 1)
            columns = slice(max(round(x - half), 0), round(x + half) + 1)
            square = maps[:, rows, columns].reshape(len(maps), -1)
            squares.append(np.concatenate([square.mean(axis=1), square.std(axis=1)]))
        out.append(np.stack(squares))
    return np.concatenate(out, axis=1).astype(np.float32)


def stain_maps(rgb: np.ndarray) -> np.ndarray:
    """(3, h, w) eosin, haematoxylin and mean optical density, each from 0 to 1 by its percentiles in the section."""
    density = -np.log10(np.clip(rgb, 1, 255) / 255).astype(np.float32)
    amounts = density @ np.linalg.pinv(_STAINS).astype(np.float32)
    channels = np.stack([amounts[..., 1], amounts[..., 0], density.mean(axis=2)])
    low, high = np.percentile(channels, [1, 99], axis=(1, 2), keepdims=True)
    return np.clip((channels - low) / (high - low + 1e-8), 0, 1).astype(np.float32)


def feature_map(stains: np.ndarray, weights: Path) -> np.ndarray:
    """(128, h / 8, w / 8) deepest map, block by block with margins."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(weights / "shell" / "shell_v1_features.onnx"), options)
    height, width = (-(-edge // _STRIDE) * _STRIDE for edge in stains.shape[1:])
    missing = (height - stains.shape[1], width - stains.shape[2])
    padded = np.pad(stains, ((0, 0), *((_MARGIN, _MARGIN + edge) for edge in missing)), mode="reflect")
    out = np.zeros((128, height // _STRIDE, width // _STRIDE), dtype=np.float32)
    margin = _MARGIN // _STRIDE
    for top in range(0, height, _BLOCK):
        for left in range(0, width, _BLOCK):
            h, w = min(_BLOCK, height - top), min(_BLOCK, width - left)
            block = padded[None, :, top : top + h + 2 * _MARGIN, left : left + w + 2 * _MARGIN]
            found = session.run(["add_634"], {"input": np.ascontiguousarray(block)})[0][0]
            inner = found[:, margin : margin + h // _STRIDE, margin : margin + w // _STRIDE]
            out[:, top // _STRIDE : (top + h) // _STRIDE, left // _STRIDE : (left + w) // _STRIDE] = inner
    return out
