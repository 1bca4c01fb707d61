"""`rg.tl.build_reference`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._elements import require_sdata
from ragst_sd._gene_names import common_names, normalization
from ragst_sd._query import log_unknown_origin
from ragst_sd._reference import new_reference
from ragst_sd._several import named_sections
from ragst_sd._validate import as_names, listing, names_among, require_choice, require_known
from ragst_sd._workers import spread_over_workers
from ragst_sd.reference.duplicates import Fingerprint, fingerprint
from ragst_sd.reference.genes import sum_duplicates, take_genes
from ragst_sd.reference.normalize import UNITS, log_normalize, size_factors
from ragst_sd.reference.panels import PANEL, assign_panels, measured_mask, shared_genes
from ragst_sd.reference.schema import COMPARABLE, differing_fields, embed_alike, knows_tiles
from ragst_sd.reference.symbols import SPECIES
from ragst_sd.retrieval.projection import standardize as standardize_embedding
from ragst_sd.tl import _sections

logger = logging.getLogger(__name__)


def build_reference(
    sdatas: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData | Callable[[], SpatialData]],
    *,
    use_rep: str,
    table_key: str = "table",
    donor_key: str = "donor",
    layer: str | None = None,
    unit: str = "counts",
    genes: str | Sequence[str] | None = None,
    harmonize: bool = False,
    orthologues_to: str | None = None,
    obs: Sequence[str] = (),
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    standardize: bool = True,
    thumbnails: bool = True,
    on_duplicate: str = "error",
) -> AnnData:
    r"""Merge measured sections into one reference, one row per spot.

    Expression becomes log1p of counts per 10,000,

    .. math:: y_{ig} = \log\Big(1 + 10^4 \frac{c_{ig}}{\sum_{h \in S} c_{ih}}\Big)

    with counts :math:`c_{ig}` of gene g in spot i, and size factors from the genes :math:`S` that all panels share. The
    reference records what each panel measured, so that a gene that was not measured never counts as zero.

    Parameters
    ----------
    sdatas
        A section, a list of sections, or a mapping from sample name to section. Members of a list are named by
        `obs["sample"]`, else `sample1`, `sample2`, ... Of many sections, a mapping may hold functions without
        arguments that return each: they are called one after the other, and never is more than one section open; with
        an active `dask.distributed` client on its workers, several at a time.
    use_rep
        Embedding in `.obsm` of the table: made by :func:`ragst_sd.pp.embed_tiles` or taken by
        :func:`ragst_sd.pp.use_features`, or any other (array, sparse matrix or data frame; spots without features are
        NaN throughout). One without a header is of unknown origin: it is compared by name and width only.
    table_key
        Table with expression and embedding.
    donor_key
        Column of `.obs` with the donor; spots of the same donor are never used to predict each other.
    layer
        Layer with counts; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` for values that are log1p of counts per 10,000 already.
    genes
        Keep these genes only; all if left out. Size factors use all genes either way.
    harmonize
        Name genes by the current symbols of their species, as :func:`ragst_sd.pp.harmonize_genes` does, by Ensembl ids
        where the sections have them. Counts of several names of one gene are added up; names that are not found stay
        as they are. Sections that were counted against annotations of different years then share more genes.
    orthologues_to
        `"human"` or `"mouse"`: also bring sections of the other species to this one, by one-to-one orthologues, and
        drop their other genes. Without it, sections of two species are refused.
    obs
        Further columns of `.obs` to keep, for `where=` and for reading. `tissue` and `technology` may vary within a
        section this way; `sources` overrides them.
    sources
        For each sample a mapping with `tissue`, `technology`, `license`, `citation`, and `panel` if it has a name.
        What is not given is taken from the section, else `"unknown"`. Sections of one panel measured the union of the
        genes that they list. Without a name, whole transcriptomes (10,000 genes and more) counted against the same
        annotation are one panel, and targeted sections that list the same genes.
    standardize
        Compare embeddings after removing each section's own mean and scale, which takes out stain and scanner.
    thumbnails
        Keep a 32 px picture of every spot, for :func:`ragst_sd.pl.retrieval`; of embeddings of unknown origin none is.
    on_duplicate
        What happens if the same tissue is found under two donors' names: `"error"`, or `"warn"` to build all the same.
        See Notes.

    Returns
    -------
    AnnData with

    `.X`
        log1p of counts per 10,000, CSR float32; `.layers["counts"]` the counts, where given.
    `.obsm[use_rep]`
        Raw embeddings; `.obsm["thumbnail"]` (n, 64, 64, 3) uint8, where kept.
    `.obs`
        donor, sample, tissue, technology, x_um, y_um (on the section's image), panel, and `obs`. Names are
        `<sample>:<spot>`.
    `.varm["measured"]`
        (genes, panels) which panel measured what; `.var["n_measured"]` the number of rows.
    `.uns["ragst"]`
        Header: encoder, statistics and species of the sections, sources, normalisation (`naming` says how genes are
        named), panels, content hash.

    Raises
    ------
    KeyError
        If a table, embedding or column is missing.
    TypeError
        If a section is no SpatialData.
    ValueError
        If embeddings were made differently, counts are not counts, genes cannot be matched by name, sections are of two
        species, panels share fewer than 200 genes, or the same tissue is in under two donors' names.

    Notes
    -----
    Memory: beside the reference itself, one section and some 2 kB per spot; with `genes`, the counts of all genes
    until the last section is read.

    The same section published twice, under two donors' names, is a leak: one predicts the other. It is found by
    identical pixels where spots lie on the same places (donors may share a slide); by the noise of the counts (at
    least 20 % of the spots are twice as near to a spot of the other section as to any of their own, over 64 random
    directions of the genes that all panels share), however the picture was cropped or scaled; and by the embeddings
    (at least 30 % of the spots, 0.8 times as near, and the matched spots lie in the same pattern). Spots that were
    placed anew on another copy of the picture, with other counts, are not found.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> sorted(reference.obs["donor"].unique())
    ['donor1', 'donor2']
    """
    require_choice(on_duplicate, _sections.ON_DUPLICATE, "on_duplicate")
    require_choice(unit, UNITS, "unit")
    if orthologues_to is not None:
        require_choice(orthologues_to, SPECIES, "orthologues_to")
    named = named_sections(sdatas, "sdatas", table_key)
    for member in named.values():
        if not callable(member):
            require_sdata(member)
    obs = as_names(obs)
    taken = [name for name in obs if name in (_keys.DONOR, _keys.SAMPLE, _keys.PANEL, _keys.X_UM, _keys.Y_UM)]
    if taken:
        raise ValueError(
            f"`obs` names {listing(taken)}, which the reference fills itself. Rename your column to keep it."
        )
    require_known(sources or {}, named, "sources", " names samples")
    for sample, given in (sources or {}).items():
        require_known(given, _sections.SOURCE_FIELDS, f"sources[{sample!r}]", " has unknown fields")
    sections: list[_sections.Section] = []
    wanted = _sections.Wanted(use_rep, table_key, donor_key, layer, unit, obs, thumbnails)
    tasks = ((sample, sdata, (sources or {}).get(sample, {})) for sample, sdata in named.items())
    # Objects in memory stay here; functions are called where the files are read.
    elsewhere = all(callable(sdata) for sdata in named.values())
    read = (
        spread_over_workers(_sections.read_section, tasks, wanted)
        if elsewhere
        else (_sections.read_section(wanted, t) for t in tasks)
    )
    for section in read:
        if sections:
            _check_same_embedding(sections[0], section)
        sections.append(section)
    log_unknown_origin(sections[0].header)
    thumbnails = thumbnails and knows_tiles(sections[0].header)

    naming = common_names(sections, harmonize=harmonize, orthologues_to=orthologues_to, unit=unit)
    totals = {}
    for section in sections:
        names = section.names[naming]
        section.expression, merged = sum_duplicates(section.expression, names)
        section.names = {naming: merged}
        if len(merged) < len(names):
            n_repeated = len(names) - len(merged)
            logger.info("%s: counts of %d duplicated gene names are added up.", section.sample, n_repeated)
        of_genes = np.asarray(section.expression.sum(axis=0)).ravel().tolist()
        totals[section.sample] = dict(zip(merged, of_genes, strict=True))
    panel_of, panels = assign_panels(totals, {section.sample: section.source[PANEL] for section in sections})
    if len(panels) > 1:
        logger.info("Sections by panel: %s.", {p: [s for s, part in panel_of.items() if part == p] for p in panels})
    shared = shared_genes(panels)
    if unit != "counts" and len(panels) > 1:
        raise ValueError(
            f"Sections of {len(panels)} panels ({listing(panels)}) on a log scale: each was scaled by its own genes, "
            "so their values do not mean the same. Give counts with `layer=`, or build one reference per panel."
        )
    chosen = sorted(set.union(*panels.values()))
    chosen = chosen if genes is None else names_among(genes, chosen, "genes", ": no section measured")
    normalized = [_normalize(section, section.names[naming], shared, chosen, unit) for section in sections]
    factors = [part for part, _ in normalized]
    _sections.report_duplicates([recognised for _, recognised in normalized], on_duplicate)
    del normalized
    obs_of_rows = _sections.row_annotations(sections, panel_of)
    embedding = stack_rows(section.take("embedding") for section in sections)
    pictures = stack_rows(section.take("thumbnails") for section in sections) if thumbnails else None
    given = stack_matrices([section.take("expression") for section in sections])
    header = {
        "use_rep": use_rep,
        "standardize": bool(standardize),
        "donor_key": donor_key,
        "obs": np.asarray(obs, dtype=str),
        "encoder": {name: sections[0].header[name] for name in (*COMPARABLE, "precision")},
        "sections": _sections.section_statistics(sections),
        "sources": _sections.source_table(sections),
        "normalization": normalization(unit, naming, genes=shared),
        "panels": np.asarray(list(panels), dtype=str),
    }
    reference = new_reference(
        header,
        chosen,
        values=log_normalize(given, np.concatenate(factors)) if unit == "counts" else given,
        counts=given if unit == "counts" else None,
        obs=obs_of_rows,
        embedding=embedding,
        thumbnails=pictures,
        measured=measured_mask(chosen, panels),
    )
    n_donors = reference.obs[_keys.DONOR].nunique()
    logger.info(
        "Reference of %d spots, %d sections, %d donors, %d genes (%d panels, %d shared genes).",
        reference.n_obs,
        len(sections),
        n_donors,
        reference.n_vars,
        len(panels),
        len(shared),
    )
    return reference


def _check_same_embedding(first: _sections.Section, section: _sections.Section) -> None:
    clauses = differing_fields(first.header, section.header)
    if first.embedding.shape[1] != section.embedding.shape[1]:
        clauses.append(f"width: {first.embedding.shape[1]} against {section.embedding.shape[1]}")
    if clauses:
        raise ValueError(
            f"Embeddings of {first.sample!r} and {section.sample!r} were made differently "
            f"({'; '.join(clauses)}). {embed_alike(first.header, section.header)}"
        )


def _normalize(
    section: _sections.Section, names: list[str], shared: list[str], chosen: list[str], unit: str
) -> tuple[np.ndarray, Fingerprint]:
    """Limit a section to rows with a size factor and to the genes kept.

    Its size factors, and what it is recognised by.
    """
    factors = np.ones(len(section.obs))
    if unit == "counts":
        factors = size_factors(section.expression, names, shared)
        if not (factors > 0).all():
            logger.info(
                "%s: %d spots have no counts in the %d genes that all panels share, and are left out.",
                section.sample,
                int((factors == 0).sum()),
                len(shared),
            )
            section.keep_rows(factors > 0)
            factors = factors[factors > 0]
    header = section.header
    recognised = fingerprint(
        section.sample,
        donors=section.obs[_keys.DONOR],
        image_hash=str(header.get("image_hash", "")),
        expression=log_normalize(section.expression, factors) if unit == "counts" else section.expression,
        genes=names,
        shared=shared,
        embedding=standardize_embedding(section.embedding, header["section_mean"], header["section_std"]),
        xy=section.xy,
    )
    section.expression = take_genes(section.expression, names, chosen)
    section.expression.sort_indices()
    return factors, recognised


def stack_rows(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Concatenate one array or more along their rows.

    The result grows with every part, so that an iterable which gives its parts away needs the memory of the result and
    of the parts still to come, not of twice the result.
    """
    parts = iter(parts)
    out = np.array(next(parts), order="C")
    for part in parts:
        n = len(out)
        # Nobody else has seen `out` yet, which is what the check would be about.
        out.resize((n + len(part), *part.shape[1:]), refcheck=False)
        out[n:] = part
    return out


def stack_matrices(parts: list[sp.csr_matrix]) -> sp.csr_matrix:
    """Stack canonical CSR matrices with the same columns; `parts` is emptied on the way."""
    width = parts[0].shape[1]
    lengths = [np.diff(part.indptr) for part in parts]
    values, columns = [part.data for part in parts], [part.indices for part in parts]
    parts.clear()
    total = int(sum(int(length.sum()) for length in lengths))
    kind = np.int32 if max(total, width) < np.iinfo(np.int32).max else np.int64
    data = stack_rows(_given_away(values))
    indices = stack_rows(_given_away(columns)).astype(kind, copy=False)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(kind)
    return sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, width))


def _given_away(parts: list[np.ndarray]) -> Iterable[np.ndarray]:
    """The arrays of a list, which loses each before the next one is asked for."""
    parts.reverse()
    while parts:
        yield parts.pop()
