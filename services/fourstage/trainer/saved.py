"""Checkpoints on the disk: a directory each, whole or not there. Bytes and JSON; ``checkpoint`` knows the tensors.

``RUN/checkpoints/step-00000123/`` holds ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``,
which has the other files' digests and its own. It is written beside, every file and the directory are synced,
then it is renamed. A second one of the same step is ``step-00000123.1``: nothing whole is replaced in place.

Interrupted anywhere, also by a power cut, it leaves what was there or what was written, and perhaps a partial directory
beside, which the next writer or the next start removes. What a reader finds torn, missing or altered it passes over
with a warning, for an older one: the batches since are made again, the same as before.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import Field, TypeAdapter

from fourstage.errors import CheckpointError
from fourstage.rundir import CHECKPOINTS, sync_folder
from fourstage.store.files import file_length, open_regular
from fourstage.trainer.rates import NOTHING, ErrorRates, Totals

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_PARTIAL = ".partial-"
_LONGEST_STATE = 64 << 20
"""Bytes; the keys of a million samples that were left out are some 30 MB."""
_Count = Annotated[int, Field(ge=0, le=2**53)]
"""As many as a number of a message may be."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """Where a run stood, besides its tensors. Everything is JSON."""

    step: _Count
    """Steps trained."""

    next_seq: _Count
    """The first batch of the stream that was not trained on."""

    epoch: _Count
    epoch_samples: _Count
    """Samples of this epoch that were trained on."""

    receipt: dict[str, Any]
    """The receipt's digest chain and counts."""

    store_fingerprint: Annotated[str, Field(max_length=1024)]
    identity: Annotated[str, Field(pattern="^([0-9a-f]{2}){0,32}$")]
    """The digest of the golden decode, draws and transform of the workers that made the pixels, in hexadecimal."""

    settings: dict[str, Any]
    """What must be the same when the run goes on."""

    schedule: dict[str, Any] = field(default_factory=dict)
    """Where the learning rate stood, with its changes by hand."""

    unvalidated: Annotated[list[ErrorRates | None], Field(max_length=1)] = field(default_factory=list)
    """The training error, or None where none is counted, of an epoch that is over and whose validation was
    interrupted: the run that goes on begins with it. Empty where there is none."""

    budget: dict[str, Any] = field(default_factory=dict)
    """What was charged for samples that cannot be decoded."""

    trained: Totals = NOTHING
    """What all trainers together had counted of this epoch's training."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk whose files were whole when it was read."""

    path: Path
    state: CheckpointState


@dataclass(frozen=True, slots=True)
class _File:
    bytes: int
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class _Contents:
    """What ``state.json`` holds besides its format and its own digest."""

    state: CheckpointState
    files: dict[str, _File]


class _TornError(CheckpointError):
    """Incomplete or altered: an older one may be whole."""


def write(run_dir: Path, state: CheckpointState, files: Iterable[tuple[str, bytes]], *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the ``keep`` newest whole ones; this one always stays.

    files: ``MODEL`` and ``OPTIMIZER`` with their bytes, one taken after the other. Called by a run's only trainer (the
    first rank). Raises CheckpointError where the disk does not take it; what was there is then whole.
    """
    folder = run_dir / CHECKPOINTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir)
        path = _write(folder, state, files)
    except OSError as error:
        raise CheckpointError(
            f"cannot write a checkpoint of step {state.step} in {folder}: {error.strerror}",
            hint="free space there or make it writable, and resume from the last one",
        ) from error
    try:
        whole = [other for other in _names(folder) if other != path and _is_complete(other)]
        for other in _names(folder):
            if other != path and other not in whole[: keep - 1]:
                _remove(other)
    except OSError as error:
        _log.warning("an older checkpoint in %s cannot be removed: %s", folder, error.strerror)
    return path


def latest(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; torn ones are passed over, each with a warning that names it.

    None where there is no checkpoint. Raises CheckpointError where there are some but none is whole, or where
    the newest is of another format.
    """
    while paths := _names(run_dir / CHECKPOINTS):
        torn = []
        for path in paths:
            try:
                return read(path)
            except _TornError as error:
                if path.exists():  # else a running trainer has removed it since, and there is a newer one
                    _log.warning("checkpoint passed over: %s", error)
                    torn.append(path.name)
        if len(torn) == len(paths):
            raise CheckpointError(
                f"no checkpoint in {run_dir} is whole: {', '.join(torn)}",
                hint="begin again in a new run directory",
            )
    return None


def read(path: Path) -> Checkpoint:
    """Check every byte of one checkpoint and read its state; CheckpointError says what is wrong with it."""
    contents = _contents(path)
    for name, expected in contents.files.items():
        found = xxhash.xxh3_128()
        try:
            with open_regular(path / name) as file:
                while chunk := file.read(1 << 20):
                    found.update(chunk)
        except OSError as error:
            raise _TornError(f"{path / name} cannot be read: {error.strerror}") from error
        if found.hexdigest() != expected.xxh3_128:
            raise _TornError(f"{path / name} is not what was written")
    return Checkpoint(path, contents.state)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what unfinished writers and removals have left; called by a run's only writer, between two of them."""
    for leftover in (run_dir / CHECKPOINTS).glob(f"{_PARTIAL}*"):
        _delete(leftover)


def _write(folder: Path, state: CheckpointState, files: Iterable[tuple[str, bytes]]) -> Path:
    same_step = [path for path in _names(folder) if _order(path)[0] == state.step]
    name = f"step-{state.step:08d}" + (f".{_order(same_step[0])[1] + 1}" if same_step else "")
    partial = folder / (_PARTIAL + name)
    partial.mkdir()
    try:
        contents = _Contents(state, {})
        for file_name, data in files:
            contents.files[file_name] = _File(len(data), xxhash.xxh3_128_hexdigest(data))
            _write_synced(partial / file_name, data)
        body = asdict(contents)
        document = {"format": FORMAT, "xxh3_128": _digest(body), **body}
        _write_synced(partial / STATE, json.dumps(document, indent=2, allow_nan=False).encode())
        sync_folder(partial)
        path = partial.rename(folder / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder)
    sync_folder(folder.parent)
    return path


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    # Renamed first: half a removal must not look like a checkpoint.
    _delete(path.rename(path.with_name(f"{_PARTIAL}{path.name}")))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _names(folder: Path) -> list[Path]:
    """Whatever is named like a checkpoint, newest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    step, _, repetition = path.name.removeprefix("step-").partition(".")
    return int(step), int(repetition or 0)


def _is_complete(path: Path) -> bool:
    """Whether the state is whole and every file has its size: as far as one sees without the tensors."""
    try:
        _contents(path)
    except _TornError:
        return False
    except CheckpointError:
        return True  # another version's: not ours to judge, nor to remove before its turn
    return True


def _contents(path: Path) -> _Contents:
    try:
        with open_regular(path / STATE) as state:
            if (length := file_length(state)) > _LONGEST_STATE:
                raise _TornError(f"{path / STATE} has {length} bytes")
            document = json.loads(state.read(length))
        version = document["format"]
        body = {"state": document.get("state"), "files": document.get("files")}
        if version == FORMAT and document["xxh3_128"] != _digest(body):
            raise _TornError(f"{path / STATE} is not what was written")
        if version != FORMAT:
            raise CheckpointError(
                f"{path} has format {version!r}, this version reads format {FORMAT}",
                hint="resume with the version of fourstage that wrote it",
            )
        contents = TypeAdapter(_Contents).validate_python(body)
        if contents.files.keys() != {MODEL, OPTIMIZER}:
            raise _TornError(f"{path / STATE} names the files {sorted(contents.files)}, not {MODEL} and {OPTIMIZER}")
        sizes = {name: (path / name).stat().st_size for name in contents.files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _TornError(f"{path} is incomplete: {error}") from error
    for name, file in contents.files.items():
        if sizes[name] != file.bytes:
            raise _TornError(f"{path / name} has {sizes[name]} bytes of {file.bytes}")
    if contents.state.step != _order(path)[0]:
        raise _TornError(f"{path} holds step {contents.state.step}")
    return contents


def _digest(body: Mapping[str, Any]) -> str:
    """Of the canonical JSON of a state and of the digests of its files."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())
