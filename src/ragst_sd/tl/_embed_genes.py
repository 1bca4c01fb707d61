"""`rg.tl.embed_genes`."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd._validate import require_positive, require_type

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

logger = logging.getLogger(__name__)

# Below this length what is left of a gene in the components is rounding, and its direction says nothing.
_MIN_LENGTH = 1e-6


def embed_genes(
    gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]], *, n_components: int = 128, min_terms: int = 2
) -> pd.DataFrame:
    r"""Embed genes by the gene sets that they belong to.

    .. math:: x_{gt} = \frac{m_{gt} \log(n / n_t)}{\| m_{g\cdot} \log(n / n_\cdot) \|}, \qquad
              x \approx U S V^\top, \qquad z_g = \frac{(U S)_g}{\|(U S)_g\|}

    with :math:`m_{gt}` one where gene g is in set t, n the number of genes and :math:`n_t` the size of the set. So
    small sets count more than large ones, and genes of the same sets point in the same direction: latent semantic
    analysis (Deerwester et al. 1990, doi:10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9) of gene sets,
    by `sklearn.decomposition.TruncatedSVD`. The result depends neither on the order of the lines nor on that of the
    genes.

    Parameters
    ----------
    gmt
        File of gene sets, one a line: name, description, genes, separated by tabs (`.gmt`, also `.gmt.gz`; a weight
        after a comma is left out). Or a mapping from set to genes.
    n_components
        Width of the embedding, below the number of genes and of sets.
    min_terms
        Genes in fewer sets are left out: one set does not place a gene among others.

    Returns
    -------
    Data frame with one row of unit length per gene, sorted by name, and float64 columns `svd1`, `svd2`, ...;
    `.attrs["name"]` says where it comes from, `.attrs["explained_variance"]` how much of the sets it keeps. It goes
    into
    :func:`ragst_sd.tl.build_perturbation_reference` as `embedding`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `gmt` is neither a path nor a mapping.
    ValueError
        If a line is not one of a GMT file, no gene is in enough sets, or `n_components` is too large.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sets = {"interferon": ["STAT1", "IRF1", "JAK2"], "jak-stat": ["STAT1", "JAK2", "STAT3"]}
    >>> sets |= {"cycle": ["CDK1", "CCNB1", "STAT3"], "mitosis": ["CDK1", "CCNB1", "PLK1"], "growth": ["IRF1", "PLK1"]}
    >>> embedding = rg.tl.embed_genes(sets, n_components=2)
    >>> similarity = embedding @ embedding.T
    >>> bool(similarity.loc["STAT1", "JAK2"] > similarity.loc["STAT1", "CDK1"])
    True
    """
    import pandas as pd
    from sklearn.decomposition import TruncatedSVD

    require_positive(n_components, "n_components", whole=True)
    require_positive(min_terms, "min_terms", whole=True)
    sets = read_gene_sets(gmt)
    name = "gene sets" if isinstance(gmt, Mapping) else Path(gmt).name
    genes, n_rare, matrix = _weighted(sets, int(min_terms))
    if n_components >= min(matrix.shape):
        msg = (
            f"`n_components` is {n_components}; {matrix.shape[0]} genes in {matrix.shape[1]} sets of two or more of "
            f"them allow {min(matrix.shape) - 1} at most."
        )
        raise ValueError(msg)
    svd = TruncatedSVD(n_components=int(n_components), n_iter=10, random_state=0)
    projected = svd.fit_transform(matrix)
    length = np.linalg.norm(projected, axis=1)
    kept = length > _MIN_LENGTH
    explained = float(svd.explained_variance_ratio_.sum())
    logger.info(
        "Embedded %d genes by %d sets, %d components (%.0f%% of the variance); left out: %d genes in fewer than %d "
        "sets, %d that the components do not hold.",
        int(kept.sum()),
        matrix.shape[1],
        n_components,
        100 * explained,
        n_rare,
        min_terms,
        int((~kept).sum()),
    )
    frame = pd.DataFrame(
        projected[kept] / length[kept, None],
        index=pd.Index(np.asarray(genes, dtype=object)[kept], name="gene"),
        columns=[f"svd{i + 1}" for i in range(int(n_components))],
    )
    frame.attrs |= {"name": f"{name}, SVD {int(n_components)}", "explained_variance": explained}
    return frame


def read_gene_sets(gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """The genes of each set, of a file or a mapping."""
    require_type(gmt, (str, os.PathLike, Mapping), "gmt", "Give a file of gene sets, or a mapping from set to genes.")
    return _from_mapping(gmt) if isinstance(gmt, Mapping) else _read(Path(gmt))


def _from_mapping(sets: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    text = [name for name, genes in sets.items() if isinstance(genes, str)]
    if text:
        msg = f"`gmt`: set {text[0]!r} is a string; give a list of genes."
        raise ValueError(msg)
    return {str(name): {str(gene) for gene in genes} for name, genes in sets.items()}


def _read(path: Path) -> dict[str, set[str]]:
    if not path.is_file():
        msg = f"`gmt`: {path} does not exist or is no file."
        raise FileNotFoundError(msg)
    sets: dict[str, set[str]] = {}
    opening = gzip.open if path.suffix == ".gz" else open
    with opening(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) < 3:
                msg = (
                    f"{path}, line {number}: {len(fields)} fields, but a line of a GMT file has a name, a "
                    f"description and genes, separated by tabs (found {line.strip()[:60]!r})."
                )
                raise ValueError(msg)
            genes = {field.split(",")[0].strip() for field in fields[2:]}
            sets.setdefault(fields[0], set()).update(genes)
    return sets


def _weighted(sets: Mapping[str, set[str]], min_terms: int) -> tuple[list[str], int, sp.csr_matrix]:
    """Genes in enough sets, the number of the others, and (genes, sets) inverse frequencies in rows of unit length."""
    import scipy.sparse as sp
    from sklearn.preprocessing import MultiLabelBinarizer, normalize

    members = [genes - {""} for _, genes in sorted(sets.items())]
    binarizer = MultiLabelBinarizer(sparse_output=True)
    belongs = sp.csr_matrix(binarizer.fit_transform(members).T, dtype=np.float64)
    everyone = binarizer.classes_
    enough = np.asarray(belongs.sum(axis=1)).ravel() >= min_terms
    kept = belongs[enough]
    size = np.asarray(kept.sum(axis=0)).ravel()
    # A set of one gene says nothing about two; a set of all genes has no weight either.
    useful = (size > 1) & (size < kept.shape[0])
    kept, size = kept[:, useful], size[useful]
    placed = np.asarray(kept.sum(axis=1)).ravel() > 0
    genes = list(everyone[enough][placed])
    if not genes:
        msg = (
            f"`gmt`: of {len(everyone)} genes in {len(members)} sets none is in {min_terms} sets that it shares "
            "with others."
        )
        raise ValueError(msg)
    weighted = kept[placed] @ sp.diags(np.log(len(genes) / size))
    return genes, len(everyone) - len(genes), normalize(sp.csr_matrix(weighted))
