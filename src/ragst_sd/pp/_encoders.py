"""`rg.pp.encoders`."""

from __future__ import annotations

import tomllib

import pandas as pd

from ragst_sd._page import read_text
from ragst_sd.image.registry import FOUNDATION_MODELS
from ragst_sd.image.resolve_encoder import DEFAULT_CONTEXT, TEXTURE
from ragst_sd.image.texture import texture_names


def encoders() -> pd.DataFrame:
    """List the encoders that `model=` takes by name, with their terms of use.

    Returns
    -------
    One row per name (the index `name`):

    - `source`: hub id, or the package that computes it;
    - `width`: length of one tile's embedding per field of view;
    - `input_px`, `mpp`: edge of the tiles it takes, and the recommended microns per pixel;
    - `context`: fields of view used by default, in multiples of the tile;
    - `license`, `commercial_use`, `gated`: terms; missing where not clear or not confirmed. `gated` means that the
      terms must be accepted at `url` before the weights can be downloaded;
    - `mean`, `std`: input normalisation of RGB in [0, 1];
    - `needs`: what has to be installed, as pip takes it;
    - `citation`, `url`, `note`;
    - `unverified`: which of these could not be confirmed at the source.

    The last two rows represent all other timm models and hub ids, and all ONNX files.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> rg.pp.encoders().loc["uni2", "license"]
    'CC-BY-NC-ND-4.0'
    """
    models = {
        name: {**vars(row), "source": f"hf-hub:{row.hub_id}", "url": row.url, "unverified": ", ".join(row.unverified)}
        for name, row in FOUNDATION_MODELS.items()
    }
    kinds = tomllib.loads(read_text("pp/_encoders.toml"))
    rows = {TEXTURE: {"width": len(texture_names()), **kinds.pop(TEXTURE)}, **models, **kinds}
    columns = ["source", "width", "input_px", "mpp", "context", "license", "commercial_use", "gated", "mean", "std"]
    columns += ["needs", "citation", "url", "note", "unverified"]
    table = pd.DataFrame([{**row, "name": name, "context": DEFAULT_CONTEXT} for name, row in rows.items()])
    table = table.set_index("name")[columns]
    texts = ["citation", "url", "note", "unverified"]
    table[texts] = table[texts].fillna("")
    return table.astype({"width": "Int64", "input_px": "Int64", "commercial_use": "boolean", "gated": "boolean"})
