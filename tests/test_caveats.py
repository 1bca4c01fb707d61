"""Sentences of a card and a report: each can be said, and what it names is known."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources

import pytest
import yaml
from jinja2 import Environment, meta

from ragst_sd import _caveats
from ragst_sd.io import _data_card
from ragst_sd.tl._report_facts import Facts

GLOBALS = {"few_donors", "min_cv_pearson", "most_unlike"}


def lines(topic):
    text = resources.files("ragst_sd").joinpath("_caveats.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[topic]


def names_of(line):
    env = Environment()
    env.filters |= dict.fromkeys(["count", "listing", "number", "percent"], str)
    text = f"{{{{ {line['when']} }}}} {line['say']}"
    return meta.find_undeclared_variables(env.parse(text)) - GLOBALS


def test_every_line_names_facts_that_there_are(reference, monkeypatch):
    given = {}
    monkeypatch.setattr(_data_card, "sentences", lambda topic, facts: given.update(facts) or [])
    _data_card.gaps(_data_card.gather_facts(reference))
    of_report = {field.name for field in fields(Facts)}
    known = {"gaps": set(given), "not_assessed": of_report, "not_to_conclude": of_report}
    for topic, names in known.items():
        for line in lines(topic):
            assert set(line) == {"when", "say"}
            assert names_of(line) <= names, line


def test_what_is_filled_in_holds_no_code_and_is_not_read_again():
    facts = dict.fromkeys(set().union(*map(names_of, lines("gaps"))), 0)
    facts |= {
        "most": dict.fromkeys(["donor", "tissue", "technology"]),
        "only": {"tissue": "`{{ 7 * 7 }}`", "technology": ""},
    }
    facts |= {"unknown": {"tissue": 0, "technology": 0}, "has_counts": True, "n_donors": 9}
    said = _caveats.sentences("gaps", facts)
    assert said[0] == "One organ: '{{ 7 * 7 }}'. Sections of other organs have no counterpart here."
    assert len(said) == 2


def test_a_fact_that_is_missing_is_an_error():
    with pytest.raises(Exception, match="n_donors"):
        _caveats.sentences("gaps", {})
