"""The adjustment of every method, recomputed in plain numpy from the stored parameters and the rows named by `explain`."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd._reference import fit_hash
from ragst_sd.retrieval.methods import METHODS

gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))))


def standardised(table, use_rep="X_colour"):
    """Embeddings without the mean and the spread of their section, as its header gives them."""
    header = table.uns["ragst"]["embeddings"][use_rep]
    return (np.asarray(table.obsm[use_rep], dtype=float) - header["section_mean"]) / header["section_std"]


def phi_rag(parameters, key):
    """Members side by side, each `A x + B gelu(C x + b)` over its scale."""
    parts = []
    member = 0
    while f"model_members-{member}-scale" in parameters:
        own = {
            name.removeprefix(f"model_members-{member}-"): np.asarray(value, dtype=float)
            for name, value in parameters.items()
            if name.startswith(f"model_members-{member}-")
        }
        x = key / float(parameters["input_scale"])
        out = x @ own["projection-linear-weight"].T
        if "projection-inner-weight" in own:
            hidden = gelu(x @ own["projection-inner-weight"].T + own["projection-inner-bias"])
            out = out + hidden @ own["projection-outer-weight"].T
        parts.append(out / float(own["scale"]))
        member += 1
    return np.concatenate(parts, axis=1)


def t_of_offset(parameters, key, cited):
    """T(phi(x) - sum_j w_j phi(x_j)), phi of the cited rows taken from their own embeddings."""
    phi = phi_rag(parameters, key)
    offset = np.stack([
        phi[i] - sum(w * phi_rag(parameters, own[None])[0] for w, own, _, _ in rows) for i, rows in enumerate(cited)
    ])  # fmt: skip
    return offset @ parameters["adjustment_in"] @ parameters["adjustment_out"]


def ridge_less_its_value_at_neighbours(parameters, key, cited):
    """f(x) - sum_j w_j f without the fold of j, at x_j; weights shared by the rows that measured the gene."""
    out = key @ parameters["coefficients"] + parameters["intercept"]
    for i, rows in enumerate(cited):
        for gene in range(out.shape[1]):
            voting = [(w, own, fold) for w, own, fold, measured in rows if measured[gene]]
            total = sum(w for w, _, _ in voting)
            for w, own, fold in voting:
                coefficients = parameters["fold_coefficients"][fold][:, gene]
                out[i, gene] -= w / total * (own @ coefficients + parameters["fold_intercept"][fold][gene])
    return out


def network(parameters, key, cited):
    x = key / float(parameters["scale"]) @ parameters["first"] + parameters["first_bias"]
    hidden = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return hidden @ parameters["coefficients"] + parameters["intercept"]


def linear(parameters, key, cited):
    return key @ parameters["coefficients"] + parameters["intercept"]


def nothing(parameters, key, cited):
    return np.zeros((len(key), len(parameters["reference_mean"])))


BY_HAND = {
    "rag": t_of_offset,
    "random_rag": t_of_offset,
    "ridge_residual": ridge_less_its_value_at_neighbours,
    "ridge": linear,
    "mlp": network,
    "knn": nothing,
    "knn_supervised": nothing,
    "bleep": nothing,
    "mean": nothing,
}


def test_every_method_is_recomputed():
    assert set(BY_HAND) == set(METHODS)


def force_t(reference):
    """A T that is not zero, as if held-out donors had asked for it."""
    header = reference.uns["ragst"]
    fit = header["fit"]
    width, n_genes = np.shape(fit["parameters"]["adjustment_in"])[0], reference.n_vars
    random = np.random.default_rng(5)
    fit["parameters"]["adjustment_in"] = random.normal(size=(width, 3))
    fit["parameters"]["adjustment_out"] = random.normal(size=(3, n_genes))
    fit["fit_hash"] = fit_hash(reference, header, fit)


def cited_rows(sections, reference, table, parameters):
    """For each spot what `neighbors` names: weight, principal components from the source section, fold, measured genes."""
    names = rg.get.neighbors(table)
    embeddings = {name: standardised(sdata.tables["table"]) for name, sdata in sections.items()}
    panels = list(reference.uns["ragst"]["panels"])
    out = []
    for spot in table.obs_names:
        rows = []
        for line in names[names["query"] == spot].itertuples():
            source = sections[line.sample].tables["table"]
            own = embeddings[line.sample][source.obs_names.get_loc(line.reference.split(":", 1)[1])]
            key = (own - parameters["projection_mean"]) @ parameters["projection"]
            at = reference.obs_names.get_loc(line.reference)
            fold = int(parameters["folds"][at]) if "folds" in parameters else -1
            measured = reference.varm["measured"][:, panels.index(str(reference.obs["panel"].iloc[at]))]
            rows.append((float(line.weight), key, fold, measured))
        out.append(rows)
    return out


def check(sections, query, reference, method):
    rg.tl.predict(query, reference)
    table = query.tables["predicted"][:6].copy()
    parameters = reference.uns["ragst"]["fit"]["parameters"]
    key = (standardised(query.tables["table"])[:6] - parameters["projection_mean"]) @ parameters["projection"]
    expected = BY_HAND[method](parameters, key, cited_rows(sections, reference, table, parameters))
    order = reference.var_names.get_indexer(table.var_names)
    finite = np.isfinite(table.X)
    assert finite.mean() > 0.9
    np.testing.assert_allclose((table.X - table.layers["evidence"])[finite], expected[:, order][finite], atol=1e-5)

    frame = rg.get.explain(table, reference, obs_name=list(table.obs_names), gene=list(table.var_names[:4]))
    lines = frame[frame["reference"] == "adjustment"].set_index(["query", "gene"])["contribution"]
    for i, spot in enumerate(table.obs_names):
        for j, gene in enumerate(table.var_names[:4]):
            if finite[i, j]:
                assert lines[spot, gene] == pytest.approx(expected[i, order[j]], abs=1e-5)
    return expected


@pytest.mark.parametrize("method", BY_HAND)
def test_adjustment_is_that_of_the_stored_parameters(sections, query, reference, method, quick):
    rg.tl.fit(reference, method=method, n_neighbors=8, options=quick(method), progress=False)
    if BY_HAND[method] is t_of_offset:
        force_t(reference)
    expected = check(sections, query, reference, method)
    assert (np.abs(expected).max() > 0.05) == (BY_HAND[method] is not nothing)


def test_phi_with_a_hidden_layer(sections, query, reference, quick):
    options = {**quick("rag"), "hidden": 5}
    rg.tl.fit(reference, method="rag", n_neighbors=8, options=options, progress=False)
    force_t(reference)
    check(sections, query, reference, "rag")


def test_genes_that_a_panel_lacks(sections, query):
    """Rows that did not measure a gene give ridge no residual to hand on either."""
    genes = sections["donor1"].tables["table"].var_names
    sections["donor2"].tables["table"] = sections["donor2"].tables["table"][:, genes != genes[3]].copy()
    reference = rg.tl.build_reference({name: sections[name] for name in ("donor1", "donor2")}, use_rep="X_colour")
    rg.tl.fit(reference, method="ridge_residual", n_neighbors=8, progress=False)
    check(sections, query, reference, "ridge_residual")
