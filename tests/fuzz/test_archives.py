"""Tars of strangers: ``prepare`` takes what is an image, names the rest, and writes nothing outside its store."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fourstage.errors import FourstageError
from fourstage.store.archives import list_files
from fourstage.store.opened import open_store
from fourstage.store.prepare import prepare
from tests.fuzz.mutation import damaged
from tests.store.pictures import encoded, left_out, pixels

IMAGE = encoded(pixels(1))


def _member(name: str, data: bytes = IMAGE, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


GOOD = [_member(f"{label}/{number}.jpg") for label in ("cat", "dog") for number in range(3)]
LINKS = {"linkname": "/etc/passwd", "size": 0}
EVIL: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "climbs": [_member("../escaped.jpg"), _member("cat/../../escaped.jpg")],
    "absolute": [_member("/tmp/escaped.jpg"), _member("//cat/escaped.jpg")],
    "symbolic link": [_member("cat/link.jpg", b"", type=tarfile.SYMTYPE, **LINKS), _member("cat/link.jpg/in.jpg")],
    "link to a folder": [_member("dog/out", b"", type=tarfile.SYMTYPE, linkname="../.."), _member("dog/out/in.jpg")],
    "hard link": [_member("cat/hard.jpg", b"", type=tarfile.LNKTYPE, **LINKS)],
    "devices": [
        _member("cat/null.jpg", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        _member("cat/disk.jpg", b"", type=tarfile.BLKTYPE, devmajor=8),
        _member("cat/pipe.jpg", b"", type=tarfile.FIFOTYPE),
    ],
    "the same name twice": [_member("cat/0.jpg"), _member("cat/0.jpg", b"no image")],
    "line breaks": [_member("cat/a\nb.jpg"), _member("cat/\x1b[31m.jpg"), _member("c\nt/x.jpg")],
    "a very long name": [_member("cat/" + "x" * 2000 + ".jpg"), _member("cat/" + "y/" * 300 + "z.jpg")],
    "dots": [_member("cat/....jpg"), _member("./cat/./1b.jpg"), _member("cat//2b.jpg"), _member(".hidden/x.jpg")],
    "odd blanks": [_member("cat/ .jpg"), _member("cat/\t.jpg"), _member(" /x.jpg"), _member("__cat/x.jpg")],
    "not an image": [_member("cat/text.jpg", b"text"), _member("cat/empty.jpg", b"")],
    "a tar in the tar": [_member("owl.tar", _tar([_member("../up.jpg"), _member("o.jpg")]))],
    "a tar that is none": [_member("cow.tar", b"x" * 700)],
    "a huge size in a PAX header": [_member("cat/huge.jpg", pax_headers={"size": str(2**62)})],
    "a negative size in a PAX header": [_member("cat/less.jpg", pax_headers={"size": "-512"})],
    "sparse": [
        _member(
            "cat/holes.jpg",
            pax_headers={"GNU.sparse.major": "0", "GNU.sparse.size": str(2**60), "GNU.sparse.map": "0,1"},
        )
    ],
    "another name in a PAX header": [_member("cat/x.jpg", pax_headers={"path": "../../escaped.jpg"})],
}


def _tree(folder: Path) -> dict[str, object]:
    """Everything below a folder, links not followed."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def _prepared(box: Path, data: bytes) -> Path | None:
    """What ``prepare`` makes of a tar; None where it refuses it in words. Nothing else may change."""
    archive, store = box / "in" / "source.tar", box / "out" / "store"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(data)
    store.parent.mkdir()
    before = {name: state for name, state in _tree(box).items() if not name.startswith(str(store.parent))}
    here = Path.cwd()
    try:
        prepare(archive, store, size=32, workers=1)
        made: Path | None = store
    except FourstageError:
        made = None
    after = {name: state for name, state in _tree(box).items() if not name.startswith(str(store.parent))}
    assert after == before
    assert {path.name for path in store.parent.iterdir()} <= {"store"}
    assert not [path for path in store.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
    assert Path.cwd() == here
    return made


_KINDS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


@pytest.mark.parametrize(
    ("name", "kind"),
    # GNU tars have no PAX headers.
    [(name, kind) for name in EVIL for kind in _KINDS if kind == "pax" or "PAX" not in name],
)
def test_a_tar_of_a_stranger_is_taken_or_named_and_nothing_is_written_outside(
    name: str, kind: str, tmp_path: Path
) -> None:
    store = _prepared(tmp_path, _tar([*GOOD, *EVIL[name]], _KINDS[kind]))
    assert not Path("/tmp/escaped.jpg").exists()
    if store is not None:
        opened = open_store(store)
        keys = opened.split("train").keys(np.arange(len(opened.split("train"))))
        assert not [key for key in keys if ".." in key.split("/") or key.startswith("/") or "\n" in key]
        assert len(keys) + len(left_out(store)) >= len(GOOD)


def test_links_and_what_climbs_are_named(tmp_path: Path) -> None:
    store = _prepared(tmp_path, _tar([*GOOD, *EVIL["climbs"], *EVIL["symbolic link"][:1], *EVIL["devices"]]))
    assert store is not None
    reasons = left_out(store)
    assert {"../escaped.jpg", "cat/../../escaped.jpg", "cat/link.jpg", "cat/null.jpg", "cat/pipe.jpg"} <= reasons.keys()
    assert len(open_store(store).split("train")) == len(GOOD)


def test_a_name_that_no_message_can_carry_is_left_out(tmp_path: Path) -> None:
    store = _prepared(tmp_path, _tar([*GOOD, *EVIL["a very long name"]]))
    assert store is not None
    assert len(open_store(store).split("train")) == len(GOOD) + 1
    assert list(left_out(store).values()) == ["its key has 2004 characters, its class 3"]


def test_names_that_are_no_utf_8_and_have_a_nul(tmp_path: Path) -> None:
    data = bytearray(_tar(GOOD, tarfile.USTAR_FORMAT))
    for name, header in (("cat/\0.jpg", 0), ("cat/\udcff\udcfe.jpg", 1)):
        at = header * (512 + -(-len(IMAGE) // 512) * 512)
        raw = os.fsencode(name)
        data[at : at + 100] = raw.ljust(100, b"\0")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    store = _prepared(tmp_path, bytes(data))
    assert store is not None
    assert len(open_store(store).split("train")) >= len(GOOD) - 1


_SOURCES: tuple[Callable[[], bytes], ...] = (
    lambda: _tar(GOOD),
    lambda: _tar([*GOOD, *EVIL["a tar in the tar"], *EVIL["a very long name"]], tarfile.GNU_FORMAT),
    lambda: _tar([*GOOD, *EVIL["sparse"], *EVIL["another name in a PAX header"]]),
)


def test_damaged_tars_are_listed_or_refused_in_words(tmp_path: Path) -> None:
    archive = tmp_path / "source.tar"
    sources = [source() for source in _SOURCES]
    refused = 0
    for number in range(1500):
        dice = Random(number)
        data = dice.choice(sources)
        for _ in range(dice.choice((1, 3))):
            at = dice.choice((0, 512, dice.randrange(len(data))))
            data = data[:at] + damaged(dice, data[at : at + 512]) + data[at + 512 :]
        archive.write_bytes(data if dice.random() < 0.8 else data[: dice.randrange(len(data))])
        try:
            list_files(archive, tmp_path)
        except FourstageError:
            refused += 1
    assert 0 < refused < 1500
    assert [path.name for path in tmp_path.iterdir()] == ["source.tar"]


@pytest.mark.parametrize("number", range(12))
def test_what_is_left_of_a_damaged_tar_is_prepared_or_refused(number: int, tmp_path: Path) -> None:
    dice = Random(number)
    data = dice.choice(_SOURCES)()
    at = dice.randrange(len(data))
    _prepared(tmp_path, data[:at] + damaged(dice, data[at : at + 600]) + data[at + 600 :])
