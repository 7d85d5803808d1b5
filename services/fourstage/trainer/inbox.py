"""One stream as the trainer receives it: batches come in any order and leave in order, each once.

The feed's thread puts batches in; the copy stage takes them out, gives their slots back and says how far training
has come. Only the condition here is shared between the two.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fourstage.arena import Arena
from fourstage.errors import FourstageError, PeerError, SettingsError
from fourstage.order import BatchPlan, Order, Place
from fourstage.trace import Passage
from fourstage.trainer.encoded import Encoded
from fourstage.wire.codec import decode_body
from fourstage.wire.messages import Batch, Open, Opened, Samples


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that its batch is trained on without: it cannot be decoded."""

    row: int
    """Of the batch as planned."""
    key: str
    index: int
    """Its number in the split."""


@dataclass(slots=True)
class FeedBatch:
    """One batch in its slot: ``place.rows`` were planned, ``skipped`` are not there, the others lie closed up.

    pixels: uint8 (rows, crop, crop, 3), a read-only view that is valid until ``release``
    labels: int32 (rows,); indices: int64 (rows,), the samples' numbers in the split
    offsets: int32 (rows, 2); reflections: bool (rows,); shifts: float32 (rows, 3)
    """

    seq: int
    place: Place
    keys: tuple[str, ...]
    indices: NDArray[np.int64]
    labels: NDArray[np.int32]
    offsets: NDArray[np.int32]
    reflections: NDArray[np.bool_]
    shifts: NDArray[np.float32]
    pixels: NDArray[np.uint8]
    identity: bytes
    source: bytes
    _release: Callable[["FeedBatch"], None]
    passage: Passage = field(default_factory=Passage)
    """Where it has been so far."""
    arena: Arena | None = None
    """Where the pixels lie; None: they came inline."""
    slot: int = -1
    encoded: Encoded | None = None
    """The images of all planned rows, where this trainer is to decode them: ``pixels`` are empty until it has."""
    skipped: tuple[Skipped, ...] = ()

    def leave_out(self, rows: Sequence[int]) -> None:
        """Close up all but the pixels, once. rows: of the batch as planned, ascending."""
        if not rows:
            return
        there = np.delete(np.arange(len(self.keys)), rows)
        self.skipped = tuple(Skipped(row, self.keys[row], int(self.indices[row])) for row in rows)
        self.keys = tuple(self.keys[row] for row in there.tolist())
        self.indices, self.labels = self.indices[there], self.labels[there]
        self.offsets, self.reflections = self.offsets[there], self.reflections[there]
        self.shifts = self.shifts[there]

    def release(self) -> None:
        """Nobody reads ``pixels`` any more: its slot may be used again."""
        self.pixels = np.empty((0, 0, 0, 3), np.uint8)
        self._release(self)


@dataclass(slots=True)
class Draws:
    """A batch's draws as they travel."""

    offsets: NDArray[np.int32]
    reflections: NDArray[np.bool_]
    shifts: NDArray[np.float32]

    @classmethod
    def unpack(cls, data: memoryview, rows: int) -> "Draws":
        """Raises PeerError unless ``data`` holds the draws of exactly ``rows`` samples."""
        if len(data) != rows * 21:
            raise PeerError(f"{len(data)} bytes of draws for {rows} samples, expected {rows * 21}")
        shifts = np.frombuffer(data[rows * 9 :], "<f4").reshape(rows, 3)
        if not np.isfinite(shifts).all():
            raise PeerError("colour shifts that are no finite numbers")
        return cls(
            np.frombuffer(data[: rows * 8], "<i4").reshape(rows, 2),
            np.frombuffer(data[rows * 8 : rows * 9], np.uint8).astype(np.bool_),
            shifts,
        )

    def pack(self) -> bytes:
        """What ``unpack`` reads."""
        parts = (self.offsets.astype("<i4"), self.reflections.astype(np.uint8), self.shifts.astype("<f4"))
        return b"".join(part.tobytes() for part in parts)


@dataclass(slots=True)
class StreamInfo:
    """What the loader said of a stream. mean: float32 (size, size, 3)."""

    opened: Opened
    mean: NDArray[np.float32]
    plan: BatchPlan
    order: Order


@dataclass(slots=True)
class Inbox:
    """The stream's books. Methods of the consumer say so; all others belong to the feed's thread."""

    spec: Open
    wake: Callable[[], None]
    consumed: int = 0
    """Everything before this was trained on."""
    info: StreamInfo | None = None
    error: FourstageError | None = None
    identity: bytes = b""
    duplicates: int = 0
    closed: bool = False
    arrived: dict[int, bytes] = field(default_factory=dict)
    """Batches at or after ``consumed`` that have arrived, and from which worker."""
    _ready: dict[int, FeedBatch] = field(default_factory=dict)
    _next: int = 0
    _released: list[FeedBatch] = field(default_factory=list)
    _condition: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.consumed = self._next = self.spec.start
        self.identity = self.spec.identity

    # The consumer's

    def opened(self, timeout: float) -> StreamInfo:
        """Wait for the loader's answer. Raises what went wrong, TimeoutError after ``timeout`` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self.info or self.error, timeout)
            # What has gone wrong with a batch since is for whoever takes it.
            if self.info is not None:
                return self.info
            if self.error:
                raise self.error
            raise TimeoutError

    def next(self, timeout: float) -> FeedBatch | None:
        """The next batch in order; None where it has not come within ``timeout`` seconds. Raises what went wrong."""
        with self._condition:
            self._condition.wait_for(lambda: self._next in self._ready or self.error or self.closed, timeout)
            if self.error:
                raise self.error
            batch = self._ready.pop(self._next, None)
            if batch is not None:
                self._next += 1
            return batch

    def train_on(self, seq: int) -> None:
        """Batch ``seq`` was trained on: the window moves, and a checkpoint may say so."""
        with self._condition:
            self.consumed = max(self.consumed, seq + 1)
        self.wake()

    @property
    def waiting(self) -> int:
        """Batches that lie here, in order or not, and were not taken."""
        return len(self._ready)

    @property
    def done(self) -> bool:
        """Every batch was taken."""
        return self.info is not None and self._next >= self.info.opened.end

    # The feed's

    def open(self, opened: Opened, mean: NDArray[np.float32]) -> None:
        """The loader has opened the stream, or opened it again after a restart. Raises PeerError for what cannot be."""
        try:
            plan = BatchPlan(opened.samples, self.spec.batch_size, self.spec.remainder, self.spec.rank, self.spec.world)
        except SettingsError as error:
            raise PeerError(f"a stream that cannot be: {error}") from error
        # Before the order is computed, which takes time and memory for every sample that it is said to have.
        if (opened.batches_per_epoch, opened.largest_rows) != (plan.batches_per_epoch, plan.largest_rows):
            raise PeerError(
                f"a stream of {opened.samples} samples in {opened.batches_per_epoch} batches of up to "
                f"{opened.largest_rows}: the order makes {plan.batches_per_epoch} of up to {plan.largest_rows}"
            )
        if not np.isfinite(mean).all():
            raise PeerError("a mean image of numbers that are not finite")
        order = Order(plan, seed=self.spec.seed, shuffle=self.spec.shuffle)
        with self._condition:
            if self.info is None:
                self.info = StreamInfo(opened, mean, plan, order)
            elif self.info.opened.fingerprint != opened.fingerprint:
                self.error = FourstageError("the loader came back with another store")
            self._condition.notify_all()

    def fail(self, error: FourstageError) -> None:
        """The stream cannot go on."""
        with self._condition:
            self.error = self.error or error
            self._condition.notify_all()

    def is_new(self, seq: int) -> bool:
        """Whether batch ``seq`` belongs to the stream and has not arrived."""
        if self.info is None or seq >= self.info.opened.end:
            raise PeerError(f"batch {seq} is not of this stream")
        return seq >= self.consumed and seq not in self.arrived

    def unpack(
        self,
        message: Batch,
        payload: Sequence[memoryview],
        arena: Arena | None,
        *,
        worker: bytes,
        passage: Passage | None = None,
    ) -> FeedBatch:
        """A batch that has arrived, its pixels where they lie. Raises PeerError where it is not what the order says."""
        if self.info is None:
            raise PeerError("batch before the stream was opened")
        if not 2 <= len(payload) <= 3:
            raise PeerError(f"batch with {len(payload)} payloads")
        samples = decode_body(Samples, payload[0])
        indices, labels = self.check(message, samples)
        draws = Draws.unpack(payload[1], message.rows)
        crop = self.spec.view.crop
        # Below zero they are the largest of all.
        if message.rows and draws.offsets.view(np.uint32).max() > self.info.opened.size - crop:
            raise PeerError(f"batch {message.seq} is cut beyond its images")
        rows = message.rows - len(message.skipped)
        size = rows * crop * crop * 3
        if message.slot >= 0:
            if arena is None:
                raise PeerError(f"batch in slot {message.slot} of an arena that was never handed over")
            pixels = arena.slot(message.slot, size)
        elif len(payload) == 3 and len(payload[2]) == size:
            pixels = payload[2]
        else:
            raise PeerError(f"inline batch without the {size} bytes of its pixels")
        batch = FeedBatch(
            seq=message.seq,
            place=self.info.plan.place(message.seq),
            keys=samples.keys,
            indices=indices,
            labels=labels,
            offsets=draws.offsets,
            reflections=draws.reflections,
            shifts=draws.shifts,
            pixels=np.frombuffer(pixels, np.uint8).reshape(rows, crop, crop, 3),
            identity=message.identity,
            source=worker,
            _release=self.give_back,
            passage=passage or Passage(times=message.times),
            arena=arena if message.slot >= 0 else None,
            slot=message.slot,
        )
        batch.leave_out(message.skipped)
        return batch

    def put(self, batch: FeedBatch) -> None:
        """A batch that ``is_new`` has arrived."""
        with self._condition:
            self.identity = batch.identity
            self.arrived[batch.seq] = batch.source
            self._ready[batch.seq] = batch
            self._condition.notify_all()

    def progress(self) -> tuple[int, tuple[int, ...]]:
        """Consumed, and what has arrived beyond."""
        with self._condition:
            consumed = self.consumed
        for seq in [seq for seq in self.arrived if seq < consumed]:
            del self.arrived[seq]
        return consumed, tuple(sorted(self.arrived))

    def released(self) -> list[FeedBatch]:
        """Batches whose slots were given back since the last call."""
        with self._condition:
            released, self._released = self._released, []
            return released

    def give_back(self, batch: FeedBatch) -> None:
        """Called by ``FeedBatch.release``."""
        with self._condition:
            self._released.append(batch)
        self.wake()

    def close(self) -> None:
        """Nobody will take anything any more."""
        with self._condition:
            self.closed = True
            self._ready.clear()
            self._condition.notify_all()

    def check(self, message: Batch, samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Indices and labels of all planned rows of a batch. Raises PeerError where they are not what the order
        says, or where rows are left out that cannot be."""
        if self.info is None:
            raise PeerError("batch before the stream was opened")
        place = self.info.plan.place(message.seq)
        if len(samples.indices) != 8 * message.rows or len(samples.labels) != 4 * message.rows:
            raise PeerError(f"batch {message.seq} of {message.rows} rows has other numbers of indices or labels")
        indices: NDArray[np.int64] = np.frombuffer(samples.indices, "<i8")
        labels: NDArray[np.int32] = np.frombuffer(samples.labels, "<i4")
        if not message.rows == place.rows == len(samples.keys):
            raise PeerError(
                f"batch {message.seq} has {message.rows} rows and {len(samples.keys)} keys, expected {place.rows}"
            )
        try:
            expected = self.info.order.indices(message.seq)
        except MemoryError as error:
            raise PeerError(f"an epoch of {self.info.plan.samples} samples has no room in memory") from error
        if samples.indices != expected.astype("<i8").tobytes():
            raise PeerError(f"batch {message.seq} is not made of the samples that the order says")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.info.opened.classes):
            raise PeerError(f"batch {message.seq} has labels from {labels.min()} to {labels.max()}")
        if message.skipped:
            self._check_skipped(message)
        if self.identity and message.identity != self.identity:
            raise PeerError(
                f"batch {message.seq} was made by identity {message.identity.hex()}, not {self.identity.hex()}"
            )
        return indices, labels

    def _check_skipped(self, message: Batch) -> None:
        rows = message.skipped
        if self.spec.on_corrupt != "skip":
            raise PeerError(f"batch {message.seq} comes without rows {rows[:5]} of a stream that skips none")
        if rows[-1] >= message.rows or any(before >= row for before, row in pairwise(rows)):
            raise PeerError(f"batch {message.seq} skips rows {rows[:5]} of {message.rows}, expected in ascending order")
