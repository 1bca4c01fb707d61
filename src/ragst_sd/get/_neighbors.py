"""`rg.get.neighbors`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._labels import labels
from ragst_sd._results import Prediction, predicted
from ragst_sd.get._explain_lines import uncited_text

# Columns of the cited rows, the column by which their source is found, and columns of the sources.
_OF_SPOTS = (
    (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.X_UM, _keys.Y_UM),
    _keys.SAMPLE,
    ("license", "citation"),
)
# Where a narrow screen leaves out the middle, what was cited with which weight is still there.
_COLUMNS = (
    "reference", _keys.DONOR, "weight", _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.X_UM, _keys.Y_UM, "license",
    "citation", "distance", "query", "rank",
)  # fmt: skip
_OF_RESPONSES = (
    (_keys.PERTURBATION, _keys.CONTEXT, _keys.PERTURBATION_TYPE, _keys.N_CELLS, _keys.RELIABILITY),
    _keys.CONTEXT,
    (_keys.TECHNOLOGY, "license", "citation"),
)


def neighbors(
    sdata: SpatialData | AnnData, *, prediction_key: str = "predicted", obs_names: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """List the measured spots, or the measured responses to perturbations, that each prediction rests on.

    The function uses only the provenance in the table and does not need the reference.

    Parameters
    ----------
    sdata
        Object with a predicted table, or the table itself; also a table that :func:`ragst_sd.tl.perturb` returned.
    prediction_key
        Name of the predicted table.
    obs_names
        Spot or spots (cells of predicted responses); all if left out.

    Returns
    -------
    One line per spot and cited row, by falling weight: `reference`, `donor`, `weight`, `sample`, `tissue`,
    `technology`, `x_um`, `y_um`, `license`, `citation`, `distance`, `query`, `rank` (from 1). Methods that cite no rows
    give an empty table.

    Of predicted responses one line per cell and cited row, with `perturbation`, `context`, `perturbation_type`,
    `n_cells` (cells that the response was measured on) and `reliability` (agreement of two halves of them) in place of
    what says where a spot lies; `technology` is that of the screen. A cell or spot whose prediction cites no rows has
    one line of rank 0 and weight 0, whose `reference` says what the prediction is instead, such as
    `nothing cited: mean of the responses that may be used`. Controls have no line.

    Read from `.obsm["retrieval_rows"]`, `["retrieval_weights"]`, `["retrieval_distances"]` and
    `.uns["retrieval"]`.

    Raises
    ------
    KeyError
        If the table or a spot does not exist.
    ValueError
        If the table has lost its provenance.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn")
    >>> rg.tl.predict(query, reference)
    >>> table = rg.get.neighbors(query, obs_names=query.tables["predicted"].obs_names[0])
    >>> set(table["donor"]) <= {"donor1", "donor2"}
    True
    """
    prediction = predicted(sdata, prediction_key, any_task=True)
    table, spots = prediction.table, prediction.spots(obs_names)
    rows, weights = prediction.citations(spots)
    distances = np.asarray(table.obsm[_keys.DISTANCES])[spots]
    spot, place = np.nonzero(rows >= 0)
    cited = prediction.cited.iloc[rows[spot, place]]
    first, source_key, last = _OF_RESPONSES if prediction.of_responses else _OF_SPOTS
    sources = prediction.header["sources"].reindex(cited[source_key].astype(str).to_numpy())
    frame = pd.DataFrame(
        {
            "query": table.obs_names.to_numpy()[spots][spot],
            "reference": cited["reference"].to_numpy(),
            **{name: cited[name].to_numpy() for name in first},
            "distance": distances[spot, place],
            "weight": weights[spot, place],
            **{name: sources[name].to_numpy() for name in last},
        }
    )
    frame = frame.assign(spot=spot).sort_values(
        ["spot", "weight", "distance", "reference"], ascending=[True, False, True, True], ignore_index=True
    )
    frame.insert(1, "rank", frame.groupby("spot").cumcount() + 1)
    if prediction.of_responses:
        return _with_uncited(frame, prediction, spots).drop(columns="spot")
    return frame[list(_COLUMNS)]


def _with_uncited(frame: pd.DataFrame, prediction: Prediction, cells: np.ndarray) -> pd.DataFrame:
    """The lines with one more for each cell that cites no rows, which says so; controls have none."""
    table = prediction.table
    uncited = np.ones(len(cells), dtype=bool)
    uncited[frame["spot"].unique()] = False
    uncited &= labels(table.obs[_keys.PERTURBATION])[cells] != str(prediction.header["control"])
    if not uncited.any():
        return frame
    rows, layers = cells[uncited], (_keys.RESPONSE, _keys.EVIDENCE)
    response, evidence = (prediction.values(prediction.genes(None), rows, layer=name) for name in layers)
    moved = ~np.isclose(response, evidence, atol=1e-6).all(axis=1)
    words = uncited_text(prediction)
    lines = pd.DataFrame(
        {
            # Numbers are missing, texts are empty.
            **{name: "" for name in frame if name not in (_keys.RELIABILITY, "distance")},
            "query": table.obs_names.to_numpy()[rows],
            "rank": 0,
            "reference": np.where(moved, f"{words}, and an adjustment", words).astype(object),
            _keys.N_CELLS: 0,
            "weight": 0.0,
            "spot": np.flatnonzero(uncited),
        }
    )
    both = lines.reindex(columns=frame.columns) if frame.empty else pd.concat([frame, lines], ignore_index=True)
    return both.sort_values("spot", kind="stable", ignore_index=True)
