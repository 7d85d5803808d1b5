"""A worker that is stopped, not dead, holds the batch that training waits for; later it comes back."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fourstage.order import BatchPlan, Order
from fourstage.trainer.feed import Feed
from fourstage.trainer.inbox import Inbox
from fourstage.views import View
from fourstage.wire.messages import Open
from tests.pipeline.harness import CROP, Services, eventually, services

BATCH, SAMPLES, VALIDATION = 8, 240, 48
BATCHES = 2 * SAMPLES // BATCH
SILENCE = 2.0
VALIDATION_EPOCHS = 5


def request(split: str, *, epochs: int) -> Open:
    train = split == "train"
    return Open(
        stream=bytes(16), split=split, view=View("random" if train else "centre", CROP), batch_size=BATCH,
        remainder="keep", shuffle=train, seed=3, rank=0, world=1, start=0, epochs=epochs, end=0, window=0,
        fingerprint="", identity=b"", transport="arena", receiver="", side="", worker=b"",
        on_corrupt="fail", secret=bytes(16),
    )  # fmt: skip


@contextmanager
def feed(running: Services) -> Iterator[Feed]:
    opened = Feed(running.address, name="test", sockets=running.folder)
    try:
        yield opened
    finally:
        opened.close()


def take(inbox: Inbox, batches: range, order: Order) -> None:
    """Take these batches, in time and in order, and give their slots back."""
    for seq in batches:
        batch = inbox.next(SILENCE + 8.0)
        assert batch is not None, f"batch {seq} has not come"
        assert batch.seq == seq
        assert np.array_equal(batch.indices, order.indices(seq))
        batch.release()
        inbox.train_on(seq)


@pytest.mark.parametrize("hedge", [0.3, 600.0], ids=["hedged", "silence only"])
def test_training_goes_on_and_no_slot_is_lost(store: Path, tmp_path: Path, hedge: float) -> None:
    settings = [f"loader.silence_seconds={SILENCE}", f"loader.hedge_seconds={hedge}", "augmenter.batch_seconds=0.02"]
    with services(store, tmp_path, 3, settings) as running, feed(running) as feeding:
        names = [name for name in running.processes if name != "loader"]
        train = feeding.open(request("train", epochs=2))
        validation = feeding.open(request("val", epochs=VALIDATION_EPOCHS))
        train.opened(20.0)
        validation.opened(20.0)

        def is_full(name: str) -> bool:
            # Two of three slots in both streams; the third is the spare, which the head may have taken.
            return running.metric(name, "fourstage_slots", state="used") >= 4.0

        # Frozen with leases in hand and a slot in work; the others fill up behind the head that it holds.
        def busy() -> str:
            return next((name for name in names if running.metric(name, "fourstage_slots", state="used") >= 1), "")

        frozen = eventually(busy, "a lease")
        running.signal(frozen, signal.SIGSTOP)
        eventually(lambda: all(is_full(name) for name in names if name != frozen), "full slots")

        order = Order(BatchPlan(SAMPLES, BATCH), seed=3, shuffle=True)
        take(train, range(BATCHES // 2), order)
        take(validation, range(3), Order(BatchPlan(VALIDATION, BATCH), seed=3, shuffle=False))

        running.signal(frozen, signal.SIGCONT)
        done = running.metric(frozen, "fourstage_batches_total", stage="transform")
        take(train, range(BATCHES // 2, BATCHES), order)
        take(
            validation,
            range(3, VALIDATION_EPOCHS * VALIDATION // BATCH),
            Order(BatchPlan(VALIDATION, BATCH), seed=3, shuffle=False),
        )
        assert running.metric(frozen, "fourstage_batches_total", stage="transform") > done + 3

        def used() -> list[float]:
            return [running.metric(name, "fourstage_slots", state="used") for name in names]

        eventually(lambda: used() == [0.0, 0.0, 0.0], "every slot free again")
