"""A disk that is really full: a small tmpfs, where the machine lets us mount one."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage.errors import CheckpointError
from fourstage.store.prepare import prepare
from tests.checkpoints.attempts import OLD, begin
from tests.checkpoints.written import found, leftovers, write
from tests.pipeline.harness import CROP, SIZE, complete_run, losses, start_run, write_photographs

ARGUMENTS = [
    "--recipe", "cifar-relu", "--device", "cpu", "--augmenters", "1", "--max-steps", "12", "--set",
    f"augmenter.crop={CROP}", "--set", "batch_size=8", "--set", "train.checkpoint_seconds=0.01",
]  # fmt: skip


def mount(folder: Path, size: int, *options: str) -> bool:
    """Whether a disk of ``size`` KiB lies there now."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None:
        return False
    settings = ",".join([f"size={size}k", *options])
    command = ["mount", "-t", "tmpfs", "-o", settings, "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    if not mount(folder, 64):
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("free", range(0, 17, 2))
def test_a_checkpoint_that_does_not_fit_is_named_and_the_old_one_stays(disk: Path, free: int) -> None:
    """free: KiB; what is written needs 16 of them, in pages of 4."""
    run = begin(disk / "run")
    subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filling'}", "bs=1k"], capture_output=True, check=False)
    filling = (disk / "filling").stat().st_size
    with (disk / "filling").open("r+b") as file:
        file.truncate(filling - free * 1024)
    with pytest.raises(CheckpointError, match=r"step 2 in .*No space left on device; free space there"):
        write(run, 2, size=32)
    assert found(run) == OLD
    assert leftovers(run) == []
    (disk / "filling").unlink()
    write(run, 2)
    assert found(run) == "step 2"


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_the_words_and_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 15)
    prepare(tmp_path / "train", tmp_path / "store", size=SIZE, workers=1)
    undisturbed = complete_run(tmp_path / "store", tmp_path / "other", *ARGUMENTS)
    # Room for one checkpoint of 1.2 MB, and half of a second.
    assert mount(disk, 1800, "remount")
    code, _, error = start_run(tmp_path / "store", disk / "run", *ARGUMENTS).finish()
    assert code == 1, error
    # Of the checkpoint, or of a file that was to be written a moment before.
    assert f"cannot write {disk}" in error or "cannot write a checkpoint of step" in error
    assert "No space left on device; free space there" in error
    assert "Traceback" not in error
    kept = [path.name for path in (disk / "run" / "checkpoints").iterdir()]
    assert len(kept) == 1
    assert mount(disk, 64 << 10, "remount")
    summary = complete_run(tmp_path / "store", disk / "run", *ARGUMENTS, "--resume")
    assert summary["receipt"]["digest"] == undisturbed["receipt"]["digest"]
    assert losses(disk / "run") == losses(tmp_path / "other")
