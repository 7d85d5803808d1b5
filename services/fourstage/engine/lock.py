"""Whether somebody looks after a run: its engine holds a lock on the run's settings, which the kernel drops with it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError


@contextmanager
def looked_after(run_dir: Path) -> Iterator[None]:
    """Hold the run, whose settings are written. Raises SettingsError where another engine holds it."""
    # For writing: a file on NFS is locked for one alone only by who may write it.
    with (run_dir / rundir.SETTINGS).open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"the run in {run_dir} goes on already", hint="name another directory") from None
        except OSError:
            # Some file systems lock nothing: the run goes on all the same, and is taken for a running one below.
            pass
        yield


def is_looked_after(run_dir: Path) -> bool:
    """Whether an engine holds the run: on this host, and on any where the file system shares locks."""
    try:
        with (run_dir / rundir.SETTINGS).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def require_running(run_dir: Path) -> None:
    """Raises SettingsError unless a run goes on in this directory and ``fourstage run`` looks after it."""
    if not (run_dir / rundir.SETTINGS).is_file():
        raise SettingsError(f"{run_dir} holds no run", hint="name the directory that fourstage run was given")
    try:
        state = rundir.read_json(run_dir / rundir.STATUS)["state"]
    except (FourstageError, KeyError):
        state = "starting"
    if state in ("done", "interrupted", "failed"):
        raise SettingsError(
            f"the run in {run_dir} is over: {state}", hint="fourstage run --resume --augmenters N goes on with N"
        )
    if not is_looked_after(run_dir):
        raise SettingsError(
            f"no fourstage run looks after {run_dir}",
            hint="containers are scaled with docker compose up --detach --no-deps --scale augmenter=N; a run that was "
            "killed goes on with fourstage run --resume --augmenters N",
        )
