"""Synthetic donors: a drawn picture, spots, and counts that follow the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragst_sd.datasets._programmes import draw_donor_shift, draw_programmes, minimum_genes
from ragst_sd.datasets._spots import DIAMETER_UM, measure
from ragst_sd.datasets._staining import draw_stain, render
from ragst_sd.datasets._tissue import Composition, Tissue, draw_tissue

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_LABEL_UM = 4.0
# Streams of randomness below one seed: what donors share, and one stream per donor.
_SHARED, _DONOR = 0, 1


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
    rng: int | np.random.Generator = 0,
) -> dict[str, SpatialData]:
    """Draw donors with stained sections, spots and counts that depend on the tissue in the picture.

    Every section is drawn from scratch: collagen, glands, lymphoid aggregates, fat and their nuclei, stained with
    haematoxylin and eosin. Donors differ in stain, in the make-up of their tissue and in their expression. The counts
    are negative binomial around a mixture of the tissues under each spot; interferon genes rise towards lymphoid
    aggregates, proliferation genes in glands with large dark nuclei, and the depth of a spot grows with its nuclei.
    Nothing is downloaded, and no real person is in the data.

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
        Seed or generator.

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
    _check(
        n_donors=n_donors,
        n_sections=n_sections,
        n_spots=n_spots,
        n_genes=n_genes,
        image_px=image_px,
        mpp=mpp,
        depth=depth,
        donor_effect=donor_effect,
    )
    seed = int(np.random.default_rng(rng).integers(2**63))
    programmes = draw_programmes(_stream(seed, _SHARED), n_genes)
    sections = {}
    for i in range(n_donors):
        donor_rng = _stream(seed, _DONOR, i)
        stain = draw_stain(donor_rng)
        composition = Composition(
            adipose=donor_rng.uniform(0.10, 0.18),
            epithelium=donor_rng.uniform(0.42, 0.6),
            aggregates_per_mm2=donor_rng.uniform(3.2, 4.6),
        )
        shift = draw_donor_shift(donor_rng, n_genes, donor_effect)
        for j in range(n_sections):
            sample_name = f"donor{i + 1}" + (f"_section{j + 1}" if n_sections > 1 else "")
            section_rng = _stream(seed, _DONOR, i, j)
            tissue = draw_tissue(section_rng, image_px, mpp, composition)
            image = render(section_rng, tissue, stain)
            table = measure(section_rng, tissue, programmes, shift, depth=depth, n_spots=n_spots)
            table.obs["donor"] = f"donor{i + 1}"
            table.obs["sample"] = sample_name
            sections[sample_name] = _assemble(image, tissue, table)
    return sections


def _check(
    *,
    n_donors: int,
    n_sections: int,
    n_spots: int | None,
    n_genes: int,
    image_px: int,
    mpp: float,
    depth: float,
    donor_effect: float,
) -> None:
    for name, value in {"n_donors": n_donors, "n_sections": n_sections, "n_spots": n_spots}.items():
        if value is not None and value < 1:
            msg = f"{name} must be at least 1, found {value}."
            raise ValueError(msg)
    if n_genes < minimum_genes():
        msg = f"n_genes={n_genes} leaves no room for the {minimum_genes()} named genes: ask for at least that many."
        raise ValueError(msg)
    if depth <= 0 or donor_effect < 0:
        msg = f"depth must be above 0 and donor_effect not below 0, found {depth} and {donor_effect}."
        raise ValueError(msg)
    if not 0.1 <= mpp <= 4:
        msg = f"mpp must lie between 0.1 and 4 microns per pixel for nuclei to be seen, found {mpp}."
        raise ValueError(msg)
    if image_px * mpp < 300:
        msg = (
            f"A picture of {image_px} pixels at {mpp} microns per pixel is {image_px * mpp:.0f} microns wide, "
            f"too little for spots 100 microns apart: give at least image_px={int(np.ceil(300 / mpp))}."
        )
        raise ValueError(msg)


def _stream(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))


def _assemble(image: np.ndarray, tissue: Tissue, table: AnnData) -> SpatialData:
    """Wrap picture, labels, spots and counts in one object."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    n, mpp = table.n_obs, tissue.mpp
    edge = image.shape[1]
    levels = [2] * max(0, min(3, int(np.log2(edge / 250))))
    he = Image2DModel.parse(
        image,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=levels or None,
        chunks=(3, min(edge, 512), min(edge, 512)),
        transformations={"global": Identity()},
    )
    coarse = max(1, round(_LABEL_UM / mpp))
    # The label of a cell is that of its central pixel.
    labels = Labels2DModel.parse(
        tissue.classes[coarse // 2 :: coarse, coarse // 2 :: coarse],
        dims=("y", "x"),
        transformations={"global": Scale([coarse, coarse], axes=("x", "y"))},
    )
    spots = ShapesModel.parse(
        np.asarray(table.obsm["spatial"]),
        geometry=0,
        radius=DIAMETER_UM / 2 / mpp,
        index=np.arange(n),
        transformations={"global": Identity()},
    )
    table.obs["region"] = "spots"
    table.obs["spot_id"] = np.arange(n)
    for column in ("region", "donor", "sample"):
        table.obs[column] = table.obs[column].astype("category")
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot_id")
    return SpatialData(
        images={"he": he},
        labels={"tissue": labels},
        shapes={"spots": spots},
        tables={"table": table},
        attrs={"ragst": {"image_mpp": {"he": float(mpp)}}},
    )
