"""`rg.pl.perturbation`: scatter, bars, heat map and map against the table."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

import ragst_sd as rg
from ragst_sd.pl import _style

from ..screens import QUICK, given_responses, planted_screen, planted_tissue
from ..sections import copied

LOGS = {"unit": "log1p_cp10k"}


@pytest.fixture(scope="module")
def made():
    screen, embedding = planted_screen()
    reference = rg.tl.build_perturbation_reference(
        screen, embedding=embedding, context_key="cell_type", batch_key="batch", **LOGS
    )
    rg.tl.fit(reference, method="knn", n_neighbors=3)
    controls = screen[np.flatnonzero(screen.obs["perturbation"] == "control")[::20]].copy()
    table = rg.tl.perturb(controls, reference, perturbations=["P3", "P8", "control"], context_key="cell_type", **LOGS)
    tissue = planted_tissue(screen)
    rg.tl.perturb_tissue(tissue, reference, perturbations="P3", **LOGS)
    rg.tl.perturb_tissue(tissue, reference, perturbations="P3", context_key="half", key_added="by_half", **LOGS)
    return reference, table, tissue


@pytest.fixture
def bank(made):
    return made[0]


@pytest.fixture
def table(made):
    return made[1]


@pytest.fixture
def tissue(made):
    return copied(made[2])


def words(axes, gid):
    cells = [one for one in axes["retrieved"].texts if one.get_gid() == gid]
    return [one.get_text() for one in sorted(cells, key=lambda one: one.xy[1])]


def drawn(ax, label):
    return next(one for one in ax.collections if one.get_label() == label)


def note(ax):
    return next(one.get_text() for one in ax.texts if one.get_gid() == "note")


def test_predicted_against_measured(bank, table):
    axes = rg.pl.perturbation(table, bank, perturbation="P3", context="b", return_ax=True)
    points = drawn(axes["response"], "genes").get_offsets()
    own = table[(table.obs["perturbation"] == "P3") & (table.obs["context"] == "b")]
    np.testing.assert_allclose(points[:, 0], bank["b:P3"].layers["response_half2"].ravel(), rtol=1e-5)
    cited = table.uns["retrieval"]["cited"]["reference"].to_numpy()[own.obsm["retrieval_rows"][0]]
    again = own.obsm["retrieval_weights"][0] @ bank[cited].layers["response_half1"]
    np.testing.assert_allclose(points[:, 1], again, atol=1e-5)
    assert np.abs(again - own.layers["response"][0]).max() > 1e-3
    assert axes["response"].get_xlabel() == "measured (one half of the controls)"
    r = np.corrcoef(points.T)[0, 1]
    assert axes["response"].get_title(loc="left") == f"P3 in b, r = {r:.2f}"
    row = bank["b:P3"].obs.iloc[0]
    assert note(axes["response"]) == f"{row['n_cells']} cells measured, reliability {row['reliability']:.2f}"
    bars = next(one for one in axes["response"].containers if hasattr(one, "has_xerr"))
    segments = np.array(bars[2][0].get_segments())
    error = bank["b:P3"].layers["standard_error"].ravel()
    np.testing.assert_allclose((segments[:, 1, 0] - segments[:, 0, 0]) / 2, error, rtol=1e-3, atol=1e-6)
    named = [one.get_text() for one in axes["response"].texts if one.get_gid() == "gene"]
    strongest = table.var_names[np.argsort(-np.abs(points).max(axis=1))[:10]]
    assert named[0] == strongest[0] and set(named) <= set(strongest)


def of_other_controls(reference):
    """Say that it was measured against controls that nobody else has seen."""
    header = reference.uns["ragst"]
    header["control_cells"] = np.array(["other0", "other1"])
    values = np.random.default_rng(1).gamma(2.0, size=header["control_prints"]["values"].shape)
    header["control_prints"] = {**header["control_prints"], "values": values}


def test_another_truth(bank, table):
    """Measured elsewhere: drawn as it is, also without the reference."""
    other = bank[["a:P3", "b:P8"]].copy()
    other.X = other.X * 2
    with pytest.raises(
        ValueError, match="`truth` was measured against 240 of the controls that the prediction rests on"
    ):
        rg.pl.perturbation(table, truth=other, perturbation="P3", context="a")
    of_other_controls(other)
    axes = rg.pl.perturbation(table, truth=other, perturbation="P3", context="a", return_ax=True)
    points = drawn(axes["response"], "genes").get_offsets()
    np.testing.assert_allclose(points[:, 0], 2 * np.asarray(bank["a:P3"].X).ravel(), rtol=1e-5)
    assert words(axes, "r measured") == []
    both = rg.pl.perturbation(table, bank, truth=other, perturbation="P3", context="a", return_ax=True)
    assert len(words(both, "r measured")) == 3
    with pytest.raises(ValueError, match="`truth` did not measure 'P3' in context 'b'; it measured 'P3', 'P8'"):
        rg.pl.perturbation(table, truth=other, perturbation="P3", context="b")
    with pytest.raises(ValueError, match="did not measure 20 of the 60 genes predicted"):
        rg.pl.perturbation(table, truth=other[:, :40].copy(), perturbation="P3", context="a")


@pytest.mark.parametrize("constant", ["predicted", "measured"])
def test_the_correlation_of_a_response_that_does_not_vary_is_that_of_evaluate(constant):
    adata, embedding = given_responses()
    columns = {"unit": "log_fold_change", "context_key": "context"}
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **columns)
    rg.tl.fit(reference, method="none" if constant == "predicted" else "knn")
    predicted = rg.tl.perturb(adata.obs, reference, perturbations="P2", context_key="context")
    truth = reference.copy()
    if constant == "measured":
        for measured, name in ((adata, "b|P2"), (truth, "b:P2")):
            measured.X[measured.obs_names.get_loc(name)] = 0.25
    scores = rg.tl.evaluate_perturbation(predicted, adata, metrics=["pearson_delta"], **columns)
    own = scores[(scores["context"] == "b") & (scores["perturbation"] == "P2")]
    axes = rg.pl.perturbation(predicted, reference, truth=truth, context="b", return_ax=True)
    assert set(own["value"].dropna()) == {0} and axes["response"].get_title(loc="left") == "P2 in b, r = 0.00"
    assert set(words(axes, "r measured")) == (set() if constant == "predicted" else {"0.00"})


def test_given_responses_are_the_truth_of_a_prediction_that_left_them_out():
    adata, embedding = given_responses()
    columns = {"unit": "log_fold_change", "context_key": "context"}
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **columns)
    rg.tl.fit(reference, method="knn")
    predicted = rg.tl.perturb(adata.obs, reference, perturbations="P2", context_key="context")
    axes = rg.pl.perturbation(predicted, reference=reference, context="b", show=False, return_ax=True)
    points = drawn(axes["response"], "genes").get_offsets()
    np.testing.assert_allclose(points[:, 0], adata["b|P2"].X[0], atol=1e-5)
    np.testing.assert_allclose(points[:, 1], predicted["b:P2"].X[0], atol=1e-5)
    assert axes["response"].get_xlabel() == "measured"
    plt.close("all")


def test_retrieved_perturbations_beside_it(bank, table):
    axes = rg.pl.perturbation(table, bank, perturbation="P3", context="a", return_ax=True)
    lines = rg.get.neighbors(table, obs_names=table.obs_names[0])
    assert table.obs["context"].iloc[0] == "a"
    assert words(axes, "perturbation") == [f"{one} in a" for one in lines["perturbation"]]
    np.testing.assert_allclose([one.get_width() for one in axes["retrieved"].patches], lines["weight"], rtol=1e-5)
    assert words(axes, "weight") == [f"{one:.0%}".replace("%", " %") for one in lines["weight"]]
    assert words(axes, "reliability") == [f"{one:.2f}" for one in lines["reliability"]]
    halves = [bank.to_df(layer=f"response_half{i}").to_numpy() for i in (1, 2)]
    at = bank.obs_names.get_loc("a:P3")
    expected = [
        np.mean([np.corrcoef(a[bank.obs_names.get_loc(one)], b[at])[0, 1] for a, b in (halves, halves[::-1])])
        for one in lines["reference"]
    ]
    assert words(axes, "r measured") == [f"{one:.2f}" for one in expected]


def test_weights_by_state(bank, table):
    axes = rg.pl.perturbation(table, bank, perturbation="P3", context="a", return_ax=True)
    picture = np.asarray(axes["weights"].images[0].get_array())
    assert [one.get_text() for one in axes["weights"].get_xticklabels()] == ["a", "b"]
    rows = [one.get_text() for one in axes["weights"].texts if one.get_gid() == "by context"]
    assert picture.shape == (len(rows), 2) and picture.sum(axis=0) == pytest.approx([1, 1], abs=1e-5)
    cited = table.uns["retrieval"]["cited"]
    for column, context in enumerate("ab"):
        cell = np.flatnonzero((table.obs["perturbation"] == "P3") & (table.obs["context"] == context))[0]
        for row, weight in zip(table.obsm["retrieval_rows"][cell], table.obsm["retrieval_weights"][cell], strict=True):
            name = f"{cited['perturbation'].iloc[row]} in {cited['context'].iloc[row]}"
            assert picture[rows.index(name), column] == pytest.approx(weight, abs=1e-5)
    one = table[table.obs["context"] == "a"].copy()
    assert set(rg.pl.perturbation(one, bank, perturbation="P3", return_ax=True)) == {"response", "retrieved"}
    assert set(rg.pl.perturbation(one, perturbation="P3", return_ax=True)) == {"retrieved"}


@pytest.mark.slow
def test_nothing_agrees_where_there_is_nothing():
    """Labels without effect: what is drawn as a prediction shares no noise with what is drawn as the truth."""
    generator = np.random.default_rng(0)
    screen, embedding = planted_screen(effect=0, n_controls=60, contexts=("a",))
    screen.obs_names = [f"{i}" for i in generator.permutation(screen.n_obs)]
    drawn_r, shared, columns = [], [], []
    for seed in range(3):
        reference = rg.tl.build_perturbation_reference(screen, embedding=embedding, rng=seed, **LOGS)
        rg.tl.fit(reference, method="knn", n_neighbors=6)
        controls = screen[screen.obs["perturbation"] == "control"][:2].copy()
        names = list(embedding.index[::2])
        table = rg.tl.perturb(controls, reference, perturbations=names, **LOGS)
        for name in names:
            axes = rg.pl.perturbation(table, reference, perturbation=name, return_ax=True)
            drawn_r.append(float(axes["response"].get_title(loc="left").split("r = ")[1].replace("−", "-")))
            columns += [float(one.replace("−", "-")) for one in words(axes, "r measured")]
            own = table[table.obs["perturbation"] == name].layers["response"][0]
            shared.append(np.corrcoef(own, np.asarray(reference[f"all:{name}"].X).ravel())[0, 1])
            plt.close("all")
    assert np.mean(shared) > 0.3
    assert abs(np.mean(drawn_r)) < 0.15 and abs(np.mean(columns)) < 0.15


def test_what_a_network_was_trained_on_is_no_truth(made):
    screen, _ = planted_screen()
    reference = made[0].copy()
    rg.tl.fit(reference, method="pt_rag", options=QUICK["pt_rag"])
    table = rg.tl.perturb(screen[:3].copy(), reference, perturbations="P3", context_key="cell_type", **LOGS)
    axes = rg.pl.perturbation(table, reference, return_ax=True)
    assert "response" not in axes and words(axes, "r measured") == []
    other = reference[["a:P3"]].copy()
    of_other_controls(other)
    axes = rg.pl.perturbation(table, truth=other, return_ax=True)
    assert axes["response"].get_xlabel() == "measured, which pt_rag learned from"


def test_more_rows_than_shown(bank, table):
    axes = rg.pl.perturbation(table, bank, perturbation="P3", context="a", n_shown=1, return_ax=True)
    assert len(words(axes, "perturbation")) == 1
    weights = rg.get.neighbors(table, obs_names=table.obs_names[0])["weight"]
    assert words(axes, "more") == [f"2 more, {weights[1:].sum():.0%}".replace("%", " %")]


def test_constant_map_says_so(tissue, bank):
    axes = rg.pl.perturbation(tissue, bank, return_ax=True)
    table = tissue.tables["perturbed"]
    spots = drawn(axes["map"], "map")
    np.testing.assert_allclose(spots.get_array(), table.obs["response_magnitude"])
    spots.update_scalarmappable()
    assert {to_hex(one).upper() for one in spots.get_facecolor()} == {_style.OTHERS}
    assert f"constant ({table.obs['response_magnitude'].iloc[0]:.3f}): the same response" in note(axes["map"]).replace(
        "\n", " "
    )
    assert not [one for one in plt.gcf().findobj(plt.Axes) if one.get_label() == "colorbar"]
    scope = axes["map"].figure.get_supxlabel().replace("\n", " ")
    assert "Direct response" in scope and "no measurement in tissue" in scope
    assert "response" not in axes and "weights" not in axes


def test_constant_among_shuffled_spots(tissue):
    header = tissue.tables["perturbed"].uns["retrieval"]
    header["variance_shuffled"] = np.ones(5)
    axes = rg.pl.perturbation(tissue, return_ax=True)
    assert "no more variation over the tissue than among shuffled spots" in note(axes["map"]).replace("\n", " ")


def test_map_that_varies(tissue, bank):
    axes = rg.pl.perturbation(tissue, bank, prediction_key="by_half", context="a", return_ax=True)
    table = tissue.tables["by_half"]
    spots = drawn(axes["map"], "map")
    np.testing.assert_allclose(spots.get_array(), table.obs["response_magnitude"])
    assert spots.get_cmap().name == _style.SEQUENTIAL
    assert "varies more than among shuffled spots (p = 0.02)" in note(axes["map"]).replace("\n", " ")
    assert set(axes) == {"map", "response", "retrieved", "weights"}
    low, high = spots.get_offsets().min(axis=0), spots.get_offsets().max(axis=0)
    (left, right), (bottom, top) = axes["map"].get_xlim(), axes["map"].get_ylim()
    assert left < low[0] - 40 and right > high[0] + 40 and top < low[1] - 40 and bottom > high[1] + 40


def test_far_spots_are_ringed(tissue):
    table = tissue.tables["perturbed"]
    table.obs["far_from_screen"] = np.arange(table.n_obs) < 36
    table.uns["retrieval"]["far_from_screen"] = 0.25
    axes = rg.pl.perturbation(tissue, return_ax=True)
    rings, spots = drawn(axes["map"], "far from the screen"), drawn(axes["map"], "map")
    np.testing.assert_allclose(rings.get_offsets(), spots.get_offsets()[:36])
    assert "ringed: far from the screen's cells (25 % of spots)" in note(axes["map"]).replace("\n", " ")
    table.obs["far_from_screen"] = False
    table.uns["retrieval"]["far_from_screen"] = 0.0
    axes = rg.pl.perturbation(tissue, return_ax=True)
    assert not [one for one in axes["map"].collections if one.get_label() == "far from the screen"]


def test_weights_of_spots(tissue):
    """Weights that differ from spot to spot: columns are spots, ordered."""
    table = tissue.tables["perturbed"]
    share = np.random.default_rng(0).uniform(0.2, 0.8, table.n_obs)
    table.obsm["retrieval_weights"][:] = np.column_stack([share, 1 - share, np.zeros(table.n_obs)])
    axes = rg.pl.perturbation(tissue, return_ax=True)
    picture = np.asarray(axes["weights"].images[0].get_array())
    assert picture.shape == (2, table.n_obs)
    assert (np.diff(picture[0]) >= -1e-6).all() or (np.diff(picture[0]) <= 1e-6).all()
    np.testing.assert_allclose(np.sort(picture[0]), np.sort(share if share.mean() > 0.5 else 1 - share), atol=1e-5)


def test_control_and_methods_that_cite_nobody(table, made):
    axes = rg.pl.perturbation(table, perturbation="control", return_ax=True)
    assert words(axes, "no rows") == ["no response: this is the control"]
    reference = made[0].copy()
    rg.tl.fit(reference, method="ridge")
    screen, _ = planted_screen()
    other = rg.tl.perturb(screen[:3].copy(), reference, perturbations="P3", context_key="cell_type", **LOGS)
    axes = rg.pl.perturbation(other, reference, return_ax=True)
    assert words(axes, "no rows") == ["'ridge' cites no measured response"]
    assert "response" in axes


def test_on_the_picture_of_a_section(predicted):
    import anndata as ad

    genes = list(predicted.tables["table"].var_names)
    cells = ad.AnnData(np.random.default_rng(0).poisson(1.5, size=(120, len(genes))).astype("float32"))
    cells.var_names = genes
    cells.obs["perturbation"] = np.repeat(["control", "A", "B", "C"], 30)
    embedding = {"A": [1, 0.2], "B": [0.9, 0.4], "C": [0.2, 1]}
    reference = rg.tl.build_perturbation_reference(cells, embedding=embedding, target_sum=None)
    rg.tl.fit(reference, method="knn", n_neighbors=2)
    for key in ("table", "predicted"):
        rg.tl.perturb_tissue(predicted, reference, perturbations="A", table_key=key)
        axes = rg.pl.perturbation(predicted, return_ax=True)
        assert len(axes["map"].images) == 1
        np.testing.assert_allclose(
            drawn(axes["map"], "map").get_offsets(), predicted.tables["table"].obsm["spatial"], atol=1e-3
        )
    with pytest.raises(ValueError, match="holds a prediction of tissue"):
        rg.pl.perturbation(predicted, prediction_key="predicted")


def test_errors(bank, table, tissue, made):
    with pytest.raises(ValueError, match="`perturbation` is needed: the table holds 'P3', 'P8', 'control'"):
        rg.pl.perturbation(table)
    with pytest.raises(KeyError, match=r"no 'P33'.*Did you mean 'P3'"):
        rg.pl.perturbation(table, perturbation="P33")
    with pytest.raises(KeyError, match="`context`: the table has no 'c'"):
        rg.pl.perturbation(table, perturbation="P3", context="c")
    with pytest.raises(KeyError, match=r"celltype.* not found"):
        rg.pl.perturbation(table, perturbation="P3", group_by="celltype")
    with pytest.raises(KeyError, match=r"nothing.* not found"):
        rg.pl.perturbation(tissue, prediction_key="nothing")
    with pytest.raises(ValueError, match="`n_shown` is 0"):
        rg.pl.perturbation(tissue, n_shown=0)
    other = bank.copy()
    other.X[0, 0] += 1
    with pytest.raises(ValueError, match="made from a reference with hash"):
        rg.pl.perturbation(table, other, perturbation="P3")
    assert not plt.get_fignums()


def test_save_and_given_axes(tissue, bank, tmp_path):
    path = tmp_path / "response.png"
    assert rg.pl.perturbation(tissue, bank, save=path, dpi=50) is None
    assert path.stat().st_size > 3000 and not plt.get_fignums()
    figure, (_, right) = plt.subplots(1, 2, figsize=(20, 6))
    axes = rg.pl.perturbation(tissue, bank, prediction_key="by_half", ax=right, return_ax=True)
    figure.canvas.draw()
    place = right.get_window_extent()
    for ax in axes.values():
        box = ax.get_window_extent()
        assert place.x0 - 1 <= box.x0 < box.x1 <= place.x1 + 1 and place.y0 - 1 <= box.y0 < box.y1 <= place.y1 + 1


def test_picture(tissue, bank, distance_to_baseline):
    axes = rg.pl.perturbation(tissue, bank, prediction_key="by_half", context="a", return_ax=True)
    assert distance_to_baseline(axes["map"].figure, "perturbation") < 6
    axes["weights"].set_visible(False)
    assert distance_to_baseline(axes["map"].figure, "perturbation") > 6
