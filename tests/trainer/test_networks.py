"""The networks: shapes, columns, dropout, first weights, and that they learn."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fourstage.errors import SettingsError
from fourstage.resolve import load_settings
from fourstage.settings import ModelSettings
from fourstage.trainer.alexnet import AlexNet
from fourstage.trainer.evaluate import Errors, mean_cross_entropy
from fourstage.trainer.layers import dropout, dropout_mask, response_norm
from fourstage.trainer.networks import DropoutKey, build_network, parameter_count
from fourstage.trainer.optimizer import MomentumSGD


@pytest.fixture(scope="module")
def alexnet() -> AlexNet:
    network = build_network(ModelSettings(name="alexnet"), classes=1000, crop=224, seed=3)
    assert isinstance(network, AlexNet)
    return network


@pytest.fixture(scope="module")
def small() -> AlexNet:
    """For crops of 64; its weights are large enough for the response norm to matter."""
    return AlexNet(ModelSettings(init_std=0.02), classes=7, crop=64, seed=0)


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(-128, 128, (count, 3, side, side), generator=generator).float()
    return pixels.contiguous(memory_format=torch.channels_last)


def test_alexnet_has_the_papers_parameters(alexnet: AlexNet) -> None:
    assert parameter_count(alexnet) == 60_965_224


def layer(outputs: int, inputs: int) -> int:
    return outputs * (inputs + 1)


DENSE = layer(4096, 256 * 36) + layer(4096, 4096) + layer(1000, 4096)
SIXTH = layer(256, 9 * 256)
FIRST_TWO = layer(96, 363) + layer(256, 25 * 48)
FAMILY: list[tuple[dict[str, Any], int]] = [
    ({"activation": "tanh", "map_norm": True, "overlapping_pooling": False}, 60_965_224),
    ({"sixth_layer": True}, 60_965_224 + SIXTH),
    (
        {"columns": 1},
        layer(48, 363) + layer(128, 25 * 48) + layer(192, 9 * 128) + layer(192, 9 * 192) + layer(256, 9 * 192) + DENSE,
    ),
    ({"without": ("conv3",)}, FIRST_TWO + layer(384, 9 * 128) + layer(256, 9 * 192) + DENSE),
    ({"without": ("conv4",)}, FIRST_TWO + layer(384, 9 * 256) + layer(256, 9 * 192) + DENSE),
    (
        {"without": ("conv5",), "sixth_layer": True},
        FIRST_TWO + layer(384, 9 * 256) + layer(384, 9 * 192) + layer(256, 9 * 384) + DENSE,
    ),
    ({"without": ("fc6",)}, 60_965_224 - layer(4096, 4096)),
    ({"without": ("fc7",)}, 60_965_224 - layer(4096, 4096)),
    (
        {"without": ("fc6", "fc7")},
        60_965_224 - layer(4096, 256 * 36) - layer(4096, 4096) - layer(1000, 4096) + layer(1000, 256 * 36),
    ),
]


@pytest.mark.parametrize(("changes", "parameters"), FAMILY)
def test_the_familys_parameters(changes: dict[str, Any], parameters: int) -> None:
    network = build_network(ModelSettings.model_validate(changes), classes=1000, crop=224, seed=0)
    assert parameter_count(network) == parameters


def test_alexnet_has_the_papers_maps(alexnet: AlexNet) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape[1:]}))
        for name, layer in alexnet.named_children()
    ]
    with torch.no_grad():
        logits = alexnet(pictures(1, 224))
    for hook in hooks:
        hook.remove()
    assert logits.shape == (1, 1000)
    assert shapes["conv1"] == (96, 55, 55)
    assert shapes["conv2"] == (256, 27, 27)
    assert shapes["conv3"] == shapes["conv4"] == (384, 13, 13)
    assert shapes["conv5"] == (256, 13, 13)
    assert alexnet.get_parameter("fc6.weight").shape == (4096, 256 * 6 * 6)


def test_alexnet_grid_begins_at_the_first_pixel(alexnet: AlexNet) -> None:
    """Maps 55 wide by 3 pixels more at the right and the bottom, none at the left and the top."""
    images = pictures(1, 224)
    seen: list[Tensor] = []
    hook = alexnet.conv1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        alexnet(images)
    hook.remove()
    assert torch.equal(seen[0][:, :, :224, :224], images)
    assert seen[0].shape[2:] == (227, 227)
    assert not seen[0][:, :, 224:].any()
    assert not seen[0][:, :, :, 224:].any()


def test_alexnets_first_weights(alexnet: AlexNet) -> None:
    for name, layer in alexnet.named_children():
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        assert abs(weight.std().item() - 0.01) < 2e-4
        assert abs(weight.mean().item()) < 2e-4
        assert set(bias.tolist()) == {float(name in {"conv2", "conv4", "conv5", "fc6", "fc7"})}


def test_first_weights_are_a_function_of_the_seed() -> None:
    model = ModelSettings(name="cifar")
    before = torch.get_rng_state()
    first, again, other = (build_network(model, classes=10, crop=32, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.conv2.weight, again.conv2.weight)
    assert not torch.equal(first.conv2.weight, other.conv2.weight)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator was used"


def test_alexnets_variants_begin_as_they_say() -> None:
    """The 2012 code's middle layers; biases of 1 where the paper has them, and 0 in the sixth convolution."""
    model = ModelSettings(middle_std=0.03, sixth_layer=True, without=("conv4",))
    network = build_network(model, classes=10, crop=64, seed=0)
    stds = {name: network.get_parameter(f"{name}.weight").std().item() for name, _ in network.named_children()}
    assert stds == pytest.approx(
        {name: 0.03 if name in {"conv3", "conv5"} else 0.01 for name in stds}, rel=0.02, abs=0.0
    )
    biases = {name: set(network.get_parameter(f"{name}.bias").tolist()) for name in stds}
    assert biases == {name: {float(name in {"conv2", "conv5", "fc6", "fc7"})} for name in stds}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model.without": ["fc6", "fc6"]}, r"model\.without = \['fc6', 'fc6'\]: name each layer once"),
        ({"model.without": ["conv2"]}, "'conv2'.*'conv3', 'conv4'"),
        ({"model.without": ["fc6", "fc7"], "model.dropout": 0.5}, "set it to 0 or keep one of them"),
        ({"model.columns": 1, "parallel": "columns"}, r"model\.columns = 2"),
        ({"model.name": "cifar", "parallel": "columns"}, r"model\.name = 'alexnet'"),
        ({"model.name": "cifar", "model.sixth_layer": True}, r"model\.sixth_layer = True.*leave it out"),
        ({"model.name": "cifar", "model.without": ["conv3"]}, r"model\.without = \('conv3',\).*leave it out"),
        ({"model.name": "cifar", "model.middle_std": 0.03}, r"model\.middle_std = 0\.03.*leave it out"),
    ],
)
def test_what_would_have_no_effect_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        load_settings("drain", flags={"model.name": "alexnet", **values}, environment={})


def test_cifar_has_the_settings_that_apply_to_it() -> None:
    """Each changes what it computes."""
    base = {"name": "cifar", "response_norm": True}
    images = pictures(2, 16)
    logits = []
    changes: list[dict[str, Any]] = [
        {},
        {"activation": "abs-tanh"},
        {"response_norm": False},
        {"norm_scale": "mean"},
        {"overlapping_pooling": False},
        {"init_std": 0.01},
    ]
    for change in changes:
        network = build_network(ModelSettings.model_validate({**base, **change}), classes=3, crop=16, seed=0)
        logits.append(network(images))
        assert network.features(images).shape == (2, 64 * (4 if change == {"overlapping_pooling": False} else 1))
    assert len({tuple(made.flatten().tolist()) for made in logits}) == len(changes)


def test_init_std_replaces_every_layers() -> None:
    network = build_network(ModelSettings(name="cifar", init_std=0.5), classes=10, crop=32, seed=0)
    for layer in network.children():
        assert abs(layer.get_parameter("weight").std().item() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("name", "overlapping", "crop", "least"),
    [
        ("alexnet", True, 63, 64),
        ("alexnet", True, 1, 64),
        ("alexnet", False, 35, 36),
        ("cifar", True, 14, 15),
        ("cifar", False, 7, 8),
    ],
)
def test_too_small_crops_are_refused(name: str, overlapping: bool, crop: int, least: int) -> None:
    model = ModelSettings.model_validate({"name": name, "overlapping_pooling": overlapping})
    with pytest.raises(SettingsError, match=f"crops of {crop} pixels") as refused:
        build_network(model, classes=10, crop=crop, seed=0)
    assert f"augmenter.crop to {least} or more" in refused.value.hint
    assert build_network(model, classes=2, crop=least, seed=0)(pictures(1, least)).shape == (1, 2)


def test_the_drain_model_has_no_network() -> None:
    with pytest.raises(SettingsError, match="no network"):
        build_network(ModelSettings(name="none"), classes=10, crop=32, seed=0)


@pytest.mark.parametrize("crop", [15, 16, 24, 32, 33])
def test_cifar_takes_any_crop(crop: int) -> None:
    network = build_network(ModelSettings(name="cifar"), classes=3, crop=crop, seed=0)
    assert network(pictures(2, crop)).shape == (2, 3)


def test_a_column_never_sees_the_others_maps() -> None:
    maps = pictures(1, 4).repeat(1, 4, 1, 1)
    changed = maps.clone()
    changed[:, 6:] = 0.0
    assert torch.equal(response_norm(maps, columns=2)[:, :6], response_norm(changed, columns=2)[:, :6])
    assert not torch.equal(response_norm(maps, columns=1)[:, :6], response_norm(changed, columns=1)[:, :6])


def test_masks_are_the_same_for_any_slicing() -> None:
    whole = dropout_mask(7, 11, 6, range(10), 100, 0.5)
    parts = [dropout_mask(7, 11, 6, rows, 100, 0.5) for rows in (range(3), range(3, 3), range(3, 10))]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (10, 100)


@pytest.mark.parametrize(("seed", "step", "layer"), [(8, 11, 6), (7, 12, 6), (7, 11, 7)])
def test_masks_differ_by_seed_step_and_layer(seed: int, step: int, layer: int) -> None:
    one, other = (
        dropout_mask(7, 11, 6, range(64), 64, 0.5),
        dropout_mask(seed, step, layer, range(64), 64, 0.5),
    )
    assert abs((one == other).double().mean().item() - 0.5) < 0.05


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_masks_drop_the_share_p(p: float) -> None:
    mask = dropout_mask(2**63 - 1, 0, 6, range(128), 4096, p)
    assert abs(1.0 - mask.double().mean().item() - p) < 0.005


def test_masks_never_change() -> None:
    """A resumed run of a later version must draw the same masks."""
    mask = dropout_mask(1, 2, 6, range(3, 7), 40, 0.5)
    assert hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:16] == "3a00459d5976a68e"


def test_dropout_is_not_inverted() -> None:
    units = torch.ones(4, 32)
    trained = dropout(units, DropoutKey(0, 0), layer=6, p=0.25)
    assert set(trained.flatten().tolist()) == {0.0, 1.0}
    assert dropout(units, None, layer=6, p=0.25).eq(0.75).all()


def test_training_depends_on_step_and_rows_and_testing_does_not(small: AlexNet) -> None:
    images = pictures(4, 64)
    with torch.no_grad():
        whole = small(images, DropoutKey(1, 2))
        torch.testing.assert_close(small(images[2:], DropoutKey(1, 2, first_row=2)), whole[2:])
        assert not torch.allclose(small(images, DropoutKey(1, 3)), whole, rtol=0.01)
        assert torch.equal(small(images), small(images))


@pytest.mark.parametrize(("activation", "count", "crop", "rate"), [("relu", 64, 32, 0.001), ("tanh", 24, 16, 0.01)])
def test_cifar_learns_random_images_by_heart(activation: str, count: int, crop: int, rate: float) -> None:
    model = ModelSettings.model_validate({"name": "cifar", "activation": activation, "response_norm": False})
    network = build_network(model, classes=10, crop=crop, seed=0)
    optimizer = MomentumSGD(network.named_parameters(), momentum=0.9, weight_decay=0.0005)
    images, labels = pictures(count, crop), torch.arange(count) % 10
    for _ in range(50):
        network.zero_grad()
        logits = network(images)
        errors = Errors(10, torch.device("cpu"))
        errors.add(logits, labels)
        rates = errors.result()
        if rates is not None and rates.top1_error == 0.0:
            return
        mean_cross_entropy(logits, labels, batch_size=count).backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate)
    pytest.fail(f"after 50 steps: {rates}")


def two_columns(network: AlexNet, images: Tensor) -> Tensor:
    """The same network as the paper drew it: two columns with their own kernels, exchanging where it says."""
    weights = dict(network.named_parameters())

    def convolve(name: str, column: int, maps: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
        own = [weights[f"{name}.{kind}"].chunk(2)[column] for kind in ("weight", "bias")]
        return functional.conv2d(maps, own[0], own[1], padding=padding, stride=stride).relu()

    def norm_and_pool(maps: Tensor) -> Tensor:
        return functional.max_pool2d(functional.local_response_norm(maps, 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)

    def dense(name: str, units: Tensor) -> Tensor:
        return functional.linear(units, weights[f"{name}.weight"], weights[f"{name}.bias"])

    padded = functional.pad(images, (0, 3, 0, 3))
    columns = [norm_and_pool(convolve("conv1", column, padded, stride=4)) for column in (0, 1)]
    columns = [norm_and_pool(convolve("conv2", column, maps, 2)) for column, maps in enumerate(columns)]
    columns = [convolve("conv3", column, torch.cat(columns, 1), 1) for column in (0, 1)]
    columns = [convolve("conv4", column, maps, 1) for column, maps in enumerate(columns)]
    columns = [convolve("conv5", column, maps, 1) for column, maps in enumerate(columns)]
    units = torch.cat([functional.max_pool2d(maps, 3, 2).flatten(1) for maps in columns], 1)
    for name in ("fc6", "fc7"):
        units = dense(name, units).relu() * 0.5
    return dense("fc8", units)


def test_the_grouped_network_is_the_papers_two_columns(small: AlexNet) -> None:
    images = pictures(3, 64)
    gradients = []
    for logits in (small(images), two_columns(small, images)):
        small.zero_grad()
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(weight.grad for weight in small.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(ours / scale, expected / scale, rtol=1e-4, atol=1e-5)
