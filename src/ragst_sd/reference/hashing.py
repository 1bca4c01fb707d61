"""Content hashes of a reference and of a fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from ragst_sd.reference.schema import TASK


def content_hash(
    *,
    ids: Sequence[str],
    genes: Sequence[str],
    expression: sp.csr_matrix,
    embedding: np.ndarray,
    labels: Mapping[str, Sequence[Any]],
    measured: np.ndarray,
) -> str:
    """Hash of what a reference says, whatever the order of its rows.

    Parameters
    ----------
    ids
        Names of the rows.
    genes
        Names of the columns.
    expression
        (rows x genes) canonical CSR, float32.
    embedding
        (rows, d) raw embeddings.
    labels
        Row annotations that retrieval can depend on (donor, sample, ...).
    measured
        (genes x panels) mask.
    """
    rows = row_digests(ids=ids, expression=expression, embedding=embedding, labels=labels)
    return combined_hash(rows, genes=genes, columns=sorted(labels), measured=measured)


def row_digests(
    *, ids: Sequence[str], expression: sp.csr_matrix, embedding: np.ndarray, labels: Mapping[str, Sequence[Any]]
) -> list[bytes]:
    """One digest for each row, so that a reference can be hashed block by block.

    Arguments as in :func:`content_hash`.
    """
    embedding = np.ascontiguousarray(embedding, dtype=np.float32)
    columns = {name: [str(value) for value in values] for name, values in sorted(labels.items())}
    rows = []
    for i, row_id in enumerate(ids):
        row = hashlib.sha256("\x1f".join([str(row_id), *(values[i] for values in columns.values())]).encode())
        part = slice(expression.indptr[i], expression.indptr[i + 1])
        # A stored zero and an absent one mean the same.
        expressed = expression.data[part] != 0
        row.update(expression.indices[part][expressed].astype(np.int32).tobytes())
        row.update(expression.data[part][expressed].astype(np.float32).tobytes())
        row.update(embedding[i].tobytes())
        rows.append(row.digest())
    return rows


def combined_hash(rows: Sequence[bytes], *, genes: Sequence[str], columns: Sequence[str], measured: np.ndarray) -> str:
    """Hash of a reference from the digests of its rows, the names of its genes and label columns, and its mask."""
    whole = hashlib.sha256("\x1f".join([*map(str, genes), *columns]).encode())
    whole.update(np.packbits(measured).tobytes())
    for digest in sorted(rows):
        whole.update(digest)
    return whole.hexdigest()


def fit_hash(header: Mapping[str, Any], fit: Mapping[str, Any], key: Any, regression_key: Any) -> str:
    """Hash of all that a prediction depends on beside the content of the reference, which has this header."""
    parts: dict[str, Any] = {
        "fit": {name: value for name, value in fit.items() if name != "fit_hash"},
        "key": np.asarray(key),
    }
    if header["task"] != TASK:
        parts["standardize"] = bool(header["standardize"])
        # The species names genes and weighs nothing; fits of references without it stay valid.
        parts["sections"] = {name: np.asarray(x) for name, x in header["sections"].items() if name != "species"}
    if regression_key is not None:
        parts["regression_key"] = np.asarray(regression_key)
    return parameters_hash(parts)


def parameters_hash(parameters: Mapping[str, Any]) -> str:
    """Hash of plain parameters: numbers, strings, and arrays, by name."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        value = parameters[name]
        digest.update(name.encode())
        if isinstance(value, dict):
            digest.update(parameters_hash(value).encode())
            continue
        array = np.asarray(value)
        if array.ndim == 0:
            # A store gives single numbers back as Python's own, whatever their width was.
            array = np.asarray(array.item())
        if array.dtype.kind in "fiub":
            digest.update(repr((array.dtype.kind, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
        else:
            digest.update("\x1f".join(map(str, array.ravel().tolist())).encode())
    return digest.hexdigest()
