"""Short names of pathology foundation models: where their weights are, under which terms, how they are called.

What is stated here comes from the models' cards, repositories and papers. A fact that could not be confirmed there is
named in `unverified`. The terms change: read the model page before you rely on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BIOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_BIOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_CC_BY_NC_ND = "CC-BY-NC-ND-4.0"
_MAHMOOD_TERMS = "The terms extend to models trained on its outputs and to data sets made from them."


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
    timm_kwargs
        Arguments that timm needs on top of the hub's configuration. A string `"layer:SwiGLUPacked"` names a class of
        `timm.layers`, `"nn:SiLU"` one of `torch.nn`: this module imports neither.
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
    commercial_use: bool | None
    gated: bool | None
    citation: str
    timm_kwargs: dict[str, Any] = field(default_factory=dict)
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


_UNI2_KWARGS = {
    "img_size": 224,
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "mlp_layer": "layer:SwiGLUPacked",
    "act_layer": "nn:SiLU",
    "reg_tokens": 8,
    "dynamic_img_size": True,
}
_VIRCHOW_LAYERS = {"mlp_layer": "layer:SwiGLUPacked", "act_layer": "nn:SiLU"}
_H_OPTIMUS_KWARGS = {"init_values": 1e-5, "dynamic_img_size": False}

_MODELS = (
    FoundationModel(
        name="uni",
        hub_id="MahmoodLab/UNI",
        loader="timm",
        width=1024,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        license=_CC_BY_NC_ND,
        commercial_use=False,
        gated=True,
        citation="Chen et al., Nature Medicine 2024, doi:10.1038/s41591-024-02857-3",
        timm_kwargs={"init_values": 1e-5, "dynamic_img_size": True},
        architecture="vit_large_patch16_224",
        architecture_kwargs={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        note=_MAHMOOD_TERMS,
        unverified=("mpp",),
    ),
    FoundationModel(
        name="uni2",
        hub_id="MahmoodLab/UNI2-h",
        loader="timm",
        width=1536,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        license=_CC_BY_NC_ND,
        commercial_use=False,
        gated=True,
        citation="Chen et al., Nature Medicine 2024, doi:10.1038/s41591-024-02857-3",
        timm_kwargs=_UNI2_KWARGS,
        architecture="vit_giant_patch14_224",
        architecture_kwargs=_UNI2_KWARGS,
        note=_MAHMOOD_TERMS,
        unverified=("mpp",),
    ),
    FoundationModel(
        name="virchow2",
        hub_id="paige-ai/Virchow2",
        loader="timm",
        width=2560,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        license=_CC_BY_NC_ND,
        commercial_use=False,
        gated=True,
        citation="Zimmermann et al., 2024, arXiv:2408.00738",
        timm_kwargs=_VIRCHOW_LAYERS,
        architecture="vit_huge_patch14_224",
        architecture_kwargs={
            **_VIRCHOW_LAYERS,
            "img_size": 224,
            "init_values": 1e-5,
            "reg_tokens": 4,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "dynamic_img_size": True,
        },
        pooling="cls_mean",
        note="Trained at several magnifications.",
        unverified=("mpp",),
    ),
    FoundationModel(
        name="h-optimus-0",
        hub_id="bioptimus/H-optimus-0",
        loader="timm",
        width=1536,
        input_px=224,
        mpp=0.5,
        mean=_BIOPTIMUS_MEAN,
        std=_BIOPTIMUS_STD,
        license="Apache-2.0",
        commercial_use=True,
        gated=None,
        citation="Saillard et al., H-optimus-0, 2024, https://github.com/bioptimus/releases",
        timm_kwargs=_H_OPTIMUS_KWARGS,
        architecture="vit_giant_patch14_reg4_dinov2",
        architecture_kwargs={**_H_OPTIMUS_KWARGS, "img_size": 224, "global_pool": "token"},
        unverified=("gated", "mpp"),
    ),
    FoundationModel(
        name="h-optimus-1",
        hub_id="bioptimus/H-optimus-1",
        loader="timm",
        width=1536,
        input_px=224,
        mpp=0.5,
        mean=_BIOPTIMUS_MEAN,
        std=_BIOPTIMUS_STD,
        license=_CC_BY_NC_ND,
        commercial_use=False,
        gated=True,
        citation="Bioptimus, H-optimus-1, 2025, https://huggingface.co/bioptimus/H-optimus-1",
        timm_kwargs=_H_OPTIMUS_KWARGS,
        architecture="vit_giant_patch14_reg4_dinov2",
        architecture_kwargs={**_H_OPTIMUS_KWARGS, "img_size": 224, "global_pool": "token"},
        unverified=("mpp",),
    ),
    FoundationModel(
        name="gigapath",
        hub_id="prov-gigapath/prov-gigapath",
        loader="timm",
        width=1536,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        license="Apache-2.0, research use only",
        commercial_use=False,
        gated=True,
        citation="Xu et al., Nature 2024, doi:10.1038/s41586-024-07441-w",
        architecture="vit_giant_patch14_dinov2",
        architecture_kwargs={
            "img_size": 224,
            "in_chans": 3,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "mlp_ratio": 5.33334,
        },
        note="The tile encoder. Its authors crop the middle 224 px of tiles of 256 px; the whole tile is used here.",
        unverified=("license", "mpp"),
    ),
    FoundationModel(
        name="phikon-v2",
        hub_id="owkin/phikon-v2",
        loader="transformers",
        width=1024,
        input_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        license="Owkin non-commercial licence",
        commercial_use=False,
        gated=False,
        citation="Filiot et al., 2024, arXiv:2409.09173",
        pooling="cls",
        needs="transformers",
        unverified=("gated",),
    ),
    FoundationModel(
        name="hibou-b",
        hub_id="histai/hibou-b",
        loader="transformers",
        width=768,
        input_px=224,
        mpp=0.5,
        mean=(0.7068, 0.5755, 0.722),
        std=(0.195, 0.2316, 0.1816),
        license="Apache-2.0",
        commercial_use=True,
        gated=True,
        citation="Nechaev et al., 2024, arXiv:2406.05074",
        pooling="pooler",
        needs="'transformers<5'",
        remote_code=True,
        note="Loading runs code from its repository: model_kwargs={'trust_remote_code': True} allows it.",
        unverified=("gated", "mpp"),
    ),
    FoundationModel(
        name="conch",
        hub_id="MahmoodLab/CONCH",
        loader="conch",
        width=512,
        input_px=448,
        mpp=0.5,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        license=_CC_BY_NC_ND,
        commercial_use=False,
        gated=True,
        citation="Lu et al., Nature Medicine 2024, doi:10.1038/s41591-024-02856-4",
        needs="git+https://github.com/mahmoodlab/CONCH.git",
        note=f"Image embedding before the contrastive projection. {_MAHMOOD_TERMS}",
        unverified=("mpp",),
    ),
)

FOUNDATION_MODELS: dict[str, FoundationModel] = {row.name: row for row in _MODELS}


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
    for row in _MODELS:
        if wanted in (row.name, f"hf-hub:{row.hub_id.lower()}"):
            return row
    return None
