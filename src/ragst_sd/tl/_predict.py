"""`rg.tl.predict`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import check_key_added
from ragst_sd._bank import open_bank
from ragst_sd._copies import warn_of_copies
from ragst_sd._elements import require_sdata
from ragst_sd._eligibility import eligible_rows, excluded_columns, number_cited, recorded_where
from ragst_sd._fields import TISSUE, documented
from ragst_sd._labels import labels
from ragst_sd._query import log_unknown_origin, read_query, section_grounding
from ragst_sd._settings import resolve_device
from ragst_sd._several import over_sections
from ragst_sd._validate import require_choice
from ragst_sd._workers import spread_blocks
from ragst_sd.retrieval.run import part_of, select
from ragst_sd.retrieval.run import predict as run
from ragst_sd.retrieval.search import BACKENDS
from ragst_sd.tl._intervals import check_level, interval_rule
from ragst_sd.tl._predict_store import predict_into
from ragst_sd.tl._predicted_table import predicted_table, wanted_genes

logger = logging.getLogger(__name__)


@over_sections(not_with="store")
@documented(TISSUE)
def predict(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    reference: AnnData,
    *,
    table_key: str | None = None,
    use_rep: str | None = None,
    genes: str | Sequence[str] | None = None,
    n_neighbors: int | None = None,
    donor_key: str | None = None,
    where: Mapping[str, Any] | Sequence[bool] | np.ndarray | None = None,
    exclude: Sequence[str] = ("donor",),
    backend: str = "auto",
    intervals: float | None = None,
    key_added: str = "predicted",
    store: str | os.PathLike[str] | None = None,
    device: str | None = None,
    inplace: bool = True,
) -> AnnData | dict[str, AnnData] | None:
    r"""Predict expression for every spot from measured tissue that looks similar.

    .. math:: \hat y(x) = m + a \sum_j w_j(x)\, (y_j - m_{s(j)}) + (1 - a) \sum_j H_j(x)\, (y_j - m_{s(j)})

    The mean m and the first sum, over cited rows, are the evidence; the second, the regression of `rag`, is the
    adjustment. Other methods have a = 1, or another adjustment. Measured values :math:`y_j` are taken relative to the
    mean of their section and put back on the mean m of the rows that may be used, unless the fit says
    `center_sections=False`. So the level of a prediction is that of the rows that may be used. If a reference has
    several organs, choose rows with `where`. Rows of the query's own donor are never used, unless gaps are filled.

    **Fill the gaps.** Of a section that was measured in some of its spots, `exclude=()` predicts all of them, from its
    own measured spots and from other donors in the reference. Then

    - a measured spot, which is a row of the reference itself, does not cite that row; `obs["measured"]` marks it. The
      fit did learn from it, so it is not held out, and :func:`ragst_sd.tl.evaluate` leaves it out. A row is taken as
      the spot itself if it lies at its place on its image, or, where that is not known, if it has its name and its
      embedding;
    - the level m is that of the section's own measured spots, for methods that cite and center sections;
    - intervals and `cv_pearson` have to be of held-out blocks: :func:`ragst_sd.tl.calibrate` with `split="block"`.

    Parameters
    ----------
    sdata
        Object whose table holds embeddings made like those of the reference, or a list or mapping of such objects.
    reference
        Fitted by :func:`ragst_sd.tl.fit`.
    table_key
        Table with the embeddings; may be left out if only one table has them.
    use_rep
        Embedding in `.obsm`; the reference's if left out. One without a header is of unknown origin: it compares with
        another of unknown origin, of the same name and width.
    genes
        Genes to predict; all of the reference's if left out. A gene that no row measured, but that the single cells of
        :func:`ragst_sd.tl.add_cell_types` have, is given from cell types if it is named here, with a warning.
    n_neighbors
        Rows cited per spot; what was fitted if left out, never more.
    donor_key
        Column of the query's `.obs` with the donor; the one that the reference was built with if left out. Without
        such a column the query is taken as a new donor, with a warning.
    where
        Rows that may be used: a mapping from column of `reference.obs` to allowed value(s), or a mask over its rows.
        Only methods that cite can be restricted. The regression of `rag` is solved again on these rows, for which the
        reference has to be in memory; its penalty and the share of retrieval stay.
    exclude
        Columns in which a row must differ from the query to be used. `()` lets rows of the query's own donor be used,
        to fill the gaps of a section.
    backend
        `"exact"`, `"pynndescent"` (an approximate graph over the rows, its candidates ranked exactly), or `"auto"`:
        the graph only on a CPU, for 100,000 spots and rows or more, where building it is expected to cost less than
        exact search.
    intervals
        Wanted coverage of intervals, one of the levels of :func:`ragst_sd.tl.calibrate`; none if left out.
    key_added
        Name of the new table.
    store
        Zarr folder into which the table is written block by block of spots, for more spots than fit into memory: the
        same values, bit for bit. The table then holds dask arrays that lie there. A table that `predict` wrote there
        before is replaced when the new one is complete, and reading it on raises `RuntimeError`; anything else is not
        replaced. Genes from cell types are not available.
    device
        Torch device of the search; the setting if left out.
    inplace
        `False` returns the table and leaves `sdata` as it is.

    Returns
    -------
    `None`, or the table if `inplace=False`; of several sections a dictionary from name to table.
    `sdata.tables[key_added]` annotates the same shapes, with

    {fields}
    `.uns["retrieval"]`
        Provenance: hashes of reference and fit, parameters, unit, sources, one line per cited row (`cited`), and how
        far the section as a whole lies from those of the reference (`section_distance`, beside the largest distance
        among them, `section_distance_reference`). `search_recall` is the share of the true nearest rows that the
        search found: 1 if exact, estimated on 200 spots otherwise. With intervals `interval_level`, `interval_levels`,
        and `interval_unit` and `interval_units`, what they lean on: `"donor"`, `"section"`, `"block"` or `"spot"`.
        `cell_types`
        names the types, their source and their hash.

    Values are NaN for spots without an embedding and for genes that no cited row measured; with `rag`, that no row
    measured that may be used. They are not clipped: a regression can fall below zero. Genes from single cells have
    `.X` and evidence of :math:`\log(1 + \sum_t f_t S_t)`, with fractions :math:`f` and signatures :math:`S` in counts
    per 10,000; disagreement and limits are NaN.

    Raises
    ------
    FileExistsError
        If `store` exists and is not a predicted table.
    KeyError
        If a table, embedding or column is missing.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the reference is not fitted or has changed since, embeddings were made differently, no row is eligible, a
        gene is known to neither rows nor single cells, or to single cells only and the method cites no rows,
        `n_neighbors` exceeds what was fitted or is eligible, another table has the name `key_added`, or intervals are
        asked for that :func:`ragst_sd.tl.calibrate` did not prepare for this fit and task. If `store` lies inside
        another store.

    Notes
    -----
    With an active `dask.distributed` client the blocks of spots are spread over its workers, with `store` into a
    folder that all of them see; what a worker that dies was doing is done again.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> for sdata in sections.values():
    ...     rg.pp.embed_tiles(sdata, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> query.tables["predicted"].shape == (query.tables["table"].n_obs, reference.n_vars)
    True
    """
    sdata = require_sdata(sdata)
    bank = open_bank(reference)
    require_choice(backend, BACKENDS, "backend")
    level = None if intervals is None else check_level(bank, intervals)
    check_key_added(sdata, key_added)
    use_rep = bank.header.use_rep if use_rep is None else use_rep
    query = read_query(sdata, bank, table_key=table_key, use_rep=use_rep, donor_key=donor_key)
    log_unknown_origin(query.header)
    wanted = wanted_genes(bank, genes, in_memory=store is None)
    measured = wanted[wanted >= 0].to_numpy()
    exclude = tuple(excluded_columns(exclude))
    eligibility = eligible_rows(bank, query, where=where, exclude=exclude)
    if _keys.DONOR in exclude:
        warn_of_copies(bank, query)
    n_neighbors, rule = number_cited(n_neighbors, bank.fit.n_neighbors, eligibility), None
    if level is not None:
        rule = interval_rule(
            bank.header.calibration,
            level,
            measured,
            split=eligibility.split,
            as_calibrated=where is None and n_neighbors == bank.fit.n_neighbors,
            calibrated_on=sorted(query.labels(_keys.DONOR) & set(labels(bank.obs[_keys.DONOR]))),
        )
    selected = select(
        bank,
        query.standardized,
        state=query.state,
        eligibility=eligibility,
        n_neighbors=n_neighbors,
        backend=backend,
        raw=query.embedding,
        device=str(resolve_device(device)),
    )
    part = part_of(bank, measured, selected, intervals=rule)
    settings = {
        "n_neighbors": n_neighbors,
        "donor_key": query.donor_key,
        "exclude": np.asarray(exclude, dtype=str),
        **recorded_where(bank.ids, where),
        "backend": backend,
        **section_grounding(bank.header, query, selected.grounding.appearance_distance),
    }
    assembled = partial(predicted_table, bank, query, selected, wanted, eligibility, rule, settings)
    if store is None:
        table = assembled(run(part, selected.selection, spread_blocks))
    else:
        table = predict_into(store, part, selected.selection, query.finite, assembled)
    outside = int((~query.finite).sum())
    if outside:
        logger.info("%d spots without an embedding get NaN.", outside)
    if not inplace:
        return table
    sdata.tables[key_added] = table
    logger.info("Adding `sdata.tables[%r]`: %d spots x %d genes.", key_added, *table.shape)
    return None
