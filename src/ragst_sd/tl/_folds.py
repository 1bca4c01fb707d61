"""Groups held out whole, the reference that is left for training, and scores averaged by group."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from ragst_sd import _keys
from ragst_sd._labels import is_missing, labels
from ragst_sd._spot_layout import spot_pitch
from ragst_sd._validate import listing, require_choice, require_key, require_positive
from ragst_sd.reference.schema import knows_tiles
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.training import variable_genes

logger = logging.getLogger(__name__)

RAW_UNIT = "log1p(counts)"
SPLITS = ("donor", "block")
BLOCKS = "blocks of {}"
# Margin around held-out blocks for embeddings of unknown origin, in distances between neighbouring spots.
_MARGIN_PITCHES = 3
_KINDS = {_keys.SAMPLE: "section", "spatial blocks": "block", "blocks of consecutive rows": "block"}


@dataclass(frozen=True)
class Fold:
    """One round of cross-validation."""

    name: str
    """The group that is held out."""
    training: np.ndarray
    """Rows of the reference that may be learned from and cited."""
    held: np.ndarray
    """Rows that are predicted."""
    kind: str = "group"
    """What the group is, in the user's words."""
    n_donors: int = 0
    """Donors among the rows that may be learned from, where they were reduced to that number."""


def group_codes(obs: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) index of each row's group, in the order of their names.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a row has none.
    """
    require_key(column, obs, "reference.obs")
    names = labels(obs[column])
    n_missing = int(is_missing(names).sum())
    if n_missing:
        raise ValueError(
            f"`reference.obs[{column!r}]` is empty in {n_missing} rows. Fill it in, or leave these rows out."
        )
    return np.unique(names, return_inverse=True)[1]


def inner_folds(bank: Bank, group_key: str | None, say: Callable[..., None] = logger.warning) -> tuple[np.ndarray, str]:
    """Groups to hold out, and what they are; what stands in for donors is said."""
    if group_key is not None:
        folds = group_codes(bank.obs, group_key)
        if folds.max() < 1:
            only = bank.obs[group_key].iloc[0]
            raise ValueError(f"`group_key` {group_key!r} has one group only ({only!r}); holding it out leaves nothing.")
        return folds, group_key
    for column in (_keys.DONOR, _keys.SAMPLE):
        folds = group_codes(bank.obs, column)
        if folds.max() >= 1:
            if column != _keys.DONOR:
                say("The reference has one donor only: sections are held out to choose and calibrate.")
            return folds, column
    say(
        "The reference has one section only: four spatial blocks are held out to choose and calibrate. "
        "Accuracy on other donors cannot be told from it."
    )
    x, y = (bank.obs[name].to_numpy(float) for name in (_keys.X_UM, _keys.Y_UM))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        # Without positions, consecutive rows are the closest thing to neighbours on the tissue.
        return np.arange(len(bank)) * 4 // len(bank), "blocks of consecutive rows"
    return _quarters(x, y), "spatial blocks"


def fitting_folds(
    bank: Bank, group_key: str | None, say: Callable[..., None] = logger.warning
) -> tuple[np.ndarray, str, np.ndarray | None]:
    """Groups to hold out while a method is fitted, what they are, and (m, groups) rows that are left out with each.

    Sections of one donor are often slices of one piece of tissue. Held out one by one, they would reward a method that
    finds the same place in the next slice; so one quarter of all of them is held out at a time, with its margin.
    """
    one_donor = group_key is None and group_codes(bank.obs, _keys.DONOR).max() < 1
    try:
        blocks = block_folds(bank, None, say=logger.debug) if one_donor else []
    except ValueError:
        blocks = []
    if len(blocks) < 2:
        return *inner_folds(bank, group_key, say), None
    say(
        "The reference has one donor only: a quarter of its sections is held out at a time, with a margin, to choose. "
        "Accuracy on other donors cannot be told from it."
    )
    codes, beside = np.full(len(bank), -1), np.ones((len(bank), len(blocks)), dtype=bool)
    for i, block in enumerate(blocks):
        codes[block.held], beside[np.append(block.training, block.held), i] = i, False
    return codes, "spatial blocks", beside


def outer_folds(bank: Bank, group_key: str | None, n_folds: int | None = None) -> list[Fold]:
    """Every group in turn against all others: donors, or what the reference offers in their place.

    With more groups than `n_folds`, several are held out at once, so that the folds have about as many rows each.

    Raises
    ------
    KeyError
        If `group_key` is no column.
    ValueError
        If there is one group only, a row has no group, or nothing is left to train on.
    """
    codes, what = inner_folds(bank, group_key)
    if len(np.unique(codes)) < 2:
        raise ValueError(f"The reference has {len(bank)} rows in one group ({what}): nothing is left to train on.")
    samples, pictures = bank.obs[_keys.SAMPLE].astype(str).to_numpy(), _pictures(bank)
    donors = bank.obs[_keys.DONOR].astype(str).to_numpy()
    folds, shared = [], set()
    for i, together in enumerate(_shared_out(codes, n_folds)):
        held = np.isin(codes, together)
        name = f"block {i + 1}"
        if what in bank.obs:
            name = ", ".join(dict.fromkeys(labels(bank.obs[what])[held]))
        twins = np.isin(pictures, pictures[held]) & ~np.isin(samples, samples[held])
        training = ~held & ~np.isin(codes, codes[twins])
        if not training.any():
            raise ValueError(
                f"Holding out {what} {name!r} leaves no rows to train on; groups with the very images of its sections "
                "are left out with it."
            )
        if twins.any():
            same = listing(np.unique(samples[twins]))
            logger.warning("%s %r: %s has the same image and is left out with it.", what, name, same)
        folds.append(Fold(name, np.flatnonzero(training), np.flatnonzero(held), _KINDS.get(what, what)))
        shared |= set(donors[held]) & set(donors[training])
    if group_key is not None and shared:
        logger.warning(
            "Groups of %r share donors (%s): the accuracy is that for other sections of known donors.",
            group_key,
            listing(sorted(shared)),
        )
    return folds


def folds_of(
    bank: Bank, split: str, group_key: str | None, margin_um: float | None, n_folds: int | None = None
) -> list[Fold]:
    """The folds of a split: groups as a whole, or blocks within every section."""
    require_choice(split, SPLITS, "split")
    if split == "donor":
        if margin_um is not None:
            raise ValueError("`margin_um` is the margin around blocks. Pass `split='block'`, or leave it out.")
        return outer_folds(bank, group_key, n_folds)
    if group_key is not None:
        raise ValueError(
            f"`group_key` is {group_key!r}, but `split='block'` holds out parts of sections. Leave one of them out."
        )
    return block_folds(bank, margin_um)


def block_folds(bank: Bank, margin_um: float | None, *, say: Callable[..., None] = logger.warning) -> list[Fold]:
    """One quarter of every section in turn against all other rows but those within the margin of it.

    Two spots share pixels if their centres are nearer than the width of a field of view, along x and along y: so
    distances are the larger one of both. Sections of one picture are cut together. A section of which nothing would be
    left beside a block and its margin is not held out.

    Raises
    ------
    ValueError
        If positions are unknown, the margin is not positive, or no section is large enough.
    """
    if margin_um is not None:
        require_positive(margin_um, "margin_um")
    xy = bank.obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float)
    samples, pictures = bank.obs[_keys.SAMPLE].astype(str).to_numpy(), _pictures(bank)
    nowhere = np.unique(samples[~np.isfinite(xy).all(axis=1)])
    if len(nowhere):
        raise ValueError(
            f"Blocks need positions in microns, and those of {listing(nowhere)} are unknown. Say how large a pixel is "
            "with `rg.pp.set_image_mpp`, embed, and build the reference again; or hold out donors (`split='donor'`)."
        )
    held, near, small = np.full(len(bank), -1), np.zeros((4, len(bank)), dtype=bool), []
    for picture in np.unique(pictures):
        rows = np.flatnonzero(pictures == picture)
        quarter, (width, height) = _quarters(*xy[rows].T), np.ptp(xy[rows], axis=0)
        size = f"{listing(np.unique(samples[rows]))} of {width:,.0f} x {height:,.0f} µm"
        if len(np.unique(quarter)) < 2:
            small.append(size)
            continue
        margin = _margin(bank, samples[rows[0]], xy[rows], say) if margin_um is None else float(margin_um)
        beside = np.stack([_near(xy[rows], quarter == block, margin) for block in range(4)])
        if all(((quarter != block) & ~beside[block]).any() for block in range(4)):
            held[rows], near[:, rows] = quarter, beside
        else:
            small.append(f"{size} with a margin of {margin:,.0f} µm")
    if (held < 0).all():
        raise ValueError(
            f"Nothing is left to learn from beside a quarter of a section and its margin: {'; '.join(small)}. Give a "
            "smaller `margin_um` (tiles then overlap with those held out), embed with a narrower `context`, or hold "
            "out donors (`split='donor'`)."
        )
    if small:
        say("Too small to hold out blocks with their margin: %s. They are learned from.", "; ".join(small))
    return [
        Fold(
            f"block {block + 1}", np.flatnonzero((held != block) & ~near[block]), np.flatnonzero(held == block), "block"
        )
        for block in np.unique(held[held >= 0])
    ]


def _pictures(bank: Bank) -> np.ndarray:
    """(m,) the picture of each row's section: its hash, else the name of the section."""
    known = dict(zip(bank.header.sections.sample, bank.header.sections.image_hash, strict=True))
    return np.array([known.get(name) or name for name in bank.obs[_keys.SAMPLE].astype(str)])


def _quarters(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) quarter in which each spot lies: cut at the median, along x and along y."""
    return 2 * (x > np.median(x)) + (y > np.median(y))


def _margin(bank: Bank, sample: str, xy: np.ndarray, say: Callable[..., None]) -> float:
    """Width of the widest field of view in microns; three distances between spots where it is not known."""
    encoder, sections = bank.header.encoder, bank.header.sections
    mpp = float(encoder["mpp"])
    mpp = float(sections.image_mpp[list(sections.sample).index(sample)]) if np.isnan(mpp) else mpp
    if knows_tiles(encoder) and np.isfinite(mpp):
        return float(np.max(encoder["tile_px"]) * mpp * np.max(encoder["context"]))
    margin = _MARGIN_PITCHES * spot_pitch(xy)
    say(
        "%s: the fields of view of the embedding are not known. The margin around blocks is %d distances between "
        "spots, %.0f µm; give that of your features with `margin_um=`.",
        sample,
        _MARGIN_PITCHES,
        margin,
    )
    return margin


def _near(xy: np.ndarray, block: np.ndarray, margin: float) -> np.ndarray:
    """(n,) spots outside a block whose square fields of view reach into those of its spots."""
    if not block.any():
        return np.zeros(len(xy), dtype=bool)
    return ~block & (KDTree(xy[block]).query(xy, p=np.inf)[0] < margin)


def fewer_donors(bank: Bank, fold: Fold, numbers: int | Sequence[int] | None, rng: int) -> list[Fold]:
    """The fold itself, or with as many donors to learn from as asked, drawn so that more donors include those of fewer.

    Numbers that the fold has not are left out.

    Raises
    ------
    ValueError
        If it has none of the numbers.
    """
    if numbers is None:
        return [fold]
    asked: list[int] = np.atleast_1d(np.asarray(numbers)).tolist()
    for number in asked:
        require_positive(number, "n_donors", whole=True)
    donors = labels(bank.obs[_keys.DONOR])[fold.training]
    order = np.random.default_rng(rng).permutation(np.unique(donors))
    possible = sorted({int(number) for number in asked if number <= len(order)})
    if not possible:
        raise ValueError(
            f"`n_donors` is {asked}, but without {fold.name!r} {len(order)} donors are left. Ask for fewer."
        )
    return [
        replace(fold, training=fold.training[np.isin(donors, order[:number])], n_donors=number) for number in possible
    ]


def _shared_out(codes: np.ndarray, n_folds: int | None) -> list[list[int]]:
    """Groups to hold out together: each on its own, or the largest first into the fold with the fewest rows."""
    groups, sizes = np.unique(codes), np.bincount(codes)
    if n_folds is None or len(groups) <= n_folds:
        return [[group] for group in groups]
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for group in groups[np.argsort(-sizes[groups], kind="stable")]:
        min(folds, key=lambda fold: sizes[fold].sum()).append(group)
    return folds


def training_part(bank: Bank, rows: np.ndarray, values: Any) -> Bank:
    """An unfitted bank of some rows, with `values` for expression, that knows of nothing else.

    Genes that none of the rows measured are absent from it. Size factors stay as they were.
    """
    part = replace(bank, values=values, key=None, fit=None, digests=None).at_rows(rows)
    panels, codes = np.unique(part.panels, return_inverse=True)
    sections, donors = (np.unique(part_codes, return_inverse=True)[1] for part_codes in (part.sections, part.donors))
    measured = part.measured[panels]
    part = replace(part, panels=codes, sections=sections, donors=donors, measured=measured)
    return part.at_genes(np.flatnonzero(measured.any(axis=0)))


def inner_group_keys(bank: Bank, folds: Sequence[Fold], group_key: str | None) -> list[str | None]:
    """What the fit of each fold holds out: the outer groups if two are left, else donors, else what it finds itself."""
    columns = dict.fromkeys((group_key or _keys.DONOR, _keys.DONOR))
    groups = {column: labels(bank.obs[column]) for column in columns}
    keys = [next((column for column in columns if len(set(groups[column][fold.training])) > 1), None) for fold in folds]
    of_one_donor = dict.fromkeys(fold.name for fold, key in zip(folds, keys, strict=True) if key is None)
    if of_one_donor and len(set(groups[_keys.DONOR])) > 1:
        logger.warning(
            "Without %s one donor is left: parts of its sections are held out to choose.", listing(of_one_donor)
        )
    return keys


def most_variable(part: Bank, n_genes: int) -> list[str]:
    """The genes that vary most over a reference, among those that every panel measured; fewer where there are fewer."""
    everywhere = np.flatnonzero(part.measured.all(axis=0))
    if not len(everywhere):
        raise ValueError(
            "No gene was measured by every panel that is trained on. Name the genes to score with `genes=`."
        )
    if len(everywhere) < n_genes:
        logger.info("%d genes were measured by every panel, fewer than `n_genes` (%d).", len(everywhere), n_genes)
    return list(part.genes[variable_genes(part.values, np.arange(len(part)), everywhere, n_genes)])
