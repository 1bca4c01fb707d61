"""From the sections of a recipe to parts, and from parts to one reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragst_sd import _keys
from ragst_sd._demo import variable_genes
from ragst_sd._validate import listing
from ragst_sd.datasets._recipe_sections import TABLE, keep_spots
from ragst_sd.reference.normalize import as_csr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from ragst_sd.datasets._recipe import Recipe
    from ragst_sd.datasets._recipe_sections import Planned
    from ragst_sd.image.encoders import Encoder

_IMAGE, _SHAPES = "he", "spots"


def embedded_section(
    section: Planned, recipe: Recipe, encoder: Encoder, *, use_rep: str, num_workers: int, progress: bool | None
) -> AnnData:
    """Read, filter and embed a section: its table with all that a reference needs of it, the picture left behind.

    Raises
    ------
    ValueError, KeyError
        What reading, filters, embedding and `rg.tl.build_reference` refuse, with the name of the section.
    """
    where = f"{section.source.place}, section {section.sample!r}"
    try:
        return _embedded(section, recipe, encoder, use_rep=use_rep, num_workers=num_workers, progress=progress)
    except (KeyError, ValueError) as error:
        msg = f"{where}: {error.args[0] if error.args else error}"
        raise type(error)(msg) from error


def _embedded(
    section: Planned, recipe: Recipe, encoder: Encoder, *, use_rep: str, num_workers: int, progress: bool | None
) -> AnnData:
    from anndata import AnnData

    from ragst_sd.pp import embed_tiles
    from ragst_sd.tl import build_reference

    sdata = section.read()
    missing = [
        kind for kind, there in (("picture", sdata.images), ("spots", sdata.shapes), (TABLE, sdata.tables)) if not there
    ]
    if missing:
        msg = f"it has no {' and no '.join(missing)}; a reference needs a picture and expression measured in spots."
        raise ValueError(msg)
    layer, columns = recipe.reference.get("layer"), list(recipe.reference.get("obs", ()))
    table = sdata.tables[TABLE]
    if layer is not None and layer not in table.layers:
        msg = f"there is no layer {layer!r}. Available: {listing(name for name in table.layers if name is not None)}."
        raise KeyError(msg)
    if _keys.DONOR not in table.obs:
        msg = "its donor is not known. Name the patient or animal in the recipe, with `donor:` or `donors:`."
        raise ValueError(msg)
    keep_spots(sdata, section.source.filters, layer=layer)
    embed_tiles(
        sdata,
        image_key=_IMAGE,
        shapes_key=_SHAPES,
        table_key=TABLE,
        model=encoder,
        tile_px=recipe.tiles["tile_px"],
        mpp=recipe.tiles.get("mpp"),
        image_mpp=section.source.image_mpp,
        context=recipe.tiles.get("context"),
        key_added=use_rep,
        batch_size=recipe.encoder["batch_size"],
        num_workers=num_workers,
        progress=progress,
    )
    # A reference of this section alone: what does not fit into one is told here, before hours of other sections.
    alone = build_reference(
        {section.sample: sdata},
        use_rep=use_rep,
        table_key=TABLE,
        layer=layer,
        unit=recipe.reference["unit"],
        obs=columns,
        thumbnails=recipe.reference["thumbnails"],
        **names_of_genes(recipe),
    )
    table = sdata.tables[TABLE]
    names = [str(name).removeprefix(f"{section.sample}:") for name in alone.obs_names]
    kept = table[names]
    part = AnnData(
        as_csr(kept.X if layer is None else kept.layers[layer]),
        obs=kept.obs[list(dict.fromkeys([_keys.DONOR, *columns]))].assign(
            **{name: alone.obs[name].to_numpy() for name in (_keys.X_UM, _keys.Y_UM)}
        ),
        # Names of genes are all that is asked of these columns.
        var=kept.var.astype(str),
        obsm={use_rep: np.asarray(kept.obsm[use_rep], dtype=np.float32)},
        uns={
            _keys.ATTRS: {
                _keys.SOURCE: dict(table.uns[_keys.ATTRS].get(_keys.SOURCE, {})),
                _keys.EMBEDDINGS: {use_rep: dict(table.uns[_keys.ATTRS][_keys.EMBEDDINGS][use_rep])},
            }
        },
    )
    if recipe.reference["thumbnails"]:
        part.obsm[_keys.THUMBNAIL] = alone.obsm[_keys.THUMBNAIL]
    return part


def assembled(parts: Mapping[str, AnnData], sections: Sequence[Planned], recipe: Recipe, *, use_rep: str) -> AnnData:
    """One reference of all parts, in the order of their names."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    from ragst_sd.tl import build_reference

    sdatas = {sample: SpatialData(tables={TABLE: TableModel.parse(part)}) for sample, part in parts.items()}

    def build(genes: list[str] | None) -> AnnData:
        return build_reference(
            sdatas,
            use_rep=use_rep,
            table_key=TABLE,
            unit=recipe.reference["unit"],
            genes=genes,
            obs=list(recipe.reference.get("obs", ())),
            sources={section.sample: section.source.details for section in sections},
            standardize=recipe.reference["standardize"],
            thumbnails=False,
            **names_of_genes(recipe),
        )

    if isinstance(recipe.genes, int):
        reference = build(sorted(variable_genes(build(None), recipe.genes)))
    else:
        # The hash knows the order of genes; a recipe means the set.
        reference = build(None if recipe.genes is None else sorted(recipe.genes))
    _take_along(reference, parts)
    return reference


def names_of_genes(recipe: Recipe) -> dict[str, Any]:
    """How `rg.tl.build_reference` is to name genes."""
    return {name: recipe.reference[name] for name in ("harmonize", "orthologues_to") if name in recipe.reference}


def _take_along(reference: AnnData, parts: Mapping[str, AnnData]) -> None:
    """Positions and thumbnails, which need the picture, from the parts."""
    import pandas as pd

    names = pd.Index([f"{sample}:{spot}" for sample, part in parts.items() for spot in part.obs_names])
    rows = names.get_indexer(reference.obs_names)
    for name in (_keys.X_UM, _keys.Y_UM):
        reference.obs[name] = np.concatenate([part.obs[name].to_numpy(float) for part in parts.values()])[rows]
    if all(_keys.THUMBNAIL in part.obsm for part in parts.values()):
        stacked: Any = np.concatenate([np.asarray(part.obsm[_keys.THUMBNAIL]) for part in parts.values()])
        reference.obsm[_keys.THUMBNAIL] = stacked[rows]
