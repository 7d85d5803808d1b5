"""The copy stage on a CPU: in order, two buffers ahead, slots given back as soon as they were read."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fourstage.errors import FourstageError
from fourstage.process import StopFlag
from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.trainer.copy import CopyStage
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import Inbox
from fourstage.wire.messages import Open, Opened
from tests.trainer.batches import CROP, ROWS, SIZE, VIEW, Worker, finished, make_finish

END = 5


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def inbox() -> Inbox:
    spec = Open(
        stream=bytes(16), split="train", view=VIEW, batch_size=ROWS, remainder="keep", shuffle=True, seed=0, rank=0,
        world=1, start=0, epochs=1, end=END, window=0, fingerprint="", identity=b"", transport="arena", receiver="",
        side="", worker=b"", on_corrupt="fail", secret=bytes(16),
    )  # fmt: skip
    opened = Opened(
        stream=bytes(16), samples=END * ROWS, batches_per_epoch=END, end=END, largest_rows=ROWS, size=SIZE,
        fingerprint="f", classes=("a", "b"), splits=("train",),
    )  # fmt: skip
    inbox = Inbox(spec, lambda: None)
    inbox.open(opened, np.zeros((SIZE, SIZE, 3), np.float32))
    return inbox


def stage(inbox: Inbox, finish: Finish | None) -> CopyStage:
    return CopyStage(
        inbox, finish, rows=ROWS, crop=CROP, device=torch.device("cpu"), digest_pixels=False,
        meter=Telemetry("trainer", MetricsSettings(), "1").meter("copy"), label="train",
    )  # fmt: skip


def test_every_batch_comes_finished_and_in_order_and_gives_its_slot_back(worker: Worker, inbox: Inbox) -> None:
    copying, stop = stage(inbox, make_finish()), StopFlag()
    for seq in range(END):
        batch, released = worker.batch(seq, rows=ROWS - seq % 2)
        expected = finished(batch)
        inbox.put(batch)
        item = copying.next(stop)
        assert item is not None
        assert item.batch.seq == seq
        assert released == [seq]
        assert item.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(item.images, expected, rtol=0, atol=0)
        assert item.labels.dtype == torch.int64
        assert item.labels.tolist() == batch.labels.tolist()
        copying.recycle(item)
    assert copying.next(stop) is None
    copying.close()


def test_two_batches_are_filled_ahead_and_a_third_waits_for_a_buffer(worker: Worker, inbox: Inbox) -> None:
    batches = [worker.batch(seq, inline=True)[0] for seq in range(3)]
    expected = [finished(batch) for batch in batches]
    for batch in batches:
        inbox.put(batch)
    copying, stop = stage(inbox, make_finish()), StopFlag()
    first, second = copying.next(stop), copying.next(stop)
    assert first is not None
    assert second is not None
    assert first.buffer != second.buffer
    assert inbox.waiting == 1
    torch.testing.assert_close(first.images, expected[0], rtol=0, atol=0)
    copying.recycle(first)
    third = copying.next(stop)
    assert third is not None
    assert third.buffer == first.buffer
    torch.testing.assert_close(second.images, expected[1], rtol=0, atol=0)
    torch.testing.assert_close(third.images, expected[2], rtol=0, atol=0)
    copying.close()


def test_without_a_finish_the_slot_is_free_as_after_a_copy(worker: Worker, inbox: Inbox) -> None:
    batch, released = worker.batch(0)
    inbox.put(batch)
    copying = stage(inbox, None)
    item = copying.next(StopFlag())
    assert item is not None
    assert released == [0]
    copying.close()


def test_what_went_wrong_before_it_is_raised_where_batches_are_taken(inbox: Inbox) -> None:
    copying = stage(inbox, make_finish())
    inbox.fail(FourstageError("the loader said no"))
    with pytest.raises(FourstageError, match="the loader said no"):
        copying.next(StopFlag())
    copying.close()


def test_a_batch_of_another_form_ends_the_stage_with_a_name(worker: Worker, inbox: Inbox) -> None:
    batch, _ = worker.batch(0)
    batch.offsets = batch.offsets + SIZE
    inbox.put(batch)
    copying = stage(inbox, make_finish())
    with pytest.raises(FourstageError, match="crop offsets"):
        copying.next(StopFlag())
    copying.close()


def test_who_was_told_to_stop_waits_no_longer(inbox: Inbox) -> None:
    copying, stop = stage(inbox, make_finish()), StopFlag()
    stop.set("test")
    assert copying.next(stop) is None
    copying.close()
