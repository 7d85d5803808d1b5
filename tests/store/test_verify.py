"""verify finds every byte that is wrong, and says where."""

import hashlib
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourstage.errors import StoreError
from fourstage.store import open_store
from fourstage.store.index import RECORD, index_bytes
from fourstage.store.manifest import Manifest, read_manifest, write_manifest
from fourstage.store.prepare import prepare
from fourstage.store.progress import Progress
from fourstage.store.verify import verify
from tests.store.pictures import class_files, encoded, pixels, write_folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    files = class_files({"cat": 70, "dog": 65}) | {f"cat/{'long' * 40}.jpg": encoded(pixels(500))}
    prepare(write_folder(root / "source", files), root / "store", size=16, workers=1, shard_bytes=50_000)
    return root / "store"


def test_a_whole_store_has_no_problems(store: Path) -> None:
    seen: list[Progress] = []
    report = verify(store, decode=True, progress=seen.append)
    assert report.ok
    assert report.images == 136
    assert report.bytes == sum(path.stat().st_size for path in store.glob("*.tar"))
    assert (seen[-1].done, seen[-1].total, seen[-1].left_out) == (136, 136, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(store: Path, data: st.DataObject) -> None:
    names = sorted(path.name for path in store.iterdir() if path.suffix in (".tar", ".idx", ".index", ".npz"))
    path = store / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
        problems = verify(store).problems
    finally:
        path.write_bytes(whole)
    assert problems
    assert path.name in problems[0]


def test_a_wrong_sample_is_named_and_the_rest_still_read(store: Path) -> None:
    split = open_store(store).split("train")
    position = split.find("dog/0007")
    record = split.records[position]
    path = split.shards[record["shard"]]
    whole = path.read_bytes()
    middle = int(record["offset"]) + int(record["size"]) // 2
    try:
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        report = verify(store)
    finally:
        path.write_bytes(whole)
    assert report.images == 136
    assert [problem for problem in report.problems if "dog/0007" in problem]
    assert not [problem for problem in report.problems if "dog/0008" in problem]


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.idx", "train.index", "statistics.npz"])
def test_a_missing_or_truncated_file_is_named(name: str, store: Path) -> None:
    path = store / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-700])
        cut = verify(store).problems
        path.unlink()
        gone = verify(store).problems
    finally:
        path.write_bytes(whole)
    assert any(name in problem for problem in cut)
    assert any(name in problem for problem in gone)


def test_an_index_swapped_for_another_is_found(store: Path) -> None:
    path = store / "train.index"
    whole = path.read_bytes()
    split = open_store(store).split("train")
    records = np.array(split.records)
    records["label"] = 0
    try:
        path.write_bytes(index_bytes(records, split.keys(np.arange(len(split)))))
        problems = verify(store).problems
    finally:
        path.write_bytes(whole)
    assert "train.index" in problems[0]


@pytest.fixture
def foreign(store: Path, tmp_path: Path) -> Path:
    """A copy whose author may have changed it and signed it again."""
    return Path(shutil.copytree(store, tmp_path / "foreign"))


def _sign(store: Path, **shard: int) -> None:
    """Make ``store.json`` say that the index is as it should be, and what is asked for of the first shard."""
    values = read_manifest(store).model_dump()
    split = values["splits"]["train"]
    split["index_sha256"] = hashlib.sha256((store / "train.index").read_bytes()).hexdigest()
    split["shards"] = (split["shards"][0] | shard, *split["shards"][1:])
    write_manifest(store, Manifest.model_validate(values))


@pytest.mark.parametrize(
    ("column", "position", "value"),
    [
        ("offset", 30, 0),
        ("offset", 0, 2**63 - 1),
        ("offset", 0, 2**62),
        ("offset", 5, 2**36),
        ("shard", 0, 65535),
        ("shard", 0, 1),
        ("label", 5, 9999),
        ("key_size", 5, 2**31),
        ("key_offset", 5, 2**64 - 1),
    ],
)
def test_a_signed_index_that_leads_astray_was_raised_or_called_whole(
    column: str, position: int, value: int, foreign: Path
) -> None:
    path = foreign / "train.index"
    data = bytearray(path.read_bytes())
    np.frombuffer(data, RECORD, 136, 64)[position][column] = value
    path.write_bytes(data)
    _sign(foreign)
    assert verify(foreign).problems


def test_a_signed_index_whose_keys_are_no_ascii_was_raised(foreign: Path) -> None:
    path = foreign / "train.index"
    data = bytearray(path.read_bytes())
    data[64 + 136 * RECORD.itemsize + 3] = 0xFF
    path.write_bytes(data)
    _sign(foreign)
    assert any("ASCII" in problem for problem in verify(foreign).problems)


def test_a_signed_offset_in_a_shard_said_to_be_huge_was_read_to(foreign: Path) -> None:
    path = foreign / "train.index"
    data = bytearray(path.read_bytes())
    np.frombuffer(data, RECORD, 136, 64)[3]["offset"] = 2**62
    path.write_bytes(data)
    _sign(foreign, bytes=2**63)
    assert any("it does not begin where" in problem for problem in verify(foreign).problems)


def test_a_signed_jpeg_of_gigabytes_in_a_shard_full_of_holes_was_read(foreign: Path) -> None:
    path = foreign / "train.index"
    data = bytearray(path.read_bytes())
    np.frombuffer(data, RECORD, 136, 64)[3]["size"] = 2**32 - 1
    path.write_bytes(data)
    os.truncate(foreign / "train-000000.tar", 1 << 40)
    _sign(foreign, bytes=1 << 40)
    tracemalloc.start()
    try:
        assert any("more than its pixels can make" in problem for problem in verify(foreign).problems)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_signed_number_of_images_that_is_not_that_of_the_index_was_called_whole(foreign: Path) -> None:
    values = read_manifest(foreign).model_dump()
    values["splits"]["train"]["images"] = 1
    write_manifest(foreign, Manifest.model_validate(values))
    assert any("136 samples" in problem for problem in verify(foreign).problems)


def test_a_shard_that_had_grown_was_read_whole(foreign: Path) -> None:
    with (foreign / "train-000000.tar").open("r+b") as stream:
        stream.truncate(1 << 40)
    assert any("train-000000.tar" in problem for problem in verify(foreign).problems)


def test_a_shard_whose_length_is_not_what_the_manifest_says_was_called_whole(foreign: Path) -> None:
    _sign(foreign, bytes=1 << 30)
    assert any("instead of" in problem for problem in verify(foreign).problems)


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.idx", "train.index", "statistics.npz"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_file_of_a_store_that_is_no_file_is_named(name: str, kind: str, foreign: Path) -> None:
    path = foreign / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert f"{name}: not a regular file" in verify(foreign).problems
    if not name.endswith(".idx"):  # DALI's alone
        with pytest.raises(StoreError, match=name):
            open_store(foreign)


def test_a_manifest_that_is_a_device_or_huge_was_read_whole(foreign: Path) -> None:
    path = foreign / "store.json"
    os.truncate(path, 1 << 40)
    with pytest.raises(StoreError, match="more than 67108864 bytes"):
        verify(foreign)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="not a regular file"):
        open_store(foreign)


def test_a_jpeg_that_says_it_is_huge_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(write_folder(tmp_path / "source", class_files({"cat": 1})), tmp_path / "store", size=16, workers=1)
    store = tmp_path / "store"
    shard = store / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (16000).to_bytes(2, "big") * 2
    shard.write_bytes(data)
    index = bytearray((store / "train.index").read_bytes())
    record = np.frombuffer(index, RECORD, 1, 64)[0]
    begin = int(record["offset"])
    record["checksum"] = xxhash.xxh3_64_intdigest(bytes(data[begin : begin + int(record["size"])]))
    (store / "train.index").write_bytes(index)
    _sign(store)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
    assert any("16000x16000 pixels" in problem for problem in verify(store, decode=True).problems)


def test_without_a_store_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished store"):
        verify(tmp_path)
