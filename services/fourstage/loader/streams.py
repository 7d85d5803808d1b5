"""What the loader keeps for one open stream: its order, its split, and the slots of JPEG bytes."""

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fourstage.arena import Arena, slot_bytes_for
from fourstage.errors import FourstageError, SettingsError
from fourstage.order import BatchPlan, Order
from fourstage.store import Split, Store
from fourstage.wire.codec import encode_body
from fourstage.wire.messages import Failed, Open, Samples

MOST_SLOTS = 1024
"""JPEG slots of one stream, which bound the leases that are out; untouched slots take no memory."""


@dataclass(slots=True)
class Slotted:
    """A batch that has a JPEG slot: in reading, or read."""

    slot: int
    size: int
    sizes: bytes
    samples: bytes
    read_from: float = 0.0
    """When its reading began and ended, in monotonic seconds; 0: not yet."""
    read_to: float = 0.0


@dataclass(slots=True)
class LoaderStream:
    """One stream, as the loader serves it."""

    spec: Open
    split: Split
    order: Order
    end: int
    arena: Arena
    client: bytes
    """The trainer that opened it."""
    user: str
    """That one's public key; empty without keys."""
    free: list[int]
    """A heap: the lowest slots are used again and again, the others stay untouched."""
    slotted: dict[int, Slotted] = field(default_factory=dict)
    reading: set[int] = field(default_factory=set)
    """Slots that a reading thread writes into."""
    orphaned: set[int] = field(default_factory=set)
    """Those of them whose batch has arrived from elsewhere: free once the thread is done."""
    prefetched: int = 0
    """Batches before this one were announced to the kernel."""
    failure: Failed | None = None
    """Why it cannot go on."""

    @property
    def name(self) -> str:
        """A short name for logs."""
        return self.spec.stream.hex()[:8]

    def claim(self, seq: int) -> tuple[Slotted, NDArray[np.int64]]:
        """Take the lowest free slot for a batch; its samples' indices."""
        slot = heapq.heappop(self.free)
        indices = self.order.indices(seq)
        sizes = self.split.records["size"][indices].astype("<u4")
        slotted = Slotted(slot, int(sizes.sum()), sizes.tobytes(), self._samples(indices))
        self.slotted[seq] = slotted
        self.reading.add(slot)
        return slotted, indices

    def samples(self, seq: int) -> bytes:
        """What a batch is made of, as it travels."""
        slotted = self.slotted.get(seq)
        return slotted.samples if slotted is not None else self._samples(self.order.indices(seq))

    def _samples(self, indices: NDArray[np.int64]) -> bytes:
        samples = Samples(
            indices=indices.astype("<i8").tobytes(),
            labels=self.split.labels(indices).astype("<i4").tobytes(),
            keys=tuple(self.split.keys(indices)),
        )
        return encode_body(samples)

    def release(self, seq: int) -> Slotted | None:
        """The batch has arrived: its slot is free, unless a thread still reads into it."""
        slotted = self.slotted.pop(seq, None)
        if slotted is not None:
            if slotted.slot in self.reading:
                self.orphaned.add(slotted.slot)
            else:
                heapq.heappush(self.free, slotted.slot)
        return slotted

    def read_done(self, slot: int) -> None:
        """A thread has finished with a slot."""
        self.reading.discard(slot)
        if slot in self.orphaned:
            self.orphaned.remove(slot)
            heapq.heappush(self.free, slot)


def open_stream(store: Store, spec: Open, client: bytes, memory: int, user: str = "") -> LoaderStream:
    """Check an OPEN against the store and make its arena.

    memory: bytes that the JPEG slots may take. Raises a FourstageError whose text is sent to the trainer.
    """
    if spec.fingerprint and spec.fingerprint != store.fingerprint:
        raise FourstageError(
            f"the stream wants the store {spec.fingerprint}, this loader serves {store.fingerprint}",
            hint="resume with the store that the run began with",
        )
    if spec.view.crop > store.size:
        raise SettingsError(
            f"augmenter.crop = {spec.view.crop} is larger than the store's images of {store.size}x{store.size}"
        )
    if spec.rank >= spec.world:
        raise SettingsError(f"rank {spec.rank} of a world of {spec.world}")
    if len(spec.worker) not in (0, 16):
        raise SettingsError(f"the only worker is named by {len(spec.worker)} bytes, not by 16")
    split = store.split(spec.split)
    plan = BatchPlan(len(split), spec.batch_size, spec.remainder, spec.rank, spec.world)
    last = spec.epochs * plan.batches_per_epoch
    end = min(spec.end, last) if spec.end else last
    slot_bytes = slot_bytes_for(largest_batch_bytes(split, plan.largest_rows))
    slots = min(MOST_SLOTS, memory // slot_bytes)
    if slots < 1:
        raise SettingsError(
            f"loader.memory = {memory} is too small for one batch of up to {slot_bytes} bytes",
            hint="raise it or lower batch_size",
        )
    return LoaderStream(
        spec=spec,
        split=split,
        order=Order(plan, seed=spec.seed, shuffle=spec.shuffle),
        end=end,
        arena=Arena.create(slots, slot_bytes),
        client=client,
        user=user,
        prefetched=spec.start,
        free=list(range(slots)),
    )


def largest_batch_bytes(split: Split, rows: int) -> int:
    """Bytes of the ``rows`` largest images of a split: no batch of that many rows is larger."""
    if rows == 0:
        return 0
    sizes = np.asarray(split.records["size"], np.int64)
    if rows < len(sizes):
        sizes = np.partition(sizes, len(sizes) - rows)[-rows:]
    return int(sizes.sum())
