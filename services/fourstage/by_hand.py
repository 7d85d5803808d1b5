"""What a person asks of a run while it goes on: a file in the run directory, which a process of the run takes once."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from fourstage import rundir
from fourstage.errors import SettingsError
from fourstage.settings import Rate

LARGEST_SCALE = 1024
"""Augmenters of one run on one machine."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Request(Generic[T]):
    """One kind of request: ``NAME.json`` with the value under that name. Whoever asks and who takes may be anywhere."""

    def __init__(self, name: str, kind: TypeAdapter[T], hint: str) -> None:
        self._name = name
        self._kind = kind
        self._hint = hint
        self.file = f"{name}.json"

    def ask(self, run_dir: Path, value: object) -> T:
        """Leave a request; one that was not taken yet is replaced. Returns the value as it will be taken.

        Raises SettingsError for a directory that holds no run and for a value of the wrong kind.
        """
        if not (run_dir / rundir.SETTINGS).is_file():
            raise SettingsError(f"{run_dir} holds no run", hint="name the directory that fourstage run was given")
        try:
            asked = self._kind.validate_python(value)
        except ValidationError as error:
            raise SettingsError(f"{self._name} {value!r}", hint=self._hint) from error
        try:
            rundir.write_json(run_dir / self.file, {self._name: asked})
        except OSError as error:
            raise SettingsError(f"cannot write to the run directory {run_dir}: {error.strerror}") from error
        return asked

    def take(self, run_dir: Path) -> T | None:
        """What was asked for since the last call; None where nothing was. What is no request is logged and left out.

        For one process of a run alone. Without a request it costs a look or two at the directory.
        """
        asked = self.look(run_dir)
        self.done(run_dir)
        return asked

    def look(self, run_dir: Path) -> T | None:
        """As ``take``, but the request stays, for this process and the next one, until ``done``."""
        looked_at = self._looked_at(run_dir)
        # Renamed before it is read: a newer request that comes meanwhile is not removed with this one.
        with suppress(OSError):
            (run_dir / self.file).rename(looked_at)
        text = b""
        try:
            text = looked_at.read_bytes()
            return self._kind.validate_python(json.loads(text)[self._name], strict=True)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            what = error.strerror if isinstance(error, OSError) else repr(text[:64])
            _log.warning("%s is no %s and was left out: %s", run_dir / self.file, self._name, what)
            self.done(run_dir)
            return None

    def withdraw(self, run_dir: Path) -> None:
        """Nothing is asked for any more, be it looked at or not."""
        (run_dir / self.file).unlink(missing_ok=True)
        self.done(run_dir)

    def done(self, run_dir: Path) -> None:
        """What ``look`` has found last is not asked for any more."""
        # A folder in its place stays, and is logged again.
        with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            self._looked_at(run_dir).unlink()

    def _looked_at(self, run_dir: Path) -> Path:
        return run_dir / f".{self.file}.taken"


RATE: Request[float] = Request("rate", TypeAdapter(Rate), "a number from 0 to 100, such as 0.001")
"""Another learning rate; the first trainer looks at it, and is done with it once a checkpoint holds it."""

SCALE: Request[int | Literal["auto"]] = Request(
    "scale",
    TypeAdapter(Annotated[int, Field(ge=1, le=LARGEST_SCALE)] | Literal["auto"]),
    f"a number from 1 to {LARGEST_SCALE}, or auto",
)
"""Another number of augmenters; the engine of a run on this machine takes it."""
