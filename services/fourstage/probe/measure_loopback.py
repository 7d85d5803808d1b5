"""Batches through a TCP connection of this host, with the frames and messages of the inline carrier."""

import time

from fourstage.arena import Arena, slot_bytes_for
from fourstage.probe.windows import WINDOWS
from fourstage.wire.messages import Batch, Holds
from fourstage.wire.sockets import Bound, Dialled, Waiter

_STREAM = bytes(16)
_SAMPLES_BYTES, _DRAWS_BYTES = 60, 21
"""Of a row: index, label and key; offsets, reflection and shift."""
_PATIENCE = 10.0
"""Seconds without a word from the other end."""


def send(address: str, *, rows: int, pixel_bytes: int, slots: int) -> None:
    """The augmenter's end: ``slots`` batches on their way at any time, until the other end is silent."""
    arena = Arena.create(slots, slot_bytes_for(rows * pixel_bytes))
    payloads = [arena.slot(slot, rows * pixel_bytes) for slot in range(slots)]
    for payload in payloads:
        payload[:] = bytes(len(payload))
    sent = seen = 0
    heard = time.monotonic()
    waiter = Waiter()
    with Dialled(address, server="trainer") as connection:
        waiter.add(connection)
        while time.monotonic() - heard < _PATIENCE:
            while sent - seen < slots:
                message = Batch(
                    stream=_STREAM,
                    seq=sent,
                    session=1,
                    number=sent + 1,
                    slot=-1,
                    rows=rows,
                    identity=bytes(16),
                    code=bytes(16),
                )
                frames: list[bytes | memoryview] = [
                    bytes(rows * _SAMPLES_BYTES),
                    bytes(rows * _DRAWS_BYTES),
                    payloads[sent % slots],
                ]
                if not connection.send(message, frames):
                    break
                sent += 1
            waiter.wait(0.02)
            while (arrival := connection.receive()) is not None:
                heard = time.monotonic()
                if isinstance(arrival[0], Holds):
                    seen = arrival[0].seen


def receive(bound: Bound, seconds: float) -> list[float]:
    """The trainer's end: take batches for about ``seconds``; images per second of each window. Empty: none came."""
    waiter = Waiter()
    waiter.add(bound)
    rates: list[float] = []
    images, heard = 0, time.monotonic()
    began: float | None = None
    while len(rates) < WINDOWS and time.monotonic() - heard < _PATIENCE:
        waiter.wait(0.1)
        while (arrival := bound.receive()) is not None and len(rates) < WINDOWS:
            peer, message = arrival.peer, arrival.message
            if not isinstance(message, Batch):
                continue
            heard = now = time.monotonic()
            bound.send(peer, Holds(stream=_STREAM, session=1, seen=message.number, seqs=()))
            if began is None:
                # The first batch came with the connection: the clock starts behind it.
                began = now
                continue
            images += message.rows
            if now - began >= seconds / WINDOWS:
                rates.append(images / (now - began))
                images, began = 0, now
    return rates
