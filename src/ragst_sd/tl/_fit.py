"""`rg.tl.fit`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._bank import open_bank, standardized, with_cells
from ragst_sd._query import fit_state, state_of
from ragst_sd._reference import fit_hash
from ragst_sd._settings import resolve_device, settings
from ragst_sd._validate import as_seed, listing, require_choice, require_key, require_positive
from ragst_sd.reference.header import Fit
from ragst_sd.retrieval.appearance import calibrate_raw
from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.grounding import calibrate_grounding
from ragst_sd.retrieval.methods import METHODS, fit_method
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.retrieval.projection import fit_pca
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS
from ragst_sd.retrieval.training import gene_variance
from ragst_sd.tl._folds import fitting_folds, group_codes
from ragst_sd.tl._waiting import expected_seconds, in_words, say_if_long

logger = logging.getLogger(__name__)

METRICS = ("euclidean", "cosine")
DEFAULT_NEIGHBORS = 50


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
    run = Run(None, as_seed(rng), train_on(device), amp, bool(settings.progress if progress is None else progress))
    bank = open_bank(reference, task=None, fitted=False)
    responses = bank.screen is not None
    if metric is None:
        metric = "cosine" if responses else "euclidean"
    require_choice(metric, METRICS, "metric")
    methods, available = METHODS, "available"
    if responses:
        methods, available = RESPONSE_METHODS, "for a reference of perturbations available"
    run = replace(run, options=resolve_options(methods, method, options, available=available))
    sizes: dict[str, Any] = {"n_neighbors": n_neighbors, "n_candidates": n_candidates, "group_key": group_key}
    if responses:
        fitted = fit_responses(bank, method, run, metric=metric, **sizes)
    else:
        if metric != "euclidean" and METHODS[method].place is not None:
            raise ValueError(
                f"`metric` is {metric!r}, but method {method!r} learns a space with euclidean distances. Leave it out."
            )
        if run.device == "cpu":
            quicker = f"`method='knn'` takes about {in_words(expected_seconds(['knn'], len(bank)))}."
            say_if_long(expected_seconds([method], len(bank)), f"Fitting {method!r} on {len(bank):,} rows", quicker)
        fitted = fit_tissue(standardized(bank), method, run, raw=bank.embedding, metric=metric, **sizes)
        everywhere = bank.measured.all(axis=0)
        reference.var[_keys.REFERENCE_VARIANCE] = np.where(everywhere, gene_variance(bank.values), np.nan)
    _write(reference, fitted)
    logger.info(
        "Fitted %r on %d %s: %d neighbours of %d candidates.",
        method,
        len(bank),
        "responses" if responses else "rows",
        fitted.fit.n_neighbors,
        fitted.fit.n_candidates,
    )


def train_on(asked: str | None) -> str:
    """Where to train: what was asked for or set, else the CPU, on which the same seed gives the same fit everywhere."""
    wanted = settings.device if asked is None else asked
    return "cpu" if wanted is None else str(resolve_device(wanted))


def fit_tissue(
    bank: Bank,
    method: str,
    run: Run,
    *,
    raw: np.ndarray,
    n_neighbors: int | None,
    n_candidates: int | None,
    group_key: str | None,
    metric: str,
    shared: dict[str, Any] | None = None,
    say: Callable[..., None] = logger.warning,
) -> Bank:
    """The bank with a fit and its rows in phi-space, of which no hash is known yet.

    The embeddings of `bank` are standardised and in memory; `raw` (m, d) are the embeddings as they were made. `shared`
    is what fits of the same rows, with the same groups held out, have in common: filled by the first of them. `say`
    tells what stands in for donors where there is one only.
    """
    shared = {} if shared is None else shared
    cited, compared = _neighbor_counts(len(bank), n_neighbors, n_candidates, cited=DEFAULT_NEIGHBORS)
    folds, inner_groups, beside = fitting_folds(bank, group_key, say)
    # Sums and batches follow the ids, so that the order of the rows changes nothing.
    order = np.argsort(bank.order)
    back = np.argsort(order)
    training = replace(bank, folds=folds, beside=beside).at_rows(order)
    state: dict[str, Any] = {}
    if getattr(run.options, "gate_hidden", 0):
        state = fit_state(training.obs, training.embedding, len(np.atleast_1d(bank.header.encoder["context"])))
    types = training.types if getattr(run.options, "cell_types", False) else None
    if getattr(run.options, "cell_types", False) and types is None:
        raise ValueError("`cell_types` is True, but the reference has no cell types. Run `rg.tl.add_cell_types` first.")
    training = replace(
        training,
        state=state_of(state, training.obs, training.embedding),
        types=None if types is None else np.asarray(types, dtype=np.float64),
    )
    run = replace(run, n_neighbors=cited, n_candidates=compared, held_out=inner_groups)
    n_components = int(run.options.n_components)
    components = _once(shared, f"{n_components} components", lambda: fit_pca(training.embedding, n_components))
    parameters, key, queries, features = fit_method(method, training, run, components=components)
    calibration: dict[str, Any] = calibrate_grounding(queries, key, training.groups, cited, metric)
    appearance = _once(shared, "appearance", lambda: calibrate_raw(raw[order], training.sections, training.groups))
    parameters |= {name: parameters[name][back] for name in METHODS[method].per_row}
    if not np.isfinite(calibration["distance_threshold"]):
        logger.warning("No distances between groups could be calibrated: no spot will be called out of reference.")
    # A store keeps no None; no column has an empty name.
    column = "" if group_key is None else str(group_key)
    learned: dict[str, Any] = {"parameters": {**state, **parameters}, "appearance": appearance, **calibration}
    fit = _fit_of(method, run, metric=metric, group_key=column, **learned)
    return replace(bank, fit=fit, key=key[back], regression_key=None if features is None else features[back])


def fit_responses(
    bank: Bank,
    method: str,
    run: Run,
    *,
    n_neighbors: int | None,
    n_candidates: int | None,
    group_key: str | None,
    metric: str,
) -> Bank:
    """The bank of responses to perturbations with a fit, of which no hash is known yet."""
    known = RESPONSE_METHODS[method]
    # Given responses are compared by what other contexts say, too, by the methods that read them.
    needs = known.needs_embedding and (bank.screen.from_cells or not known.needs_cells)
    if needs and not bank.key.shape[1]:
        others = [name for name, other in RESPONSE_METHODS.items() if not other.needs_embedding]
        raise ValueError(
            f"The reference has no embedding of genes, and method {method!r} needs one. Build it with "
            "`rg.tl.build_perturbation_reference(responses, embedding=rg.tl.embed_genes(...))`, or fit a method that "
            f"needs none: {listing(others)}."
        )
    cited, compared = _neighbor_counts(
        len(bank), n_neighbors, n_candidates, cited=known.n_neighbors, compared=known.n_candidates
    )
    group_key = _keys.PERTURBATION if group_key is None else group_key
    require_key(group_key, list(bank.obs.columns), "reference.obs")
    bank = replace(bank, folds=group_codes(bank.obs, group_key), screen=replace(bank.screen, metric=metric))
    bank = with_cells(bank) if known.needs_cells and bank.screen.from_cells else bank
    run = replace(run, n_neighbors=cited, n_candidates=compared, held_out=group_key)
    # Sums follow the names of the rows, so that their order changes nothing.
    parameters = known.fit(bank.at_rows(np.argsort(bank.ids)), run)
    return replace(bank, fit=_fit_of(method, run, metric=metric, parameters=parameters))


def _fit_of(method: str, run: Run, **learned: Any) -> Fit:
    """A fit: what was asked for, with options as a store keeps them, and what was learned."""
    return Fit(
        method=method,
        n_neighbors=run.n_neighbors,
        n_candidates=run.n_candidates,
        inner_groups=run.held_out,
        rng=run.rng,
        options={name: np.asarray(x) if isinstance(x, tuple) else x for name, x in asdict(run.options).items()},
        **learned,
    )


def _write(reference: AnnData, bank: Bank) -> None:
    """Write a fit and the rows of its bank, together: what is interrupted before leaves the earlier fit whole."""
    header, placed = dict(reference.uns[_keys.ATTRS]), {_keys.RETRIEVAL_KEY: bank.key}
    if bank.regression_key is not None:
        placed[_keys.REGRESSION_KEY] = bank.regression_key
    # Intervals hold for one fit.
    if header.pop(_keys.CALIBRATION, None) is not None:
        logger.info("The calibration of the earlier fit is dropped; `rg.tl.calibrate` makes one of this fit.")
    header["content_hash"] = bank.header.content_hash
    record = replace(bank.fit, reference_hash=bank.header.content_hash).stored()
    header[_keys.FIT] = {**record, "fit_hash": fit_hash(header, record, placed)}
    reference.obsm.pop(_keys.REGRESSION_KEY, None)
    reference.obsm.update(placed)
    reference.uns[_keys.ATTRS] = header


def _neighbor_counts(
    n_rows: int, n_neighbors: int | None, n_candidates: int | None, *, cited: int, compared: int = 1
) -> tuple[int, int]:
    """Rows that are cited and rows that are compared: `cited` and `compared` where a reference has as many."""
    for name, value in (("n_neighbors", n_neighbors), ("n_candidates", n_candidates)):
        if value is None:
            continue
        require_positive(value, name, whole=True)
        if value > n_rows:
            raise ValueError(
                f"`{name}` is {value}, more than the {n_rows} rows of the reference. Ask for {n_rows} at most."
            )
    if n_neighbors is None:
        n_neighbors = min(cited, n_rows if n_candidates is None else n_candidates)
        logger.info("`n_neighbors` is %d.", n_neighbors)
    if n_candidates is None:
        n_candidates = max(n_neighbors, min(compared, n_rows))
    if n_candidates < n_neighbors:
        raise ValueError(
            f"`n_candidates` is {n_candidates}, fewer than `n_neighbors` ({n_neighbors}) that are chosen from them."
        )
    return int(n_neighbors), int(n_candidates)


def _once(shared: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    """What is shared under this name, made where it is not there yet."""
    if name not in shared:
        shared[name] = make()
    return shared[name]
