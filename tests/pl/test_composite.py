"""`rg.pl.composite`: colours of spots against inks mixed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import ragst_sd as rg


def test_colors_are_inks_mixed_by_the_share_of_each_gene(predicted):
    table = predicted.tables["predicted"]
    genes = list(table.var_names[np.argsort(-np.asarray(table.X).var(axis=0))[:3]])
    ax = rg.pl.composite(predicted, genes=genes, return_ax=True)
    drawn = ax.collections[-1].get_facecolors()[:, :3]
    values = np.asarray(table[:, genes].X, dtype=float)
    expected = np.ones((len(values), 3))
    for j, text in enumerate(ax.texts[-3:]):
        low, high = np.percentile(values[:, j], [2, 98])
        share = np.clip((values[:, j] - low) / (high - low), 0, 1)
        expected -= share[:, None] * (1 - np.array(to_rgb(text.get_color())))
        assert text.get_text() == genes[j]
    np.testing.assert_allclose(drawn, np.clip(expected, 0, 1), atol=1e-6)


def test_untrusted_genes_say_so_and_spots_without_value_are_hollow(predicted):
    table = predicted.tables["predicted"]
    table.var["cv_pearson"] = [0.01] + [0.9] * (table.n_vars - 1)
    table.X[3] = np.nan
    ax = rg.pl.composite(predicted, genes=table.var_names[:2], return_ax=True)
    assert [text.get_text() for text in ax.texts[-2:]] == [
        f"{table.var_names[0]} (not to be trusted)",
        table.var_names[1],
    ]
    assert len(ax.collections[-1].get_offsets()) == table.n_obs - 1


def test_more_than_three_genes_are_refused(predicted):
    with pytest.raises(ValueError, match="names 4 genes; one map shows 3 at most"):
        rg.pl.composite(predicted, genes=predicted.tables["predicted"].var_names[:4])
