"""Correlation as a loss, against the metric that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ragst_sd.retrieval.loop import section_correlation
from ragst_sd.retrieval.training import within_section_pearson


def test_section_correlation_is_within_section_pearson(rng):
    sections = np.repeat([4, 0, 9, 2], [12, 7, 2, 9])
    target = rng.normal(size=(30, 5)) + sections[:, None]
    target[:12, 1] = 3
    target[19:, 2] = 0
    predicted = target + rng.normal(size=(30, 5))
    predicted[12:19, 3] = 1.5
    got = section_correlation(*(torch.as_tensor(a) for a in (predicted, target, sections)))
    assert float(got) == pytest.approx(within_section_pearson(predicted, target, sections), abs=1e-6)
    single = section_correlation(torch.tensor(predicted).float(), torch.tensor(target).float(), torch.tensor(sections))
    assert float(single) == pytest.approx(float(got), abs=1e-4)


def test_section_correlation_has_a_gradient_where_nothing_varies(rng):
    predicted = torch.zeros((6, 2), requires_grad=True)
    value = section_correlation(predicted, torch.as_tensor(rng.normal(size=(6, 2))).float(), torch.zeros(6).long())
    value.backward()
    assert float(value.detach()) == 0
    assert torch.isfinite(predicted.grad).all()


def test_section_correlation_of_too_few_rows_is_zero():
    assert float(section_correlation(torch.ones(2, 3), torch.rand(2, 3), torch.zeros(2).long())) == 0
