"""A run against a plain loop in one process: the same losses to the last bit, and a net that learns."""

import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from fourstage.demo import write_photographs as write_demo_photographs
from fourstage.resolve import load_settings
from fourstage.settings import Settings
from fourstage.store import Store, open_store
from fourstage.store.prepare import prepare
from fourstage.trainer.layers import DropoutKey
from fourstage.trainer.networks import build_network
from fourstage.trainer.optimizer import MomentumSGD
from tests.pipeline.harness import CROP, complete_run, fourstage, lines, losses, start_run, write_photographs


def plain_losses(store: Store, settings: Settings, steps: int, without: Collection[int] = ()) -> list[float]:
    """The paper's recipe without any pipeline: one image after another, the random numbers as specified.

    without: samples that are not there
    """
    torch.set_num_threads(settings.train.threads)
    split, size, crop, batch_size = store.split("train"), store.size, settings.augmenter.crop, settings.batch_size
    network = build_network(settings.model, classes=len(store.classes), crop=crop, seed=settings.seed)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rule = MomentumSGD(network.named_parameters(), momentum=0.9, weight_decay=settings.train.weight_decay)
    statistics = store.statistics
    table = [round(z * 2**20) / 2**20 for z in map(_normal_quantile, range(4096))]
    found = []
    for step in range(steps):
        epoch, first = divmod(step * batch_size, len(split))
        ranks = np.random.Philox(key=[settings.seed, epoch], counter=[0, 0, 0, 1]).random_raw(-(-len(split) // 4) * 4)
        order = np.argsort(ranks[: len(split)], kind="stable")
        images = []
        positions = [place for place in range(first, first + batch_size) if order[place] not in without]
        for position in positions:
            record = split.records[order[position]]
            with split.shards[int(record["shard"])].open("rb") as shard:
                shard.seek(int(record["offset"]))
                pixels = simplejpeg.decode_jpeg(shard.read(int(record["size"])), "RGB")
            words = np.random.Philox(key=[settings.seed, epoch], counter=[position, 0, 0, 0]).random_raw(4).tolist()
            top = (words[0] & 0xFFFFFFFF) * (size - crop) >> 32
            left = (words[0] >> 32 & 0x7FFFFFFF) * (size - crop) >> 31
            part = (slice(top, top + crop), slice(left, left + crop))
            crop_pixels, mean = pixels[part], statistics.mean[part]
            if words[0] >> 63:
                crop_pixels, mean = crop_pixels[:, ::-1], mean[:, ::-1]
            alphas = [table[word >> 52] * settings.colour_std for word in words[1:]]
            terms = [
                alpha * (statistics.eigenvectors[:, i] * (statistics.eigenvalues[i] / 255.0))
                for i, alpha in enumerate(alphas)
            ]
            shift = (terms[0] + terms[1] + terms[2]).astype(np.float32)
            images.append((crop_pixels.astype(np.float32) - mean) + shift)
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        indices = order[positions]
        labels = torch.from_numpy(split.labels(indices).astype(np.int64))
        logits = network(batch, DropoutKey(settings.seed, step))
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / len(positions)
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step(settings.train.learning_rate)
        found.append(float(loss.detach()))
    return found


def _normal_quantile(entry: int) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((entry + 0.5) / 4096)


def test_losses_equal_a_plain_loop_to_the_last_bit(store: Path, tmp_path: Path) -> None:
    wanted = ["seed=5", f"augmenter.crop={CROP}", "batch_size=24", "colour_std=0.1", "model.response_norm=true"]
    flags = [part for value in wanted for part in ("--set", value)]
    summary = complete_run(store, tmp_path / "run", "--recipe", "cifar-augmented", "--max-steps", "30", *flags)
    settings = load_settings("cifar-augmented", overrides=wanted, environment={})
    assert losses(tmp_path / "run") == plain_losses(open_store(store), settings, 30)
    assert summary["steps"] == 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_alexnet_losses_equal_a_plain_loop_to_the_last_bit(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    write_demo_photographs(photographs, seed=1, train_per_class=64, validation_per_class=1)
    prepare(photographs / "train", tmp_path / "store", size=256)
    wanted = ["batch_size=32"]
    summary = complete_run(
        tmp_path / "store", tmp_path / "run", "--recipe", "alexnet", "--max-steps", "20", "--set", wanted[0],
        "--augmenters", "2",
    )  # fmt: skip
    settings = load_settings("alexnet", overrides=wanted, environment={})
    assert losses(tmp_path / "run") == plain_losses(open_store(tmp_path / "store"), settings, 20)
    assert (summary["steps"], summary["images"]) == (20, 640)
    assert [line["samples"] for line in lines(tmp_path / "run" / "receipt.jsonl")] == [640]


def test_the_four_layer_net_learns_64_photographs_by_heart(tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 22)
    (tmp_path / "train" / "blot" / "000.jpg").unlink()
    (tmp_path / "train" / "dash" / "000.jpg").unlink()
    prepare(tmp_path / "train", tmp_path / "store", size=CROP, workers=1)
    summary = complete_run(
        tmp_path / "store", tmp_path / "run", "--recipe", "cifar-relu", "--epochs", "40", "--set", "batch_size=16",
        "--set", f"augmenter.crop={CROP}",
    )  # fmt: skip
    assert summary["final"]["split"] == "train"
    assert summary["final"]["top1_error"] == 0.0
    assert summary["final"]["top5_error"] is None
    assert len(lines(tmp_path / "run" / "epochs.jsonl")) == 40


def test_validation_errors_are_those_of_central_crops(store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    complete_run(
        store, run_dir, "--recipe", "cifar-augmented", "--epochs", "1", "--set", "batch_size=16", "--set",
        f"augmenter.crop={CROP}",
    )  # fmt: skip
    from safetensors.torch import load_file

    opened = open_store(store)
    network = build_network(load_settings("cifar-augmented").model, classes=3, crop=CROP, seed=0)
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    network.load_state_dict(load_file(checkpoint / "model.safetensors"))
    network.eval()
    split, corner = opened.split("val"), (opened.size - CROP) // 2
    part = (slice(corner, corner + CROP), slice(corner, corner + CROP))
    images = []
    for record in split.records:
        with split.shards[int(record["shard"])].open("rb") as shard:
            shard.seek(int(record["offset"]))
            pixels = cv2.imdecode(np.frombuffer(shard.read(int(record["size"])), np.uint8), cv2.IMREAD_COLOR)
        images.append(cv2.cvtColor(np.asarray(pixels), cv2.COLOR_BGR2RGB)[part] - opened.statistics.mean[part])
    with torch.no_grad():
        best = network(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), None).argmax(1).numpy()
    wrong = float((best != split.labels(np.arange(len(split)))).mean())
    assert json.loads((run_dir / "summary.json").read_text())["final"]["top1_error"] == pytest.approx(wrong)


def test_a_rate_set_by_hand_holds_from_the_next_step_on_and_through_a_resume(store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--recipe", "cifar-augmented", "--epochs", "2", "--augmenters", "1", "--set", "batch_size=16",
                 "--set", f"augmenter.crop={CROP}"]  # fmt: skip
    run = start_run(store, run_dir, *arguments, "--max-steps", "16", "--set", "augmenter.batch_seconds=0.2")
    run.reach(2)
    told = fourstage("rate", "0.0005", "--run-dir", str(run_dir))
    assert told.returncode == 0, told.stderr
    assert run.finish()[0] == 0
    rates = [line["learning_rate"] for line in lines(run_dir / "steps.jsonl")]
    assert sorted(set(rates)) == [0.0005, 0.002]
    assert rates == sorted(rates, reverse=True)
    assert "learning rate set by hand to 0.0005" in (run_dir / "logs" / "trainer.log").read_text()
    complete_run(store, run_dir, *arguments, "--max-steps", "18", "--resume")
    assert [line["learning_rate"] for line in lines(run_dir / "steps.jsonl")[16:]] == [0.0005, 0.0005]


def test_the_rate_falls_when_the_validation_error_stops_improving(store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    complete_run(
        store, run_dir, "--recipe", "cifar-augmented", "--epochs", "5", "--set", "train.learning_rate=0.0", "--set",
        "train.drop_epochs=[]", "--set", "train.schedule=plateau", "--set", "train.patience=1", "--set",
        "batch_size=64", "--set", f"augmenter.crop={CROP}", "--set", "train.bias_rate=0.0",
    )  # fmt: skip
    (checkpoint,) = sorted((run_dir / "checkpoints").iterdir())[-1:]
    state = json.loads((checkpoint / "state.json").read_text())["state"]["schedule"]
    assert state["drops"] == [2, 3, 4], "a net that learns nothing is on a plateau from its second epoch on"
