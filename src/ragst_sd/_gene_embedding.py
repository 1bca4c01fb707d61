"""Gene embeddings as a table, and embeddings of perturbations from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ragst_sd._validate import hint, listing, require_type, require_unique
from ragst_sd.reference.responses import SEPARATOR, components, embed_perturbation

# Between the genes of a combination, or a gene and its guide, as tools write them. Genes hold `-` and `.` as well.
_BREAK = re.compile(r"[\s_|:;,/&]+|[-.](?=(?:sg|g)?\d+$)", re.IGNORECASE)


def embedding_table(embedding: pd.DataFrame | Mapping[str, Any]) -> dict[str, Any]:
    """Name, genes (sorted) and float32 vectors of an embedding. A gene whose vector is NaN or zero has none.

    Of several embeddings side by side (:func:`ragst_sd.tl.embed_genes`) the names and widths of these parts as well.

    Raises
    ------
    TypeError
        If it is neither a data frame nor a mapping.
    ValueError
        If vectors differ in length, are not numbers, or a gene comes twice.
    """
    todo = "Give a data frame with genes as index, or a mapping from gene to vector."
    require_type(embedding, (pd.DataFrame, Mapping), "embedding", todo)
    if isinstance(embedding, pd.DataFrame):
        genes, rows = [str(gene) for gene in embedding.index], embedding.to_numpy()
        name = str(embedding.attrs.get("name", "data frame"))
    else:
        genes, name = [str(gene) for gene in embedding], "mapping"
        vectors = [np.ravel(np.asarray(vector)) for vector in embedding.values()]
        widths = {len(vector): gene for gene, vector in zip(genes, vectors, strict=True)}
        if len(widths) > 1:
            lengths = ", ".join(f"{gene!r}: {width}" for width, gene in sorted(widths.items()))
            raise ValueError(f"Vectors of `embedding` differ in length ({lengths}). Embed all genes in the same way.")
        rows = np.array(vectors)
    if not np.issubdtype(rows.dtype, np.number) or rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"`embedding` holds no numbers (shape {rows.shape}, {rows.dtype}). {todo} All columns must be numeric."
        )
    require_unique(genes, "genes of `embedding`", "Keep one row each.")
    usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
    names = np.asarray(genes, dtype=str)
    order = np.argsort(names)
    order = order[usable[order]]
    if not len(order):
        raise ValueError("`embedding` has no gene with a finite vector that is not zero.")
    parts = getattr(embedding, "attrs", {}).get("parts")
    of_parts = (
        {"part_names": np.array(list(parts), str), "part_widths": np.array(list(parts.values()))} if parts else {}
    )
    return {"name": name, "genes": names[order], "values": np.asarray(rows[order], dtype=np.float32), **of_parts}


NO_EMBEDDING: dict[str, Any] = {
    "name": "none",
    "genes": np.array([], dtype=str),
    "values": np.zeros((0, 0), dtype=np.float32),
}


def lookup(table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Vectors by gene, of an embedding as `embedding_table` gives it."""
    return dict(zip((str(gene) for gene in table["genes"]), np.asarray(table["values"]), strict=True))


def missing_genes(perturbations: Sequence[str], control: str, vectors: Mapping[str, Any]) -> dict[str, list[str]]:
    """Genes without an embedding, by the perturbation that needs them."""
    lacking = {name: [gene for gene in components(name, control) if gene not in vectors] for name in perturbations}
    return {name: genes for name, genes in lacking.items() if genes}


def spelling(name: str, control: str, vectors: Mapping[str, Any]) -> str:
    """A sentence on what a name without an embedding seems to mean, and what to do; empty if it is like no gene."""
    letters = {gene.casefold(): gene for gene in (*vectors, control)}
    if name.casefold() in letters:
        return (
            f" Did you mean {letters[name.casefold()]!r} for {name!r}? Labels and `embedding` must write a gene alike."
        )
    parts = [letters.get(part.casefold()) for part in _BREAK.split(name)]
    if len(parts) > 1 and all(parts):
        return f" Combinations are written `A+B`: did you mean {SEPARATOR.join(map(str, parts))!r} for {name!r}?"
    for end in reversed([gap.start() for gap in _BREAK.finditer(name)]):
        gene = letters.get(name[:end].casefold())
        if gene is not None:
            return (
                f" {name!r} begins with {gene!r}: if {name[end:]!r} names a guide, take it off the labels, so that the "
                "guides of a gene are one perturbation; combinations are written `A+B`."
            )
    return ""


def embed(perturbations: Sequence[str], control: str, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, d) embeddings of perturbations.

    Raises
    ------
    KeyError
        If a gene has no embedding.
    """
    lacking = missing_genes(perturbations, control, vectors)
    if lacking:
        genes = sorted({gene for each in lacking.values() for gene in each})
        raise KeyError(
            f"The embedding of the reference has no {listing(genes)}, which {listing(lacking)} needs; it has "
            f"{len(vectors)} genes.{spelling(genes[0], control, vectors) or hint(genes[0], vectors)} Ask for others, "
            "or build the reference with an embedding that has them."
        )
    width = len(next(iter(vectors.values())))
    rows = [embed_perturbation(components(name, control), vectors) for name in perturbations]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), width)
