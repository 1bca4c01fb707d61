"""What a reference keeps of its sections: row annotations, statistics, sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._validate import listing
from ragst_sd.reference.panels import PANEL
from ragst_sd.reference.schema import COMPARABLE
from ragst_sd.tl._sections import SOURCE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from ragst_sd.tl._sections import Section


def row_annotations(sections: list[Section], panel_of: Mapping[str, str]) -> pd.DataFrame:
    """One line per spot."""
    import pandas as pd

    frames = []
    for section in sections:
        mpp = float(section.header.get("image_mpp", np.nan))
        frame = section.obs.copy()
        frame.index = pd.Index([f"{section.sample}:{name}" for name in frame.index])
        frame[_keys.SAMPLE] = section.sample
        for name in (_keys.TISSUE, _keys.TECHNOLOGY):
            if name not in frame or section.source[name]:
                frame[name] = str(section.source[name] or _keys.UNKNOWN)
        frame[_keys.X_UM], frame[_keys.Y_UM] = (section.xy * mpp).T
        frame[_keys.PANEL] = panel_of[section.sample]
        frames.append(frame)
    joined = pd.concat(frames)
    if joined.index.has_duplicates:
        msg = (
            f"Spot names are not unique within a section: {listing(joined.index[joined.index.duplicated()].unique())}."
        )
        raise ValueError(msg)
    for name in (_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL):
        joined[name] = pd.Categorical(joined[name].astype(str))
    return joined


def encoder_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """What two embeddings must share to be comparable."""
    return {name: header[name] for name in (*COMPARABLE, "precision")}


def section_statistics(sections: list[Section]) -> dict[str, np.ndarray]:
    """One entry per section, in every array."""

    def column(name: str, missing: Any) -> np.ndarray:
        return np.asarray([section.header.get(name, missing) for section in sections])

    return {
        "sample": np.asarray([section.sample for section in sections], dtype=str),
        "mean": column("section_mean", None),
        "std": column("section_std", None),
        "image_mpp": column("image_mpp", np.nan).astype(float),
        "upsampling": column("upsampling", 1.0).astype(float),
        "image_hash": column("image_hash", "").astype(str),
        "precision": column("precision", "float32").astype(str),
        "species": np.asarray([section.species for section in sections], dtype=str),
    }


def source_table(sections: list[Section]) -> pd.DataFrame:
    """One line per section: organ, technology, licence, citation."""
    import pandas as pd

    fields = [name for name in SOURCE_FIELDS if name != PANEL]
    rows = [[str(section.source[name] or _keys.UNKNOWN) for name in fields] for section in sections]
    return pd.DataFrame(
        rows, columns=fields, index=pd.Index([section.sample for section in sections], name=_keys.SAMPLE)
    )
