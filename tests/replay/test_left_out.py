"""Batches that were trained on without a sample, made again and compared: the sample is named, and why."""

import json
import shutil
from pathlib import Path

import pytest

from fourstage import rundir
from fourstage.order import permutation
from fourstage.replay import trial
from fourstage.store import open_store
from tests.decoding.stores import with_a_truncated_image
from tests.pipeline.harness import CROP, complete_run, fourstage, lines
from tests.replay.conftest import DRAIN, RunOf
from tests.streams import BATCH, SAMPLES, SEED

STEP, ROW = 2, 3
POSITION = (STEP - 1) * BATCH + ROW
SKIP = ["--set", "on_corrupt=skip", "--set", "corrupt_share=0.1"]


@pytest.fixture(scope="module")
def damaged(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with one image that cannot be decoded, in row 3 of step 2."""
    path = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(store, path)
    with_a_truncated_image(path, int(permutation(SEED, 0, SAMPLES)[POSITION]))
    return path


@pytest.fixture(scope="module")
def key(store: Path) -> str:
    return open_store(store).split("train").keys(permutation(SEED, 0, SAMPLES)[[POSITION]])[0]


def run_over(store: Path, run_dir: Path, *arguments: str) -> Path:
    complete_run(
        store, run_dir, "--seed", str(SEED), "--epochs", "2", "--augmenters", "1", "--set", f"augmenter.crop={CROP}",
        "--set", f"batch_size={BATCH}", *DRAIN, *SKIP, *arguments,
    )  # fmt: skip
    return run_dir


@pytest.fixture(scope="module", params=["keys", pytest.param("pixels", marks=pytest.mark.slow)])
def skipped(damaged: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run that has left it out."""
    return run_over(damaged, tmp_path_factory.mktemp("skipped") / "run", "--receipt", request.param)


@pytest.mark.slow
def test_every_step_is_made_again_to_the_same_digest(skipped: Path) -> None:
    for step in (1, STEP, 8):
        done = fourstage("batch", str(step), "--run-dir", str(skipped), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["verdict"] == "matches"
        assert [sample["row"] for sample in said["samples"] if sample["left_out"]] == ([ROW] if step == STEP else [])


def test_the_sample_is_shown_with_the_reason(skipped: Path, key: str) -> None:
    done = fourstage("batch", str(STEP), "--run-dir", str(skipped))
    assert done.returncode == 0, done.stderr
    assert f"left out: row {ROW}, {key!r} cannot be decoded: Premature end of JPEG file" in done.stdout
    assert "matches the receipt" in done.stdout


def test_a_step_without_a_sample_is_the_same_where_the_run_went_on_without_leaving_any_out(
    skipped: Path, tmp_path: Path
) -> None:
    resumed = shutil.copytree(skipped, tmp_path / "run")
    text = (resumed / "settings.toml").read_text()
    for skipping, failing in (('on_corrupt = "skip"', 'on_corrupt = "fail"'), ("corrupt_share = 0.1\n", "")):
        assert text.count(skipping) == 1
        text = text.replace(skipping, failing)
    (resumed / "settings.toml").write_text(text)
    done = fourstage("batch", str(STEP), "--run-dir", str(resumed))
    assert done.returncode == 0, done.stderr
    assert f"left out: row {ROW}" in done.stdout
    assert "matches the receipt" in done.stdout


def test_a_sample_that_was_left_out_and_can_be_decoded_here_is_a_difference(
    skipped: Path, store: Path, tmp_path: Path
) -> None:
    """As if another build of the decoder took what this one does not: the run says of itself that it had this store."""
    moved = shutil.copytree(skipped, tmp_path / "run")
    shutil.rmtree(moved / "checkpoints")
    origin = rundir.read_json(moved / rundir.ORIGIN)
    rundir.write_json(moved / rundir.ORIGIN, origin | {"fingerprint": open_store(store).fingerprint})
    done = fourstage("batch", str(STEP), "--run-dir", str(moved), "--store", str(store))
    assert done.returncode == 1
    assert "differs from the receipt" in done.stdout


def test_two_runs_of_which_one_left_it_out_differ_in_that(
    skipped: Path, run_of: RunOf, store: Path, damaged: Path, key: str
) -> None:
    receipt = "pixels" if (skipped / "samples.u32").exists() else "keys"
    whole = run_of(*DRAIN, "--receipt", receipt)
    done = fourstage(
        "receipt", "diff", str(skipped), str(whole), "--store", str(damaged), "--store", str(store), "--json"
    )
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    first = said["first"]
    assert (first["step"], first["row"], first["differing"], first["what"]) == (STEP, ROW, 1, ["left out"])
    assert [side["sample"]["key"] for side in first["sides"]] == [key, key]
    assert first["sides"][0]["sample"]["left_out"].startswith("Premature end")
    assert first["sides"][1]["sample"]["left_out"] == ""


def test_without_a_store_the_key_is_still_named(skipped: Path, run_of: RunOf, key: str, tmp_path: Path) -> None:
    receipt = "pixels" if (skipped / "samples.u32").exists() else "keys"
    runs = []
    for name, run in (("a", skipped), ("b", run_of(*DRAIN, "--receipt", receipt))):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "run.json").unlink()
        runs.append(str(tmp_path / name))
    done = fourstage("receipt", "diff", *runs)
    assert done.returncode == 1
    assert f"was trained in step {STEP} without {key!r}" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_runs_that_left_out_the_same_are_equal(skipped: Path, damaged: Path, tmp_path: Path) -> None:
    receipt = "pixels" if (skipped / "samples.u32").exists() else "keys"
    other = run_over(damaged, tmp_path / "run", "--receipt", receipt, "--set", "decode=device")
    assert fourstage("receipt", "diff", str(skipped), str(other)).returncode == 0
    assert [line["digest"] for line in lines(skipped / "steps.jsonl")] == [
        line["digest"] for line in lines(other / "steps.jsonl")
    ]


def test_an_image_that_kills_who_decodes_it_is_named_and_not_died_of(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = b"no JPEG"
    assert "JPEG" in trial.why_not(jpeg, decoder="simplejpeg", size=40)
    monkeypatch.setattr(trial, "_COMMAND", ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"])
    assert trial.why_not(jpeg, decoder="simplejpeg", size=40) == "it ends the process that decodes it (SIGSEGV)"
