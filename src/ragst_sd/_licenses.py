"""What a licence asks of whoever uses a prediction, and which of several asks most."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from ragst_sd._page import read_text

_WORDS = yaml.safe_load(read_text("_licenses.yaml"))
_PUBLIC, _PERMISSIVE, _ATTRIBUTION, _SHARE_ALIKE, _FILLER = (
    frozenset(_WORDS[kind]) for kind in ("public", "permissive", "attribution", "share_alike", "filler")
)


@dataclass(frozen=True, order=True)
class Terms:
    """Terms in the order of how much they ask."""

    rank: int
    meaning: str


PUBLIC_DOMAIN = Terms(0, "free for every use")
PERMISSIVE = Terms(1, "free for every use that names the source")
SHARE_ALIKE = Terms(2, "free for every use that names the source; what is derived from it stays under the same terms")
NON_COMMERCIAL = Terms(3, "no commercial use")
NO_DERIVATIVES = Terms(4, "what is derived from it may not be passed on")
UNRECOGNISED = Terms(5, "a licence that is not known to this page: read its terms before anything is passed on")
UNKNOWN = Terms(6, "terms are not known: ask the source before anything is used or passed on")


def terms_of(license: str) -> Terms:
    """Terms of a licence by its name or SPDX identifier, as the most restrictive word in it says.

    A licence is only called free if every word of it is understood: what is added to a free licence usually limits it.
    """
    text = " ".join(re.split(r"[\W_]+", str(license).lower())).strip()
    if text in _WORDS["unknown"]:
        return UNKNOWN
    if any(phrase in text for phrase in _WORDS["no_derivatives"]) or {"by", "nd"} <= set(text.split()):
        return NO_DERIVATIVES
    if any(phrase in text for phrase in _WORDS["restricted_use"]) or "nc" in text.split():
        return NON_COMMERCIAL
    for name, word in _WORDS["names"].items():
        text = text.replace(name, word)
    words = {word for word in text.split() if not re.fullmatch(r"v?\d+", word)}
    versioned = {word for word in words if re.fullmatch(r"[al]?gplv?\d*", word)}
    share_alike = words & _SHARE_ALIKE | versioned
    public, permissive = words & _PUBLIC, words & _PERMISSIVE
    if words & {"cc", "odc"}:
        permissive |= words & _ATTRIBUTION
    if words - share_alike - public - permissive - _FILLER:
        return UNRECOGNISED
    if share_alike:
        return SHARE_ALIKE
    if permissive:
        return PERMISSIVE
    return PUBLIC_DOMAIN if public else UNRECOGNISED


def ranked(licenses: Iterable[object]) -> list[tuple[Terms, str, int]]:
    """Terms, name and number of each licence, the most restrictive first."""
    counted = Counter(map(str, licenses))
    return sorted(((terms_of(name), name, n) for name, n in counted.items()), key=lambda line: (-line[0].rank, line[1]))
