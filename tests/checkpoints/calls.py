"""The file calls of this process, one by one: seen, counted, or with a fault at the n-th."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OF_OS = ("mkdir", "open", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "fdatasync", "truncate", "close")
OF_FILES = ("write", "flush", "close")

Before = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Called before each call with its name, arguments and keywords; what it raises, the call raises."""


class _File:
    """An open file whose calls are seen too."""

    def __init__(self, file: Any, before: Before) -> None:
        self._file = file
        self._before = before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._file, name)
        if name not in OF_FILES:
            return method

        def seen(*arguments: Any) -> Any:
            self._before(f"file.{name}", (self._file, *arguments), {})
            return method(*arguments)

        return seen

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def seen(before: Before, after: Before = lambda *_: None) -> Iterator[None]:
    """``before`` and ``after`` each call on a file in the block, also of files that are opened in it."""
    kept: dict[str, Any] = {name: getattr(os, name) for name in OF_OS}
    opened = io.open

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            before(name, arguments, keywords)
            result = kept[name](*arguments, **keywords)
            after(name, arguments, keywords)
            return result

        return call

    def open_file(*arguments: Any, **keywords: Any) -> Any:
        before("file.open", arguments, keywords)
        file = opened(*arguments, **keywords)
        after("file.open", arguments, keywords)
        return _File(file, before)

    try:
        for name in OF_OS:
            setattr(os, name, wrapped(name))
        io.open = open_file
        yield
    finally:
        io.open = opened
        for name, function in kept.items():
            setattr(os, name, function)


def end_at(number: int) -> Before:
    """The process ends with 9 before call ``number``, counted from 1; of a write half has been done."""
    count = 0

    def before(name: str, arguments: tuple[Any, ...], _: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == number:
            _half(name, arguments)
            os._exit(9)

    return before


def refuse_at(number: int, code: int, *, ever_after: bool) -> Before:
    """The disk refuses call ``number`` with an errno, and those that follow if ``ever_after``; half a write is done."""
    count = 0

    def before(name: str, arguments: tuple[Any, ...], _: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        # A descriptor is closed whatever the disk says.
        if count == number or (ever_after and count > number):
            _half(name, arguments)
            if not name.endswith("close"):
                raise OSError(code, os.strerror(code))

    return before


def count(names: list[str]) -> Before:
    """Each call's name is added."""
    return lambda name, *_: names.append(name)


def _half(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "file.write":
        file, data = arguments
        file.write(data[: len(data) // 2])
        file.flush()
