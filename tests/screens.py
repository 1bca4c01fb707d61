"""Made-up perturbation screens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd

from ragst_sd.retrieval.bank import Bank, Cells, Screen
from ragst_sd.retrieval.responses import respond_to

N_PROGRAMMES, PER_PROGRAMME = 4, 5
# Options with which methods that train are quick where accuracy is not the question.
QUICK = {"pt_rag": {"max_steps": 20, "set_size": 8, "width": 16}}


def planted_screen(
    *,
    n_programmes: int = N_PROGRAMMES,
    per_programme: int = PER_PROGRAMME,
    contexts: tuple[str, ...] = ("a", "b"),
    n_genes: int = 60,
    n_cells: int = 30,
    n_controls: int = 120,
    effect: float = 0.8,
    noise: float = 0.4,
    combinations: tuple[str, ...] = (),
    rng: int = 0,
) -> tuple[ad.AnnData, pd.DataFrame]:
    """Log-expression of a screen in which perturbations of one programme respond alike, and their embedding.

    Perturbations are P0, P1, ...; consecutive ones belong to one programme. Contexts differ in their controls and in how
    strongly each programme responds. Combinations respond with the sum of their genes' responses. Two batches.
    """
    generator = np.random.default_rng(rng)
    n = n_programmes * per_programme
    programme = np.arange(n) // per_programme
    directions = generator.normal(size=(n_programmes, n_genes)) * (generator.random((n_programmes, n_genes)) < 0.3)
    own = generator.normal(size=(n, n_genes)) * 0.15
    names = [f"P{i}" for i in range(n)]
    vectors = np.eye(n_programmes)[programme] + 0.15 * generator.normal(size=(n, n_programmes))
    values, labels = [], []
    for c, context in enumerate(contexts):
        base = generator.uniform(1.5, 3.0, size=n_genes)
        batch_shift = {"1": 0.0, "2": 0.3 * generator.normal(size=n_genes)}
        strength = effect * (1 + 0.3 * c)
        response = {name: strength * (directions[programme[i]] + own[i]) for i, name in enumerate(names)}
        for both in combinations:
            response[both] = sum(response[gene] for gene in both.split("+"))
        for name, delta in {"control": np.zeros(n_genes), **response}.items():
            for i in range(n_controls if name == "control" else n_cells):
                batch = str(1 + i % 2)
                values.append(base + batch_shift[batch] + delta + noise * generator.normal(size=n_genes))
                labels.append((name, context, batch))
    obs = pd.DataFrame(labels, columns=["perturbation", "cell_type", "batch"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    adata = ad.AnnData(np.maximum(np.asarray(values, dtype=np.float32), 0), obs=obs, var=var)
    return adata, pd.DataFrame(vectors, index=names)


def two_state_screen(
    *,
    n_programmes: int = 8,
    per_programme: int = 5,
    n_genes: int = 60,
    n_cells: int = 20,
    n_controls: int = 60,
    effect: float = 0.8,
    noise: float = 0.4,
    decoy: float = 2.0,
    rng: int = 0,
) -> tuple[ad.AnnData, pd.DataFrame]:
    """A screen in which the right neighbours of a perturbation depend on the state of the cells, `obs["cell_type"]` a or b.

    Every perturbation belongs to one programme in state a and to another one in state b, and its embedding names both; its largest part names
    a third group that means nothing, so that the nearest embeddings are decoys. `uns["members"]` has the programme in either state.
    """
    generator = np.random.default_rng(rng)
    n = n_programmes * per_programme
    first = np.arange(n) // per_programme
    member = {"a": first, "b": first[generator.permutation(n)]}
    directions = generator.normal(size=(n_programmes, n_genes)) * (generator.random((n_programmes, n_genes)) < 0.3)
    decoys = generator.permutation(n) // per_programme
    eye = np.eye(n_programmes)
    vectors = np.concatenate([eye[member["a"]], eye[member["b"]], decoy * eye[decoys]], axis=1)
    vectors += 0.15 * generator.normal(size=vectors.shape)
    names = [f"P{i}" for i in range(n)]
    values, labels = [], []
    for context, programme in member.items():
        base = generator.uniform(1.5, 3.0, size=n_genes)
        shift = {"1": 0.0, "2": 0.3 * generator.normal(size=n_genes)}
        own = 0.15 * generator.normal(size=(n, n_genes))
        response = dict(zip(names, effect * (directions[programme] + own), strict=True))
        for name, delta in {"control": np.zeros(n_genes), **response}.items():
            for i in range(n_controls if name == "control" else n_cells):
                batch = str(1 + i % 2)
                values.append(base + shift[batch] + delta + noise * generator.normal(size=n_genes))
                labels.append((name, context, batch))
    obs = pd.DataFrame(labels, columns=["perturbation", "cell_type", "batch"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    adata = ad.AnnData(np.maximum(np.asarray(values, dtype=np.float32), 0), obs=obs, var=var)
    adata.uns["members"] = pd.DataFrame(member, index=names)
    return adata, pd.DataFrame(vectors, index=names)


def permuted(adata: ad.AnnData, rng: int = 0) -> ad.AnnData:
    """The same cells with labels permuted within contexts, controls included: nothing is left to be found."""
    out = adata.copy()
    generator = np.random.default_rng(rng)
    names = out.obs["perturbation"].to_numpy(dtype=object).copy()
    for context in out.obs["cell_type"].unique():
        at = np.flatnonzero(out.obs["cell_type"] == context)
        names[at] = names[generator.permutation(at)]
    out.obs["perturbation"] = names
    return out


def planted_tissue(screen: ad.AnnData, *, side: int = 12, noise: float = 0.4, rng: int = 0):
    """A square of spots without a picture: the left half is in the state of the first context, the right half in the second.

    `table` holds log-expression and names the half in `obs["half"]`; spots are 100 apart.
    """
    import geopandas as gpd
    from shapely.geometry import Point
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    generator = np.random.default_rng(rng)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side)))
    controls = screen.obs["perturbation"] == "control"
    contexts = sorted(screen.obs["cell_type"].unique())
    means = [
        np.asarray(screen[controls & (screen.obs["cell_type"] == name)].X.mean(axis=0)).ravel() for name in contexts
    ]
    half = (x >= side / 2).astype(int)
    values = np.asarray(means)[half] + noise * generator.normal(size=(len(x), screen.n_vars))
    names = [f"spot{i}" for i in range(len(x))]
    obs = pd.DataFrame({"half": np.array(contexts)[half], "region": pd.Categorical(["spots"] * len(x))}, index=names)
    obs["instance_id"] = np.arange(len(x))
    table = ad.AnnData(np.maximum(values, 0).astype(np.float32), obs=obs, var=screen.var.copy())
    table.obsm["spatial"] = np.column_stack([x, y]) * 100.0
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    circles = gpd.GeoDataFrame(
        {"geometry": [Point(100.0 * a, 100.0 * b) for a, b in zip(x, y, strict=True)], "radius": 40.0}
    )
    return SpatialData(shapes={"spots": ShapesModel.parse(circles)}, tables={"table": table})


def response_bank(*, key, values, halves, genes, contexts, folds, state, reliability, cells=None):
    """A bank of responses from arrays."""
    screen = Screen(halves=halves, perturbed=genes, states=state, reliability=reliability, cells=cells)
    return Bank(
        embedding=key,
        key=key,
        values=values,
        panels=np.zeros(len(key), dtype=int),
        measured=np.ones((1, values.shape[1]), dtype=bool),
        folds=folds,
        sections=contexts,
        screen=screen,
    )


def small_response_bank(rng, n_genes=12, width=4):
    """Eight singles in two contexts, then one combination in the first."""
    singles = [f"P{i}" for i in range(8)]
    vectors = {name: rng.normal(size=width) for name in singles}
    rows = [((name,), context) for context in (0, 1) for name in singles] + [(("P0", "P1"), 0)]
    values = rng.normal(size=(len(rows), n_genes)) + np.array([context for _, context in rows])[:, None]
    return response_bank(
        key=np.array([sum(vectors[gene] for gene in genes) for genes, _ in rows]),
        values=values,
        halves=(values + 0.1 * rng.normal(size=values.shape), values + 0.1 * rng.normal(size=values.shape)),
        genes=tuple(genes for genes, _ in rows),
        contexts=np.array([context for _, context in rows]),
        folds=np.unique(["+".join(genes) for genes, _ in rows], return_inverse=True)[1],
        state=np.array([[0.0], [1.0]]) + rng.normal(size=(2, n_genes)),
        reliability=np.ones(len(rows)),
        cells=Cells(
            controls=rng.normal(size=(24, n_genes)).astype(np.float32),
            contexts=np.repeat([0, 1], 12),
            treated=np.repeat(values, 6, axis=0).astype(np.float32),
            rows=np.repeat(np.arange(len(rows)), 6),
        ),
    )


def respond(method, parameters, bank, query, k):
    """Rows that a fitted method of responses cites, and what it answers, under their names."""
    fitted = replace(bank, fit=SimpleNamespace(parameters=parameters))
    selection, answer = respond_to(method, fitted, replace(query, n_neighbors=k))
    return SimpleNamespace(**(vars(selection) | answer._asdict()))


def given_responses(*, n=12, contexts=("a", "b"), n_genes=60, noise=0.3, rng=0):
    """Log fold changes of perturbations P0, P1, ... that respond alike in every context, and their embedding."""
    generator = np.random.default_rng(rng)
    vectors = generator.normal(size=(n, 4))
    common = vectors @ generator.normal(size=(4, n_genes))
    levels = {context: generator.normal(size=n_genes) for context in contexts}
    names = [f"P{i}" for i in range(n)]
    values = [
        levels[context] + common[i] + noise * generator.normal(size=n_genes) for context in contexts for i in range(n)
    ]
    obs = pd.DataFrame([(name, context) for context in contexts for name in names], columns=["perturbation", "context"])
    obs.index = [f"{context}|{name}" for name, context in zip(obs["perturbation"], obs["context"], strict=True)]
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    return ad.AnnData(np.asarray(values, dtype=np.float32), obs=obs, var=var), pd.DataFrame(vectors, index=names)
