"""Whether somebody looks after a run, as the kernel knows it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fourstage import locks, rundir
from fourstage.engine.lock import is_looked_after, looked_after, require_running
from fourstage.errors import SettingsError
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
