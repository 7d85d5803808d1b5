"""Two processes with a column each against one process with both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import SettingsError
from fourstage.settings import ModelSettings
from fourstage.trainer.columns import Column, slice_of, whole_shape
from fourstage.trainer.networks import build_network
from tests.trainer.columns_process import CLASSES

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {"rows": 3, "crop": 67, "steps": 2, "channels_last": True, "bf16": False}
CODE = {"norm_scale": "mean", "middle_std": 0.03, "conv1_order": "norm-pool-activation", "map_norm": True}
CASES: dict[str, dict[str, Any]] = {
    "paper": {**BASE, "model": {}, "crop": 99},
    "code-2012": {**BASE, "model": CODE, "channels_last": False},
    "sixth-layer": {**BASE, "model": {"sixth_layer": True}},
    "removed": {**BASE, "model": {"without": ["conv3", "fc6"], "activation": "abs-tanh", "dropout": 0.25}},
    "all-removed": {**BASE, "model": {"without": ["conv3", "conv4", "conv5", "fc6", "fc7"], "dropout": 0.0}},
    "one-row": {**BASE, "model": {"overlapping_pooling": False}, "rows": 1},
    "no-rows": {**BASE, "model": {"sixth_layer": True}, "rows": 0, "steps": 1},
    "bf16": {**BASE, "model": {}, "bf16": True, "steps": 1},
}
SIDES = {67: (3, 1), 99: (5, 2)}
"""Of the maps that conv3 reads and of those after the last pooling, by the crop."""

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """What each of two processes found in every case, by the case's name."""
    folder = tmp_path_factory.mktemp("columns")
    model = {"init_std": 0.02}
    cases = {name: {**case, "model": {**model, **case["model"]}} for name, case in CASES.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.trainer.columns_process"]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT, stderr=subprocess.PIPE) for rank in range(2)
    ]
    try:
        for process in processes:
            _, error = process.communicate(timeout=240)
            assert process.returncode == 0, error.decode()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return first, second


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["bf16"]])
def test_two_processes_compute_what_one_does(found: tuple[Found, Found], name: str) -> None:
    """Logits and features, every gradient, and weights and velocities after the last step; dropout is on."""
    errors = found[0][name]["errors"]
    # Every parameter of the first weights, of the trained, of the velocities and of the gradients.
    assert len(errors) == 4 * len(found[0][name]["names"]) + 2
    assert {what: error for what, error in errors.items() if not error < 1e-10} == {}


def test_two_processes_compute_what_one_does_in_bfloat16(found: tuple[Found, Found]) -> None:
    errors = found[0]["bf16"]["errors"]
    assert errors["logits"] < 0.02
    assert {what: error for what, error in errors.items() if what.startswith("gradient") and not error < 0.05} == {}


@pytest.mark.parametrize("name", CASES)
def test_first_weights_are_slices_of_the_whole_draw(found: tuple[Found, Found], name: str) -> None:
    errors = found[0][name]["errors"]
    assert found[0][name]["sliced"]
    assert {error for what, error in errors.items() if what.startswith("first")} == {0.0}


@pytest.mark.parametrize("name", CASES)
def test_the_last_layer_is_the_first_columns(found: tuple[Found, Found], name: str) -> None:
    first, second = (side[name] for side in found)
    assert set(first["names"]) - set(second["names"]) == {"fc8.weight", "fc8.bias"}
    assert first["logits"] == [CASES[name]["rows"], CLASSES]
    assert second["logits"] == second["features"] == [CASES[name]["rows"], 0]
    assert second["wholes"] == [0, 0, 0, 0]


def halves(case: dict[str, Any]) -> tuple[list[int], int]:
    """Numbers of each half that goes both ways, and of the one to the first column, for one row."""
    model = case["model"]
    without = model.get("without", [])
    middle, last = SIDES[case["crop"]]
    maps = {"conv2": 128, "conv3": 192, "conv4": 192, "conv5": 128}
    kept = [name for name in maps if name not in without]
    both = [128 * middle**2] if "conv3" not in without else []
    flat = maps[kept[-1]] * last**2
    if model.get("sixth_layer"):
        both.append(flat)
        flat = 128 * last**2
    for name in ("fc6", "fc7"):
        if name not in without:
            both.append(flat)
            flat = 2048
    return both, flat


@pytest.mark.parametrize("name", CASES)
def test_only_halves_travel_and_each_exchange_has_one_adjoint(found: tuple[Found, Found], name: str) -> None:
    case = CASES[name]
    both, to_first = halves(case)
    # The pass for the features is one more, without a backward pass and in float32 where training is bfloat16.
    size, test_size = (2, 4) if case["bf16"] else (8, 8)
    forward = case["rows"] * (case["steps"] * size + test_size)
    backward = case["rows"] * case["steps"] * size
    exchanges = len(both) + 1
    expected = {"exchanges": exchanges * (case["steps"] + 1), "adjoints": exchanges * case["steps"]}
    assert found[0][name]["traffic"] == {
        **expected,
        "forward_bytes": forward * sum(both),
        "backward_bytes": backward * (sum(both) + to_first),
    }
    assert found[1][name]["traffic"] == {
        **expected,
        "forward_bytes": forward * (sum(both) + to_first),
        "backward_bytes": backward * sum(both),
    }


def test_the_papers_network_exchanges_four_times_and_the_sixth_layer_once_more(found: tuple[Found, Found]) -> None:
    for name, exchanges in (("paper", 4), ("sixth-layer", 5)):
        assert found[0][name]["traffic"]["adjoints"] == found[1][name]["traffic"]["adjoints"] == exchanges * 2


@given(rows=st.integers(1, 9), rest=st.lists(st.integers(1, 4), max_size=3), layer=st.sampled_from(["conv2", "fc8"]))
def test_slices_make_up_the_whole(rows: int, rest: list[int], layer: str) -> None:
    tensor = torch.randn(2 * rows, *rest)
    parts = [slice_of(f"{layer}.weight", tensor, Column(index)) for index in (0, 1)]
    assert torch.equal(torch.cat(parts), tensor)
    assert torch.equal(slice_of(f"{layer}.weight", tensor, None), tensor)
    assert whole_shape(layer, parts[0], Column(0)) == whole_shape(layer, tensor, None) == tensor.shape


@pytest.mark.parametrize("model", [{"name": "cifar"}, {"columns": 1}])
def test_a_network_of_one_column_is_not_split(model: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"cannot be split; set .*parallel"):
        build_network(ModelSettings.model_validate(model), classes=3, crop=67, seed=0, column=Column(0))
