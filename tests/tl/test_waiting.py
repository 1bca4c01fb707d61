"""What is said about how long a call takes."""

from __future__ import annotations

import logging

import pytest

import ragst_sd as rg
from ragst_sd.tl import _fit, _waiting
from ragst_sd.tl._waiting import expected_seconds, in_parts, in_words, say_if_long


@pytest.fixture
def three(sections):
    return rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (40.3, "40 s"), (90, "2 min"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_lengths_of_time_in_words(seconds, words):
    assert in_words(seconds) == words


def test_only_what_takes_over_a_minute_is_announced(caplog):
    say_if_long(59, "This", "That is quicker.")
    assert not caplog.records
    say_if_long(200, "This", "That is quicker.")
    assert caplog.messages == ["This will take about 3 min. That is quicker."]


def test_what_is_trained_takes_longer_and_more_rows_do():
    assert expected_seconds(["rag"], 8000) > expected_seconds(["knn"], 8000) > expected_seconds(["knn"], 800)
    assert expected_seconds(["rag", "knn"], 8000) == expected_seconds(["rag"], 8000) + expected_seconds(["knn"], 8000)


def test_the_time_left_follows_from_the_parts_done(caplog, monkeypatch):
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(_waiting.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "ragst_sd"), in_parts(3, show=False) as begin:
        for number in (1, 2, 3):
            begin(f"donor held out {number} of 3")
    assert caplog.messages == [
        "donor held out 1 of 3.",
        "donor held out 2 of 3, about 40 s left.",
        "donor held out 3 of 3, about 20 s left.",
    ]


def test_a_bar_says_what_is_held_out(three, capsys, caplog):
    with caplog.at_level(logging.INFO, "ragst_sd"):
        rg.tl.cross_validate(three, methods=["knn"], n_genes=10, n_neighbors=5, progress=True, inplace=False)
    said = capsys.readouterr().err
    assert "donor held out 1 of 3 (donor1), knn" in said
    assert "3/3" in said
    assert any("donor held out 3 of 3 (donor3), knn, about " in message for message in caplog.messages)


def test_long_calls_say_so_before_they_start(three, caplog, monkeypatch):
    monkeypatch.setattr(_waiting, "_PER_ROW_OF_OTHERS", 1.0)
    rg.tl.fit(three, method="knn", n_neighbors=10, progress=False)
    rg.tl.calibrate(three, levels=[0.5], progress=False)
    rg.tl.cross_validate(three, methods=["mean"], n_genes=10, progress=False, inplace=False)
    said = [message for message in caplog.messages if "will take about" in message]
    assert [message.split(" will")[0] for message in said] == [
        f"Fitting 'knn' on {three.n_obs:,} rows",
        "Fitting 'knn' again 3 times",
        "Fitting 'mean' 3 times each",
    ]
    assert all("knn" in message or "n_folds" in message for message in said)


def test_what_the_methods_of_a_fold_share_is_computed_once(three, monkeypatch):
    calls = []

    def counted(name):
        function = getattr(_fit, name)
        monkeypatch.setattr(_fit, name, lambda *given: calls.append(name) or function(*given))

    counted("fit_pca")
    counted("calibrate_raw")
    rg.tl.cross_validate(three, methods=["mean", "knn", "ridge"], n_genes=10, progress=False, inplace=False)
    assert sorted(calls) == ["calibrate_raw"] * 3 + ["fit_pca"] * 3
