"""What a block of code does to the files below a folder, as operations of ``power``; and such a tree as files again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.checkpoints.calls import seen
from tests.checkpoints.power import Disk, Operation, Tree

_REMOVALS = ("unlink", "remove", "rmdir")


@contextmanager
def recorded(root: Path) -> Iterator[list[Operation]]:
    """The operations of the block; what ``root`` holds before comes first, synced."""
    operations: list[Operation] = []
    disk = Disk()
    looking = False

    def add(operation: Operation) -> None:
        operations.append(operation)
        disk.do(operation)

    def notice_writes(*_: object) -> None:
        nonlocal looking
        if looking:  # Our own reading is seen as well.
            return
        looking = True
        known = disk.now()
        for path, data in read_tree(root).items():
            if data is not None and path in known and known[path] != data:
                add(Operation("write", path, data=data))
        looking = False

    def inside(path: object, folder: int | None = None) -> str | None:
        around = Path() if folder is None else _opened(folder)
        place = _opened(path) if isinstance(path, int) else around / str(path)
        return str(place.relative_to(root)) if place.is_relative_to(root) else None

    def after(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        path = None if looking or name == "close" else inside(arguments[0], keywords.get("dir_fd"))
        if path is None:
            return
        if name == "file.open" and path not in disk.now() and (root / path).exists():
            add(Operation("create", path))
        notice_writes()
        if name == "mkdir":
            add(Operation("make", path))
        elif name in ("rename", "replace"):
            add(Operation("rename", path, target=inside(arguments[1]) or "outside"))
        elif name in _REMOVALS:
            add(Operation("remove", path))
        elif name in ("fsync", "fdatasync"):
            add(Operation("sync", path))

    for path, data in read_tree(root).items():
        add(Operation("make" if data is None else "create", path))
        if data is not None:
            add(Operation("write", path, data=data))
        add(Operation("sync", path))
        add(Operation("sync", str(Path(path).parent)))
    with seen(notice_writes, after):
        yield operations
    notice_writes()


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def read_tree(root: Path) -> Tree:
    """Folders before what they hold."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def write_tree(tree: Tree, root: Path) -> None:
    """The folder holds this, and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path, data in sorted(tree.items()):
        if data is None:
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
