"""Texture features: what must leave them unchanged, what they must tell apart, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image import texture as texture_module  # noqa: E402
from ragst_sd.image.texture import optical_density, separate_stains, texture_features, texture_names  # noqa: E402  # noqa: E402
from ragst_sd.image.texture_maps import variance  # noqa: E402

NAMES = texture_names()


def stained_tile(seed: int, edge: int = 96, n_nuclei: int = 40, radius: float = 3.0) -> np.ndarray:
    """Pink ground with round blue nuclei, uint8 (3, edge, edge)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:edge, :edge]
    amount = np.full((edge, edge), 0.05)
    for y, x in rng.uniform(0, edge, (n_nuclei, 2)):
        amount += 0.8 / (1 + np.exp(2 * (np.hypot(rows - y, columns - x) - radius)))
    eosin = 0.3 + 0.1 * np.sin(columns / 9)
    density = np.multiply.outer([0.65, 0.70, 0.29], amount) + np.multiply.outer([0.07, 0.99, 0.11], eosin)
    noise = rng.normal(0, 0.02, density.shape)
    return np.clip(np.rint(255 * np.exp(-density + noise)), 0, 255).astype(np.uint8)


def stained_tiles(n: int = 6, edge: int = 96) -> torch.Tensor:
    return torch.from_numpy(np.stack([stained_tile(i, edge, n_nuclei=10 + 12 * i) for i in range(n)]))


def column(features: torch.Tensor, name: str) -> torch.Tensor:
    return features[:, NAMES.index(name)]


def test_shape_type_and_names() -> None:
    features = texture_features(stained_tiles(3))
    assert features.shape == (3, len(NAMES))
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert len(set(NAMES)) == len(NAMES)
    assert torch.isfinite(features).all()
    assert texture_module.TEXTURE_VERSION


def test_features_do_not_depend_on_the_batch() -> None:
    tiles = stained_tiles(7)
    together = texture_features(tiles)
    alone = torch.cat([texture_features(tile[None]) for tile in tiles])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), rtol=1e-5, atol=1e-6)
    backwards = texture_features(tiles.flip(0)).flip(0)
    np.testing.assert_allclose(together.numpy(), backwards.numpy(), rtol=1e-5, atol=1e-6)


def test_features_repeat_exactly_whatever_the_number_of_threads() -> None:
    tiles = stained_tiles(9)
    before = torch.get_num_threads()
    try:
        found = []
        for n_threads in (1, 2, 2):
            torch.set_num_threads(n_threads)
            found.append(texture_features(tiles))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_the_layout_in_memory_makes_no_difference() -> None:
    tiles = stained_tiles(3)
    expected = texture_features(tiles)
    wide = torch.cat([tiles, tiles], dim=3)
    assert torch.equal(texture_features(wide[..., :96]), expected)
    channels_last = tiles.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(texture_features(channels_last).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turn", ["quarter", "half", "mirror", "transpose"])
def test_turned_and_mirrored_tiles_have_the_same_features(turn) -> None:
    tiles = stained_tiles(4, edge=96)
    moved = {
        "quarter": tiles.rot90(1, (2, 3)),
        "half": tiles.rot90(2, (2, 3)),
        "mirror": tiles.flip(3),
        "transpose": tiles.transpose(2, 3),
    }[turn]
    np.testing.assert_allclose(texture_features(moved).numpy(), texture_features(tiles).numpy(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 120, 180)])
def test_constant_tiles(colour) -> None:
    tiles = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(2, 3, 80, 72)
    features = texture_features(tiles)
    assert torch.isfinite(features).all()
    assert torch.equal(features[0], features[1])
    stains = separate_stains(optical_density(tiles[:1, :, :1, :1]))[0, :, 0, 0]
    assert float(column(features, "mean_haematoxylin_1px")[0]) == pytest.approx(float(stains[0]), abs=1e-4)
    assert float(column(features, "quantile50_eosin_4px")[0]) == pytest.approx(float(stains[1]), abs=1e-4)
    assert column(features, "blob_density_haematoxylin_1px").eq(0).all()
    assert column(features, "contrast_brightness_2px")[0] == pytest.approx(np.log(1e-3), abs=1e-4)
    assert column(features, "pattern8_brightness_1px").eq(1).all()


@pytest.mark.parametrize("shape", [(64, 64), (65, 91), (71, 64), (100, 224)])
def test_odd_shapes_are_finite(shape) -> None:
    tiles = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 3, *shape), dtype=np.uint8))
    features = texture_features(tiles)
    assert torch.isfinite(features).all()
    assert not torch.equal(features[0], features[1])


def test_statistics_follow_the_tissue() -> None:
    few, many = (torch.from_numpy(stained_tile(0, n_nuclei=n))[None] for n in (5, 90))
    small, large = (torch.from_numpy(stained_tile(0, n_nuclei=25, radius=r))[None] for r in (2.0, 9.0))
    features = texture_features(torch.cat([few, many, small, large]))
    for name in ("mean_haematoxylin_1px", "dark0.4_haematoxylin_2px", "blob_density_haematoxylin_4px"):
        values = column(features, name)
        assert values[1] > values[0] * 1.2, name
    # the spread of small nuclei is lost at finer scales than that of large ones
    fine, coarse = column(features, "band_haematoxylin_2px"), column(features, "band_haematoxylin_16px")
    assert (fine - coarse)[2] > (fine - coarse)[3]


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (1, 1), (1, -1)])
def test_coherence_of_stripes_in_any_direction(direction) -> None:
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    stripes = torch.where((direction[0] * y + direction[1] * x) % 8 < 3, 90, 240).to(torch.uint8)
    tiles = torch.stack([stripes.expand(3, 96, 96), torch.from_numpy(stained_tile(0, n_nuclei=90))])
    coherence = column(texture_features(tiles), "coherence_haematoxylin_1px")
    assert coherence[0] > 0.99
    assert coherence[1] < 0.5


def test_bands_add_up_to_the_variance() -> None:
    tiles = stained_tiles(3)
    features = texture_features(tiles)
    amounts = separate_stains(optical_density(tiles))
    bands = [column(features, f"band_haematoxylin_{2**s}px").exp() - 1e-3 for s in range(6)]
    np.testing.assert_allclose(sum(band**2 for band in bands).numpy(), variance(amounts[:, 0]).numpy(), rtol=1e-3)
    assert bands[5].max() < bands[1].min()


def test_centre_and_corners_are_told_apart() -> None:
    tiles = torch.full((2, 3, 96, 96), 230, dtype=torch.uint8)
    tiles[0, :, 36:60, 36:60] = 60
    for y in (slice(0, 12), slice(84, 96)):
        for x in (slice(0, 12), slice(84, 96)):
            tiles[1, :, y, x] = 60
    features = texture_features(tiles)
    centre, corner = (column(features, f"mean_{ring}_haematoxylin_8px") for ring in ("centre", "corner"))
    assert centre[0] > corner[0]
    assert centre[1] < corner[1]
    assert column(features, "mean_haematoxylin_1px")[0] == pytest.approx(
        float(column(features, "mean_haematoxylin_1px")[1]), rel=1e-4
    )


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (torch.zeros(2, 3, 1, 224, dtype=torch.uint8), "at least 64 x 64 px; found 1 x 224"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "at least 64 x 64 px; found 32 x 32"),
    ],
)
def test_small_tiles_are_refused(tiles, message) -> None:
    with pytest.raises(ValueError, match=message):
        texture_features(tiles)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_the_processor() -> None:
    tiles = stained_tiles(5)
    found = texture_features(tiles.cuda())
    assert found.is_cuda
    np.testing.assert_allclose(found.cpu().numpy(), texture_features(tiles).numpy(), rtol=1e-3, atol=1e-3)
