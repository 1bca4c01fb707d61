"""Neighbours in ridge-prediction space, against distances between the predictions themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.knn import fit_supervised, supervised_phi
from ragst_sd.retrieval.ridge import fit_ridge


@pytest.fixture
def training(rng):
    key = rng.normal(size=(90, 6))
    key -= key.mean(axis=0)
    values = key @ rng.normal(size=(6, 15)) * np.logspace(-1, 1, 15) + rng.normal(size=(90, 15))
    measured = np.ones((2, 15), dtype=bool)
    measured[1, 3:5] = False
    panels = np.repeat([0, 1], [60, 30])
    values[:, 7] = 0
    folds = np.repeat([0, 1, 2], 30)
    return Bank(key, sp.csr_matrix(values * measured[panels]), panels, measured, folds, folds, key=key)


def test_distances_are_those_of_standardised_predictions(training):
    alphas = [0.01, 0.1]
    fitted = fit_supervised(training, alphas=alphas)
    ridge = fit_ridge(training, alphas=alphas)
    genes = np.setdiff1d(np.arange(15), [3, 4, 7])
    predicted = training.embedding @ ridge["coefficients"][:, genes] / training.values.toarray()[:, genes].std(axis=0)
    expected = ((predicted[:, None] - predicted[None]) ** 2).sum(axis=2)
    phi = supervised_phi(fitted, training.embedding)
    got = ((phi[:, None] - phi[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(got / got.max(), expected / expected.max(), atol=1e-10)
    assert (phi**2).sum(axis=1).mean() == pytest.approx(1)
    assert fitted["map"].shape == (6, 6)
    assert fitted["alpha"] == ridge["alpha"]


def test_phi_has_no_more_dimensions_than_genes(training):
    few = replace(training, values=training.values[:, :2], measured=training.measured[:, :2])
    assert fit_supervised(few, alphas=[0.1])["map"].shape == (6, 2)


def test_phi_does_not_depend_on_company(training):
    fitted = fit_supervised(training, alphas=[0.1])
    many = np.tile(training.embedding, (4, 1))
    whole = supervised_phi(fitted, many)
    for i in (0, 255, 256, 359):
        np.testing.assert_array_equal(supervised_phi(fitted, many[i : i + 1])[0], whole[i])


def test_neighbours_express_alike_where_the_embedding_is_mostly_noise(rng):
    truth = rng.normal(size=(200, 2))
    key = np.concatenate([truth, 3 * rng.normal(size=(200, 8))], axis=1)
    values = truth @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(200, 8))
    folds = np.repeat([0, 1], 100)
    training = Bank(key, values, np.zeros(200, int), np.ones((1, 8), bool), folds, folds, key=key)
    phi = supervised_phi(fit_supervised(training, alphas=np.logspace(-3, 1, 5)), key)

    def error(space):
        distances = ((space[:, None] - space[None]) ** 2).sum(axis=2)
        np.fill_diagonal(distances, np.inf)
        return ((values[distances.argmin(axis=1)] - values) ** 2).mean()

    assert error(phi) < 0.2 * error(key)


def test_constant_predictions_fall_back_to_the_embedding(rng, caplog):
    key = rng.normal(size=(20, 3))
    folds = np.repeat([0, 1], 10)
    training = Bank(key, np.ones((20, 4)), np.zeros(20, int), np.ones((1, 4), bool), folds, folds, key=key)
    phi = supervised_phi(fit_supervised(training, alphas=[1.0]), key)
    assert "searched in the embedding" in caplog.text
    np.testing.assert_allclose(phi / phi[0, 0], key / key[0, 0])


def test_panels_that_share_no_gene_are_refused(training):
    measured = np.zeros((2, 15), dtype=bool)
    measured[0, :7], measured[1, 7:] = True, True
    with pytest.raises(ValueError, match="2 panels of this reference share none"):
        fit_supervised(replace(training, measured=measured), alphas=[1.0])
