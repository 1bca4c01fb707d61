"""Synthetic donors: a drawn picture, spots, and counts that follow the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

from ragst_sd._resolution import keep_image_mpp
from ragst_sd._validate import require_between, require_positive
from ragst_sd.datasets._tissue import TISSUES, Tissue, draw_donor, draw_nuclei, draw_tissue, hexagonal, render

_DIAMETER_UM, _PITCH_UM = 55.0, 100.0
_MIN_TISSUE = 0.5
_MEAN_CELLULARITY = 10.0
_LABEL_UM = 4.0
# Streams of randomness below one seed: what donors share, and one stream per donor.
_SHARED, _DONOR = 0, 1

_GENES = yaml.safe_load(Path(__file__).with_name("synthetic_genes.yaml").read_text(encoding="utf-8"))
MARKERS: dict[str, str] = _GENES["markers"]
GRADIENTS: dict[str, str] = _GENES["gradients"]
# Symbol, kind, and tissue or gradient of the genes that are always there.
NAMED_GENES = [
    *((gene, "marker", tissue) for tissue, symbols in MARKERS.items() for gene in symbols.split()),
    *((gene, "gradient", name) for name, symbols in GRADIENTS.items() for gene in symbols.split()),
    *((gene, "housekeeping", "") for gene in _GENES["housekeeping"].split()),
]
# RNA per nucleus or area of each tissue, relative to epithelium.
_RNA = np.array([0.5, 1.0, 0.9, 0.25])
_OVERDISPERSION = 0.12


def synthetic(
    *,
    n_donors: int = 3,
    n_sections: int = 1,
    n_spots: int | None = None,
    n_genes: int = 400,
    image_px: int = 2000,
    mpp: float = 1.0,
    depth: float = 4000.0,
    donor_effect: float = 0.25,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> dict[str, SpatialData]:
    """Generate synthetic donors with stained sections, spots, and counts that depend on the tissue in the image.

    Every section is generated from scratch: collagen, glands, lymphoid aggregates, fat and their nuclei, stained with
    haematoxylin and eosin. Donors differ in stain, tissue composition and expression. The counts are negative binomial
    around a mixture of the tissues under each spot; interferon genes rise towards lymphoid aggregates, proliferation
    genes in glands with large dark nuclei, and the depth of a spot grows with its nuclei. Nothing is downloaded, and
    the data contain no real persons.

    Parameters
    ----------
    n_donors
        Number of donors. A donor stays the same whatever the number of donors.
    n_sections
        Sections per donor. They share the donor's stain and expression shift, each has its own anatomy.
    n_spots
        At most this many spots per section, those nearest to the middle of the picture. All of them by default.
    n_genes
        Number of genes: named markers first, the others have made-up names.
    image_px
        Edge of the square picture in pixels.
    mpp
        Microns per pixel.
    depth
        Counts of a spot of average cellularity.
    donor_effect
        Spread of the log-scale shift that each donor adds to each gene.
    rng
        Seed, generator or seed sequence of numpy; `None` draws anew at each call.

    Returns
    -------
    One object per section, by name: ``donor1``, ``donor2`` and so on, or ``donor1_section1`` where a donor has several.
    Each holds

    - image ``he``: the picture, multiscale, with its microns per pixel in ``attrs["ragst"]["image_mpp"]["he"]``;
    - labels ``tissue``: tissue class on a coarse grid, 0 is glass, others follow ``uns["truth"]["tissues"]`` from 1;
    - shapes ``spots``: circles of 55 microns on a hexagonal grid of 100 microns, where there is tissue;
    - table ``table``: counts in ``X``, noise-free counts in ``layers["expected"]``; ``obs`` has ``donor``, ``sample``,
      ``label`` (the tissue that takes most of the spot) and ``n_nuclei``; ``obsm["spatial"]`` the centres in pixels,
      ``obsm["tissue_fraction"]`` and ``obsm["gradients"]`` the truth behind the counts; ``varm["programmes"]`` the
      share of each gene in the RNA of each tissue, ``varm["effects"]`` its log response to each gradient;
      ``uns["truth"]`` the names of tissues and gradients and the donor's shift of each gene.

    Raises
    ------
    ValueError
        If a number makes no sense, the picture is too small for tissue, or there are fewer genes than named markers.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> donors = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> list(donors)
    ['donor1', 'donor2']
    """
    for name, value in {"n_donors": n_donors, "n_sections": n_sections, "n_spots": n_spots}.items():
        require_positive(value, name, whole=True, optional=name == "n_spots")
    require_positive(depth, "depth")
    require_between(donor_effect, 0, np.inf, "donor_effect")
    require_between(mpp, 0.1, 4, "mpp", "Nuclei would not be seen.")
    if n_genes < len(NAMED_GENES):
        raise ValueError(f"n_genes={n_genes} leaves no room for the {len(NAMED_GENES)} named genes: ask for more.")
    if image_px * mpp < 300:
        raise ValueError(
            f"A picture of {image_px} pixels at {mpp} microns per pixel is {image_px * mpp:.0f} microns wide, "
            f"too little for spots 100 microns apart: give at least image_px={int(np.ceil(300 / mpp))}."
        )
    seed = int(np.random.default_rng(rng).integers(2**63))
    programmes = draw_programmes(_stream(seed, _SHARED), n_genes)
    sections = {}
    for i in range(n_donors):
        donor_rng = _stream(seed, _DONOR, i)
        donor = draw_donor(donor_rng)
        # Most genes move a little, a few a lot.
        shift = donor_rng.standard_t(5, n_genes) * donor_effect
        for j in range(n_sections):
            sample_name = f"donor{i + 1}" + (f"_section{j + 1}" if n_sections > 1 else "")
            section_rng = _stream(seed, _DONOR, i, j)
            tissue = draw_tissue(section_rng, image_px, mpp, donor)
            nuclei = draw_nuclei(section_rng, tissue)
            image = render(section_rng, tissue, nuclei, donor)
            table = _measure(section_rng, tissue, nuclei, programmes, shift, depth=depth, n_spots=n_spots)
            table.obs["donor"] = f"donor{i + 1}"
            table.obs["sample"] = sample_name
            sections[sample_name] = _assemble(image, tissue, table)
    return sections


def _stream(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))


def _measure(
    rng: np.random.Generator,
    tissue: Tissue,
    nuclei: pd.DataFrame,
    programmes: Programmes,
    shift: np.ndarray,
    *,
    depth: float,
    n_spots: int | None,
) -> AnnData:
    """Lay spots over the tissue and count."""
    edge, radius = len(tissue.classes) * tissue.mpp, _DIAMETER_UM / 2
    # Half a micron of slack keeps the circles off the border.
    xy, grid = hexagonal(edge, _PITCH_UM, margin=radius + 0.5)
    fractions = _fractions(tissue, xy, radius)
    chosen = np.flatnonzero(fractions.sum(1) >= _MIN_TISSUE)
    from_middle = np.hypot(*(xy[chosen] - edge / 2).T)
    chosen = np.sort(chosen[np.argsort(from_middle, kind="stable")[:n_spots]])
    xy, grid, fractions = xy[chosen], grid[chosen], fractions[chosen]

    n_nuclei, n_lymphoid = (
        cKDTree(cells[["x", "y"]].to_numpy()).query_ball_point(xy, radius, return_length=True)
        for cells in (nuclei, nuclei[nuclei["lymphoid"]])
    )
    # A lymphocyte holds about a third of the RNA of other cells.
    cellularity = 4 + n_nuclei - 0.67 * n_lymphoid
    interferon = np.exp(-np.maximum(tissue.at(tissue.aggregate, xy), 0) / 120)
    gradients = np.column_stack([interferon, tissue.at(tissue.proliferation, xy)])
    depths = depth * (cellularity / _MEAN_CELLULARITY) ** 0.8 * rng.lognormal(0, 0.2, len(xy))
    expected = expected_counts(programmes, fractions, gradients, shift, depths)
    counts = draw_counts(rng, expected, programmes.dispersion)

    label = pd.Categorical.from_codes(fractions.argmax(1), list(TISSUES))
    obs = {"label": label, "n_nuclei": n_nuclei, "array_row": grid[:, 0], "array_col": grid[:, 1]}
    var = {"kind": pd.Categorical(programmes.kind), "marks": pd.Categorical(programmes.tissue)}
    table = AnnData(
        csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(obs, index=[f"{col}x{row}" for row, col in grid]),
        var=pd.DataFrame(var, index=programmes.genes),
    )
    table.layers["expected"] = expected.astype(np.float32)
    table.obsm["spatial"] = xy / tissue.mpp
    table.obsm["tissue_fraction"] = fractions.astype(np.float32)
    table.obsm["gradients"] = gradients.astype(np.float32)
    table.varm["programmes"] = programmes.loadings.astype(np.float32)
    table.varm["effects"] = programmes.effects.astype(np.float32)
    names = {"tissues": np.array(TISSUES), "gradients": np.array(list(GRADIENTS))}
    table.uns["truth"] = {**names, "donor_shift": shift.astype(np.float32)}
    return table


def _fractions(tissue: Tissue, xy: np.ndarray, radius: float) -> np.ndarray:
    """Share of each tissue in the disc under each spot; glass makes up the rest."""
    offsets = np.mgrid[-14:15, -14:15].reshape(2, -1).T * radius / 14
    disc = offsets[np.hypot(*offsets.T) <= radius]
    under = tissue.at(tissue.classes, (xy[:, None] + disc).reshape(-1, 2)).reshape(len(xy), len(disc))
    return np.stack([(under == i + 1).mean(1) for i in range(len(TISSUES))], axis=1)


def _assemble(image: np.ndarray, tissue: Tissue, table: AnnData) -> SpatialData:
    """Wrap picture, labels, spots and counts in one object."""
    mpp, edge = tissue.mpp, image.shape[1]
    levels = [2] * max(0, min(3, int(np.log2(edge / 250))))
    chunks = (3, min(edge, 512), min(edge, 512))
    axes = {"dims": ("c", "y", "x"), "c_coords": ["r", "g", "b"]}
    he = Image2DModel.parse(image, **axes, scale_factors=levels or None, chunks=chunks)
    coarse = max(1, round(_LABEL_UM / mpp))
    # The label of a cell is that of its central pixel.
    labels = Labels2DModel.parse(
        tissue.classes[coarse // 2 :: coarse, coarse // 2 :: coarse],
        dims=("y", "x"),
        transformations={"global": Scale([coarse, coarse], axes=("x", "y"))},
    )
    ids = np.arange(table.n_obs)
    spots = ShapesModel.parse(table.obsm["spatial"], geometry=0, radius=_DIAMETER_UM / 2 / mpp, index=ids)
    table.obs["region"] = "spots"
    table.obs["spot_id"] = ids
    table.obs = table.obs.astype(dict.fromkeys(("region", "donor", "sample"), "category"))
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot_id")
    sdata = SpatialData(images={"he": he}, labels={"tissue": labels}, shapes={"spots": spots}, tables={"table": table})
    keep_image_mpp(sdata, "he", mpp)
    return sdata


@dataclass(frozen=True)
class Programmes:
    """What every donor's tissue shares."""

    genes: np.ndarray
    kind: np.ndarray
    """marker, gradient, housekeeping, weak or noise."""
    tissue: np.ndarray
    """Tissue or gradient that the gene marks, else an empty text."""
    loadings: np.ndarray
    """Mean share of each gene in the RNA of each tissue, genes x tissues; columns sum to 1."""
    effects: np.ndarray
    """Change of the log expression per unit of each gradient, genes x gradients."""
    dispersion: np.ndarray
    """Dispersion of the negative binomial: variance = mean + dispersion * mean^2."""


def draw_programmes(rng: np.random.Generator, n_genes: int) -> Programmes:
    """Loadings of ``n_genes`` genes: named ones first, then weak and unrelated ones with made-up names."""
    spare = n_genes - len(NAMED_GENES)
    made_up = [(f"SYN{i + 1:04d}", "weak", "") for i in range(spare - spare // 3)]
    made_up += [(f"NOISE{i + 1:04d}", "noise", "") for i in range(spare // 3)]
    genes, kind, tissue = (np.array(column) for column in zip(*NAMED_GENES, *made_up, strict=True))
    marker, housekeeping, weak, noise = (kind == name for name in ("marker", "housekeeping", "weak", "noise"))

    base = rng.lognormal(0.0, 0.9, n_genes)
    base[housekeeping] *= 4
    level = np.zeros((n_genes, len(TISSUES)))
    for column, name in enumerate(TISSUES):
        # Markers are not exclusive: elsewhere they run at a few per cent.
        level[marker, column] = np.log(rng.uniform(0.01, 0.08, marker.sum()))
        level[tissue == name, column] = rng.uniform(0.3, 1.2, (tissue == name).sum())
    level[weak] = rng.normal(0, 0.45, (weak.sum(), len(TISSUES)))
    level[housekeeping] = rng.normal(0, 0.08, (housekeeping.sum(), len(TISSUES)))
    level[tissue == "interferon"] = np.log([0.3, 0.35, 0.8, 0.15])
    level[tissue == "proliferation"] = np.log([0.06, 0.35, 0.2, 0.03])
    loadings = base[:, None] * np.exp(level)
    effects = np.zeros((n_genes, len(GRADIENTS)))
    for column, name in enumerate(GRADIENTS):
        effects[tissue == name, column] = rng.uniform(1.2, 2.2, (tissue == name).sum())
    dispersion = np.full(n_genes, _OVERDISPERSION)
    dispersion[noise] = rng.uniform(0.6, 1.5, noise.sum())
    return Programmes(genes, kind, tissue, loadings / loadings.sum(0), effects, dispersion)


def expected_counts(
    programmes: Programmes, fractions: np.ndarray, gradients: np.ndarray, shift: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Noise-free counts, spots x genes: a mixture of the tissues under each spot, scaled to its depth.

    ``mean = depth * p / sum(p)`` with ``p = (fractions * rna) @ loadings.T * exp(gradients @ effects.T + shift)``.
    """
    rate = (fractions * _RNA) @ programmes.loadings.T
    rate *= np.exp(gradients @ programmes.effects.T + shift)
    return rate * (depth / np.maximum(rate.sum(1), 1e-12))[:, None]


def draw_counts(rng: np.random.Generator, expected: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Negative binomial counts around their expectation, as a mixture of Poisson and gamma."""
    shape = 1 / dispersion
    return rng.poisson(rng.gamma(shape, size=expected.shape) * dispersion * expected)
