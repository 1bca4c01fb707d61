"""What is said of a reference or of a prediction, and when: the lines of `_caveats.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import yaml
from jinja2 import Template

from ragst_sd._page import Markdown, environment, read_text
from ragst_sd._results import MIN_CV_PEARSON
from ragst_sd.retrieval.grounding import MOST_UNLIKE

# With fewer, accuracy on a new donor is hardly known.
FEW_DONORS = 5
_LIMITS = {"few_donors": FEW_DONORS, "min_cv_pearson": MIN_CV_PEARSON, "most_unlike": MOST_UNLIKE}


def sentences(topic: str, facts: Mapping[str, Any]) -> list[Markdown]:
    """The sentences of a topic whose conditions hold for the facts."""
    known = {**_LIMITS, **facts}
    return [Markdown(sentence.render(known)) for holds, sentence in _lines(topic) if holds(known)]


@cache
def _lines(topic: str) -> list[tuple[Callable[[Mapping[str, Any]], Any], Template]]:
    env, lines = environment(), yaml.safe_load(read_text("_caveats.yaml"))[topic]
    return [
        (env.compile_expression(str(line["when"]), undefined_to_none=False), env.from_string(line["say"]))
        for line in lines
    ]
