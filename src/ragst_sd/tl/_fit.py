"""`rg.tl.fit`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ragst_sd import _keys
from ragst_sd._perturbation_reference import is_perturbation
from ragst_sd._reference import fit_hash
from ragst_sd._settings import resolve_device, settings
from ragst_sd._validate import as_seed, require_choice
from ragst_sd.tl._fit_perturbation import fit_perturbation
from ragst_sd.tl._fit_record import write_fit

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from anndata import AnnData

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

    Every method starts from the principal components of the (standardised) embeddings. `"rag"` learns where to search and
    how to weigh what it finds; the others are baselines of the same standing.

    ================== ======= ==================================== ================== ==============================
    method             cites   phi                                  weights            adjustment
    ================== ======= ==================================== ================== ==============================
    `rag`              rows    learned                              learned gate       T, learned
    `knn`              rows    principal components                 fall with distance none
    `knn_supervised`   rows    what ridge predicts                  fall with distance none
    `random_rag`       rows    learned; random candidates, control  learned gate       T, learned
    `ridge`, `mlp`     nobody  none                                 none               regression
    `mean`             nobody  none                                 none               none
    ================== ======= ==================================== ================== ==============================

    Methods of one's own are made known with :func:`ragst_sd.tl.register_method`.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference` or :func:`ragst_sd.tl.build_perturbation_reference`.
    method
        One of the table, or one that was registered; for a reference of perturbations see the methods of responses in the Notes.
    n_neighbors
        Rows cited per spot at most; 50, or all rows of a smaller reference, if left out (perturbations: see Notes).
    n_candidates
        Rows compared per spot, of which the best are cited; `n_neighbors` if left out.
    group_key
        Column of `.obs` whose groups are held out whole when something is chosen or calibrated. If left out: donors;
        with one donor its sections; with one section four spatial blocks.
    metric
        `"euclidean"` or `"cosine"` distance in phi-space; methods that learn phi are euclidean. Left out: euclidean for
        tissue, cosine for perturbations.
    options
        Options of the method, see Notes.
    rng
        A seed, or a generator or seed sequence of numpy from which one is drawn, which the fit records; `None` draws a new
        one. On the CPU the same seed and number of threads give the same fit.
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
    `.uns["ragst"]["fit"]`
        Method, parameters as plain arrays, hashes of reference and fit, and what tells a spot that is out of reference:
        `distance_quantiles` and `distance_threshold` of held-out groups in phi-space, and `appearance` (spread, axes and
        means of the raw embeddings by section, and the `threshold` of the distance to them). Replaces an earlier
        fit, and drops the intervals that :func:`ragst_sd.tl.calibrate` made of it.

    Raises
    ------
    ValueError
        If the method or an option does not exist or has a value that makes no sense, `n_neighbors` exceeds the rows, an
        embedding is NaN, or training diverges.

    Notes
    -----
    **rag** trains on episodes in which a row retrieves from other donors only. Its loss is the squared error of the
    evidence in standard deviations of each gene, plus one minus its correlation within sections. The number of steps is
    chosen on inner groups held out as queries (see `group_key`); then it is trained on all rows, from several seeds.

    .. math:: \phi(x) = A x + B\,\mathrm{gelu}(C x + b), \qquad
              a_j = -s\, \frac{\|\phi(x) - \phi(x_j)\|^2}{d_K^2} + g(\phi(x), \phi(x_j), \phi(x) - \phi(x_j), c)

    The gate turns the logits :math:`a_j` into weights: `softmax`, `entmax` (1.5-entmax, sparse) or `gumbel` (rows in or out).
    g is there if `gate_hidden` is above 0; c is the query's state: the tissue around it, and organ and technology where the
    reference has several. With `cell_types=True`, phi also takes in the fractions of cell types: of rows their own (see
    :func:`ragst_sd.tl.add_cell_types`), of a query those that ridge regression predicts from its embedding, as square roots, so that
    rows of other types than the picture speaks of are passed over, as far as training finds that to help. T is a ridge regression of reduced rank of what the evidence missed, for every gene,
    and zero unless it predicts held-out groups better.

    Options and defaults. All: `n_components` (64). Methods that cite: `center_sections` (True; measured values are taken
    relative to their section's mean and put on the mean of the reference). rag, random_rag: `n_latent` (64), `hidden` (0: phi is
    linear; else units of a hidden layer), `gate` (`"softmax"`), `gate_hidden` (0), `cell_types` (False), `sharpness` (2, the start of s), `dropout` (0.1), `correlation` (1, its
    weight in the loss), `sparsity` (0, penalty on the effective number of rows), `n_train_genes` (250), `n_seeds` (3),
    `max_steps` (120), `learning_rate`, `weight_decay`, `adjustment_rank` (16, 0 is no adjustment). knn,
    knn_supervised: `weighting` (`"distance"` or `"uniform"`), `sharpness` (2; weights are
    :math:`w_j \propto \exp(-s\,d_j^2/d_K^2)`). ridge, knn_supervised: `alphas` to choose from, of
    :math:`(K^\top K + \alpha m I) B = K^\top Y` on the m rows K. mlp: `hidden` (64), `dropout`, `learning_rate`, `weight_decay`,
    `max_steps`, `n_seeds`.

    **Responses to perturbations**, :math:`\Delta(p, c)` of perturbation p in context c, from the rows that a query may use
    (see :func:`ragst_sd.tl.perturb`). The default, `rag`, learns where to look and how far to trust what it finds:

    .. math:: \Delta(p, c) = f + r_p \sum_j u_j (\kappa_j \Delta_j - \bar\Delta_{c(j)}), \qquad
              f = \bar\Delta_c + r_p b\,(\mathrm{bilinear}(p, c) - \bar\Delta_c), \qquad
              \phi(e, z) = \big[(1 - \rho)\, e,\; \rho\, (B_0 + \textstyle\sum_l z_l B_l)\, e\big]

    with e the embedding of a perturbation, z the state of the cells (principal components of the contexts' controls), B the ridge
    regression of measured responses on e and z e, and :math:`\kappa_j` the number of genes perturbed in p over that in j. u adds up
    gates of different :math:`\rho`, penalty of B and sharpness s, each the 1.5-entmax of :math:`-s\,\|\phi(p) - \phi(j)\|^2` over the
    candidates and a null slot, times its trust. :math:`r_p` is the share of the embedding of p that the rows it may use span, so that a
    perturbation unlike all of them has their mean. Trust, b and the shares of the gates are chosen on held-out
    perturbations, one half of the controls teaching and the other being the truth, by the gain in correlation over the mean of the others
    less its standard error; where nothing gains, f is the mean and nothing is cited. Perturbations that share a gene with a
    measured row (combinations) have shares of their own. f is the prediction without retrieval; the weights reported are u over their sum.

    `pt_rag` predicts the cells of a set, with :math:`h_i = W_x x_i`, :math:`q = W_p e`, :math:`u_k = W_p e_k` for the candidates nearest in embedding:

    .. math:: c_k = \mathrm{LN}[\bar h; q; u_k], \quad w_k = 1[a(c_k) > 0], \quad
              z_i = h_i + q + \alpha \frac{\sum_k w_k W_f c_k}{\max(1, \sum_k w_k)}, \quad \hat y_i = x_i + W_o T(z)_i

    T is a transformer over the cells of the set without positions, :math:`\alpha` starts at zero; choices are straight-through
    Gumbel in training and without noise in prediction; the loss is the energy distance of the sets, the squared error of
    their mean response and `sparsity` times the share of candidates chosen (`PT-RAG <https://arxiv.org/abs/2603.07233>`__, whose sum is not
    normalised and which has no such residual path). Candidates give their embeddings, not their responses: the evidence reported is the mean
    response of those chosen, and nearly all of the prediction may be adjustment. It remembers the perturbations that it was trained on.

    The others: `none` (no change), `mean` (of the context), `additive` (sum of the singles of a
    combination), `same_perturbation` (mean of its responses in other contexts), `context_additive`
    (:math:`\bar\Delta_c + \Delta_{pc'} - \bar\Delta_{c'}`, averaged over the other contexts c'), `knn` (of the `n_neighbors` nearest
    embeddings, weights falling with distance as above), `naive_rag` and `random_rag` (equal weights for all `n_candidates` nearest, or as many random, rows), `ridge`
    (`GenePert <https://doi.org/10.1101/2024.10.27.620513>`__: linear in the embedding) and `bilinear` (linear in embedding and
    principal components of the genes, `Ahlmann-Eltze et al. 2025 <https://doi.org/10.1038/s41592-025-02772-6>`__). A context
    without rows takes those of all contexts. Options: rag: `n_components` (64) of the embedding, `penalties` of B and `sharpnesses` to
    choose from, `rank` and `alpha` of its bilinear part; pt_rag: `n_components`, `width` (64), `layers` (2), `heads` (4), `scope` (`"set"`
    or `"cell"`: what the choice depends on), `candidates` (`"nearest"`; `"random"` or `"none"` show what retrieval is worth), `temperature` (0.5), `sparsity` (0.1), `pseudobulk` (1, weight of the mean response),
    `batch_size` (16 sets), `set_size` (16 cells), `max_steps` (200), `learning_rate`, `weight_decay`; knn: `weighting`, `sharpness`, `within_context` (True: neighbours of the
    query's context only, where it has any); naive_rag, random_rag: `weighting`, `within_context`; ridge: `alphas` to choose
    from, on held-out perturbations and the other half of the controls; bilinear: `rank` (10), `alpha` (0.1). `n_neighbors` is 3 and
    `n_candidates` 32 (rag: 16 and 128, pt_rag: 16 and 16), or what there is, if left out. Responses of rows that a query may not use enter
    nothing but what is chosen: the penalty of `ridge`, and the gates and shares of `rag`.

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
    from ragst_sd.tl._fit_tissue import fit_tissue

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
        msg = f"`metric` is {metric!r}, but method {method!r} learns a space with euclidean distances. Leave it out."
        raise ValueError(msg)
    raw = bank.embedding
    fitted = fit_tissue(standardized(reference, bank), method, run, raw=raw, metric=metric, **sizes)
    record = replace(fitted.fit, reference_hash=bank.header.content_hash).stored()
    record["fit_hash"] = fit_hash(reference, reference.uns[_keys.ATTRS], record, fitted.key)
    write_fit(reference, record, fitted.key)
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
