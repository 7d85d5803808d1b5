"""A disk whose power may fail (no file is touched here): what was not synced may be gone, torn, or there.

What POSIX promises, not what one file system does: the data of a file are on the disk once *it* is synced, a folder's
names once the *folder* is; a rename within one folder is one change; changes of names that were not synced may be
there in any selection. Of data that were not synced the disk may have nothing, half, zeros, or all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import PurePosixPath
from typing import TypeAlias

MOST_UNSYNCED = 8
"""Changes of one folder's names; their selections are all tried."""


@dataclass(frozen=True, slots=True)
class Operation:
    """``make`` a folder, ``create`` an empty file or empty one that is there, ``write`` all that a file then holds,
    ``sync`` either, ``rename`` to ``target``, ``remove`` either."""

    what: str
    path: str
    target: str = ""
    data: bytes = b""


@dataclass(eq=False, slots=True)
class _File:
    data: bytes = b""
    synced: bytes = b""

    def states(self) -> list[bytes]:
        data = self.data
        if data == self.synced:
            return [data]
        return list(dict.fromkeys([self.synced, data, data[: len(data) // 2], bytes(len(data))]))


@dataclass(eq=False, slots=True)
class _Folder:
    names: "dict[str, _Node]" = field(default_factory=dict)
    synced: "dict[str, _Node]" = field(default_factory=dict)
    changes: "list[dict[str, _Node | None]]" = field(default_factory=list)
    """Of names, each one whole or not at all, since the last sync."""

    def change(self, change: "dict[str, _Node | None]") -> None:
        self.changes.append(change)
        _apply(self.names, change)

    def states(self) -> "Iterator[dict[str, _Node]]":
        if len(self.changes) > MOST_UNSYNCED:
            raise ValueError(f"{len(self.changes)} changes of names since the last sync, at most {MOST_UNSYNCED}")
        for chosen in product((False, True), repeat=len(self.changes)):
            names = dict(self.synced)
            for change, there in zip(self.changes, chosen, strict=True):
                if there:
                    _apply(names, change)
            yield names


_Node: TypeAlias = _File | _Folder
Tree: TypeAlias = "dict[str, bytes | None]"
"""Bytes of files by path; None is a folder."""


class Disk:
    """``do`` operations, then ask for ``states``. Paths are relative to a root that is there for good."""

    def __init__(self) -> None:
        self._root = _Folder()

    def do(self, operation: Operation) -> None:
        """Raises KeyError for a path that is not there."""
        folder, name = self._place(operation.path)
        match operation.what:
            case "make":
                folder.change({name: _Folder()})
            case "create":
                file = folder.names.get(name)
                if isinstance(file, _File):
                    file.data = b""
                else:
                    folder.change({name: _File()})
            case "write":
                file = folder.names[name]
                if isinstance(file, _File):
                    file.data = operation.data
            case "sync":
                node = folder.names[name] if name else folder
                if isinstance(node, _File):
                    node.synced = node.data
                else:
                    node.synced, node.changes = dict(node.names), []
            case "rename":
                other, target = self._place(operation.target)
                if other is not folder:
                    raise ValueError(f"{operation.path} is renamed into another folder: {operation.target}")
                folder.change({name: None, target: folder.names[name]})
            case "remove":
                folder.change({name: None})
            case what:
                raise ValueError(what)

    def now(self) -> Tree:
        """What a process sees."""
        return _now(self._root, "")

    def states(self) -> Iterator[Tree]:
        """Everything that may be found after a power cut at this moment, each once."""
        known: set[tuple[tuple[str, bytes | None], ...]] = set()
        for tree in _states(self._root, ""):
            key = tuple(sorted(tree.items()))
            if key not in known:
                known.add(key)
                yield tree

    def _place(self, path: str) -> tuple[_Folder, str]:
        folder, parts = self._root, PurePosixPath(path).parts
        for part in parts[:-1]:
            node = folder.names[part]
            if not isinstance(node, _Folder):
                raise KeyError(path)
            folder = node
        return folder, parts[-1] if parts else ""


def _apply(names: "dict[str, _Node]", change: "dict[str, _Node | None]") -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _states(folder: _Folder, prefix: str) -> Iterator[Tree]:
    for names in folder.states():
        parts: list[list[Tree]] = []
        for name, node in names.items():
            path = f"{prefix}{name}"
            if isinstance(node, _File):
                parts.append([{path: data} for data in node.states()])
            else:
                parts.append([{path: None, **inside} for inside in _states(node, f"{path}/")])
        for chosen in product(*parts):
            tree: Tree = {}
            for part in chosen:
                tree |= part
            yield tree


def _now(folder: _Folder, prefix: str) -> Tree:
    tree: Tree = {}
    for name, node in folder.names.items():
        path = f"{prefix}{name}"
        tree |= {path: node.data} if isinstance(node, _File) else {path: None, **_now(node, f"{path}/")}
    return tree
