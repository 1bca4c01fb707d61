"""`rg.tl.merge_references`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._reference import reference_hash, reference_header, require_in_memory
from ragst_sd._validate import listing, require_choice
from ragst_sd.reference.duplicates import Fingerprint, fingerprint
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.merging import Part, Plan, plan_merge
from ragst_sd.reference.normalize import as_csr, log_normalize, size_factors
from ragst_sd.retrieval.projection import standardize
from ragst_sd.tl._mergeable import check_alike, check_samples
from ragst_sd.tl._merged_cell_types import carry_cell_types
from ragst_sd.tl._same_tissue import ON_DUPLICATE, report_duplicates

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

logger = logging.getLogger(__name__)

_OWN_COLUMNS = (
    _keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.X_UM, _keys.Y_UM, _keys.PANEL,
)  # fmt: skip


def merge_references(
    references: AnnData | Sequence[AnnData] | Mapping[str, AnnData], *, on_duplicate: str = "error"
) -> AnnData:
    """Put references together, without building any of them again.

    The result is what :func:`ragst_sd.tl.build_reference` would give for all their sections at once, with the same content
    hash. Where the merged panels share other genes than those of a single reference, its size factors change, and its rows are
    normalised anew from their counts.

    To append, merge the old reference with one that holds the new sections. To remove a source or to keep one organ, merge a
    subset: `merge_references(reference[reference.obs["tissue"] == "colon"])` drops what only the other rows needed
    (sections, sources, panels, genes) and normalises the rest by the genes that its own panels share. The plain subset
    `reference[mask].copy()` is a valid reference, too; it keeps all of these.

    Parameters
    ----------
    references
        One reference, a list of them, or a mapping from a name, used in messages, to each.
    on_duplicate
        What happens if the same tissue is found under two donors' names, see :func:`ragst_sd.tl.build_reference`: `"error"`,
        or `"warn"`.

    Returns
    -------
    A new, unfitted reference with the fields of :func:`ragst_sd.tl.build_reference`. `.layers["counts"]` is there if all
    have it, and so is `.obsm["thumbnail"]`. Cell types (see :func:`ragst_sd.tl.add_cell_types`) are kept if all have the same
    signatures and platform effects, as subsets of one reference have, and no row is normalised anew; else a warning names
    those that differ. Fits, calibrations and other fields are left out.

    Raises
    ------
    TypeError
        If a member is not an AnnData.
    ValueError
        If the references have another encoder, tile geometry, standardisation or naming of genes (one harmonised, one not);
        if they are of two species; if a sample is in two of
        them; if columns of `obs` are not in all; if they share fewer than 200 genes; if values have to be normalised anew and
        there are no counts; or if the same tissue is in under two donors' names.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> first, second = (rg.tl.build_reference({name: sdata}, use_rep="X_texture") for name, sdata in sections.items())
    >>> merged = rg.tl.merge_references([first, second])
    >>> merged.uns["ragst"]["content_hash"] == rg.tl.build_reference(sections, use_rep="X_texture").uns["ragst"][
    ...     "content_hash"
    ... ]
    True
    """
    require_choice(on_duplicate, ON_DUPLICATE, "on_duplicate")
    named = _named(references)
    headers = {name: _pruned(reference_header(reference), reference, name) for name, reference in named.items()}
    check_alike(named, headers)
    check_samples(headers)
    plan = plan_merge({name: _part(reference, headers[name]) for name, reference in named.items()})
    logged = next(iter(headers.values()))["normalization"]["given"] != "counts"
    if logged and len(plan.panels) > 1:
        msg = (
            f"The references hold {len(plan.panels)} panels ({listing(plan.panels)}) on a log scale: each was scaled by its own "
            "genes, so their values do not mean the same. Build them from counts, or keep one reference per panel."
        )
        raise ValueError(msg)
    pieces = [
        _rows(name, reference, headers[name], plan, panel_of)
        for (name, reference), panel_of in zip(named.items(), plan.panel_of, strict=True)
    ]
    merged = _assemble(pieces, list(headers.values()), plan)
    carry_cell_types(merged, named, [piece["obs"].index for piece in pieces], plan)
    _log_common_donors(named)
    report_duplicates(_fingerprints(merged), on_duplicate)
    return merged


def _named(references: Any) -> dict[str, AnnData]:
    if isinstance(references, Mapping):
        named = {str(name): reference for name, reference in references.items()}
    else:
        members = list(references) if isinstance(references, Sequence) else [references]
        named = {f"references[{i}]": reference for i, reference in enumerate(members)}
    if not named:
        msg = "`references` is empty: name at least one reference."
        raise ValueError(msg)
    for name, reference in named.items():
        reference_header(reference)
        require_in_memory(reference, f"{name} is")
        if not reference.n_obs:
            msg = f"{name} has no rows. Leave it out."
            raise ValueError(msg)
    return named


def _pruned(header: dict[str, Any], reference: AnnData, name: str) -> dict[str, Any]:
    """The header with the sections and sources of its rows only."""
    present, known = set(labels(reference.obs[_keys.SAMPLE])), [str(s) for s in header["sections"]["sample"]]
    unknown = sorted(present - set(known))
    if unknown:
        msg = f"{name}: sections {listing(unknown)} have no statistics in its header. Build it again."
        raise ValueError(msg)
    keep = np.array([sample in present for sample in known])
    sections = {field: np.asarray(values)[keep] for field, values in header["sections"].items()}
    return {**header, "sections": sections, "sources": header["sources"].loc[np.asarray(known)[keep]]}


def _part(reference: AnnData, header: dict[str, Any]) -> Part:
    panels = [str(panel) for panel in header["panels"]]
    values = reference.layers.get(_keys.COUNTS, reference.X)
    of_rows = reference.obs[_keys.PANEL].astype(str).to_numpy()
    rows = [np.flatnonzero(of_rows == panel) for panel in panels]
    return Part(
        genes=[str(gene) for gene in reference.var_names],
        panels=panels,
        measured=np.asarray(reference.varm[_keys.MEASURED]),
        totals=np.stack([np.asarray(values[of_panel].sum(axis=0)).ravel() for of_panel in rows]),
        n_rows=[len(of_panel) for of_panel in rows],
        size_factor_genes=[str(gene) for gene in header["normalization"]["size_factor_genes"]],
    )


def _rows(
    name: str, reference: AnnData, header: dict[str, Any], plan: Plan, panel_of: Mapping[str, str]
) -> dict[str, Any]:
    """Rows of one reference, as they stand in the merged one."""
    names = [str(gene) for gene in reference.var_names]
    own = {str(gene) for gene in header["normalization"]["size_factor_genes"]}
    has_counts = _keys.COUNTS in reference.layers
    counts = as_csr(reference.layers[_keys.COUNTS]) if has_counts else None
    keep = np.ones(reference.n_obs, dtype=bool)
    if own == set(plan.size_factor_genes):
        values = as_csr(reference.X)
    else:
        if counts is None:
            msg = (
                f"{name} was normalised by {len(own)} genes, the merged reference has to be by {len(plan.size_factor_genes)}, and "
                "it has no `layers['counts']` to start from. Build it from counts."
            )
            raise ValueError(msg)
        factors = size_factors(counts, names, plan.size_factor_genes)
        keep = factors > 0
        logger.info(
            "%s is normalised anew by the %d genes that all panels share (before: %d)%s.",
            name, len(plan.size_factor_genes), len(own),
            "" if keep.all() else f"; {int((~keep).sum())} spots have no counts in them and are left out",
        )  # fmt: skip
        counts = counts[keep]
        values = log_normalize(counts, factors[keep])
    obs = reference.obs.loc[keep, [*_OWN_COLUMNS, *_extra(header)]].copy()
    obs[_keys.PANEL] = [panel_of[panel] for panel in obs[_keys.PANEL].astype(str)]
    return {
        "values": take_genes(values, names, plan.genes),
        "counts": None if counts is None else take_genes(counts, names, plan.genes),
        "embedding": np.asarray(reference.obsm[str(header["use_rep"])])[keep],
        "thumbnail": np.asarray(reference.obsm[_keys.THUMBNAIL])[keep] if _keys.THUMBNAIL in reference.obsm else None,
        "obs": obs,
    }


def _extra(header: dict[str, Any]) -> list[str]:
    return [column for column in map(str, header["obs"]) if column not in _OWN_COLUMNS]


def _assemble(pieces: list[dict[str, Any]], headers: list[dict[str, Any]], plan: Plan) -> AnnData:
    import anndata as ad
    import pandas as pd

    first = headers[0]
    obs = _joined([piece["obs"] for piece in pieces])
    counts = _stacked(pieces, "counts")
    merged = ad.AnnData(
        _stacked(pieces, "values"),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(plan.genes, name="gene")),
        layers=None if counts is None else {_keys.COUNTS: counts},
        obsm={str(first["use_rep"]): np.concatenate([piece["embedding"] for piece in pieces])},
        varm={_keys.MEASURED: plan.measured},
    )
    pictures = [piece["thumbnail"] for piece in pieces]
    if all(picture is not None for picture in pictures):
        merged.obsm[_keys.THUMBNAIL] = np.concatenate(pictures)
    elif any(picture is not None for picture in pictures):
        logger.warning("Not all references have `obsm['thumbnail']`: the merged one has none.")
    per_panel = obs[_keys.PANEL].astype(str).value_counts()
    merged.var[_keys.N_MEASURED] = plan.measured @ np.array([int(per_panel.get(panel, 0)) for panel in plan.panels])
    fields = first["sections"]
    donor_keys = {str(header["donor_key"]) for header in headers}
    present = list(dict.fromkeys(labels(obs[_keys.SAMPLE])))
    sections = {field: np.concatenate([np.asarray(h["sections"][field]) for h in headers]) for field in fields}
    samples = np.array([str(one) for one in sections["sample"]])  # not `astype`: as read from disk, it does not cast
    kept = np.isin(samples, present)
    merged.uns[_keys.ATTRS] = {
        "schema_version": _keys.REFERENCE_VERSION,
        "task": first["task"],
        "use_rep": str(first["use_rep"]),
        "standardize": bool(first["standardize"]),
        "donor_key": donor_keys.pop() if len(donor_keys) == 1 else _keys.DONOR,
        "obs": np.array([str(one) for one in first["obs"]], dtype=str),
        "encoder": dict(first["encoder"]),
        "sections": {field: values[kept] for field, values in sections.items()},
        "sources": pd.concat([header["sources"] for header in headers]).loc[samples[kept]],
        "normalization": {
            **first["normalization"],
            "size_factor_genes": np.asarray(plan.size_factor_genes, dtype=str),
        },
        "panels": np.asarray(plan.panels, dtype=str),
        "content_hash": "",
    }
    merged.uns[_keys.ATTRS]["content_hash"] = reference_hash(merged)
    logger.info("Merged reference of %d spots, %d sections, %d genes.", merged.n_obs, kept.sum(), merged.n_vars)
    return merged


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    # Categories differ between references: strings are joined, and made categories again.
    text = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL)
    joined = pd.concat([frame.assign(**{name: frame[name].astype(str) for name in text}) for frame in frames])
    if joined.index.has_duplicates:
        msg = (
            f"Rows of the references have the same names: {listing(joined.index[joined.index.duplicated()].unique())}."
        )
        raise ValueError(msg)
    return joined.assign(**{name: pd.Categorical(joined[name]) for name in text})


def _stacked(pieces: list[dict[str, Any]], what: str) -> sp.csr_matrix | None:
    import scipy.sparse as sp

    parts = [piece.pop(what) for piece in pieces]
    if any(part is None for part in parts):
        return None
    return sp.vstack(parts, format="csr")


def _log_common_donors(named: Mapping[str, AnnData]) -> None:
    owners: dict[str, list[str]] = {}
    for name, reference in named.items():
        for donor in set(labels(reference.obs[_keys.DONOR])):
            owners.setdefault(donor, []).append(name)
    common = sorted(donor for donor, names in owners.items() if len(names) > 1)
    if common:
        logger.warning(
            "Donors %s are in several references and count as one each: their rows never predict each other. Rename them "
            "before merging if they are different people or animals.", listing(common),
        )  # fmt: skip


def _fingerprints(merged: AnnData) -> list[Fingerprint]:
    header, obs = merged.uns[_keys.ATTRS], merged.obs
    samples, donors = labels(obs[_keys.SAMPLE]), labels(obs[_keys.DONOR])
    sections, xy = header["sections"], obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float)
    of_section = {sample: np.flatnonzero(samples == sample) for sample in map(str, sections["sample"])}
    return [
        fingerprint(
            sample,
            donors=donors[rows],
            image_hash=str(sections["image_hash"][i]),
            expression=merged.X[rows],
            genes=list(merged.var_names),
            shared=list(header["normalization"]["size_factor_genes"]),
            embedding=standardize(merged.obsm[header["use_rep"]][rows], sections["mean"][i], sections["std"][i]),
            xy=xy[rows],
        )
        for i, (sample, rows) in enumerate(of_section.items())
    ]
