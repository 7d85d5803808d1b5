"""The copy stage's way to a GPU, with CUDA's streams and events played here and the CPU as the device."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch

from fourstage.settings import MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.trainer import upload
from fourstage.trainer.copy import slot_tensor
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.upload import Upload
from tests.trainer.batches import CROP, ROWS, Worker, finished, make_finish
from tests.trainer.test_copy_registration import NOT_SUPPORTED, FakeRuntime

COPY_STREAM, TRAINING_STREAM = "copy stream", "training stream"
BYTES = ROWS * CROP * CROP * 3


@dataclass
class FakeCuda:
    """Everything that was asked of streams and events, in order."""

    runtime: FakeRuntime = field(default_factory=FakeRuntime)
    told: list[str] = field(default_factory=list)
    pinned: list[tuple[int, ...]] = field(default_factory=list)

    def stream(self, device: torch.device) -> "FakeStream":
        assert device.type == "cpu"
        return FakeStream(self)

    def event(self, *, blocking: bool = False) -> "FakeEvent":
        return FakeEvent(self, blocking)

    def pin(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.pinned.append(shape)
        return torch.empty(shape, dtype=dtype)


@dataclass
class FakeStream:
    cuda: FakeCuda

    def __str__(self) -> str:
        return COPY_STREAM

    def wait_stream(self, other: object) -> None:
        self.cuda.told.append(f"{self} waits for {other}")


@dataclass
class FakeEvent:
    cuda: FakeCuda
    blocking: bool

    def record(self, stream: object) -> None:
        self.cuda.told.append(f"record on {stream}")

    def synchronize(self) -> None:
        assert self.blocking, "whoever waits on the CPU must sleep"
        self.cuda.told.append("synchronize")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: TRAINING_STREAM)
    monkeypatch.setattr(upload, "pinned", fake.pin)
    monkeypatch.setattr(upload, "cuda_runtime", lambda _: fake.runtime)
    return fake


@dataclass
class Going:
    """An upload under test and the bytes that it has counted."""

    upload: Upload
    telemetry: Telemetry

    def __call__(self, buffer: int, batch: FeedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.full((len(batch.keys), CROP, CROP, 3), torch.nan)
        labels, _ = self.upload(buffer, batch, slot_tensor(batch.pixels), out)
        return out.permute(0, 3, 1, 2), labels

    def counted(self) -> dict[str, float]:
        name = "fourstage_uploaded_bytes_total"
        values = {path: self.telemetry.registry.get_sample_value(name, {"path": path}) for path in PATHS}
        return {path: value for path, value in values.items() if value}


PATHS = ("registered", "staged")


@pytest.fixture
def going(cuda: FakeCuda) -> Going:
    assert not cuda.told
    telemetry = Telemetry("trainer", MetricsSettings(), "1")
    made = Upload(
        make_finish(), rows=ROWS, crop=CROP, buffers=2, device=torch.device("cpu"), meter=telemetry.meter("copy")
    )
    return Going(made, telemetry)


def noting(batch: FeedBatch, told: list[str]) -> None:
    """Have the batch's release noted among what CUDA was told."""
    release: Callable[[FeedBatch], None] = batch._release

    def both(given: FeedBatch) -> None:
        told.append("release")
        release(given)

    batch._release = both


def test_a_slot_is_read_where_it_lies_and_given_back_when_it_was(cuda: FakeCuda, going: Going) -> None:
    worker = Worker()
    for seq in range(4):
        batch, released = worker.batch(seq, rows=ROWS - seq % 3)
        expected, labels = finished(batch), batch.labels.tolist()
        noting(batch, cuda.told)
        cuda.told.clear()
        images, on_device = going(seq % 2, batch)
        torch.testing.assert_close(images, expected, rtol=0, atol=0)
        assert on_device.dtype == torch.int64
        assert on_device.tolist() == labels
        assert released == [seq]
        record = f"record on {COPY_STREAM}"
        assert cuda.told == [record, "synchronize", "release", record]
    assert len(cuda.runtime.calls) == 1
    assert cuda.pinned == [(ROWS,)], "nothing but the labels goes through memory of our own"
    assert list(going.counted()) == ["registered"]
    worker.close()
    assert cuda.runtime.calls[1:] == ["unregister"]


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "refused"])
def test_other_memory_goes_through_one_page_locked_buffer(cuda: FakeCuda, going: Going, inline: bool) -> None:
    worker = Worker()
    cuda.runtime.code = NOT_SUPPORTED
    for seq in range(3):
        batch, released = worker.batch(seq, inline=inline)
        expected = finished(batch)
        images, _ = going(seq % 2, batch)
        torch.testing.assert_close(images, expected, rtol=0, atol=0)
        assert released == [seq]
    assert cuda.pinned == [(ROWS,), (ROWS, CROP, CROP, 3)]
    assert [call.partition(" ")[0] for call in cuda.runtime.calls] == ([] if inline else ["register", "clear"])
    assert going.counted() == {"staged": 3 * BYTES}
    worker.close()


def test_an_inline_batch_between_others_leaves_them_registered(going: Going) -> None:
    worker = Worker()
    for seq in range(4):
        going(seq % 2, worker.batch(seq, inline=seq == 2)[0])
    assert going.counted() == {"registered": 3 * BYTES, "staged": BYTES}
    worker.close()


def test_an_empty_share_of_a_batch_passes(going: Going) -> None:
    worker = Worker()
    images, labels = going(0, worker.batch(0, rows=0)[0])
    assert images.shape == (0, 3, CROP, CROP)
    assert labels.tolist() == []
    worker.close()


def test_labels_of_two_batches_in_flight_lie_apart(going: Going) -> None:
    worker = Worker()
    first, second = worker.batch(0)[0], worker.batch(1)[0]
    expected = first.labels.tolist()
    _, labels = going(0, first)
    going(1, second)
    assert labels.tolist() == expected
    worker.close()


def test_a_buffer_is_filled_again_after_training_has_used_it(cuda: FakeCuda, going: Going) -> None:
    cuda.told.clear()
    going.upload.trained(1)
    going.upload.wait(1)
    assert cuda.told == [f"record on {TRAINING_STREAM}", "synchronize"]
