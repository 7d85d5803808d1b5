"""Batches of pixels from one process to another over loopback, for ``benchmarks.carriers``."""

import multiprocessing
import sys
import time

import numpy as np
import zmq

from fourstage.arena import Arena, slot_bytes_for
from fourstage.wire.codec import decode_body, encode_body
from fourstage.wire.messages import Batch, Holds, Samples, Times
from fourstage.wire.sockets import Bound, Dialled, Waiter

ROWS, CROP = 128, 224
PIXEL_BYTES = ROWS * CROP * CROP * 3
WARM_UP = 5
STREAM = bytes(16)
IDENTITY = bytes(16)
TIMES = Times(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
DRAWS = bytes(21 * ROWS)
_ON_THE_WAY = 2
_LARGEST = 1 << 31


def samples() -> Samples:
    """Of one batch, with keys as long as ImageNet's."""
    keys = tuple(f"n01440764/n01440764_{number:05d}.JPEG" for number in range(ROWS))
    return Samples(indices=bytes(8 * ROWS), labels=bytes(4 * ROWS), keys=keys)


def batch_message(seq: int, slot: int) -> Batch:
    """The BATCH of one batch."""
    return Batch(
        STREAM, seq, session=1, number=seq + 1, slot=slot, rows=ROWS, identity=IDENTITY, code=bytes(16), times=TIMES
    )


def send_batches(address: str, batches: int) -> None:
    """The sending process: ``batches`` whole BATCHes, never more than two without a HOLDS."""
    arena = Arena.create(_ON_THE_WAY + 1, slot_bytes_for(PIXEL_BYTES))
    for slot in range(arena.slots):
        arena.slot(slot, PIXEL_BYTES)[:] = bytes([slot]) * PIXEL_BYTES
    packed = encode_body(samples())
    with Dialled(address, server="trainer") as socket:
        waiter = Waiter()
        waiter.add(socket)
        sent = acknowledged = 0
        while acknowledged < batches:
            if sent < min(batches, acknowledged + _ON_THE_WAY):
                pixels = arena.slot(sent % arena.slots, PIXEL_BYTES)
                if socket.send(batch_message(sent, slot=-1), (packed, DRAWS, pixels)):
                    sent += 1
                    continue
            waiter.wait(0.05)
            while (received := socket.receive()) is not None:
                if isinstance(received[0], Holds):
                    acknowledged = received[0].seen


def inline_rate(batches: int) -> float:
    """10^9 bytes of pixels a second over loopback, from the first batches on."""
    with Bound("tcp://127.0.0.1:0", max_frame=_LARGEST) as bound:
        waiter = Waiter()
        waiter.add(bound)
        sender = multiprocessing.get_context("spawn").Process(
            target=send_batches, args=(bound.address, batches + WARM_UP)
        )
        sender.start()
        arrived, began = 0, 0.0
        while arrived < batches + WARM_UP:
            waiter.wait(0.1)
            if not sender.is_alive() and arrived == 0:
                sys.exit("the sending process has ended")
            while (received := bound.receive()) is not None:
                peer, message, payload, _ = received
                if not isinstance(message, Batch) or len(payload[2]) != PIXEL_BYTES:
                    sys.exit(f"no batch: {message}")
                decode_body(Samples, payload[0])
                arrived += 1
                if arrived == WARM_UP:
                    began = time.perf_counter()
                bound.send(peer, Holds(STREAM, 1, message.number, ()))
        seconds = time.perf_counter() - began
        sender.join()
    return batches * PIXEL_BYTES / seconds / 1e9


def copy_batches(address: str, batches: int) -> None:
    """The sending process of the bare copy: the pixels of ``batches`` from one memory, two of them on the way."""
    pixels = np.ones(PIXEL_BYTES, np.uint8).data
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as socket:
        socket.connect(address)
        for sent in range(batches + _ON_THE_WAY):
            if sent < batches:
                socket.send(pixels, copy=False)
            if sent >= _ON_THE_WAY:
                socket.recv()
    context.term()


def copy_rate(batches: int) -> float:
    """10^9 bytes a second of the same pixels by plain ZeroMQ over loopback, from the first batches on."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        sender = multiprocessing.get_context("spawn").Process(
            target=copy_batches, args=(f"tcp://127.0.0.1:{port}", batches + WARM_UP)
        )
        sender.start()
        began = 0.0
        for number in range(1, batches + WARM_UP + 1):
            while not socket.poll(1000):
                if not sender.is_alive():
                    sys.exit("the sending process has ended")
            if len(socket.recv(copy=False).buffer) != PIXEL_BYTES:
                sys.exit("not the pixels of a batch")
            if number == WARM_UP:
                began = time.perf_counter()
            socket.send(b"")
        seconds = time.perf_counter() - began
        sender.join()
    context.term()
    return batches * PIXEL_BYTES / seconds / 1e9
