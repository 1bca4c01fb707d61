"""`rg.tl.build_reference`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import as_names
from ragst_sd._reference import reference_hash
from ragst_sd._validate import hint, listing
from ragst_sd.reference.genes import common_naming, sum_duplicates, take_genes
from ragst_sd.reference.normalize import TARGET_SUM, log_normalize, size_factors
from ragst_sd.reference.panels import PANEL, assign_panels, measured_mask, shared_genes
from ragst_sd.reference.schema import COMPARABLE, differing_fields
from ragst_sd.tl._sections import SOURCE_FIELDS, Section, named_sections, read_section
from ragst_sd.tl._thumbnails import thumbnails as read_thumbnails

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def build_reference(
    sdatas: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    use_rep: str,
    table_key: str = "table",
    donor_key: str = "donor",
    layer: str | None = None,
    unit: str = "counts",
    genes: Sequence[str] | None = None,
    obs: Sequence[str] = (),
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    standardize: bool = True,
    thumbnails: bool = True,
) -> AnnData:
    """Merge measured sections into one reference, one row per spot.

    Expression becomes log1p of counts per 10,000, with size factors from the genes that all panels share. What each
    panel measured is kept, so that a gene that was not measured is never taken for zero.

    Parameters
    ----------
    sdatas
        A section, a list of sections, or a mapping from sample name to section. Members of a list are named by
        `obs["sample"]`, else `sample1`, `sample2`, ...
    use_rep
        Embedding in `.obsm` of the table, made by :func:`ragst_sd.pp.embed_tiles`.
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
    obs
        Further columns of `.obs` to keep, for `where=` and for reading. `tissue` and `technology` may vary within a
        section this way; `sources` overrides them.
    sources
        For each sample a mapping with `tissue`, `technology`, `license`, `citation`, and optionally `panel`. What is
        not given is taken from the section, else `"unknown"`. Sections of one panel measured the union of the genes
        that they list. Without a name, whole transcriptomes (10,000 genes and more) counted against the same
        annotation are one panel, and targeted sections that list the same genes.
    standardize
        Compare embeddings after removing each section's own mean and scale, which takes out stain and scanner.
    thumbnails
        Keep a 32 px picture of every spot, for :func:`ragst_sd.pl.retrieval`.

    Returns
    -------
    AnnData with

    `.X`
        log1p of counts per 10,000, CSR float32; `.layers["counts"]` the counts, where given.
    `.obsm[use_rep]`
        Raw embeddings; `.obsm["thumbnail"]` (n, 32, 32, 3) uint8.
    `.obs`
        donor, sample, tissue, technology, x_um, y_um (on the section's image), panel, and `obs`. Names are
        `<sample>:<spot>`.
    `.varm["measured"]`
        (genes, panels) which panel measured what; `.var["n_measured"]` the number of rows.
    `.uns["ragst"]`
        Header: encoder, statistics of the sections, sources, normalisation, panels, content hash.

    Raises
    ------
    KeyError
        If a table, embedding or column is missing.
    ValueError
        If embeddings were made differently, counts are not counts, genes cannot be matched by name, or panels share
        fewer than 200 genes.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> sorted(reference.obs["donor"].unique())
    ['donor1', 'donor2']
    """
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    named = named_sections(sdatas, table_key)
    obs = as_names(obs)
    _check_columns(obs)
    unknown = sorted(set(sources or {}) - set(named))
    if unknown:
        msg = f"`sources` names samples that are not in `sdatas`: {listing(unknown)}. Available: {listing(named)}."
        raise ValueError(msg)
    sections = [
        read_section(
            sample, sdata, use_rep=use_rep, table_key=table_key, donor_key=donor_key, layer=layer, unit=unit, obs=obs,
            source=_source(sources, sample),
        )
        for sample, sdata in named.items()
    ]  # fmt: skip
    _check_same_embedding(sections)
    _warn_same_image(sections)

    naming = common_naming({section.sample: section.names for section in sections})
    merged = {section.sample: sum_duplicates(section.expression, section.names[naming]) for section in sections}
    for section in sections:
        n_merged = len(section.names[naming]) - len(merged[section.sample][1])
        if n_merged:
            logger.info("%s: counts of %d duplicated gene names are added up.", section.sample, n_merged)
    panel_of, panels = assign_panels(
        {
            sample: dict(zip(names, np.asarray(matrix.sum(axis=0)).ravel().tolist(), strict=True))
            for sample, (matrix, names) in merged.items()
        },
        {section.sample: section.source[PANEL] for section in sections},
    )
    if len(panels) > 1:
        logger.info("Sections by panel: %s.", {p: [s for s, own in panel_of.items() if own == p] for p in panels})
    shared = shared_genes(panels)
    if unit != "counts" and len(panels) > 1:
        msg = (
            f"Sections of {len(panels)} panels ({listing(panels)}) on a log scale: each was scaled by its own genes, so "
            "their values do not mean the same. Give counts with `layer=`, or build one reference per panel."
        )
        raise ValueError(msg)
    all_genes = sorted(set.union(*panels.values()))
    kept = _select(all_genes, genes)

    counts, normalized = [], []
    for section in sections:
        matrix, names = merged[section.sample]
        if unit == "counts":
            factors = size_factors(matrix, names, shared)
            if not (factors > 0).all():
                logger.info(
                    "%s: %d spots have no counts in the %d genes that all panels share, and are left out.",
                    section.sample, int((factors == 0).sum()), len(shared),
                )  # fmt: skip
                section.keep_rows(factors > 0)
                matrix, factors = matrix[factors > 0], factors[factors > 0]
            normalized.append(take_genes(log_normalize(matrix, factors), names, kept))
            counts.append(take_genes(matrix, names, kept))
        else:
            normalized.append(take_genes(matrix, names, kept))
    frame = _row_annotations(sections, panel_of)
    measured = measured_mask(kept, panels)
    reference = ad.AnnData(
        sp.vstack(normalized, format="csr"),
        obs=frame,
        var=pd.DataFrame(index=pd.Index(kept, name="gene")),
        layers={_keys.COUNTS: sp.vstack(counts, format="csr")} if counts else None,
        obsm={use_rep: np.concatenate([section.embedding for section in sections])},
        varm={_keys.MEASURED: measured},
    )
    if thumbnails:
        reference.obsm[_keys.THUMBNAIL] = np.concatenate([read_thumbnails(section) for section in sections])
    per_panel = frame[_keys.PANEL].astype(str).value_counts()
    reference.var[_keys.N_MEASURED] = measured @ np.array([int(per_panel.get(panel, 0)) for panel in panels])
    reference.uns[_keys.ATTRS] = {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": "histology",
        "use_rep": use_rep,
        "standardize": bool(standardize),
        "donor_key": donor_key,
        "obs": np.asarray(obs, dtype=str),
        "encoder": _encoder(sections[0].header),
        "sections": _statistics(sections),
        "sources": _sources(sections),
        "normalization": {
            "unit": _keys.UNIT,
            "target_sum": TARGET_SUM,
            "given": unit,
            "naming": naming,
            "size_factor_genes": np.asarray(shared, dtype=str),
        },
        "panels": np.asarray(list(panels), dtype=str),
        "content_hash": "",
    }
    reference.uns[_keys.ATTRS]["content_hash"] = reference_hash(reference)
    n_donors = frame[_keys.DONOR].nunique()
    logger.info(
        "Reference of %d spots, %d sections, %d donors, %d genes (%d panels, %d shared genes).",
        reference.n_obs, len(sections), n_donors, reference.n_vars, len(panels), len(shared),
    )  # fmt: skip
    return reference


def _check_columns(obs: Sequence[str]) -> None:
    """Refuse columns whose names the reference uses for something else."""
    taken = [name for name in obs if name in (_keys.DONOR, _keys.SAMPLE, _keys.PANEL, _keys.X_UM, _keys.Y_UM)]
    if taken:
        msg = f"`obs` names {listing(taken)}, which the reference fills itself. Rename your column to keep it."
        raise ValueError(msg)


def _source(sources: Mapping[str, Mapping[str, Any]] | None, sample: str) -> Mapping[str, Any]:
    given = (sources or {}).get(sample, {})
    unknown = sorted(set(given) - set(SOURCE_FIELDS))
    if unknown:
        msg = f"`sources[{sample!r}]` has unknown fields {listing(unknown)}; it takes {listing(SOURCE_FIELDS)}."
        raise ValueError(msg)
    return given


def _check_same_embedding(sections: list[Section]) -> None:
    first = sections[0]
    for section in sections[1:]:
        clauses = differing_fields(first.header, section.header)
        if first.embedding.shape[1] != section.embedding.shape[1]:
            clauses.append(f"width: {first.embedding.shape[1]} against {section.embedding.shape[1]}")
        if clauses:
            msg = (
                f"Embeddings of {first.sample!r} and {section.sample!r} were made differently "
                f"({'; '.join(clauses)}). Embed all sections with the same call of `rg.pp.embed_tiles`."
            )
            raise ValueError(msg)


def _warn_same_image(sections: list[Section]) -> None:
    seen: dict[str, Section] = {}
    for section in sections:
        other = seen.setdefault(str(section.header.get("image_hash")), section)
        if other is not section and set(other.obs[_keys.DONOR]).isdisjoint(section.obs[_keys.DONOR]):
            logger.warning(
                "Sections %r and %r have identical images but different donors (%s, %s): one of the names is wrong, or "
                "the same tissue is in twice.",
                other.sample, section.sample, *(sorted(set(one.obs[_keys.DONOR])) for one in (other, section)),
            )  # fmt: skip


def _select(all_genes: list[str], genes: Sequence[str] | None) -> list[str]:
    if genes is None:
        return all_genes
    wanted = as_names(genes)
    available = set(all_genes)
    missing = [gene for gene in wanted if gene not in available]
    if missing or not wanted:
        close = hint(missing[0], all_genes) if missing else ""
        msg = f"`genes`: no section measured {listing(missing) if missing else 'an empty list'}.{close}"
        raise ValueError(msg)
    return wanted


def _row_annotations(sections: list[Section], panel_of: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for section in sections:
        mpp = float(section.header.get("image_mpp", np.nan))
        frame = section.obs.copy()
        frame.index = pd.Index([f"{section.sample}:{name}" for name in frame.index])
        frame[_keys.SAMPLE] = section.sample
        for name in (_keys.TISSUE, _keys.TECHNOLOGY):
            if name not in frame or section.source[name]:
                frame[name] = str(section.source[name] or _keys.UNKNOWN)
        frame[_keys.X_UM], frame[_keys.Y_UM] = (section.xy * mpp).T
        frame[_keys.PANEL] = panel_of[section.sample]
        frames.append(frame)
    joined = pd.concat(frames)
    if joined.index.has_duplicates:
        msg = (
            f"Spot names are not unique within a section: {listing(joined.index[joined.index.duplicated()].unique())}."
        )
        raise ValueError(msg)
    for name in (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL):
        joined[name] = pd.Categorical(joined[name].astype(str))
    return joined


def _encoder(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: header[name] for name in (*COMPARABLE, "precision")}


def _statistics(sections: list[Section]) -> dict[str, np.ndarray]:
    def column(name: str, missing: Any) -> np.ndarray:
        return np.asarray([section.header.get(name, missing) for section in sections])

    return {
        "sample": np.asarray([section.sample for section in sections], dtype=str),
        "mean": column("section_mean", None),
        "std": column("section_std", None),
        "image_mpp": column("image_mpp", np.nan).astype(float),
        "upsampling": column("upsampling", 1.0).astype(float),
        "image_hash": column("image_hash", "").astype(str),
        "precision": column("precision", "float32").astype(str),
    }


def _sources(sections: list[Section]) -> pd.DataFrame:
    import pandas as pd

    fields = [name for name in SOURCE_FIELDS if name != PANEL]
    rows = [[str(section.source[name] or _keys.UNKNOWN) for name in fields] for section in sections]
    return pd.DataFrame(
        rows, columns=fields, index=pd.Index([section.sample for section in sections], name=_keys.SAMPLE)
    )
