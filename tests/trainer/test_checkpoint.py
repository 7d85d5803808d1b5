"""Checkpoints on a real disk: whole or passed over, also when their writer is killed."""

import json
import logging
import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourstage.errors import CheckpointError
from fourstage.settings import ModelSettings
from fourstage.trainer.checkpoint import Checkpoint, CheckpointState, latest, load, read, save
from fourstage.trainer.evaluate import mean_cross_entropy
from fourstage.trainer.networks import Network, build_network
from fourstage.trainer.optimizer import MomentumSGD

STATE = CheckpointState(
    step=7,
    next_seq=7,
    epoch=1,
    epoch_samples=384,
    receipt={"digest": "00ff", "delivered": 896, "last": None, "share": 0.5, "whole": True},
    store_fingerprint="store-a",
    identity="901d",
    settings={"batch_size": 128, "model": {"name": "cifar"}, "drops": [25, 51]},
)


def tensors(value: float, size: int = 8) -> dict[str, Tensor]:
    kernels = torch.full((2, 3, size, size), float(value)).contiguous(memory_format=torch.channels_last)
    return {"conv1.weight": kernels, "conv1.bias": torch.full((2,), float(value))}


def write(run: Path, step: int, *, keep: int = 2, size: int = 8) -> Path:
    state = replace(STATE, step=step, next_seq=step)
    return save(run, state, model=tensors(step, size), optimizer=tensors(-step, size), keep=keep)


def newest(run: Path) -> Checkpoint:
    checkpoint = latest(run)
    assert checkpoint is not None
    return checkpoint


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def write_for_ever(run: Path) -> None:
    step = newest(run).state.step
    while True:
        step += 1
        write(run, step, size=64)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert path == tmp_path / "checkpoints" / "step-00000007"
    checkpoint = newest(tmp_path)
    assert checkpoint == Checkpoint(path, STATE)
    model, optimizer = tensors(0.0), tensors(0.0)
    load(
        checkpoint,
        model=model,
        optimizer=optimizer,
        store_fingerprint="store-a",
        identity="901d",
        settings={"batch_size": 128, "drops": (25, 51)},
    )
    for name, value in tensors(7.0).items():
        assert torch.equal(model[name], value)
        assert torch.equal(optimizer[name], -value)


def test_a_run_without_tensors_has_checkpoints_too(tmp_path: Path) -> None:
    save(tmp_path, STATE, model={}, optimizer={}, keep=2)
    load(newest(tmp_path), model={}, optimizer={})
    assert newest(tmp_path).state == STATE


def test_a_resumed_run_has_the_same_weights_to_the_last_bit(tmp_path: Path) -> None:
    images = torch.randint(-128, 128, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()

    def begin(seed: int) -> tuple[Network, MomentumSGD]:
        network = build_network(ModelSettings(name="cifar"), classes=4, crop=16, seed=seed)
        return network, MomentumSGD(network.named_parameters(), momentum=0.9, weight_decay=0.0005)

    def train(network: Network, optimizer: MomentumSGD, rates: list[float]) -> None:
        for rate in rates:
            network.zero_grad()
            loss = mean_cross_entropy(network(images), torch.arange(8) % 4, batch_size=8)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(rate)

    whole, rule = begin(0)
    train(whole, rule, [0.001, 0.001, 0.0001, 0.0001])
    network, optimizer = begin(0)
    train(network, optimizer, [0.001, 0.001])
    save(tmp_path, STATE, model=network.state_dict(), optimizer=optimizer.state, keep=1)
    network, optimizer = begin(1)
    load(newest(tmp_path), model=network.state_dict(), optimizer=optimizer.state)
    train(network, optimizer, [0.0001, 0.0001])
    for ours, expected in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None


def test_older_ones_go_and_a_killed_writers_remains_too(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, keep=2)
    (tmp_path / "checkpoints" / ".partial-step-00000004").mkdir()
    write(tmp_path, 5, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000005"]
    write(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step-00000006"]


def test_the_same_step_twice_replaces_nothing_in_place(tmp_path: Path) -> None:
    write(tmp_path, 7)
    assert write(tmp_path, 7).name == "step-00000007.1"
    assert write(tmp_path, 7).name == "step-00000007.2"
    assert names(tmp_path) == ["step-00000007.1", "step-00000007.2"]
    assert newest(tmp_path).path.name == "step-00000007.2"


def test_torn_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000002" / "optimizer.safetensors").unlink()
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [shorten, flip, Path.unlink])
def test_torn_ones_are_passed_over_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    write(tmp_path, 1)
    damage(write(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path).state.step == 1
    assert "step-00000002" in caplog.text


def test_only_torn_ones_are_an_error(tmp_path: Path) -> None:
    shorten(write(tmp_path, 1) / "model.safetensors")
    with pytest.raises(CheckpointError, match="step-00000001"):
        latest(tmp_path)


def test_another_format_is_not_taken_for_torn(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "state.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(CheckpointError, match="format 2"):
        latest(tmp_path)
    with pytest.raises(CheckpointError, match="format 2"):
        read(path)
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"store_fingerprint": "store-b"}, "store-b.*store-a"),
        ({"identity": "golden-b"}, "golden-b.*901d"),
        ({"settings": {"batch_size": 64}}, "batch_size is 64, it was 128"),
        ({"settings": {"seed": 1}}, "seed is 1, it was not set"),
        ({"model": {"conv1.bias": torch.zeros(2)}}, "conv1.weight is absent"),
        ({"model": {**tensors(0.0), "fc8.bias": torch.zeros(9)}}, "fc8.bias is float32 .9,., it was absent"),
        (
            {"model": {**tensors(0.0), "conv1.bias": torch.zeros(3)}},
            "conv1.bias is float32 .3,., it was float32",
        ),
        ({"optimizer": {}}, "conv1.bias is absent"),
    ],
)
def test_what_differs_is_named_and_nothing_is_copied(tmp_path: Path, given: dict[str, object], named: str) -> None:
    write(tmp_path, 7)
    model = tensors(0.0)
    with pytest.raises(CheckpointError, match=named):
        load(newest(tmp_path), **{"model": model, **given})  # type: ignore[arg-type]
    assert not any(tensor.any() for tensor in model.values())


def test_a_disk_that_refuses_is_an_error_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match="step 7") as refused:
        write(tmp_path, 7)
    assert refused.value.hint


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, replace(STATE, receipt={"share": float("nan")}), model={}, optimizer={}, keep=2)
    assert names(tmp_path) == ["step-00000001"]


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL at random moments of writing, over and over: the newest always loads and is of one piece."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fourstage.trainer.checkpoint", "pytest"])
    write(tmp_path, 1, size=64)
    moments, kills, before = random.Random(0), 0, 1
    end = time.monotonic() + 3.0
    while kills < 2 or time.monotonic() < end:
        writer = context.Process(target=write_for_ever, args=(tmp_path,))
        writer.start()
        while newest(tmp_path).state.step == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        writer.kill()
        kills += 1
        writer.join()
        writer.close()
        checkpoint = newest(tmp_path)
        assert checkpoint.state.step > before
        before = checkpoint.state.step
        model, optimizer = tensors(0.0, 64), tensors(0.0, 64)
        load(checkpoint, model=model, optimizer=optimizer)
        assert all((tensor == before).all() for tensor in model.values())
        assert all((tensor == -before).all() for tensor in optimizer.values())
    assert not caplog.records, "something torn had a checkpoint's name"
    write(tmp_path, before + 1)
    assert len(names(tmp_path)) == 2
