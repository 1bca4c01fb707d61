"""The run behind `rg.pp.embed_tiles`: here or on a cluster, from the start or from what a cache holds."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ragst_sd._workers import (
    EmbeddingJob,
    active_client,
    embed_part,
    read_in_calling_thread,
    spread_over_workers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from ragst_sd.image.embedding import Pyramid
    from ragst_sd.image.encoder import Encoder
    from ragst_sd.image.frames import FieldOfView
    from ragst_sd.image.parts import Part
    from ragst_sd.pp._embedding_cache import EmbeddingCache

logger = logging.getLogger(__name__)


def run_embedding(
    pyramid: Pyramid,
    xy: np.ndarray,
    fields: Sequence[FieldOfView],
    encoder: Encoder,
    *,
    model: Any,
    options: Mapping[str, Any],
    batch_size: int,
    num_workers: int,
    open_cache: Callable[[Sequence[Part]], EmbeddingCache] | None,
    advance: Callable[[int], object],
) -> np.ndarray:
    """Embed the tiles around `xy`: float32 (n, d * fields), NaN off the image.

    `model` and `options` are what the encoder was made of, from which workers make theirs; `open_cache` opens the cache for
    the parts of this run.
    """
    from ragst_sd.image.parts import collect_parts, embed_parts, plan_parts

    parts = plan_parts(pyramid, xy, fields, batch_size=batch_size)
    cache = None if open_cache is None else open_cache(parts)
    done: dict[int, np.ndarray] = {}
    if cache is not None:
        for position, part in enumerate(parts):
            kept = cache.read(position, len(part.rows))
            if kept is not None:
                done[position] = kept
                advance(len(kept))
        if done:
            logger.info("Going on from %d of %d parts in the cache %s.", len(done), len(parts), cache.folder)
    missing = [position for position in range(len(parts)) if position not in done]
    todo = [parts[position] for position in missing]

    on_workers = bool(todo) and active_client() is not None
    if not on_workers:
        results = embed_parts(
            read_in_calling_thread(pyramid),
            xy,
            fields,
            todo,
            encoder,
            batch_size=batch_size,
            num_workers=num_workers,
            advance=advance,
        )
    else:
        job = EmbeddingJob(
            key=uuid4().hex,
            pyramid=pyramid,
            centers=xy,
            fields=tuple(fields),
            batch_size=batch_size,
            num_workers=num_workers,
            model=model,
            options=dict(options),
            weights_hash=encoder.weights_hash,
        )
        logger.info("Embedding %d parts on the workers of the active client.", len(todo))
        results = spread_over_workers(embed_part, todo, job)
    with closing(results):
        for position, values in zip(missing, results, strict=True):
            done[position] = values
            if on_workers:
                advance(len(values))
            if cache is not None:
                cache.write(position, values)
    return collect_parts(len(xy), len(fields), parts, [done[position] for position in range(len(parts))])
