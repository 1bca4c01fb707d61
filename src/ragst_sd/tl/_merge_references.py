"""`rg.tl.merge_references`."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._patches import THUMBNAIL_PX
from ragst_sd._reference import LABELS, new_reference, read_header, require_in_memory
from ragst_sd._validate import listing, require_choice, require_some, require_unique
from ragst_sd.reference.duplicates import Fingerprint, fingerprint
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.normalize import as_csr, log_normalize, size_factors
from ragst_sd.reference.panels import Part, Plan, plan_merge
from ragst_sd.retrieval.projection import standardize
from ragst_sd.tl._mergeable import carry_cell_types, check_alike, check_samples
from ragst_sd.tl._sections import ON_DUPLICATE, report_duplicates

logger = logging.getLogger(__name__)

_COLUMNS = (*LABELS[:-1], _keys.X_UM, _keys.Y_UM, LABELS[-1])


def merge_references(
    references: AnnData | Sequence[AnnData] | Mapping[str, AnnData], *, on_duplicate: str = "error"
) -> AnnData:
    """Merge references without building them again.

    The result is what :func:`ragst_sd.tl.build_reference` would give for all their sections at once, with the same
    content hash. If the merged panels share other genes than the panels of a single reference, its size factors change
    and its rows are normalised again from their counts.

    To append, merge the old reference with one that holds the new sections. To remove a source or to keep one organ,
    merge a subset: `merge_references(reference[reference.obs["tissue"] == "colon"])` drops everything that only the
    other rows needed (sections, sources, panels, genes) and normalises the rest with the genes that its own panels
    share. The plain subset `reference[mask].copy()` is also a valid reference; it keeps all of these.

    Parameters
    ----------
    references
        One reference, a list of them, or a mapping from a name, used in messages, to each.
    on_duplicate
        What happens if the same tissue is found under two donors' names, see :func:`ragst_sd.tl.build_reference`:
        `"error"`, or `"warn"`.

    Returns
    -------
    A new, unfitted reference with the fields of :func:`ragst_sd.tl.build_reference`. `.layers["counts"]` is there if
    all have it, and so is `.obsm["thumbnail"]`. Cell types (see :func:`ragst_sd.tl.add_cell_types`) are kept if all
    have the same signatures and platform effects, as subsets of one reference have, and no row is normalised anew;
    else a warning names those that differ. Fits, calibrations and other fields are left out.

    Raises
    ------
    TypeError
        If a member is not an AnnData.
    ValueError
        If the references have another encoder, tile geometry, standardisation or naming of genes (one harmonised, one
        not); if they are of two species; if a sample is in two of
        them; if columns of `obs` are not in all; if they share fewer than 200 genes; if values have to be normalised
        anew and there are no counts; or if the same tissue is in under two donors' names.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> first, second = (rg.tl.build_reference({name: sdata}, use_rep="X_texture") for name, sdata in sections.items())
    >>> merged = rg.tl.merge_references([first, second])
    >>> merged.uns["ragst"]["content_hash"] == rg.tl.build_reference(sections, use_rep="X_texture").uns["ragst"][
    ...     "content_hash"
    ... ]
    True
    """
    require_choice(on_duplicate, ON_DUPLICATE, "on_duplicate")
    named = _named(references)
    headers = {name: _pruned_header(name, reference) for name, reference in named.items()}
    check_alike(named, headers)
    check_samples(headers)
    plan = plan_merge({name: _part(reference, headers[name]) for name, reference in named.items()})
    logged = next(iter(headers.values()))["normalization"]["given"] != "counts"
    if logged and len(plan.panels) > 1:
        raise ValueError(
            f"The references hold {len(plan.panels)} panels ({listing(plan.panels)}) on a log scale: each was scaled "
            "by its own genes, so their values do not mean the same. Build them from counts, or keep one reference "
            "per panel."
        )
    parts = [
        _rows(name, reference, headers[name], plan, panel_of)
        for (name, reference), panel_of in zip(named.items(), plan.panel_of, strict=True)
    ]
    merged = _assemble(parts, list(headers.values()), plan)
    carry_cell_types(merged, named, [part.obs_names for part in parts], plan)
    _log_common_donors(named)
    report_duplicates(list(_fingerprints(merged)), on_duplicate)
    return merged


def _named(references: Any) -> dict[str, AnnData]:
    if isinstance(references, Mapping):
        named = {str(name): reference for name, reference in references.items()}
    else:
        members = list(references) if isinstance(references, Sequence) else [references]
        named = {f"references[{i}]": reference for i, reference in enumerate(members)}
    require_some(named, "references", "Name at least one reference.")
    return named


def _pruned_header(name: str, reference: AnnData) -> dict[str, Any]:
    """The header with the sections and sources of its rows only."""
    header = read_header(reference, "histology")
    require_in_memory(reference.X, f"{name} is")
    if not reference.n_obs:
        raise ValueError(f"{name} has no rows. Leave it out.")
    known = {str(sample) for sample in header["sections"]["sample"]}
    unknown = sorted(set(labels(reference.obs[_keys.SAMPLE])) - known)
    if unknown:
        raise ValueError(f"{name}: sections {listing(unknown)} have no statistics in its header. Build it again.")
    return _of_rows(header, reference.obs)


def _of_rows(header: Mapping[str, Any], obs: pd.DataFrame) -> dict[str, Any]:
    """A header with the sections and sources of some rows only."""
    # Not `astype`: as read from disk, names do not cast.
    samples = np.array([str(sample) for sample in header["sections"]["sample"]])
    has_rows = np.isin(samples, labels(obs[_keys.SAMPLE]).astype(str))
    sections = {name: np.asarray(column)[has_rows] for name, column in header["sections"].items()}
    return {**header, "sections": sections, "sources": header["sources"].loc[samples[has_rows]]}


def _part(reference: AnnData, header: dict[str, Any]) -> Part:
    panels = [str(panel) for panel in header["panels"]]
    values, of_rows = reference.layers.get(_keys.COUNTS, reference.X), labels(reference.obs[_keys.PANEL])
    rows = [np.flatnonzero(of_rows == panel) for panel in panels]
    return Part(
        genes=[str(gene) for gene in reference.var_names],
        panels=panels,
        measured=np.asarray(reference.varm[_keys.MEASURED]),
        totals=np.stack([np.asarray(values[of_panel].sum(axis=0)).ravel() for of_panel in rows]),
        n_rows=[len(of_panel) for of_panel in rows],
        size_factor_genes=[str(gene) for gene in header["normalization"]["size_factor_genes"]],
    )


def _rows(name: str, reference: AnnData, header: dict[str, Any], plan: Plan, panel_of: Mapping[str, str]) -> AnnData:
    """Rows of one reference, normalised anew where the panels of all share other genes than its own."""
    genes, summed = list(reference.var_names), set(map(str, header["normalization"]["size_factor_genes"]))
    counts = as_csr(reference.layers[_keys.COUNTS]) if _keys.COUNTS in reference.layers else None
    keep = np.ones(reference.n_obs, dtype=bool)
    if summed == set(plan.size_factor_genes):
        values = as_csr(reference.X)
    elif counts is None:
        raise ValueError(
            f"{name} was normalised by {len(summed)} genes, the merged reference has to be by "
            f"{len(plan.size_factor_genes)}, and it has no `layers['counts']` to start from. Build it from counts."
        )
    else:
        factors = size_factors(counts, genes, plan.size_factor_genes)
        keep = factors > 0
        logger.info(
            "%s is normalised anew by the %d genes that all panels share (before: %d).",
            name,
            len(plan.size_factor_genes),
            len(summed),
        )
        if not keep.all():
            logger.info("%s: %d spots have no counts in these genes and are left out.", name, int((~keep).sum()))
        counts = counts[keep]
        values = log_normalize(counts, factors[keep])
    extra = [column for column in map(str, header["obs"]) if column not in _COLUMNS]
    obs = reference.obs.loc[keep, [*_COLUMNS, *extra]].astype(dict.fromkeys(LABELS, str))
    rows = ad.AnnData(
        take_genes(values, genes, plan.genes),
        obs=obs.assign(**{_keys.PANEL: obs[_keys.PANEL].map(panel_of)}),
        var=pd.DataFrame(index=plan.genes),
        layers=None if counts is None else {_keys.COUNTS: take_genes(counts, genes, plan.genes)},
        obsm={str(header["use_rep"]): np.asarray(reference.obsm[str(header["use_rep"])])[keep]},
    )
    if _keys.THUMBNAIL in reference.obsm:
        pictures = np.asarray(reference.obsm[_keys.THUMBNAIL])[keep]
        # Those of earlier releases have half the edge: each of their pixels is repeated.
        enlarged = max(1, THUMBNAIL_PX // pictures.shape[1])
        rows.obsm[_keys.THUMBNAIL] = pictures.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
    return rows


def _assemble(parts: list[AnnData], headers: list[dict[str, Any]], plan: Plan) -> AnnData:
    names = itertools.chain.from_iterable(part.obs_names for part in parts)
    require_unique(names, "names of rows of the references", "Name samples or spots otherwise.")
    # What some of them lack is left out.
    rows = ad.concat(parts, join="inner")
    obs = rows.obs.astype(dict.fromkeys(LABELS, "category"))
    if _keys.THUMBNAIL not in rows.obsm and any(_keys.THUMBNAIL in part.obsm for part in parts):
        logger.warning("Not all references have `obsm['thumbnail']`: the merged one has none.")
    first, donor_keys = headers[0], {str(header["donor_key"]) for header in headers}
    joined = {
        **{name: first[name] for name in ("use_rep", "standardize", "obs", "encoder")},
        "donor_key": donor_keys.pop() if len(donor_keys) == 1 else _keys.DONOR,
        "sections": {
            name: np.concatenate([header["sections"][name] for header in headers]) for name in first["sections"]
        },
        "sources": pd.concat([header["sources"] for header in headers]),
        "normalization": {**first["normalization"], "size_factor_genes": np.asarray(plan.size_factor_genes, dtype=str)},
        "panels": np.asarray(plan.panels, dtype=str),
    }
    header = _of_rows(joined, obs)
    merged = new_reference(
        header,
        plan.genes,
        values=rows.X,
        counts=rows.layers.get(_keys.COUNTS),
        obs=obs,
        embedding=rows.obsm[header["use_rep"]],
        thumbnails=rows.obsm.get(_keys.THUMBNAIL),
        measured=plan.measured,
    )
    logger.info(
        "Merged reference of %d spots, %d sections, %d genes.", merged.n_obs, len(header["sources"]), merged.n_vars
    )
    return merged


def _log_common_donors(named: Mapping[str, AnnData]) -> None:
    donors = Counter(donor for reference in named.values() for donor in set(labels(reference.obs[_keys.DONOR])))
    common = sorted(donor for donor, n_references in donors.items() if n_references > 1)
    if common:
        logger.warning(
            "Donors %s are in several references and count as one each: their rows never predict each other. Rename "
            "them before merging if they are different people or animals.",
            listing(common),
        )


def _fingerprints(merged: AnnData) -> Iterator[Fingerprint]:
    header, obs = merged.uns[_keys.ATTRS], merged.obs
    samples, donors = labels(obs[_keys.SAMPLE]), labels(obs[_keys.DONOR])
    sections, xy = header["sections"], obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float)
    for i, sample in enumerate(map(str, sections["sample"])):
        rows = np.flatnonzero(samples == sample)
        yield fingerprint(
            sample,
            donors=donors[rows],
            image_hash=str(sections["image_hash"][i]),
            expression=merged.X[rows],
            genes=list(merged.var_names),
            shared=list(header["normalization"]["size_factor_genes"]),
            embedding=standardize(merged.obsm[header["use_rep"]][rows], sections["mean"][i], sections["std"][i]),
            xy=xy[rows],
        )
