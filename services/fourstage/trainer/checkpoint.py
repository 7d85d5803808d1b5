"""Checkpoints: a directory each, whole or not there.

``RUN/checkpoints/step-00000123/`` holds ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``,
which has the other files' digests and its own. It is written beside, every file and the directory are synced,
then it is renamed. A second one of the same step is ``step-00000123.1``: nothing whole is replaced in place.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import xxhash
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from fourstage.errors import CheckpointError

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"

Scalar: TypeAlias = str | int | float | bool | None

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_PARTIAL = ".partial-"
_SHOWN = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """Where a run stood, besides its tensors. Everything is JSON."""

    step: int
    """Steps trained."""

    next_seq: int
    """The first batch of the stream that was not trained on."""

    epoch: int
    epoch_samples: int
    """Samples of this epoch that were trained on."""

    receipt: dict[str, Scalar]
    """The receipt's digest chain and counts."""

    store_fingerprint: str
    identity: str
    """The digest of the golden decode, draws and transform of the workers that made the pixels."""

    settings: dict[str, Any]
    """What must be the same when the run goes on."""

    schedule: dict[str, Any] = field(default_factory=dict)
    """Where the learning rate stood, with its changes by hand."""


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


def save(
    run_dir: Path,
    state: CheckpointState,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    keep: int,
) -> Path:
    """Write a checkpoint, then remove all but the ``keep`` newest whole ones; this one always stays.

    Killed at any moment, it leaves what was there or what it wrote, and at most a partial directory that the
    next call removes. Called by a run's only trainer (the first rank). Raises CheckpointError where the disk
    does not take it.
    """
    folder = run_dir / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover)
        path = _write(folder, state, {MODEL: model, OPTIMIZER: optimizer})
        whole = [other for other in _names(folder) if other != path and _is_complete(other)]
        for other in _names(folder):
            if other != path and other not in whole[: keep - 1]:
                _remove(other)
    except OSError as error:
        raise CheckpointError(
            f"cannot write a checkpoint of step {state.step} in {folder}: {error.strerror}",
            hint="free space there or make it writable, and resume from the last one",
        ) from error
    return path


def latest(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; torn ones are passed over, each with a warning that names it.

    None where there is no checkpoint. Raises CheckpointError where there are some but none is whole, or where
    the newest is of another format.
    """
    while paths := _names(run_dir / "checkpoints"):
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
            with (path / name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    found.update(chunk)
        except OSError as error:
            raise _TornError(f"{path / name} cannot be read: {error.strerror}") from error
        if found.hexdigest() != expected.xxh3_128:
            raise _TornError(f"{path / name} is not what was written")
    return Checkpoint(path, contents.state)


def load(
    checkpoint: Checkpoint,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | None = None,
    store_fingerprint: str | None = None,
    identity: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Copy a checkpoint's tensors into these, on whatever device they are.

    What is given besides is compared with the checkpoint's first. Raises CheckpointError, before anything is
    copied, and names what differs: a tensor's name, shape or type, the store, the workers, a setting.
    """
    state = checkpoint.state
    differences = []
    if store_fingerprint not in (None, state.store_fingerprint):
        differences.append(f"the store's fingerprint is {store_fingerprint}, it was {state.store_fingerprint}")
    if identity not in (None, state.identity):
        differences.append(f"the workers' identity is {identity}, it was {state.identity}")
    for name, value in json.loads(json.dumps(dict(settings or {}))).items():
        if name not in state.settings:
            differences.append(f"{name} is {value!r}, it was not set")
        elif state.settings[name] != value:
            differences.append(f"{name} is {value!r}, it was {state.settings[name]!r}")
    copies: list[tuple[Tensor, Tensor]] = []
    for file_name, targets in ((MODEL, model), (OPTIMIZER, optimizer)):
        if targets is not None:
            stored = _stored_tensors(checkpoint.path / file_name)
            differences += [f"{file_name}: {what}" for what in _different_tensors(stored, targets)]
            copies += [(target, stored[name]) for name, target in targets.items() if name in stored]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(differences[:_SHOWN])}{more}",
            hint="resume with the store and the settings that it was made with",
        )
    with torch.no_grad():
        for target, tensor in copies:
            target.copy_(tensor)


def _write(folder: Path, state: CheckpointState, files: Mapping[str, Mapping[str, Tensor]]) -> Path:
    same_step = [path for path in _names(folder) if _order(path)[0] == state.step]
    name = f"step-{state.step:08d}" + (f".{_order(same_step[0])[1] + 1}" if same_step else "")
    partial = folder / (_PARTIAL + name)
    partial.mkdir()
    try:
        contents = _Contents(state, {})
        for file_name, tensors in files.items():
            data = to_safetensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
            contents.files[file_name] = _File(len(data), xxhash.xxh3_128_hexdigest(data))
            _write_synced(partial / file_name, data)
        body = asdict(contents)
        document = {"format": FORMAT, "xxh3_128": _digest(body), **body}
        _write_synced(partial / STATE, json.dumps(document, indent=2, allow_nan=False).encode())
        _sync_folder(partial)
        path = partial.rename(folder / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(folder)
    _sync_folder(folder.parent)
    return path


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # Renamed first: half a removal must not look like a checkpoint.
    shutil.rmtree(path.rename(path.with_name(f"{_PARTIAL}{path.name}")))


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
        document = json.loads((path / STATE).read_bytes())
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
        sizes = {name: (path / name).stat().st_size for name in contents.files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _TornError(f"{path} is incomplete: {error}") from error
    for name, file in contents.files.items():
        if sizes[name] != file.bytes:
            raise _TornError(f"{path / name} has {sizes[name]} bytes of {file.bytes}")
    return contents


def _digest(body: Mapping[str, Any]) -> str:
    """Of the canonical JSON of a state and of the digests of its files."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _stored_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="try again: a running trainer may have replaced it"
        ) from error


def _different_tensors(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(stored.keys() | targets.keys()):
        here, there = _form(targets.get(name)), _form(stored.get(name))
        if here != there:
            yield f"{name} is {here}, it was {there}"


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
