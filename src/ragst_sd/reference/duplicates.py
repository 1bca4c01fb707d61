"""The same section twice: found by what two measurements of different tissue never share, their noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import pdist

from ragst_sd.reference.genes import take_genes

_COMPONENTS = 64
_PROBES = 100
_FEWEST = 10
_FEWEST_GENES = 50
# A spot and its copy are nearer than RATIO times the spot and its nearest neighbour in its own section, for at least
# SHARE of the spots. Serial sections of one animal give ratios of 0.8 and more for expression; spots of a copy that
# lost 5 % of its counts give 0.2 and less.
_EXPRESSION_RATIO, _EXPRESSION_SHARE = 0.5, 0.2
# A picture in another size and compression gives ratios around 0.75, serial sections around 1. The fewer features, the
# more often chance gives as small ones, so the matched spots must also lie in the same pattern.
_PICTURE_RATIO, _PICTURE_SHARE = 0.8, 0.3
_SAME_PATTERN = 0.98
# Several donors lie on one slide, and share its picture: their spots do not. On one picture, the spots of a section and
# of a copy are nearer than half a pitch.
_PLACE_RATIO, _PLACE_SHARE = 0.5, 0.2
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Fingerprint:
    """What a section is recognised by."""

    sample: str
    donors: frozenset[str]
    image_hash: str
    expression: np.ndarray | None
    """(n, 64) random projection of the profiles; `None` if there are too few genes."""
    picture: np.ndarray
    """(n, <= 64) random projection of the standardised embeddings."""
    xy: np.ndarray
    """(n, 2) centres, of any scale; NaN where they are not known."""


class Duplicate(NamedTuple):
    """Two sections of one tissue."""

    first: Fingerprint
    second: Fingerprint
    by: str
    """`"images"` (identical pixels), `"expression"` or `"pictures"`."""
    share: float
    """Share of the spots of the smaller section that the other one holds, too."""


def fingerprint(
    sample: str,
    *,
    donors: Iterable[str],
    image_hash: str,
    expression: sp.csr_matrix,
    genes: Sequence[str],
    shared: Sequence[str],
    embedding: np.ndarray,
    xy: np.ndarray,
) -> Fingerprint:
    """Fingerprint of one section.

    Parameters
    ----------
    expression
        (n x genes) log-normalised.
    shared
        Genes that all sections measured, the same for all fingerprints that are compared.
    embedding
        (n, d) embeddings, standardised by section.
    xy
        (n, 2) centres.
    """
    projected = None
    if len(set(genes) & set(shared)) >= _FEWEST_GENES:
        projected = take_genes(expression, genes, shared) @ _directions(len(shared))
    picture = np.asarray(embedding, dtype=np.float32)
    if picture.shape[1] > _COMPONENTS:
        picture = picture @ _directions(picture.shape[1])
    return Fingerprint(sample, frozenset(donors), image_hash, projected, picture, np.asarray(xy, dtype=np.float64))


def find_duplicates(prints: Sequence[Fingerprint]) -> Iterator[Duplicate]:
    """Pairs of sections without a common donor that are the same tissue.

    Two measurements of tissue, however alike, differ by the noise of either; a copy has the noise of its original. So a
    spot and its copy are much nearer than the spot and its nearest neighbour within its own section.
    """
    for first, second in combinations(prints, 2):
        if not first.donors.isdisjoint(second.donors):
            continue
        if first.image_hash and first.image_hash == second.image_hash and _same_place(first.xy, second.xy):
            yield Duplicate(first, second, "images", 1.0)
            continue
        small, large = sorted((first, second), key=lambda section: len(section.picture))
        share = 0.0
        if small.expression is not None and large.expression is not None:
            share = float(_matches(small.expression, large.expression, _EXPRESSION_RATIO)[2].mean())
        if share >= _EXPRESSION_SHARE:
            yield Duplicate(first, second, "expression", share)
            continue
        probes, nearest, matched = _matches(small.picture, large.picture, _PICTURE_RATIO)
        share = float(matched.mean())
        if share >= _PICTURE_SHARE and _same_pattern(small.xy[probes[matched]], large.xy[nearest[matched]]):
            yield Duplicate(first, second, "pictures", share)


def _directions(n: int) -> np.ndarray:
    """(n, 64) random projection, the same in every call."""
    return np.random.default_rng(0).normal(size=(n, _COMPONENTS)).astype(np.float32)


def _matches(small: np.ndarray, large: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of `small` that were tried, the row of `large` nearest to each, and whether that is a copy of it."""
    if len(small) < _FEWEST:
        nothing = np.zeros(0, dtype=np.int64)
        # One row without a match, of which the share of matches is 0 and not NaN.
        return nothing, nothing, np.zeros(1, dtype=bool)
    probes = np.sort(np.random.default_rng(0).permutation(len(small))[:_PROBES])
    tried = small[probes].astype(np.float64)
    across, within = (_squared_distances(tried, rows.astype(np.float64)) for rows in (large, small))
    within[np.arange(len(probes)), probes] = np.inf
    nearest = across.argmin(axis=1)
    # Identical rows within a section, but for rounding, have no distance to compare with.
    known = within.min(axis=1) - _ROUNDING * np.square(tried).sum(axis=1)
    return probes, nearest, across.min(axis=1) < ratio**2 * known


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) by a product of matrices: one by one takes ten times as long."""
    return np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1) - 2 * first @ second.T


def _same_place(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether spots of two sections on one picture lie at the same places; `True` if these are not known."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return True
    small, large = sorted((first, second), key=len)
    _, _, matched = _matches(small, large, _PLACE_RATIO)
    return len(small) < _FEWEST or bool(matched.mean() >= _PLACE_SHARE)


def _same_pattern(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether matched points lie alike but for shift, turn, mirror and scale: their distances go together."""
    if len(first) < _FEWEST or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return False
    a, b = pdist(first), pdist(second)
    if not (a.std() > 0 and b.std() > 0):
        return False
    return bool(np.corrcoef(a, b)[0, 1] > _SAME_PATTERN)
