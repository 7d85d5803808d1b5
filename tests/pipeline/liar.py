"""``python -m tests.pipeline.liar LIE MARK augmenter …``: an augmenter with every right to be there, that lies.

It does all that an augmenter does but for the one lie, and writes the file MARK once it has told it.
"""

import dataclasses
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from fourstage.arena import Arena
from fourstage.wire import side
from fourstage.wire.codec import decode_body, encode_body
from fourstage.wire.link import LoaderLink
from fourstage.wire.messages import Batch, Beat, Close, Failed, Message, Open, Progress, Samples, Tried
from fourstage.wire.sockets import Dialled

Told = tuple[Batch, list[bytes | memoryview]]


def _with_samples(told: Told, **changes: Any) -> Told:
    batch, (samples, *payload) = told
    changed = dataclasses.replace(decode_body(Samples, samples), **changes)
    return batch, [encode_body(changed), *payload]


def _labels(told: Told, label: int) -> Told:
    return _with_samples(told, labels=np.full(told[0].rows, label, "<i4").tobytes())


def _draws(told: Told, at: int, kind: str, value: float) -> Told:
    """One draw is another; ``at``: its place in bytes for each row."""
    batch, (samples, draws, *pixels) = told
    changed = bytearray(draws)
    np.frombuffer(changed, kind, count=1, offset=at * batch.rows)[0] = value
    return batch, [samples, bytes(changed), *pixels]


TO_THE_TRAINER: dict[str, tuple[Callable[[Told], Told], str]] = {
    "a-slot-beyond-its-arena": (lambda told: (dataclasses.replace(told[0], slot=60_000), told[1]), "slot 60000"),
    "a-batch-that-it-was-not-given": (
        lambda told: (dataclasses.replace(told[0], seq=told[0].seq + 1), told[1]), "was not given",
    ),
    "a-batch-far-from-its-leases": (
        lambda told: (dataclasses.replace(told[0], seq=2**52), told[1]), "not of this stream",
    ),
    "a-code-of-its-own": (lambda told: (dataclasses.replace(told[0], code=os.urandom(16)), told[1]), "was not given"),
    "other-labels": (lambda told: _labels(told, 1), "other samples"),
    "labels-out-of-range": (lambda told: _labels(told, 7), "other samples"),
    "other-keys": (
        lambda told: _with_samples(told, keys=tuple(f"mine/{row}" for row in range(told[0].rows))), "other samples",
    ),
    "too-few-rows": (lambda told: (dataclasses.replace(told[0], rows=told[0].rows - 1), told[1]), "other numbers"),
    "a-crop-beyond-the-image": (lambda told: _draws(told, 0, "<i4", 4000), "beyond its images"),
    "a-shift-that-is-no-number": (lambda told: _draws(told, 9, "<f4", float("nan")), "finite"),
    "no-draws": (lambda told: (told[0], told[1][:1]), "payloads"),
    "too-many-payloads": (lambda told: (told[0], [*told[1], b"", b""]), "frames|payloads"),
    "rows-left-out-where-none-may-be": (
        lambda told: (dataclasses.replace(told[0], skipped=(0,)), told[1]), "skips none",
    ),
    "pixels-of-others": (lambda told: (dataclasses.replace(told[0], identity=bytes(16)), told[1]), "was not given"),
}  # fmt: skip
"""What is done to a batch, and what the trainer's log says of it."""


def _pipe() -> int:
    return os.pipe()[0]


def _file() -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 24)
        return os.dup(file.fileno())


def _memory(size: int, *, sealed: bool) -> int:
    if sealed:
        arena = Arena.create(1, size)
        return os.dup(arena.descriptor)
    descriptor = os.memfd_create("liar", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


ARENAS: dict[str, tuple[Callable[[int], int], str]] = {
    "an-arena-that-is-a-pipe": (lambda _: _pipe(), "dropped an arena"),
    "an-arena-that-is-a-file": (lambda _: _file(), "dropped an arena"),
    "an-arena-that-is-too-small": (lambda _: _memory(4096, sealed=True), "dropped an arena"),
    "an-arena-that-can-shrink": (lambda size: _memory(size, sealed=False), "dropped an arena"),
}
"""What is handed over in place of an arena of so many bytes, and what the trainer's log says of it."""


_NEAR, _FAR = 40, 90
"""Batches: while a worker holds none beyond the first, nobody has been given the second."""


def _open(stream: bytes) -> Open:
    from tests.trainer.relayed import request

    return request(stream=stream)


def _failed_elsewhere(beat: Beat) -> Message | None:
    """It cannot decode what nobody has been given yet: of the batches near its own, one may be on its way to it."""
    if not beat.held or max(seq for _, seq, _ in beat.held) >= _NEAR:
        return None
    return Failed(stream=beat.slots[0][0], seq=random.randrange(_FAR, _FAR + 10), row=0, reason="so they say")


TO_THE_LOADER: dict[str, tuple[Callable[[Beat], Message | None], str]] = {
    "leases-that-it-was-not-given": (
        lambda beat: dataclasses.replace(beat, held=tuple((beat.slots[0][0], seq, bytes(16)) for seq in range(100))),
        "which it was not given",
    ),
    "slots-that-it-does-not-have": (
        lambda beat: dataclasses.replace(beat, slots=tuple((stream, 300, 300) for stream, _, _ in beat.slots)),
        "it loses what it is given",
    ),
    "leases-from-the-future": (lambda beat: dataclasses.replace(beat, seen=2**50), ""),
    "a-corrupt-sample-that-it-was-not-given": (_failed_elsewhere, "which it does not hold"),
    "a-trial-that-nobody-asked-for": (lambda beat: Tried(stream=beat.slots[0][0], seq=1, trial=(0, 4)), ""),
    "an-open": (lambda beat: _open(beat.slots[0][0]), "sent Open, which is not for it to send"),
    "progress": (
        lambda beat: Progress(stream=beat.slots[0][0], consumed=100, arrived=()),
        "sent Progress, which is not for it to send",
    ),
    "a-close": (lambda beat: Close(stream=beat.slots[0][0]), "sent Close, which is not for it to send"),
}  # fmt: skip
"""What is said with each heartbeat, and what the loader's log says of it; empty: nothing, it just has no effect."""


def _failed(beat: Beat, row: int) -> Message | None:
    """It cannot decode a row of a batch that it was given."""
    return Failed(stream=beat.held[0][0], seq=beat.held[0][1], row=row, reason="so they say") if beat.held else None


OF_ITS_OWN: dict[str, tuple[Callable[[Beat], Message | None], str]] = {
    "a-corrupt-sample-where-such-are-left-out": (lambda beat: _failed(beat, 0), "it fails where none may"),
    "a-corrupt-sample-beyond-the-batch": (lambda beat: _failed(beat, 60_000), "it fails where none may"),
}
"""The same, of batches that it was given; told where ``on_corrupt`` is "skip"."""


def _lie(lie: str, mark: Path) -> None:
    """Make this process tell that one lie, whenever there is an occasion."""
    if lie in TO_THE_TRAINER:
        alter, _ = TO_THE_TRAINER[lie]
        send = Dialled.send

        def sending(self: Dialled, message: Message, payload: Sequence[bytes | memoryview] = ()) -> bool:
            if not isinstance(message, Batch):
                return send(self, message, payload)
            told = alter((message, list(payload)))
            mark.touch()
            return send(self, *told)

        patch.object(Dialled, "send", sending).start()
    elif lie in ARENAS:
        make, _ = ARENAS[lie]
        hand_over = side.send

        def handing(connection: socket.socket, packet: side.Packet, descriptor: int | None = None) -> bool:
            if descriptor is None:
                return hand_over(connection, packet)
            mark.touch()
            return hand_over(connection, packet, make(packet.slots * packet.slot_bytes))

        patch.object(side, "send", handing).start()
    else:
        say, _ = {**TO_THE_LOADER, **OF_ITS_OWN}[lie]
        tell = LoaderLink.send

        def telling(self: LoaderLink, message: Message) -> bool:
            if isinstance(message, Beat) and message.slots and (lied := say(message)) is not None:
                mark.touch()
                if isinstance(lied, Beat):
                    return tell(self, lied)
                tell(self, lied)
            return tell(self, message)

        patch.object(LoaderLink, "send", telling).start()


if __name__ == "__main__":
    lie, mark, *arguments = sys.argv[1:]
    _lie(lie, Path(mark))
    sys.argv = ["fourstage", *arguments]
    from fourstage.cli import main

    main()
