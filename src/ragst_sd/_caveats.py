"""What is said of a reference or of a prediction, and when: the lines of `_caveats.yaml`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ragst_sd._page import count, number, percent, plain
from ragst_sd._results import MIN_CV_PEARSON, MOST_UNLIKE
from ragst_sd._validate import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jinja2 import Template

# With fewer, accuracy on a new donor is hardly known.
FEW_DONORS = 5


def sentences(topic: str, facts: Mapping[str, Any]) -> list[str]:
    """The sentences of a topic whose conditions hold for the facts."""
    return [sentence.render(facts) for holds, sentence in _lines(topic) if holds(facts)]


@cache
def _lines(topic: str) -> list[tuple[Callable[[Mapping[str, Any]], Any], Template]]:
    import yaml
    from jinja2 import Environment, StrictUndefined

    # What is filled in may be written by users, so it holds no code.
    env = Environment(undefined=StrictUndefined, finalize=plain)
    env.filters |= {"count": count, "listing": listing, "number": number, "percent": percent}
    env.globals |= {"few_donors": FEW_DONORS, "min_cv_pearson": MIN_CV_PEARSON, "most_unlike": MOST_UNLIKE}
    lines = yaml.safe_load(resources.files("ragst_sd").joinpath("_caveats.yaml").read_text(encoding="utf-8"))
    return [
        (env.compile_expression(str(line["when"]), undefined_to_none=False), env.from_string(line["say"]))
        for line in lines[topic]
    ]
