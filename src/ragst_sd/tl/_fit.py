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
from ragst_sd._settings import resolve_device, settings
from ragst_sd._state import fit_state, state_of
from ragst_sd._validate import as_seed, listing, require_choice, require_positive
from ragst_sd.reference.hashing import fit_hash
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
    run = replace(run, options=resolve_options(methods, method, options, available=available), metric=metric)

    if responses:
        known = RESPONSE_METHODS[method]
        counts = neighbor_counts(len(bank), n_neighbors, n_candidates, known.n_neighbors, known.n_candidates)
        run = replace(run, **counts)
        fitted = fit_responses(bank, method, run, group_key=group_key)
    else:
        if metric != "euclidean" and METHODS[method].place is not None:
            raise ValueError(
                f"`metric` is {metric!r}, but method {method!r} learns a space with euclidean distances. Leave it out."
            )
        run = replace(run, **neighbor_counts(len(bank), n_neighbors, n_candidates))
        if run.device == "cpu":
            quicker = f"`method='knn'` takes about {in_words(expected_seconds(['knn'], len(bank)))}."
            say_if_long(expected_seconds([method], len(bank)), f"Fitting {method!r} on {len(bank):,} rows", quicker)
        fitted = fit_tissue(standardized(bank), method, run, group_key=group_key)

    _write(reference, fitted)
    logger.info(
        "Fitted %r on %d %s: %d neighbours of %d candidates.",
        method,
        len(bank),
        "responses" if responses else "rows",
        run.n_neighbors,
        run.n_candidates,
    )


def train_on(asked: str | None) -> str:
    """Where to train: what was asked for or set, else the CPU, on which the same seed gives the same fit everywhere."""
    wanted = settings.device if asked is None else asked
    return "cpu" if wanted is None else str(resolve_device(wanted))


def neighbor_counts(
    n_rows: int, n_neighbors: int | None, n_candidates: int | None, cited: int = DEFAULT_NEIGHBORS, compared: int = 1
) -> dict[str, Any]:
    """How many rows are cited and compared in a run: `cited` and `compared` where a reference has as many."""
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
    return {"n_neighbors": int(n_neighbors), "n_candidates": int(n_candidates)}


def fit_tissue(
    bank: Bank,
    method: str,
    run: Run,
    *,
    group_key: str | None,
    shared: dict[str, Any] | None = None,
    say: Callable[..., None] = logger.warning,
) -> Bank:
    """The bank, whose embeddings are standardised, with a fit and its rows in phi-space; no hash is known yet.

    `shared` is what fits of the same rows, with the same groups held out, have in common: filled by the first of them.
    `say` tells what stands in for donors where there is one only.
    """
    shared = {} if shared is None else shared
    folds, held_out, beside = fitting_folds(bank, group_key, say)
    run = replace(run, held_out=held_out)
    by_types, by_state = (getattr(run.options, name, False) for name in ("cell_types", "gate_hidden"))
    if by_types and bank.types is None:
        raise ValueError("`cell_types` is True, but the reference has no cell types. Run `rg.tl.add_cell_types` first.")
    types = np.asarray(bank.types, dtype=np.float64) if by_types else None
    # Sums and batches follow the ids, so that the order of the rows changes nothing.
    order = np.argsort(bank.order)
    back = np.argsort(order)
    training = replace(bank, folds=folds, beside=beside, types=types, raw=None).at_rows(order)
    state: dict[str, Any] = {}
    if by_state:
        state = fit_state(training.obs, training.embedding, len(np.atleast_1d(bank.header.encoder["context"])))
    training = replace(training, state=state_of(state, training.obs, training.embedding))
    n_components = int(run.options.n_components)
    components = _once(shared, f"{n_components} components", lambda: fit_pca(training.embedding, n_components))
    parameters, key, queries, features = fit_method(method, training, run, components=components)
    parameters |= {name: parameters[name][back] for name in METHODS[method].per_row}
    grounding = calibrate_grounding(queries, key, training.groups, run.n_neighbors, run.metric)
    if not np.isfinite(grounding["distance_threshold"]):
        logger.warning("No distances between groups could be calibrated: no spot will be called out of reference.")
    appearance = _once(shared, "appearance", lambda: calibrate_raw(bank.raw[order], training.sections, training.groups))
    # A store keeps no None; no column has an empty name.
    known: dict[str, Any] = {"group_key": "" if group_key is None else str(group_key), "appearance": appearance}
    fit = _recorded(method, run, {**state, **parameters}, **known, **grounding)
    features = None if features is None else features[back]
    return replace(bank, fit=fit, key=key[back], regression_key=features, raw=None)


def fit_responses(bank: Bank, method: str, run: Run, *, group_key: str | None) -> Bank:
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
    run = replace(run, held_out=_keys.PERTURBATION if group_key is None else group_key)
    bank = replace(bank, folds=group_codes(bank.obs, run.held_out), screen=replace(bank.screen, metric=run.metric))
    bank = with_cells(bank) if known.needs_cells and bank.screen.from_cells else bank
    # Sums follow the names of the rows, so that their order changes nothing.
    parameters = known.fit(bank.at_rows(np.argsort(bank.ids)), run)
    return replace(bank, fit=_recorded(method, run, parameters))


def _recorded(method: str, run: Run, parameters: dict[str, Any], **known: Any) -> Fit:
    """What is kept of a fit; `known` is what is known of tissue only."""
    return Fit(
        method=method,
        n_neighbors=run.n_neighbors,
        n_candidates=run.n_candidates,
        metric=run.metric,
        inner_groups=run.held_out,
        rng=run.rng,
        options={name: np.asarray(x) if isinstance(x, tuple) else x for name, x in asdict(run.options).items()},
        parameters=parameters,
        **known,
    )


def _write(reference: AnnData, bank: Bank) -> None:
    """Write a fit and the rows of its bank, together: what is interrupted before leaves the earlier fit whole."""
    header = dict(reference.uns[_keys.ATTRS])
    # Intervals hold for one fit.
    if header.pop(_keys.CALIBRATION, None) is not None:
        logger.info("The calibration of the earlier fit is dropped; `rg.tl.calibrate` makes one of this fit.")
    header["content_hash"] = bank.header.content_hash
    record = replace(bank.fit, reference_hash=bank.header.content_hash).stored()
    header[_keys.FIT] = {**record, "fit_hash": fit_hash(header, record, bank.key, bank.regression_key)}
    reference.obsm[_keys.RETRIEVAL_KEY] = bank.key
    reference.obsm.pop(_keys.REGRESSION_KEY, None)
    if bank.regression_key is not None:
        reference.obsm[_keys.REGRESSION_KEY] = bank.regression_key
    if bank.screen is None:
        everywhere = bank.measured.all(axis=0)
        reference.var[_keys.REFERENCE_VARIANCE] = np.where(everywhere, gene_variance(bank.values), np.nan)
    reference.uns[_keys.ATTRS] = header


def _once(shared: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    """What is shared under this name, made where it is not there yet."""
    if name not in shared:
        shared[name] = make()
    return shared[name]
