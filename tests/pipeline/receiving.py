"""A trainer's feed between a loader and augmenters of the test's own: every message that it hears and says is seen."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourstage.arena import PAGE, Arena
from fourstage.order import Order
from fourstage.trainer.feed import Feed
from fourstage.trainer.inbox import Inbox
from fourstage.views import View
from fourstage.wire import side
from fourstage.wire.codec import encode_body
from fourstage.wire.codes import lease_code
from fourstage.wire.messages import PROTOCOL, Batch, Hello, Holds, Open, Opened, Samples, Welcome
from fourstage.wire.sockets import Bound, Dialled, Peer
from tests.pipeline.harness import eventually
from tests.pipeline.test_early_batch import answered, heard

SIZE, CROP, ROWS, BATCHES = 4, 2, 2, 200
PIXELS = ROWS * CROP * CROP * 3
"""Bytes of one batch."""
HEARTBEAT = 0.05


@dataclass
class Receiving:
    """The feed, and its loader, whose every word is the test's."""

    feed: Feed
    loader: Bound
    trainer: Peer = b""
    """The feed's connection to the loader."""

    def greeted(self) -> Hello:
        """The feed's next HELLO."""
        self.trainer, hello = heard(self.loader, Hello)
        return hello

    def welcome(self, hello: Hello) -> None:
        """The answer to it."""
        self.loader.send(
            self.trainer,
            Welcome(
                peer=bytes(16), session=hello.session, build="", side="", heartbeat_seconds=HEARTBEAT,
                silence_seconds=60.0,
            ),
        )  # fmt: skip

    def open(self) -> tuple[Inbox, Open]:
        """A stream that the loader has opened, and the OPEN that it heard."""
        inbox = self.feed.open(
            Open(
                stream=bytes(16), split="train", view=View("centre", CROP), batch_size=ROWS, remainder="keep",
                shuffle=False, seed=1, rank=0, world=1, start=0, epochs=1, end=0, window=0, fingerprint="",
                identity=b"", transport="arena", receiver="", side="", worker=b"", on_corrupt="fail", secret=bytes(16),
            )
        )  # fmt: skip
        if not self.trainer:
            self.welcome(self.greeted())
        _, opening = heard(self.loader, Open)
        opened = Opened(
            stream=opening.stream, samples=ROWS * BATCHES, batches_per_epoch=BATCHES, end=BATCHES, largest_rows=ROWS,
            size=SIZE, fingerprint="f", classes=("k",), splits=("train",),
        )  # fmt: skip
        self.loader.send(self.trainer, opened, [np.zeros((SIZE, SIZE, 3), "<f4").tobytes()])
        inbox.opened(10.0)
        return inbox, opening


@contextmanager
def receiving(folder: Path) -> Iterator[Receiving]:
    """folder: where the sockets lie."""
    with Bound(f"ipc://{folder / 'loader'}") as loader:
        feed = Feed(loader.address, trainers=loader.address, name="test", sockets=folder)
        try:
            yield Receiving(feed, loader)
        finally:
            feed.close()


def greet(worker: Dialled, *, session: int, peer: bytes = b"w" * 16) -> None:
    """HELLO, until its WELCOME."""
    hello = Hello(protocol=PROTOCOL, role="augmenter", peer=peer, session=session, name="w", build="", identity=b"i")
    eventually(lambda: worker.send(hello), "a connection")
    assert answered(worker, Welcome).session == session


def send(
    worker: Dialled, opening: Open, order: Order, seq: int, *, session: int, number: int, slot: int = -1,
    peer: bytes = b"w" * 16,
) -> None:  # fmt: skip
    """BATCH, by its slot or with pixels that are all 0."""
    indices = order.indices(seq)
    samples = encode_body(
        Samples(indices.astype("<i8").tobytes(), np.zeros(ROWS, "<i4").tobytes(), tuple(map(str, indices)))
    )
    message = Batch(
        stream=opening.stream, seq=seq, session=session, number=number, slot=slot, rows=ROWS, identity=b"i",
        code=lease_code(opening.secret, stream=opening.stream, seq=seq, worker=peer, identity=b"i", samples=samples),
    )  # fmt: skip
    worker.send(message, [samples, bytes(21 * ROWS), *([] if slot >= 0 else [bytes(PIXELS)])])


def held(worker: Dialled, *, seen: int) -> Holds:
    """The next HOLDS that has seen at least that number."""
    while (holds := answered(worker, Holds)).seen < seen:
        pass
    return holds


def hand_over(opening: Open, *, filled: int, peer: bytes = b"w" * 16) -> tuple[socket.socket, Arena]:
    """The side connection, over which the trainer has taken an arena of three slots whose pixels are all ``filled``."""
    arena = Arena.create(3, PAGE)
    for slot in range(3):
        arena.slot(slot, PIXELS)[:] = bytes([filled]) * PIXELS
    connection = side.connect(opening.side, 10.0)
    assert connection is not None
    assert side.send(connection, side.Packet(peer, opening.stream, arena.slots, arena.slot_bytes), arena.descriptor)
    answer = side.receive(connection)
    assert answer is not None, "the arena was refused"
    assert answer[0].stream == opening.stream
    return connection, arena


def hang_up(connection: socket.socket) -> None:
    """As a process does that ends; the trainer has noticed."""
    connection.shutdown(socket.SHUT_WR)
    assert side.receive(connection) is None
    connection.close()


def is_mapped(inode: int) -> bool:
    """Whether this process, in which the feed runs, has that file mapped."""
    return any(line.split()[4] == str(inode) for line in Path("/proc/self/maps").read_text().splitlines())
