"""The table of predicted responses of spots, with its provenance."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._annotation import table_attrs
from ragst_sd.tl._perturbed_table import cite_responses, cited_reliability, response_header

if TYPE_CHECKING:
    from anndata import AnnData

    from ragst_sd.tl._perturbed_table import Responded
    from ragst_sd.tl._tissue_responses import Variation
    from ragst_sd.tl._tissue_source import TissueSource
    from ragst_sd.tl._tissue_state import Remoteness

SCOPE = (
    "Predicted direct response of the cells of each spot, as if each were perturbed by itself. No effect on neighbouring cells "
    "is propagated, nothing is claimed about causes, and no measurement in tissue stands behind it."
)


def tissue_table(
    source: TissueSource,
    reference: AnnData,
    header: dict[str, Any],
    fit: dict[str, Any],
    responded: Responded,
    error: np.ndarray,
    *,
    name: str,
    contexts: np.ndarray,
    far: Remoteness,
    varies: Variation,
    settings: dict[str, Any],
) -> AnnData:
    """Assemble and validate the table; see :func:`ragst_sd.tl.perturb` for its fields."""
    import anndata as ad
    import pandas as pd
    from spatialdata.models import TableModel

    attrs = table_attrs(source.table)
    pointers, cited = cite_responses(reference, responded.rows)
    n, n_genes = source.values.shape
    reliability = cited_reliability(responded.weights, cited, pointers)
    magnitude = np.sqrt((responded.response**2).mean(axis=1))
    kept = [attrs["region_key"], attrs["instance_key"]]
    kept += [one for one in (_keys.DONOR, _keys.SAMPLE, _keys.OUT_OF_REFERENCE) if one in source.table.obs]
    obs = source.table.obs[list(dict.fromkeys(kept))].copy()
    names = np.asarray(source.table.obs_names, dtype=object)
    columns = {
        _keys.PERTURBATION: pd.Categorical([name] * n),
        _keys.CONTEXT: pd.Categorical(contexts.astype(str)),
        _keys.SOURCE: names,
        _keys.EFFECTIVE_N: responded.effective_n,
        _keys.EVIDENCE_SHARE: responded.evidence_share,
        _keys.CITED_RELIABILITY: reliability,
        # Where spots do not differ more than by chance every tool shall draw them alike.
        _keys.RESPONSE_MAGNITUDE: np.full(n, magnitude.mean()) if varies.constant else magnitude,
        _keys.STATE_DISTANCE: far.distance,
        _keys.STATE_PERCENTILE: far.percentile,
        _keys.FAR_FROM_SCREEN: far.distance > 1,
    }
    if responded.embedding_share is not None:
        columns[_keys.EMBEDDING_SHARE] = responded.embedding_share
    for column, values in columns.items():
        obs[column] = values
    layers = {
        _keys.RESPONSE: responded.response.astype(np.float32),
        _keys.EVIDENCE: responded.evidence.astype(np.float32),
        _keys.STANDARD_ERROR: error.astype(np.float32),
    }
    values = (source.values + responded.response).astype(np.float32)
    about = {}
    if source.limits is not None:
        lower, upper, level = source.limits.lower, source.limits.upper, source.limits.level
        share = NormalDist().inv_cdf(0.5 + level / 2) * np.nan_to_num(error)
        below, above = source.values - lower, upper - source.values
        layers[_keys.LOWER] = (values - np.sqrt(below**2 + share**2)).astype(np.float32)
        layers[_keys.UPPER] = (values + np.sqrt(above**2 + share**2)).astype(np.float32)
        about = {_keys.INTERVAL_LEVEL: level}
    table = ad.AnnData(
        values,
        obs=obs,
        var=_genes(source),
        layers=layers,
        obsm={
            _keys.ROWS: pointers.astype(np.int32),
            _keys.WEIGHTS: responded.weights.astype(np.float32),
            _keys.DISTANCES: responded.distances.astype(np.float32),
        },
    )
    if _keys.SPATIAL in source.table.obsm:
        table.obsm[_keys.SPATIAL] = np.asarray(source.table.obsm[_keys.SPATIAL]).copy()
    table.uns[_keys.RETRIEVAL] = response_header(header, fit, cited) | {
        **settings,
        "scope": SCOPE,
        "resolution": "spot",
        "table_key": source.table_key,
        **({"prediction": source.prediction} if source.prediction else {}),
        **about,
        "n_genes": n_genes,
        "variance": varies.variance,
        "variance_shuffled": varies.shuffled,
        "variance_p_value": varies.p_value,
        "constant": varies.constant,
        "far_from_screen": float((far.distance > 1).mean()),
    }
    return TableModel.parse(
        table,
        region=source.region,
        region_key=attrs["region_key"],
        instance_key=attrs["instance_key"],
        overwrite_metadata=True,
    )


def _genes(source: TissueSource) -> Any:
    """Genes, and how far those of a prediction can be trusted and what they were predicted from."""
    import pandas as pd

    var = pd.DataFrame(index=pd.Index(source.genes, name="gene"))
    for column, values in source.trust.items():
        var[column] = values
    if source.evidence is not None:
        var[_keys.EVIDENCE] = pd.Categorical(source.evidence.astype(str))
    return var
