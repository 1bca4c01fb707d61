"""The run behind `rg.pp.embed_tiles`: here or on a cluster, from the start or from what a cache holds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

import numpy as np

from ragst_sd._replacing import replace_text, replaced_file
from ragst_sd._validate import require_type
from ragst_sd._workers import (
    active_client,
    read_in_calling_thread,
    require_stores,
    spread_over_workers,
    worker_device,
)
from ragst_sd.image.embedding import Pyramid
from ragst_sd.image.encoder import Encoder
from ragst_sd.image.frames import FieldOfView
from ragst_sd.image.parts import Part, collect_parts, embed_parts, plan_parts
from ragst_sd.image.resolve_encoder import resolve_encoder

logger = logging.getLogger(__name__)

_LOCK = Lock()
# The encoder that this process used last, by the key of its job: one is enough, and two may not fit on a GPU.
_ENCODERS: dict[str, Encoder] = {}


def run_embedding(
    pyramid: Pyramid,
    xy: np.ndarray,
    fields: Sequence[FieldOfView],
    encoder: Encoder,
    *,
    model: Any,
    options: Mapping[str, Any],
    reading: Mapping[str, Any],
    cache: str | os.PathLike[str] | None,
    header: Mapping[str, Any],
    advance: Callable[[int], object],
) -> np.ndarray:
    """Embed the tiles around `xy`: float32 (n, d * fields), NaN off the image.

    `model` and `options` are what the encoder was made of, from which workers make theirs; `reading` holds
    `batch_size` and `num_workers`; the folder `cache` keeps finished parts by `header`, which says what is embedded.
    """
    parts = plan_parts(pyramid, xy, fields, batch_size=reading["batch_size"])
    kept = None if cache is None else EmbeddingCache(cache, header, reading["batch_size"], parts)
    values = [None if kept is None else kept.read(position) for position in range(len(parts))]
    missing = [position for position, embedded in enumerate(values) if embedded is None]
    todo = [parts[position] for position in missing]
    if kept is not None and len(todo) < len(parts):
        logger.info("Going on from %d of %d parts in the cache %s.", len(parts) - len(todo), len(parts), kept.folder)
        advance(sum(len(embedded) for embedded in values if embedded is not None))

    on_workers = bool(todo) and active_client() is not None
    if not on_workers:
        results = embed_parts(read_in_calling_thread(pyramid), xy, fields, todo, encoder, **reading, advance=advance)
    else:
        job = EmbeddingJob(uuid4().hex, pyramid, xy, fields, reading, model, options, encoder.weights_hash)
        logger.info("Embedding %d parts on the workers of the active client.", len(todo))
        results = spread_over_workers(embed_part, todo, job)
    with closing(results):
        for position, embedded in zip(missing, results, strict=True):
            values[position] = embedded
            if on_workers:
                advance(len(embedded))
            if kept is not None:
                kept.write(position, embedded)
    return collect_parts(len(xy), len(fields), parts, values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class EmbeddingJob:
    """What a worker has to know to embed a part."""

    key: str
    """Names the job; workers keep its encoder under this name."""
    pyramid: Pyramid
    centers: np.ndarray
    fields: Sequence[FieldOfView]
    reading: Mapping[str, Any]
    """`batch_size` and `num_workers`, as `embed_parts` takes them."""
    model: Any
    """Name or object, as the user gave it."""
    options: Mapping[str, Any]
    """Further arguments of `resolve_encoder`; without a device each worker takes its own."""
    weights_hash: str
    """Of the encoder here; workers must find the same."""


def embed_part(job: EmbeddingJob, part: Part) -> np.ndarray:
    """Embed one part, on a worker."""
    require_stores(job.pyramid)
    pyramid = read_in_calling_thread(job.pyramid, always=True)
    (values,) = embed_parts(pyramid, job.centers, job.fields, [part], _encoder_of(job), **job.reading)
    return values


def _encoder_of(job: EmbeddingJob) -> Encoder:
    """The encoder of a job on this worker, made once for all of its parts."""
    with _LOCK:
        if job.key not in _ENCODERS:
            _ENCODERS.clear()
            device = job.options.get("device") or worker_device()
            encoder = resolve_encoder(job.model, **{**job.options, "device": device})
            if encoder.weights_hash != job.weights_hash:
                raise ValueError(
                    f"The weights of {encoder.name!r} on this worker are not those of the session that asked for them. "
                    "Give all machines the same file (`model_kwargs={'checkpoint_path': ...}`); random weights "
                    "(`{'pretrained': False}`) differ everywhere: build the network once and pass the module."
                )
            _ENCODERS[job.key] = encoder
        return _ENCODERS[job.key]


class EmbeddingCache:
    """Finished parts of one run as `.npy` files, in a folder named by a hash of the run's header and of its plan.

    One cache serves many images and encoders: what was made in another way lies in another folder. Every file is
    written beside its place and moved there, so it is whole or absent.

    Raises
    ------
    ValueError
        If the encoder has no name, so that what lies in the cache could be another's.
    NotADirectoryError
        If `path` is a file.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Mapping[str, Any], batch_size: int, parts: Sequence[Part]
    ) -> None:
        require_type(path, (str, os.PathLike), "cache", "It is the path of a folder.")
        if Path(path).is_file():
            raise NotADirectoryError(f"`cache` is {str(path)!r}, which is a file. Give a folder, new or not.")
        if not header["encoder"]:
            raise ValueError(
                "`cache` was given with a model that has no name: what is found in the cache could be another model's. "
                "Give the model a string attribute `name`, different for different weights, or leave out `cache`."
            )
        # Parts are kept by position, and which tiles a position holds follows from the chunks of the image.
        self.parts = parts
        digest = hashlib.sha256()
        for part in parts:
            digest.update(np.array([part.field, len(part.rows)], dtype="<i8").tobytes())
            digest.update(part.rows.astype("<i8").tobytes())
        described = {key: np.asarray(value).tolist() for key, value in sorted(header.items())}
        # Batches may show in the last bits of an embedding.
        text = json.dumps({**described, "batch_size": batch_size, "plan": digest.hexdigest()}, indent=1)
        self.folder = Path(path) / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / "run.json", text)

    def read(self, position: int) -> np.ndarray | None:
        """Embeddings of a part, or `None` if they are not there or not whole."""
        path, n_rows = self.folder / f"part-{position:06d}.npy", len(self.parts[position].rows)
        if not path.exists():
            return None
        try:
            values = np.load(path, allow_pickle=False)
            if values.ndim != 2 or len(values) != n_rows or values.dtype != np.float32 or not np.isfinite(values).all():
                raise ValueError(f"expected {n_rows} rows of finite float32, found {values.dtype} {values.shape}")
            return values
        except (ValueError, OSError, EOFError) as error:
            logger.warning("Part %d in the cache %s cannot be used (%s): it is embedded again.", position, path, error)
            return None

    def write(self, position: int, values: np.ndarray) -> None:
        """Keep the embeddings of a part."""
        with replaced_file(self.folder / f"part-{position:06d}.npy") as beside, beside.open("wb") as file:
            np.save(file, values, allow_pickle=False)
