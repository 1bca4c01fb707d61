"""`rg.tl.perturb`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._labels import as_names
from ragst_sd._perturbation_reference import perturbation_fit, perturbation_header
from ragst_sd._settings import settings
from ragst_sd._validate import as_seed, listing, names_among, require_known, require_some, require_type
from ragst_sd.reference.genes import take_genes
from ragst_sd.reference.perturbations import canonical
from ragst_sd.tl._fit_record import check_fewer
from ragst_sd.tl._perturb_tissue import perturb_tissue
from ragst_sd.tl._perturbation_cells import contexts_of, read_expression
from ragst_sd.tl._perturbed_table import perturbed_table
from ragst_sd.tl._respond import Task, respond
from ragst_sd.tl._response_bank import states_of_contexts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_EXCLUDABLE = (_keys.PERTURBATION, _keys.CONTEXT)
# Below this share of the reference's genes the query hardly shows what the response was measured on.
_FEW_GENES = 0.5


def perturb(
    data: AnnData | SpatialData,
    reference: AnnData,
    *,
    perturbations: str | Sequence[str],
    table_key: str | None = None,
    spots: Mapping[str, Any] | Sequence[Any] | None = None,
    context_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    genes: str | Sequence[str] | None = None,
    n_neighbors: int | None = None,
    where: Mapping[str, Any] | Sequence[bool] | np.ndarray | None = None,
    exclude: Sequence[str] = ("perturbation", "context"),
    n_around: int = 6,
    center_states: bool = True,
    n_permutations: int = 50,
    key_added: str = "perturbed",
    inplace: bool = True,
    progress: bool | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> AnnData | dict[str, AnnData] | None:
    r"""Predict how cells, or the spots of a tissue, respond to perturbations, from measured responses to related ones.

    .. math:: \hat y_i(p) = y_i + \underbrace{\sum_j w_j \Delta_j}_{\text{evidence}} + \text{adjustment}

    The response is that of the population in its context: direct and cell-autonomous. Nothing is said about how cells
    act on their neighbours, or that the measured effect was caused by the gene alone.

    Of a tissue each spot and the `n_around` nearest ones are taken for a population, whose state is their mean expression.
    No spot of a tissue is one of the screen's cells: states that lie far from them are flagged, and whether the response
    varies over the tissue at all is tested by spots that change places. Where it does not, its map is constant. Spots of
    Visium hold many cells, and the response is that of the mixture.

    Parameters
    ----------
    data
        Cells to perturb, usually controls; all of them are used. Or a SpatialData, whose table is measured or was predicted
        by :func:`ragst_sd.tl.predict`.
    reference
        Made by :func:`ragst_sd.tl.build_perturbation_reference` and fitted by :func:`ragst_sd.tl.fit`.
    perturbations
        Genes, and combinations written `A+B`. Any gene of the reference's embedding may be asked for, whether it was
        measured or not. The control's name gives the cells back as they are.
    table_key
        Of a SpatialData: the table with expression; the only measured one if left out.
    spots
        Of a SpatialData: the region or cell population to perturb, as a mapping from column of `.obs` to allowed value(s), a
        mask over the rows, or names. Neighbours are looked for among these.
    context_key
        Column of `data.obs` with the context. Contexts that the reference does not know are new ones. Without it all
        cells are of one new context, unless the reference has no contexts either.
    layer
        Layer of `data`; `.X` if left out.
    unit
        `"counts"`, which are normalised as the reference was, or `"log1p_cp10k"` for values on its scale already.
    genes
        Genes to predict; all that reference and data share if left out.
    n_neighbors
        Responses cited at most; what was fitted if left out, never more.
    where
        Rows that may be used: a mapping from column of `reference.obs` to allowed value(s), or a mask over its rows.
    exclude
        A row that agrees with the query in all of these columns is not used: by default the perturbation itself in its
        own context. `("perturbation",)` leaves it out in every context, `()` switches exclusion off. What is left out is not
        cited, but a method has been fitted on all rows of the reference: the network of `"pt_rag"` was trained on the response itself, which
        is warned of and written into `learned_from`; `"rag"` and `"ridge"` chose a few settings with it. For a test of a method
        fit a reference without the perturbation (:func:`ragst_sd.tl.perturbation_folds`).
    n_around
        Of a SpatialData: spots around each that make up its population with it.
    center_states
        Of a SpatialData: put the mean of all spots (of each context, if named) on the mean of the controls, so that only
        differences within the tissue are read. What sets the tissue as a whole apart from the screen is platform and
        biology in one. The flags rest on states as they are.
    n_permutations
        Of a SpatialData: how often spots change places; 19 at least, or no map can be told from chance.
    key_added
        Of a SpatialData: name of the new table; of several perturbations `<key_added>_<perturbation>`, one table each.
    inplace
        Of a SpatialData: `False` returns the table, or a dictionary of several, and leaves `data` as it is.
    progress
        Show a progress bar where it takes longer than a second: of many perturbations, and of the shuffled spots of a tissue; the
        setting if left out.
    rng
        Of a SpatialData: seed, generator or seed sequence of numpy of the permutations and of the draw of controls; `None` draws anew at each call.

    Returns
    -------
    Of a SpatialData `None`, or the table if `inplace=False` (see below). Of cells an AnnData with every cell once for every perturbation, named `<cell>:<perturbation>`, and

    `.X`
        float32 (n, genes): the source cell plus the response, in the unit of `.uns["retrieval"]["unit"]`. It is not
        clipped and can be below zero.
    `.layers["response"]`, `.layers["evidence"]`
        The predicted response, and the weighted mean of measured responses in it; their difference is the adjustment.
    `.obs`
        `perturbation` (as asked for), `context`, `source` (name of the cell), `effective_n` (rows cited, one over the sum of squared weights), `evidence_share`, `cited_reliability` (weighted mean
        of the cited rows). With `"rag"` also `embedding_share`: how much of the perturbation's embedding the rows that may be used span, from 0 to 1. All that it
        adds to their mean is multiplied with it, so that near 0 the prediction is the mean of the responses that may be used.
    `.obsm["retrieval_rows"]`, `["retrieval_weights"]`, `["retrieval_distances"]`
        (n, k) pointers into `.uns["retrieval"]["cited"]` (-1 padded), weights that sum to one or are all zero (nothing
        was selected: the prediction is exactly the one without retrieval), and distances between embeddings.
    `.uns["retrieval"]`
        Provenance: hashes of reference and fit, method, parameters, unit, sources, `gene_overlap` (share of the
        reference's genes in `data`), `control_cells` that the reference was measured against, `starts_from` (what evidence is where nobody is cited), `learned_from` (left-out responses that the method
        learned from: `perturbation`, `context`, and `what` it took, `"settings"` or `"responses"`), and `cited`: one line per cited row (reference, perturbation, context, perturbation_type,
        n_cells, reliability).

    Of a SpatialData `sdata.tables[key_added]` annotates the same shapes, one row per spot under its own name, with the same
    fields and

    `.layers["standard_error"]`
        Standard errors of the cited responses by their weights, an upper bound that supposes shared controls; NaN where
        nobody is cited. It says how well the responses were measured, not whether they hold in tissue.
    `.layers["lower"]`, `["upper"]`
        Where the table was predicted with intervals: these, moved by the response and widened by its standard error at the
        same level. `.var["cv_pearson"]`, `["noise_ceiling"]`, `["evidence"]` and `.obs["out_of_reference"]` of the prediction go
        along; genes from single cells (`"scRNA-seq"`) do not count in the state and depth of a spot.
    `.obs["response_magnitude"]`
        Root mean square of the response over genes; the mean over spots for all where the response does not vary more than
        by chance.
    `.obs["state_distance"]`, `["state_percentile"]`, `["far_from_screen"]`
        Distance of the spot's state to the nearest context of the screen over the 98th percentile of that of sets of as many
        controls; percentile among those; whether the distance is above 1.
    `.uns["retrieval"]`
        Also `scope` (what the values are, in words), `variance` over the spots' neighbourhoods, `variance_shuffled`, `variance_p_value` and
        `constant`, the share `far_from_screen`, and under `prediction` what the expression was predicted with.

    Raises
    ------
    KeyError
        If a column does not exist, or a gene has no embedding in the reference.
    TypeError
        If `data` is no AnnData.
    ValueError
        If the reference is not fitted or has changed since, reference and data share no genes, values are not what
        `unit` says, `n_neighbors` exceeds what was fitted or may be used, or the method has nothing to answer from (the
        sum of singles, for a single gene); or of a SpatialData if it shares far too few genes with the screen, or a table of
        somebody else has the name.

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
    from anndata import AnnData
    from spatialdata import SpatialData

    require_type(data, (AnnData, SpatialData), "data")
    header, fit = perturbation_header(reference), perturbation_fit(reference)
    names, excluded = as_names(perturbations), as_names(exclude)
    require_some(names, "perturbations", "Name genes, combinations `A+B`, or the control.")
    require_known(excluded, _EXCLUDABLE, "exclude", " names")
    if not excluded:
        logger.warning("`exclude` is empty: measured responses to the very perturbation may be used.")
    check_fewer(n_neighbors, fit)
    task = Task(reference, header, fit, n_neighbors, excluded, where)
    show = settings.progress if progress is None else progress
    if isinstance(data, SpatialData):
        tables = perturb_tissue(
            data,
            task,
            names,
            table_key=table_key,
            spots=spots,
            n_around=n_around,
            center_states=center_states,
            n_permutations=n_permutations,
            key_added=key_added,
            rng=as_seed(rng),
            context_key=context_key,
            layer=layer,
            unit=unit,
            genes=genes,
            progress=show,
        )
        if not inplace:
            return next(iter(tables.values())) if len(tables) == 1 else tables
        for name, table in tables.items():
            data.tables[name] = table
            logger.info("Adding `sdata.tables[%r]`: %d spots x %d genes.", name, *table.shape)
        return None
    if table_key is not None or spots is not None:
        msg = "`table_key` and `spots` choose from a SpatialData; of an AnnData pass the cells themselves: `data[mask].copy()`."
        raise ValueError(msg)
    expression = read_expression(data, layer=layer, unit=unit, like=header["normalization"], where="data")
    shared = _shared_genes(list(reference.var_names), expression.genes, genes)
    contexts = _contexts(data, context_key, task)
    known = {name: canonical(name, task.control) for name in names}
    wanted = dict.fromkeys(name for name in known.values() if name != task.control)
    pairs = [(name, context) for name in wanted for context in dict.fromkeys(contexts)]
    task.embed(list(wanted))
    states = states_of_contexts(header, expression, list(reference.var_names), contexts)
    return perturbed_table(
        task,
        respond(task, pairs, states, progress=show),
        values=take_genes(expression.values, expression.genes, shared),
        genes=shared,
        cells=np.asarray(data.obs_names, dtype=str),
        contexts=contexts,
        names=known,
        pairs=pairs,
        settings=task.settings(context_key, float(reference.var_names.isin(expression.genes).mean())),
    )


def _shared_genes(of_reference: list[str], of_data: list[str], asked: Sequence[str] | None) -> list[str]:
    available = set(of_data)
    shared = [gene for gene in of_reference if gene in available]
    if not shared:
        msg = (
            f"Reference and data share no genes: {listing(of_reference[:5])} against {listing(of_data[:5])}. Name both "
            "alike (symbols or Ensembl ids, one species)."
        )
        raise ValueError(msg)
    if len(shared) < _FEW_GENES * len(of_reference):
        logger.warning("Only %d of the reference's %d genes are in the data.", len(shared), len(of_reference))
    return shared if asked is None else names_among(asked, shared, "genes", ": reference and data do not share")


def _contexts(data: AnnData, context_key: str | None, task: Task) -> np.ndarray:
    """Context of each cell."""
    if context_key is not None:
        return contexts_of(data, context_key, "data", task.contexts)
    if not task.header["context_key"]:
        return np.full(data.n_obs, _keys.ALL_CONTEXTS, dtype=object)
    logger.warning("`context_key` is left out: the cells are of a new context, none of %s.", listing(task.contexts))
    return np.full(data.n_obs, _keys.UNKNOWN, dtype=object)
