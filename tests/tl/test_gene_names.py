"""Tables whose gene names another tool has lower-cased: the error says so, and what was meant."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import ragst_sd as rg


def lowered(table):
    out = table.copy()
    out.var_names = [name.lower() for name in out.var_names]
    return out


def test_a_predicted_table(predicted, fitted):
    table = lowered(predicted.tables["predicted"])
    asked = named(rg.get.explain, str(table.obs_names[0]), "epcam")
    with pytest.raises(KeyError, match=r"the reference has no 'epcam'.* Did you mean 'EPCAM'"):
        rg.get.explain(table, fitted, **asked)
    predicted.tables["predicted"] = table
    with pytest.raises(KeyError, match="Did you mean 'EPCAM'"):
        rg.get.influence(predicted, fitted, genes=["epcam"], progress=False)


def named(function, spot, gene):
    """A spot and a gene under the names that the function has for them."""
    names = inspect.signature(function).parameters
    return {"obs_names" if "obs_names" in names else "obs_name": spot, "genes" if "genes" in names else "gene": gene}


def test_a_measured_table(predicted):
    predicted.tables["table"] = lowered(predicted.tables["table"])
    with pytest.raises(ValueError, match=r"differ in capitals only.* Did you mean '[A-Z0-9]+' for '[a-z0-9]+'"):
        rg.tl.evaluate(predicted)


@pytest.mark.parametrize("which", ["donor1", "donor3"])
def test_one_section_of_a_reference(sections, which):
    sections[which].tables["table"] = lowered(sections[which].tables["table"])
    with pytest.raises(ValueError, match=r"Did you mean '[A-Z0-9]+' for '[a-z0-9]+'"):
        rg.tl.build_reference(sections, use_rep="X_colour", thumbnails=False)


@pytest.mark.parametrize("unit", ["counts", "log1p_cp10k"])
def test_cells_to_perturb(unit):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": np.repeat(["control", "STAT1"], 30)}, index=[f"cell{i}" for i in range(60)])
    names = [f"GENE{i}" for i in range(210)]
    adata = AnnData(rng.poisson(2.0, size=(60, 210)).astype(np.float32), obs=obs, var=pd.DataFrame(index=names))
    if unit != "counts":
        adata.X = np.log1p(adata.X * (1e4 / adata.X.sum(axis=1, keepdims=True)))
    reference = rg.tl.build_perturbation_reference(adata, embedding={"STAT1": [1.0]}, unit=unit)
    rg.tl.fit(reference, method="mean")
    with pytest.raises(ValueError, match="Did you mean 'GENE0' for 'gene0'"):
        rg.tl.perturb(lowered(adata), reference, perturbations="STAT1", unit=unit)
