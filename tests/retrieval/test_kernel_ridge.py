"""`kernel_ridge`: the regression of `rag` with no share of retrieval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import ragst_sd as rg
from ragst_sd.retrieval import run as runner
from ragst_sd.retrieval.bank import Run
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.options import resolve_options
from ragst_sd.tl._fit import fit_tissue

from ..test_methods_common import several_donors


def answers(name, bank, asked, **options):
    bank = replace(bank, raw=bank.embedding)
    run = Run(resolve_options(METHODS, name, options), rng=0, n_neighbors=4, n_candidates=6)
    fitted = fit_tissue(bank, name, run, group_key=None)
    if name == "rag":
        fitted.fit.parameters["retrieval_share"] = np.zeros(9)
    eligibility = Eligibility.everything(len(asked), len(bank))
    selected = runner.select(fitted, asked, state=np.zeros((len(asked), 0)), eligibility=eligibility, n_neighbors=4)
    part = runner.part_of(fitted, np.arange(9), selected)
    return runner.predict(
        part, selected.selection, lambda function, items, shared: (function(shared, i) for i in items)
    )


def test_it_is_rag_without_retrieval():
    bank, asked = several_donors(), np.random.default_rng(1).normal(size=(10, 5))
    small = {"n_train_genes": 5}
    stack = answers("rag", bank, asked, max_steps=6, n_seeds=1, n_latent=4, **small)
    alone = answers("kernel_ridge", bank, asked, **small)
    np.testing.assert_allclose(alone["prediction"], stack["prediction"], atol=1e-5)
    assert alone["prediction"].std(axis=0).min() > 0.01


def test_lines_of_an_explanation_add_up(sections, reference):
    rg.tl.fit(reference, method="kernel_ridge")
    rg.tl.predict(sections["donor3"], reference)
    table = sections["donor3"].tables["predicted"][:3, ["EPCAM", "CD3E"]]
    lines = rg.get.explain(
        sections["donor3"], reference, obs_names=list(table.obs_names), genes=list(table.var_names), terms="all"
    )
    total = lines.pivot_table(index="query", columns="gene", values="contribution", aggfunc="sum", observed=True)
    np.testing.assert_allclose(total.loc[table.obs_names, table.var_names], table.X, atol=1e-5)
    assert table.obs["effective_n"].isna().all()
