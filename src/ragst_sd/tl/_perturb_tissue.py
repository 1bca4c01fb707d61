"""Responses of spots of a tissue: the part of `rg.tl.perturb` for SpatialData."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._elements import image_mpp_of, shared_coordinate_system
from ragst_sd._results import check_key_added
from ragst_sd._validate import listing, names_among, require_positive
from ragst_sd.reference.perturbation_schema import control_names
from ragst_sd.reference.perturbations import canonical
from ragst_sd.tl._perturbation_cells import contexts_of
from ragst_sd.tl._perturbed_table import tissue_table
from ragst_sd.tl._respond import BAR_AFTER, no_response
from ragst_sd.tl._tissue_responses import (
    LEVEL,
    SpotStates,
    Variation,
    make_responder,
    mean_states,
    niches,
    remoteness,
    variation,
)
from ragst_sd.tl._tissue_source import read_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from ragst_sd.tl._respond import Task
    from ragst_sd.tl._tissue_source import TissueSource

logger = logging.getLogger(__name__)


def perturb_tissue(
    sdata: SpatialData,
    task: Task,
    names: list[str],
    *,
    table_key: str | None,
    spots: Mapping[str, Any] | Sequence[Any] | None,
    n_around: int,
    center_states: bool,
    n_permutations: int,
    key_added: str,
    rng: int,
    context_key: str | None,
    layer: str | None,
    unit: str,
    genes: Sequence[str] | None,
    progress: bool,
) -> dict[str, AnnData]:
    """Tables by name, one for each perturbation; see :func:`ragst_sd.tl.perturb`. Nothing is written."""
    from tqdm.auto import tqdm

    for name, value in (("n_around", n_around), ("n_permutations", n_permutations)):
        require_positive(value, name, whole=True)
    n_around, n_permutations = int(n_around), int(n_permutations)
    if 1 / (1 + n_permutations) > LEVEL:
        logger.warning(
            "`n_permutations` is %d: with fewer than 19 no map can be told from chance, and all are constant.",
            n_permutations,
        )
    keys = _keys_added(sdata, names, key_added)
    known = {name: canonical(name, control_names(task.header)) for name in names}
    wanted = [name for name in known.values() if name != task.control]
    task.embed(wanted)
    source = read_source(sdata, task, table_key=table_key, spots=spots, layer=layer, unit=unit)
    if len(source.xy) <= n_around:
        msg = (
            f"{len(source.xy)} spots are left, too few for `n_around` {n_around}: each spot is taken with that many around it. "
            "Take more spots, or fewer around each."
        )
        raise ValueError(msg)
    # A tissue is none of the screen's cell lines unless a column says so.
    own = np.full(len(source.xy), _keys.UNKNOWN, dtype=object)
    if context_key is not None:
        own = contexts_of(source.table, context_key, f"sdata.tables[{source.table_key!r}]", task.contexts)
    sets = niches(source.xy, np.asarray(source.table.obs_names), n_around)
    of_state = source.of_state
    at, values = task.reference.var_names.get_indexer(source.genes)[of_state], source.values[:, of_state]
    # States as they are: centring would hide how far they lie.
    far = remoteness(mean_states(sets, values), n_around + 1, at, task.header, np.random.default_rng(rng))
    states = SpotStates(
        sets=sets,
        values=values,
        labels=own,
        turned=np.arange(len(own)),
        at=at,
        means=np.asarray(task.header["contexts"]["mean"], dtype=np.float64),
        names=task.contexts,
        center=bool(center_states),
    )
    settings = {
        **task.settings(context_key, len(source.genes) / task.reference.n_vars),
        "n_around": n_around,
        "center_states": bool(center_states),
        "n_permutations": n_permutations,
        "rng": int(rng),
        **_picture(sdata, source),
    }
    if genes is not None:
        source = source.with_genes(names_among(genes, source.genes, "genes", ": screen and tissue do not share"))
    contexts, of_spots = states.contexts, states.whole()
    tables = {}
    total = len(wanted) * (1 + n_permutations)
    with tqdm(total=total, unit="state", delay=BAR_AFTER, disable=not progress) as bar:
        for name in names:
            if known[name] == task.control:
                responded = no_response(*source.values.shape)
                error = np.full(source.values.shape, np.nan)
                varies = Variation(0.0, np.zeros(0), 1.0, constant=True)
            else:
                responder = make_responder(task, known[name], sorted(set(contexts) | set(own)), source.genes)
                responded, error = responder.respond(contexts, of_spots)
                bar.update(1)
                shuffler = np.random.default_rng(rng)
                varies = variation(responder, responded.response, states, n_permutations, shuffler, bar.update)
            table = tissue_table(
                task,
                source,
                responded,
                error,
                name=name,
                contexts=contexts,
                far=far,
                varies=varies,
                settings=settings,
            )
            tables[keys[name]] = table
            _log(name, table)
    return tables


def _log(name: str, table: AnnData) -> None:
    header = table.uns[_keys.RETRIEVAL]
    far = float(header["far_from_screen"])
    if far > 0:
        logger.warning(
            "%.0f %% of the spots lie far from all cells of the screen (`obs[%r]`).", 100 * far, _keys.FAR_FROM_SCREEN
        )
    if header["constant"] and name != header["control"]:
        logger.info(
            "The response to %s does not vary over the spots more than by chance (variance %.3g, shuffled %s, p = %.3g): its map "
            "is constant.",
            name,
            header["variance"],
            f"{np.mean(header['variance_shuffled']):.3g}" if len(header["variance_shuffled"]) else "not needed",
            header["variance_p_value"],
        )


def _keys_added(sdata: SpatialData, names: list[str], key_added: str) -> dict[str, str]:
    """Name of the table of each perturbation, none of which is anybody else's."""
    from spatialdata import sanitize_name

    keys = {
        name: key_added if len(names) == 1 else sanitize_name(f"{key_added}_{name.replace('+', '_')}") for name in names
    }
    if len({key.lower() for key in keys.values()}) < len(keys):
        msg = f"Tables of several perturbations would have one name: {listing(keys.values())}. Ask for them one by one, each with its `key_added`."
        raise ValueError(msg)
    for key in keys.values():
        check_key_added(sdata, key, responses=True)
    return keys


def _picture(sdata: SpatialData, source: TissueSource) -> dict[str, Any]:
    """Image that the spots lie on, for drawing; empty where there is none or several could be meant."""
    made = source.table.uns.get(_keys.RETRIEVAL, {})
    embedded = source.table.uns.get(_keys.ATTRS, {}).get(_keys.EMBEDDINGS, {})
    places = [(str(x.get("image_key", "")), str(x.get("coordinate_system"))) for x in (made, *embedded.values())]
    places = [place for place in places if place[0] in sdata.images]
    if not places:
        for image_key in sdata.images:
            with suppress(ValueError):
                places.append((image_key, shared_coordinate_system(sdata, source.region, image_key, None)))
        if len(places) != 1:
            return {"image_key": "", "coordinate_system": "", "image_mpp": float("nan")}
    image_key, system = places[0]
    mpp = image_mpp_of(sdata, image_key)
    return {"image_key": image_key, "coordinate_system": system, "image_mpp": float("nan") if mpp is None else mpp}
