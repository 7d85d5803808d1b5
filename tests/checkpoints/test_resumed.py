"""A real trainer killed at a system call while it writes checkpoints: digest and losses of the undisturbed run."""

import signal
import subprocess
from pathlib import Path

import pytest

from fourstage.store.prepare import prepare
from tests.checkpoints.attempts import strace_works
from tests.pipeline.harness import CROP, SIZE, complete_run, losses, start_run, write_photographs

ARGUMENTS = [
    "--recipe", "cifar-relu", "--device", "cpu", "--augmenters", "1", "--epochs", "8", "--receipt", "pixels", "--set",
    f"augmenter.crop={CROP}", "--set", "batch_size=6", "--set", "train.checkpoint_seconds=0.01", "--set",
    "augmenter.batch_seconds=0.1",
]  # fmt: skip
KILLED = [
    ("mkdir", 1), ("fsync", 1), ("fsync", 4), ("fsync", 7), ("fsync", 9), ("rename", 1), ("rename", 2), ("rename", 3),
    ("unlinkat", 1), ("unlinkat", 3), ("write", 5), ("openat", 9),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", 10)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float], bytes]:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    summary = complete_run(store, run_dir, *ARGUMENTS)
    return summary["receipt"]["digest"], losses(run_dir), (run_dir / "samples.u32").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(bool(strace_works()), reason=strace_works())
@pytest.mark.parametrize(("call", "number"), KILLED)
def test_a_trainer_killed_at_a_system_call_goes_on_from_a_whole_checkpoint(
    store: Path, tmp_path: Path, undisturbed: tuple[str, list[float], bytes], call: str, number: int
) -> None:
    run = start_run(store, tmp_path / "run", *ARGUMENTS)
    run.reach(2)
    trainer = run.processes()["trainer"]
    inject = f"inject={call}:signal=KILL:when={number}"
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(trainer)], stderr=subprocess.DEVNULL
    )
    code, _, error = run.finish()
    tracer.wait(30)
    assert code == 0, error
    assert f"was killed by {signal.SIGKILL.name}" in error
    digest, expected, samples = undisturbed
    assert '"state": "done"' in (run.run_dir / "summary.json").read_text()
    assert f'"digest": "{digest}"' in (run.run_dir / "summary.json").read_text()
    assert losses(run.run_dir) == expected
    assert (run.run_dir / "samples.u32").read_bytes() == samples
    left = [*run.run_dir.glob(".*"), *run.run_dir.glob("checkpoints/.partial-*")]
    assert not left
