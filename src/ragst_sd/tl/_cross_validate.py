"""`rg.tl.cross_validate`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._bank import open_bank, standardized
from ragst_sd._metrics import DEFAULT_METRICS, METRICS
from ragst_sd._settings import settings
from ragst_sd._validate import (
    as_names,
    as_seed,
    listing,
    names_among,
    require_choice,
    require_key,
    require_known,
    require_positive,
    require_some,
)
from ragst_sd.reference.normalize import as_csr
from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.tl._downstream_metrics import gene_sets_of
from ragst_sd.tl._fit import fit_tissue, neighbor_counts, train_on
from ragst_sd.tl._fold_scores import (
    FEWEST_SPOTS,
    about_the_data,
    choose_genes,
    counts_for_ceiling,
    held_sections,
    score_section,
    write_gene_trust,
)
from ragst_sd.tl._folds import BLOCKS, RAW_UNIT, Fold, fewer_donors, folds_of, inner_group_keys, training_part
from ragst_sd.tl._section_metrics import SECTION_METRICS, needing
from ragst_sd.tl._waiting import expected_seconds, in_parts, say_if_long

logger = logging.getLogger(__name__)

LIBRARY_SIZE = ("normalized", "raw", "both")
LABEL = "label"
OF_SECTIONS = ("moran_agreement", "svg_overlap", "gene_correlation_agreement", "domain_ari")
COLUMNS = ["method", "fold", "sample", "gene", "unit", "metric", "value"]


def cross_validate(
    reference: AnnData,
    *,
    methods: Sequence[str] = ("rag", "knn", "ridge", "mean"),
    split: str = "donor",
    group_key: str | None = None,
    margin_um: float | None = None,
    n_genes: int = 250,
    genes: str | Sequence[str] | None = None,
    n_neighbors: int | None = None,
    n_candidates: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    cited: Sequence[int] = (5, 10, 20, 50),
    library_size: str = "normalized",
    label_key: str = LABEL,
    gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None = None,
    metrics: Sequence[str] | None = None,
    n_donors: int | Sequence[int] | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
    device: str | None = None,
    amp: bool = False,
    progress: bool | None = None,
    inplace: bool = True,
) -> pd.DataFrame:
    r"""Measure how well methods predict held-out donors, or fill gaps in sections.

    Each donor is held out in turn, with all its sections. Methods are fitted on the rows of the other donors. These
    rows also decide which genes are compared and, by holding out groups among them, all penalties and stopping points.
    Nothing is chosen on the donor that is predicted. Its sections are predicted one by one and compared with the
    measurement, without smoothing. The size factors are those of the reference, from the genes that all its panels
    list.

    The cost is one fit of each method for each donor, and as many again with `library_size="both"`; the methods share
    common results.

    `split="block"` measures how well the gaps of a section are filled (:func:`ragst_sd.tl.predict` with `exclude=()`).
    Each section is cut into quarters, at the median of its spots along x and along y. One quarter of every section is
    held out at a time, together with all spots of the section whose fields of view reach into those of the quarter:
    their tiles show the same tissue, so that they would give it away. The rest of the section is learned from and
    cited, and gives the level. Gaps in real sections often have measured spots nearby, and are then filled better than
    such a quarter.

    Sections of one donor resemble each other, and their spots even more. So compute intervals and tests over donors, as
    :func:`ragst_sd.pl.benchmark` does.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference`; it need not be fitted.
    methods
        Methods of :func:`ragst_sd.tl.fit` to compare.
    split
        `"donor"`, or `"block"` for parts of sections.
    group_key
        Column of `.obs` whose groups are held out whole, with `split="donor"`. If left out: donors; with one donor its
        sections, with one section four spatial blocks, each with a warning.
    margin_um
        With `split="block"`: spots nearer than this to the quarter, in microns along both x and y, are left out with
        it. If left out, the width of the widest field of view, `tile_px` times `mpp` times the largest `context`; three
        distances between neighbouring spots for embeddings of unknown origin.
    n_genes
        Number of genes to compare: those that vary most over the training rows, among those that all their panels
        measured. Fewer where there are fewer.
    genes
        Compare these genes instead, or `"all"`; metrics of whole sections then rest on those named, or with `"all"` on
        the `n_genes` most variable ones.
    n_neighbors, n_candidates
        As in :func:`ragst_sd.tl.fit`.
    options
        For each method its options; defaults if left out.
    cited
        Numbers of rows to which the citing methods are restricted in turn, up to `n_neighbors`.
    library_size
        `"normalized"` predicts and scores `.X`, `"raw"` log1p of the counts as they are, `"both"` both of them. The
        genes are the same.
    label_key
        Column of `.obs` with labels of spots (layers, pathologists' regions). Not used if `"label"` does not exist.
    gmt
        Gene sets for `"gene_set_pearson"`, as in :func:`ragst_sd.tl.evaluate`.
    metrics
        Metrics per gene, per gene set and per section of :func:`ragst_sd.tl.evaluate`, all of those that need neither
        counts nor intervals. Left out: `"pearson"`, `"spearman"`, `"rmse"`, `"variance_kept"`, `"moran_agreement"`,
        `"svg_overlap"`, `"gene_correlation_agreement"` and `"domain_ari"`. `"pearson"` is always among them.
    n_donors
        For a curve of accuracy: learn from that many of the other donors only, one number after the other. They are
        drawn at random, and more donors include those of fewer. The genes compared stay those of all other donors.
    rng
        Seed, generator or seed sequence of numpy, of everything that is random; `None` draws anew at each call.
    device, amp
        As in :func:`ragst_sd.tl.fit`.
    progress
        Show a progress bar; the setting if left out.
    inplace
        Write the accuracy of each gene into the reference.

    Returns
    -------
    Long frame with `method`, `fold` (the group held out; `"blocks of <donor>"`), `sample`, `gene`, `unit` (of the
    values compared), `metric`, `value`, and where it was asked for `n_donors`, the number of donors learned from. Lines
    with a gene hold `pearson`, `spearman`, `rmse`, `variance_kept` of the gene in a section (with `gene_set_pearson`
    the name of a set stands for the gene), and under an empty `method` its `noise_ceiling`, the Pearson correlation
    that counting noise allows (NaN without counts of the
    genes behind the size factors; normalised unit only). Lines with an empty `gene` describe a section:
    `effective_n` and `evidence_share` (means over spots), `moran_agreement`, `svg_overlap`,
    `gene_correlation_agreement`, `domain_ari` (NaN without labels), and for methods that cite `evidence_pearson` (of
    the evidence alone), `pearson_cited_<k>` (with k rows cited at most), `label_share` and `label_share_random`
    (weight on rows of the spot's own label, and what random rows would get). Under an empty `method` there is
    `n_spots`. Sections with fewer than 3 spots are predicted but not scored.

    With `inplace`, and unless `library_size="raw"` or `n_donors` is given, these are written to the reference; its fit
    and its content hash stay as they are:

    `.var["cv_pearson"]`
        Pearson of the fitted method if it is among `methods`, else of the first one that cites (of the first one if
        none does), averaged over the sections of a group, then over groups. NaN for genes that were not compared:
        `genes="all"` leaves none out.
    `.var["noise_ceiling"]`
        The noise ceiling, averaged in the same way.
    `.uns["ragst"]["gene_trust"]`
        The method and the split that `cv_pearson` is of. :func:`ragst_sd.tl.predict` hands it on for these only.

    With `split="block"` a section has a line for each of its quarters. Less varies within a quarter than within a
    section, so that correlations are lower than, and do not compare with, those of whole sections.

    Where :func:`ragst_sd.tl.calibrate` has assessed the genes of the very fit, its figures stay.

    Raises
    ------
    KeyError
        If a column or a gene does not exist.
    ValueError
        If a method, a metric or an option does not exist, `gmt` is needed and left out, no fold has so many donors,
        there are no two groups, positions are unknown or no section is large enough for blocks and their margin,
        `n_donors` is given for blocks, `n_neighbors` exceeds the training rows, raw
        counts are asked of a reference without counts, or no section has 3 spots.

    References
    ----------
    Noise ceilings follow the count splitting of Neufeld et al. (2024), doi:10.1093/biostatistics/kxac047; metrics are
    those of
    :func:`ragst_sd.tl.evaluate`.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> scores = rg.tl.cross_validate(reference, methods=["ridge", "knn"], n_genes=50, progress=False)
    >>> pearson = scores[scores["metric"] == "pearson"]
    >>> sorted(pearson.groupby(["method", "fold"])["value"].mean().index.levels[1])
    ['donor1', 'donor2', 'donor3']
    """
    bank = open_bank(reference, fitted=False, whole=False)
    methods = as_names(methods)
    require_some(methods, "methods", f"Name some of {listing(METHODS)}.")
    require_known(options or {}, methods, "options", " names, beside `methods`,")
    options = {name: resolve_options(METHODS, name, (options or {}).get(name)) for name in methods}
    require_positive(n_genes, "n_genes", whole=True)
    for number in cited:
        require_positive(number, "cited", whole=True)
    numbers = sorted({int(number) for number in cited})
    if genes is not None:
        every = list(reference.var_names)
        asked = every if isinstance(genes, str) and genes == "all" else genes
        genes = names_among(asked, every, "genes", ": the reference has no", KeyError)
    require_choice(library_size, LIBRARY_SIZE, "library_size")
    given = (*DEFAULT_METRICS, *OF_SECTIONS) if metrics is None else metrics
    asked = list(dict.fromkeys(["pearson", *as_names(given)]))
    require_known(asked, (*METRICS, *SECTION_METRICS), "metrics")
    if label_key != LABEL or (metrics is not None and needing(asked, "labels")):
        require_key(label_key, reference.obs, "reference.obs")
    gene_sets = gene_sets_of(gmt, asked, list(reference.var_names))
    bank = standardized(bank)
    bank = replace(bank, values=as_csr(bank.values))
    folds = folds_of(bank, split, group_key, margin_um)
    by_donor = BLOCKS if split == "block" else None
    if by_donor and n_donors is not None:
        raise ValueError("`n_donors` leaves donors out, and `split='block'` holds out parts of each. Give one of them.")
    _check_sizes(bank, folds, {"n_neighbors": n_neighbors, "n_candidates": n_candidates})
    values_of = _values_by_unit(reference, bank, library_size)

    show, seed = bool(settings.progress if progress is None else progress), as_seed(rng)
    counts = None if library_size == "raw" else counts_for_ceiling(reference, bank)
    parts: list[pd.DataFrame] = []
    rounds = [(fold, smaller) for fold in folds for smaller in fewer_donors(bank, fold, n_donors, seed)]
    within = [None] * len(rounds) if by_donor else inner_group_keys(bank, [fold for _, fold in rounds], group_key)
    seconds = len(values_of) * sum(expected_seconds(methods, len(fold.training)) for _, fold in rounds)
    say_if_long(seconds, f"Fitting {listing(methods)} {len(rounds)} times each", "`methods=['knn']` takes seconds.")
    with in_parts(len(rounds) * len(values_of) * len(methods), show=show) as begin:
        for i, ((whole, fold), inner) in enumerate(zip(rounds, within, strict=True)):
            chosen, summarised = choose_genes(bank, whole, n_genes, genes)
            known = bank.measured[np.unique(bank.panels[fold.training])].any(axis=0)
            chosen = [gene for gene in chosen if gene in bank.genes[known]]
            sections = held_sections(bank, fold, chosen, summarised, by_donor=by_donor)
            frames = [about_the_data(bank, section, counts=counts, rng=seed) for section in sections]
            # What fits of the same rows have in common is made once.
            shared: dict[str, Any] = {}
            for unit, values in values_of.items():
                part = training_part(bank, fold.training, values)
                sizes = neighbor_counts(len(part), n_neighbors, n_candidates)
                for method in methods:
                    begin(f"{fold.kind} held out {i + 1} of {len(rounds)} ({fold.name}), {method}")
                    run = Run(options[method], seed, train_on(device), amp, **sizes)
                    fitted = fit_tissue(part, method, run, group_key=inner, shared=shared, say=logger.debug)
                    for section in sections:
                        frame = score_section(
                            bank, fitted, section, values, numbers, label_key, seed, metrics=asked, gene_sets=gene_sets
                        )
                        frames.append(frame.assign(method=method, unit=unit))
            parts += [frame.assign(n_donors=fold.n_donors) for frame in frames]
    scores = pd.concat(parts, ignore_index=True)[COLUMNS if n_donors is None else [*COLUMNS, "n_donors"]]
    if inplace and n_donors is None and library_size != "raw":
        _write(reference, scores, methods, split)
    return scores


def _check_sizes(bank: Bank, folds: list[Fold], asked: Mapping[str, int | None]) -> None:
    smallest = min(folds, key=lambda fold: len(fold.training))
    for name, number in asked.items():
        if number is not None and number > len(smallest.training):
            raise ValueError(
                f"`{name}` is {number}, but without {smallest.name!r} only {len(smallest.training)} rows are left. "
                f"Ask for {len(smallest.training)} at most."
            )
    sizes = bank.obs[_keys.SAMPLE].astype(str).value_counts()
    if sizes.max() < FEWEST_SPOTS:
        raise ValueError(f"No section has {FEWEST_SPOTS} spots (the largest has {sizes.max()}): nothing can be scored.")


def _values_by_unit(reference: AnnData, bank: Bank, library_size: str) -> dict[str, Any]:
    """The profiles to predict, by their unit."""
    out = {}
    if library_size != "raw":
        out[bank.header.unit] = bank.values
    if library_size != "normalized":
        if _keys.COUNTS not in reference.layers:
            raise ValueError(
                f"`library_size` is {library_size!r}, but the reference has no `layers[{_keys.COUNTS!r}]`: it was "
                "built from values on a log scale. Build it from counts, or leave 'normalized'."
            )
        out[RAW_UNIT] = as_csr(reference.layers[_keys.COUNTS]).log1p()
    return out


def _write(reference: AnnData, scores: pd.DataFrame, methods: list[str], split: str) -> None:
    scores = scores[scores["unit"] != RAW_UNIT]
    owned = reference.uns[_keys.ATTRS]
    if _keys.CALIBRATION in owned:
        logger.info(
            "`rg.tl.calibrate` has assessed every gene for the very fit: `.var` of the reference stays as it is."
        )
        return
    fitted = owned.get(_keys.FIT, {}).get("method")
    method = fitted if fitted in methods else next((name for name in methods if METHODS[name].cites), methods[0])
    write_gene_trust(reference, scores, method, split=split)
