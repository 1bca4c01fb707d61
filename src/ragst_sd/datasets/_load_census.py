"""`rg.datasets.load_census`."""

from __future__ import annotations

import logging

import numpy as np
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_positive, require_type
from ragst_sd.datasets._catalog import catalog_entry, citation_text, require_loader
from ragst_sd.datasets._load_screen import draw_cells

logger = logging.getLogger(__name__)

_OBS = ("cell_type", "assay", "donor_id", "dataset_id", "disease", "tissue")
_VAR = ("feature_id", "feature_name")
_RELEASE = "Census "
_LISTED = ["soma_joinid", "cell_type"]


def load_census(
    name: str,
    *,
    max_cells_per_type: int = 500,
    value_filter: str | None = None,
    census_version: str | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> AnnData:
    """Load single cells of an organ from the CELLxGENE Census, for :func:`ragst_sd.tl.add_cell_types`.

    Only the sampled cells are downloaded. This needs a network connection and the package cellxgene-census:
    `pip install "ragst-sd[census]"`.

    Parameters
    ----------
    name
        Name in :func:`ragst_sd.datasets.catalog` of an entry with a query of the Census.
    max_cells_per_type
        Cells drawn at random of each type that has more.
    value_filter
        Further condition on cells in the syntax of the Census, for instance `disease == 'normal'`.
    census_version
        Release, for instance `"2025-11-08"`; the catalogue's if left out.
    rng
        Seed, generator or seed sequence of numpy, of the draw; `None` draws anew at each call.

    Returns
    -------
    AnnData with

    `.X`
        Counts.
    `.obs["cell_type"]`
        Type of each cell; beside it `assay`, `donor_id`, `dataset_id`, `disease` and `tissue`.
    `.var["feature_name"]`
        Symbols; `.var_names` are Ensembl ids.
    `.uns["ragst"]["source"]`
        `name` with the release, `license`, `citation`, and `dataset_ids`, whose authors are to be cited too.

    Raises
    ------
    ImportError
        If cellxgene-census is not installed.
    KeyError
        If there is no such data set.
    TypeError
        If `name` is no name.
    ValueError
        If it is no query of the Census, or no cell fulfils the conditions.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> cells = rg.datasets.load_census("census_human_breast", max_cells_per_type=25)
    >>> int(cells.obs["cell_type"].value_counts().max())
    25

    They go into `rg.tl.add_cell_types(reference, cells, cell_type_key="cell_type")`.
    """
    require_type(name, str, "name")
    require_positive(max_cells_per_type, "max_cells_per_type", whole=True)
    entry = catalog_entry(name)
    require_loader(entry, "load_census")
    try:
        import cellxgene_census as census_api
    except ImportError as error:
        raise ImportError(
            "`rg.datasets.load_census` needs the package cellxgene-census, which is not installed: "
            '`pip install "ragst-sd[census]"`. Single cells from anywhere else will do for `rg.tl.add_cell_types`.'
        ) from error
    version = census_version or str(entry["accession"]).removeprefix(_RELEASE)
    query = entry["query"] if value_filter is None else f"({entry['query']}) and ({value_filter})"
    generator = np.random.default_rng(rng)
    with census_api.open_soma(census_version=version) as census:
        listed = census_api.get_obs(census, entry["species"], value_filter=query, column_names=_LISTED)
        if not len(listed):
            raise ValueError(
                f"No cell of Census {version} fulfils {query!r}. Relax `value_filter`, or name another "
                "`census_version`."
            )
        listed = listed.sort_values("soma_joinid")
        rows = draw_cells(listed["cell_type"], int(max_cells_per_type), generator)
        drawn = sorted(map(int, listed["soma_joinid"].iloc[rows]))
        logger.info("Census %s: downloading %d of %d cells.", version, len(drawn), len(listed))
        cells = census_api.get_anndata(
            census, entry["species"], obs_coords=drawn, obs_column_names=list(_OBS), var_column_names=list(_VAR)
        )
    cells.obs = cells.obs[list(_OBS)].copy()
    cells.var = cells.var[list(_VAR)].set_index("feature_id", drop=False).rename_axis(None)
    about = {"name": f"{name} (Census {version})", "license": str(entry["license"]), "citation": citation_text(entry)}
    used = np.unique(cells.obs["dataset_id"].astype(str)).astype(str)
    cells.uns[_keys.ATTRS] = {_keys.SOURCE: {**about, "dataset_ids": used}}
    types = cells.obs["cell_type"].astype(str).unique()
    logger.info("%d cells of %d types: %s. Licence: %s.", cells.n_obs, len(types), listing(types), entry["license"])
    return cells
