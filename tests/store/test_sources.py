"""Every kind of source gives the same images, classes and keys; what is not taken is named."""

import io
import os
import re
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fourstage.errors import SettingsError, StoreError
from fourstage.store import open_store
from fourstage.store.archives import list_files
from fourstage.store.prepare import prepare
from fourstage.store.sources import read_source
from tests.store.pictures import class_files, encoded, left_out, pixels, tar_bytes, write_folder

CLASSES = {"cat": 2, "dog": 3}
KEYS = ["cat/0000", "cat/0001", "dog/0000", "dog/0001", "dog/0002"]


def made(source: Path, store: Path, **settings: str | Path) -> list[str]:
    """Prepare a source; returns all keys."""
    prepare(source, store, size=16, workers=1, **settings)  # type: ignore[arg-type]
    split = open_store(store).split("train")
    return split.keys(np.arange(len(split)))


def _folder(root: Path) -> Path:
    return write_folder(root / "images", class_files(CLASSES))


def _tar(root: Path) -> Path:
    path = root / "images.tar"
    path.write_bytes(tar_bytes(class_files(CLASSES)))
    return path


def _tar_with_top_folder(root: Path) -> Path:
    path = root / "images.tar"
    path.write_bytes(tar_bytes({f"./sample/{name}": data for name, data in class_files(CLASSES).items()}))
    return path


def _compressed(root: Path) -> Path:
    path = root / "images.tar.xz"
    path.write_bytes(tar_bytes(class_files(CLASSES), "w:xz"))
    return path


def _tar_of_tars(root: Path) -> Path:
    inner: dict[str, dict[str, bytes]] = {}
    for name, data in class_files(CLASSES).items():
        inner.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = data
    path = root / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes({f"{name}.tar": tar_bytes(files) for name, files in inner.items()}))
    return path


@pytest.mark.parametrize("kind", [_folder, _tar, _tar_with_top_folder, _compressed, _tar_of_tars])
def test_every_kind_of_source_gives_the_same_store(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "of").mkdir()
    keys = made(kind(tmp_path / "of"), tmp_path / "store")
    made(_folder(tmp_path), tmp_path / "reference")
    store = open_store(tmp_path / "store")
    assert keys == KEYS
    assert store.classes == ("cat", "dog")
    assert store.fingerprint == open_store(tmp_path / "reference").fingerprint
    assert left_out(tmp_path / "store") == {}


def test_a_flat_source_takes_its_classes_from_a_file(tmp_path: Path) -> None:
    flat = {name.replace("/", "-"): data for name, data in class_files(CLASSES).items()}
    source = write_folder(tmp_path / "flat", flat | {"extra.jpg": encoded(pixels(9))})
    for separator in ("\t", ",", " "):
        labels = tmp_path / "labels.txt"
        lines = [f"{name}{separator}{name.partition('-')[0]}" for name in flat]
        labels.write_text("\n".join([*lines, f"gone.jpg{separator}cat"]))
        store = tmp_path / f"store{ord(separator)}"
        assert made(source, store, labels=labels) == [key.replace("/", f"/{key[:3]}-") for key in KEYS]
        assert left_out(store) == {
            "extra.jpg": "labels.txt has no class for it",
            "gone.jpg": "in labels.txt, not in the source",
        }


def test_numbers_are_no_labels_without_a_map(tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(3)]
    source = tmp_path / "val.tar"
    source.write_bytes(tar_bytes({name: encoded(pixels(seed)) for seed, name in enumerate(names)}))
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n490\n")
    with pytest.raises(SettingsError, match=r"not in the order.*--labels-map"):
        made(source, tmp_path / "store", labels=truth)
    assert not (tmp_path / "store").exists()
    table = tmp_path / "map.txt"
    table.write_text("361 n02441942\n490 n01751748\n")
    keys = made(source, tmp_path / "store", labels=truth, labels_map=table)
    assert [key.partition("/")[0] for key in keys] == ["n01751748", "n01751748", "n02441942"]
    assert keys[1].endswith("_00000002")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.jpg,3\nb.jpg,4\n", "holds numbers"),
        ("1\n2\n3\n", "3 numbers for 2 images"),
        ("a.jpg cat\nb.jpg\n", "'b.jpg'"),
        ("a.jpg cat\na.jpg dog\n", "two classes, 'cat' and 'dog'"),
        ("", "are empty"),
        ("c.jpg cat\n", "the source has 'a.jpg', 'b.jpg'"),
    ],
)
def test_wrong_labels_are_refused_with_the_line(text: str, message: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "flat", {"a.jpg": encoded(pixels(0)), "b.jpg": encoded(pixels(1))})
    (tmp_path / "labels").write_text(text)
    with pytest.raises(SettingsError, match=re.escape(message)):
        made(source, tmp_path / "store", labels=tmp_path / "labels")


def test_a_source_with_splits_asks_which(tmp_path: Path) -> None:
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in class_files(CLASSES).items()}
    source = tmp_path / "cifar.tar.xz"
    source.write_bytes(tar_bytes(files, "w:xz"))
    with pytest.raises(SettingsError, match="--inside"):
        made(source, tmp_path / "store")
    with pytest.raises(SettingsError, match="it has test, train"):
        made(source, tmp_path / "store", inside="val")
    assert made(source, tmp_path / "store", inside="train") == KEYS


def test_members_that_lead_out_of_an_archive_are_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_bytes(class_files(CLASSES)))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for name, kind in (
            ("cat/../../evil.jpg", tarfile.REGTYPE),
            ("/cat/evil.jpg", tarfile.REGTYPE),
            ("cat/link.jpg", tarfile.SYMTYPE),
            ("cat/hard.jpg", tarfile.LNKTYPE),
            ("cat/device", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    source = tmp_path / "images.tar"
    source.write_bytes(buffer.getvalue())
    assert made(source, tmp_path / "store") == KEYS
    assert set(left_out(tmp_path / "store")) == {
        "cat/../../evil.jpg",
        "/cat/evil.jpg",
        "cat/link.jpg",
        "cat/hard.jpg",
        "cat/device",
    }


def test_of_two_members_with_one_name_the_later_is_taken(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_bytes(class_files(CLASSES)))
    newer = encoded(pixels(77))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        info = tarfile.TarInfo("cat/0000.jpg")
        info.size = len(newer)
        tar.addfile(info, io.BytesIO(newer))
    (tmp_path / "images.tar").write_bytes(buffer.getvalue())
    made(tmp_path / "images.tar", tmp_path / "store")
    made(write_folder(tmp_path / "f", class_files(CLASSES) | {"cat/0000.jpg": newer}), tmp_path / "other")
    assert open_store(tmp_path / "store").fingerprint == open_store(tmp_path / "other").fingerprint
    assert "same name" in left_out(tmp_path / "store")["cat/0000.jpg"]


@pytest.mark.parametrize("kind", [_tar, _tar_of_tars, _compressed])
def test_an_archive_that_is_cut_off_is_refused(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    source = kind(tmp_path)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(StoreError, match="damaged"):
        made(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_archive_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    source = _tar(tmp_path)
    with tarfile.open(source) as tar:
        third = tar.getmembers()[2].offset
    damaged = bytearray(source.read_bytes())
    damaged[third + 150] ^= 1
    source.write_bytes(damaged)
    with pytest.raises(StoreError, match=f"at byte {third}"):
        made(source, tmp_path / "store")


def test_files_that_differ_in_their_extension_have_keys_of_their_own(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a", "a.b.jpg", "a b.jpg", "a~jpg.jpg", "ä.jpg", "new\nline.jpg", "100%.jpg"]
    files = {f"v1.0 x/{name}": encoded(pixels(seed)) for seed, name in enumerate(names)}
    keys = made(write_folder(tmp_path / "s", files), tmp_path / "store")
    assert keys == sorted(keys)
    assert set(keys) == {
        f"v1.0%20x/{stem}"
        for stem in ["a~jpg", "a~png", "a", "a%2Eb", "a%20b", "a%7Ejpg", "%C3%A4", "new%0Aline", "100%25"]
    }
    assert open_store(tmp_path / "store").classes == ("v1.0 x",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.unlink(missing_ok=True), "cannot read the source"),
        (lambda path: path.mkdir(), "no class folders"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(2000)), "neither a folder nor a tar"),
        (lambda path: write_folder(path, {"a.jpg": encoded(pixels(0))}), "no class folders"),
    ],
    ids=["missing", "empty", "zip", "flat"],
)
def test_what_is_no_source_is_refused_and_leaves_nothing(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "source")
    with pytest.raises(SettingsError, match=message):
        made(tmp_path / "source", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [-512, -1, -2048])
def test_a_negative_size_in_a_tar_header_was_read_for_ever(size: int, tmp_path: Path) -> None:
    source = tmp_path / "images.tar"
    source.write_bytes(_header("cat/a.jpg", 0) + _header("cat/b.jpg", size) + bytes(1024))
    with pytest.raises(StoreError, match="damaged"):
        list_files(source, tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("first", [True, False])
def test_a_long_header_in_a_tar_was_read_whole(kind: bytes, first: bool, tmp_path: Path) -> None:
    source = tmp_path / "images.tar"
    before = b"" if first else _header("cat/a.jpg", 0)
    source.write_bytes(before + _header("long", 1 << 32, kind))
    os.truncate(source, 1 << 33)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="damaged"):
            list_files(source, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "attributes",
    [
        {"GNU.sparse.size": "x"},
        {"GNU.sparse.map": "a,b", "GNU.sparse.major": "0"},
        {"GNU.sparse.realsize": "x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.size": "9" * 5000},
        {"size": "-1024"},
        {"size": str(2**70)},
        {"size": str(2**62)},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_attributes_in_a_tar_that_cannot_be_were_an_internal_error(
    attributes: dict[str, str], first: bool, tmp_path: Path
) -> None:
    source = tmp_path / "images.tar"
    with tarfile.open(source, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("cat/a.jpg", "cat/b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            if (name == "cat/a.jpg") == first:
                info.pax_headers = attributes
            tar.addfile(info, io.BytesIO(b"abcde"))
    with pytest.raises(StoreError, match="damaged"):
        list_files(source, tmp_path)


def test_headers_of_headers_in_a_tar_were_an_internal_error(tmp_path: Path) -> None:
    source = tmp_path / "images.tar"
    long_name = _header("long", 1, tarfile.GNUTYPE_LONGNAME) + b"x".ljust(512, b"\0")
    source.write_bytes(_header("cat/a.jpg", 0) + 900 * long_name + _header("cat/b.jpg", 0) + bytes(1024))
    with pytest.raises(StoreError, match="damaged"):
        list_files(source, tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_digits_in_a_tar_took_hours(kind: bytes, tmp_path: Path) -> None:
    """CVE-2024-6232: a quarter of a second for 8 KiB, four times as long for twice as many."""
    source = tmp_path / "images.tar"
    digits = (120 << 10) * b"1"
    source.write_bytes(_header("long", len(digits), kind) + digits + _header("cat/a.jpg", 0) + bytes(1024))
    began = time.process_time()
    with pytest.raises(StoreError, match="damaged"):
        list_files(source, tmp_path)
    assert time.process_time() - began < 5.0


def test_attributes_of_a_whole_tar_were_kept_without_end(tmp_path: Path) -> None:
    source = tmp_path / "images.tar"
    with source.open("wb") as tar:
        for number in range(11):
            attributes = {f"a{number}.{each}": "x" for each in range(100)}
            tar.write(tarfile.TarInfo.create_pax_global_header(attributes))
            tar.write(_header(f"cat/{number}.jpg", 0))
        tar.write(bytes(1024))
    with pytest.raises(StoreError, match="damaged"):
        list_files(source, tmp_path)


def test_a_long_name_in_a_tar_is_left_out_in_short(tmp_path: Path) -> None:
    source = tmp_path / "images.tar"
    with tarfile.open(source, "w") as tar:
        for name in ("cat/a.jpg", "cat/" + 5000 * "b"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    listing = list_files(source, tmp_path)
    assert list(listing.members) == ["cat/a.jpg"]
    (left_out,) = listing.left_out
    assert len(left_out.name) < 200
    assert left_out.reason == "its name has 5004 characters"


def test_a_class_name_that_no_store_takes_failed_after_all_the_work(tmp_path: Path) -> None:
    """330 bytes that are no UTF-8: 990 characters in a key, 1,320 as a name."""
    source = tmp_path / "images.tar"
    with tarfile.open(source, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("cat/a.jpg", 330 * "\udcff" + "/a.jpg"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    found = read_source(source, tmp_path)
    assert found.classes == ("cat",)
    assert [entry.reason for entry in found.left_out] == ["its key has 992 characters, its class 1320"]


def test_a_folder_of_more_levels_than_calls_was_an_internal_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    levels = [source, *(Path(f"{source}{depth * '/d'}") for depth in range(1, 1201))]
    for folder in levels:
        folder.mkdir()
    picture = levels[-1] / "a.jpg"
    picture.write_bytes(encoded(pixels(1)))
    try:
        assert made(source, tmp_path / "store") == ["d/a"]
    finally:
        # Whoever tidies up after the test may well go down by calls.
        picture.unlink()
        for folder in reversed(levels):
            folder.rmdir()
