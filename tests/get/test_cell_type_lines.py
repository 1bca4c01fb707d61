"""`rg.get.explain` of genes from single cells, and what else refuses or names them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

TYPES = ("A", "B", "C")


@pytest.fixture
def mixed(fitted, query):
    """A query with a predicted table of measured genes and one, `extra`, that only single cells have."""
    rng = np.random.default_rng(0)
    genes = [*fitted.var_names, "extra"]
    types = np.repeat(np.arange(len(TYPES)), 20)
    cells = ad.AnnData(
        rng.poisson(rng.gamma(0.7, 5, (len(TYPES), len(genes)))[types]).astype(np.float32),
        obs=pd.DataFrame({"type": np.asarray(TYPES)[types]}, index=[f"cell{i}" for i in range(len(types))]),
        var=pd.DataFrame(index=genes),
    )
    rg.tl.add_cell_types(fitted, cells, cell_type_key="type")
    rg.tl.predict(query, fitted, genes=["extra", *fitted.var_names[:3]])
    return query


def test_lines_are_cell_types_and_add_up(mixed, fitted):
    table = mixed.tables["predicted"]
    spots = list(table.obs_names[[3, 0]])
    frame = rg.get.explain(mixed, fitted, obs_names=spots, genes=[fitted.var_names[1], "extra", fitted.var_names[0]])
    order = frame[["query", "gene"]].drop_duplicates().to_numpy().tolist()
    assert order == [[spot, gene] for spot in spots for gene in (fitted.var_names[1], "extra", fitted.var_names[0])]
    about = fitted.uns["ragst"]["cell_types"]
    profile = about["signatures"][:, list(about["genes"]).index("extra")]
    for spot, part in frame[frame["gene"] == "extra"].groupby("query"):
        fractions = pd.Series(table[spot].obsm["cell_type_fraction"][0], index=TYPES)
        types, last = part.iloc[:-1].set_index("reference"), part.iloc[-1]
        assert last["reference"] == "adjustment"
        assert last["contribution"] == 0
        assert list(types.index) == list(fractions[fractions > 0].sort_values(ascending=False).index)
        np.testing.assert_allclose(types["weight"], fractions[types.index])
        own = pd.Series(profile, index=TYPES)[types.index]
        np.testing.assert_allclose(types["value"], np.log1p(own), rtol=1e-5)
        share = own * fractions[types.index]
        np.testing.assert_allclose(types["contribution"] / types["contribution"].sum(), share / share.sum(), rtol=1e-5)
        np.testing.assert_allclose(types["contribution"], types["weight"] * (types["value"] + types["correction"]))
        assert part["contribution"].sum() == pytest.approx(table[spot, "extra"].X.item(), abs=1e-5)


def test_measured_genes_are_explained_as_without_cell_types(mixed, fitted):
    gene, spot = fitted.var_names[1], mixed.tables["predicted"].obs_names[0]
    alone = rg.tl.predict(mixed, fitted, genes=[gene], inplace=False)
    whole = rg.get.explain(mixed, fitted, obs_names=spot, genes=["extra", gene])
    part = whole[whole["gene"] == gene].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, rg.get.explain(alone, fitted, obs_names=spot, genes=gene))


def test_a_spot_without_fractions_says_so(mixed, fitted):
    table = mixed.tables["predicted"]
    table.obsm["cell_type_fraction"][0] = np.nan
    frame = rg.get.explain(mixed, fitted, obs_names=table.obs_names[0], genes="extra")
    assert list(frame["reference"]) == ["not measured", "adjustment"]
    assert np.isnan(frame["contribution"].iloc[0])


def test_other_cell_types_are_refused(mixed, fitted):
    spot = mixed.tables["predicted"].obs_names[0]
    fractions = pd.DataFrame(fitted.obsm["cell_type_fraction"][:, ::-1], index=fitted.obs_names, columns=TYPES)
    rg.tl.add_cell_types(fitted, fractions=fractions)
    with pytest.raises(ValueError, match="made from cell types with hash"):
        rg.get.explain(mixed, fitted, obs_names=spot, genes="extra")


def test_what_needs_measured_values_refuses(mixed, fitted, tmp_path):
    spot = mixed.tables["predicted"].obs_names[0]
    calls = [
        lambda: rg.get.influence(mixed, fitted, group_key="donor", progress=False),
        lambda: rg.pl.retrieval(mixed, fitted, obs_names=spot, genes="extra", show=False),
        lambda: rg.pl.viewer(mixed, fitted, path=tmp_path / "page.html", genes=["extra"]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="No row of the reference measured 'extra'"):
            call()


def test_picture_names_cell_types(mixed, fitted):
    spot = mixed.tables["predicted"].obs_names[0]
    axes = rg.pl.explain(mixed, fitted, obs_names=spot, genes="extra", group_by="donor", return_ax=True, show=False)
    texts = {text.get_text() for ax in axes["extra"].figure.axes for text in ax.texts}
    texts |= {text.get_text() for text in axes["extra"].figure.texts}
    shown = "\n".join(texts)
    assert "cell type" in shown
    assert "given from single cells" in shown
    assert "sections brought to one mean" not in shown
