"""The adjustment of every method, recomputed in plain numpy from the stored parameters and the rows named by `explain`."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

import ragst_sd as rg
from ragst_sd.reference.hashing import fit_hash
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
        phi[i] - sum(w * phi_rag(parameters, own[None])[0] for w, own in rows) for i, rows in enumerate(cited)
    ])  # fmt: skip
    return offset @ parameters["adjustment_in"] @ parameters["adjustment_out"]


def regression(parameters, key, cited):
    """What retrieval leaves of kernel ridge on principal components."""
    z, landmarks = key, np.asarray(parameters["regression_landmarks"])
    if len(landmarks):
        squared = ((key[:, None] - landmarks[None]) ** 2).sum(axis=2)
        z = 1 / (1 + squared / float(parameters["regression_width"])) @ parameters["regression_mixing"]
    h = z @ parameters["regression_coefficients"] + parameters["regression_intercept"]
    return (1 - np.asarray(parameters.get("retrieval_share", 0))) * h


def network(parameters, key, cited):
    x = key / float(parameters["scale"]) @ parameters["first"] + parameters["first_bias"]
    hidden = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return hidden @ parameters["coefficients"] + parameters["intercept"]


def linear(parameters, key, cited):
    return key @ parameters["coefficients"] + parameters["intercept"]


def nothing(parameters, key, cited):
    return np.zeros((len(key), len(parameters["reference_mean"])))


BY_HAND = {
    "rag": regression,
    "kernel_ridge": regression,
    "ridge": linear,
    "mlp": network,
    "random_rag": nothing,
    "knn": nothing,
    "knn_supervised": nothing,
    "mean": nothing,
}


def test_every_method_is_recomputed():
    assert set(BY_HAND) == set(METHODS)


def change_fit(reference, **parameters):
    """The fit with other parameters, as if held-out donors had asked for them."""
    header = reference.uns["ragst"]
    header["fit"]["parameters"] |= parameters
    header["fit"]["fit_hash"] = fit_hash(
        header, header["fit"], *(reference.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )


def force_t(reference):
    """A fit as earlier releases made it, with a T."""
    width, random = reference.obsm["retrieval_key"].shape[1], np.random.default_rng(5)
    change_fit(
        reference,
        adjustment_in=random.normal(size=(width, 3)),
        adjustment_out=random.normal(size=(3, reference.n_vars)),
    )


def cited_rows(sections, table, parameters):
    """For each spot what `neighbors` names: weight, and principal components from the source section."""
    names = rg.get.neighbors(table)
    embeddings = {name: standardised(sdata.tables["table"]) for name, sdata in sections.items()}
    out = []
    for spot in table.obs_names:
        rows = []
        for line in names[names["query"] == spot].itertuples():
            source = sections[line.sample].tables["table"]
            own = embeddings[line.sample][source.obs_names.get_loc(line.reference.split(":", 1)[1])]
            key = (own - parameters["projection_mean"]) @ parameters["projection"]
            rows.append((float(line.weight), key))
        out.append(rows)
    return out


def check(sections, query, reference, by_hand):
    rg.tl.predict(query, reference)
    table = query.tables["predicted"][:6].copy()
    parameters = reference.uns["ragst"]["fit"]["parameters"]
    key = (standardised(query.tables["table"])[:6] - parameters["projection_mean"]) @ parameters["projection"]
    expected = by_hand(parameters, key, cited_rows(sections, table, parameters))
    order = reference.var_names.get_indexer(table.var_names)
    finite = np.isfinite(table.X)
    assert finite.mean() > 0.9
    np.testing.assert_allclose((table.X - table.layers["evidence"])[finite], expected[:, order][finite], atol=1e-5)

    frame = rg.get.explain(table, reference, obs_names=list(table.obs_names), genes=list(table.var_names[:4]))
    added = frame[frame["reference"].isin(["adjustment", "regression"])]
    lines = added.groupby(["query", "gene"])["contribution"].sum()
    for i, spot in enumerate(table.obs_names):
        for j, gene in enumerate(table.var_names[:4]):
            if finite[i, j]:
                assert lines[spot, gene] == pytest.approx(expected[i, order[j]], abs=1e-5)
    return expected


@pytest.mark.parametrize("method", BY_HAND)
def test_adjustment_is_that_of_the_stored_parameters(sections, query, reference, method, quick):
    rg.tl.fit(reference, method=method, n_neighbors=8, options=quick(method), progress=False)
    if method == "rag":
        change_fit(reference, retrieval_share=np.full(reference.n_vars, 0.4))
    expected = check(sections, query, reference, BY_HAND[method])
    assert (np.abs(expected).max() > 0.05) == (BY_HAND[method] is not nothing)


@pytest.mark.parametrize("hidden", [0, 5])
def test_fit_of_an_earlier_release(sections, query, reference, quick, hidden):
    options = {**quick("random_rag"), "hidden": hidden}
    rg.tl.fit(reference, method="random_rag", n_neighbors=8, options=options, progress=False)
    force_t(reference)
    check(sections, query, reference, t_of_offset)
