"""Stores, checkpoints and run directories of strangers: opened, or refused in one line; nothing of them is run."""

import functools
import hashlib
import io
import json
import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from fourstage import rundir
from fourstage.cli.commands import build
from fourstage.errors import FourstageError, StoreError
from fourstage.loader.streams import open_stream
from fourstage.replay.recorded import read_run
from fourstage.store import open_store
from fourstage.store.labels import read_labels
from fourstage.store.verify import verify
from fourstage.trainer import checkpoint
from fourstage.wire.messages import Open
from tests.fuzz.mutation import damaged, nasty
from tests.fuzz.samples import VIEW, made, small_store

CASES = 300
_MOST_BYTES = 64 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("strangers")).path


class Evil:
    """A pickle that says so where it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def _opened_or_refused(act: Callable[[], object]) -> bool:
    """Whether it was opened; otherwise it was refused by an error of ours, in one line, and with little memory."""
    tracemalloc.start()
    try:
        act()
        refusal: FourstageError | None = None
    except FourstageError as error:
        refusal = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < _MOST_BYTES, f"{peak} bytes were allocated"
    if refusal is not None:
        assert refusal.exit_code in (1, 2)
        assert len(str(refusal)) < 10_000
    return refusal is None


def _used(path: Path) -> None:
    """Open a store and do with it what a loader does."""
    store = open_store(path)
    for split in store.splits.values():
        split.keys(np.arange(len(split)))
        split.labels(np.arange(len(split)))
        split.find(split.keys(np.array([0]))[0])
        spec = made(Open, split=split.name, view=VIEW, batch_size=4, rank=0, world=1, fingerprint="", worker=b"")
        open_stream(store, spec, b"trainer", 1 << 20).arena.close()


def _changed_json(dice: Random, value: Any) -> Any:
    """A document with one value of it changed, at any depth."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        name = dice.choice(list(value))
        if dice.random() < 0.1:
            return {key: entry for key, entry in value.items() if key != name}
        return value | {name: _changed_json(dice, value[name])}
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        return [*value[:at], _changed_json(dice, value[at]), *value[at + 1 :]]
    odd = nasty(dice)
    try:
        json.dumps(odd)
    except (TypeError, ValueError):
        return dice.choice((None, -1, 0, 2**70, 10**400, 1.5, "", "../../x", [], {}, [[]] * 9, True, "\n\x1b[2J", "é"))
    return odd


def _damaged_text(dice: Random, data: bytes) -> bytes:
    luck = dice.random()
    if luck < 0.03:
        return b"[" * 100_000
    if luck < 0.06:
        return b'{"a":' * 50_000
    if luck < 0.6:
        return json.dumps(_changed_json(dice, json.loads(data))).encode()
    return damaged(dice, data)


@pytest.mark.parametrize("name", ["store.json", "train.index", "statistics.npz"])
def test_a_store_of_a_stranger_is_opened_or_refused(name: str, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    whole = (copy / name).read_bytes()
    opened = 0
    for number in range(CASES):
        dice = Random(number)
        changed = _damaged_text(dice, whole) if name.endswith(".json") else damaged(dice, whole)
        (copy / name).write_bytes(changed)
        opened += _opened_or_refused(lambda: _used(copy))
    assert opened < CASES


def test_a_manifest_whose_fingerprint_was_made_to_fit_is_opened_or_refused(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    whole = json.loads((copy / "store.json").read_bytes())
    for number in range(CASES):
        values = _changed_json(Random(number), whole)
        if isinstance(values, dict) and isinstance(values.get("splits"), dict):
            relevant = {
                "version": values.get("version"),
                "size": values.get("size"),
                "classes": values.get("classes"),
                "splits": {
                    name: split.get("index_sha256") if isinstance(split, dict) else None
                    for name, split in values["splits"].items()
                },
            }
            values["fingerprint"] = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
        (copy / "store.json").write_text(json.dumps(values), "utf-8")
        _opened_or_refused(lambda: _used(copy))


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard", 7), ("offset", 2**63), ("offset", 2**64 - 1), ("size", 2**32 - 1), ("label", 3), ("key_size", 2**32 - 1),
     ("key_offset", 2**64 - 1), ("key_offset", 10**6)],
)  # fmt: skip
def test_an_index_that_points_where_nothing_is_does_not_end_a_loader_later(
    field: str, value: int, store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    data = bytearray((copy / "train.index").read_bytes())
    records = np.frombuffer(data, open_store(store).split("train").records.dtype, offset=64, count=36)
    records[5][field] = value
    (copy / "train.index").write_bytes(data)
    with pytest.raises(StoreError, match="names"):
        open_store(copy)


def test_a_split_that_is_called_like_a_path_is_not_looked_for(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    (tmp_path / "outside.index").write_bytes((copy / "train.index").read_bytes())
    text = (copy / "store.json").read_text("utf-8").replace('"train":', '"../outside":')
    (copy / "store.json").write_text(text, "utf-8")
    with pytest.raises(StoreError, match="splits"):
        open_store(copy)


def test_statistics_run_no_pickle_and_unpack_no_bomb(store: Path, tmp_path: Path) -> None:
    copy, witness = tmp_path / "store", tmp_path / "it-ran"
    shutil.copytree(store, copy)
    whole = dict(np.load(copy / "statistics.npz"))

    def write(name: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(copy / "statistics.npz", "w", compression) as archive:
            for field, value in whole.items():
                buffer = io.BytesIO()
                np.save(buffer, value)
                archive.writestr(f"{field}.npy", data if field == name else buffer.getvalue())

    evil = io.BytesIO()
    np.save(evil, np.array([Evil(witness)], dtype=object), allow_pickle=True)
    write("mean", evil.getvalue())
    with pytest.raises(StoreError, match="pickle"):
        open_store(copy)
    write("mean", pickle.dumps(Evil(witness)))
    with pytest.raises(StoreError):
        open_store(copy)
    assert not witness.exists()
    bomb = io.BytesIO()
    np.save(bomb, np.zeros(100 << 20, np.uint8))
    write("mean", bomb.getvalue(), zipfile.ZIP_DEFLATED)
    assert not _opened_or_refused(lambda: open_store(copy))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 5, 3), np.float32))
    write("mean", buffer.getvalue())
    with pytest.raises(StoreError, match="mean"):
        open_store(copy)


def test_labels_of_a_stranger_are_read_or_refused(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(9)]
    whole = "".join(f"{name}\tcat\n" for name in names).encode()
    path, mapping = tmp_path / "labels.txt", tmp_path / "map.txt"
    for number in range(CASES):
        dice = Random(number)
        path.write_bytes(damaged(dice, dice.choice((whole, b"1\n2\n3\n" * 3, b"\xff\xfe", b"name,class\n0.jpg,1\n"))))
        mapping.write_bytes(damaged(dice, b"1 cat\n2 dog\n3 owl\n"))
        read = functools.partial(read_labels, path, names, mapping if dice.random() < 0.5 else None)
        _opened_or_refused(read)


# Checkpoints


def _checkpoint(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(3)}
    state = checkpoint.CheckpointState(
        step=3, next_seq=3, epoch=0, epoch_samples=12, receipt={"digest": "00"}, store_fingerprint="f", identity="1d",
        settings={"seed": 1},
    )  # fmt: skip
    return checkpoint.save(folder, state, model=tensors, optimizer={"step": torch.zeros(1)}, keep=2), tensors


def test_a_checkpoint_of_a_stranger_is_loaded_or_refused(tmp_path: Path) -> None:
    path, tensors = _checkpoint(tmp_path)
    whole = {name: (path / name).read_bytes() for name in ("state.json", "model.safetensors", "optimizer.safetensors")}
    loaded = 0
    for number in range(CASES):
        dice = Random(number)
        files = dict(whole)
        name = dice.choice(list(files))
        document = json.loads(files["state.json"])
        if name == "state.json" and dice.random() < 0.5:
            document = _changed_json(dice, document)
        elif name == "state.json":
            files[name] = _damaged_text(dice, files[name])
        else:
            files[name] = damaged(dice, files[name])
        if dice.random() < 0.8 and isinstance(document, dict) and isinstance(document.get("files"), dict):
            # Whoever makes one can make its digests fit as well.
            for other, entry in document["files"].items():
                if other in files and isinstance(entry, dict):
                    entry |= {"bytes": len(files[other]), "xxh3_128": xxhash.xxh3_128_hexdigest(files[other])}
            body = {"state": document.get("state"), "files": document["files"]}
            text = json.dumps(body, sort_keys=True, separators=(",", ":"))
            document["xxh3_128"] = xxhash.xxh3_128_hexdigest(text.encode())
            files["state.json"] = json.dumps(document).encode()
        for other, data in files.items():
            (path / other).write_bytes(data)
        targets = {name: tensor.clone() for name, tensor in tensors.items()}

        def load(targets: dict[str, torch.Tensor] = targets) -> None:
            if (found := checkpoint.latest(tmp_path)) is not None:
                checkpoint.load(found, model=targets, settings={"seed": 1})

        loaded += _opened_or_refused(load)
    assert 0 < loaded < CASES


def test_a_checkpoint_that_is_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, tensors = _checkpoint(tmp_path)
    witness = tmp_path / "it-ran"
    buffer = io.BytesIO()
    torch.save({"weight": Evil(witness)}, buffer)
    document = json.loads((path / "state.json").read_bytes())
    for data in (buffer.getvalue(), pickle.dumps(Evil(witness))):
        (path / "model.safetensors").write_bytes(data)
        document["files"]["model.safetensors"] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        body = {"state": document["state"], "files": document["files"]}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        document["xxh3_128"] = xxhash.xxh3_128_hexdigest(text.encode())
        (path / "state.json").write_text(json.dumps(document), "utf-8")
        found = checkpoint.read(path)
        with pytest.raises(FourstageError, match="cannot be read"):
            checkpoint.load(found, model=tensors)
    assert not witness.exists()


# Run directories

_STAGE = {"busy": 0.5, "wait_upstream": 0.1, "wait_downstream": 0.1}
STATUS = {
    "state": "running", "step": 3, "steps": 10, "epoch": 0, "loss": 0.5, "learning_rate": 0.01,
    "images_per_second": 3.0, "seconds_left": 9.0, "train": {"top1_error": 0.5, "top5_error": None}, "val": None,
    "decode": "augmenter",
    "stages": dict.fromkeys(("load", "transform", "copy", "train"), _STAGE),
    "queues": {"loaded": 1, "leased": 1, "arrived": 1}, "window": 7, "augmenters": 1, "augmenters_wanted": 2,
    "bottleneck": "train-bound", "failure": "", "written_at": 1.0, "corrupt": 0,
}  # fmt: skip


def test_the_status_of_a_strangers_run_is_shown_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["status", "--run-dir", str(tmp_path)]
    shown = 0
    app = build(arguments)
    for number in range(CASES):
        dice = Random(number)
        (tmp_path / rundir.STATUS).write_bytes(_damaged_text(dice, json.dumps(STATUS).encode()))
        shown += _opened_or_refused(lambda: app(args=arguments, standalone_mode=False))
        assert "\x1b[2J" not in capsys.readouterr().out
    assert 0 < shown < CASES


RUN_FILES = {
    rundir.SETTINGS: b"batch_size = 4\nseed = 5\n[train]\nepochs = 2\n[augmenter]\ncrop = 32\n",
    rundir.ORIGIN: b'{"store": "/nowhere", "fingerprint": "00"}',
    rundir.STEPS: b'{"step": 1, "epoch": 0, "digest": "00", "loss": 1.0}\n{"step": 2, "epoch": 0, "digest": "01"}\n',
    rundir.RECEIPT: b'{"epoch": 0, "samples": 36, "corrupt": [], "digest": "00"}\n',
}


@pytest.mark.parametrize("name", RUN_FILES)
def test_the_record_of_a_strangers_run_is_read_or_refused(name: str, tmp_path: Path) -> None:
    for other, data in RUN_FILES.items():
        (tmp_path / other).write_bytes(data)
    assert read_run(tmp_path).last_step == 2
    whole, read = RUN_FILES[name], 0
    for number in range(CASES):
        dice = Random(number)
        if name == rundir.SETTINGS:
            changed = b"a = " + b"[" * 50_000 if dice.random() < 0.02 else damaged(dice, whole)
        else:
            lines = whole.splitlines()
            at = dice.randrange(len(lines))
            lines[at] = _damaged_text(dice, lines[at])
            changed = b"\n".join(lines) + b"\n"
        (tmp_path / name).write_bytes(changed)
        read += _opened_or_refused(lambda: read_run(tmp_path))
    assert read


def test_verify_names_what_is_wrong_with_a_damaged_store(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    files = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    for number in range(60):
        dice = Random(number)
        name = dice.choice(list(files))
        (copy / name).write_bytes(damaged(dice, files[name]))
        _opened_or_refused(lambda: verify(copy))
        (copy / name).write_bytes(files[name])
