"""verify finds every byte that is wrong, and says where."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourstage.errors import StoreError
from fourstage.store import open_store
from fourstage.store.index import index_bytes
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


def test_without_a_store_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished store"):
        verify(tmp_path)
