"""The perturbation reference at the rim: checks on reading, its content hash; and references of either task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._reference import reference_hash, reference_header
from ragst_sd._validate import require_type
from ragst_sd.reference.hashing import content_hash, parameters_hash
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.schema import RESPONSE_UNITS, TASK, check_perturbation_header

_COLUMNS = (_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE)
_LAYERS = (_keys.STANDARD_ERROR, *_keys.RESPONSE_HALVES)


def perturbation_header(reference: AnnData) -> dict[str, Any]:
    """The checked header of a perturbation reference.

    Raises
    ------
    TypeError
        If it is not an AnnData.
    ValueError
        If it has no header, is for another task, has an unknown schema version, or lacks what the header promises.
    """
    require_type(reference, AnnData, "reference", "Build one with `rg.tl.build_perturbation_reference`.")
    header = reference.uns.get(_keys.ATTRS)
    check_perturbation_header(header)
    missing = [f"obs[{name!r}]" for name in (*_COLUMNS, _keys.N_CELLS, _keys.RELIABILITY) if name not in reference.obs]
    if header["normalization"].get("given") not in RESPONSE_UNITS:
        missing += [f"layers[{name!r}]" for name in _LAYERS if name not in reference.layers]
    if header["use_rep"] not in reference.obsm:
        missing.append(f"obsm[{header['use_rep']!r}]")
    if missing:
        msg = f"The reference lacks {', '.join(missing)}. Build it again with `rg.tl.build_perturbation_reference`."
        raise ValueError(msg)
    return dict(header)


def perturbation_hash(reference: AnnData) -> str:
    """Content hash of a perturbation reference, whatever the order of its rows."""
    header = reference.uns[_keys.ATTRS]
    layers = [reference.X, *(reference.layers[name] for name in _LAYERS if name in reference.layers)]
    rows = content_hash(
        ids=list(reference.obs_names),
        genes=[f"{i}:{gene}" for i in range(len(layers)) for gene in reference.var_names],
        expression=as_csr(sp.hstack([sp.csr_matrix(layer) for layer in layers], format="csr")),
        embedding=np.asarray(reference.obsm[header["use_rep"]]),
        labels={name: list(labels(reference.obs[name])) for name in (*_COLUMNS, _keys.N_CELLS)},
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


def perturbation_fit_hash(reference: AnnData, fit: dict[str, Any], key: np.ndarray | None = None) -> str:
    """Hash of all that a prediction depends on beside the reference's content, with `key` for its rows in phi-space."""
    parts = {name: value for name, value in fit.items() if name != "fit_hash"}
    rows = reference.obsm[_keys.RETRIEVAL_KEY] if key is None else key
    return parameters_hash({"fit": parts, "key": np.asarray(rows)})


def is_perturbation(reference: AnnData) -> bool:
    """Whether a reference holds responses to perturbations; tissue otherwise."""
    header = getattr(reference, "uns", {}).get(_keys.ATTRS)
    return isinstance(header, Mapping) and header.get("task") == TASK


def any_header(reference: AnnData) -> dict[str, Any]:
    """The checked header of a reference, whatever its task."""
    return perturbation_header(reference) if is_perturbation(reference) else reference_header(reference)


def any_hash(reference: AnnData) -> str:
    """Content hash of a reference, whatever its task."""
    return perturbation_hash(reference) if is_perturbation(reference) else reference_hash(reference)
