"""The reference AnnData at the rim: checks on reading, its content hash, its sections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import label, labels
from ragst_sd._validate import require_type
from ragst_sd.reference.hashing import combined_hash, parameters_hash, row_digests
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.schema import check_fit, check_reference_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

# Rows that are looked at together where all rows are gone through.
ROW_BLOCK = 8192
HASH_BLOCK = 1024
# Columns of `.obs` that every reference has, as labels.
LABELS = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL)


def reference_header(reference: AnnData) -> dict[str, Any]:
    """The checked header of a reference.

    Raises
    ------
    TypeError
        If it is not an AnnData.
    ValueError
        If it has no header, an unknown schema version, or lacks parts that the header promises.
    """
    from anndata import AnnData

    require_type(reference, AnnData, "reference", "Build one with `rg.tl.build_reference`.")
    header = reference.uns.get(_keys.ATTRS)
    check_reference_header(header)
    missing = [f"obsm[{header['use_rep']!r}]"] if header["use_rep"] not in reference.obsm else []
    missing += [f"varm[{_keys.MEASURED!r}]"] if _keys.MEASURED not in reference.varm else []
    missing += [f"obs[{name!r}]" for name in LABELS if name not in reference.obs]
    if missing:
        msg = f"The reference lacks {', '.join(missing)}. Build it again with `rg.tl.build_reference`."
        raise ValueError(msg)
    return dict(header)


def reference_fit(reference: AnnData) -> dict[str, Any]:
    """The checked fit of a reference whose content has not changed since.

    Raises
    ------
    ValueError
        If the reference is not fitted, its method is not registered, or rows, values or annotations changed after fitting.
    """
    from ragst_sd.retrieval.methods import method_of_fit

    header = reference_header(reference)
    check_fit(header.get(_keys.FIT))
    fit = dict(header[_keys.FIT])
    method_of_fit(fit["method"])
    own_hash = None if is_lazy(reference) else partial(fit_hash, reference, header, fit)
    check_hashes(reference, fit, current_hash(reference), own_hash)
    return fit


def check_hashes(reference: AnnData, fit: dict[str, Any], current: str, own_hash: Callable[[], str] | None) -> None:
    """Raise a `ValueError` if a reference, of content hash `current`, or its fit changed after fitting."""
    if current != fit["reference_hash"] or _keys.RETRIEVAL_KEY not in reference.obsm:
        msg = (
            "The reference changed after it was fitted (rows, values, embeddings or annotations): "
            f"hash {current[:12]} against {fit['reference_hash'][:12]}. Run `rg.tl.fit` again."
        )
        raise ValueError(msg)
    if own_hash is not None and own_hash() != fit["fit_hash"]:
        msg = (
            "The fit does not match its hash: its parameters, `obsm['retrieval_key']`, or the statistics of the sections "
            "changed after `rg.tl.fit`. Fit again."
        )
        raise ValueError(msg)


def fit_hash(reference: AnnData, header: dict[str, Any], fit: dict[str, Any], key: np.ndarray | None = None) -> str:
    """Hash of all that a prediction depends on beside the content of the reference, with `key` for its rows in phi-space."""
    parts = {name: value for name, value in fit.items() if name != "fit_hash"}
    return parameters_hash(
        {
            "fit": parts,
            "key": np.asarray(reference.obsm[_keys.RETRIEVAL_KEY] if key is None else key),
            "standardize": bool(header["standardize"]),
            # The species names genes and weighs nothing; fits of references without it stay valid.
            "sections": {name: np.asarray(v) for name, v in header["sections"].items() if name != "species"},
        }
    )


def reference_hash(reference: AnnData) -> str:
    """Content hash of a reference, whatever the order of its rows; in blocks, so that a lazy one need not fit into memory."""
    header = reference.uns[_keys.ATTRS]
    columns = _label_columns(reference, header)
    own = {name: labels(reference.obs[name]) for name in columns}
    ids, embedding = list(reference.obs_names), reference.obsm[header["use_rep"]]
    digests = []
    for start in range(0, reference.n_obs, HASH_BLOCK):
        rows = slice(start, min(start + HASH_BLOCK, reference.n_obs))
        digests += row_digests(
            ids=ids[rows],
            expression=as_csr(reference.X[rows]),
            embedding=np.asarray(embedding[rows]),
            labels={name: list(values[rows]) for name, values in own.items()},
        )
    genes, measured = list(reference.var_names), np.asarray(reference.varm[_keys.MEASURED])
    return combined_hash(digests, genes=genes, columns=sorted(columns), measured=measured)


def n_measured(reference: AnnData) -> np.ndarray:
    """(genes,) number of rows that measured each gene."""
    panels = [str(panel) for panel in reference.uns[_keys.ATTRS]["panels"]]
    rows = reference.obs[_keys.PANEL].astype(str).value_counts().reindex(panels, fill_value=0)
    return np.asarray(reference.varm[_keys.MEASURED]) @ rows.to_numpy()


def write_header(reference: AnnData, header: Mapping[str, Any]) -> None:
    """Write a header, with the content hash, and how many rows measured each gene."""
    reference.uns[_keys.ATTRS] = dict(header)
    reference.var[_keys.N_MEASURED] = n_measured(reference)
    reference.uns[_keys.ATTRS]["content_hash"] = reference_hash(reference)


def of_rows(header: Mapping[str, Any], obs: pd.DataFrame) -> dict[str, Any]:
    """A header with the sections and sources of some rows only."""
    # Not `astype`: as read from disk, names do not cast.
    samples = np.array([str(sample) for sample in header["sections"]["sample"]])
    kept = np.isin(samples, labels(obs[_keys.SAMPLE]).astype(str))
    sections = {name: np.asarray(column)[kept] for name, column in header["sections"].items()}
    return {**header, "sections": sections, "sources": header["sources"].loc[samples[kept]]}


def new_reference(
    header: Mapping[str, Any],
    genes: Sequence[str],
    *,
    values: sp.csr_matrix,
    counts: sp.csr_matrix | None,
    obs: pd.DataFrame,
    embedding: np.ndarray,
    thumbnails: np.ndarray | None,
    measured: np.ndarray,
) -> AnnData:
    """A reference of tissue from its parts and what its header says of them."""
    import anndata as ad
    import pandas as pd

    reference = ad.AnnData(
        values,
        obs=obs,
        var=pd.DataFrame(index=pd.Index(genes, name="gene")),
        layers=None if counts is None else {_keys.COUNTS: counts},
        obsm={header["use_rep"]: embedding},
        varm={_keys.MEASURED: measured},
    )
    if thumbnails is not None:
        reference.obsm[_keys.THUMBNAIL] = thumbnails
    write_header(reference, {"schema_version": _keys.REFERENCE_VERSION, "task": "histology", **header})
    return reference


def _label_columns(reference: AnnData, header: dict[str, Any]) -> list[str]:
    # Columns that a user adds later say nothing about the data; those asked for at building do.
    columns = [*LABELS, *map(str, header["obs"])]
    return [name for name in dict.fromkeys(columns) if name in reference.obs]


def annotations_hash(reference: AnnData) -> str:
    """Hash of what a lazy reference holds in memory: ids, genes, labels and mask, in their order."""
    parts: dict[str, Any] = {
        "ids": np.asarray(reference.obs_names, dtype=object),
        "genes": np.asarray(reference.var_names, dtype=object),
        "measured": np.packbits(np.asarray(reference.varm[_keys.MEASURED])),
    }
    for name in _label_columns(reference, reference.uns[_keys.ATTRS]):
        # Of a column with many repeats only the distinct labels are made strings.
        codes, values = reference.obs[name].factorize()
        parts[name] = {"codes": codes.astype(np.int64), "labels": np.asarray(labels(values), dtype=object)}
    return parameters_hash(parts)


def is_lazy(reference: AnnData) -> bool:
    """Whether the rows of a reference lie on disk, as :func:`ragst_sd.io.read_reference` leaves them with `lazy=True`."""
    return hasattr(reference.X, "dask")


def require_in_memory(reference: AnnData, what: str = "The reference is") -> None:
    """Raise a `ValueError` if the rows of a reference lie on disk."""
    if is_lazy(reference):
        msg = f"{what} lazy: its rows lie on disk, which is enough to predict. Load it with `reference.to_memory()` first."
        raise ValueError(msg)


def current_hash(reference: AnnData) -> str:
    """Content hash of a reference as it is now.

    Reading all values of a store for every prediction is what a lazy reference is there to avoid: they were checked when it
    was written, so only what is in memory, and can have changed since, is looked at. If it has, the hash is of that alone.
    """
    if not is_lazy(reference):
        return reference_hash(reference)
    header, current = reference.uns[_keys.ATTRS], annotations_hash(reference)
    return str(header["content_hash"]) if current == header.get(_keys.ANNOTATIONS_HASH) else current


def take_rows(values: Any, rows: np.ndarray) -> Any:
    """Some rows of a matrix, in memory; of a lazy one block by block, one at a time."""
    if not hasattr(values, "dask"):
        return values[rows]
    import scipy.sparse as sp

    starts = np.concatenate([[0], np.cumsum(values.chunks[0])])
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    of_block = np.searchsorted(starts, ascending, side="right") - 1
    parts = [
        values.blocks[block].compute(scheduler="synchronous")[ascending[of_block == block] - starts[block]]
        for block in np.unique(of_block)
    ]
    if not parts:
        return values[:0].compute()
    stacked = sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
    return stacked[np.argsort(order)]


def standardized_embedding(reference: AnnData, header: dict[str, Any]) -> np.ndarray:
    """Embeddings of the rows, each standardised by its own section where the header says so, float64."""
    from ragst_sd.retrieval.projection import standardize

    require_in_memory(reference)
    raw = np.asarray(reference.obsm[header["use_rep"]], dtype=np.float64)
    if not np.isfinite(raw).all():
        bad = int((~np.isfinite(raw).all(axis=1)).sum())
        msg = (
            f"`obsm[{header['use_rep']!r}]` of the reference is NaN or infinite in {bad} rows. Drop them and fit again."
        )
        raise ValueError(msg)
    if not header["standardize"]:
        return raw
    out = np.empty_like(raw)
    sections = header["sections"]
    names = [str(name) for name in sections["sample"]]
    mean, std = np.asarray(sections["mean"]), np.asarray(sections["std"])
    for sample, rows in reference.obs.groupby(reference.obs[_keys.SAMPLE].astype(str)).indices.items():
        if sample not in names:
            msg = f"Section {sample!r} has no statistics in the reference's header (it has {names}). Build it again."
            raise ValueError(msg)
        place = names.index(sample)
        out[rows] = standardize(raw[rows], mean[place], std[place])
    return out


def panel_codes(reference: AnnData, header: dict[str, Any]) -> np.ndarray:
    """(rows,) index of each row's panel in the header's list."""
    place = {str(panel): i for i, panel in enumerate(header["panels"])}
    return np.array([place[panel] for panel in reference.obs[_keys.PANEL].astype(str)], dtype=np.int64)


def section_codes(reference: AnnData) -> np.ndarray:
    """(rows,) index of each row's section, in the order of their names; donors on one slide count as several sections."""
    pairs = reference.obs[_keys.SAMPLE].astype(str) + "\x1f" + reference.obs[_keys.DONOR].map(label).astype(str)
    return np.unique(pairs.to_numpy(dtype=str), return_inverse=True)[1]


def level_groups(reference: AnnData, header: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one section and panel: the code of each row's group, and (groups, 2) section and panel of each group."""
    pairs = np.stack([section_codes(reference), panel_codes(reference, header)], axis=1)
    groups, codes = np.unique(pairs, axis=0, return_inverse=True)
    return codes.ravel(), groups


def mean_shift(
    reference: AnnData, header: dict[str, Any], shifts: np.ndarray, genes: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """(patterns, genes) mean shift over the rows that may be used, of those that measured each gene.

    Evidence is put back on the mean of these rows. The mean of the whole reference would bring in what must stay out: the
    query's own donor, or rows that `where` rejects.

    Parameters
    ----------
    shifts
        (sections, genes) of the wanted genes.
    rows
        (patterns, groups) number of eligible rows of each of :func:`level_groups`.
    """
    _, groups = level_groups(reference, header)
    votes = np.asarray(reference.varm[_keys.MEASURED])[genes][:, groups[:, 1]].T.astype(np.float64)
    total = rows @ votes
    return np.divide(rows @ (votes * shifts[groups[:, 0]]), total, out=np.zeros(total.shape), where=total > 0)


def id_order(reference: AnnData) -> np.ndarray:
    """(rows,) rank of each reference id, which decides between equal distances."""
    ids = reference.obs_names.to_numpy(dtype=str)
    return np.argsort(np.argsort(ids, kind="stable"))
