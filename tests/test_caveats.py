"""Templates and caveats of a card and a report: what they name is known, and what is filled in is text."""

from __future__ import annotations

import pytest
import yaml
from jinja2 import UndefinedError, meta

from ragst_sd import _caveats
from ragst_sd._bank import open_bank
from ragst_sd._page import environment, read_text
from ragst_sd._results import predicted as predicted_table
from ragst_sd.io._data_card import gather_facts
from ragst_sd.tl._report_facts import gather

LIMITS = {"few_donors", "min_cv_pearson", "most_unlike"}
TOPICS = yaml.safe_load(read_text("_caveats.yaml"))


def names_of(text):
    return meta.find_undeclared_variables(environment().parse(text)) - LIMITS


def test_cards_name_facts_that_there_are(reference):
    facts = set(gather_facts(reference)) | {"title"}
    assert names_of(read_text("io/_data_card.md.jinja")) <= facts
    for line in TOPICS["gaps"]:
        assert names_of(f"{{{{ {line['when']} }}}} {line['say']}") <= facts, line


def test_reports_name_facts_that_there_are(predicted, fitted):
    table = predicted.tables["predicted"]
    table.layers["lower"], table.layers["upper"] = table.X - 1, table.X + 1
    table.uns["retrieval"] |= {"interval_level": 0.9, "interval_unit": "donor"}
    facts = set(gather(predicted_table(table, "predicted"), open_bank(fitted), None))
    added = {"as_html", "pictures", "why_no_pictures", "not_assessed", "not_to_conclude"}
    assert names_of(read_text("tl/_report.md.jinja")) <= facts | added
    for line in (*TOPICS["not_assessed"], *TOPICS["not_to_conclude"]):
        assert names_of(f"{{{{ {line['when']} }}}} {line['say']}") <= facts, line


def test_what_is_filled_in_is_text_and_not_read_again(reference):
    facts = gather_facts(reference)
    facts["only"]["technology"], facts["unknown"]["technology"] = "`{{ 7 * 7 }}` *x*", 0
    said = _caveats.sentences("gaps", facts)
    assert r"One technology: \`{{ 7 \* 7 }}\` \*x\*. The reference has no spots of another size or chemistry." in said


def test_a_fact_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="n_donors"):
        _caveats.sentences("gaps", {})
