"""`rg.io.build_recipe`."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._page import count
from ragst_sd._replacing import locked
from ragst_sd._validate import require_choice
from ragst_sd._workers import worker_device
from ragst_sd.datasets._load import read_sample
from ragst_sd.image.encoder import Encoder
from ragst_sd.image.onnx_file import is_onnx_file
from ragst_sd.io._data_card import check_card_folder, data_card
from ragst_sd.io._read_reference import SUFFIX, read_reference
from ragst_sd.io._recipe import Place, Recipe, read_recipe
from ragst_sd.io._recipe_sections import PlannedSection, check_content, keep_spots, planned_sections
from ragst_sd.io._section import IMAGE, SHAPES, TABLE
from ragst_sd.io._write_reference import require_place, write_reference

logger = logging.getLogger(__name__)

# What `rg.tl.build_reference(sources=...)` takes.
_DETAILS = ("tissue", "technology", "license", "citation", "panel")


def build_recipe(
    recipe: str | PathLike[str] | Mapping[str, Any],
    *,
    path: str | PathLike[str],
    overwrite: bool = False,
    keep_parts: bool = True,
    device: str | None = None,
    num_workers: int = 0,
    progress: bool | None = None,
) -> AnnData:
    """Build the reference that a recipe describes. The result is the same every time.

    Sections are read, filtered and embedded one after the other. Embeddings are saved next to the reference while they
    are computed. If a build is interrupted, the next call resumes it and does not embed finished parts again.

    Parameters
    ----------
    recipe
        A name of :func:`ragst_sd.datasets.references`, the path of a YAML file, or a mapping of the same fields. Paths
        in a recipe are relative to the file (to the working directory for a mapping), and may hold environment
        variables, `$NAME`.
    path
        Where the reference is written, for instance `reference.zarr.zip`.
    overwrite
        Replace a reference at `path` that another recipe, or other files, have made. Anything that is not a reference
        is never replaced.
    keep_parts
        Keep the embeddings when the reference is written, so that a recipe with one more section embeds that section
        only.
    device
        Torch device of the encoder; the setting if left out.
    num_workers
        Threads that read a picture ahead of the encoder.
    progress
        Show progress bars; the setting if left out.

    Returns
    -------
    The reference, see :func:`ragst_sd.tl.build_reference`, fitted if the recipe says so. Beside what is named there,
    `uns["ragst"]["recipe"]` holds `name`, `text` (the recipe) and `key` (a hash of recipe and files).
    On disk:

    `<path>`
        The reference.
    `<path without .zarr.zip>.card/`
        Its data card, see :func:`ragst_sd.io.data_card`.
    `<path>.parts/`
        Embeddings of the sections, see `cache` of :func:`ragst_sd.pp.embed_tiles`; may be deleted when no build is
        running.

    Raises
    ------
    FileNotFoundError
        If the recipe, a folder or a file does not exist.
    ValueError
        If the recipe is not right (the message names file, line and field), a section cannot be used, or `path` does
        not end in `.zarr.zip`.
    KeyError
        If there is no such data set, sample or column.
    FileExistsError
        If `path` holds a reference of another recipe and `overwrite` is not set, or something that is not a reference.
    BlockingIOError
        If another process is building at the same place.

    Notes
    -----
    The content hash (`uns["ragst"]["content_hash"]`) does not depend on the order of sources, sections or genes in the
    recipe. It holds for one kind of device: encoders round differently on CPU and GPU, and across releases of torch.
    An embedding is made again if the files of its section, the spots that are kept, the encoder with its weights, the
    tiles or the kind of device change, and for no other reason.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> recipe = {
    ...     "version": 1,
    ...     "sources": [{"folder": "sections", "tissue": "breast", "license": "CC-BY-4.0"}],
    ...     "encoder": {"model": "texture"},
    ...     "tiles": {"tile_px": 64, "mpp": 1.0, "context": [1]},
    ... }
    >>> reference = rg.io.build_recipe(recipe, path="breast.zarr.zip", progress=False)
    >>> sorted(reference.obs["sample"].unique())
    ['donor1', 'donor2']
    """
    plan, text, place = read_recipe(recipe)
    path = Path(path).expanduser().resolve()
    require_place(path, overwrite=True)
    card, cache = path.with_name(path.name.removesuffix(SUFFIX) + ".card"), path.with_name(f"{path.name}.parts")
    if plan.fit is not None and plan.fit.method is not None:
        from ragst_sd.retrieval.methods import METHODS

        require_choice(plan.fit.method, METHODS, str(place / "fit" / "method").replace("`", ""))
    with locked(path, "built"):
        check_card_folder(card)
        sections = planned_sections(plan, place, progress=progress)
        encoder, use_rep = _encoder(plan, place, device)
        logger.info("Recipe %r: %s, encoder %s.", plan.name, count(len(sections), "section"), encoder.name)
        key = _key(plan, sections, encoder)
        reference = _existing(path, key, overwrite=overwrite)
        if reference is None:
            embedding = {"model": encoder, "key_added": use_rep, "num_workers": num_workers, "progress": progress}
            reference = _built(plan, sections, cache, embedding)
            _warn_shared_donors(sections, reference)
            reference.uns[_keys.ATTRS]["recipe"] = {"name": plan.name, "text": text, "key": key}
            if plan.fit is not None:
                from ragst_sd.tl import fit

                logger.info("Fitting %s.", plan.fit.method or "the default method")
                chosen = {name: value for name, value in vars(plan.fit).items() if value is not None}
                fit(reference, **chosen, rng=plan.seed, device=device, progress=progress)
            write_reference(reference, path, overwrite=overwrite)
        else:
            logger.info("It is built already.")
        data_card(reference, path=card)
        if not keep_parts:
            shutil.rmtree(cache, ignore_errors=True)
    header = reference.uns[_keys.ATTRS]
    logger.info("%s: %d spots, %d genes, content hash %s.", path, *reference.shape, header["content_hash"])
    return reference


def _encoder(plan: Recipe, place: Place, device: str | None) -> tuple[Encoder, str]:
    """The encoder, and the key of its embeddings in `.obsm`."""
    from ragst_sd.image.resolve_encoder import resolve_encoder
    from ragst_sd.pp._embedding_header import default_key

    given = {name: value for name, value in vars(plan.encoder).items() if name != "batch_size"}
    with (place / "encoder").named_in_errors():
        encoder = resolve_encoder(**given, device=worker_device() if device is None else device)
    return encoder, default_key(encoder.name, plan.encoder.model)


def _key(plan: Recipe, sections: Sequence[PlannedSection], encoder: Encoder) -> str:
    """Hash of all that decides what the reference holds; no path is a part of it, nor the order of sources."""
    described = [repr((_keys.REFERENCE_VERSION, encoder.weights_hash, encoder.device.type))]
    # The path of an ONNX file is none of it.
    model = encoder.name if is_onnx_file(plan.encoder.model) else plan.encoder.model
    named = replace(plan.encoder, model=str(model), model_kwargs={})
    described.append(repr(replace(plan, name="", published=None, sources=[], encoder=named)))
    for section in sections:
        source = replace(section.source, folder=None, path=None, samples=None, prefix="", donor=None, donors={})
        sample = section.sample
        facts = (sample.donor, dict(sample.details), sample.image_mpp, sample.um_between_centers, sample.bin_um)
        described.append(repr((section.name, source, facts, section.digest())))
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:24]


def _existing(path: Path, key: str, *, overwrite: bool) -> AnnData | None:
    """The reference at `path` if it is the one that is asked for; `None` where one is to be built."""
    if not path.exists():
        return None
    try:
        reference = read_reference(path)
    except ValueError:
        # It is damaged, or this installation cannot read it.
        if overwrite:
            return None
        raise
    header = reference.uns[_keys.ATTRS]
    made_by = header.get("recipe", {})
    if made_by.get("key") == key:
        return reference
    if not overwrite:
        raise FileExistsError(
            f"{path} is a reference that another recipe, or other files, have made (recipe {made_by.get('name')!r}, "
            f"encoder {header['encoder']['encoder']!r}). Choose another path, or have it replaced (`overwrite=True`, "
            "`--overwrite`)."
        )
    return None


def _built(plan: Recipe, sections: Sequence[PlannedSection], cache: Path, embedding: Mapping[str, Any]) -> AnnData:
    """One reference of all sections, which are opened one after the other."""
    from ragst_sd._demo import variable_genes
    from ragst_sd._reference import reference_hash
    from ragst_sd.tl import build_reference

    readers, sources = {}, {}
    for i, section in enumerate(sections):
        label = f"Section {i + 1} of {len(sections)}: {section.name}"
        # The cache compares the coarsest pixels of a picture, and not the kind of device.
        folder = cache / f"{embedding['model'].device.type}-{section.digest()}"
        readers[section.name] = partial(_embedded, section, plan, label, {**embedding, "cache": folder})
        stated = {name: getattr(section.source, name) for name in _DETAILS}
        sources[section.name] = {name: value for name, value in stated.items() if value is not None}
    reference = build_reference(
        readers,
        use_rep=str(embedding["key_added"]),
        table_key=TABLE,
        genes=plan.genes if isinstance(plan.genes, list) else None,
        sources=sources,
        **vars(plan.reference),
    )
    if isinstance(plan.genes, int):
        reference = reference[:, sorted(variable_genes(reference, plan.genes))].copy()
        reference.uns[_keys.ATTRS]["content_hash"] = reference_hash(reference)
    return reference


def _embedded(section: PlannedSection, plan: Recipe, label: str, embedding: Mapping[str, Any]) -> SpatialData:
    """Read, filter and embed a section; `embedding` are arguments of `rg.pp.embed_tiles` that are the same for all."""
    from ragst_sd.pp import embed_tiles

    started, layer = time.perf_counter(), plan.reference.layer
    logger.info("%s ...", label)
    with section.named_in_errors():
        sdata = read_sample(section.sample)
        check_content(sdata, section.sample.donor, layer)
        keep_spots(sdata, section.source.filters, layer=layer)
        tiles = {"image_mpp": section.source.image_mpp, "batch_size": plan.encoder.batch_size, **vars(plan.tiles)}
        embed_tiles(sdata, image_key=IMAGE, shapes_key=SHAPES, table_key=TABLE, **tiles, **embedding)
    logger.info("%s, %d spots in %.1f s.", label, sdata.tables[TABLE].n_obs, time.perf_counter() - started)
    return sdata


def _warn_shared_donors(sections: Sequence[PlannedSection], reference: AnnData) -> None:
    """Warn where sources share a donor's name: in a folder and in the catalogue a name is one person, elsewhere not."""
    named_by = {section.name: "the catalogue" if section.source.dataset else str(section.place) for section in sections}
    samples = reference.obs.groupby(_keys.DONOR, observed=True)[_keys.SAMPLE].unique()
    for donor, names in samples.items():
        places = dict.fromkeys(named_by[name] for name in names)
        if len(places) > 1:
            logger.warning(
                "Donor %r is named by %s: they count as one. If they are two, rename one with `donors:`.",
                donor,
                " and by ".join(places),
            )
