"""Whether somebody looks after a run, as the kernel knows it."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from fourstage import locks, rundir
from fourstage.engine.lock import is_looked_after, looked_after, require_running
from fourstage.errors import SettingsError
from fourstage.process import StopFlag
from tests.pipeline.harness import eventually


def test_a_run_is_looked_after_for_as_long_as_its_engine_lives(tmp_path: Path) -> None:
    (tmp_path / rundir.SETTINGS).write_text("")
    assert not is_looked_after(tmp_path)
    with looked_after(tmp_path):
        assert is_looked_after(tmp_path)
        assert is_looked_after(tmp_path)
        with pytest.raises(SettingsError, match="goes on already"), looked_after(tmp_path):
            pass
    assert not is_looked_after(tmp_path)


def test_an_engine_that_was_killed_looks_after_nothing(tmp_path: Path) -> None:
    (tmp_path / rundir.SETTINGS).write_text("")
    program = (
        "import pathlib, sys, time\nfrom fourstage.engine.lock import looked_after\n"
        "with looked_after(pathlib.Path(sys.argv[1])):\n    time.sleep(600)\n"
    )
    engine = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    try:
        eventually(lambda: is_looked_after(tmp_path), "the lock")
        require_running(tmp_path)
    finally:
        engine.kill()
        engine.wait()
    assert not is_looked_after(tmp_path)
    with pytest.raises(SettingsError, match="no fourstage run looks after"):
        require_running(tmp_path)


@pytest.mark.parametrize("state", ["done", "interrupted", "failed"])
def test_a_run_that_is_over_is_not_running_even_while_its_engine_ends(tmp_path: Path, state: str) -> None:
    (tmp_path / rundir.SETTINGS).write_text("")
    rundir.write_json(tmp_path / rundir.STATUS, {"state": state})
    with looked_after(tmp_path), pytest.raises(SettingsError, match=f"is over: {state}"):
        require_running(tmp_path)


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    assert not is_looked_after(tmp_path)
    with pytest.raises(SettingsError, match="holds no run"):
        require_running(tmp_path)


def test_settings_that_were_written_anew_let_a_second_engine_in(tmp_path: Path) -> None:
    """The lock lay on the file that each engine replaces: each held another one."""
    with looked_after(tmp_path):
        rundir.write_whole(tmp_path / rundir.SETTINGS, "batch_size = 8")
        assert is_looked_after(tmp_path)
        with pytest.raises(SettingsError, match="goes on already; wait for its end"), looked_after(tmp_path):
            pytest.fail("two hold it")


def test_a_lock_that_could_not_be_made_was_an_internal_error(tmp_path: Path) -> None:
    (tmp_path / locks.FOLDER).write_text("")
    with pytest.raises(SettingsError, match=r"locks/engine.*writable"), looked_after(tmp_path):
        pass


def test_a_file_system_that_locks_nothing_kept_every_run_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: object, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with looked_after(tmp_path):
        assert not is_looked_after(tmp_path)


def test_whoever_asked_for_a_moment_whether_a_run_goes_on_kept_it_from_being_begun(tmp_path: Path) -> None:
    (tmp_path / locks.FOLDER).mkdir()
    with (tmp_path / locks.FOLDER / locks.ENGINE).open("ab") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.02, fcntl.flock, [asking, fcntl.LOCK_UN]).start()
        with looked_after(tmp_path):
            pass


def test_a_trainer_that_waited_for_another_one_to_end_looked_as_if_it_hung(tmp_path: Path) -> None:
    stop, turns = StopFlag(), []

    def turn() -> None:
        turns.append(1)
        if len(turns) == 2:
            other.close()

    other = ExitStack()
    other.enter_context(locks.held(tmp_path, locks.TRAINER))
    with locks.held_once_free(tmp_path, locks.TRAINER, stop, turn) as after_another:
        assert after_another
    with locks.held_once_free(tmp_path, locks.TRAINER, stop, turn) as after_another:
        assert not after_another
    assert len(turns) == 2
