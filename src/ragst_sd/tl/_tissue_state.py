r"""States of spots: of what set of spots each is made, how far it lies from the cells of a screen, and its shuffling.

A spot and its spatial neighbours are its set of cells; the state is their mean expression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ragst_sd.retrieval.training import dense

if TYPE_CHECKING:
    from collections.abc import Mapping

# As in the check of tissue: what no more than two in a hundred sets of the screen's own controls exceed.
FAR_PERCENTILE = 98.0
_DRAWS = 200
_SPARE = 8
_LEAST_SPREAD = 0.1


def niches(xy: np.ndarray, names: np.ndarray, n_around: int) -> sp.csr_matrix:
    """(n, n) matrix that averages over each spot and its `n_around` nearest; of equally distant ones the first by name."""
    from scipy.spatial import cKDTree

    n = len(xy)
    size = min(n_around, n - 1)
    distance, found = cKDTree(xy).query(xy, k=min(n, size + 1 + _SPARE))
    distance, found = distance.reshape(n, -1), found.reshape(n, -1)
    rank = np.argsort(np.argsort(names.astype(str), kind="stable"), kind="stable")
    # Rounded, so that neighbours on a grid are equally distant; the spot itself goes first.
    rounded = np.round(distance / max(float(np.median(distance)), 1e-12), 6)
    rounded[found == np.arange(n)[:, None]] = -1
    order = np.lexsort((rank[found], rounded), axis=1)[:, : size + 1]
    members = np.take_along_axis(found, order, axis=1)
    weights = np.full(members.size, 1 / (size + 1))
    return sp.csr_matrix((weights, (np.repeat(np.arange(n), size + 1), members.ravel())), shape=(n, n))


def mean_states(sets: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """(n, g) mean expression of each set, over the members that have a value; NaN where none has."""
    known = np.isfinite(values)
    if known.all():
        return sets @ values
    total = sets @ known.astype(np.float64)
    return np.divide(sets @ np.where(known, values, 0.0), total, out=np.full(total.shape, np.nan), where=total > 0)


def main_context(sets: sp.csr_matrix, contexts: np.ndarray) -> np.ndarray:
    """Context of most members of each set; where several are as frequent, that of the spot itself, or the first by name."""
    names, codes = np.unique(contexts.astype(str), return_inverse=True)
    member = np.eye(len(names))[codes]
    return names[np.argmax(np.round(sets @ member, 9) + 1e-6 * member, axis=1)].astype(object)


@dataclass(frozen=True)
class States:
    """Turns expression of spots into states that the methods compare with those of a screen."""

    at: np.ndarray
    """(g,) places of the tissue's genes among those of the screen."""
    means: np.ndarray
    """(contexts, genes of the screen) mean expression of the controls."""
    names: list[str]
    """Names of these contexts."""
    center: bool
    """Whether the spots of each context are put on the mean of its controls."""

    def of(self, sets: sp.csr_matrix, values: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """(n, genes of the screen); genes that the tissue lacks are as in the controls, so that they tell nothing.

        Parameters
        ----------
        contexts
            (n,) context of each spot; one that the screen does not know is compared with the mean of all.
        """
        base = np.array([self.base(name) for name in np.unique(contexts.astype(str))])
        codes = np.unique(contexts.astype(str), return_inverse=True)[1]
        own = mean_states(sets, values)
        if self.center:
            for code in range(len(base)):
                with np.errstate(invalid="ignore"):
                    level = np.nan_to_num(np.nanmean(np.where(codes[:, None] == code, values, np.nan), axis=0))
                own[codes == code] += base[code][self.at] - level
        out = base[codes]
        out[:, self.at] = np.where(np.isfinite(own), own, out[:, self.at])
        return out

    def base(self, name: str) -> np.ndarray:
        """(genes of the screen) mean of the controls of a context, of all contexts for a new one."""
        return self.means[self.names.index(name)] if name in self.names else self.means.mean(axis=0)


@dataclass(frozen=True)
class StatesOfSpots:
    """States of spots that changed places, worked out as far as a method reads them."""

    states: States
    sets: sp.csr_matrix
    values: np.ndarray
    """(n, g) expression of the spots at their own places."""
    turned: np.ndarray
    """(n,) spot that stands at each place."""
    contexts: np.ndarray
    """(n,) context of each place."""

    def whole(self) -> np.ndarray:
        """(n, genes of the screen) states."""
        return self.states.of(self.sets, self.values[self.turned], self.contexts)

    def along(self, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """(n, l) states less an origin, along axes (genes of the screen, l): from spots on these axes, if all values are known."""
        if not np.isfinite(self.values).all():
            return np.nan_to_num(self.whole() - origin) @ axes
        names, codes = np.unique(self.contexts.astype(str), return_inverse=True)
        base, at = np.array([self.states.base(name) for name in names]), self.states.at
        placed = (self.values @ axes[at])[self.turned]
        out = self.sets @ placed
        if self.states.center:
            level = np.array([placed[codes == code].mean(axis=0) for code in range(len(names))])
            return out + ((base - origin) @ axes - level)[codes]
        base[:, at] = 0
        return out + ((base - origin) @ axes)[codes]


class Remoteness(NamedTuple):
    """How far spots lie from the cells of a screen."""

    distance: np.ndarray
    """(n,) over the threshold: above 1 is far."""
    percentile: np.ndarray
    """(n,) share of sets of controls that lie nearer, from 0 to 100."""


def remoteness(
    states: np.ndarray, size: int, at: np.ndarray, header: Mapping[str, Any], rng: np.random.Generator
) -> Remoteness:
    r"""Distance of states from the nearest context of the screen, beside that of sets of as many of its own controls.

    .. math:: d(s) = \min_c \sqrt{\tfrac1G \sum_g (s_g - m_{cg})^2 / \sigma_{cg}^2}

    with the mean and standard deviation of the controls of a context. The threshold is the 98th percentile of the
    distances of random sets of controls from their own context.

    Parameters
    ----------
    states
        (n, g) mean expression of sets of spots, as it is; NaN is left aside.
    size
        Spots in a set.
    """
    cells = dense(header["controls"]["values"]).astype(np.float64)[:, at]
    of_cell = np.asarray(header["controls"]["context"]).astype(str)
    means = np.asarray(header["contexts"]["mean"], dtype=np.float64)[:, at]
    nearest, percentile, ratio = np.full(len(states), np.inf), np.full(len(states), 100.0), np.full(len(states), np.inf)
    for name, mean in zip(np.asarray(header["contexts"]["context"]).astype(str), means, strict=True):
        own = cells[of_cell == name]
        spread = own.std(axis=0)
        spread = np.maximum(spread, max(_LEAST_SPREAD * float(np.median(spread)), 1e-6))
        drawn = np.array(
            [own[rng.choice(len(own), min(size, len(own)), replace=False)].mean(axis=0) for _ in range(_DRAWS)]
        )
        usual = np.sort(_distance(drawn, mean, spread))
        found = _distance(states, mean, spread)
        closer = found < nearest
        nearest[closer] = found[closer]
        percentile[closer] = 100 * np.searchsorted(usual, found[closer]) / _DRAWS
        ratio[closer] = found[closer] / max(float(np.quantile(usual, FAR_PERCENTILE / 100)), 1e-12)
    return Remoteness(ratio, percentile)


def _distance(states: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.nanmean(((states - mean) / spread) ** 2, axis=1))


def spread_over_spots(response: np.ndarray) -> float:
    """Variance of the response over spots, averaged over genes."""
    return float(((response - response.mean(axis=0)) ** 2).mean())
