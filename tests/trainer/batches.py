"""Batches for the copy stage, without anybody who made them."""

import os
from dataclasses import dataclass, field

import numpy as np
import torch

from fourstage.arena import Arena, slot_bytes_for
from fourstage.order import Place
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import FeedBatch
from fourstage.views import View

SIZE, CROP, ROWS = 12, 8, 6
VIEW = View("random", CROP, colour_std=0.1)
_BYTES = ROWS * CROP * CROP * 3


def make_finish() -> Finish:
    """The finish step of stored images of SIZE and crops of CROP, on the CPU."""
    mean = (np.random.default_rng(1).random((SIZE, SIZE, 3)) * 255).astype(np.float32)
    return Finish(mean, VIEW, subtract="mean-image", device=torch.device("cpu"))


@dataclass
class Worker:
    """Whoever owns an arena of two slots; the receiver's mapping of it is ``arena``, read-only as always."""

    own: Arena = field(default_factory=lambda: Arena.create(2, slot_bytes_for(_BYTES)))
    arena: Arena = field(init=False)

    def __post_init__(self) -> None:
        self.arena = Arena.attach(os.dup(self.own.descriptor), self.own.slots, self.own.slot_bytes)

    def batch(self, seq: int, rows: int = ROWS, *, inline: bool = False) -> tuple[FeedBatch, list[int]]:
        """A batch in one of the slots, or beside them, and the list that its release adds its number to."""
        draw = np.random.default_rng(seq)
        pixels = draw.integers(0, 256, (rows, CROP, CROP, 3), np.uint8)
        slot, raw = seq % 2, pixels.tobytes()
        self.own.slot(slot, len(raw))[:] = raw
        where = memoryview(raw) if inline else self.arena.slot(slot, len(raw))
        released: list[int] = []
        batch = FeedBatch(
            seq=seq,
            place=Place(0, seq * ROWS, rows),
            keys=tuple(f"{seq}-{row}" for row in range(rows)),
            indices=np.arange(rows),
            labels=np.frombuffer(draw.integers(0, 9, rows).astype("<i4").tobytes(), "<i4"),
            offsets=draw.integers(0, SIZE - CROP + 1, (rows, 2)).astype(np.int32),
            reflections=draw.random(rows) < 0.5,
            shifts=draw.normal(0, 9, (rows, 3)).astype(np.float32),
            pixels=np.frombuffer(where, np.uint8).reshape(pixels.shape),
            identity=bytes(8),
            source=b"worker",
            _release=lambda batch: released.append(batch.seq),
            arena=None if inline else self.arena,
            slot=-1 if inline else slot,
        )
        return batch, released

    def close(self) -> None:
        self.arena.close()
        self.own.close()


def finished(batch: FeedBatch) -> torch.Tensor:
    """What the network is to see of a batch: float32 (rows, 3, CROP, CROP)."""
    out = torch.empty(batch.pixels.shape)
    return make_finish()(batch.pixels, batch.offsets, batch.reflections, batch.shifts, out, epoch=0)
