"""A reference opened: the only place where an AnnData becomes a :class:`ragst_sd.retrieval.bank.Bank`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._cell_types import cell_types
from ragst_sd._labels import label, labels
from ragst_sd._reference import Content, content_of, is_lazy, read_header, require_fit, require_in_memory, whole_hash
from ragst_sd.reference.header import Fit, Header, ScreenHeader
from ragst_sd.reference.normalize import as_csr
from ragst_sd.reference.responses import components
from ragst_sd.reference.schema import TASK
from ragst_sd.retrieval.bank import Bank, Cells, Screen
from ragst_sd.retrieval.projection import standardize
from ragst_sd.retrieval.training import dense


def open_bank(reference: AnnData, *, task: str | None = "histology", fitted: bool = True, whole: bool = True) -> Bank:
    """Check a reference of tissue, or of responses to perturbations, once, and take it apart.

    Parameters
    ----------
    reference
        In memory, or with its rows on disk.
    task
        What it must be for, `"histology"` or `"perturbation"`; `None` takes either.
    fitted
        Whether it must have a fit, of the content that it has now.
    whole
        Whether all of its content is looked at. Of rows on disk only what is in memory is: they were checked when they
        were written.

    Raises
    ------
    TypeError
        If it is not an AnnData.
    ValueError
        If it is no reference or damaged, is to be fitted and is not, its method is not registered, or rows, values,
        annotations or the fit changed after fitting.
    """
    stored = read_header(reference, task)
    content = content_of(reference, stored, whole=whole)
    if fitted:
        require_fit(reference, stored, content.hash, whole=whole and not is_lazy(content.values))
    fit = Fit.read(stored[_keys.FIT]) if isinstance(stored.get(_keys.FIT), Mapping) else None
    if stored["task"] == TASK:
        bank = _responses(reference, stored, content, metric="cosine" if fit is None else fit.metric)
    else:
        bank = _tissue(reference, stored, content)
    return replace(
        bank,
        ids=reference.obs_names.to_numpy(dtype=str),
        genes=reference.var_names,
        obs=reference.obs,
        var=reference.var,
        digests=content.digests,
        fit=fit,
    )


def _tissue(reference: AnnData, stored: Mapping[str, Any], content: Content) -> Bank:
    obs, header = reference.obs, Header.read(stored)
    panel = {name: i for i, name in enumerate(header.panels)}
    panel_names, of_name = _codes(obs[_keys.PANEL])
    panels = np.array([panel[name] for name in panel_names], dtype=np.int64)[of_name]
    samples, donors = (_codes(obs[name])[1] for name in (_keys.SAMPLE, _keys.DONOR))
    # Donors on one slide count as several sections; a donor is the same however its label is stored.
    _, of_label = _codes(obs[_keys.DONOR], label)
    sections = np.unique(samples * (of_label.max(initial=0) + 1) + of_label, return_inverse=True)[1]
    # Numbers of rows too: without a section, the codes of the others would stand for the means of other sections.
    sizes = np.bincount(sections * len(panel) + panels)
    return Bank(
        embedding=reference.obsm[header.use_rep],
        values=content.values,
        panels=panels,
        measured=np.asarray(reference.varm[_keys.MEASURED]).T,
        folds=None,
        sections=sections,
        donors=donors,
        types=None if cell_types(reference) is None else reference.obsm[_keys.CELL_TYPE_FRACTION],
        key=reference.obsm.get(_keys.RETRIEVAL_KEY),
        regression_key=reference.obsm.get(_keys.REGRESSION_KEY),
        header=replace(header, content_hash=content.hash, frame_hash=whole_hash(reference, [sizes.tobytes()])),
    )


def _responses(reference: AnnData, stored: Mapping[str, Any], content: Content, *, metric: str) -> Bank:
    """Responses in the order of the rows; cells, which few methods need, are left where they are: see `with_cells`."""
    header = replace(ScreenHeader.read(stored), content_hash=content.hash)
    values, given = dense(content.values), header.from_responses
    halves = (values, values) if given else tuple(dense(reference.layers[name]) for name in _keys.RESPONSE_HALVES)
    error = reference.layers.get(_keys.STANDARD_ERROR)
    reliability = reference.obs[_keys.RELIABILITY].to_numpy(dtype=np.float64)
    key = np.asarray(reference.obsm[header.use_rep], dtype=np.float64)
    names = labels(reference.obs[_keys.PERTURBATION])
    sections = context_codes(labels(reference.obs[_keys.CONTEXT]), header)
    return Bank(
        embedding=key,
        key=key,
        values=values,
        panels=np.zeros(reference.n_obs, dtype=np.int64),
        measured=np.ones((1, reference.n_vars), dtype=bool),
        folds=np.unique(names.astype(str), return_inverse=True)[1],
        sections=sections,
        header=header,
        screen=Screen(
            halves=(halves[0], halves[1]),
            perturbed=tuple(components(name, header.control_names) for name in names),
            states=_mean_responses(values, sections, header.states) if given else header.states,
            # Of responses it may be unknown: then rows count alike. A row of one cell has none.
            reliability=np.nan_to_num(reliability, nan=float(given)),
            metric=metric,
            errors=None if error is None else np.nan_to_num(dense(error)),
            from_cells=not given,
        ),
    )


def _mean_responses(values: np.ndarray, sections: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """(contexts, g) mean response of the rows that are there; what is stored for a context without rows."""
    of_rows = [values[sections == code] for code in range(len(stored))]
    return np.array([rows.mean(axis=0) if len(rows) else state for rows, state in zip(of_rows, stored, strict=True)])


def context_codes(contexts: np.ndarray, header: ScreenHeader) -> np.ndarray:
    """Position of each context in the header, -1 for a new one."""
    place = {name: i for i, name in enumerate(header.contexts)}
    return np.array([place.get(str(name), -1) for name in contexts], dtype=np.int64)


def with_cells(bank: Bank) -> Bank:
    """The bank with its samples of cells, in float32; cells of rows that are no longer there are left out."""
    header, controls, treated = bank.header, bank.header.controls, bank.header.treated
    rows = bank.obs.index.get_indexer([str(name) for name in treated["row"]])
    there = np.flatnonzero(rows >= 0)
    cells = Cells(
        controls=dense(as_csr(controls["values"])).astype(np.float32),
        contexts=context_codes(np.array([str(name) for name in controls["context"]], dtype=object), header),
        treated=dense(as_csr(treated["values"])[there]).astype(np.float32),
        rows=rows[there],
    )
    return replace(bank, screen=replace(bank.screen, cells=cells))


def _codes(column: pd.Series, name_of: Callable[[Any], str] = str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels of a column in their order, and the code of each row."""
    codes, values = column.factorize(use_na_sentinel=False)
    names, place = np.unique(np.array([name_of(value) for value in values], dtype=str), return_inverse=True)
    return names, place[codes]


def standardized(bank: Bank) -> Bank:
    """The bank with its embeddings as they are compared, float64, standardised by section where the header says so.

    They are in memory; `raw` are the embeddings as they were made.

    Raises
    ------
    ValueError
        If the rows lie on disk, an embedding is NaN or infinite, or a section has no statistics.
    """
    require_in_memory(bank.values)
    header, raw = bank.header, np.asarray(bank.embedding)
    values = raw.astype(np.float64)
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"`obsm[{header.use_rep!r}]` of the reference is NaN or infinite in {bad} rows. Drop them and fit again."
        )
    names = list(header.sections.sample)
    of_samples = bank.obs.groupby(bank.obs[_keys.SAMPLE].astype(str)).indices if header.standardize else {}
    for sample, rows in of_samples.items():
        if sample not in names:
            raise ValueError(
                f"Section {sample!r} has no statistics in the reference's header (it has {names}). Build it again."
            )
        place = names.index(sample)
        values[rows] = standardize(values[rows], header.sections.mean[place], header.sections.std[place])
    return replace(bank, embedding=values, raw=raw)


def n_measured(bank: Bank) -> np.ndarray:
    """(genes,) number of rows that measured each gene."""
    return np.bincount(bank.panels, minlength=len(bank.measured)) @ bank.measured
