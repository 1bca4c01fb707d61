"""`rg.tl.build_perturbation_reference`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._gene_embedding import NO_EMBEDDING, embed, embedding_table, lookup, missing_genes, spelling
from ragst_sd._gene_names import read_expression
from ragst_sd._reference import reference_hash
from ragst_sd._validate import (
    as_names,
    as_seed,
    hint,
    listing,
    name_list,
    names_among,
    require_choice,
    require_known,
    require_positive,
)
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.normalize import TARGET_SUM, UNITS
from ragst_sd.reference.schema import RESPONSE_UNITS, TASK
from ragst_sd.tl._perturbation_cells import NAME_THEM, control_labels, read_labels, repeated_controls
from ragst_sd.tl._response_table import given_numbers, given_responses, read_responses, refuse_responses, response_adata
from ragst_sd.tl._screen import Screen, cell_parts, dropped_frame, measure, sources_frame

logger = logging.getLogger(__name__)


def build_perturbation_reference(
    adata: AnnData | pd.DataFrame,
    *,
    embedding: pd.DataFrame | Mapping[str, Any] | None = None,
    perturbation_key: str = "perturbation",
    control: str | Sequence[str] = "control",
    context_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    target_sum: float | None = TARGET_SUM,
    genes: str | Sequence[str] | None = None,
    type_key: str | None = None,
    perturbation_type: str | Sequence[str] | None = None,
    on_missing: str = "drop",
    min_cells: int = 10,
    max_controls: int = 500,
    max_cells: int = 64,
    sources: Mapping[str, Mapping[str, str]] | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> AnnData:
    r"""Turn a perturbation screen into a reference, one row per perturbation and context.

    The screen is given as cells, or as responses that are measured already, which `unit` says. Of cells a row is the
    mean response of its cells against the controls of the same context and batch,

    .. math:: \Delta_{pc} = \frac{1}{n_{pc}} \sum_{i \in (p, c)} (y_i - \bar c_{c, b(i)})

    with y on a log scale. Its reliability is the Pearson correlation over genes between the responses of two halves
    that share neither cells nor controls, averaged over five splits. (Responses measured against shared controls
    correlate even without any effect.) Responses are taken as they are given. Combinations are written `A+B`; `B+A` is
    the same, and `A+control` is `A`.

    Parameters
    ----------
    adata
        Cells of the screen. Or responses: an AnnData or a wide data frame with one row per perturbation and context, or
        a long data frame with one line per gene of each, as DE tables of pertpy (`variable`, `log_fc`), scanpy
        (`names`, `logfoldchanges`) and PyDESeq2 (`gene`, `log2FoldChange`, `lfcSE`) are. `.layers["standard_error"]`,
        or a column `standard_error` or `lfcSE`, and columns `n_cells` and `reliability` are kept where they are there.
        Genes that some row lacks are left out. Of a wide data frame all columns but these labels are genes, unless
        `genes` names them.
    embedding
        Vector of each gene: a data frame with genes as index, or a mapping. :func:`ragst_sd.tl.embed_genes` makes one
        from gene sets. The embedding of a combination is the sum over its genes. All genes are kept, so that genes
        without a row can be requested later. Left out, as for drugs, a perturbation is known by its responses in other
        contexts only, and methods that compare embeddings cannot be fitted.
    perturbation_key
        Column of `.obs` with the perturbation.
    control
        What that column says for controls, which need no embedding. Several names count as one control, by the first.
        Rows of controls among responses are left out.
    context_key
        Column of `.obs` with the context (cell line, cell type, stimulus); one context, `"all"`, if left out.
    batch_key
        Column of `.obs` with the batch of cells. Cells of a batch with fewer than two controls of their context are
        left out.
    layer
        Layer with expression, or with responses; `.X` if left out. Of a long data frame, the column with values.
    unit
        Of cells `"counts"`, or `"log1p_cp10k"` for values that are log1p of normalised counts already. Counts become
        log1p of counts per `target_sum`, with size factors from all genes of `adata`. Of responses
        `"log_fold_change"`, `"z_score"` (of signatures and tests), or `"rank"`: scaled from 1 (most up) to -1 (most
        down), 0 for genes that a list does not name.
    target_sum
        Of cells: sum that counts of a cell are scaled to; `None` is their median, for panels of few genes. Queries
        follow it.
    genes
        Keep these genes only; all if left out. Size factors use all genes either way. Of a wide data frame, the columns
        that are genes; other columns are then ignored.
    type_key
        Column of `.obs` with the type of perturbation (CRISPRi, CRISPRa, knock-out, ...); `"perturbation_type"` where
        there is one, if left out.
    perturbation_type
        Type or types to keep. Several types are mixed only if they are named here. Without a column, one name for all.
    on_missing
        `"drop"` leaves out perturbations with a gene that has no embedding (or a vector of zeros or NaN), by name;
        `"error"` stops. A name that seems to be spelled otherwise only (other capitals, a guide `STAT1_g1`, a
        combination `A_B`) is an error either way.
    min_cells
        Rows of fewer cells are left out, by name; responses without `n_cells` are all kept.
    max_controls
        Of cells: control cells to keep of each context, drawn at random, so that the cell state is known.
    max_cells
        Of cells: perturbed cells to keep of each row, drawn at random: method `pt_rag` learns from cells. 0 keeps none.
    sources
        For each context a mapping with `technology`, `license`, `citation`; `"unknown"` if left out.
    rng
        Seed, generator or seed sequence of numpy, of the splits and of the draw of
        controls; `None` draws anew at each call.

    Returns
    -------
    AnnData with rows named `<context>:<perturbation>` (and type, if there are several)

    `.X`
        float32 (rows, genes), mean response, in the unit named in the header.
    `.layers["standard_error"]`
        Standard error of the mean response, controls included; of responses only where it was given.
    `.layers["response_half1"]`, `["response_half2"]`
        Of cells: the response against one half of the controls each, so that what is learned on one can be tested on
        the other. Responses have none: settings are then chosen on held-out perturbations alone.
    `.obs`
        perturbation, context, perturbation_type, n_cells (0 where not given), n_controls, reliability (NaN where not
        given: such rows count alike).
    `.obsm["perturbation_embedding"]`
        float32 (rows, d), embedding of the perturbation; d is 0 without one.
    `.uns["ragst"]`
        Header with task `"perturbation"`: the whole `embedding`, `normalization`, `contexts` (mean and number of
        controls; of responses the mean response, which is the state of a context), `controls` (a sample of their
        cells), `treated` (a sample of the cells of every row), `control_cells` (names of all controls used),
        `control_prints` (what these are recognised by under other names), `control_names`, `dropped` (what was left
        out, and why), `sources`, content hash.

    Raises
    ------
    KeyError
        If a column or layer does not exist, or with `on_missing="error"` a gene has no embedding.
    TypeError
        If `control` is no name and no list of names.
    ValueError
        If a label is missing, cells have no controls, a context has none, several types would be mixed, values are not
        what `unit` says, responses come without a unit, a wide data frame has columns that hold no numbers or are
        called like annotations (`dose`, `time`, `n_...`, `pval`), a perturbation has two responses in a context, or no
        row is left.

    Examples
    --------
    >>> import anndata as ad, numpy as np, ragst_sd as rg
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(2.0, size=(90, 210)).astype("float32"))
    >>> adata.obs["perturbation"] = np.repeat(["control", "STAT1", "JAK2"], 30)
    >>> embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "CDK1": [0.0, 1.0]}
    >>> reference = rg.tl.build_perturbation_reference(adata, embedding=embedding)
    >>> list(reference.obs_names)
    ['all:JAK2', 'all:STAT1']

    Responses of drugs in two cell lines, from a table of differential expression:

    >>> import pandas as pd
    >>> drugs = pd.DataFrame({"drug": ["A", "B", "A", "B"], "line": ["K562", "K562", "MCF7", "MCF7"]})
    >>> drugs[[f"GENE{i}" for i in range(30)]] = rng.normal(size=(4, 30))
    >>> columns = {"perturbation_key": "drug", "context_key": "line"}
    >>> reference = rg.tl.build_perturbation_reference(drugs, unit="log_fold_change", **columns)
    >>> rg.tl.fit(reference, method="same_perturbation")
    >>> rg.tl.perturb(drugs[["line"]], reference, perturbations="A", context_key="line").n_obs
    2
    """
    require_choice(on_missing, ("drop", "error"), "on_missing")
    require_choice(unit, (*UNITS, *RESPONSE_UNITS), "unit")
    named, given = control_labels(control), unit in RESPONSE_UNITS
    for name, value in (("min_cells", min_cells), ("max_controls", max_controls)):
        require_positive(value, name, whole=True)
    if isinstance(max_cells, bool) or not isinstance(max_cells, int | np.integer) or max_cells < 0:
        raise ValueError(f"`max_cells` is {max_cells!r}; it must be a whole number, at least 0.")
    if target_sum is not None:
        require_positive(target_sum, "target_sum")
    table = NO_EMBEDDING if embedding is None else embedding_table(embedding)
    if given:
        columns = (perturbation_key, context_key, type_key)
        chosen = None if genes is None else name_list(genes, "genes")
        adata, layer = response_adata(adata, *columns, layer=layer, unit=unit, genes=chosen)
        expression = read_responses(adata, unit=unit, layer=layer)
    else:
        refuse_responses(adata, unit, perturbation_key, context_key, named, layer)
        expression = read_expression(adata, layer=layer, unit=unit, target_sum=target_sum)
    kinds: dict[str, Any] = {"type_key": type_key, "perturbation_type": perturbation_type}
    keys = (perturbation_key, control, context_key, batch_key)
    cells = read_labels(adata, *keys, **kinds, todo=NAME_THEM, responses=given)
    control = named[0]
    cells["used"] = cells["control"] | _of_types(cells, perturbation_type)
    if not given:
        cells["used"] &= ~repeated_controls(cells, expression.values)
        _require_controls(cells)
    vectors = lookup(table)
    embedded = np.ones(len(cells), bool) if embedding is None else _embedded(cells, control, vectors, on_missing)
    cells["left_out"] = np.where(cells["used"] & ~embedded, "no embedding", "")
    cells["used"] &= embedded
    cells[_keys.N_CELLS] = 1
    if given:
        cells[_keys.N_CELLS], cells[_keys.RELIABILITY] = given_numbers(adata.obs)
    chosen_genes = (
        expression.genes if genes is None else names_among(genes, expression.genes, "genes", ": the cells have no")
    )
    # Cells in the order of their names: neither sums nor draws depend on the order in which they came.
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    screen = Screen(take_genes(expression.values, expression.genes, chosen_genes)[order], cells.iloc[order].copy())
    seed = as_seed(rng)
    if given:
        errors = expression.errors
        errors = None if errors is None else take_genes(errors, expression.genes, chosen_genes)[order]
        reference, parts = given_responses(screen, chosen_genes, errors, min_cells=int(min_cells))
    else:
        reference, row = measure(screen, chosen_genes, min_cells=int(min_cells), rng=np.random.default_rng(seed))
        parts = cell_parts(screen, reference, row, int(max_controls), int(max_cells), seed)
    obs = reference.obs
    embedded_rows = embed(obs[_keys.PERTURBATION], control, vectors) if vectors else np.zeros((len(obs), 0))
    reference.obsm[_keys.PERTURBATION_EMBEDDING] = embedded_rows.astype(np.float32)
    if not vectors:
        _warn_without_key(obs)
    header = {
        "schema_version": _keys.SCHEMA_VERSION,
        "task": TASK,
        "use_rep": _keys.PERTURBATION_EMBEDDING,
        "perturbation_key": perturbation_key,
        "control": control,
        _keys.CONTROL_NAMES: np.asarray(named, dtype=str),
        "context_key": context_key or "",
        "batch_key": batch_key or "",
        "normalization": expression.normalization,
        "embedding": table,
        **parts,
        "dropped": dropped_frame(screen.cells),
        "sources": sources_frame(sources, sorted(set(screen.cells[_keys.CONTEXT][screen.cells["used"]]))),
    }
    reference.uns[_keys.ATTRS] = header
    reference.uns[_keys.ATTRS]["content_hash"] = reference_hash(reference)
    n_reliable = int((obs[_keys.RELIABILITY] >= 0.5).sum())
    logger.info(
        "Reference of %d rows: %d perturbations in %d contexts, %d genes; reliability of .5 and above in %d rows.",
        reference.n_obs,
        obs[_keys.PERTURBATION].nunique(),
        obs[_keys.CONTEXT].nunique(),
        reference.n_vars,
        n_reliable,
    )
    return reference


def _warn_without_key(obs: pd.DataFrame) -> None:
    """Warn where neither an embedding nor another context can say which rows are alike."""
    several = obs.groupby(_keys.PERTURBATION, observed=True)[_keys.CONTEXT].nunique() > 1
    if not several.any():
        logger.warning(
            "There is no embedding, and no perturbation was measured in two contexts (%s): nothing says which rows "
            "are alike, so that only `mean` and `none` can answer.",
            listing(sorted(set(obs[_keys.CONTEXT]))),
        )


def _of_types(cells: pd.DataFrame, asked: str | Sequence[str] | None) -> pd.Series:
    """Perturbed cells of the types asked for."""
    types = cells[_keys.PERTURBATION_TYPE][~cells["control"]]
    kinds = sorted(set(types))
    if asked is None:
        if len(kinds) > 1:
            raise ValueError(
                f"The cells hold perturbations of several types ({listing(kinds)}), which are not mixed unasked. "
                f"Choose one with `perturbation_type={kinds[0]!r}`, or name those to mix."
            )
        return ~cells["control"]
    wanted = as_names(asked)
    require_known(wanted, kinds, "perturbation_type", ": no perturbed cell is of type")
    return ~cells["control"] & cells[_keys.PERTURBATION_TYPE].isin(wanted)


def _require_controls(cells: pd.DataFrame) -> None:
    contexts = cells[_keys.CONTEXT]
    with_controls = sorted(set(contexts[cells["control"]]))
    lacking = contexts[cells["used"] & ~contexts.isin(with_controls)]
    if len(lacking):
        raise ValueError(
            f"Contexts without control cells: {listing(sorted(set(lacking)))} ({len(lacking)} cells). Contexts with "
            f"controls: {listing(with_controls)}. Responses are measured against controls of the same context: "
            "remove these cells, or add their controls."
        )


def _embedded(cells: pd.DataFrame, control: str, vectors: Mapping[str, np.ndarray], on_missing: str) -> pd.Series:
    """Whether every gene of a cell's perturbation has an embedding."""
    names = sorted(set(cells[_keys.PERTURBATION][cells["used"] & ~cells["control"]]))
    lacking = missing_genes(names, control, vectors)
    n_embedded = len(names) - len(lacking)
    if lacking:
        genes = sorted({gene for each in lacking.values() for gene in each})
        msg = f"`embedding` has no {listing(genes)}: {len(lacking)} of {len(names)} perturbations ({listing(lacking)})"
        meant = next(filter(None, (spelling(gene, control, vectors) for gene in genes)), "")
        if meant:
            msg += f".{meant}"
            raise (KeyError if on_missing == "error" else ValueError)(msg)
        if on_missing == "error":
            msg += f".{hint(genes[0], vectors)} Leave them out with `on_missing='drop'`."
            raise KeyError(msg)
        logger.warning("%s are left out.", msg)
    if not n_embedded:
        raise ValueError(
            f"`embedding` has no gene of any perturbation ({listing(names)}); it has {len(vectors)} genes: "
            f"{listing(vectors)}."
        )
    logger.info("The embedding covers %d of %d perturbations.", n_embedded, len(names))
    return ~cells[_keys.PERTURBATION].isin(list(lacking))
