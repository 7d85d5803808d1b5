"""Whether somebody looks after a run: its engine holds a lock in the run's directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourstage import locks, rundir
from fourstage.errors import FourstageError, SettingsError


@contextmanager
def looked_after(run_dir: Path) -> Iterator[None]:
    """Hold the run. Raises SettingsError where another engine holds it."""
    with locks.held(run_dir, locks.ENGINE) as alone:
        if not alone:
            raise SettingsError(
                f"the run in {run_dir} goes on already", hint="wait for its end, or name another directory"
            )
        yield


def is_looked_after(run_dir: Path) -> bool:
    """Whether an engine holds the run: on this host, and on any where the file system shares locks."""
    return locks.is_held(run_dir, locks.ENGINE)


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
