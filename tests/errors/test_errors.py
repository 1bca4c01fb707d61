"""Every case of the catalogue: the error, its message, nothing changed; and the page that quotes twenty of them."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from .catalogue import CASES, TOPICS

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
QUOTED = dict(re.findall(r"\(error-(\S+)\)=\n.*?```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def of_table(table):
    x = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    parts = [
        np.ascontiguousarray(x).tobytes(),
        table.obs.to_csv().encode(),
        table.var.to_csv().encode(),
        repr(table.uns).encode(),
    ]
    return (
        parts
        + [np.asarray(table.obsm[key]).tobytes() for key in sorted(table.obsm)]
        + [repr(sorted(table.obsm)).encode()]
    )


def fingerprint(world):
    """All that a call could have changed, files included."""
    digest = hashlib.sha256()
    for sdata in (world.query, world.bare, *world.sections.values()):
        digest.update(repr((sorted(name for _, name, _ in sdata.gen_elements()), sdata.attrs)).encode())
        for table in sdata.tables.values():
            for part in of_table(table):
                digest.update(part)
    for table in (world.reference, world.unfitted, world.screen, world.bank, world.perturbed):
        for part in of_table(table):
            digest.update(part)
    digest.update(world.scores.to_csv().encode() + world.embedding.to_csv().encode())
    files = [file for file in sorted(world.folder.rglob("*")) if not file.name.endswith(".lock")]
    digest.update(repr([(str(file), file.read_bytes() if file.is_file() else b"") for file in files]).encode())
    return digest.hexdigest()


def message_of(case, world):
    with pytest.raises(case.error) as caught:
        case.run(world)
    error = caught.value
    return str(error.args[0] if isinstance(error, KeyError) else error)


@pytest.fixture(scope="module")
def before(world):
    return fingerprint(world)


@pytest.mark.parametrize("key", CASES)
def test_error(world, before, key):
    case = CASES[key]
    message = message_of(case, world)
    for part in case.parts:
        assert part in message, message
    assert fingerprint(world) == before


@pytest.mark.parametrize("key", QUOTED)
def test_the_page_quotes_the_message_as_it_is(world, key):
    message = " ".join(message_of(CASES[key], world).split())
    # Three dots on the page stand for names of one's own and long lists.
    pattern = re.escape(" ".join(QUOTED[key].split())).replace(r"\.\.\.", ".*")
    assert re.fullmatch(pattern, message), message


def test_the_page_has_twenty_errors_and_the_catalogue_many():
    assert len(QUOTED) == PAGE.read_text(encoding="utf-8").count("```text") == 20
    assert len(CASES) == sum(map(len, TOPICS.values())) >= 80


def test_every_public_function_has_a_case():
    public = {
        f"{module}.{name}"
        for module in ("pp", "tl", "pl", "get", "io", "datasets")
        for name in importlib.import_module(f"ragst_sd.{module}").__all__
    }
    named = {case.function for case in CASES.values()}
    # These two need a server; their cases stand in tests/datasets/test_load_census.py and tests/io/test_share_reference.py.
    assert public - named <= {"datasets.load_census", "io.download_reference"}, public - named
    assert named <= public
