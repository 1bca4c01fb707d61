"""What a repository with a shared reference holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ragst_sd._licenses import terms_of

if TYPE_CHECKING:
    from collections.abc import Sequence

STORE = "reference.zarr"
CARD = "README.md"
# As the hub calls them; anything else is "other", and the page itself tells.
_HUB_LICENSES = {
    *("mit", "apache-2.0", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "odbl", "pddl", "gpl-3.0", "lgpl-3.0"),
    *("cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
}


def card_with_metadata(card: str, licenses: Sequence[str], repository: str) -> str:
    """A data card with the block of fields that the hub reads: the most restrictive licences, a title, tags."""
    most = max(terms_of(one).rank for one in licenses)
    license = ", ".join(sorted({one for one in licenses if terms_of(one).rank == most}))
    known = license.strip().lower().replace(" ", "-")
    fields = {
        "license": known if known in _HUB_LICENSES else "other",
        "pretty_name": next((line[2:] for line in card.splitlines() if line.startswith("# ")), repository),
        "tags": ["ragst-sd", "spatial-transcriptomics", "histology", "gene-expression"],
    }
    if fields["license"] == "other":
        fields["license_name"] = license
    # JSON is YAML, and quotes whatever a name may hold.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---", "", card])
