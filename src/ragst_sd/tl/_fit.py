"""`rg.tl.fit`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._reference import fit_hash, is_perturbation
from ragst_sd._settings import resolve_device, settings
from ragst_sd._validate import as_seed, require_choice
from ragst_sd.tl._fit_perturbation import fit_perturbation
from ragst_sd.tl._fit_record import write_fit

logger = logging.getLogger(__name__)

METRICS = ("euclidean", "cosine")


def fit(
    reference: AnnData,
    *,
    method: str = "rag",
    n_neighbors: int | None = None,
    n_candidates: int | None = None,
    group_key: str | None = None,
    metric: str | None = None,
    options: Mapping[str, Any] | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
    device: str | None = None,
    amp: bool = False,
    progress: bool | None = None,
) -> None:
    r"""Fit a method on a reference.

    Every method starts from the principal components of the (standardised) embeddings. `"rag"` learns how to search and
    how to weight what it finds; the others are baselines that are used in the same way. `rag` and `mlp` are trained,
    which takes minutes for some thousand rows. The others take seconds (see "How time and memory grow"). If a fit is
    expected to take over a minute, it says so before it starts.

    ================== ======= ==================================== ================== ==============================
    method             cites   phi                                  weights            adjustment
    ================== ======= ==================================== ================== ==============================
    `rag`              rows    learned                              learned gate       kernel ridge, by its share
    `knn`              rows    principal components                 fall with distance none
    `knn_supervised`   rows    what ridge predicts                  fall with distance none
    `random_rag`       rows    learned; random candidates, control  learned gate       none
    `ridge`, `mlp`     no rows none                                 none               regression
    `kernel_ridge`     no rows none                                 none               kernel ridge, that of `rag`
    `mean`             no rows none                                 none               none
    ================== ======= ==================================== ================== ==============================

    Register your own methods with :func:`ragst_sd.tl.register_method`.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference` or :func:`ragst_sd.tl.build_perturbation_reference`.
    method
        One of the table, or one that was registered. For a reference of perturbations `rag`, `pt_rag`, `none`, `mean`,
        `additive`, `same_perturbation`, `context_additive`, `knn`, `naive_rag`, `random_rag`, `ridge`,
        `kernel_ridge` or `bilinear`.
    n_neighbors
        Rows cited per spot at most; 50, or all rows of a smaller reference, if left out. Perturbations: 3 (`rag`,
        `pt_rag`: 16).
    n_candidates
        Rows compared per spot, of which the best are cited; `n_neighbors` if left out.
    group_key
        Column of `.obs` whose groups are held out whole when something is chosen or calibrated. If left out: donors;
        with one donor a quarter of its sections at a time, with a margin as wide as the widest field of view (three
        distances between spots if it is not known). Sections too small for that are held out whole, or, if there is
        one only, in four blocks without a margin.
    metric
        `"euclidean"` or `"cosine"` distance in phi-space; methods that learn phi are euclidean. Left out: euclidean for
        tissue, cosine for perturbations.
    options
        Options of the method: fields of its class, for instance :class:`ragst_sd.retrieval.rag.RagOptions`. The page
        "The method" lists all of them.
    rng
        A seed, or a generator or seed sequence of numpy from which one is drawn, which the fit records; `None` draws a
        new one. On the CPU the same seed and number of threads give the same fit.
    device
        Where `rag`, `random_rag` and `mlp` train, for instance `"cuda"`; the setting if left out, and the CPU if
        that is not set either.
    amp
        Whether `rag` and `random_rag` may take the products of phi in bfloat16 while they train.
    progress
        Whether to show a bar with the inner score; the setting if left out. Ctrl-C ends the stage under way
        with the best state so far, and what is left is cut short, with a warning.

    Returns
    -------
    `None`. Fields written to the reference:

    `.obsm["retrieval_key"]`
        float64 (n, p), the rows in phi-space.
    `.obsm["regression_key"]`
        float32 (n, q), the rows as the regression of `rag` and `kernel_ridge` takes them; dropped by methods without.
    `.uns["ragst"]["fit"]`
        Method, parameters as plain arrays, hashes of reference and fit, and what tells a spot that is out of reference:
        `distance_quantiles` and `distance_threshold` of held-out groups in phi-space, and `appearance` (spread, axes
        and means of the raw embeddings by section, and the `threshold` of the distance to them). Replaces an earlier
        fit, and drops the intervals that :func:`ragst_sd.tl.calibrate` made of it.
    `.var["reference_variance"]`
        Of tissue: variance of each gene over the rows, NaN for genes that not every panel measured. By it
        :func:`ragst_sd.tl.evaluate` chooses the genes of its figures.

    Raises
    ------
    ValueError
        If the method or an option does not exist or has a value that makes no sense, `n_neighbors` exceeds the rows, an
        embedding is NaN, or training diverges.

    Notes
    -----
    A prediction is evidence plus an adjustment. With `rag` these are :math:`m + a \sum_j W_j (y_j - m_{s(j)})` over
    the cited rows, and the share :math:`1 - a` of a regression :math:`\sum_j H_j (y_j - m_{s(j)})` over all rows; a is
    chosen on held-out groups. The page "The method" has the equations
    and options of all methods. `pt_rag` is that of `PT-RAG <https://arxiv.org/abs/2603.07233>`__.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=20)
    """
    from ragst_sd._bank import open_bank, standardized
    from ragst_sd.retrieval.bank import Run
    from ragst_sd.retrieval.methods import METHODS
    from ragst_sd.retrieval.options import resolve_options
    from ragst_sd.retrieval.training import gene_variance
    from ragst_sd.tl._fit_tissue import fit_tissue
    from ragst_sd.tl._waiting import expected_seconds, in_words, say_if_long

    seed = as_seed(rng)
    show = bool(settings.progress if progress is None else progress)
    run = Run(None, seed, train_on(device), amp, show)
    sizes: dict[str, Any] = {"n_neighbors": n_neighbors, "n_candidates": n_candidates, "group_key": group_key}
    if is_perturbation(reference):
        fit_perturbation(reference, method, metric=metric, options=options, run=run, **sizes)
        return
    bank = open_bank(reference, fitted=False)
    run = replace(run, options=resolve_options(METHODS, method, options))
    metric = "euclidean" if metric is None else metric
    require_choice(metric, METRICS, "metric")
    if metric != "euclidean" and METHODS[method].place is not None:
        raise ValueError(
            f"`metric` is {metric!r}, but method {method!r} learns a space with euclidean distances. Leave it out."
        )
    if run.device == "cpu":
        quicker = f"`method='knn'` takes about {in_words(expected_seconds(['knn'], len(bank)))}."
        say_if_long(expected_seconds([method], len(bank)), f"Fitting {method!r} on {len(bank):,} rows", quicker)
    raw = bank.embedding
    bank = standardized(reference, bank)
    fitted = fit_tissue(bank, method, run, raw=raw, metric=metric, **sizes)
    record = replace(fitted.fit, reference_hash=bank.header.content_hash).stored()
    record["fit_hash"] = fit_hash(reference, reference.uns[_keys.ATTRS], record, fitted)
    write_fit(reference, record, fitted)
    everywhere = bank.measured.all(axis=0)
    reference.var[_keys.REFERENCE_VARIANCE] = np.where(everywhere, gene_variance(bank.values), np.nan)
    logger.info(
        "Fitted %r on %d rows: %d neighbours of %d candidates, %d components, %s held out to choose and calibrate.",
        method,
        reference.n_obs,
        record["n_neighbors"],
        record["n_candidates"],
        fitted.key.shape[1],
        record["inner_groups"],
    )


def train_on(asked: str | None) -> str:
    """Where to train: what was asked for or set, else the CPU, on which the same seed gives the same fit everywhere."""
    wanted = settings.device if asked is None else asked
    return "cpu" if wanted is None else str(resolve_device(wanted))
