"""What a data card and a report say of the encoder of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ragst_sd._licenses import UNKNOWN, terms_of
from ragst_sd._page import code
from ragst_sd.reference.schema import knows_tiles

_SHORT_HASH = 16


def encoder_facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """Name and terms of an encoder as far as :func:`ragst_sd.pp.encoders` knows it, and a table of it and its tiles.

    A `license` that is empty is not known.
    """
    from ragst_sd.pp import encoders

    known, name = encoders(), str(header["encoder"])
    known = known[(known.index == name) | ((known["source"] == name) & known["source"].str.startswith("hf-hub:"))]
    row = known.iloc[0] if len(known) else {"license": "", "citation": "", "commercial_use": pd.NA}
    license = "" if terms_of(row["license"]) is UNKNOWN else row["license"]
    meaning, name = terms_of(license).meaning, name or "an encoder without a name"
    tile_px, mpp = int(header["tile_px"]), float(header["mpp"])
    tile = f"{tile_px} px, " + (f"{tile_px * mpp:g} µm at {mpp:g} µm per pixel" if mpp > 0 else "native pixels")
    fields = f"{', '.join(f'{view:g}' for view in np.atleast_1d(header['context']))} times the tile"
    if not knows_tiles(header):
        name, tile, fields = f"an embedding of unknown origin, {name}", "", ""
    lines = {
        "name": name,
        "licence": f"{license}: {meaning}" if license else "not known here; see its own page",
        "citation": row["citation"],
        "weights": code(str(header["weights_hash"])[:_SHORT_HASH]) if header["weights_hash"] else "none",
        "tile": tile,
        "fields of view": fields,
    }
    return {
        "name": name,
        "license": license,
        "meaning": meaning,
        "commercial_use": None if pd.isna(row["commercial_use"]) else bool(row["commercial_use"]),
        "table": pd.DataFrame([line for line in lines.items() if line[1]], columns=["", ""]),
    }
