"""Errors or warnings about tissue that is in a reference under two donors' names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ragst_sd.reference.duplicates import find_duplicates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragst_sd.reference.duplicates import Duplicate, Fingerprint

logger = logging.getLogger(__name__)

ON_DUPLICATE = ("error", "warn")


def report_duplicates(prints: Sequence[Fingerprint], on_duplicate: str) -> None:
    """Warn of every pair of sections of one tissue and different donors, or raise a `ValueError` that names them all."""
    found = [_sentence(pair) for pair in find_duplicates(prints)]
    if not found:
        return
    todo = "Give both the same donor, or leave one out: else one predicts the other, and accuracy is no evidence."
    if on_duplicate == "error":
        msg = f"{' '.join(found)} {todo} If they are different tissue all the same, pass `on_duplicate='warn'`."
        raise ValueError(msg)
    for sentence in found:
        logger.warning("%s %s", sentence, todo)


def _sentence(pair: Duplicate) -> str:
    first, second = pair.first, pair.second
    names = f"Sections {first.sample!r} and {second.sample!r}"
    donors = f"different donors ({sorted(first.donors)}, {sorted(second.donors)})"
    if pair.by == "images":
        return f"{names} have identical images but {donors}: the same tissue is in twice, or one of the names is wrong."
    what = "expression" if pair.by == "expression" else "picture"
    return f"{names} are the same tissue, as the {what} of {pair.share:.0%} of the spots shows, but have {donors}."
