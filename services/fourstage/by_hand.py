"""A learning rate set by hand while a run goes on: a request in the run directory, which the trainer takes."""

import json
import logging
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fourstage import rundir
from fourstage.errors import SettingsError
from fourstage.settings import Rate

REQUEST = "rate.json"
_TAKEN = ".rate.json.taken"

_log = logging.getLogger(__name__)
_rate = TypeAdapter(Rate)


def request_rate(run_dir: Path, value: float) -> None:
    """Ask the run's trainer to go on at this rate; a request that it has not taken yet is replaced.

    Raises SettingsError for a directory that holds no run and for what is no rate.
    """
    if not (run_dir / rundir.SETTINGS).is_file():
        raise SettingsError(f"{run_dir} holds no run", hint="name the directory that fourstage run was given")
    try:
        rate = _rate.validate_python(value)
    except ValidationError as error:
        raise SettingsError(f"rate {value!r}", hint="a number from 0 to 100, such as 0.001") from error
    try:
        rundir.write_json(run_dir / REQUEST, {"rate": rate})
    except OSError as error:
        raise SettingsError(f"cannot write to the run directory {run_dir}: {error.strerror}") from error


def take_rate(run_dir: Path) -> float | None:
    """The rate that was asked for since the last call; None where none was. What is no request is logged and left out.

    For a run's first trainer alone. Without a request it costs one look at the directory.
    """
    taken = run_dir / _TAKEN
    try:
        # Renamed before it is read: a newer request that comes meanwhile is not removed with this one.
        (run_dir / REQUEST).rename(taken)
    except FileNotFoundError:
        return None
    text = taken.read_bytes()
    taken.unlink()
    try:
        return _rate.validate_python(json.loads(text)["rate"], strict=True)
    except (ValueError, KeyError, TypeError):
        _log.warning("%s is no rate and was left out: %r", run_dir / REQUEST, text[:64])
        return None
