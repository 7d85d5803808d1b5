"""A run's network as others load it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fourstage.errors import CheckpointError, SettingsError
from fourstage.evaluation import load_trained
from fourstage.resolve import load_settings, write_settings
from fourstage.store import open_store
from tests.evaluation.conftest import Examined


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def test_it_is_the_last_checkpoints_network_in_test_mode(examined: Examined) -> None:
    trained = load_trained(examined.first, "cpu")
    (checkpoint,) = examined.first.glob("checkpoints/step-*")
    stored = load_file(checkpoint / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in trained.network.named_parameters()} == {
        name: tensor.tolist() for name, tensor in stored.items()
    }
    assert not trained.network.training
    assert (trained.step, trained.classes, trained.settings.augmenter.crop) == (8, 10, 32)
    assert trained.store_fingerprint == open_store(examined.store).fingerprint


def test_its_settings_are_the_runs_whatever_the_environment_says(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOURSTAGE_AUGMENTER__CROP", "20")
    assert load_trained(examined.first, "cpu").settings.augmenter.crop == 32


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpus_precisions_are_float32_on_a_cpu(examined: Examined, tmp_path: Path, precision: str) -> None:
    run = copy_of(examined.first, tmp_path)
    settings = load_settings(str(run / "settings.toml"), overrides=[f"train.precision={precision}"], environment={})
    (run / "settings.toml").write_text(write_settings(settings))
    images = torch.rand(3, 3, 32, 32)
    wanted = load_trained(examined.first, "cpu").log_probabilities(images)
    assert torch.equal(load_trained(run, "cpu").log_probabilities(images), wanted)


def test_probabilities_sum_to_one_and_are_float64(examined: Examined) -> None:
    logs = load_trained(examined.first, "cpu").log_probabilities(100 * torch.randn(3, 3, 32, 32))
    assert (logs.dtype, logs.shape) == (torch.float64, (3, 10))
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(3, dtype=torch.float64))


def test_what_holds_no_network_is_refused(examined: Examined, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{tmp_path} holds no run"):
        load_trained(tmp_path, "cpu")
    run = copy_of(examined.first, tmp_path)
    with pytest.raises(SettingsError, match=r"train\.device = 'tpu'"):
        load_trained(run, "tpu")
    for file in run.glob("checkpoints/*/model.safetensors"):
        file.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        load_trained(run, "cpu")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_trained(run, "cpu")
