"""Labels of a screen: what is missing, several names of controls, and names that are only spelled otherwise."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

from ..screens import planted_screen

LOGS = {"unit": "log1p_cp10k"}
MISSING = [None, np.nan, pd.NA, "", " ", "+", " + ", "nan", "None"]


@pytest.fixture(scope="module")
def whole():
    return planted_screen(contexts=("a",), n_programmes=2, n_controls=40)


@pytest.fixture
def screen(whole):
    return whole[0].copy(), whole[1]


def relabelled(adata, change):
    """The screen with other labels of its perturbed cells."""
    out = adata.copy()
    out.obs["perturbation"] = [name if name == "control" else change(name) for name in out.obs["perturbation"]]
    return out


class TestMissing:
    @pytest.mark.parametrize("value", MISSING, ids=repr)
    @pytest.mark.parametrize("dtype", [object, "category"])
    def test_a_perturbation(self, screen, value, dtype):
        adata, embedding = screen
        found = adata.obs["perturbation"].astype(object).copy()
        found.iloc[[5, 50]] = value
        adata.obs["perturbation"] = found.astype(dtype)
        with pytest.raises(ValueError, match=r"2 cells have no label in `adata\.obs\['perturbation'\]`"):
            rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS)
        with pytest.raises(ValueError, match="2 cells have no label"):
            rg.tl.perturbation_folds(adata)

    @pytest.mark.parametrize("key", ["context_key", "batch_key", "type_key"])
    def test_another_column(self, screen, key):
        adata, embedding = screen
        adata.obs["other"] = np.where(np.arange(adata.n_obs) == 60, " ", "a")
        with pytest.raises(ValueError, match=r"1 cells have no label in `adata\.obs\['other'\]` \(it says ''\)"):
            rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS, **{key: "other"})

    @pytest.mark.parametrize("asked", ["", " ", "+"])
    def test_nothing_is_no_control(self, screen, asked):
        adata, embedding = screen
        reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS)
        rg.tl.fit(reference, method="mean")
        with pytest.raises(ValueError, match="names no perturbation"):
            rg.tl.perturb(adata[:3].copy(), reference, perturbations=[asked], **LOGS)

    def test_controls_may_be_called_none(self, screen):
        adata, embedding = screen
        adata.obs["perturbation"] = adata.obs["perturbation"].replace({"control": "None"})
        reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, control="None", **LOGS)
        assert (reference.obs["n_controls"] == 40).all()
        adata.obs["perturbation"] = adata.obs["perturbation"].replace({"None": None})
        with pytest.raises(ValueError, match="40 cells have no label"):
            rg.tl.build_perturbation_reference(adata, embedding=embedding, control="None", **LOGS)


class TestSeveralControls:
    NAMES = ("control", "non-targeting")

    @pytest.fixture
    def both(self, screen):
        adata, embedding = screen
        at = np.flatnonzero(adata.obs["perturbation"] == "control")[::2]
        names = adata.obs["perturbation"].to_numpy(object).copy()
        names[at] = "non-targeting"
        names[names == "P3"] = "P3+non-targeting"
        return adata, adata.obs.assign(perturbation=names), embedding

    @pytest.mark.parametrize("form", [list, tuple, np.array, pd.Index])
    def test_they_count_as_one(self, both, form):
        adata, obs, embedding = both
        expected = rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS)
        adata.obs = obs
        found = rg.tl.build_perturbation_reference(adata, embedding=embedding, control=form(self.NAMES), **LOGS)
        assert found.uns["ragst"]["content_hash"] == expected.uns["ragst"]["content_hash"]
        assert (found.obs["n_controls"] == 40).all()

    def test_the_whole_path_knows_them(self, both, tmp_path):
        adata, obs, embedding = both
        adata.obs = obs
        role = rg.tl.perturbation_folds(adata, control=list(self.NAMES))["P3"]
        assert role.value_counts()[["control_train", "control_test"]].tolist() == [20, 20]
        seen = adata[role.isin(["train", "control_train"])].copy()
        reference = rg.tl.build_perturbation_reference(seen, embedding=embedding, control=list(self.NAMES), **LOGS)
        rg.tl.fit(reference, method="mean")
        rg.io.write_reference(reference, tmp_path / "screen.zarr.zip")
        reference = rg.io.read_reference(tmp_path / "screen.zarr.zip")
        source = adata[role == "control_train"].copy()
        table = rg.tl.perturb(source, reference, perturbations=["P3", "non-targeting"], **LOGS)
        assert not table[table.obs["perturbation"] == "non-targeting"].layers["response"].any()
        table.write_h5ad(tmp_path / "table.h5ad")
        scores = rg.tl.evaluate_perturbation(ad.read_h5ad(tmp_path / "table.h5ad"), adata, **LOGS)
        assert set(scores["perturbation"]) == {"P3", ""} and (scores["n_cells"] == 30).all()

    def test_a_name_that_nobody_has_is_told(self, screen, caplog):
        adata, embedding = screen
        adata.obs["perturbation"] = [f"{name}+control" for name in adata.obs["perturbation"]]
        rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS)
        assert "No cell is a control" not in caplog.text
        rg.tl.build_perturbation_reference(adata, embedding=embedding, control=["control", "ctrl"], **LOGS)
        assert "No cell is a control named 'ctrl'" in caplog.text

    @pytest.mark.parametrize("control", [None, {"control"}, {"control": 1}, [], "", ["+"]])
    def test_no_name(self, screen, control):
        adata, embedding = screen
        with pytest.raises(TypeError, match=r"`control` is .*; give the name of the controls, or a list of names"):
            rg.tl.build_perturbation_reference(adata, embedding=embedding, control=control, **LOGS)


SPELLED = {
    "guide": (lambda name: f"{name}_g1", "'P0_g1' begins with 'P0': if '_g1' names a guide, take it off"),
    "guide after a dash": (lambda name: f"{name}-sg2", "'P0-sg2' begins with 'P0': if '-sg2' names a guide"),
    "vector": (lambda name: f"{name}_pDS265", "'P0_pDS265' begins with 'P0'"),
    "capitals": (str.lower, "Did you mean 'P0' for 'p0'"),
    "pair": (lambda name: "P1_P2" if name == "P4" else name, r"`A\+B`: did you mean 'P1\+P2' for 'P1_P2'"),
    "comma": (lambda name: "P1, P2" if name == "P4" else name, r"did you mean 'P1\+P2' for 'P1, P2'"),
    "with control": (lambda name: f"{name}_control", r"did you mean 'P0\+control' for 'P0_control'"),
    "control": (lambda name: "Control" if name == "P4" else name, "Did you mean 'control' for 'Control'"),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_spelled_otherwise(screen, kind):
    adata, embedding = screen
    change, message = SPELLED[kind]
    for on_missing, error in (("drop", ValueError), ("error", KeyError)):
        with pytest.raises(error, match=message):
            rg.tl.build_perturbation_reference(
                relabelled(adata, change), embedding=embedding, on_missing=on_missing, **LOGS
            )


@pytest.mark.parametrize("name", ["P0-AS1", "Q7", "XP0_1", "P0X"])
def test_genes_that_only_look_alike_are_left_out(screen, name):
    adata, embedding = screen
    other = relabelled(adata, lambda one: name if one == "P4" else one)
    reference = rg.tl.build_perturbation_reference(other, embedding=embedding, **LOGS)
    assert list(reference.uns["ragst"]["dropped"]["perturbation"]) == [name]


def test_a_question_is_answered_likewise(screen):
    adata, embedding = screen
    reference = rg.tl.build_perturbation_reference(adata, embedding=embedding, **LOGS)
    rg.tl.fit(reference, method="mean")
    with pytest.raises(KeyError, match=r"did you mean 'P1\+P2' for 'P1_P2'"):
        rg.tl.perturb(adata[:3].copy(), reference, perturbations="P1_P2", **LOGS)


class TestSharedControls:
    @pytest.fixture
    def used(self, screen):
        adata, embedding = screen
        role = rg.tl.perturbation_folds(adata)["P3"]
        seen = adata[role.isin(["train", "control_train"])].copy()
        reference = rg.tl.build_perturbation_reference(seen, embedding=embedding, **LOGS)
        rg.tl.fit(reference, method="mean")
        table = rg.tl.perturb(adata[role == "control_train"].copy(), reference, perturbations="P3", **LOGS)
        return adata, role, reference, table

    def renamed(self, cells):
        """The same cells as another tool names them, in another order."""
        out = cells[::-1].copy()
        out.obs_names = [f"{name}-0" for name in out.obs_names]
        return out

    def test_other_names_change_no_score(self, used, caplog):
        adata, _, _, table = used
        expected = rg.tl.evaluate_perturbation(table, adata, **LOGS)
        again = rg.tl.evaluate_perturbation(table, self.renamed(adata), **LOGS)
        assert "20 controls of `adata` were used before under other names" in caplog.text
        exact = ["pearson_delta", "mae_delta"]
        each = [frame[frame["metric"].isin(exact) & (frame["subset"] == "each")] for frame in (expected, again)]
        np.testing.assert_allclose(*(frame["value"] for frame in each), rtol=1e-5)

    def test_without_new_controls_it_is_refused(self, used, tmp_path):
        adata, role, _, table = used
        cells = self.renamed(adata[role != "control_test"])
        with pytest.raises(ValueError, match=r"All 20 controls of `adata` were used.* 20 of them under other names"):
            rg.tl.evaluate_perturbation(table, cells, **LOGS)
        with pytest.raises(ValueError, match="under other names"):
            rg.io.write_cell_eval(table, cells, tmp_path / "pairs", **LOGS)

    def test_source_cells_of_a_prediction_count_as_used(self, used):
        adata, role, reference, _ = used
        table = rg.tl.perturb(adata[role == "control_test"].copy(), reference, perturbations="P3", **LOGS)
        with pytest.raises(ValueError, match="All 40 controls of `adata` were used"):
            rg.tl.evaluate_perturbation(table, self.renamed(adata), **LOGS)

    def test_a_reference_of_them_is_no_truth_of_a_picture(self, used):
        adata, role, reference, table = used
        embedding = pd.DataFrame(reference.uns["ragst"]["embedding"]["values"])
        embedding.index = reference.uns["ragst"]["embedding"]["genes"]
        cells = self.renamed(adata[role != "control_test"])
        truth = rg.tl.build_perturbation_reference(cells, embedding=embedding, **LOGS)
        with pytest.raises(ValueError, match="measured against 20 of the controls that the prediction rests on"):
            rg.pl.perturbation(table, truth=truth, perturbation="P3")
