"""Genes embedded by a network of them, which comes as a list of edges."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, eigsh

from ragst_sd._labels import is_missing, labels
from ragst_sd._validate import listing, require_some
from ragst_sd.retrieval.projection import largest_positive

_POSITIVE = 1e-9
# Proteins as STRING names them: taxon and Ensembl protein.
_PROTEIN = r"(\d+\.)?ENS[A-Z]*P\d{11}"


def read_edges(frame: pd.DataFrame) -> tuple[np.ndarray, sp.csr_matrix]:
    """Genes in the order of their names, and (genes, genes) symmetric weights; of edges listed twice the largest.

    Raises
    ------
    ValueError
        If there is no edge, a gene has no name or is named as a protein, an edge leads from a gene to itself, or a
        weight is not positive.
    """
    require_some(frame.index, "data", "Give at least one edge.")
    ends = [labels(frame.iloc[:, i]) for i in (0, 1)]
    nameless = is_missing(ends[0]) | is_missing(ends[1])
    if nameless.any():
        raise ValueError(
            f"{int(nameless.sum())} edges of `data` lead to an unknown gene (no name). Remove them, or name the gene."
        )
    named = pd.Series(np.concatenate(ends), dtype=object)
    proteins = named[named.str.fullmatch(_PROTEIN)].unique()
    if len(proteins):
        raise ValueError(
            f"`data` names proteins ({listing(proteins)}), which are unknown genes to a screen. Write "
            "gene symbols: STRING's file `protein.info` has them as `preferred_name`."
        )
    loops = ends[0] == ends[1]
    if loops.any():
        raise ValueError(
            f"`data` has edges from a gene to itself: {listing(dict.fromkeys(ends[0][loops]))}. Remove these loops."
        )
    weight = np.ones(len(frame)) if frame.shape[1] == 2 else frame.iloc[:, 2].to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(weight) & (weight > 0))
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} edges of `data` have a weight that is no finite number above 0 "
            f"({listing(dict.fromkeys(weight[wrong].tolist()))}). Remove them."
        )
    genes, codes = np.unique(named.to_numpy(str), return_inverse=True)
    first, second = np.sort(codes.reshape(2, -1), axis=0)
    edges = pd.Series(weight).groupby([first, second]).max()
    upper = sp.csr_matrix(
        (edges, (edges.index.get_level_values(0), edges.index.get_level_values(1))), (len(genes),) * 2
    )
    return genes, sp.csr_matrix(upper + upper.T)


def spectral_embedding(weights: sp.csr_matrix, n_components: int) -> np.ndarray:
    """(genes, components) leading eigenvectors of a random walk over the network, by the root of their eigenvalues.

    Of the symmetric form of the walk what the degrees alone explain is taken off, which is the modularity of the
    network; components of negative eigenvalues, in which neighbours differ, are left out.
    """
    degree = np.asarray(weights.sum(axis=1)).ravel()
    scale = sp.diags(1 / np.sqrt(degree))
    walk = sp.csr_matrix(scale @ weights @ scale)
    stationary = np.sqrt(degree / degree.sum())

    def apply(x: np.ndarray) -> np.ndarray:
        x = np.ravel(x)
        return np.asarray(walk @ x - stationary * (stationary @ x))

    start = np.random.default_rng(0).normal(size=len(degree))
    values, vectors = eigsh(LinearOperator(walk.shape, matvec=apply, dtype=float), k=n_components, which="LA", v0=start)
    order = np.argsort(-values)
    order = order[values[order] > _POSITIVE]
    return np.asarray(largest_positive(vectors[:, order]) * np.sqrt(values[order]))
