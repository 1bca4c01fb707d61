"""What a reference of tissue says of itself, and what a fit keeps, as the types that the package works with."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd.reference.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd


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
    """Hash of genes, label columns and mask: what all rows have in common."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Header:
        """From the mapping in `.uns["ragst"]`, whose fields have been checked."""
        sections, normalization = stored["sections"], stored["normalization"]
        texts = {name: _texts(sections[name]) for name in ("sample", "image_hash", "precision")}
        numbers = {name: np.asarray(sections[name], dtype=float) for name in ("mean", "std", "image_mpp", "upsampling")}
        return cls(
            use_rep=str(stored["use_rep"]),
            standardize=bool(stored["standardize"]),
            donor_key=str(stored["donor_key"]),
            content_hash=str(stored["content_hash"]),
            panels=_texts(stored["panels"]),
            encoder=stored["encoder"],
            sections=Sections(**texts, **numbers),
            unit=str(normalization["unit"]),
            naming=str(normalization["naming"]),
            size_factor_genes=_texts(normalization["size_factor_genes"]),
            sources=stored["sources"],
            calibration=stored.get("calibration"),
            gene_trust=stored.get("gene_trust"),
            cell_types=stored.get("cell_types"),
        )


@dataclass(frozen=True)
class Fit:
    """A method fitted on a reference of tissue."""

    method: str
    n_neighbors: int
    """Rows cited per spot at most."""
    n_candidates: int
    """Rows compared per spot, of which the best are cited."""
    metric: str
    inner_groups: str
    """What was held out to choose and calibrate."""
    group_key: str
    """The column of it that was asked for; empty if none was."""
    rng: int
    options: Mapping[str, Any]
    parameters: Mapping[str, Any]
    distance_quantiles: np.ndarray
    """Of the distances of held-out rows in phi-space."""
    distance_threshold: float
    """Distance beyond which a spot is out of reference."""
    appearance: Mapping[str, Any]
    """What the raw embedding of a spot is compared with, and the distance beyond which it looks like no section."""
    reference_hash: str = ""
    fit_hash: str = ""
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Fit:
        """From the mapping in `.uns["ragst"]["fit"]`, whose fields have been checked."""
        missing = {"group_key": "", "rng": 0, "options": {}}
        return cls(**{one.name: stored.get(one.name, missing.get(one.name)) for one in fields(cls)})

    def stored(self) -> dict[str, Any]:
        """The mapping that is written, without hashes that are not known yet."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if not (name.endswith("_hash") and not value)}

    @property
    def cites_level(self) -> bool:
        """Whether measured values are taken relative to the mean of their section."""
        return "section_shifts" in self.parameters


def _texts(values: Any) -> np.ndarray:
    # Not `astype`: as read from disk, names do not cast.
    return np.array([str(value) for value in np.atleast_1d(values)], dtype=object)
