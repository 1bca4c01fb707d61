"""Features made by LazySlide itself, of a real slide file and of measured sections, taken and predicted from."""

from __future__ import annotations

import numpy as np
import pytest

import ragst_sd as rg

from ..sections import mean_colour

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TILE_PX, MPP = 64, 1.0


@pytest.fixture(scope="module")
def zs():
    return pytest.importorskip("lazyslide", reason="features of LazySlide need lazyslide, which is not installed")


def extract(zs, source, **options):
    """An object of LazySlide with a table of features, `colour_tiles`."""
    import torch

    def as_tensor(tile):
        return torch.from_numpy(np.array(tile)).permute(2, 0, 1) / 255

    wsi = zs.open_wsi(source, **options)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, TILE_PX, mpp=MPP, slide_mpp=MPP if options.get("image_key") else None)
    zs.tl.feature_extraction(
        wsi, mean_colour, transform=as_tensor, model_name="colour", device="cpu", num_workers=0, pbar=False
    )
    return wsi


def test_a_real_slide_from_measured_sections(zs, data_dir):
    path = data_dir / "histology" / "wsi_test" / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("the slide wsi_test is not in RAGST_SD_TEST_DATA")
    slide = extract(zs, path, store=None)
    sections = rg.datasets.synthetic(n_donors=2, image_px=700, mpp=MPP)
    sections = {name: extract(zs, sdata, image_key="he") for name, sdata in sections.items()}
    rg.pp.use_features({**sections, "slide": slide}, features="colour_tiles", context=(1, 2.5))

    tiles, header = slide.tables["colour_tiles"], slide.tables["colour_tiles"].uns["ragst"]["embeddings"]["X_colour"]
    np.testing.assert_array_equal(tiles.obsm["X_colour"][:, :3], tiles.X)
    assert (header["encoder"], header["tile_px"], header["mpp"], header["image_key"]) == ("colour", TILE_PX, MPP, "")
    for sdata in sections.values():
        found = sdata.tables["table"].obsm["X_colour"]
        assert np.isfinite(found).all(axis=1).mean() > 0.5

    reference = rg.tl.build_reference(sections, use_rep="X_colour")
    rg.tl.fit(reference, method="knn", n_neighbors=10)
    rg.tl.predict(slide, reference)
    predicted = slide.tables["predicted"]
    assert np.isfinite(predicted.X).all()
    assert predicted.uns["spatialdata_attrs"]["region"] == "tiles"

    # The same tiles as this package cuts them.
    slide.images["he"] = rg.io.read_slide(path).images["he"]
    rg.pp.embed_tiles(
        slide, image_key="he", shapes_key="tiles", model=mean_colour, tile_px=TILE_PX, mpp=MPP, key_added="X_own"
    )
    np.testing.assert_allclose(tiles.obsm["X_own"], tiles.X, atol=0.02)
