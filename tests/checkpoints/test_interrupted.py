"""A checkpoint interrupted at each call of its writing is the old one or the new one: never neither, never a mixture.

``python -m tests.checkpoints`` is the long form: every system call, with counts.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage import rundir
from fourstage.trainer import saved
from tests.checkpoints import power
from tests.checkpoints.attempts import (
    NEW,
    OLD,
    Attempt,
    begin,
    ended,
    killed,
    powerless,
    refused,
    strace_works,
)
from tests.checkpoints.recorder import recorded, write_tree
from tests.checkpoints.written import found, write


def wrong(attempts: Iterator[Attempt]) -> list[Attempt]:
    """Those that went wrong; both outcomes must be among the others."""
    made = list(attempts)
    assert {OLD, NEW} <= {attempt.found for attempt in made}
    return [attempt for attempt in made if not attempt.is_right]


def test_a_writer_that_ends_at_any_call_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    assert wrong(ended(tmp_path)) == []


def test_a_disk_that_refuses_any_call_is_named_and_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    assert wrong(refused(tmp_path)) == []


def test_a_power_cut_at_any_moment_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    assert wrong(powerless(tmp_path)) == []


@pytest.mark.skipif(bool(strace_works()), reason=strace_works())
def test_a_writer_that_is_killed_before_any_change_of_the_disk_leaves_the_old_one_or_the_new_one(
    tmp_path: Path,
) -> None:
    calls = ("mkdir", "rename", "unlinkat", "rmdir", "fsync", "write")
    assert wrong(killed(tmp_path, calls)) == []


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints/.partial-step-00000002/model.safetensors", "checkpoints/.partial-step-00000002/state.json",
        "checkpoints/.partial-step-00000002", "checkpoints",
    ],
)  # fmt: skip
def test_the_proof_fails_where_a_sync_is_left_out(tmp_path: Path, path: str) -> None:
    """A proof that cannot fail proves nothing."""
    attempts = powerless(tmp_path, without=lambda operation: operation.what == "sync" and operation.path == path)
    assert [attempt for attempt in attempts if attempt.found not in (OLD, NEW)]


def test_lines_that_a_checkpoint_counts_survive_a_power_cut_with_it(tmp_path: Path) -> None:
    """They were handed to the kernel only: after a power cut the receipt lacked epochs that the checkpoint counted."""
    run = begin(tmp_path / "run")
    rundir.keep_lines(run / rundir.STEPS, lambda _: True)
    with recorded(run) as operations:
        rundir.keep_lines(run / rundir.STEPS, lambda _: True)
        old = len(operations)
        lines, samples = rundir.Lines(run / rundir.STEPS), rundir.Samples(run / rundir.SAMPLES)
        for step in (1, 2):
            lines.add({"step": step})
            samples.add(b"abcd")
        for file in (lines, samples):
            file.flush(durable=True)
        write(run, 2)
    for file in (lines, samples):
        file.close()
    disk, seen = power.Disk(), 0
    for number, operation in enumerate(operations):
        disk.do(operation)
        for tree in disk.states() if number >= old else ():
            after = tmp_path / "after"
            write_tree(tree, after)
            if saved.latest(after) is not None and found(after) == NEW:
                seen += 1
                assert [line["step"] for line in rundir.read_lines(after / rundir.STEPS)] == [1, 2]
                assert (after / rundir.SAMPLES).read_bytes() == b"abcdabcd"
    assert seen


def test_a_failed_removal_of_an_older_one_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the run, in the words for a checkpoint that was not written."""

    def refuse(path: Path) -> None:
        raise OSError(5, os.strerror(5), str(path))

    begin(tmp_path)
    monkeypatch.setattr(saved, "_remove", refuse)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, 2, keep=1)
    assert found(tmp_path) == NEW
    assert "cannot be removed" in caplog.text
