"""`rg.tl.embed_genes`."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ragst_sd._gene_embedding import embedding_table
from ragst_sd._validate import listing, require_positive, require_some, require_type
from ragst_sd.tl._gene_network import read_edges, spectral_embedding

logger = logging.getLogger(__name__)

# Below this length what is left of a gene in the components is rounding, and its direction says nothing.
_MIN_LENGTH = 1e-6


def embed_genes(
    data: str | os.PathLike[str] | pd.DataFrame | Mapping[str, Any] | Sequence[Any],
    *,
    n_components: int = 128,
    min_terms: int = 2,
) -> pd.DataFrame:
    r"""Embed genes by the gene sets that they belong to or by a network, or set several embeddings side by side.

    By gene sets:

    .. math:: x_{gt} = \frac{m_{gt} \log(n / n_t)}{\| m_{g\cdot} \log(n / n_\cdot) \|}, \qquad
              x \approx U S V^\top, \qquad z_g = \frac{(U S)_g}{\|(U S)_g\|}

    with :math:`m_{gt}` one where gene g is in set t, n the number of genes and :math:`n_t` the size of the set. So
    small sets count more than large ones, and genes of the same sets point in the same direction: latent semantic
    analysis (Deerwester et al. 1990, doi:10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9) of gene sets,
    by `sklearn.decomposition.TruncatedSVD`.

    By a network with weights A and degrees d:

    .. math:: D^{-1/2} A D^{-1/2} - \frac{\sqrt{d} \sqrt{d}^\top}{\sum d} \approx U \Lambda U^\top, \qquad
              z_g = \frac{(U \Lambda^{1/2})_g}{\|(U \Lambda^{1/2})_g\|}

    which are the leading eigenvectors of a random walk over the network without what degrees alone explain (the
    modularity of Newman 2006, doi:10.1103/PhysRevE.74.036104), by `scipy.sparse.linalg.eigsh`. The result depends
    neither on the order of the lines nor on that of the genes.

    Parameters
    ----------
    data
        Gene sets: a file with one a line, name, description, genes, separated by tabs (`.gmt`, also `.gmt.gz`; a weight
        after a comma is left out), or a mapping from set to genes.

        A network: a data frame of edges, as STRING has them, with two columns of genes and one of weights (1 for all if
        there is none). An edge may be listed in both directions; the largest weight counts.

        Vectors: a data frame of numbers with genes as index, which is taken as it is.

        Several of these: a list, or a mapping from name to each (files as `pathlib.Path`).
    n_components
        Width of the embedding, below the number of genes and of sets; of a network at most.
    min_terms
        Genes in fewer sets are left out: one set does not place a gene among others.

    Returns
    -------
    Data frame with one row per gene, sorted by name, of unit length for gene sets and networks, and float64 columns
    `svd1`, `svd2`, ...; `.attrs["name"]` says where it comes from, `.attrs["explained_variance"]` how much of the sets
    it keeps. Of several, with the genes that all have: each is centred and scaled to a variance of 1 in all, columns
    are named `<name>:<column>`, and `.attrs["parts"]` is a mapping from name to width. It goes into
    :func:`ragst_sd.tl.build_perturbation_reference` as `embedding`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `data` is none of these.
    ValueError
        If a line is not one of a GMT file, no gene is in enough sets, `n_components` is too large, an edge leads to an
        unknown gene or from a gene to itself, weights are not positive, a network has no edges or no groups, or several
        embeddings share no genes.

    Examples
    --------
    >>> import pandas as pd, ragst_sd as rg
    >>> sets = {"interferon": ["STAT1", "IRF1", "JAK2"], "jak-stat": ["STAT1", "JAK2", "STAT3"]}
    >>> sets |= {"cycle": ["CDK1", "CCNB1", "STAT3"], "mitosis": ["CDK1", "CCNB1", "PLK1"], "growth": ["IRF1", "PLK1"]}
    >>> embedding = rg.tl.embed_genes(sets, n_components=2)
    >>> similarity = embedding @ embedding.T
    >>> bool(similarity.loc["STAT1", "JAK2"] > similarity.loc["STAT1", "CDK1"])
    True
    >>> edges = pd.DataFrame(
    ...     [("STAT1", "JAK2", 0.9), ("JAK2", "IRF1", 0.7), ("CDK1", "PLK1", 0.9), ("IRF1", "CDK1", 0.2)]
    ... )
    >>> both = rg.tl.embed_genes({"sets": sets, "network": edges}, n_components=2)
    >>> both.attrs["parts"]
    {'sets': 2, 'network': 1}
    """
    kinds = (str, os.PathLike, Mapping, pd.DataFrame, Sequence)
    todo = "Give gene sets, a network as a data frame of edges, vectors, or several of them."
    require_type(data, kinds, "data", todo)
    require_positive(n_components, "n_components", whole=True)
    require_positive(min_terms, "min_terms", whole=True)
    several = _several(data)
    if several is None:
        return _embedded(data, int(n_components), int(min_terms))
    require_some(several, "data", "Give at least one embedding.")
    for part in several.values():
        # A string here is more likely a gene of a forgotten set than a file.
        todo = "Several have files as `pathlib.Path`, and edges as a data frame."
        require_type(part, (os.PathLike, Mapping, pd.DataFrame), "data", todo)
    parts = {name: _embedded(part, int(n_components), int(min_terms)) for name, part in several.items()}
    return _side_by_side(parts)


def _several(data: Any) -> dict[str, Any] | None:
    """What is to be embedded by name, where there are several; `None` for one."""
    if isinstance(data, Mapping):
        kinds = (pd.DataFrame, os.PathLike, Mapping)
        return {str(n): x for n, x in data.items()} if any(isinstance(x, kinds) for x in data.values()) else None
    if isinstance(data, str | os.PathLike | pd.DataFrame):
        return None
    return {str(i + 1): part for i, part in enumerate(data)}


def _embedded(data: Any, n_components: int, min_terms: int) -> pd.DataFrame:
    """Embedding by gene sets, by a network, or vectors as they are."""
    if not isinstance(data, pd.DataFrame):
        return _of_sets(data, n_components, min_terms)
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in data.dtypes]
    if all(numbers):
        table = embedding_table(data)
        index = pd.Index(np.asarray(table["genes"], dtype=object), name="gene")
        frame = pd.DataFrame(data.set_axis(data.index.astype(str)).loc[index].to_numpy(float), index=index)
        frame.columns = [str(name) for name in data.columns]
        frame.attrs["name"] = table["name"]
        return frame
    if len(numbers) not in (2, 3) or any(numbers[:2]) or not all(numbers[2:]):
        raise ValueError(
            f"`data` is a data frame with columns {listing(data.columns)}. Edges have two columns of genes and one of "
            "weights; vectors have numbers only, with genes as index."
        )
    return _of_network(data, n_components)


def _of_network(data: pd.DataFrame, n_components: int) -> pd.DataFrame:
    genes, weights = read_edges(data)
    if n_components >= len(genes):
        raise ValueError(
            f"`n_components` is {n_components}; a network of {len(genes)} genes allows {len(genes) - 1} at most."
        )
    components = spectral_embedding(weights, n_components)
    if not components.shape[1]:
        raise ValueError(
            f"The network in `data` ({len(genes)} genes, {weights.nnz // 2} edges) has no groups of genes: how many "
            "edges each gene has says all there is to say. Give more edges, or gene sets."
        )
    logger.info(
        "Embedded a network of %d genes and %d edges in %d components.",
        len(genes),
        weights.nnz // 2,
        components.shape[1],
    )
    return _frame(components, genes, "network, spectral")


def _frame(components: np.ndarray, genes: Sequence[str] | np.ndarray, name: str) -> pd.DataFrame:
    """Rows of unit length, without genes that the components do not hold."""
    length = np.linalg.norm(components, axis=1)
    held = length > _MIN_LENGTH
    frame = pd.DataFrame(
        components[held] / length[held, None],
        index=pd.Index(np.asarray(genes, dtype=object)[held], name="gene"),
        columns=[f"svd{i + 1}" for i in range(components.shape[1])],
    )
    frame.attrs["name"] = f"{name} {components.shape[1]}"
    return frame


def _side_by_side(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Embeddings of the genes that all parts have, each centred and scaled to a variance of 1 in all."""
    genes = sorted(set.intersection(*(set(part.index) for part in parts.values())))
    if len(genes) < 2:
        sizes = ", ".join(f"{name!r}: {len(part)} such as {part.index[0]!r}" for name, part in parts.items())
        raise ValueError(
            f"The embeddings in `data` share {len(genes)} genes ({sizes}). Name genes alike in all of them."
        )
    scaled = []
    for name, part in parts.items():
        if len(part) > len(genes):
            logger.warning(
                "%d of %d genes of %r are left out: not all have them.", len(part) - len(genes), len(part), name
            )
        values = part.loc[genes]
        values = values - values.mean()
        scaled.append((values / np.sqrt((values**2).to_numpy().sum() / len(genes))).add_prefix(f"{name}:"))
    frame = pd.concat(scaled, axis=1)
    frame.attrs = {
        "name": "; ".join(f"{name}: {part.attrs['name']}" for name, part in parts.items()),
        "parts": {name: part.shape[1] for name, part in parts.items()},
    }
    return frame


def _of_sets(data: str | os.PathLike[str] | Mapping[str, Any], n_components: int, min_terms: int) -> pd.DataFrame:
    from sklearn.decomposition import TruncatedSVD

    sets = read_gene_sets(data, "data")
    name = "gene sets" if isinstance(data, Mapping) else Path(data).name
    genes, n_rare, matrix = _weighted(sets, min_terms)
    if n_components >= min(matrix.shape):
        raise ValueError(
            f"`n_components` is {n_components}; {matrix.shape[0]} genes in {matrix.shape[1]} sets of two or more of "
            f"them allow {min(matrix.shape) - 1} at most."
        )
    svd = TruncatedSVD(n_components=n_components, n_iter=10, random_state=0)
    frame = _frame(svd.fit_transform(matrix), genes, f"{name}, SVD")
    explained = float(svd.explained_variance_ratio_.sum())
    logger.info(
        "Embedded %d genes by %d sets, %d components (%.0f%% of the variance); left out: %d genes in fewer than %d "
        "sets, %d that the components do not hold.",
        len(frame),
        matrix.shape[1],
        n_components,
        100 * explained,
        n_rare,
        min_terms,
        len(genes) - len(frame),
    )
    frame.attrs["explained_variance"] = explained
    return frame


def read_gene_sets(sets: str | os.PathLike[str] | Mapping[str, Any], argument: str) -> dict[str, set[str]]:
    """The genes of each set, of a file or a mapping that was given as `argument`."""
    require_type(
        sets, (str, os.PathLike, Mapping), argument, "Give a file of gene sets, or a mapping from set to genes."
    )
    if not isinstance(sets, Mapping):
        return _read(Path(sets), argument)
    text = [name for name, genes in sets.items() if isinstance(genes, str)]
    if text:
        raise ValueError(f"`{argument}`: set {text[0]!r} is a string; give a list of genes.")
    return {str(name): {str(gene) for gene in genes} for name, genes in sets.items()}


def _read(path: Path, argument: str) -> dict[str, set[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}`: {path} does not exist or is no file.")
    sets: dict[str, set[str]] = {}
    opening = gzip.open if path.suffix == ".gz" else open
    with opening(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) < 3:
                raise ValueError(
                    f"{path}, line {number}: {len(fields)} fields, but a line of a GMT file has a name, a "
                    f"description and genes, separated by tabs (found {line.strip()[:60]!r})."
                )
            genes = {field.split(",")[0].strip() for field in fields[2:]}
            sets.setdefault(fields[0], set()).update(genes)
    return sets


def _weighted(sets: Mapping[str, set[str]], min_terms: int) -> tuple[list[str], int, sp.csr_matrix]:
    """Genes in enough sets, the number of the others, and (genes, sets) inverse frequencies in rows of unit length."""
    from sklearn.preprocessing import MultiLabelBinarizer, normalize

    members = [genes - {""} for _, genes in sorted(sets.items())]
    binarizer = MultiLabelBinarizer(sparse_output=True)
    belongs = sp.csr_matrix(binarizer.fit_transform(members).T, dtype=np.float64)
    everyone = binarizer.classes_
    enough = np.asarray(belongs.sum(axis=1)).ravel() >= min_terms
    frequent = belongs[enough]
    size = np.asarray(frequent.sum(axis=0)).ravel()
    # A set of one gene says nothing about two; a set of all genes has no weight either.
    useful = (size > 1) & (size < frequent.shape[0])
    frequent, size = frequent[:, useful], size[useful]
    shared = np.asarray(frequent.sum(axis=1)).ravel() > 0
    genes = list(everyone[enough][shared])
    if not genes:
        raise ValueError(
            f"`data`: of {len(everyone)} genes in {len(members)} sets none is in {min_terms} sets that it shares "
            "with others."
        )
    weighted = frequent[shared] @ sp.diags(np.log(len(genes) / size))
    return genes, len(everyone) - len(genes), normalize(sp.csr_matrix(weighted))
