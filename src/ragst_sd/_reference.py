"""What a reference of either task states and holds: header, content and fit, checked; and new references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._validate import require_type
from ragst_sd.reference.hashing import combined_hash, content_hash, fit_hash, parameters_hash, row_digests
from ragst_sd.reference.header import check_fit, check_header
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.schema import RESPONSE_UNITS, TASK

# Rows that are looked at together where all rows are gone through.
ROW_BLOCK = 8192
HASH_BLOCK = 1024
# Columns of `.obs` that every reference has, as labels.
LABELS = (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL)

# Columns and layers that every reference of responses has; those of given responses have no layers.
_COLUMNS = (_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE, _keys.N_CELLS)
_LAYERS = (_keys.STANDARD_ERROR, *_keys.RESPONSE_HALVES)


def read_header(reference: AnnData, task: str | None = None) -> dict[str, Any]:
    """The checked header of a reference, which must be for a task if one is given.

    Raises
    ------
    TypeError
        If it is not an AnnData.
    ValueError
        If it has no header, is for another task, has an unknown schema version, or lacks what the header promises.
    """
    task = task or (TASK if is_perturbation(reference) else "histology")
    build = "rg.tl.build_perturbation_reference" if task == TASK else "rg.tl.build_reference"
    require_type(reference, AnnData, "reference", f"Build one with `{build}`.")
    if reference.isbacked:
        raise ValueError(
            f"The reference is backed by {reference.filename}, which cannot be searched there. Load it with "
            "`reference = reference.to_memory()`; to leave its rows on disk, store it with `rg.io.write_reference` and "
            "read it with `rg.io.read_reference(path, lazy=True)`."
        )
    header = reference.uns.get(_keys.ATTRS)
    check_header(header, task)
    needed = {"obs": [*LABELS], "varm": [_keys.MEASURED], "layers": [], "obsm": [header["use_rep"]]}
    if task == TASK:
        given = header["normalization"].get("given") in RESPONSE_UNITS
        needed |= {"obs": [*_COLUMNS, _keys.RELIABILITY], "varm": [], "layers": [] if given else [*_LAYERS]}
    missing = [f"{part}[{name!r}]" for part in needed for name in needed[part] if name not in getattr(reference, part)]
    if missing:
        raise ValueError(f"The reference lacks {', '.join(missing)}. Build it again with `{build}`.")
    return dict(header)


class Content(NamedTuple):
    """What a reference holds now."""

    hash: str
    values: Any
    """`.X`; in memory as canonical CSR, or as a plain array."""
    digests: list[bytes] | None = None
    """One for each row of tissue, where all of them were read."""


def content_of(reference: AnnData, header: Mapping[str, Any], *, whole: bool) -> Content:
    """What a reference with this header holds; of tissue that is not looked at as a `whole`, the hash that it states.

    Of rows on disk only what is in memory is looked at: they were checked when they were written.
    """
    if header["task"] == TASK:
        return Content(_screen_hash(reference), reference.X)
    if not whole:
        return Content(header["content_hash"], reference.X)
    if is_lazy(reference.X):
        annotations = annotations_hash(reference)
        same = annotations == header.get(_keys.ANNOTATIONS_HASH)
        return Content(header["content_hash"] if same else annotations, reference.X)
    sparse = as_csr(reference.X) if hasattr(reference.X, "tocsr") else None
    digests = row_hashes(reference, canonical=sparse)
    return Content(whole_hash(reference, digests), np.asarray(reference.X) if sparse is None else sparse, digests)


def reference_hash(reference: AnnData) -> str:
    """Content hash of a reference of either task, whatever the order of its rows."""
    return _screen_hash(reference) if is_perturbation(reference) else whole_hash(reference, row_hashes(reference))


def row_hashes(
    reference: AnnData, rows: np.ndarray | None = None, *, canonical: sp.csr_matrix | None = None
) -> list[bytes]:
    """One digest for the content of each row, or of some.

    In blocks, so that a lazy reference need not fit into memory. `canonical` is `.X` by `as_csr`, where it is known.
    """
    names = _label_columns(reference)
    rows = np.arange(reference.n_obs) if rows is None else rows
    columns = {name: labels(reference.obs[name].iloc[rows]) for name in names}
    ids, embedding = reference.obs_names[rows], reference.obsm[reference.uns[_keys.ATTRS]["use_rep"]]
    digests = []
    for start in range(0, len(rows), HASH_BLOCK):
        part = slice(start, start + HASH_BLOCK)
        digests += row_digests(
            ids=list(ids[part]),
            expression=as_csr(reference.X[rows[part]]) if canonical is None else canonical[rows[part]],
            embedding=np.asarray(embedding[rows[part]]),
            labels={name: list(values[part]) for name, values in columns.items()},
        )
    return digests


def whole_hash(reference: AnnData, digests: Sequence[bytes]) -> str:
    """Content hash from the digests of all rows, whatever their order."""
    columns = _label_columns(reference)
    genes, measured = list(reference.var_names), np.asarray(reference.varm[_keys.MEASURED])
    return combined_hash(digests, genes=genes, columns=sorted(columns), measured=measured)


def annotations_hash(reference: AnnData) -> str:
    """Hash of what a lazy reference holds in memory: ids, genes, labels and mask, in their order."""
    parts: dict[str, Any] = {
        "ids": np.asarray(reference.obs_names, dtype=object),
        "genes": np.asarray(reference.var_names, dtype=object),
        "measured": np.packbits(np.asarray(reference.varm[_keys.MEASURED])),
    }
    for name in _label_columns(reference):
        # Of a column with many repeats only the distinct labels are made strings.
        codes, values = reference.obs[name].factorize()
        parts[name] = {"codes": codes.astype(np.int64), "labels": np.asarray(labels(values), dtype=object)}
    return parameters_hash(parts)


def _label_columns(reference: AnnData) -> list[str]:
    # Columns that a user adds later say nothing about the data; those asked for at building do.
    columns = [*LABELS, *map(str, reference.uns[_keys.ATTRS]["obs"])]
    return [name for name in dict.fromkeys(columns) if name in reference.obs]


def _screen_hash(reference: AnnData) -> str:
    header = reference.uns[_keys.ATTRS]
    layers = [reference.X, *(reference.layers[name] for name in _LAYERS if name in reference.layers)]
    rows = content_hash(
        ids=list(reference.obs_names),
        genes=[f"{i}:{gene}" for i in range(len(layers)) for gene in reference.var_names],
        expression=as_csr(sp.hstack([sp.csr_matrix(layer) for layer in layers], format="csr")),
        embedding=np.asarray(reference.obsm[header["use_rep"]]),
        labels={name: list(labels(reference.obs[name])) for name in _COLUMNS},
        measured=np.ones((reference.n_vars, 1), dtype=bool),
    )
    state = {name: np.asarray(value) for name, value in header["contexts"].items()}
    controls, treated = (_cells(header[name]) for name in ("controls", "treated"))
    embedding = {name: np.asarray(value) for name, value in header["embedding"].items()}
    return parameters_hash(
        {"rows": rows, "contexts": state, "controls": controls, "treated": treated, "embedding": embedding}
    )


def _cells(part: dict[str, Any]) -> dict[str, np.ndarray]:
    """Labels and values of a sample of cells, as arrays to hash."""
    values = as_csr(part["values"])
    return {
        **{name: np.asarray(value) for name, value in part.items() if name != "values"},
        "data": values.data,
        "indices": values.indices.astype(np.int64),
        "indptr": values.indptr.astype(np.int64),
    }


def require_fit(reference: AnnData, header: Mapping[str, Any], current: str, *, whole: bool = True) -> None:
    """Raise a `ValueError` unless a reference of content hash `current` has a fit, of what it holds now.

    Of the fit itself, all is hashed if `whole`.
    """
    from ragst_sd.retrieval.methods import method_of_fit

    fit: Any = header.get(_keys.FIT)
    check_fit(fit, task=header["task"])
    if header["task"] != TASK:
        method_of_fit(fit["method"])
    placed = (reference.obsm.get(name) for name in (_keys.RETRIEVAL_KEY, _keys.REGRESSION_KEY))
    if current != fit["reference_hash"] or _keys.RETRIEVAL_KEY not in reference.obsm:
        raise ValueError(
            "The reference changed after it was fitted (rows, values, embeddings or annotations): "
            f"hash {current[:12]} against {fit['reference_hash'][:12]}. Run `rg.tl.fit` again."
        )
    if whole and fit_hash(header, fit, *placed) != fit["fit_hash"]:
        raise ValueError(
            "The fit does not match its hash: its parameters, `obsm['retrieval_key']`, or the statistics of the "
            "sections changed after `rg.tl.fit`. Fit again."
        )


def is_perturbation(reference: AnnData) -> bool:
    """Whether a reference holds responses to perturbations; tissue otherwise."""
    header = getattr(reference, "uns", {}).get(_keys.ATTRS)
    return isinstance(header, Mapping) and header.get("task") == TASK


def is_lazy(values: Any) -> bool:
    """Whether rows lie on disk, as :func:`ragst_sd.io.read_reference` leaves them with `lazy=True`."""
    return hasattr(values, "dask")


def require_in_memory(values: Any, what: str = "The reference is") -> None:
    """Raise a `ValueError` if the rows of a reference, which hold these values, lie on disk."""
    if is_lazy(values):
        raise ValueError(
            f"{what} lazy: its rows lie on disk, which is enough to predict. Load it with `reference.to_memory()` "
            "first."
        )


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
    of_panels = obs[_keys.PANEL].astype(str).value_counts().reindex([*header["panels"]], fill_value=0)
    reference.var[_keys.N_MEASURED] = measured @ of_panels.to_numpy()
    reference.uns[_keys.ATTRS] = {"schema_version": _keys.REFERENCE_VERSION, "task": "histology", **header}
    reference.uns[_keys.ATTRS]["content_hash"] = reference_hash(reference)
    return reference
