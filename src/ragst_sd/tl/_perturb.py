"""`rg.tl.perturb`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._fields import RESPONSES, documented
from ragst_sd._gene_names import read_expression
from ragst_sd._respond import Task, open_task, respond, wanted_perturbations
from ragst_sd._settings import settings
from ragst_sd._validate import listing, names_among, require_type
from ragst_sd.reference.genes import shared_genes, take_genes
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.response_run import no_response
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._perturbation_cells import contexts_of
from ragst_sd.tl._predicted_table import assembled

logger = logging.getLogger(__name__)

# Below this share of the reference's genes the query hardly shows what the response was measured on.
_FEW_GENES = 0.5
_TISSUE = "For the spots of a tissue there is `rg.tl.perturb_tissue`."


@documented(RESPONSES)
def perturb(
    adata: AnnData | pd.DataFrame,
    reference: AnnData,
    *,
    perturbations: str | Sequence[str],
    context_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    genes: str | Sequence[str] | None = None,
    n_neighbors: int | None = None,
    where: Mapping[str, Any] | Sequence[bool] | np.ndarray | None = None,
    exclude: Sequence[str] = ("perturbation", "context"),
    progress: bool | None = None,
) -> AnnData:
    r"""Predict how cells respond to perturbations, from measured responses to related ones.

    .. math:: \hat y_i(p) = y_i + \underbrace{\sum_j w_j \Delta_j}_{\text{evidence}} + \text{adjustment}

    The response is that of the population in its context: direct and cell-autonomous. It does not describe how cells
    act on their neighbours, and it does not show that the gene alone caused the measured effect. For the spots of a
    tissue, use :func:`ragst_sd.tl.perturb_tissue`.

    Parameters
    ----------
    adata
        Cells to perturb, usually controls; all of them are used. For a reference of given responses, which has no
        cells: a table whose `context_key` names the contexts to predict in (an AnnData, or its `.obs`). Nothing else of
        it is read. Responses that were measured in a context belong in the reference.
    reference
        Made by :func:`ragst_sd.tl.build_perturbation_reference` and fitted by :func:`ragst_sd.tl.fit`.
    perturbations
        Genes, and combinations written `A+B`. Any gene of the reference's embedding can be requested, whether it was
        measured or not; without an embedding, what was measured in some context. The control's name returns the cells
        unchanged.
    context_key
        Column of `adata.obs` with the context. Contexts that the reference does not know are new ones. Without it all
        cells are of one new context, unless the reference has no contexts either.
    layer
        Layer of `adata` with expression of cells; `.X` if left out.
    unit
        Of cells: `"counts"`, which are normalised as the reference was, or `"log1p_cp10k"` for values on its scale
        already.
    genes
        Genes to predict; all that reference and cells share if left out.
    n_neighbors
        Responses cited at most; what was fitted if left out, never more.
    where
        Rows that may be used: a mapping from column of `reference.obs` to allowed value(s), or a mask over its rows.
    exclude
        A row that agrees with the query in all of these columns is not used: by default the perturbation itself in its
        own context. `("perturbation",)` leaves it out in every context, `()` switches exclusion off. Combinations that
        hold the perturbation are rows of their own, and stay: `task` then says so. What is left out is not cited, but a
        method has been fitted on all rows of the reference: the network of `"pt_rag"` was trained on the response
        itself, which is warned of and written into `learned_from`; `"rag"` and `"ridge"` chose a few settings with it.
        For a test of a method fit a reference without the perturbation (:func:`ragst_sd.tl.perturbation_folds`).
    progress
        Show a progress bar where many perturbations take longer than a second; the setting if left out.

    Returns
    -------
    An AnnData with every cell once for every perturbation, named `<cell>:<perturbation>`; without cells every context
    once, `.X` being the response in the unit of the reference, and `source` the context. And

    {fields}
    `.uns["retrieval"]`
        Provenance: hashes of reference and fit, method, parameters, unit, sources, `gene_overlap` (share of the
        reference's genes in `adata`), `control_cells` that the reference was measured against, `starts_from` (what
        evidence is if no rows are cited), `learned_from` (left-out responses that the method learned from:
        `perturbation`, `context`, and `what` it took, `"settings"` or `"responses"`), and `cited`: one line per cited
        row (reference, perturbation, context, perturbation_type, n_cells, reliability).

    Raises
    ------
    KeyError
        If a column does not exist, or a gene has no embedding in the reference.
    TypeError
        If `adata` is no AnnData, nor, for a reference of given responses, a data frame.
    ValueError
        If the reference is not fitted or has changed since, reference and cells share no genes, values are not what
        `unit` says, `n_neighbors` exceeds what was fitted or may be used, or the method has nothing to answer from (the
        sum of singles, for a single gene).

    Examples
    --------
    >>> import anndata as ad, numpy as np, ragst_sd as rg
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(2.0, size=(120, 210)).astype("float32"))
    >>> adata.obs["perturbation"] = np.repeat(["control", "STAT1", "JAK2", "IRF1"], 30)
    >>> embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "IRF1": [0.8, 0.1], "STAT2": [1.0, 0.1]}
    >>> reference = rg.tl.build_perturbation_reference(adata, embedding=embedding)
    >>> rg.tl.fit(reference, method="knn", n_neighbors=2)
    >>> controls = adata[adata.obs["perturbation"] == "control"]
    >>> predicted = rg.tl.perturb(controls, reference, perturbations=["STAT2", "control"])
    >>> predicted.shape
    (60, 210)
    """
    task = open_task(reference, exclude, n_neighbors, where)
    known = wanted_perturbations(task, perturbations)
    asked = read_asked(adata, task.bank, context_key=context_key, layer=layer, unit=unit, genes=genes)
    names = [name for name in dict.fromkeys(known.values()) if name != task.control]
    pairs = [(name, context) for name in names for context in asked.states]
    show = settings.progress if progress is None else progress
    of_pairs, learned_from = respond(task, pairs, asked.states, progress=show)
    header = task.header(learned_from, context_key) | {_keys.GENE_OVERLAP: asked.gene_overlap}
    return _table(task, asked, known, pairs, of_pairs, header)


class Asked(NamedTuple):
    """Cells whose responses are asked for; contexts, where responses were given."""

    values: sp.csr_matrix
    """(cells, genes) their expression."""
    genes: list[str]
    cells: np.ndarray
    contexts: np.ndarray
    """(cells,)."""
    states: dict[str, np.ndarray]
    """(genes of the reference,) mean expression of each context."""
    gene_overlap: float
    """Share of the genes of the reference that the cells have."""


def read_asked(
    adata: AnnData | pd.DataFrame,
    bank: Bank,
    *,
    context_key: str | None,
    layer: str | None,
    unit: str,
    genes: str | Sequence[str] | None,
) -> Asked:
    """Cells with their genes, contexts and states; contexts, one line each, where responses were given."""
    header, of_bank, expression = bank.header, list(bank.genes), None
    if not header.from_responses:
        todo = f"The reference was built from cells, and predicts cells. {_TISSUE}"
        expression = read_expression(adata, layer=layer, unit=unit, like=header.normalization, todo=todo)
        shared = shared_genes(of_bank, expression.genes, "Reference and cells")
        lacking = ": reference and cells do not share"
        if len(shared) < _FEW_GENES * len(of_bank):
            logger.warning("Only %d of the reference's %d genes are in the cells.", len(shared), len(of_bank))
    else:
        require_type(adata, (AnnData, pd.DataFrame), "adata", _TISSUE)
        shared, lacking = of_bank, ": the reference has no"
    chosen = shared if genes is None else names_among(genes, shared, "genes", lacking)
    if context_key is None and header.context_key:
        logger.warning(
            "`context_key` is left out: the cells are of a new context, none of %s.", listing(header.contexts)
        )
    obs = adata if isinstance(adata, pd.DataFrame) else adata.obs
    unknown = _keys.UNKNOWN if header.context_key else _keys.ALL_CONTEXTS
    contexts = contexts_of(obs, context_key, "adata", header.contexts, unknown)
    if expression is None:
        contexts = np.array(list(dict.fromkeys(contexts)), dtype=object)
        if not len(contexts):
            raise ValueError("`adata` has no rows, so that no context is asked about. Name the contexts in one column.")
        known, everywhere = dict(zip(header.contexts, bank.screen.states, strict=True)), bank.screen.states.mean(axis=0)
        new = [name for name in contexts if name not in known]
        if new:
            logger.warning("Nothing is known of %s: it is taken for the mean of all contexts.", listing(new))
        states = {name: known.get(name, everywhere) for name in contexts}
        nothing = sp.csr_matrix((len(contexts), len(chosen)))
        return Asked(nothing, chosen, contexts.astype(str), contexts, states, 1.0)
    whole = take_genes(expression.values, expression.genes, of_bank).astype(np.float64)
    absent = ~bank.genes.isin(expression.genes)
    states = {
        context: np.where(absent, np.nan, np.asarray(whole[contexts == context].mean(axis=0)).ravel())
        for context in dict.fromkeys(contexts)
    }
    values = take_genes(expression.values, expression.genes, chosen)
    return Asked(values, chosen, np.asarray(obs.index, dtype=str), contexts, states, float((~absent).mean()))


def _table(
    task: Task,
    asked: Asked,
    names: dict[str, str],
    pairs: list[tuple[str, str]],
    of_pairs: dict[str, np.ndarray],
    header: dict[str, Any],
) -> AnnData:
    """Every cell once for every perturbation.

    Parameters
    ----------
    names
        Perturbations as they were asked for, and their one spelling.
    pairs, of_pairs
        Perturbations and contexts, and the fields of each.
    """
    line_of, n = {pair: i for i, pair in enumerate(pairs)}, len(names)
    # The last line is the control's: no response, nothing cited.
    line = [line_of.get((name, context), len(pairs)) for name in names.values() for context in asked.contexts]
    at = task.bank.genes.get_indexer(asked.genes)
    of_pairs = of_pairs | {name: of_pairs[name][:, at].astype(np.float32) for name in (_keys.EVIDENCE, _keys.RESPONSE)}
    control = no_response(1, len(at), of_pairs[_keys.ROWS].shape[1])
    of_cells = {
        name: np.concatenate([part, control.get(name, [np.nan])]).astype(part.dtype)[line]
        for name, part in of_pairs.items()
    }
    values = np.tile(dense(asked.values).astype(np.float32), (n, 1))
    perturbation, sources = np.repeat(np.asarray(list(names), dtype=object), len(asked.cells)), np.tile(asked.cells, n)
    return assembled(
        RESPONSES,
        task.bank,
        {
            **of_cells,
            "prediction": values + of_cells[_keys.RESPONSE],
            _keys.PERTURBATION: pd.Categorical(perturbation),
            _keys.CONTEXT: pd.Categorical(np.tile(asked.contexts, n)),
            _keys.SOURCE: sources,
        },
        obs=pd.DataFrame(index=[f"{cell}:{name}" for cell, name in zip(sources, perturbation, strict=True)]),
        genes=pd.Index(asked.genes, name="gene"),
        header=header,
    )
