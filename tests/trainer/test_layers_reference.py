"""Every kind of layer and network against plain NumPy in float64."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from fourstage.settings import ModelSettings
from fourstage.trainer.layers import DropoutKey, dropout, dropout_mask, map_norm, max_pool, pooled, response_norm
from fourstage.trainer.networks import build_network
from tests.trainer import network_reference as reference
from tests.trainer.fidelity import FLOAT32, FLOAT64, relative_error
from tests.trainer.network_reference import Array

BOUNDS = [(torch.float64, FLOAT64), (torch.float32, FLOAT32)]
SHAPES = [(3, 12, 5, 4), (1, 4, 1, 1), (2, 2, 9, 3), (40, 64, 13, 13)]
"""The last has more numbers than one block of the norms."""


def normals(*shape: int, seed: int = 0, std: float = 100.0) -> Array:
    return np.random.default_rng(seed).normal(0.0, std, shape)


def tensor(values: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values).to(dtype).contiguous(memory_format=torch.channels_last)


def array(values: Tensor) -> Array:
    return np.asarray(values.detach().double().numpy())


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_response_norm_and_its_gradient(
    scale: Literal["sum", "mean"], columns: int, shape: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    maps, gradient = normals(*shape), normals(*shape, seed=1)
    found = tensor(maps, dtype).requires_grad_()
    result = response_norm(found, scale=scale, columns=columns)
    result.backward(tensor(gradient, dtype))  # type: ignore[no-untyped-call]
    assert found.grad is not None
    assert relative_error(array(result), reference.response_norm(maps, columns, scale)) < bound
    expected = reference.response_norm_gradient(maps, gradient, columns, scale)
    assert relative_error(array(found.grad), expected) < bound


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_map_norm_and_its_gradient(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    maps, gradient = normals(*shape), normals(*shape, seed=1)
    found = tensor(maps, dtype).requires_grad_()
    result = map_norm(found)
    result.backward(tensor(gradient, dtype))  # type: ignore[no-untyped-call]
    assert found.grad is not None
    assert relative_error(array(result), reference.map_norm(maps)) < bound
    assert relative_error(array(found.grad), reference.map_norm_gradient(maps, gradient)) < bound


@pytest.mark.parametrize("norm", [lambda maps: response_norm(maps, columns=2), map_norm])
def test_norms_have_the_right_gradient(norm: Any) -> None:
    maps = torch.from_numpy(normals(2, 8, 2, 3, std=50.0)).requires_grad_()
    assert torch.autograd.gradcheck(norm, maps)


@pytest.mark.parametrize("norm", [lambda maps: response_norm(maps, columns=2), map_norm])
def test_norms_under_autocast_are_computed_in_float32(norm: Any) -> None:
    """Their result is that of float32 rounded once, and so is the gradient."""
    maps = tensor(normals(2, 8, 5, 5), torch.bfloat16)
    gradient = tensor(normals(2, 8, 5, 5, seed=1), torch.bfloat16)
    short, wide = maps.clone().requires_grad_(), maps.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = norm(short)
        result.backward(gradient)
    expected = norm(wide)
    expected.backward(gradient.float())
    assert short.grad is not None
    assert wide.grad is not None
    assert torch.equal(result, expected.bfloat16())
    assert torch.equal(short.grad, wide.grad.bfloat16())


@pytest.mark.parametrize("norm", [lambda maps: response_norm(maps, columns=2), map_norm])
def test_norms_keep_channels_last_and_take_no_images(norm: Any) -> None:
    maps = tensor(normals(2, 12, 5, 5), torch.float32).requires_grad_()
    result = norm(maps)
    (gradient,) = torch.autograd.grad(result.sum(), maps)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert norm(maps[:0]).shape == (0, 12, 5, 5)


@pytest.mark.parametrize("window", [3, 2])
@pytest.mark.parametrize("side", [3, 4, 15, 55])
def test_pooling_takes_the_windows_inside_the_maps(side: int, window: int) -> None:
    maps = normals(2, 3, side, side)
    found = max_pool(torch.from_numpy(maps), window)
    assert found.shape == (2, 3, pooled(side, window), pooled(side, window))
    assert np.array_equal(found.numpy(), reference.max_pool(maps, window))


def test_dropout_is_the_mask_in_training_and_the_mean_in_a_test() -> None:
    units = normals(5, 70)
    mask = dropout_mask(3, 4, 6, range(10, 15), 70, 0.25)
    trained = dropout(torch.from_numpy(units), DropoutKey(3, 4, 10), layer=6, p=0.25)
    assert np.array_equal(trained.numpy(), units * mask.numpy())
    assert np.array_equal(dropout(torch.from_numpy(units), None, layer=6, p=0.25).numpy(), units * 0.75)


def test_layers_compile_without_breaks_for_any_step() -> None:
    """torch.compile would otherwise give up at the generator of the masks, or begin anew at every step."""

    def layers(maps: Tensor, key: DropoutKey) -> Tensor:
        return dropout(map_norm(response_norm(maps, columns=2)).flatten(1), key, layer=6, p=0.5)

    compiled = torch.compile(layers, backend="eager", fullgraph=True)
    maps = tensor(normals(3, 8, 5, 5), torch.float32)
    for step in range(2):
        assert torch.equal(compiled(maps, DropoutKey(1, step)), layers(maps, DropoutKey(1, step)))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(compiled(maps, DropoutKey(1, 9)), layers(maps, DropoutKey(1, 9)))


NETWORKS: dict[str, dict[str, Any]] = {
    "paper": {},
    "code-2012": {"norm_scale": "mean", "middle_std": 0.03, "conv1_order": "norm-pool-activation", "map_norm": True},
    "conv1-order": {"conv1_order": "norm-pool-activation", "activation": "abs-tanh"},
    "map-norm": {"map_norm": True},
    "one-column": {"columns": 1},
    "tanh": {"activation": "tanh"},
    "abs-tanh": {"activation": "abs-tanh"},
    "no-norm": {"response_norm": False},
    "touching-windows": {"overlapping_pooling": False},
    "sixth-layer": {"sixth_layer": True},
    "one-column-sixth": {"columns": 1, "sixth_layer": True, "without": ("conv5",)},
    "without-conv3": {"without": ("conv3",)},
    "without-conv4-fc7": {"without": ("conv4", "fc7")},
    "without-conv5-fc6": {"without": ("conv5", "fc6")},
    "without-any": {"without": ("conv3", "conv4", "conv5", "fc6", "fc7"), "dropout": 0.0},
    "less-dropout": {"dropout": 0.25},
}


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS.keys())
def test_networks_compute_what_the_reference_does(changes: dict[str, Any]) -> None:
    """Trained and tested, in both precisions; 66 pixels need two more at the far ends."""
    model = ModelSettings.model_validate({"init_std": 0.02, **changes})
    network = build_network(model, classes=3, crop=66, seed=1)
    images = normals(2, 3, 66, 66, std=60.0)
    key = DropoutKey(5, 6, 7)
    p = 0.5 if model.dropout is None else model.dropout
    masks = {f"fc{layer}": dropout_mask(5, 6, layer, range(7, 9), 4096, p).numpy() for layer in (6, 7)}
    weights = {name: array(weight) for name, weight in network.named_parameters()}
    trained, tested = (reference.alexnet(weights, images, model, masks), reference.alexnet(weights, images, model))
    with torch.no_grad():
        for dtype, bound in reversed(BOUNDS):
            network.to(dtype)
            assert relative_error(array(network(tensor(images, dtype), key)), trained) < bound
            assert relative_error(array(network(tensor(images, dtype))), tested) < bound
        features = array(network.features(tensor(images, torch.float64)))
    assert relative_error(features @ weights["fc8.weight"].T + weights["fc8.bias"], tested) < FLOAT64
