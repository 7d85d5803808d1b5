"""What stages may rely on when they open a store, and how a wrong one is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.errors import StoreError
from fourstage.store import open_store
from fourstage.store.index import RECORD, index_bytes, open_index
from fourstage.store.prepare import prepare
from tests.store.pictures import class_files, write_folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    source = write_folder(tmp_path / "source", class_files({"cat": 70, "dog": 65}))
    prepare(source, tmp_path / "store", size=16, workers=1, shard_bytes=50_000)
    return tmp_path / "store"


def test_records_lead_to_the_bytes_of_each_sample(store: Path) -> None:
    opened = open_store(store)
    split = opened.split("train")
    assert (len(split), len(split.shards)) == (135, 3)
    for position, record in enumerate(split.records):
        with split.shards[record["shard"]].open("rb") as shard:
            shard.seek(record["offset"])
            jpeg = shard.read(record["size"])
        assert jpeg[:3] == b"\xff\xd8\xff"
        assert xxhash.xxh3_64_intdigest(jpeg) == record["checksum"]
        key = split.keys(np.array([position]))[0]
        assert split.find(key) == position
        assert opened.classes[split.labels(np.array([position]))[0]] == key.partition("/")[0]


def test_a_key_or_split_that_is_not_there_is_named(store: Path) -> None:
    opened = open_store(store)
    for key in ("cat/0070", "", "zoo/1", "cat/0000x"):
        with pytest.raises(StoreError, match=re.escape(repr(key))):
            opened.split("train").find(key)
    with pytest.raises(StoreError, match=r"no split 'val', only train.*--split val"):
        opened.split("val")


def test_the_fingerprint_follows_what_training_depends_on(store: Path, tmp_path: Path) -> None:
    source = store.parent / "source"
    for name, values in {"same": {}, "quality": {"quality": 80}, "size": {"size": 20}}.items():
        prepare(source, tmp_path / name, **({"size": 16, "workers": 1, "shard_bytes": 50_000} | values))  # type: ignore[arg-type]
    prints = [open_store(tmp_path / name).fingerprint for name in ("store", "same", "quality", "size")]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def _edit(store: Path, **values: object) -> None:
    path = store / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: (store / "store.json").unlink(), "no finished store"),
        (lambda store: (store / "store.json").write_text("{"), "damaged or edited"),
        (lambda store: (store / "store.json").write_text("[]"), "format"),
        (lambda store: _edit(store, format="webdataset"), "'webdataset'"),
        (lambda store: _edit(store, version=2), "version 2, and this fourstage reads 1"),
        (lambda store: _edit(store, size=17), "fingerprint"),
        (lambda store: _edit(store, size="16"), "size"),
        (lambda store: _edit(store, extra=1), "extra"),
        (lambda store: (store / "train-000001.tar").unlink(), "train-000001.tar"),
        (lambda store: (store / "train-000001.tar").write_bytes(b"x"), "1 bytes instead of"),
        (lambda store: (store / "train.index").unlink(), "train.index"),
        (lambda store: (store / "train.index").write_bytes(b"4STGIDX\0"), "no index"),
        (
            lambda store: (store / "train.index").write_bytes(index_bytes(np.zeros(1, RECORD), ["a"])),
            "has 1 samples",
        ),
        (lambda store: (store / "statistics.npz").write_bytes(b"PK"), "statistics"),
    ],
)
def test_a_store_that_is_not_whole_is_refused(damage: Callable[[Path], object], message: str, store: Path) -> None:
    damage(store)
    with pytest.raises(StoreError, match=message):
        open_store(store)


def test_an_index_that_was_altered_after_prepare_trained_under_the_old_fingerprint(store: Path) -> None:
    path = store / "train.index"
    index = open_index(path)
    records = index.records.copy()
    keys = index.keys(np.arange(len(records)))
    records["label"][0] = 1 - records["label"][0]
    path.write_bytes(index_bytes(records, keys))
    with pytest.raises(StoreError, match=r"train\.index are not those that store\.json was written with"):
        open_store(store)


def test_statistics_that_were_altered_after_prepare_trained_under_the_old_fingerprint(store: Path) -> None:
    statistics = open_store(store).statistics
    altered = replace(statistics, mean=statistics.mean + 1)
    (store / "statistics.npz").write_bytes(altered.to_bytes())
    with pytest.raises(StoreError, match=r"statistics\.npz are not those"):
        open_store(store)


@pytest.mark.parametrize("name", ["mean", "covariance", "eigenvalues", "eigenvectors"])
def test_statistics_that_no_images_have_had_every_worker_refused(store: Path, name: str) -> None:
    """Colour shifts as large as these were taken for a lie of the worker, and the run waited for one that told none."""
    statistics = open_store(store).statistics
    assert statistics.problem(16) == ""
    altered = replace(statistics, **{name: getattr(statistics, name) + 1e5})
    assert altered.problem(16) == f"holds {name} that no images have"


def test_a_folder_that_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="fourstage prepare"):
        open_store(tmp_path)


@given(
    keys=st.sets(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), min_size=1, max_size=20),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_an_index_gives_back_what_was_written(
    keys: set[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ordered = sorted(keys)
    random = np.random.default_rng(seed)
    records = random.integers(0, 256, (len(ordered), RECORD.itemsize), np.uint8).view(RECORD).reshape(-1)
    path = tmp_path_factory.mktemp("index") / "train.index"
    path.write_bytes(index_bytes(records, ordered))
    index = open_index(path)
    np.testing.assert_array_equal(index.records, records)
    assert [index.key(position) for position in range(len(ordered))] == ordered
    assert [index.position(key) for key in ordered] == list(range(len(ordered)))
    assert index.position("\x7f") is None


@given(cut=st.integers(0, 200), flip=st.integers(0, 63))
@settings(max_examples=50, deadline=None)
def test_a_damaged_index_opens_or_is_a_store_error(
    cut: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(index_bytes(np.zeros(3, RECORD), ["a/1", "a/2", "b/1"]))
    data[flip] ^= 0x55
    path = tmp_path_factory.mktemp("index") / "train.index"
    path.write_bytes(data[: len(data) - cut])
    try:
        index = open_index(path)
    except StoreError:
        return
    assert len(index.records) == 3
