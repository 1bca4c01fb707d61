"""Pathology foundation models by their short names, as `foundation_models.toml` lists them.

The terms change: read the model page before you rely on them.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FoundationModel:
    """One pathology foundation model.

    Attributes
    ----------
    name
        The short name that `model=` takes.
    hub_id
        Repository on the Hugging Face hub.
    loader
        `"timm"`, `"transformers"` or `"conch"`: the package that builds the network.
    width
        Length of the embedding of one tile.
    input_px
        Edge of the tiles it takes, in pixels.
    mpp
        Recommended microns per pixel of those tiles.
    mean, std
        Input normalisation of RGB in [0, 1].
    license
        Licence of the weights.
    commercial_use
        Whether the licence allows commercial use; `None` where the terms are not clear.
    gated
        Whether the terms must be accepted at the model page before download; `None` where not confirmed.
    citation
        The paper or model page to cite.
    hub_kwargs
        Arguments that timm or transformers needs on top of the hub's configuration. A string
        `"timm.layers:SwiGLUPacked"` names a class, of a package that this module does not import.
    weights_file
        File of weights in the repository, where the repository is none that timm loads by itself.
    architecture, architecture_kwargs
        The same network without the hub, for a local file of weights.
    pooling
        How the output becomes one vector: `""` it is one already; `"cls_mean"` class token and mean of the patch
        tokens side by side; `"cls"` the class token; `"pooler"` the model's own pooled output.
    needs
        What has to be installed, as pip takes it.
    remote_code
        Whether loading runs code from the hub.
    note
        What a user should know besides.
    unverified
        Names of fields that could not be confirmed.
    """

    name: str
    hub_id: str
    loader: str
    width: int
    input_px: int
    mpp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    license: str
    citation: str
    commercial_use: bool | None = None
    gated: bool | None = None
    hub_kwargs: dict[str, Any] = field(default_factory=dict)
    weights_file: str = ""
    architecture: str = ""
    architecture_kwargs: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    needs: str = "timm"
    remote_code: bool = False
    note: str = ""
    unverified: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The model page."""
        return f"https://huggingface.co/{self.hub_id}"


def _read_models() -> dict[str, FoundationModel]:
    rows = tomllib.loads(Path(__file__).with_name("foundation_models.toml").read_text(encoding="utf-8"))
    for row in rows.values():
        # TOML has lists only.
        row.update({key: tuple(value) for key, value in row.items() if isinstance(value, list)})
    return {name: FoundationModel(name=name, **row) for name, row in rows.items()}


FOUNDATION_MODELS = _read_models()


def find_foundation_model(model: str) -> FoundationModel | None:
    """Look up a short name or a hub id.

    Parameters
    ----------
    model
        A short name, or `hf-hub:org/name`; letter case does not matter. An id with `@revision` is not looked up: the
        rows describe the current revision.

    Returns
    -------
    The row, or `None`.
    """
    wanted = model.strip().lower().replace("hf_hub:", "hf-hub:")
    rows = FOUNDATION_MODELS.values()
    return next((row for row in rows if wanted in (row.name, f"hf-hub:{row.hub_id.lower()}")), None)
