"""Labels of perturbation screens: from those of a deposit to genes, combinations `A+B` and one name for controls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing

if TYPE_CHECKING:
    import pandas as pd

CONTROL = "control"
# Where a deposit says what was done to a cell, what the cell was, and with which others it was prepared.
_PERTURBATION = ("gene_target", "perturbation", "perturbation_name", "gene", "guide_identity")
_CONTEXT = ("context", "cell_line", "cell_type", "celltype")
_BATCH = ("batch", "gem_group", "gemgroup", "bio_rep", "replicate")
_CONTROLS = ("control", "non-targeting", "nontargeting", "nt", "ctrl", "non-target")


@dataclass(frozen=True)
class ScreenLayout:
    """How a deposit labels its cells."""

    kind: str
    """Type of the perturbations, which scPerturb gives as CRISPR for all of them."""
    joined_by: str | None = None
    """What stands between the genes of a combination."""
    suffix: str | None = None
    """Regular expression of what follows the gene: number of the guide, name of the plasmid."""
    control: str | None = None
    """Regular expression of further labels of controls."""


LAYOUTS = {
    "adamson_2016_upr_perturb_seq": ScreenLayout("CRISPRi", suffix=r"_p[A-Z]+\d+$", control=r"\(mod\)"),
    "nadig_2025_hepg2": ScreenLayout("CRISPRi"),
    "nadig_2025_jurkat": ScreenLayout("CRISPRi"),
    "norman_2019": ScreenLayout("CRISPRa", joined_by="_"),
    "papalexi_2021": ScreenLayout("CRISPRko", suffix=r"g\d+$", control=r"^NTg?\d*$"),
    "replogle_2022_k562_essential": ScreenLayout("CRISPRi"),
    "replogle_2022_rpe1": ScreenLayout("CRISPRi"),
}


def screen_obs(obs: pd.DataFrame, layout: ScreenLayout, context: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns of the house for the cells of a screen, and which cells have a label at all.

    Parameters
    ----------
    obs
        As the deposit has it.
    context
        Name of the cells where no column says it.
    """
    import pandas as pd

    present = [name for name in _PERTURBATION if name in obs]
    column = next((name for name in present if not _only_whether(obs[name])), None)
    if column is None and present:
        msg = (
            f"`obs[{present[0]!r}]` tells whether a cell was perturbed, and no column tells of which gene: one of "
            f"{listing(_PERTURBATION)} was expected, the file has {listing(obs.columns)}."
        )
        raise ValueError(msg)
    if column is None:
        msg = f"The file has no column of perturbations: one of {listing(_PERTURBATION)} was expected, it has {listing(obs.columns)}."
        raise ValueError(msg)
    given = obs[column].astype(object)
    labelled = (given.notna() & ~given.astype(str).str.strip().isin(["", "*", "nan", "None", "unassigned"])).to_numpy()
    names = given.where(labelled, "").astype(str)
    spelled = {name: gene_names(name, layout) for name in names.unique()}
    out = obs.copy()
    out[_keys.PERTURBATION] = pd.Categorical(names.map(spelled))
    if not (out[_keys.PERTURBATION][labelled] == CONTROL).any():
        shown = sorted(set(names[labelled]))
        msg = f"No cell of `obs[{column!r}]` is a control; it has {listing(shown)}, and controls are called {listing(_CONTROLS)}."
        raise ValueError(msg)
    own = next((name for name in _CONTEXT if name in obs and obs[name].notna().all()), None)
    # One name for one line, whatever the deposit calls it; several lines keep their own.
    several = own is not None and obs[own].nunique() > 1
    out[_keys.CONTEXT] = pd.Categorical(obs[own].astype(str) if several else np.full(len(obs), context))
    batch = next((name for name in _BATCH if name in obs and obs[name].notna().all()), None)
    out["batch"] = pd.Categorical(np.full(len(obs), "one") if batch is None else obs[batch].astype(str))
    kind = np.where(out[_keys.PERTURBATION] == CONTROL, CONTROL, layout.kind)
    out[_keys.PERTURBATION_TYPE] = pd.Categorical(kind)
    return out, labelled


def _only_whether(given: pd.Series) -> bool:
    """Whether a column knows no more than perturbed and control, whatever its name promises."""
    values = {str(one).strip().lower() for one in given.dropna().unique()} - set(_CONTROLS)
    return values == {"perturbed"}


def gene_names(label: str, layout: ScreenLayout) -> str:
    """A label in the spelling of the house."""
    label = label.strip()
    if label.lower() in _CONTROLS or (layout.control and re.search(layout.control, label)):
        return CONTROL
    if layout.suffix:
        label = re.sub(layout.suffix, "", label)
    parts = label.split(layout.joined_by) if layout.joined_by else label.split("+")
    genes = [part for part in parts if part.lower() not in _CONTROLS]
    return "+".join(genes) if genes else CONTROL
