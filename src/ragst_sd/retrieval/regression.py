r"""The regression H of the stack: kernel ridge, which is a signed sum over measured rows too.

.. math:: H(x) = \sum_j H_j(x)\,(y_j - \bar y_{s(j)}), \qquad
          H_j(x) = c\, \tilde z(x)^\top (\tilde Z^\top \tilde Z + \alpha \lambda I)^{-1} \tilde z_j

with the features z of a spot relative to their mean over the rows, :math:`\lambda` the mean eigenvalue of
:math:`\tilde Z^\top \tilde Z`, and the scale c that has the least squared error on held-out groups. The features are
the principal components of the embedding, or those of a rational quadratic kernel at landmarks (Nystroem's method,
Williams and Seeger 2001), whichever predicts held-out groups better. Coefficients (features x genes) are kept; they are
resolved into rows when somebody asks. On its own it is the method `kernel_ridge`, which cites no rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ragst_sd.retrieval.bank import Bank, Run, Selection
from ragst_sd.retrieval.blocks import in_blocks, product_in_blocks
from ragst_sd.retrieval.evidence import mean_of_reference
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.options import CitingOptions, count
from ragst_sd.retrieval.ridge import RidgeSolver
from ragst_sd.retrieval.threads import one_thread
from ragst_sd.retrieval.training import (
    dense,
    held_out_splits,
    mean_over_groups,
    section_shifts,
    standardised_targets,
    within_section_pearson,
)

Splits = Sequence[tuple[np.ndarray, np.ndarray]]

logger = logging.getLogger(__name__)

REGRESSION = "regression_coefficients"
_ALPHAS = np.logspace(-3, 3, 13)
_LANDMARKS = 512
_FEATURES = 256
# Rows that are made dense at once, which stay in the processor's cache.
_BLOCK = 256
# A share of zero would leave a prediction without sources.
_LEAST_SHARE = 0.05
_LARGEST_SCALE = 2.0
# Steps of the penalties, one decade, that are taken for a new donor at most: blocks of few spots say little.
_MOST_STEPS = 2


@one_thread()
def fit_regression(
    training: Bank,
    targets: np.ndarray,
    splits: Splits,
    evidence: Sequence[np.ndarray] | None,
    shifts: np.ndarray,
    *,
    rng: int,
) -> dict[str, Any]:
    """Choose features, penalty and the share of retrieval on held-out groups, and solve for every gene.

    Parameters
    ----------
    targets
        (m, t) training genes relative to their sections, in standard deviations.
    splits
        Rows that are learned from, and rows held out.
    evidence
        For each split (held out, t), what retrieval predicts of the targets; `None` where regression is all there is.
    shifts
        (sections, g) means of sections relative to that of the reference.

    Returns
    -------
    `retrieval_share` (g,), one where nothing could be held out, zero without evidence; `regression_*`: what makes the
    features, `alpha`, `scale`, `coefficients` (q, g), `intercept` (g,), and `scores`, the held-out ones of retrieval,
    of regression and of both.
    """
    parameters, regressed, score = _choose_regression(training, targets, splits, rng)
    share, scores = float(evidence is not None), np.array([np.nan, score, np.nan])
    if splits and evidence is not None:
        truth = [targets[held] for _, held in splits]
        share = share_of_retrieval(evidence, regressed, truth)
        mixed = [
            [within_section_pearson(a * w + (1 - a) * h, y, training.sections[held]) for a in (1, 0, share)]
            for w, h, y, (_, held) in zip(evidence, regressed, truth, splits, strict=True)
        ]
        scores = mean_over_groups(mixed, 3)
        logger.info(
            "Held-out groups: retrieval scores %.3f, regression %.3f, %.0f %% retrieval with regression %.3f.",
            *(scores[0], scores[1], 100 * share, scores[2]),
        )
    parameters["regression_scores"] = scores
    z = regression_features(parameters, training.key).astype(np.float64)
    # Kept, so that one value is resolved into rows without products over all of them.
    parameters["regression_centre"], parameters["regression_inverse"] = _inverse(parameters, z, np.arange(len(z)))
    coefficients, intercept = solve_regression(parameters, training, z, shifts)
    return {
        **parameters,
        "retrieval_share": np.full(training.values.shape[1], share),
        "regression_coefficients": coefficients.astype(np.float32),
        "regression_intercept": intercept,
    }


def _choose_regression(
    training: Bank, targets: np.ndarray, splits: Splits, rng: int
) -> tuple[dict[str, Any], list[np.ndarray], float]:
    """The features, penalty and scale that suit held-out groups best, what is predicted of these, and its score.

    Where nothing could be held out, principal components, the middle penalty, no predictions and NaN.
    """
    kernels = (_linear(training.key), _rational_quadratic(training.key, rng))
    chosen, alpha, scale, score, regressed = kernels[0], float(np.median(_ALPHAS)), 1.0, np.nan, []
    if splits:
        curves = [_score_alphas(training, kernel, targets, splits) for kernel in kernels]
        places = [int(np.nanargmax(mean_over_groups(curve, len(_ALPHAS)))) for curve in curves]
        linear, curved = (np.asarray(curve)[:, place] for curve, place in zip(curves, places, strict=True))
        # Far from all landmarks the kernel says nothing: a gain in some groups alone need not carry over to the next.
        best = int(not (curved <= linear).any())
        if not best and (training.donors is None or len(np.unique(training.donors)) < 2):
            places[0] = largest_penalty(np.asarray(curves[0]), places[0])
        chosen, alpha = kernels[best], float(_ALPHAS[places[best]])
        score = mean_over_groups(curves[best], len(_ALPHAS))[places[best]]
        z = regression_features(chosen, training.key).astype(np.float64)
        regressed = [next(_held_out(z, targets, inner, held, [alpha])) for inner, held in splits]
        scale = regression_scale(regressed, [targets[held] for _, held in splits])
        regressed = [scale * values for values in regressed]
    parameters = {**chosen, "regression_alpha": np.float64(alpha), "regression_scale": np.float64(scale)}
    return parameters, regressed, score


def largest_penalty(scores: np.ndarray, best: int) -> int:
    """Place of the largest penalty up to which the mean score loses no more than its standard error over groups.

    The one-standard-error rule (Breiman et al. 1984) on (groups, penalties), by differences to the `best` penalty, of
    which it takes ten times at most. For parts of a single donor: a new donor differs from it more than they do from
    each other.
    """
    loss = scores[:, [best]] - scores[:, best:]
    loss = loss[np.isfinite(loss).all(axis=1)]
    if len(loss) < 2:
        return best
    bearable = loss.mean(axis=0) <= loss.std(axis=0, ddof=1) / np.sqrt(len(loss))
    return best + min(int(np.argmin(np.append(bearable, False))) - 1, _MOST_STEPS)


def regression_scale(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """The factor that gives predictions of held-out groups the least squared error; one where it would not be positive.

    The penalty is chosen by correlation, which does not see how far it shrinks the predictions. If they were nearly
    zero, retrieval would be most of the sum even with the smallest share.
    """
    product = sum(float((h * y).mean()) for h, y in zip(predicted, truth, strict=True))
    square = sum(float((h**2).mean()) for h in predicted)
    return product / square if product > 0 and square > 0 else 1.0


def share_of_retrieval(
    evidence: Sequence[np.ndarray], regressed: Sequence[np.ndarray], truth: Sequence[np.ndarray]
) -> float:
    r"""The share of retrieval with the least squared error on held-out groups, each part at the size that suits it.

    .. math:: a = \frac{b\, w}{b\, w + 1 - w}, \qquad
              w = \left[\frac{\sum_k \langle b E_k - H_k, Y_k - H_k \rangle}
              {\sum_k \langle b E_k - H_k, b E_k - H_k \rangle}\right]_0^1

    with the mean products over the rows and genes of group k, and b the :func:`regression_scale` of retrieval E, at
    most 2: stacked regression (Breiman 1996) of parts of the right size. Otherwise retrieval would lose its share where
    it spreads too far or not far enough on the few rows of a held-out fit. At least .05, so that every value cites
    measured rows.
    """
    # A larger factor would make up for evidence of next to nothing, and leave the regression out.
    scale = min(regression_scale(evidence, truth), _LARGEST_SCALE)
    groups = [(scale * w - h, y - h) for w, h, y in zip(evidence, regressed, truth, strict=True)]
    product = sum(float((apart * error).mean()) for apart, error in groups)
    square = sum(float((apart**2).mean()) for apart, _ in groups)
    best = float(np.clip(product / square, 0, 1)) if square > 0 else 1.0
    return max(_LEAST_SHARE, scale * best / (scale * best + 1 - best))


def regression_features(parameters: Mapping[str, Any], key: np.ndarray) -> np.ndarray:
    """The features z, (n, q) in float32 as they are kept, of principal components (n, p)."""
    landmarks = np.asarray(parameters["regression_landmarks"], dtype=np.float64)
    if not len(landmarks):
        return key.astype(np.float32)
    mixing = np.asarray(parameters["regression_mixing"])
    features = in_blocks(lambda block: _similarity(parameters, block, landmarks) @ mixing, key, mixing.shape[1])
    return features.astype(np.float32)


def regression_of(parameters: Mapping[str, Any], bank: Bank, selection: Selection) -> np.ndarray:
    """(n, g) regression of the queries, on the rows that each of them may use."""
    coefficients, intercept = np.asarray(parameters[REGRESSION]), np.asarray(parameters["regression_intercept"])
    features = np.asarray(selection.features, dtype=np.float64)
    if coefficients.ndim == 2:
        product = product_in_blocks(features, coefficients)
        product += intercept
        return product
    out = np.empty((len(features), coefficients.shape[2]))
    for pattern in range(len(coefficients)):
        asked = selection.pattern == pattern
        out[asked] = product_in_blocks(features[asked], coefficients[pattern]) + intercept[pattern]
    return out


def solve_regression(
    parameters: Mapping[str, Any], bank: Bank, z: np.ndarray, shifts: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (q, g) and intercept (g,) on the rows of a mask, all if left out; NaN for genes of none of them."""
    z = np.asarray(z, dtype=np.float64)
    n_genes = bank.measured.shape[1]
    coefficients, intercept = np.full((z.shape[1], n_genes), np.nan), np.full(n_genes, np.nan)
    for rows, genes in bank.gene_patterns():
        used = rows if allowed is None else rows[allowed[rows]]
        if not len(used):
            continue
        centre, inverse = _inverse(parameters, z, used)
        centred = z[used] - centre
        moment = np.zeros((z.shape[1], len(genes)))
        for start in range(0, len(used), _BLOCK):
            # Dense, block by block: products of sparse rows take ten times as long.
            block = slice(start, start + _BLOCK)
            moment += centred[block].T @ dense(bank.values[used[block]][:, genes])
        of_section = np.zeros((len(shifts), z.shape[1]))
        np.add.at(of_section, bank.sections[used], centred)
        coefficients[:, genes] = inverse @ (moment - of_section.T @ shifts[:, genes])
        intercept[genes] = -centre @ coefficients[:, genes]
    return coefficients, intercept


def row_weights(parameters: Mapping[str, Any], z: np.ndarray, asked: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, rows) weights H_j of rows of the bank, for queries whose features are `asked`; `z` are those of all rows."""
    centre, inverse = _inverse(parameters, z, rows)
    along = (asked - centre) @ inverse
    return np.asarray(along @ z[rows].T.astype(np.float64) - (along @ centre)[:, None])


@one_thread()
def _inverse(parameters: Mapping[str, Any], z: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the features of some rows, and the inverse of their penalised products; of all rows those of the fit."""
    if len(rows) == len(z) and "regression_inverse" in parameters:
        return np.asarray(parameters["regression_centre"]), np.asarray(parameters["regression_inverse"])
    z = np.asarray(z[rows], dtype=np.float64)
    centre = z.mean(axis=0)
    gram = (z - centre).T @ (z - centre)
    penalty = _penalty(np.trace(gram) / len(gram), float(parameters["regression_alpha"]))
    return centre, float(parameters.get("regression_scale", 1)) * np.linalg.inv(gram + penalty * np.eye(len(gram)))


def _penalty(mean_eigenvalue: float, alpha: float) -> float:
    """What is added to the eigenvalues; above zero where there is nothing to penalise either."""
    return float(alpha * (mean_eigenvalue + 1e-300))


def _linear(key: np.ndarray) -> dict[str, Any]:
    """No kernel: the features are the principal components."""
    return {
        "regression_landmarks": np.zeros((0, key.shape[1])),
        "regression_mixing": np.zeros((0, 0)),
        "regression_width": np.float64(1),
    }


def _rational_quadratic(key: np.ndarray, rng: int) -> dict[str, Any]:
    """A kernel of half the median squared distance of its landmarks, by its leading features there.

    The rational quadratic is a mixture of Gaussians of all widths (Rasmussen and Williams 2006, equation 4.19).
    """
    drawn = np.random.default_rng(rng).choice(len(key), min(_LANDMARKS, len(key)), replace=False)
    landmarks = key[np.sort(drawn)]
    kernel = {
        "regression_kernel": "rational_quadratic",
        "regression_landmarks": landmarks,
        "regression_width": np.float64(np.median(_squared_distances(landmarks, landmarks)) / 2 or 1),
    }
    values, axes = np.linalg.eigh(_similarity(kernel, landmarks, landmarks))
    leading = np.flatnonzero(values > 1e-6 * values[-1])[-_FEATURES:]
    return {**kernel, "regression_mixing": axes[:, leading] / np.sqrt(values[leading])}


def _similarity(parameters: Mapping[str, Any], key: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(n, landmarks) values of the kernel."""
    ratio = _squared_distances(key, landmarks) / float(parameters["regression_width"])
    # Fits of earlier releases name no kernel: theirs is Gaussian.
    return np.asarray(1 / (1 + ratio) if "regression_kernel" in parameters else np.exp(-ratio))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0)


def _score_alphas(training: Bank, kernel: Mapping[str, Any], targets: np.ndarray, splits: Splits) -> list[list[float]]:
    """(groups, penalties) within-section Pearson of each held-out group by each penalty."""
    z, sections, scores = regression_features(kernel, training.key).astype(np.float64), training.sections, []
    for inner, held in splits:
        predicted = _held_out(z, targets, inner, held)
        scores.append([within_section_pearson(values, targets[held], sections[held]) for values in predicted])
    return scores


def _held_out(
    z: np.ndarray, targets: np.ndarray, inner: np.ndarray, held: np.ndarray, alphas: Iterable[float] = _ALPHAS
) -> Iterator[np.ndarray]:
    """Predictions of the held-out rows from the others, for one penalty after the other."""
    centre = z[inner].mean(axis=0)
    solver = RidgeSolver(z[inner] - centre, targets[inner])
    for alpha in alphas:
        yield (z[held] - centre) @ solver.coefficients(_penalty(solver.eigenvalues.mean(), alpha))


@dataclass(frozen=True)
class KernelRidgeOptions(CitingOptions):
    """Options of `kernel_ridge`, which mean what they mean for `rag`.

    Parameters
    ----------
    n_components
        Principal components of the embedding at most.
    center_sections
        Take measured values relative to the mean of their section.
    n_train_genes
        Genes on which penalty and kernel are chosen, the most variable ones.
    """

    n_train_genes: int = count(250)


def fit_kernel_ridge(training: Bank, run: Run) -> dict[str, Any]:
    """The parameters of :func:`fit_regression`, with no share of retrieval."""
    n_genes = run.options.n_train_genes
    targets = standardised_targets(training, np.arange(len(training)), n_genes, "kernel_ridge").values
    shifts = section_shifts(training) * run.options.center_sections
    return fit_regression(training, targets, held_out_splits(training), None, shifts, rng=run.rng)


KERNEL_RIDGE = Method(
    KernelRidgeOptions,
    fit_kernel_ridge,
    answer=partial(mean_of_reference, adjustment=regression_of),
    regress=regression_features,
    per_gene=("retrieval_share", "regression_coefficients", "regression_intercept"),
    learns="values",
)
