"""What a reference says of itself, also one of an earlier release, and what a fit keeps: checked, and as types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from ragst_sd.reference.current_names import CURRENT, species_of
from ragst_sd.reference.genes import ENSEMBL, SYMBOL
from ragst_sd.reference.schema import REFERENCE_VERSION, RESPONSE_UNITS, SCHEMA, SCHEMA_VERSION, TASK, check_fields
from ragst_sd.reference.symbols import UNKNOWN


def check_header(header: Any, task: str) -> None:
    """Raise a `ValueError` unless `header` describes a reference for the task."""
    stated = header.get("task", task) if isinstance(header, Mapping) else task
    if stated != task:
        use = {"histology": "rg.tl.predict", TASK: "rg.tl.perturb"}
        raise ValueError(
            f"The reference is for the task {str(stated)!r}, not {task!r}. Use "
            f"`{use.get(str(stated), 'its own functions')}`."
        )
    what = "The reference's header `uns['ragst']`"
    if task != TASK:
        todo = "Build it with `rg.tl.build_reference`."
        check_fields(header, SCHEMA["reference"], what, todo, known=REFERENCE_VERSION)
        return
    todo = "Build it with `rg.tl.build_perturbation_reference`."
    check_fields(header, SCHEMA["screen"], what, todo)
    for name, needed in SCHEMA["parts_of_screen"].items():
        check_fields(header[name], needed, f"The part {name!r} of the reference's header", todo)


def check_fit(fit: Any, *, task: str = "histology") -> None:
    """Raise a `ValueError` unless `fit` describes a method fitted for `task`."""
    if fit is None:
        raise ValueError("The reference is not fitted. Run `rg.tl.fit(reference, method=...)` first.")
    needed = SCHEMA["fit"] | ({"appearance": "mapping"} if task == "histology" else {})
    check_fields(fit, needed, "The reference's fit `uns['ragst']['fit']`", "Fit again with `rg.tl.fit`.")


@dataclass(frozen=True)
class Sections:
    """What is kept of each section, (sections,) arrays unless said otherwise."""

    sample: np.ndarray
    mean: np.ndarray
    """(sections, d) of its embeddings."""
    std: np.ndarray
    """(sections, d)."""
    image_hash: np.ndarray
    image_mpp: np.ndarray
    upsampling: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class Header:
    """The header of a reference of tissue."""

    use_rep: str
    """Place of the embeddings in `.obsm`."""
    standardize: bool
    """Whether embeddings are compared relative to the mean and spread of their section."""
    donor_key: str
    """Column of donors in the tables that the reference was built from."""
    content_hash: str
    panels: np.ndarray
    """(panels,) names."""
    encoder: Mapping[str, Any]
    sections: Sections
    unit: str
    naming: str
    """What genes are named by."""
    size_factor_genes: np.ndarray
    sources: pd.DataFrame
    """Technology, license and citation, one line per section."""
    calibration: Mapping[str, Any] | None = None
    """What intervals rest on; `None` before :func:`ragst_sd.tl.calibrate`."""
    gene_trust: Mapping[str, Any] | None = None
    """The fit that the accuracy of the genes is of."""
    cell_types: Mapping[str, Any] | None = None
    """What :func:`ragst_sd.tl.add_cell_types` found."""
    frame_hash: str = ""
    """Hash of genes, label columns, mask, and the number of rows of each section and panel."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Header:
        """From the mapping in `.uns["ragst"]`, whose fields have been checked."""
        sections, normalization = stored["sections"], stored["normalization"]
        texts = {name: _texts(sections[name]) for name in ("sample", "image_hash", "precision")}
        numbers = {name: np.asarray(sections[name], dtype=float) for name in ("mean", "std", "image_mpp", "upsampling")}
        read = {
            "standardize": bool(stored["standardize"]),
            "panels": _texts(stored["panels"]),
            "sections": Sections(**texts, **numbers),
            "unit": str(normalization["unit"]),
            "naming": str(normalization["naming"]),
            "size_factor_genes": _texts(normalization["size_factor_genes"]),
        }
        return cls(**_fields_in(cls, stored) | read)


@dataclass(frozen=True)
class ScreenHeader:
    """The header of a reference of responses to perturbations."""

    use_rep: str
    """Place of the embeddings in `.obsm`."""
    control: str
    """Name of the control."""
    control_names: list[str]
    """What the screen calls its controls, all of which count as the first."""
    context_key: str
    """Column of contexts in the screen; empty where there was none."""
    contexts: list[str]
    content_hash: str
    states: np.ndarray
    """(contexts, g) mean expression of their controls; mean response, where responses were given."""
    n_controls: np.ndarray
    embedding: Mapping[str, Any]
    """Name, genes and values of the embedding of genes."""
    normalization: Mapping[str, Any]
    controls: Mapping[str, Any]
    """A sample of control cells."""
    treated: Mapping[str, Any]
    """A sample of perturbed cells."""
    control_cells: np.ndarray
    """Names of all control cells that responses were measured against."""
    sources: pd.DataFrame
    control_prints: Any = None
    """What they are recognised by, whatever their names; `None` in earlier releases."""

    @property
    def from_responses(self) -> bool:
        """Whether responses were given, so that there are no cells and no controls."""
        return self.normalization.get("given") in RESPONSE_UNITS

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> ScreenHeader:
        """From the mapping in `.uns["ragst"]`, whose fields have been checked."""
        of_contexts = stored["contexts"]
        read = {
            "contexts": list(_texts(of_contexts["context"])),
            "states": np.asarray(of_contexts["mean"], dtype=np.float64),
            "n_controls": np.asarray(of_contexts["n_controls"]),
            "control_cells": _texts(stored["control_cells"]),
            "control_names": control_names(stored),
        }
        return cls(**_fields_in(cls, stored) | read)


@dataclass(frozen=True)
class Fit:
    """A method fitted on a reference; how far queries may lie from it is known of tissue only."""

    method: str
    n_neighbors: int
    """Rows cited per spot at most."""
    n_candidates: int
    """Rows compared per spot, of which the best are cited."""
    metric: str
    inner_groups: str
    """What was held out to choose and calibrate."""
    rng: int
    options: Mapping[str, Any]
    parameters: Mapping[str, Any]
    group_key: str | None = None
    """The column of tissue that was asked to be held out; empty if none was."""
    distance_quantiles: Any = None
    """Of the distances of held-out rows in phi-space."""
    distance_threshold: Any = None
    """Distance beyond which a spot is out of reference."""
    appearance: Any = None
    """What the raw embedding of a spot is compared with, and the distance beyond which it looks like no section."""
    reference_hash: str = ""
    fit_hash: str = ""
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Fit:
        """From the mapping in `.uns["ragst"]["fit"]`, whose fields have been checked."""
        missing: dict[str, Any] = {"group_key": "", "rng": 0, "options": {}}
        return cls(**{field.name: stored.get(field.name, missing.get(field.name)) for field in fields(cls)})

    def stored(self) -> dict[str, Any]:
        """The mapping that is written, without what is not known."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value
            for name, value in values.items()
            if not (value is None or (name.endswith("_hash") and not value))
        }

    @property
    def cites_level(self) -> bool:
        """Whether measured values are taken relative to the mean of their section."""
        return "section_shifts" in self.parameters


def check_calibration(calibration: Any, fit_hash: str) -> Mapping[str, Any]:
    """The calibration; a `ValueError` unless it describes intervals of the fit with this hash."""
    if calibration is None:
        raise ValueError("The reference has no intervals. Run `rg.tl.calibrate(reference)` first.")
    todo = "Run `rg.tl.calibrate` again."
    check_fields(calibration, SCHEMA["calibration"], "The reference's calibration `uns['ragst']['calibration']`", todo)
    if calibration["fit_hash"] != fit_hash:
        raise ValueError(
            f"The calibration belongs to another fit (hash {calibration['fit_hash'][:12]} against {fit_hash[:12]}). "
            f"{todo}"
        )
    return calibration


def control_names(header: Mapping[str, Any]) -> list[str]:
    """What the screen calls its controls: one name, or several that count as the first."""
    return [str(name) for name in np.atleast_1d(header.get("control_names", header["control"]))]


def _fields_in(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: stored[field.name] for field in fields(cls) if field.name in stored}


def _texts(values: Any) -> np.ndarray:
    # Not `astype`: as read from disk, names do not cast.
    return np.array([str(value) for value in np.atleast_1d(values)], dtype=object)


def migrated(header: Any, genes: Sequence[str]) -> Any:
    """The header in the present version, a copy; no header, or one of a later version, is left to the schema's check.

    Content hash and fit stay valid: no version changes what a reference says, or what a fit rests on.

    Parameters
    ----------
    header
        `uns["ragst"]` of a reference of tissue.
    genes
        Names of its genes.
    """
    if not isinstance(header, Mapping):
        return header
    if int(header.get("schema_version", REFERENCE_VERSION)) != 1:
        return dict(header)
    # Species of the sections, told from the genes; `donor_key` and `obs`, which the first files lack.
    sections = header.get("sections")
    if isinstance(sections, Mapping) and "sample" in sections and "species" not in sections:
        naming = str(header.get("normalization", {}).get("naming", SYMBOL))
        offered = {ENSEMBL if naming == ENSEMBL else SYMBOL: list(map(str, genes))}
        try:
            named = [species for species, name in CURRENT.items() if name == naming]
            species = named[0] if named else species_of(offered)
        except ValueError:
            # Names of both species in one table: version 1 took them, and no section can be told to be of one.
            species = UNKNOWN
        sections = {**sections, "species": np.full(len(sections["sample"]), species)}
    added = {"donor_key": "donor", "obs": np.array([], dtype=str)}
    return {**added, **header, "sections": sections, "schema_version": REFERENCE_VERSION}
