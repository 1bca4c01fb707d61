"""`rg.tl.calibrate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._bank import open_bank, standardized
from ragst_sd._settings import settings
from ragst_sd._validate import listing, require_positive
from ragst_sd.retrieval.bank import Run
from ragst_sd.retrieval.conformal import UNITS
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.regression import REGRESSION
from ragst_sd.retrieval.training import dense
from ragst_sd.tl import _fold_scores
from ragst_sd.tl._fit import fit_tissue, train_on
from ragst_sd.tl._folds import BLOCKS, folds_of, inner_group_keys, training_part
from ragst_sd.tl._intervals import far_distance, gene_floor, held_out_scores, quantiles_by_level
from ragst_sd.tl._waiting import expected_seconds, in_parts, say_if_long

logger = logging.getLogger(__name__)


def calibrate(
    reference: AnnData,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    split: str = "donor",
    margin_um: float | None = None,
    n_folds: int = 10,
    device: str | None = None,
    amp: bool = False,
    progress: bool | None = None,
) -> None:
    r"""Calibrate the intervals of a fitted reference on held-out donors, and measure the accuracy of each gene.

    The fit is repeated without each donor in turn (without several at once, if there are more than `n_folds`), and the
    donor's spots are predicted from the others. The cost is one fit per repetition. Errors are measured in units of the
    disagreement of the cited rows:

    .. math:: e_{ig} = \frac{|y_{ig} - \hat y_{ig}|}{\sigma_{ig}}, \qquad
              \sigma_{ig} = \sqrt{s_{ig}^2 + f_g^2}\; \max(1, d_i / d_0)

    with the `disagreement` s, a floor f of half the gene's standard deviation within sections, and the distance d of
    the spot to its nearest rows, of which :math:`d_0` is the 95th percentile over held-out rows. The interval of a gene
    is prediction :math:`\pm\, t_g \sigma_{ig}`; :func:`ragst_sd.tl.predict` widens it further, by
    `appearance_distance`, on spots that look unlike every section of the reference.

    Errors of spots from one donor are correlated, so donors are the unit: :math:`t_g` is what one spot drawn from a new
    donor stays below, given one spot drawn from each donor that was held out, without dependence on the draw (see
    Notes). A level 1 - alpha needs ceil(1/alpha) - 1 donors, nine for 0.9. With fewer donors, sections are the unit by
    the same rule, otherwise single spots. Intervals calibrated over spots are too narrow for a donor that differs.

    With `split="block"` intervals are for gaps (:func:`ragst_sd.tl.predict` with `exclude=()`): quarters of the
    sections are held out, with a margin, as :func:`ragst_sd.tl.cross_validate` does. Their unit is the quarter of a
    section, or with too few of them the spot. They are refused for other predictions, as those of donors are for gaps.

    Parameters
    ----------
    reference
        Fitted by :func:`ragst_sd.tl.fit`.
    levels
        Wanted coverages, above 0 and below 1.
    split, margin_um
        As in :func:`ragst_sd.tl.cross_validate`.
    n_folds
        Number of refits at most; each leaves out whole donors. With blocks there are four.
    device, amp
        As in :func:`ragst_sd.tl.fit`, for the refits.
    progress
        Show a progress bar; the setting if left out.

    Returns
    -------
    `None`. Fields written to the reference; its fit and its hashes stay as they are:

    `.uns["ragst"]["calibration"]`
        `split`, `levels` (L,), `units` (L,) (`"donor"`, `"section"`, `"block"` or `"spot"`), `quantiles` float32
        (genes, L) (NaN for genes that never vary or that too few groups measured), `floor` (genes,), `far_distance`
        (:math:`d_0`), `n_donors`, `n_sections`, `n_spots` that were held out and predicted, `share_inside` (L,), the
        share of these very spots inside their intervals (not a test: the intervals were made from them), `fit_hash`,
        `schema_version`. :func:`ragst_sd.tl.fit` drops it.
    `.uns["ragst"]["gene_trust"]`
        Method, hash of the fit and split that `cv_pearson` is of.
    `.var["cv_pearson"]`, `["noise_ceiling"]`
        For all genes: Pearson on held-out donors, and the most that the noise of counting allows; means over the
        sections of a donor, then over donors. NaN if unknown.

    Raises
    ------
    ValueError
        If the reference is not fitted or has changed since, has one group only, is too small for blocks and their
        margin, or a level makes no sense.

    Notes
    -----
    Of K donors draw one spot each; the r-th smallest of their errors, r = ceil((K + 1)(1 - alpha)), is above that of a
    spot of a further donor with probability r / (K + 1), at least 1 - alpha, if donors are exchangeable
    (`Lee, Barber & Willett 2023 <https://arxiv.org/abs/2306.06342>`__,
    `Dunn, Wasserman & Ramdas 2022 <https://arxiv.org/abs/1809.07441>`__). :math:`t_g` is that quantile of it over all
    draws which keeps the level where donors do not differ: the smallest t with P(at least r of K draws are below t) at
    least P(Binomial(K, 1 - alpha) is at least r). In simulations this keeps the level however much donors differ; what
    is proven for it is less, 1 - (1 - r / (K + 1)) / P(Binomial(K, 1 - alpha) is at least r), 0.74 for nine donors at
    0.9. Coverage is an average over donors, spots and draws of donors, of each gene; a single donor may have less.

    The scores of all held-out rows are held in memory, rows x genes x 4 bytes.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=4, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> query = sections.pop("donor4")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.calibrate(reference, levels=[0.5], progress=False)
    >>> rg.tl.predict(query, reference, intervals=0.5)
    >>> query.tables["predicted"].uns["retrieval"]["interval_unit"]
    'donor'
    """
    bank = open_bank(reference)
    wanted = np.unique(np.atleast_1d(np.asarray(levels, dtype=np.float64)))
    if not len(wanted) or not ((wanted > 0) & (wanted < 1)).all():
        raise ValueError(
            f"`levels` is {listing(wanted.tolist())}; name coverages above 0 and below 1, for instance 0.9."
        )
    require_positive(n_folds, "n_folds", whole=True)
    if n_folds < 2:
        raise ValueError(f"`n_folds` is {n_folds}; it must be at least 2, since one fold is predicted from the others.")
    folds = folds_of(bank, split, None, margin_um, n_folds=int(n_folds))
    by_donor = BLOCKS if split == "block" else "{}"
    bank, fit = standardized(bank), bank.fit
    counts, values, floor = _fold_scores.counts_for_ceiling(reference, bank), bank.values, gene_floor(bank)
    names = [field.name for field in fields(METHODS[fit.method].options)]
    options = {name: tuple(x.tolist()) if isinstance(x, np.ndarray) else x for name, x in fit.options.items()}
    # A fit of an earlier release may have options that are gone.
    known = {name: options[name] for name in names if name in options}
    if "regression" in names:
        # Nor did one always have a regression; its refits are to be like it.
        known["regression"] = REGRESSION in fit.parameters
    if REGRESSION in fit.parameters and "regression_scale" not in fit.parameters:
        logger.warning(
            "This fit of %r was made by an earlier release, which did not scale its regression. Calibration fits "
            "parts of the reference with that scale, so the intervals may not suit the predictions. Run `rg.tl.fit` "
            "again first.",
            fit.method,
        )
    resolved = resolve_options(METHODS, fit.method, known)
    run = Run(resolved, int(fit.rng), train_on(device), amp, metric=fit.metric)
    group_key = fit.group_key or None
    within = [group_key] * len(folds) if split == "block" else inner_group_keys(bank, folds, group_key)
    scores = np.full(reference.shape, np.nan, dtype=np.float32)
    parts: list[pd.DataFrame] = []
    show = bool(settings.progress if progress is None else progress)
    seconds = sum(expected_seconds([fit.method], len(fold.training)) for fold in folds)
    quicker = "Fewer `n_folds`, or a reference fitted with 'knn', take less."
    say_if_long(seconds, f"Fitting {fit.method!r} again {len(folds)} times", quicker)
    with in_parts(len(folds), show=show) as begin:
        for i, fold in enumerate(folds):
            begin(f"{fold.kind} held out {i + 1} of {len(folds)} ({fold.name})")
            part = training_part(bank, fold.training, values)
            sizes = {name: min(getattr(fit, name), len(part)) for name in ("n_neighbors", "n_candidates")}
            refitted = fit_tissue(part, fit.method, replace(run, **sizes), group_key=within[i], say=logger.debug)
            for section in _fold_scores.held_sections(bank, fold, list(part.genes), set(), by_donor=by_donor):
                parts.append(_fold_scores.about_the_data(bank, section, counts=counts, rng=run.rng))
                rows, genes = section.rows, section.genes
                columns = bank.genes.get_indexer(genes)
                selected, answer = _fold_scores.predict_held(
                    refitted, bank.at_rows(rows), genes, with_disagreement=True
                )
                truth, distance = values[rows][:, columns], selected.grounding.distance
                of_section = held_out_scores(dense(truth), answer, distance, floor[columns], far_distance(refitted.fit))
                scores[np.ix_(rows, columns)] = of_section
                if len(rows) >= _fold_scores.FEWEST_SPOTS:
                    accuracy = _fold_scores.gene_scores(answer["prediction"], truth, genes, metrics=["pearson"])
                    parts.append(accuracy.assign(method=fit.method, fold=section.fold, sample=section.sample))

    # Groups of which one part was learned from while another was predicted are no unit.
    whole = {UNITS[0]: bank.donors, UNITS[1]: bank.sections}
    if split == "block":
        blocks = np.zeros(len(bank), dtype=np.int64)
        for i, fold in enumerate(folds):
            blocks[fold.held] = i + 1
        whole = {split: bank.sections * (len(folds) + 1) + blocks}
    groups = {name: codes for name, codes in whole.items() if codes.max() >= 1}
    quantiles, units, inside = quantiles_by_level(scores, wanted, groups)
    scored = np.isfinite(scores).any(axis=1)
    for level, unit, share, of_level in zip(wanted, units, inside, quantiles.T, strict=True):
        logger.info(
            "Intervals at %g: %ss are the unit, %.3f of the held-out values lie inside, and %d of %d genes get no "
            "interval (they never vary, or too few %ss measured them).",
            *(level, unit, share, np.isnan(of_level).sum(), len(of_level), unit),
        )
    calibration = {
        "schema_version": _keys.SCHEMA_VERSION,
        "fit_hash": fit.fit_hash,
        "split": split,
        "levels": wanted,
        "units": np.array(units, dtype=str),
        "quantiles": quantiles,
        "floor": floor,
        "far_distance": far_distance(fit),
        "n_donors": len(np.unique(bank.donors[scored])),
        "n_sections": len(np.unique(bank.sections[scored])),
        "n_spots": int(scored.sum()),
        "share_inside": inside,
    }
    reference.uns[_keys.ATTRS] = {**reference.uns[_keys.ATTRS], _keys.CALIBRATION: calibration}
    trust = pd.concat(parts, ignore_index=True)
    _fold_scores.write_gene_trust(reference, trust, fit.method, split=split, fit_hash=fit.fit_hash)
