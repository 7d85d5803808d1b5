"""``fourstage evaluate`` against the same views computed one by one, and against training's own validation."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from fourstage.errors import CheckpointError, FourstageError, SettingsError, StoreError
from fourstage.evaluation import load_trained
from fourstage.evaluation.evaluate import Evaluation, evaluate, grew_from
from fourstage.evaluation.predict import log_mean
from fourstage.evaluation.written import check_folder, table, write
from fourstage.resolve import load_settings, write_settings
from fourstage.store import open_store
from fourstage.store.manifest import read_manifest
from fourstage.store.prepare import prepare
from fourstage.store.progress import Progress
from fourstage.trainer import checkpoint
from fourstage.trainer.networks import build_network
from fourstage.trainer.rates import ErrorRates
from tests.evaluation.conftest import Examined
from tests.pipeline.harness import SIZE, fourstage, write_photographs
from tests.streams import Expected

FILES = ("classes.csv", "confusion.csv", "evaluation.json", "predictions.csv")


def evaluated(store: Path, runs: Sequence[Path], folder: Path, *, views: int, augmenters: int = 1) -> Evaluation:
    """Evaluate the split ``val`` in this process and write the files."""
    trained = [load_trained(run, "cpu") for run in runs]
    moments: list[Progress] = []
    evaluation = evaluate(trained, store, split="val", views=views, augmenters=augmenters, progress=moments.append)
    samples = evaluation.rates.samples
    assert (moments[0].done, moments[-1].done, moments[-1].total) == (0, samples, samples)
    write(evaluation, folder)
    return evaluation


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def probabilities(store: Path, run: Path, views: int) -> NDArray[np.float64]:
    """(samples, classes): each view cut, finished and shown alone, in the order of the keys."""
    expected = Expected.of(store, "val")
    settings = load_settings(str(run / "settings.toml"), environment={})
    crop, mean = settings.augmenter.crop, expected.store.statistics.mean
    network = build_network(settings.model, classes=len(expected.store.classes), crop=crop, seed=0)
    (last,) = run.glob("checkpoints/step-*")
    network.load_state_dict(load_file(last / "model.safetensors"))
    far, middle = SIZE - crop, (SIZE - crop) // 2
    places = [(middle, middle)] if views == 1 else [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    centre = mean[middle : middle + crop, middle : middle + crop]
    said = []
    for top, left in places:
        part = (slice(top, top + crop), slice(left, left + crop))
        for step in (1,) if views == 1 else (1, -1):
            own = centre if settings.mean_place == "centre" else mean[part][:, ::step]
            finished = np.stack([expected.images[key][part][:, ::step] - own for key in sorted(expected.images)])
            with torch.no_grad():
                logits = network.eval()(torch.from_numpy(finished).permute(0, 3, 1, 2), None)
            said.append(logits.double().softmax(1).numpy())
    mean_of_all: NDArray[np.float64] = np.mean(said, axis=0)
    return mean_of_all


def figures(shares: NDArray[np.float64], labels: NDArray[np.integer]) -> dict[str, float]:
    """Loss and errors of probabilities."""
    ranks = np.argsort(-shares, axis=1, kind="stable")
    return {
        "samples": len(labels),
        "loss": float(-np.log(shares[np.arange(len(labels)), labels]).mean()),
        "top1_error": float((ranks[:, 0] != labels).mean()),
        "top5_error": float((ranks[:, :5] != labels[:, None]).all(1).mean()),
    }


def labels_of(store: Path) -> NDArray[np.int32]:
    split = open_store(store).split("val")
    return split.labels(np.arange(len(split)))


def assert_figures(found: ErrorRates, wanted: dict[str, float]) -> None:
    assert asdict(found) == pytest.approx(wanted, rel=1e-5)


def untrained(run: Path, *, classes: int, fingerprint: str, bias: float = 0.0) -> Path:
    """A run directory with a checkpoint of first weights; bias: of the first class."""
    settings = load_settings("cifar-relu", environment={})
    run.mkdir()
    (run / "settings.toml").write_text(write_settings(settings))
    network = build_network(settings.model, classes=classes, crop=settings.augmenter.crop, seed=0)
    model = {name: tensor.detach() for name, tensor in network.named_parameters()}
    model["fc4.bias"][0] = bias
    state = checkpoint.CheckpointState(
        step=1, next_seq=1, epoch=0, epoch_samples=1, receipt={}, store_fingerprint=fingerprint, identity="",
        settings={},
    )  # fmt: skip
    checkpoint.save(run, state, model=model, optimizer={}, keep=1)
    return run


def test_one_view_gives_what_training_said_of_its_last_checkpoint(examined: Examined, tmp_path: Path) -> None:
    final = json.loads((examined.first / "summary.json").read_text())["final"]
    rates = evaluated(examined.store, [examined.first], tmp_path, views=1).rates
    assert final["split"] == "val"
    assert (rates.top1_error, rates.top5_error) == (final["top1_error"], final["top5_error"])
    assert rates.loss == pytest.approx(final["loss"], rel=1e-6)
    assert_figures(rates, figures(probabilities(examined.store, examined.first, 1), labels_of(examined.store)))


def test_ten_views_and_two_runs_are_the_means_of_all_their_softmax(examined: Examined, tmp_path: Path) -> None:
    both = [examined.first, examined.second]
    evaluation = evaluated(examined.store, both, tmp_path / "one", views=10)
    labels, classes = labels_of(examined.store), open_store(examined.store).classes
    alone = [probabilities(examined.store, run, 10) for run in both]
    together = np.mean(alone, axis=0)
    assert_figures(evaluation.rates, figures(together, labels))
    for run, shares in zip(evaluation.runs, alone, strict=True):
        assert_figures(run.rates, figures(shares, labels))
    predictions = rows(tmp_path / "one" / "predictions.csv")
    assert [row["key"] for row in predictions] == sorted(Expected.of(examined.store, "val").images)
    assert [row["label"] for row in predictions] == [classes[label] for label in labels]
    for row, shares in zip(predictions, together, strict=True):
        best = np.argsort(-shares, kind="stable")[:5]
        assert [row[f"class_{rank}"] for rank in range(1, 6)] == [classes[number] for number in best]
        assert [float(row[f"probability_{rank}"]) for rank in range(1, 6)] == pytest.approx(shares[best], rel=1e-4)

    evaluated(examined.store, both, tmp_path / "three", views=10, augmenters=3)
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_the_files_agree_with_each_other_and_the_table_with_them(examined: Examined, tmp_path: Path) -> None:
    runs = [examined.first, examined.second]
    evaluation = evaluated(examined.store, runs, tmp_path, views=1)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document["top1_interval"][0] < document["top1_error"] < document["top1_interval"][1]
    assert [run["settings"]["augmenter"]["crop"] for run in document["runs"]] == [32, 27]
    assert [run["step"] for run in document["runs"]] == [8, 10]
    confusion = [[int(value) for value in list(row.values())[1:]] for row in rows(tmp_path / "confusion.csv")]
    classes = rows(tmp_path / "classes.csv")
    assert [sum(row) for row in confusion] == [int(row["samples"]) for row in classes] == [4] * 10
    wrong = sum(sum(row) - row[number] for number, row in enumerate(confusion))
    assert wrong == sum(int(row["top1_errors"]) for row in classes) == round(document["top1_error"] * 40)
    assert sum(int(row["top5_errors"]) for row in classes) == round(document["top5_error"] * 40)
    console = Console(file=StringIO(), width=200)
    with console.capture() as shown:
        console.print(table(evaluation))
    assert "40 images, one view; 95 % intervals (Wilson)" in shown.get()
    for rates in (document, *document["runs"]):
        assert f"{rates['top1_error']:.2%} ({100 * rates['top1_interval'][0]:.2f} to" in shown.get()


def test_the_command_prints_the_object_that_it_writes_into_the_run(examined: Examined, tmp_path: Path) -> None:
    run = Path(shutil.copytree(examined.first, tmp_path / "run"))
    done = fourstage(
        "evaluate", "--run-dir", str(run), "--store", str(examined.store), "--views", "1", "--json", seconds=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == list(FILES)


def test_below_six_classes_there_is_no_top_5_and_another_store_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photographs(tmp_path, "val", 4)
    prepare(tmp_path / "val", tmp_path / "store", split="train", size=SIZE, workers=1)
    prepare(tmp_path / "val", tmp_path / "store", split="val", size=SIZE, workers=1)
    run = untrained(tmp_path / "run", classes=3, fingerprint="0" * 64)
    with caplog.at_level("WARNING"):
        evaluation = evaluated(tmp_path / "store", [run], tmp_path / "out", views=1)
    assert not evaluation.runs[0].same_store
    assert "was trained on another store (000000000000)" in caplog.text
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (document["samples"], document["top5_error"], document["top5_interval"]) == (12, None, None)
    assert [row["top5_errors"] for row in rows(tmp_path / "out" / "classes.csv")] == ["", "", ""]


def test_a_network_that_answers_with_no_numbers_is_refused(examined: Examined, tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", classes=10, fingerprint="0" * 64, bias=np.nan)
    with pytest.raises(FourstageError, match=f"the outputs of {run} are no numbers"):
        evaluated(examined.store, [run, examined.first], tmp_path, views=1)


def test_a_store_is_the_same_before_and_after_a_further_split(examined: Examined) -> None:
    manifest = read_manifest(examined.store)
    train_only = manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}})
    assert grew_from(manifest, manifest.fingerprint)
    assert grew_from(manifest, train_only.fingerprint)
    assert not grew_from(train_only, manifest.fingerprint)


def test_the_mean_of_one_networks_probabilities_is_its_own_to_the_last_bit() -> None:
    logs = torch.randn(50, 7, dtype=torch.float64).log_softmax(1)
    assert torch.equal(log_mean([logs]), logs)
    far = torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    torch.testing.assert_close(log_mean([far, far]), far)


def test_stores_and_folders_that_do_not_fit_are_refused_before_any_process_starts(
    examined: Examined, tmp_path: Path
) -> None:
    run = load_trained(examined.first, "cpu")

    def refused(error: type[FourstageError], words: str, store: Path, split: str = "train", views: int = 10) -> None:
        with pytest.raises(error, match=words):
            evaluate([run], store, split=split, views=views, augmenters=1, progress=never)

    def never(_: Progress) -> None:
        raise AssertionError("something was read")

    refused(SettingsError, "--views 5", examined.store, views=5)
    refused(StoreError, "has no split 'test', only train, val", examined.store, split="test")
    write_photographs(tmp_path, "train", 1)
    prepare(tmp_path / "train", tmp_path / "three", size=SIZE, workers=1)
    refused(CheckpointError, r"was trained on 10 classes, the store .* has 3", tmp_path / "three")
    prepare(examined.store.parent / "val", tmp_path / "small", size=24, workers=1)
    refused(SettingsError, "sees 32x32 pixels, the store's images have 24x24", tmp_path / "small")
    with pytest.raises(SettingsError, match="--out /dev/null/here: /dev/null is no folder"):
        check_folder(Path("/dev/null/here"))


@pytest.mark.parametrize(("kind", "code", "words"), [("no run", 2, "holds no run"), ("empty", 1, "no checkpoint")])
def test_the_command_fails_in_one_line(examined: Examined, tmp_path: Path, kind: str, code: int, words: str) -> None:
    if kind == "empty":
        shutil.copy(examined.first / "settings.toml", tmp_path)
    done = fourstage("evaluate", "--run-dir", str(tmp_path), "--store", str(examined.store))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert words in done.stderr
    assert not (tmp_path / "evaluation").exists()
