"""`rg.tl.perturb_tissue`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData, sanitize_name
from tqdm.auto import tqdm

from ragst_sd import _keys
from ragst_sd._annotation import check_key_added
from ragst_sd._elements import require_sdata
from ragst_sd._fields import TISSUE_RESPONSES, documented
from ragst_sd._respond import BAR_AFTER, Task, open_task, pairs_learned, wanted_perturbations
from ragst_sd._settings import settings
from ragst_sd._validate import as_names, as_seed, listing, names_among, require_positive
from ragst_sd.retrieval.response_run import no_response
from ragst_sd.tl._predicted_table import annotating, assembled, carried
from ragst_sd.tl._tissue_responses import LEVEL, SpotStates, make_responder, niches, remoteness, variation, varying
from ragst_sd.tl._tissue_source import TissueSource, read_source

logger = logging.getLogger(__name__)

SCOPE = (
    "Predicted direct response of the cells of each spot, as if each were perturbed by itself. No effect on "
    "neighbouring cells is propagated, nothing is claimed about causes, and no measurement in tissue stands behind it."
)


@documented(TISSUE_RESPONSES)
def perturb_tissue(
    sdata: SpatialData,
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
) -> dict[str, AnnData] | None:
    r"""Predict how the spots of a tissue respond to perturbations, from measured responses of cells to related ones.

    Each spot and its `n_around` nearest spots are treated as a population of cells whose state is their mean
    expression. Its response is that of :func:`ragst_sd.tl.perturb`. Spots of a tissue differ from the cells of the
    screen: states that are far from them are flagged. A test that shuffles the spots shows whether the response varies
    over the tissue; if it does not, its map is constant. Visium spots contain many cells, and the response is that of
    the mixture.

    Parameters
    ----------
    sdata
        Object whose table is measured or was predicted by :func:`ragst_sd.tl.predict`.
    reference
        Made by :func:`ragst_sd.tl.build_perturbation_reference` and fitted by :func:`ragst_sd.tl.fit`.
    perturbations
        Genes, and combinations written `A+B`; the control's name gives the spots back as they are.
    table_key
        The table with expression; the only measured one if left out.
    spots
        The region or cell population to perturb, as a mapping from column of `.obs` to allowed value(s), a
        mask over the rows, or names. Neighbours are looked for among these.
    context_key
        Column of the table's `.obs` with the context. Without it the tissue is a new context.
    layer
        Layer of the table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` for values on the scale of the reference already.
    genes
        Genes to predict; all that screen and tissue share if left out.
    n_neighbors, where, exclude
        As in :func:`ragst_sd.tl.perturb`.
    n_around
        Spots around each that make up its population with it.
    center_states
        Put the mean of all spots (of each context, if named) on the mean of the controls, so that only
        differences within the tissue are read. What sets the tissue as a whole apart from the screen is platform and
        biology in one. The flags rest on states as they are.
    n_permutations
        Number of shuffles of the spots. At least 19, otherwise every map counts as constant.
    key_added
        Name of the new table; of several perturbations `<key_added>_<perturbation>`, one table each.
    inplace
        `False` returns the tables by name and leaves `sdata` as it is.
    progress
        Show a progress bar where it takes longer than a second; the setting if left out.
    rng
        Seed, generator or seed sequence of numpy of the permutations and of the draw of controls; `None` draws anew at
        each call.

    Returns
    -------
    `None`, or the tables by name if `inplace=False`. `sdata.tables[key_added]` annotates the same shapes, one row per
    spot under its own name, with

    {fields}
    `.uns["retrieval"]`
        As in :func:`ragst_sd.tl.perturb`; also `scope` (what the values are, in words), `variance` over the spots'
        neighbourhoods, `variance_shuffled`, `variance_p_value` and `constant`, the share `far_from_screen`, and under
        `prediction` what the expression was predicted with.

    `.var["cv_pearson"]`, `["noise_ceiling"]`, `["evidence"]` and `.obs["out_of_reference"]` of a prediction go along;
    genes from single cells (`"scRNA-seq"`) do not count in the state and depth of a spot.

    Raises
    ------
    KeyError
        If a table, column, spot or layer does not exist, or a gene has no embedding in the reference.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the reference is not fitted or has changed since, it shares far too few genes with the tissue, values are
        not what `unit` says, `n_neighbors` exceeds what was fitted or may be used, the method has nothing to answer
        from, or the name belongs to another table.

    Examples
    --------
    >>> import numpy as np, ragst_sd as rg
    >>> sdata = rg.datasets.synthetic(n_donors=1, n_genes=220, image_px=700)["donor1"]
    >>> screen = sdata.tables["table"].copy()
    >>> screen.obs["perturbation"] = np.resize(["control", "STAT1", "JAK2"], screen.n_obs)
    >>> embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "STAT2": [1.0, 0.1]}
    >>> reference = rg.tl.build_perturbation_reference(screen, embedding=embedding, min_cells=5)
    >>> rg.tl.fit(reference, method="knn", n_neighbors=2)
    >>> rg.tl.perturb_tissue(sdata, reference, perturbations="STAT2", n_permutations=19, progress=False)
    >>> "response" in sdata.tables["perturbed"].layers
    True
    """
    require_sdata(sdata)
    task = open_task(reference, exclude, n_neighbors, where)
    if task.bank.header.from_responses:
        raise ValueError(
            f"The reference was built from responses ({task.bank.header.normalization['unit']}) and has no cells: the "
            "state of a spot cannot be compared with controls. Build it from the cells of the screen; "
            "`rg.tl.perturb` predicts responses of its contexts."
        )
    for name, value in (("n_around", n_around), ("n_permutations", n_permutations)):
        require_positive(value, name, whole=True)
    n_around, n_permutations, seed = int(n_around), int(n_permutations), as_seed(rng)
    if 1 / (1 + n_permutations) > LEVEL:
        logger.warning(
            "`n_permutations` is %d: with fewer than 19 no map can be told from chance, and all are constant.",
            n_permutations,
        )
    keys = _keys_added(sdata, as_names(perturbations), key_added)
    known = wanted_perturbations(task, perturbations)
    source = read_source(sdata, task, table_key=table_key, spots=spots, context_key=context_key, layer=layer, unit=unit)
    if len(source.xy) <= n_around:
        raise ValueError(
            f"{len(source.xy)} spots are left, too few for `n_around` {n_around}: each spot is taken with that many "
            "around it. Take more spots, or fewer around each."
        )
    states = SpotStates(
        sets=niches(source.xy, np.asarray(source.table.obs_names), n_around),
        values=source.values[:, source.of_state],
        labels=source.contexts,
        turned=np.arange(len(source.xy)),
        at=task.bank.genes.get_indexer(source.genes)[source.of_state],
        header=task.bank.header,
        center=bool(center_states),
    )
    far = remoteness(states, np.random.default_rng(seed))
    about = {
        "n_around": n_around,
        "center_states": bool(center_states),
        "n_permutations": n_permutations,
        "rng": seed,
        _keys.GENE_OVERLAP: len(source.genes) / len(task.bank.genes),
    }
    if genes is not None:
        source = source.with_genes(names_among(genes, source.genes, "genes", ": screen and tissue do not share"))
    contexts, of_spots = states.contexts, states.whole()
    tables = {}
    show = settings.progress if progress is None else progress
    total = sum(name != task.control for name in known.values()) * (1 + n_permutations)
    with tqdm(total=total, unit="state", delay=BAR_AFTER, disable=not show) as bar:
        for name, spelled in known.items():
            if spelled == task.control:
                responses, learned_from = no_response(*source.values.shape), pairs_learned("", [])
                responses[_keys.STANDARD_ERROR] = np.full(source.values.shape, np.nan)
                varies = varying(0.0, np.zeros(0), 1.0)
            else:
                responder = make_responder(task, spelled, sorted(set(contexts) | set(source.contexts)), source.genes)
                responses, learned_from = responder.respond(contexts, of_spots), responder.learned_from
                bar.update(1)
                shuffler = np.random.default_rng(seed)
                varies = variation(responder, responses[_keys.RESPONSE], states, n_permutations, shuffler, bar.update)
            responses |= {_keys.PERTURBATION: np.full(len(contexts), name), _keys.CONTEXT: contexts.astype(str), **far}
            header = task.header(learned_from, context_key) | about | varies
            table = tables[keys[name]] = _table(task, source, responses, header)
            _log(name, table)
    if not inplace:
        return tables
    for name, table in tables.items():
        sdata.tables[name] = table
        logger.info("Adding `sdata.tables[%r]`: %d spots x %d genes.", name, *table.shape)
    return None


def _table(
    task: Task,
    source: TissueSource,
    responses: dict[str, np.ndarray],
    header: dict[str, Any],
) -> AnnData:
    """The table of one perturbation, from the fields of its responses."""
    # Where spots do not differ more than by chance every tool shall draw them alike.
    magnitude = np.sqrt((responses[_keys.RESPONSE] ** 2).mean(axis=1))
    values = {
        **responses,
        "prediction": (source.values + responses[_keys.RESPONSE]).astype(np.float32),
        **{name: pd.Categorical(responses[name]) for name in (_keys.PERTURBATION, _keys.CONTEXT)},
        _keys.SOURCE: source.table.obs_names,
        _keys.RESPONSE_MAGNITUDE: np.full(len(magnitude), magnitude.mean()) if header["constant"] else magnitude,
    }
    if source.limits is not None:
        share = NormalDist().inv_cdf(0.5 + source.header[_keys.INTERVAL_LEVEL] / 2) * np.nan_to_num(
            values[_keys.STANDARD_ERROR]
        )
        for layer, limit, sign in zip((_keys.LOWER, _keys.UPPER), source.limits, (-1, 1), strict=True):
            reach = sign * np.sqrt((limit - source.values) ** 2 + share**2)
            values[layer] = values["prediction"] + reach
    header |= {
        **source.header,
        "scope": SCOPE,
        "resolution": "spot",
        "table_key": source.table_key,
        "n_genes": len(source.genes),
        "far_from_screen": float(values[_keys.FAR_FROM_SCREEN].mean()),
    }
    obs = carried(source.table, _keys.DONOR, _keys.SAMPLE, _keys.OUT_OF_REFERENCE)
    table = assembled(TISSUE_RESPONSES, task.bank, values, obs=obs, genes=source.var.index, header=header)
    table.var = source.var.join(table.var)
    return annotating(table, source.table)


def _log(name: str, table: AnnData) -> None:
    header = table.uns[_keys.RETRIEVAL]
    far = float(header["far_from_screen"])
    if far > 0:
        logger.warning(
            "%.0f %% of the spots lie far from all cells of the screen (`obs[%r]`).", 100 * far, _keys.FAR_FROM_SCREEN
        )
    if header["constant"] and name != header["control"]:
        logger.info(
            "The response to %s does not vary over the spots more than by chance (variance %.3g, shuffled %s, p = "
            "%.3g): its map is constant.",
            name,
            header["variance"],
            f"{np.mean(header['variance_shuffled']):.3g}" if len(header["variance_shuffled"]) else "not needed",
            header["variance_p_value"],
        )


def _keys_added(sdata: SpatialData, names: list[str], key_added: str) -> dict[str, str]:
    """Name of the table of each perturbation, none of which is anybody else's."""
    keys = {
        name: key_added if len(names) == 1 else sanitize_name(f"{key_added}_{name.replace('+', '_')}") for name in names
    }
    if len({key.lower() for key in keys.values()}) < len(keys):
        raise ValueError(
            f"Tables of several perturbations would have one name: {listing(keys.values())}. Ask for them one by "
            "one, each with its `key_added`."
        )
    for key in keys.values():
        check_key_added(sdata, key, responses=True)
    return keys
