"""References of either task at the rim: checks on reading, their content hash, the header of new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._validate import require_type
from ragst_sd.reference.hashing import combined_hash, content_hash, parameters_hash, row_digests
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.schema import RESPONSE_UNITS, TASK, check_fit, check_header
from ragst_sd.retrieval.bank import Bank

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


def require_fit(reference: AnnData, header: Mapping[str, Any], current: str, *, whole: bool = True) -> None:
    """Raise a `ValueError` unless a reference of content hash `current` has a fit, of what it holds now.

    Of the fit itself, all is hashed if `whole`.
    """
    from ragst_sd.retrieval.methods import method_of_fit

    fit: Any = header.get(_keys.FIT)
    check_fit(fit, task=header.get("task", "histology"))
    if not is_perturbation(reference):
        method_of_fit(fit["method"])
    if current != fit["reference_hash"] or _keys.RETRIEVAL_KEY not in reference.obsm:
        raise ValueError(
            "The reference changed after it was fitted (rows, values, embeddings or annotations): "
            f"hash {current[:12]} against {fit['reference_hash'][:12]}. Run `rg.tl.fit` again."
        )
    if whole and fit_hash(reference, fit) != fit["fit_hash"]:
        raise ValueError(
            "The fit does not match its hash: its parameters, `obsm['retrieval_key']`, or the statistics of the "
            "sections changed after `rg.tl.fit`. Fit again."
        )


def fit_hash(reference: AnnData, fit: Mapping[str, Any], bank: Bank | None = None) -> str:
    """Hash of all that a prediction depends on beside the reference's content; of `bank`, rows as a new fit has them."""
    header = reference.uns[_keys.ATTRS]
    if bank is None:
        key, regression_key = reference.obsm[_keys.RETRIEVAL_KEY], reference.obsm.get(_keys.REGRESSION_KEY)
    else:
        key, regression_key = bank.key, bank.regression_key
    parts: dict[str, Any] = {
        "fit": {name: value for name, value in fit.items() if name != "fit_hash"},
        "key": np.asarray(key),
    }
    if not is_perturbation(reference):
        parts["standardize"] = bool(header["standardize"])
        # The species names genes and weighs nothing; fits of references without it stay valid.
        parts["sections"] = {name: np.asarray(v) for name, v in header["sections"].items() if name != "species"}
    if regression_key is not None:
        parts["regression_key"] = np.asarray(regression_key)
    return parameters_hash(parts)


def row_hashes(
    reference: AnnData, rows: np.ndarray | None = None, *, canonical: sp.csr_matrix | None = None
) -> list[bytes]:
    """One digest for the content of each row, or of some.

    In blocks, so that a lazy reference need not fit into memory. `canonical` is `.X` by `as_csr`, where it is known.
    """
    header = reference.uns[_keys.ATTRS]
    rows = np.arange(reference.n_obs) if rows is None else rows
    columns = {name: labels(reference.obs[name].iloc[rows]) for name in _label_columns(reference, header)}
    ids, embedding = reference.obs_names[rows], reference.obsm[header["use_rep"]]
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
    columns = _label_columns(reference, reference.uns[_keys.ATTRS])
    genes, measured = list(reference.var_names), np.asarray(reference.varm[_keys.MEASURED])
    return combined_hash(digests, genes=genes, columns=sorted(columns), measured=measured)


def reference_hash(reference: AnnData) -> str:
    """Content hash of a reference of either task, whatever the order of its rows."""
    return _screen_hash(reference) if is_perturbation(reference) else whole_hash(reference, row_hashes(reference))


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
    has_rows = np.isin(samples, labels(obs[_keys.SAMPLE]).astype(str))
    sections = {name: np.asarray(column)[has_rows] for name, column in header["sections"].items()}
    return {**header, "sections": sections, "sources": header["sources"].loc[samples[has_rows]]}


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
    """Whether a reference's rows lie on disk, as :func:`ragst_sd.io.read_reference` leaves them with `lazy=True`."""
    return hasattr(reference.X, "dask")


def require_in_memory(reference: AnnData, what: str = "The reference is") -> None:
    """Raise a `ValueError` if the rows of a reference lie on disk."""
    if is_lazy(reference):
        raise ValueError(
            f"{what} lazy: its rows lie on disk, which is enough to predict. Load it with `reference.to_memory()` "
            "first."
        )


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


def is_perturbation(reference: AnnData) -> bool:
    """Whether a reference holds responses to perturbations; tissue otherwise."""
    header = getattr(reference, "uns", {}).get(_keys.ATTRS)
    return isinstance(header, Mapping) and header.get("task") == TASK
