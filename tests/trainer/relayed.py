"""What the tests of the relay share: a stream whose batches are delivered by hand, and both ends of a relay."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourstage.arena import Arena, slot_bytes_for
from fourstage.order import permutation
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.trainer.relay import RelayedInbox, RelayingInbox, connect, listen
from fourstage.views import View
from fourstage.wire.codec import encode_body
from fourstage.wire.messages import Batch, Open, Opened, Samples

SIZE, CROP, SAMPLES, BATCH = 6, 4, 10, 4
PER_EPOCH = 3
"""Batches: 4, 4 and 2 rows."""
SEED, EPOCHS = 3, 1000


def request(**changes: Any) -> Open:
    """What both trainers ask for."""
    values: dict[str, Any] = {
        "stream": bytes(16), "split": "train", "view": View("random", CROP), "batch_size": BATCH, "remainder": "keep",
        "shuffle": True, "seed": SEED, "rank": 0, "world": 1, "start": 0, "epochs": EPOCHS, "end": 0, "window": 0,
        "fingerprint": "", "identity": b"", "transport": "arena", "receiver": "", "side": "",
        "worker": b"", "on_corrupt": "fail", "secret": bytes(16),
    }  # fmt: skip
    return Open(**(values | changes))


def opened(end: int = PER_EPOCH * EPOCHS, samples: int = SAMPLES, size: int = SIZE) -> Opened:
    return Opened(
        stream=bytes(16), samples=samples, batches_per_epoch=-(-samples // BATCH), end=end,
        largest_rows=min(BATCH, samples), size=size, fingerprint="f", classes=("a", "b"), splits=("train",),
    )  # fmt: skip


def mean() -> NDArray[np.float32]:
    return np.arange(SIZE * SIZE * 3, dtype=np.float32).reshape(SIZE, SIZE, 3)


def open_descriptors() -> int:
    """Of this process, without those that only garbage still holds."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@dataclass
class Worker:
    """An augmenter's arena, as its owner and as the trainer sees it."""

    slots: int = 8
    crop: int = CROP
    owner: Arena = field(init=False)
    seen: Arena = field(init=False)

    def __post_init__(self) -> None:
        self.owner = Arena.create(self.slots, slot_bytes_for(BATCH * self.crop * self.crop * 3))
        self.seen = Arena.attach(os.dup(self.owner.descriptor), self.slots, self.owner.slot_bytes)

    def die(self) -> None:
        """The feed closes what it has mapped once nothing of it is held."""
        self.owner.close()
        self.seen.close()


def indices_of(seq: int) -> NDArray[np.int64]:
    """The samples of batch ``seq``."""
    epoch, batch = divmod(seq, PER_EPOCH)
    return permutation(SEED, epoch, SAMPLES)[batch * BATCH : (batch + 1) * BATCH]


def samples_of(indices: NDArray[np.int64]) -> Samples:
    keys = tuple(f"k/{index}" for index in indices)
    return Samples(indices.astype("<i8").tobytes(), (indices % 2).astype("<i4").tobytes(), keys)


def deliver(inbox: Inbox, seq: int, worker: Worker | None = None, *, crop: int = CROP) -> bytes:
    """Batch ``seq`` arrives, in a slot of ``worker`` or inline; its pixels."""
    indices = indices_of(seq)
    rows = len(indices)
    random = np.random.default_rng(seq)
    pixels = random.bytes(rows * crop * crop * 3)
    draws = np.concatenate(
        (
            random.integers(0, max(1, SIZE - crop + 1), (rows, 2), np.int32).view(np.uint8).reshape(-1),
            random.integers(0, 2, rows, np.uint8),
            random.random((rows, 3), np.float32).view(np.uint8).reshape(-1),
        )
    )
    slot = seq % worker.slots if worker else -1
    message = Batch(
        stream=bytes(16), seq=seq, session=1, number=seq + 1, slot=slot, rows=rows, identity=b"pixels", code=bytes(16)
    )
    payload = [memoryview(encode_body(samples_of(indices))), memoryview(draws.tobytes())]
    if worker:
        worker.owner.slot(slot, len(pixels))[:] = pixels
    else:
        payload.append(memoryview(pixels))
    inbox.put(inbox.unpack(message, payload, worker.seen if worker else None, worker=b"w" * 16))
    return pixels


@dataclass
class Returns:
    """The batches whose slots an inbox was given back."""

    inbox: Inbox
    seqs: list[int] = field(default_factory=list)

    def look(self) -> list[int]:
        """All of them up to now, in order."""
        self.seqs += [batch.seq for batch in self.inbox.released()]
        return self.seqs


@dataclass
class Pair:
    """Both ends of a relay."""

    inbox: Inbox
    first: RelayingInbox
    second: RelayedInbox
    returns: Returns

    def take(self) -> tuple[FeedBatch, FeedBatch]:
        """The next batch on both ends."""
        mine, theirs = self.first.next(10.0), self.second.next(10.0)
        assert mine is not None
        assert theirs is not None
        return mine, theirs


@contextmanager
def pair(folder: Path, *, open_now: bool = True, spec: Open | None = None) -> Iterator[Pair]:
    """A relay whose stream is open on both ends, or about to be; closed in the end."""
    inbox = Inbox(spec or request(), lambda: None)
    listener = listen(folder)
    first = RelayingInbox(inbox, listener)
    second = RelayedInbox(connect(listener.path, 5.0), spec or request())
    ends = Pair(inbox, first, second, Returns(inbox))
    try:
        if open_now:
            inbox.open(opened(), mean())
            first.opened(10.0)
            second.opened(10.0)
        yield ends
    finally:
        second.close()
        first.close()
