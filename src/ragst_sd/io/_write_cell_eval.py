"""`rg.io.write_cell_eval`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._replacing import replaced_file, require_new
from ragst_sd._results import predicted
from ragst_sd.reference.schema import RESPONSE_UNITS, TASK
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._measured_responses import genes_of_both, measured_responses, predicted_lines

logger = logging.getLogger(__name__)


def write_cell_eval(
    data: AnnData,
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = None,
    layer: str | None = None,
    unit: str = "counts",
    min_cells: int = 10,
    overwrite: bool = False,
) -> None:
    """Write predicted and measured cells as pairs of files that cell-eval reads.

    For every context two h5ad files of the same genes and perturbations, on one log scale: `<context>_pred.h5ad` with
    the predicted cells and, as controls, their source cells; `<context>_real.h5ad` with the measured cells and the
    controls that neither reference nor prediction has seen. So prediction and truth have separate controls. Values
    below zero in predicted cells are set to zero, because a log of counts cannot be negative.

    Parameters
    ----------
    data
        Made by :func:`ragst_sd.tl.perturb`.
    adata
        Measured cells, as for :func:`ragst_sd.tl.evaluate_perturbation`.
    path
        Folder to write to; made if it does not exist.
    perturbation_key
        Column of `adata.obs` with the perturbation.
    context_key
        Column of `adata.obs` with the context; one context, `"all"`, if left out.
    layer
        Layer of `adata`; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` for values on a log scale already.
    min_cells
        Perturbations with fewer measured cells are left out.
    overwrite
        Replace files of these names.

    Returns
    -------
    `None`. On disk, for every context, `<context>_pred.h5ad` and `<context>_real.h5ad`: `.X` float32 on the log scale,
    `.obs["perturbation"]`, and the same `.var_names`.

    Raises
    ------
    FileExistsError
        If a file exists and `overwrite` is not set.
    ValueError
        If `data` was not made by `rg.tl.perturb`, no controls are left for the truth, or nothing predicted was
        measured.

    Notes
    -----
    `cell_eval.MetricsEvaluator(pred, real, control_pert="control", pert_col="perturbation")` takes such a pair
    (https://github.com/ArcInstitute/cell-eval), the control being named as in the screen. Checked with cell-eval 0.8.2
    on a made-up screen: `pearson_delta`, `mae`, `mse` and their deltas are those of
    :func:`ragst_sd.tl.evaluate_perturbation` within 1e-7, and within .002 where values below zero became zero.
    Discrimination scores are higher there, since each prediction is compared with the perturbations of the pair only,
    here with all that were measured in the context.

    Examples
    --------
    >>> import anndata as ad, numpy as np, ragst_sd as rg, pathlib
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.poisson(2.0, size=(160, 210)).astype("float32"))
    >>> adata.obs["perturbation"] = np.repeat(["control", "STAT1", "JAK2", "IRF1"], 40)
    >>> embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "IRF1": [0.8, 0.1]}
    >>> role = rg.tl.perturbation_folds(adata)["STAT1"]
    >>> seen = adata[role.isin(["train", "control_train"])]
    >>> reference = rg.tl.build_perturbation_reference(seen, embedding=embedding)
    >>> rg.tl.fit(reference, method="mean")
    >>> predicted = rg.tl.perturb(adata[role == "control_train"], reference, perturbations=["STAT1"])
    >>> rg.io.write_cell_eval(predicted, adata, "cell_eval")
    >>> sorted(file.name for file in pathlib.Path("cell_eval").iterdir())
    ['all_pred.h5ad', 'all_real.h5ad']
    """
    prediction = predicted(data, "", any_task=True)
    table, header = prediction.table, prediction.header
    if header.get("task") != TASK:
        raise ValueError("`data` is a prediction of tissue; cell-eval compares responses: see `rg.tl.perturb`.")
    if str(header["normalization"].get("given")) in RESPONSE_UNITS:
        raise ValueError(
            f"`data` holds responses without cells ({header['unit']}), and cell-eval compares cells. "
            "`rg.tl.evaluate_perturbation` has metrics that need none."
        )
    control, genes = str(header["control"]), genes_of_both(table, adata, header)
    keys = {"perturbation_key": perturbation_key, "context_key": context_key, "batch_key": None, "layer": layer}
    how: dict[str, Any] = {**keys, "unit": unit, "min_cells": min_cells, "rng": np.random.default_rng(0)}
    truth = measured_responses(adata, [table], genes, **how)
    table = table[:, genes]
    lines = predicted_lines(table, truth)
    folder, contexts = Path(path), list(dict.fromkeys(truth.names[line][0] for line, _ in lines))
    files = {(c, kind): folder / f"{c.replace('/', '-')}_{kind}.h5ad" for c in contexts for kind in ("pred", "real")}
    for file in files.values():
        require_new(file, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    of_context = table.obs[_keys.CONTEXT].astype(str).to_numpy()
    sources = table.obs[_keys.SOURCE].astype(str).to_numpy()
    for context in contexts:
        chosen = [(truth.names[line][1], line, cells) for line, cells in lines if truth.names[line][0] == context]
        here = np.flatnonzero(of_context == context)
        once = here[np.unique(sources[here], return_index=True)[1]]
        predictions = {name: dense(table.X[cells]) for name, _, cells in chosen}
        predictions[control] = dense(table.X[once]) - dense(table.layers[_keys.RESPONSE][once])
        measured = {name: truth.cells(line) for name, line, _ in chosen} | {control: truth.controls(context)}
        for kind, parts in (("pred", predictions), ("real", measured)):
            names = np.repeat(list(parts), [len(part) for part in parts.values()])
            index = [f"{kind}{i}" for i in range(len(names))]
            written = ad.AnnData(
                np.maximum(np.concatenate(list(parts.values())), 0).astype(np.float32),
                obs=pd.DataFrame({_keys.PERTURBATION: pd.Categorical(names)}, index=index),
                var=pd.DataFrame(index=pd.Index(genes, name="gene")),
            )
            with replaced_file(files[context, kind]) as beside:
                written.write_h5ad(beside)
        logger.info("Wrote %s and its measured counterpart.", files[context, "pred"])
