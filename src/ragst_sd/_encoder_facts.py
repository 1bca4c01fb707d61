"""What a data card and a report say of the encoder of an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd._licenses import UNKNOWN, terms_of
from ragst_sd._page import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHORT_HASH = 16


def encoder_facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """Name and terms of an encoder as far as :func:`ragst_sd.pp.encoders` knows it; an empty `license` is not known."""
    import pandas as pd

    from ragst_sd.pp import encoders

    known, name = encoders(), str(header["encoder"])
    line = known[(known.index == name) | ((known["source"] == name) & known["source"].str.startswith("hf-hub:"))]
    facts = {"name": plain(name) or "an encoder without a name", "license": "", "citation": "", "commercial_use": None}
    for _, row in line.iloc[:1].iterrows():
        facts["license"] = "" if terms_of(row["license"]) is UNKNOWN else plain(row["license"])
        facts["citation"] = plain(row["citation"])
        facts["commercial_use"] = None if pd.isna(row["commercial_use"]) else bool(row["commercial_use"])
    return facts


def encoder_table(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The encoder and its tiles, line by line."""
    facts, mpp = encoder_facts(header), float(header["mpp"])
    tile = f"{int(header['tile_px'])} px"
    views = ", ".join(f"{view:g}" for view in np.atleast_1d(header["context"]))
    license = facts["license"]
    lines = [
        ("name", facts["name"]),
        ("licence", f"{license}: {terms_of(license).meaning}" if license else "not known here; see its own page"),
        ("citation", facts["citation"]),
        ("weights", f"`{str(header['weights_hash'])[:_SHORT_HASH]}`" if header["weights_hash"] else "none"),
        (
            "tile",
            f"{tile}, {int(header['tile_px']) * mpp:g} µm at {mpp:g} µm per pixel"
            if mpp == mpp
            else f"{tile}, native pixels",
        ),
        ("fields of view", f"{views} times the tile"),
    ]
    return [line for line in lines if line[1]]
