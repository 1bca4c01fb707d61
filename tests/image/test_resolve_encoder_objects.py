"""Encoders made of modules, callables and objects with `encode_image`."""

from __future__ import annotations

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ragst_sd.image.encoder import hash_weights  # noqa: E402
from ragst_sd.image.resolve_encoder import resolve_encoder  # noqa: E402


def make_tiles(n: int = 5, edge: int = 16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, edge, edge), dtype=np.uint8))


def make_net(*, seed: int = 0, pool: bool = True) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Dropout(0.5)]
    return torch.nn.Sequential(*layers, *([torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()] if pool else []))


def resolve(model, **kwargs):
    return resolve_encoder(model, device="cpu", amp=False, **kwargs)


def test_module_is_evaluated_in_eval_mode_and_restored() -> None:
    net = make_net().train()
    net[2].eval()
    before = [part.training for part in net.modules()]
    encoder = resolve(net)
    first, second = encoder(make_tiles()), encoder(make_tiles())
    assert torch.equal(first, second)  # dropout would differ, batch norm would drift
    assert [part.training for part in net.modules()] == before
    assert net[1].num_batches_tracked == 0
    with torch.no_grad():
        torch.testing.assert_close(first, net.eval()(make_tiles().float() / 255))


def test_training_mode_comes_back_after_an_error() -> None:
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError):
        resolve(net)(make_tiles())
    assert all(part.training for part in net.modules())


def test_feature_maps_are_averaged() -> None:
    net = make_net(pool=False).eval()
    with torch.no_grad():
        expected = net(make_tiles().float() / 255).mean(dim=(2, 3))
    torch.testing.assert_close(resolve(net)(make_tiles()), expected)


def test_feature_maps_with_channels_last_are_averaged_too() -> None:
    net = make_net(pool=False).eval()
    last = resolve(lambda x: net(x).permute(0, 2, 3, 1))
    with torch.no_grad():
        torch.testing.assert_close(last(make_tiles()), net(make_tiles().float() / 255).mean(dim=(2, 3)))
    assert resolve(lambda x: x.mean((2, 3), keepdim=True))(make_tiles()).shape == (5, 3)
    assert resolve(lambda x: x.mean((2, 3))[:, None, None])(make_tiles()).shape == (5, 3)


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (5, 7, 6, 3)])
def test_maps_whose_channels_cannot_be_told_are_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"channels cannot be told from pixels"):
        resolve(lambda x: torch.zeros(shape))(make_tiles())


def test_a_timm_network_with_channels_last() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 0}
    pooled = timm.models.swin_transformer.SwinTransformer(**sizes).eval()
    maps = timm.models.swin_transformer.SwinTransformer(**sizes, global_pool="").eval()
    maps.load_state_dict(pooled.state_dict())
    tiles = make_tiles(edge=32)
    torch.testing.assert_close(resolve(maps)(tiles), resolve(pooled)(tiles))
    for model in (pooled, torch.nn.Sequential(pooled, torch.nn.Identity())):
        with pytest.raises(ValueError, match=r"takes pictures of 32 x 32 px.*16 x 16 px.*`tile_px=32`"):
            resolve(model)(make_tiles(edge=16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mean", [None, (0.5, 0.5, 0.5)])
def test_a_module_gets_tiles_in_its_own_precision(dtype, mean) -> None:
    expected = resolve(make_net().eval(), mean=mean, std=mean)(make_tiles())
    for amp in (False, True):
        encoder = resolve_encoder(make_net().eval().to(dtype), mean=mean, std=mean, device="cpu", amp=amp)
        found = encoder(make_tiles())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0.01)
        assert encoder.precision == str(dtype).removeprefix("torch.")


def test_an_encode_image_gets_what_its_transform_gives_in_its_own_precision() -> None:
    class Half:
        model = make_net().eval().half()

        def get_transform(self):
            return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

        def encode_image(self, pixels):
            return self.model(pixels)

    expected = resolve(make_net().eval())(make_tiles())
    torch.testing.assert_close(resolve(Half())(make_tiles()), expected, atol=0.01, rtol=0.01)


def test_an_error_of_a_network_of_unknown_size_tells_that_of_the_tiles() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(RuntimeError) as caught:
        resolve(net)(make_tiles())
    assert "16 x 16 px" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(2),  # tokens
        lambda x: x.mean(dim=(1, 2, 3)),  # one number per tile
        lambda x: x[:2].flatten(1),  # rows are missing
    ],
)
def test_other_shapes_are_refused(function) -> None:
    with pytest.raises(ValueError, match=r"one vector per tile, \(5, d\)"):
        resolve(function)(make_tiles())


def test_callable_receives_unit_range_and_normalises_on_request() -> None:
    tiles = make_tiles()
    plain = resolve(lambda x: x.amax(dim=(2, 3)))
    torch.testing.assert_close(plain(tiles), tiles.float().amax(dim=(2, 3)) / 255)
    scaled = resolve(lambda x: x.amax(dim=(2, 3)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125))
    expected = (tiles.float().amax(dim=(2, 3)) / 255 - 0.5) / torch.tensor([0.5, 0.25, 0.125])
    torch.testing.assert_close(scaled(tiles), expected)
    assert (plain.mean, plain.weights_hash, plain.name) == (None, "", None)
    with pytest.raises(ValueError, match="go together"):
        resolve(lambda x: x, mean=(0.5, 0.5, 0.5))


def test_only_a_string_name_identifies() -> None:
    net = make_net()
    assert resolve(net).name is None
    net.name = "my net"
    encoder = resolve(net)
    assert encoder.name == "my net"
    assert encoder.weights_hash == hash_weights(net) != hash_weights(make_net(seed=1))
    other = make_net()
    other.name = torch.nn.Identity()
    assert resolve(other).name is None


def test_hash_sees_names_shapes_and_types() -> None:
    def module(**tensors) -> torch.nn.Module:
        made = torch.nn.Module()
        for name, tensor in tensors.items():
            made.register_buffer(name, tensor)
        return made

    ones = torch.ones(4)
    variants = [
        module(a=ones),
        module(b=ones),
        module(a=ones.reshape(2, 2)),
        module(a=ones.to(torch.bfloat16)),
        module(a=ones.double()),
        module(a=torch.zeros(4)),
        module(a=torch.zeros(4, dtype=torch.int32)),  # the same bytes
        module(a=ones, b=torch.tensor(1)),
    ]
    assert len({hash_weights(variant) for variant in variants}) == len(variants)
    assert hash_weights(module(a=torch.ones(8)[::2])) == hash_weights(variants[0])
    assert hash_weights(torch.nn.Identity()) == ""


class WithTransform:
    """The interface of a LazySlide image model."""

    name = "duck"

    def __init__(self, *, transform: bool = True) -> None:
        self.model = make_net().train()
        self.transform = transform
        self.seen: list[tuple] = []
        self.device = None

    def to(self, device):
        self.device = device
        self.model.to(device)
        return self

    def get_transform(self):
        return self._transform if self.transform else None

    def _transform(self, image):
        self.seen.append((type(image), image.dtype, image.shape))
        return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1

    def encode_image(self, images):
        self.seen.append((images.dtype, tuple(images.shape)))
        assert not self.model.training
        return self.model(images.float()).numpy()


def test_encode_image_with_its_transform() -> None:
    duck = WithTransform()
    tiles = make_tiles(2)
    vectors = resolve(duck)(tiles)
    assert duck.seen[0] == (np.ndarray, np.dtype("uint8"), (16, 16, 3))
    assert duck.seen[-1] == (torch.float32, (2, 3, 16, 16))
    assert duck.device == torch.device("cpu")
    assert duck.model.training
    with torch.no_grad():
        torch.testing.assert_close(vectors, duck.model.eval()(tiles.float() / 127.5 - 1))
    assert (resolve(duck).name, resolve(duck).weights_hash) == ("duck", hash_weights(duck.model))


def test_encode_image_without_a_transform_gets_uint8() -> None:
    duck = WithTransform(transform=False)
    resolve(duck)(make_tiles(2))
    assert duck.seen == [(torch.uint8, (2, 3, 16, 16))]


def test_mean_and_std_replace_the_transform() -> None:
    duck = WithTransform()
    expected = resolve(duck)(make_tiles(2))
    duck.seen.clear()
    found = resolve(duck, mean=(0.5,) * 3, std=(0.5,) * 3)(make_tiles(2))
    assert len(duck.seen) == 1
    torch.testing.assert_close(found, expected)


def test_encode_image_alone_gets_unit_range() -> None:
    class Bare:
        def encode_image(self, images):
            return images.amax(dim=(2, 3))

    encoder = resolve(Bare())
    assert encoder(make_tiles()).max() <= 1
    assert encoder.name is None


def test_unnormalised_timm_module_is_warned_about(caplog) -> None:
    net = make_net()
    net.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    with caplog.at_level(logging.WARNING, logger="ragst_sd"):
        resolve(net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        assert not caplog.records
        resolve(net)
    assert "(0.485, 0.456, 0.406)" in caplog.text


def test_what_cannot_embed_is_refused() -> None:
    with pytest.raises(TypeError, match="is a int"):
        resolve(3)
    with pytest.raises(ValueError, match="build models by name"):
        resolve(make_net(), model_kwargs={"num_classes": 0})
