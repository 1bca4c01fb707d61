"""`rg.datasets.build_recipe`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragst_sd import _keys
from ragst_sd._replacing import alone
from ragst_sd._settings import resolve_device
from ragst_sd._validate import require_choice
from ragst_sd.datasets._recipe import read_recipe
from ragst_sd.datasets._recipe_keys import key_of, part_facts, recipe_key
from ragst_sd.datasets._recipe_output import existing, put, recover
from ragst_sd.datasets._recipe_parts import Parts
from ragst_sd.datasets._recipe_reference import assembled, embedded_section
from ragst_sd.datasets._recipe_sections import planned_sections
from ragst_sd.io._data_card import card_folder, check_card_folder, data_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from anndata import AnnData

    from ragst_sd.datasets._recipe import Recipe
    from ragst_sd.datasets._recipe_sections import Planned
    from ragst_sd.image.encoders import Encoder

logger = logging.getLogger(__name__)


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
    """Build the reference that a recipe describes, the same every time.

    Every section is read, filtered and embedded on its own and kept beside the reference as a part, until all are there
    and the reference is put together from them. A build that was stopped, at whatever moment, goes on with the next call:
    sections that were finished are not embedded again, and what was half written is never taken for whole.

    Parameters
    ----------
    recipe
        Path of a YAML file, or a mapping of the same fields. Paths in it are relative to the file (to the working
        directory for a mapping), and may hold environment variables, `$NAME`.
    path
        Where the reference is written, for instance `reference.zarr`.
    overwrite
        Replace a reference at `path` that another recipe, or other files, have made. Anything that is not a reference is
        never replaced.
    keep_parts
        Keep the parts when the reference is written, so that a recipe with one more section embeds that section only.
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
    `<path without suffix>.card/`
        Its data card, see :func:`ragst_sd.io.data_card`.
    `<path>.parts/`
        The embedded sections; may be deleted at any time but during a build.

    Raises
    ------
    FileNotFoundError
        If the recipe, a folder or a file does not exist.
    ValueError
        If the recipe is not right; the message names file, line and field. If a section cannot be used.
    KeyError
        If there is no such data set, sample or column.
    FileExistsError
        If `path` holds something else, and `overwrite` is not set or it is not a reference.
    BlockingIOError
        If another process is building at the same place.

    Notes
    -----
    The content hash (`uns["ragst"]["content_hash"]`) does not depend on the order of sources, sections or genes in the recipe.
    It holds for one kind of device: encoders round differently on CPU and GPU, and across releases of torch. A part is named
    by a hash of all that decides what is in it: the hashes of its files, donor, filters, naming of genes, encoder and its weights,
    tiles, kind of device. Licence, citation, tissue, technology, panel and genes are no part of that: they change without
    embedding again.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> recipe = {
    ...     "version": 1,
    ...     "sources": [{"folder": "sections", "tissue": "breast", "license": "CC-BY-4.0"}],
    ...     "encoder": {"model": "texture"},
    ...     "tiles": {"tile_px": 64, "mpp": 1.0, "context": [1]},
    ... }
    >>> reference = rg.datasets.build_recipe(recipe, path="breast.zarr", progress=False)
    >>> sorted(reference.obs["sample"].unique())
    ['donor1', 'donor2']
    """
    plan = read_recipe(recipe)
    path = Path(path).expanduser().resolve()
    if plan.fit is not None and "method" in plan.fit:
        _check_method(plan)
    with alone(path, "built"):
        parts = Parts(path.with_name(f"{path.name}.parts"))
        recover(path, parts)
        check_card_folder(card_folder(path))
        sections = planned_sections(plan, progress=progress)
        encoder, use_rep = _encoder(plan, device)
        logger.info("Recipe %r: %d sections, encoder %s.", plan.name, len(sections), encoder.name)
        facts = {section.sample: part_facts(section, plan, encoder) for section in sections}
        keys = {sample: key_of(own) for sample, own in facts.items()}
        key = recipe_key(plan, sections, keys)
        reference = existing(path, key, overwrite=overwrite)
        if reference is not None:
            logger.info("It is built already.")
            _complete_card(reference, path, key)
        else:
            for i, section in enumerate(sections):
                label = f"Section {i + 1} of {len(sections)}: {section.sample}"
                own = keys[section.sample]
                if parts.whole(own):
                    logger.info("%s, embedded before.", label)
                    continue
                started = time.perf_counter()
                logger.info("%s ...", label)
                part = embedded_section(
                    section, plan, encoder, use_rep=use_rep, num_workers=num_workers, progress=progress
                )
                parts.write(own, part, facts[section.sample])
                logger.info("%s, %d spots in %.1f s.", label, part.n_obs, time.perf_counter() - started)
            loaded = {sample: parts.read(own) for sample, own in keys.items()}
            _warn_shared_donors(sections, loaded)
            reference = assembled(loaded, sections, plan, use_rep=use_rep)
            reference.uns[_keys.ATTRS]["recipe"] = {"name": plan.name, "text": plan.text, "key": key}
            _fit(reference, plan, device=device, progress=progress)
            put(reference, path)
            data_card(reference, path=card_folder(path))
        if not keep_parts:
            parts.remove()
    header = reference.uns[_keys.ATTRS]
    logger.info("%s: %d spots, %d genes, content hash %s.", path, *reference.shape, header["content_hash"])
    return reference


def _check_method(plan: Recipe) -> None:
    from ragst_sd.retrieval.methods import METHODS

    require_choice((plan.fit or {})["method"], METHODS, str(plan.place / "fit" / "method").replace("`", ""))


def _encoder(plan: Recipe, device: str | None) -> tuple[Encoder, str]:
    from ragst_sd.image.encoders import resolve_encoder
    from ragst_sd.pp._embedding_header import default_key

    given = plan.encoder
    try:
        encoder = resolve_encoder(
            given["model"],
            model_kwargs=given.get("model_kwargs"),
            mean=given.get("mean"),
            std=given.get("std"),
            device=resolve_device(device),
            amp=given.get("amp"),
        )
    except ValueError as error:
        msg = f"{plan.place / 'encoder'}: {error}"
        raise ValueError(msg) from error
    return encoder, default_key(encoder.name, given["model"])


def _warn_shared_donors(sections: Sequence[Planned], parts: Mapping[str, AnnData]) -> None:
    """Names of donors hold within a folder, and across the whole catalogue; between them nobody knows."""
    first: dict[str, Planned] = {}
    for section in sections:
        for donor in sorted(set(parts[section.sample].obs[_keys.DONOR].astype(str))):
            other = first.setdefault(donor, section)
            catalogued = other.source.dataset and section.source.dataset
            if other.source is not section.source and not catalogued:
                logger.warning(
                    "Donor %r is named by %s and by %s: they count as one. If they are two, rename one with `donors:`.",
                    donor, other.source.place, section.source.place,
                )  # fmt: skip


def _fit(reference: AnnData, plan: Recipe, *, device: str | None, progress: bool | None) -> None:
    if plan.fit is None:
        return
    from ragst_sd.tl import fit

    logger.info("Fitting %s.", plan.fit.get("method", "the default method"))
    fit(reference, **plan.fit, rng=plan.seed, device=device, progress=progress)


def _complete_card(reference: AnnData, path: Path, key: str) -> None:
    """Write the card unless it is that of this recipe; a build may have been killed before its card was written."""
    # The content hash would not do: licences and citations, which a card is read for, are no part of it.
    folder = card_folder(path)
    page = folder / "README.md"
    if not (page.is_file() and key in page.read_text(encoding="utf-8")):
        data_card(reference, path=folder)
