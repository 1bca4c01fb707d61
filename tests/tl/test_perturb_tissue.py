"""`rg.tl.perturb` on the spots of a tissue."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import ragst_sd as rg
from ragst_sd.retrieval import response_methods
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.response_baselines import NoOptions
from ragst_sd.retrieval.responses import Candidates, cited_response, distances_to, select
from ragst_sd.tl import _tissue_source
from ragst_sd.tl._tissue_responses import Responder, main_context, mean_states, niches

from ..screens import planted_screen, planted_tissue
from ..sections import copied

BUILD = {"unit": "log1p_cp10k", "context_key": "cell_type", "batch_key": "batch"}
LOGS = {"unit": "log1p_cp10k"}


def perturbed(sdata, reference, **asked):
    """The one table that is made."""
    (table,) = rg.tl.perturb_tissue(sdata, reference, inplace=False, **asked).values()
    return table


@pytest.fixture(scope="module")
def made():
    screen, embedding = planted_screen(combinations=("P0+P7",))
    return screen, embedding, planted_tissue(screen)


@pytest.fixture
def tissue(made):
    return copied(made[2])


@pytest.fixture(scope="module")
def _bank(made):
    reference = rg.tl.build_perturbation_reference(made[0], embedding=made[1], **BUILD)
    rg.tl.fit(reference, method="knn", n_neighbors=3)
    return reference


@pytest.fixture
def rag(_rag):
    """The reference, fitted with `rag`."""
    return _rag.copy()


@pytest.fixture
def steered(monkeypatch, bank):
    """A reference fitted with a method that cites the rows of the context that the state resembles."""

    def choose(parameters, bank, query):
        rows = np.tile([1, len(bank) - 1], (len(query), 1))
        near = np.square(query.states(bank)[:, None, :] - bank.screen.states[None]).sum(axis=2)
        weights = np.exp(-(near - near.min(axis=1, keepdims=True)) / 5)
        weights /= weights.sum(axis=1, keepdims=True)
        return select(query, Candidates(rows, distances_to(bank, query, rows)), weights)

    method = Method(NoOptions, lambda bank, run: {}, choose, cited_response)
    monkeypatch.setitem(response_methods.RESPONSE_METHODS, "steered", method)
    rg.tl.fit(bank, method="steered")
    return bank


def test_the_table_annotates_the_same_shapes(tissue, bank):
    assert rg.tl.perturb_tissue(tissue, bank, perturbations="P3", **LOGS) is None
    table, measured = tissue.tables["perturbed"], tissue.tables["table"]
    assert table.uns["spatialdata_attrs"] == measured.uns["spatialdata_attrs"]
    assert list(table.obs_names) == list(measured.obs_names) == list(table.obs["source"])
    np.testing.assert_array_equal(table.obs["instance_id"], measured.obs["instance_id"])
    np.testing.assert_array_equal(table.obsm["spatial"], measured.obsm["spatial"])
    np.testing.assert_allclose(table.X, measured.X + table.layers["response"], atol=1e-5)
    expected = np.sqrt((table.layers["response"] ** 2).mean(axis=1))
    np.testing.assert_allclose(table.obs["response_magnitude"], expected, rtol=1e-5)
    header = table.uns["retrieval"]
    assert "direct response" in header["scope"] and "No effect on neighbouring" in header["scope"]
    assert header["resolution"] == "spot" and header["table_key"] == "table" and header["gene_overlap"] == 1
    assert "prediction" not in header


def test_a_method_that_does_not_read_the_state_gives_a_constant_map(tissue, bank, caplog):
    with caplog.at_level(logging.INFO):
        rg.tl.perturb_tissue(tissue, bank, perturbations="P3", **LOGS)
    table = tissue.tables["perturbed"]
    header = table.uns["retrieval"]
    assert header["constant"] and header["variance_p_value"] == 1 and len(header["variance_shuffled"]) == 0
    assert header["variance"] == pytest.approx(0, abs=1e-12)
    assert table.obs["response_magnitude"].nunique() == 1
    assert "its map is constant" in caplog.text


def test_response_follows_the_state_of_the_niche(tissue, steered):
    rg.tl.perturb_tissue(tissue, steered, perturbations="P3", **LOGS)
    table = tissue.tables["perturbed"]
    header, half = table.uns["retrieval"], tissue.tables["table"].obs["half"].to_numpy()
    assert not header["constant"] and header["variance_p_value"] <= 0.02
    assert len(header["variance_shuffled"]) == 50 and header["variance"] > 2 * header["variance_shuffled"].max()
    cited = header["cited"]
    leading = cited["context"].to_numpy()[
        np.take_along_axis(table.obsm["retrieval_rows"], table.obsm["retrieval_weights"].argmax(axis=1)[:, None], 1)[
            :, 0
        ]
    ]
    assert (leading == half).mean() > 0.9
    magnitude = table.obs["response_magnitude"].groupby(half).mean()
    assert abs(magnitude["a"] - magnitude["b"]) > 0.02


def test_against_brute_force(tissue, steered):
    """States, responses and the statistic of the first shuffling, written out."""
    table = perturbed(tissue, steered, perturbations="P3", n_around=4, center_states=False, **LOGS)
    measured = tissue.tables["table"]
    values, xy = np.asarray(measured.X, dtype=float), measured.obsm["spatial"]
    names = np.asarray(measured.obs_names)
    rank = {name: i for i, name in enumerate(sorted(names))}
    members = []
    for i in range(len(xy)):
        far = np.round(np.square(xy - xy[i]).sum(axis=1), 3)
        order = sorted((j for j in range(len(xy)) if j != i), key=lambda j: (far[j], rank[names[j]]))
        members.append([i, *order[:4]])
    means = steered.uns["ragst"]["contexts"]["mean"].astype(float)
    order = np.argsort(steered.obs_names.astype(str))
    two = np.asarray(steered.X, dtype=float)[order[[1, len(order) - 1]]]

    def respond(cells):
        states = np.array([cells[own].mean(axis=0) for own in members])
        near = np.square(states[:, None] - means[None]).sum(axis=2)
        weights = np.exp(-(near - near.min(axis=1, keepdims=True)) / 5)
        return weights / weights.sum(axis=1, keepdims=True) @ two

    def spread(response):
        smooth = np.array([response[own].mean(axis=0) for own in members])
        return ((smooth - smooth.mean(axis=0)) ** 2).mean()

    expected = respond(values)
    np.testing.assert_allclose(table.layers["response"], expected, atol=1e-4)
    turned = np.random.default_rng(0).permutation(len(values))
    shuffled = respond(values[turned])
    header = table.uns["retrieval"]
    assert header["variance"] == pytest.approx(spread(expected), rel=1e-4)
    assert header["variance_shuffled"][0] == pytest.approx(spread(shuffled), rel=1e-4)


def test_spots_without_order_give_a_constant_map(tissue, steered):
    """The same spots at random places: states vary from spot to spot, but neighbours are not alike."""
    generator = np.random.default_rng(3)
    measured = tissue.tables["table"]
    measured.X = measured.X[generator.permutation(measured.n_obs)]
    rg.tl.perturb_tissue(tissue, steered, perturbations="P3", **LOGS)
    table = tissue.tables["perturbed"]
    header = table.uns["retrieval"]
    assert header["constant"] and header["variance_p_value"] > 0.05 and header["variance"] > 1e-6
    assert table.obs["response_magnitude"].nunique() == 1
    true = np.sqrt((table.layers["response"] ** 2).mean(axis=1))
    assert true.std() > 0 and table.obs["response_magnitude"].iloc[0] == pytest.approx(true.mean(), rel=1e-5)


def test_region_and_population(tissue, steered):
    whole = perturbed(tissue, steered, perturbations="P3", center_states=False, **LOGS)
    part = perturbed(tissue, steered, perturbations="P3", spots={"half": "a"}, center_states=False, **LOGS)
    measured = tissue.tables["table"]
    assert list(part.obs_names) == list(measured.obs_names[measured.obs["half"] == "a"])
    far_left = measured.obs_names[measured.obsm["spatial"][:, 0] < 300]
    np.testing.assert_allclose(part[far_left].X, whole[far_left].X, atol=1e-5)
    mask = (measured.obs["half"] == "a").to_numpy()
    for spots in (mask, list(measured.obs_names[mask])):
        other = perturbed(tissue, steered, perturbations="P3", spots=spots, center_states=False, **LOGS)
        np.testing.assert_array_equal(other.X, part.X)


def test_known_contexts(tissue, bank):
    """Where a column names contexts of the screen, their own rows are used, and the niche has that of most of its spots."""
    table = perturbed(tissue, bank, perturbations="P3", context_key="half", **LOGS)
    cited = table.uns["retrieval"]["cited"]
    contexts = cited["context"].to_numpy()[table.obsm["retrieval_rows"]]
    assert (contexts == table.obs["context"].to_numpy()[:, None]).all()
    assert "a:P3" not in set(cited["reference"]) and set(table.obs["context"]) == {"a", "b"}
    assert not table.uns["retrieval"]["constant"]


def test_far_states_are_flagged(tissue, bank, caplog):
    table = perturbed(tissue, bank, perturbations="P3", **LOGS)
    inner = np.abs(tissue.tables["table"].obsm["spatial"][:, 0] - 550) > 200
    assert (table.obs["state_percentile"][inner] < 98).mean() > 0.9
    assert not table.obs["far_from_screen"][inner].mean() > 0.1
    tissue.tables["table"].X[:30] += 2
    table = perturbed(tissue, bank, perturbations="P3", **LOGS)
    assert table.obs["far_from_screen"][:20].all() and (table.obs["state_distance"][:20] > 2).all()
    assert table.uns["retrieval"]["far_from_screen"] == pytest.approx(table.obs["far_from_screen"].mean())
    assert "lie far from all cells of the screen" in caplog.text


def test_standard_error_is_that_of_the_cited_rows(tissue, bank):
    table = perturbed(tissue, bank, perturbations="P3", **LOGS)
    cited = table.uns["retrieval"]["cited"]["reference"].to_numpy()
    for i in (0, 7):
        rows, weights = table.obsm["retrieval_rows"][i], table.obsm["retrieval_weights"][i]
        expected = weights @ bank[cited[rows]].layers["standard_error"]
        np.testing.assert_allclose(table.layers["standard_error"][i], expected, rtol=1e-4)
    rg.tl.fit(bank, method="mean")
    assert np.isnan(perturbed(tissue, bank, perturbations="P3", **LOGS).layers["standard_error"]).all()


def test_neighbors_and_explain(tissue, bank):
    rg.tl.perturb_tissue(tissue, bank, perturbations="P3", **LOGS)
    lines = rg.get.neighbors(tissue, prediction_key="perturbed", obs_names="spot5")
    assert set(lines.columns) >= {"perturbation", "context", "reliability", "weight", "technology"}
    assert lines["weight"].sum() == pytest.approx(1, abs=1e-5) and "P3" not in set(
        lines["perturbation"][lines["context"] == "unknown"]
    )
    parts = rg.get.explain(tissue, bank, obs_names="spot5", genes="GENE4", prediction_key="perturbed")
    table = tissue.tables["perturbed"]
    assert [parts["reference"].iloc[i] for i in (0, -1)] == ["source", "adjustment"]
    assert parts["contribution"].sum() == pytest.approx(float(table["spot5", "GENE4"].X.item()), abs=1e-4)
    assert parts["value"].iloc[0] == pytest.approx(float(tissue.tables["table"]["spot5", "GENE4"].X.item()), abs=1e-4)


def test_control_and_several_perturbations(tissue, bank):
    rg.tl.perturb_tissue(tissue, bank, perturbations=["P3", "P0+P9", "control"], key_added="what_if", **LOGS)
    assert set(tissue.tables) == {"table", "what_if_P3", "what_if_P0_P9", "what_if_control"}
    back = tissue.tables["what_if_control"]
    np.testing.assert_allclose(back.X, tissue.tables["table"].X, atol=1e-6)
    assert (back.obs["response_magnitude"] == 0).all() and back.uns["retrieval"]["constant"]
    tables = rg.tl.perturb_tissue(tissue, bank, perturbations=["P3", "P8"], inplace=False, **LOGS)
    assert list(tables) == ["perturbed_P3", "perturbed_P8"]
    np.testing.assert_array_equal(tables["perturbed_P3"].X, tissue.tables["what_if_P3"].X)


def test_rerun_replaces_our_own_table_only(tissue, bank):
    rg.tl.perturb_tissue(tissue, bank, perturbations="P3", **LOGS)
    rg.tl.perturb_tissue(tissue, bank, perturbations="P8", **LOGS)
    assert set(tissue.tables["perturbed"].obs["perturbation"]) == {"P8"}
    before = tissue.tables["table"].copy()
    for key, message in (
        ("table", "was not made by `rg.tl.perturb`"),
        ("spots", "taken by element"),
        ("a b", "not a legal"),
    ):
        with pytest.raises(ValueError, match=message):
            rg.tl.perturb_tissue(tissue, bank, perturbations="P3", key_added=key, **LOGS)
    assert set(tissue.tables) == {"table", "perturbed"}
    np.testing.assert_array_equal(tissue.tables["table"].X, before.X)
    pd.testing.assert_frame_equal(tissue.tables["table"].obs, before.obs)


@pytest.mark.slow
def test_zarr_round_trip(tissue, steered, tmp_path):
    rg.tl.perturb_tissue(tissue, steered, perturbations="P3", **LOGS)
    tissue.write(tmp_path / "tissue.zarr")
    read = sd.read_zarr(tmp_path / "tissue.zarr")
    table, back = tissue.tables["perturbed"], read.tables["perturbed"]
    np.testing.assert_array_equal(back.X, table.X)
    np.testing.assert_array_equal(back.layers["standard_error"], table.layers["standard_error"])
    assert bool(back.uns["retrieval"]["constant"]) == table.uns["retrieval"]["constant"]
    first, second = (rg.get.neighbors(one, prediction_key="perturbed") for one in (tissue, read))
    pd.testing.assert_frame_equal(first, second, check_dtype=False)
    rg.tl.perturb_tissue(read, steered, perturbations="P8", **LOGS)
    rg.io.write_table(read, "perturbed")
    assert set(sd.read_zarr(tmp_path / "tissue.zarr").tables["perturbed"].obs["perturbation"]) == {"P8"}


def test_squidpy_reads_it(tissue, steered):
    import squidpy as sq

    rg.tl.perturb_tissue(tissue, steered, perturbations="P3", **LOGS)
    table = tissue.tables["perturbed"]
    sq.gr.spatial_neighbors_knn(table, n_neighs=6)
    sq.gr.spatial_autocorr(table, mode="moran", attr="obs", genes=["response_magnitude"])
    assert table.uns["moranI"]["I"].iloc[0] > 0.5


def test_the_order_of_spots_changes_nothing(tissue, steered, caplog):
    first = perturbed(tissue, steered, perturbations="P3", n_permutations=3, **LOGS)
    tissue.tables["table"] = tissue.tables["table"][np.random.default_rng(0).permutation(144)].copy()
    second = perturbed(tissue, steered, perturbations="P3", n_permutations=3, **LOGS)
    np.testing.assert_allclose(second[first.obs_names].X, first.X, atol=1e-5)
    assert "with fewer than 19 no map can be told from chance" in caplog.text and first.uns["retrieval"]["constant"]


def rename(table, names):
    table.var_names = names
    return table


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            lambda n: [f"Gene{i}" for i in range(n)],
            r"share 0 genes; at least 20 of 60 .*differ in capitals only.*human and mouse",
        ),
        (lambda n: [f"ENSG{i:011d}" for i in range(n)], "names its genes by symbols, .* by Ensembl ids"),
        (lambda n: [f"OTHER{i}" for i in range(n)], r"share 0 genes; at least 20 of 60.*'OTHER0'"),
        (
            lambda n: [f"GENE{i}" if i < 12 else f"OTHER{i}" for i in range(n)],
            r"share 12 genes; at least 20 of 60 ",
        ),
    ],
)
@pytest.mark.parametrize("unit", ["log1p_cp10k", "counts"])
def test_genes_that_do_not_fit(tissue, bank, names, message, unit):
    table = rename(tissue.tables["table"], names(60))
    table.X = table.X if unit == "log1p_cp10k" else np.rint(table.X)
    with pytest.raises(ValueError, match=message):
        rg.tl.perturb_tissue(tissue, bank, perturbations="P3", unit=unit)
    assert set(tissue.tables) == {"table"}


def test_ensembl_ids_of_two_species(made, tissue):
    screen = rename(made[0].copy(), [f"ENSG{i:011d}" for i in range(60)])
    reference = rg.tl.build_perturbation_reference(screen, embedding=made[1], **BUILD)
    rg.tl.fit(reference, method="mean")
    rename(tissue.tables["table"], [f"ENSMUSG{i:011d}" for i in range(60)])
    with pytest.raises(ValueError, match="Ensembl ids of two species"):
        rg.tl.perturb_tissue(tissue, reference, perturbations="P3", **LOGS)


def test_fewer_genes_are_reported(tissue, bank):
    tissue.tables["table"] = tissue.tables["table"][:, :40].copy()
    table = perturbed(tissue, bank, perturbations="P3", **LOGS)
    assert table.n_vars == 40 and table.uns["retrieval"]["gene_overlap"] == pytest.approx(2 / 3)
    assert table.uns["retrieval"]["n_genes"] == 40
    some = perturbed(tissue, bank, perturbations="P3", genes=["GENE7", "GENE3"], **LOGS)
    np.testing.assert_array_equal(some.X, table[:, ["GENE7", "GENE3"]].X)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"perturbations": "STAT9"}, KeyError, "has no 'STAT9'"),
        ({"table_key": "tabel"}, KeyError, r"Did you mean .*table"),
        ({"spots": {"half": "c"}}, ValueError, "no row has half 'c'; there are 'a', 'b'"),
        ({"spots": {"side": "a"}}, KeyError, r"side.* not found"),
        ({"spots": ["spot1", "spot999"]}, KeyError, "has no 'spot999'"),
        ({"spots": np.zeros(144, dtype=bool)}, ValueError, "leaves no spot"),
        ({"spots": np.ones(3, dtype=bool)}, ValueError, "boolean mask over the 144 rows"),
        ({"spots": ["spot1", "spot2"]}, ValueError, "2 spots are left, too few for `n_around` 6"),
        ({"n_around": 0}, ValueError, "`n_around` is 0"),
        ({"n_permutations": 0.5}, ValueError, "`n_permutations` is 0.5"),
        ({"unit": "counts"}, ValueError, "looks log-transformed already"),
        ({"genes": ["nothing"]}, ValueError, "do not share 'nothing'"),
        ({"context_key": "celltype"}, KeyError, r"celltype.* not found"),
        ({"perturbations": ["P0+P9", "P0_P9"]}, ValueError, "would have one name"),
    ],
)
def test_bad_input(tissue, bank, arguments, error, message):
    before = tissue.tables["table"].copy()
    with pytest.raises(error, match=message):
        rg.tl.perturb_tissue(tissue, bank, **({"perturbations": "P3"} | LOGS | arguments))
    assert set(tissue.tables) == {"table"}
    pd.testing.assert_frame_equal(tissue.tables["table"].obs, before.obs)


def test_responses_are_not_perturbed_again(tissue, bank):
    rg.tl.perturb_tissue(tissue, bank, perturbations="P3", **LOGS)
    with pytest.raises(ValueError, match="holds predicted responses itself"):
        rg.tl.perturb_tissue(tissue, bank, perturbations="P8", table_key="perturbed")
    with pytest.raises(TypeError, match="SpatialData"):
        rg.tl.perturb_tissue(tissue.tables["table"], bank, perturbations="P8", spots=["spot1"], **LOGS)
    with pytest.raises(TypeError, match=r"rg\.tl\.perturb_tissue"):
        rg.tl.perturb(tissue, bank, perturbations="P8", **LOGS)


class TestPredictedTissue:
    """Expression predicted from a picture, in counts of the screen."""

    @pytest.fixture
    def screen_reference(self, reference):
        """A screen of the genes of the drawn tissue, from counts."""
        import anndata as ad

        generator = np.random.default_rng(0)
        genes = list(reference.var_names)
        cells = ad.AnnData(generator.poisson(1.5, size=(240, len(genes))).astype("float32"))
        cells.var_names = genes
        cells.obs["perturbation"] = np.repeat(["control", "A", "B", "C"], 60)
        built = rg.tl.build_perturbation_reference(
            cells, embedding={"A": [1, 0.2], "B": [0.9, 0.4], "C": [0.2, 1]}, target_sum=None
        )
        rg.tl.fit(built, method="knn", n_neighbors=2)
        return built

    def test_both_steps_are_carried(self, predicted, screen_reference):
        table = predicted.tables["predicted"]
        table.layers["lower"], table.layers["upper"] = table.X - 0.2, table.X + 0.3
        table.uns["retrieval"]["interval_level"], table.uns["retrieval"]["interval_unit"] = 0.9, "donor"
        table.var["cv_pearson"] = np.linspace(-0.1, 0.6, table.n_vars)
        rg.tl.perturb_tissue(predicted, screen_reference, perturbations="A", table_key="predicted")
        out = predicted.tables["perturbed"]
        header = out.uns["retrieval"]
        assert header["prediction"]["method"] == "knn" and header["prediction"]["table_key"] == "predicted"
        assert header["prediction"]["reference_hash"] == table.uns["retrieval"]["reference_hash"]
        assert header["prediction"]["genes_not_to_be_trusted"] == int((table.var["cv_pearson"] < 0.1).sum())
        assert header["interval_level"] == 0.9 and header["image_key"] == "he"
        np.testing.assert_allclose(out.var["cv_pearson"], table.var["cv_pearson"])
        assert "out_of_reference" in out.obs
        # in the unit of the screen: the counts of its size-factor genes add up to its target
        source = out.X - out.layers["response"]
        target = screen_reference.uns["ragst"]["normalization"]["target_sum"]
        np.testing.assert_allclose(np.expm1(source).sum(axis=1), target, rtol=1e-3)
        scale = target / np.expm1(table.X.astype(float)).sum(axis=1, keepdims=True)
        below = source - np.log1p(np.expm1(np.maximum(table.layers["lower"], 0)) * scale)
        error = 1.6449 * out.layers["standard_error"]
        np.testing.assert_allclose(out.X - out.layers["lower"], np.sqrt(below**2 + error**2), atol=2e-4)
        assert (out.layers["upper"] > out.X).all()

    def test_trust_in_genes_goes_by_place(self, predicted, screen_reference):
        """The table names its genes by Ensembl ids, two of them with one symbol, and the screen by symbols, some of which it lacks."""
        table = predicted.tables["predicted"]
        symbols = list(table.var_names)
        table.var["cv_pearson"] = np.linspace(-0.1, 0.6, table.n_vars)
        table.var["noise_ceiling"] = np.linspace(0.9, 0.4, table.n_vars)
        symbols[5], symbols[9], symbols[2] = "ABSENT1", "ABSENT2", symbols[1]
        table.var["gene_symbols"] = symbols
        table.var_names = [f"ENSG{i:011d}" for i in range(table.n_vars)]
        for ask in ({}, {"genes": [symbols[7], symbols[3], symbols[-1]]}):
            out = perturbed(predicted, screen_reference, perturbations="A", table_key="predicted", **ask)
            at = [symbols.index(gene) for gene in out.var_names]
            assert len(at) == (3 if ask else len(symbols) - 3)
            for name in ("cv_pearson", "noise_ceiling"):
                np.testing.assert_array_equal(out.var[name], table.var[name].to_numpy()[at])

    def test_genes_are_looked_up_at_once_and_only_where_they_are_predicted(
        self, predicted, screen_reference, monkeypatch
    ):
        own = [f"g{i % 700}" for i in range(1000)]
        shared = own[650:50:-1]
        assert _tissue_source._places(own, shared) == [own.index(gene) for gene in shared]
        asked, places = [], _tissue_source._places
        monkeypatch.setattr(_tissue_source, "_places", lambda *names: asked.append(len(names[0])) or places(*names))
        perturbed(predicted, screen_reference, perturbations="A", table_key="table")
        assert not asked
        perturbed(predicted, screen_reference, perturbations="A", table_key="predicted")
        assert asked
        # One by one, 30,000 names took seconds.
        start, own = time.perf_counter(), [f"g{i}" for i in range(30_000)]
        assert places(own, own) == list(range(30_000))
        assert time.perf_counter() - start < 1

    def test_genes_from_single_cells_stay_marked(self, predicted, screen_reference):
        """They are perturbed like the others, but say nothing of the state or the depth of a spot."""
        table = predicted.tables["predicted"]
        kinds = np.array(["spots"] * table.n_vars, dtype=object)
        kinds[-30:] = "scRNA-seq"
        table.var["evidence"] = pd.Categorical(kinds)
        plain = perturbed(predicted, screen_reference, perturbations="A", table_key="predicted")
        table.X[:, -30:] += 3
        out = perturbed(predicted, screen_reference, perturbations="A", table_key="predicted")
        assert list(out.var["evidence"]) == list(kinds)
        assert out.uns["retrieval"]["prediction"]["genes_from_scrna"] == 30
        np.testing.assert_array_equal(out.obs["state_distance"], plain.obs["state_distance"])
        np.testing.assert_allclose(out.X[:, :-30], plain.X[:, :-30], atol=1e-6)
        assert (out.X[:, -30:] > plain.X[:, -30:]).all()
        some = perturbed(
            predicted, screen_reference, perturbations="A", table_key="predicted",
            genes=[table.var_names[-1], table.var_names[0]],
        )  # fmt: skip
        assert list(some.var["evidence"]) == ["scRNA-seq", "spots"]
        table.var["evidence"] = pd.Categorical(["scRNA-seq"] * table.n_vars)
        with pytest.raises(ValueError, match="come from single cells, which say nothing of the state"):
            rg.tl.perturb_tissue(predicted, screen_reference, perturbations="A", table_key="predicted")

    def test_measured_tables_are_meant_first(self, predicted, screen_reference):
        rg.tl.perturb_tissue(predicted, screen_reference, perturbations="A")
        assert predicted.tables["perturbed"].uns["retrieval"]["table_key"] == "table"
        assert "lower" not in predicted.tables["perturbed"].layers
        with pytest.raises(ValueError, match="Leave `layer` and `unit` out"):
            rg.tl.perturb_tissue(
                predicted, screen_reference, perturbations="A", table_key="predicted", unit="log1p_cp10k"
            )
        with pytest.raises(ValueError, match=r"was not made by `rg\.tl\.perturb`"):
            rg.tl.perturb_tissue(predicted, screen_reference, perturbations="A", key_added="predicted")

    def test_too_few_predicted_genes_for_the_unit(self, query, fitted, screen_reference):
        rg.tl.predict(query, fitted, genes=list(fitted.var_names[:100]))
        with pytest.raises(ValueError, match="predicts 100 genes that the size factors of the screen rest on"):
            rg.tl.perturb_tissue(query, screen_reference, perturbations="A", table_key="predicted")

    def test_empty_spots_are_left_out(self, query, screen_reference, caplog):
        import scipy.sparse as sp

        table = query.tables["table"]
        table.X = sp.csr_matrix(table.X)
        table.X[:3] = 0
        rg.tl.perturb_tissue(query, screen_reference, perturbations="A")
        assert query.tables["perturbed"].n_obs == table.n_obs - 3
        assert f"3 of {table.n_obs} spots have no expression" in caplog.text


def test_niches_and_contexts():
    xy = np.array([[0.0, 0], [1, 0], [2, 0], [10, 0]])
    sets = niches(xy, np.array(["d", "c", "b", "a"]), 2).toarray()
    np.testing.assert_allclose(sets, np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1]]) / 3)
    values = np.array([[1.0, np.nan], [2, np.nan], [3, 4], [4, 5]])
    states = mean_states(niches(xy, np.array(list("dcba")), 1), values)
    np.testing.assert_allclose(states, [[1.5, np.nan], [2.5, 4], [2.5, 4], [3.5, 4.5]])
    contexts = main_context(niches(xy, np.array(list("dcba")), 1), np.array(["x", "y", "y", "z"], dtype=object))
    assert list(contexts) == ["x", "y", "y", "z"]
    same = niches(np.zeros((5, 2)), np.array(list("edcba")), 2)
    assert (same.diagonal() > 0).all() and (same.getnnz(axis=1) == 3).all()


@pytest.mark.parametrize(("method", "asked"), [("same_perturbation", "P3"), ("additive", "P1+P8")])
def test_chunks_of_spots_that_cite_differently_many_rows(tissue, bank, monkeypatch, method, asked):
    tissue.tables["table"].obs["half"] = tissue.tables["table"].obs["half"].astype(str).replace("b", "new")
    rg.tl.fit(bank, method=method)
    ask = {"perturbations": asked, "context_key": "half", "n_permutations": 3, **LOGS}
    whole = perturbed(tissue, bank, **ask)
    monkeypatch.setattr("ragst_sd.retrieval.response_run._AT_ONCE", 1)
    parts = perturbed(tissue, bank, **ask)
    assert len(set((whole.obsm["retrieval_rows"] >= 0).sum(axis=1))) == 2
    for name in ("retrieval_rows", "retrieval_weights", "retrieval_distances"):
        np.testing.assert_array_equal(parts.obsm[name], whole.obsm[name])
    np.testing.assert_array_equal(parts.X, whole.X)


@pytest.mark.slow
def test_sets_of_cells_go_through_the_network_together(tissue, bank, monkeypatch):
    from ragst_sd.retrieval.pt_rag_model import PtRag

    from ..screens import QUICK

    rg.tl.fit(bank, method="pt_rag", options=QUICK["pt_rag"])
    calls, forward = [], PtRag.forward
    monkeypatch.setattr(PtRag, "forward", lambda self, x, *a, **k: (calls.append(len(x)), forward(self, x, *a, **k))[1])
    ask = {"perturbations": "P3", "context_key": "half", "n_permutations": 1, **LOGS}
    together = perturbed(tissue, bank, **ask)
    assert len(calls) <= 12 and max(calls) == 64
    monkeypatch.setattr("ragst_sd.retrieval.pt_rag._AT_ONCE", 1)
    alone = perturbed(tissue, bank, **ask)
    np.testing.assert_array_equal(together.obsm["retrieval_rows"], alone.obsm["retrieval_rows"])
    np.testing.assert_allclose(together.X, alone.X, atol=1e-5)


def test_learned_retrieval(tissue, rag):
    """Cited rows, evidence and adjustment add up whatever the state; chunks of spots change nothing."""
    table = perturbed(tissue, rag, perturbations="P3", n_permutations=3, center_states=False, **LOGS)
    cited = table.uns["retrieval"]["cited"]["reference"].to_numpy()
    total = table.obsm["retrieval_weights"].sum(axis=1)
    assert (np.isclose(total, 1, atol=1e-5) | (total == 0)).all()
    for i in (0, 11, 77):
        rows, weights = table.obsm["retrieval_rows"][i], table.obsm["retrieval_weights"][i]
        if weights.sum():
            measured = np.asarray(rag[cited[rows[weights > 0]]].X)
            np.testing.assert_allclose(table.layers["evidence"][i], weights[weights > 0] @ measured, atol=1e-4)
    measured = np.asarray(rag["a:P3"].X).ravel()
    assert np.corrcoef(table.layers["response"].mean(axis=0), measured)[0, 1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("context_key", [None, "half"])
@pytest.mark.parametrize("center_states", [True, False])
def test_what_is_done_once_is_as_if_done_for_each_spot(tissue, rag, monkeypatch, context_key, center_states):
    ask = {
        "perturbations": "P3", "context_key": context_key, "center_states": center_states, "n_permutations": 4,
        "genes": [f"GENE{i}" for i in (3, 1, 20, 7)], **LOGS,
    }  # fmt: skip
    seen = {}

    def keep(self, contexts, states, respond=Responder.respond):
        seen["responded"] = respond(self, contexts, states)
        return seen["responded"]

    monkeypatch.setattr(Responder, "respond", keep)
    once = perturbed(tissue, rag, **ask)
    first = seen.copy()
    each = replace(response_methods.RESPONSE_METHODS["rag"], prepare=None)
    monkeypatch.setitem(response_methods.RESPONSE_METHODS, "rag", each)
    alone = perturbed(tissue, rag, **ask)
    for name, values in first["responded"].items():
        if values.dtype.kind not in "if":
            np.testing.assert_array_equal(values, seen["responded"][name], err_msg=name)
        else:
            np.testing.assert_allclose(values, seen["responded"][name], rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_array_equal(once.obsm["retrieval_rows"], alone.obsm["retrieval_rows"])
    shuffled = once.uns["retrieval"]["variance_shuffled"]
    assert len(shuffled) == 4 and shuffled.min() > 1e-11
    np.testing.assert_allclose(shuffled, alone.uns["retrieval"]["variance_shuffled"], rtol=1e-8, atol=0)


def test_share_of_the_embedding_that_is_spanned(tissue, rag):
    table = perturbed(tissue, rag, perturbations="P3", context_key="half", n_permutations=1, **LOGS)
    share = table.obs["embedding_share"].to_numpy()
    assert (share > 0.5).all() and (share < 1).all()
    half = tissue.tables["table"].obs["half"].to_numpy()
    vectors = np.asarray(rag.obsm["perturbation_embedding"], dtype=float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for context in "ab":
        # Ridge regression of the embedding on those of the same context without the perturbation itself.
        used = (rag.obs["context"] == context).to_numpy() & (rag.obs["perturbation"] != "P3").to_numpy()
        x, q = (
            unit[used] - unit[used].mean(axis=0),
            unit[rag.obs_names.get_loc(f"{context}:P3")] - unit[used].mean(axis=0),
        )
        gram = x.T @ x
        expected = q @ np.linalg.solve(gram + 0.1 * np.trace(gram) / used.sum() * np.eye(len(q)), gram @ q) / (q @ q)
        inner = [i for i, name in enumerate(table.obs["context"]) if name == context and half[i] == context]
        np.testing.assert_allclose(share[inner], expected, atol=1e-9)
    rg.tl.fit(rag, method="knn")
    assert "embedding_share" not in perturbed(tissue, rag, perturbations="P3", **LOGS).obs


def test_nothing_is_cited_for_what_resembles_nothing(made, tissue):
    """An embedding at a right angle to all others: the mean of the screen, and every call says so."""
    vectors = np.pad(made[1].to_numpy(), ((0, 0), (0, 1)))
    embedding = pd.DataFrame(vectors, index=made[1].index)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    bank = rg.tl.build_perturbation_reference(made[0], embedding=embedding, **BUILD)
    combination = vectors[[0, 7]].sum(axis=0)
    centre = np.concatenate([unit, [combination / np.linalg.norm(combination)]]).mean(axis=0)
    strange = centre.copy()
    strange[-1] = np.sqrt(1 - (centre**2).sum())
    embedding.loc["STRANGE"] = strange
    bank = rg.tl.build_perturbation_reference(made[0], embedding=embedding, **BUILD)
    rg.tl.fit(bank, method="rag")
    rg.tl.perturb_tissue(tissue, bank, perturbations="STRANGE", **LOGS)
    table = tissue.tables["perturbed"]
    assert (table.obs["embedding_share"] == 0).all() and (table.obsm["retrieval_rows"] == -1).all()
    np.testing.assert_allclose(table.layers["response"][5], np.asarray(bank.X).mean(axis=0), atol=1e-5)
    said = "nothing cited: mean of the responses that may be used"
    lines = rg.get.neighbors(tissue, prediction_key="perturbed", obs_names=["spot5", "spot9"])
    assert list(lines["query"]) == ["spot5", "spot9"] and set(lines["reference"]) == {said}
    parts = rg.get.explain(tissue, bank, obs_names="spot5", genes="GENE4", prediction_key="perturbed")
    assert list(parts["reference"]) == ["source", said, "adjustment"]
    assert parts["contribution"].iloc[2] == pytest.approx(0, abs=1e-6)
    assert parts["contribution"].iloc[1] == pytest.approx(float(bank[:, "GENE4"].X.mean()), abs=1e-5)


def test_a_bar_where_it_takes_long(tissue, steered, capsys, monkeypatch):
    ask = {"perturbations": ["P3", "control", "P8"], "n_permutations": 4, "inplace": False, **LOGS}
    rg.tl.perturb_tissue(tissue, steered, progress=True, **ask)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("ragst_sd.tl._perturb_tissue.BAR_AFTER", 0)
    with rg.settings.override(progress=True):
        rg.tl.perturb_tissue(tissue, steered, **ask)
    assert "10/10" in capsys.readouterr().err
    rg.tl.perturb_tissue(tissue, steered, progress=False, **ask)
    with rg.settings.override(progress=False):
        rg.tl.perturb_tissue(tissue, steered, **ask)
    assert capsys.readouterr().err == ""
