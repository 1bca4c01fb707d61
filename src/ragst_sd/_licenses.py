"""What a licence asks of whoever uses a prediction, and which of several asks most."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ragst_sd import _keys

_UNKNOWN = {"", _keys.UNKNOWN, "none stated", "not stated", "none", "nan", "null"}
_PUBLIC = {"cc0", "unlicense", "pddl"}
# "as ragst_sd" is what `rg.pp.encoders` says of texture, which is part of this package.
_PERMISSIVE = {"mit", "bsd", "apache", "isc", "ragst"}
_SHARE_ALIKE = {"sa", "gpl", "agpl", "lgpl", "odbl", "mpl"}
_RESTRICTED_USE = ("non-commercial", "noncommercial", "research use", "research only", "academic")


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
    """Terms of a licence by its name or SPDX identifier, as the most restrictive word in it says."""
    text = str(license).strip().lower()
    if text in _UNKNOWN:
        return UNKNOWN
    words = set(re.split(r"[^a-z0-9]+", text))
    creative_commons = bool(words & {"cc", "creative"})
    if creative_commons and "nd" in words:
        return NO_DERIVATIVES
    if (creative_commons and "nc" in words) or any(phrase in text for phrase in _RESTRICTED_USE):
        return NON_COMMERCIAL
    if words & _SHARE_ALIKE or any(word.startswith(("gpl", "agpl", "lgpl")) for word in words):
        return SHARE_ALIKE
    if words & _PUBLIC or "public domain" in text:
        return PUBLIC_DOMAIN
    if words & _PERMISSIVE or {"cc", "by"} <= words or {"odc", "by"} <= words:
        return PERMISSIVE
    return UNRECOGNISED
