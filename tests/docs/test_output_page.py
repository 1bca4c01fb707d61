"""The tables of docs/output.md are the list of fields, as `ragst_sd._fields.page_table` prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragst_sd import _fields

PAGE = Path(__file__).parents[2] / "docs" / "output.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="no documentation beside the tests")


@pytest.mark.parametrize("name", ["TISSUE", "RESPONSES", "TISSUE_RESPONSES"])
def test_page_has_the_fields(name):
    table = _fields.page_table(getattr(_fields, name))
    again = f"Put what `page_table({name})` of `ragst_sd._fields` returns into docs/output.md."
    assert f"\n\n{table}\n\n" in PAGE.read_text(encoding="utf-8"), again
