"""One stream, two columns: the same bytes, and a slot is free when both have read it."""

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourstage.errors import CorruptSampleError, FourstageError, PeerLostError, SettingsError
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.trainer.relay import Batches, RelayedInbox, RelayingInbox, connect, listen
from fourstage.views import View
from tests.pipeline.harness import eventually
from tests.trainer.relayed import PER_EPOCH, Returns, Worker, deliver, mean, open_descriptors, opened, pair, request

ROOT = Path(__file__).parents[2]
SECOND_COLUMN = """
import hashlib, sys
from pathlib import Path
from fourstage.trainer.relay import RelayedInbox, connect
from tests.trainer.relayed import request

batches = RelayedInbox(connect(Path(sys.argv[1]), 10.0), request())
batches.opened(10.0)
held = []
for number in range(int(sys.argv[2])):
    batch = batches.next(10.0)
    print(hashlib.sha256(batch.pixels.tobytes()).hexdigest(), flush=True)
    held.append(batch)
    if len(sys.argv) == 3:
        batch.release()
sys.stdin.read()
batches.close()
"""


class SecondColumn:
    """The second column's trainer as a process of its own; it keeps its batches where asked to."""

    def __init__(self, inbox: Inbox, folder: Path, batches: int, *keep: str) -> None:
        listener = listen(folder)
        command = [sys.executable, "-c", SECOND_COLUMN, str(listener.path), str(batches), *keep]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.first = RelayingInbox(inbox, listener)
        self.first.opened(30.0)

    def digest(self) -> str:
        """The SHA-256 of the next batch's pixels, as it sees them."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def end(self) -> None:
        self.first.close()
        self.process.kill()
        self.process.communicate()


def fields(batch: FeedBatch) -> list[object]:
    """All that a consumer reads of a batch."""
    arrays = (batch.indices, batch.labels, batch.offsets, batch.reflections, batch.shifts, batch.pixels)
    return [
        *[(array.dtype, array.shape, array.tobytes()) for array in arrays],
        batch.seq, batch.place, batch.keys, batch.identity,
    ]  # fmt: skip


@pytest.fixture
def worker() -> Iterator[Worker]:
    alive = Worker()
    yield alive
    alive.die()


@pytest.mark.parametrize("inline", [False, True])
def test_both_columns_see_the_same_stream(tmp_path: Path, worker: Worker, inline: bool) -> None:
    with pair(tmp_path) as ends:
        ours, theirs = ends.first.opened(1.0), ends.second.opened(1.0)
        assert ours.opened == theirs.opened
        assert ours.mean.tobytes() == theirs.mean.tobytes() == mean().tobytes()
        for seq in range(2 * PER_EPOCH):
            pixels = deliver(ends.inbox, seq, None if inline else worker)
            first, second = ends.take()
            assert first.pixels.tobytes() == second.pixels.tobytes() == pixels
            assert fields(first) == fields(second)
            assert inline or not second.pixels.flags.writeable
            first.release()
            second.release()
            for end in (ends.first, ends.second):
                end.train_on(seq)
                assert end.consumed == seq + 1
        eventually(lambda: ends.returns.look() == list(range(2 * PER_EPOCH)), "every slot given back")
        assert ends.first.identity == ends.second.identity == b"pixels"


def test_both_ends_are_what_the_copy_stage_takes(tmp_path: Path) -> None:
    with pair(tmp_path, spec=request(end=1)) as ends:
        for end in (ends.inbox, ends.first, ends.second):
            batches: Batches = end
            assert (batches.spec.seed, batches.duplicates, batches.waiting, batches.done) == (
                request().seed,
                0,
                0,
                False,
            )


@given(st.lists(st.tuples(st.sampled_from(["take", "here", "there"]), st.integers(0, 3)), max_size=40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_slot_is_given_back_once_and_never_before_both_have_read_it(
    tmp_path: Path, steps: list[tuple[str, int]]
) -> None:
    worker = Worker(slots=64)
    both: set[int] = set()
    with pair(tmp_path) as ends:
        here: dict[int, FeedBatch] = {}
        there: dict[int, FeedBatch] = {}
        taken = 0
        for step, choice in [*steps, *[("here", 0), ("there", 0)] * len(steps)]:
            if step == "take":
                deliver(ends.inbox, taken, worker)
                here[taken], there[taken] = ends.take()
                taken += 1
                continue
            mine, others = (here, there) if step == "here" else (there, here)
            if mine:
                seq = list(mine)[choice % len(mine)]
                batch = mine.pop(seq)
                if seq not in others:
                    both.add(seq)
                batch.release()
            assert both.issuperset(ends.returns.look())
        eventually(lambda: len(ends.returns.look()) >= taken, "every slot given back")
        assert sorted(ends.returns.seqs) == list(range(taken))
    worker.die()


def test_a_release_reaches_the_inbox_while_the_first_column_sleeps_for_a_batch(tmp_path: Path, worker: Worker) -> None:
    with pair(tmp_path) as ends:
        deliver(ends.inbox, 0, worker)
        mine, theirs = ends.take()
        mine.release()
        sleeper = threading.Thread(target=ends.first.next, args=(60.0,))
        sleeper.start()
        theirs.release()
        eventually(lambda: ends.returns.look() == [0], "the slot given back")
        assert sleeper.is_alive()
        ends.first.close()
        sleeper.join(30.0)
        assert not sleeper.is_alive()


@pytest.mark.parametrize("error", [FourstageError("the disk is full", hint="free it"), CorruptSampleError("k/7")])
def test_an_error_of_the_stream_is_raised_by_both(tmp_path: Path, error: FourstageError) -> None:
    with pair(tmp_path) as ends:
        ends.inbox.fail(error)
        with pytest.raises(type(error)) as here:
            ends.first.next(10.0)
        with pytest.raises(type(error)) as there:
            ends.second.next(10.0)
        assert str(here.value) == str(there.value) == str(error)


def test_a_refusal_to_open_is_raised_by_both(tmp_path: Path) -> None:
    with pair(tmp_path, open_now=False) as ends:
        with pytest.raises(TimeoutError):
            ends.first.opened(0.01)
        with pytest.raises(TimeoutError):
            ends.second.opened(0.01)
        ends.inbox.fail(FourstageError("no such split"))
        for end in (ends.first, ends.second):
            with pytest.raises(FourstageError, match="no such split"):
                end.opened(10.0)


def test_the_end_of_the_stream_is_the_end_for_both(tmp_path: Path) -> None:
    with pair(tmp_path, open_now=False) as ends:
        ends.inbox.open(opened(end=2), mean())
        ends.first.opened(10.0)
        ends.second.opened(10.0)
        for seq in range(2):
            assert not ends.first.done
            assert not ends.second.done
            deliver(ends.inbox, seq)
            ends.take()
        assert ends.first.done
        assert ends.second.done
        ends.first.close()
        assert ends.second.next(0.05) is None


def test_whoever_closes_ends_the_stream_for_the_other_without_an_error(tmp_path: Path) -> None:
    for closes, waits in (("first", "second"), ("second", "first")):
        with pair(tmp_path) as ends:
            deliver(ends.inbox, 0)
            mine, theirs = ends.take()
            getattr(ends, closes).close()
            deliver(ends.inbox, 1)
            for _ in range(3):
                assert getattr(ends, waits).next(0.02) is None
                assert getattr(ends, closes).next(0.02) is None
            mine.release()
            theirs.release()


@pytest.mark.parametrize("changes", [{"seed": 9}, {"batch_size": 8}, {"start": 3}, {"view": View("centre", 2)}])
def test_two_streams_are_not_taken_for_one(tmp_path: Path, changes: dict[str, object]) -> None:
    inbox = Inbox(request(), lambda: None)
    inbox.open(opened(), mean())
    listener = listen(tmp_path)
    first, second = RelayingInbox(inbox, listener), RelayedInbox(connect(listener.path, 5.0), request(**changes))
    first.opened(10.0)
    with pytest.raises(SettingsError, match=next(iter(changes))):
        second.opened(10.0)
    second.close()
    first.close()


def test_a_second_column_that_does_not_read_holds_nothing_up_for_ever(tmp_path: Path) -> None:
    crop = 600
    spec = request(view=View("random", crop))
    with pair(tmp_path, open_now=False, spec=spec) as ends:
        ends.inbox.open(opened(end=1, size=crop), np.zeros((crop, crop, 3), np.float32))
        opening = threading.Thread(target=ends.second.opened, args=(10.0,))
        opening.start()
        ends.first.opened(10.0)
        opening.join()
        pixels = deliver(ends.inbox, 0, crop=crop)
        for _ in range(3):
            assert ends.first.next(0.02) is None
            assert not ends.first.done
        received: list[FeedBatch | None] = []
        reader = threading.Thread(target=lambda: received.append(ends.second.next(30.0)))
        reader.start()
        mine = ends.first.next(30.0)
        reader.join()
        assert mine is not None
        assert received[0] is not None
        assert mine.pixels.tobytes() == received[0].pixels.tobytes() == pixels
        assert ends.first.done
        # And closing does not wait for it either.
        deliver(ends.inbox, 1, crop=crop)
        sender = threading.Thread(target=ends.first.next, args=(60.0,))
        sender.start()
        ends.first.close()
        sender.join(30.0)
        assert not sender.is_alive()
        with pytest.raises(PeerLostError, match="the trainer of the first column is gone"):
            ends.second.next(10.0)


def test_another_process_sees_the_same_bytes(tmp_path: Path, worker: Worker) -> None:
    inbox = Inbox(request(), lambda: None)
    inbox.open(opened(), mean())
    second = SecondColumn(inbox, tmp_path, 6)
    try:
        for seq in range(6):
            pixels = deliver(inbox, seq, worker if seq % 3 else None)
            mine = second.first.next(30.0)
            assert mine is not None
            assert second.digest() == hashlib.sha256(pixels).hexdigest()
            mine.release()
        returns = Returns(inbox)
        eventually(lambda: returns.look() == list(range(6)), "every slot given back")
    finally:
        second.end()


def test_a_killed_second_column_is_named_and_holds_no_slot(tmp_path: Path, worker: Worker) -> None:
    inbox = Inbox(request(), lambda: None)
    inbox.open(opened(), mean())
    second = SecondColumn(inbox, tmp_path, 3, "keep")
    try:
        batches = []
        for seq in range(3):
            deliver(inbox, seq, worker)
            batches.append(second.first.next(30.0))
            second.digest()
        first, *others = batches
        assert first is not None
        first.release()
        assert inbox.released() == []
        second.process.send_signal(signal.SIGKILL)
        with pytest.raises(PeerLostError, match="the trainer of the second column is gone"):
            second.first.next(30.0)
        given_back = [batch.seq for batch in inbox.released()]
        assert given_back == [0]
        for batch in others:
            assert batch is not None
            batch.release()
        assert [batch.seq for batch in inbox.released()] == [1, 2]
    finally:
        second.end()


def test_a_frozen_second_column_keeps_its_slots(tmp_path: Path, worker: Worker) -> None:
    inbox = Inbox(request(), lambda: None)
    inbox.open(opened(), mean())
    second = SecondColumn(inbox, tmp_path, 1, "keep")
    try:
        deliver(inbox, 0, worker)
        mine = second.first.next(30.0)
        second.digest()
        second.process.send_signal(signal.SIGSTOP)
        assert mine is not None
        mine.release()
        assert second.first.next(0.1) is None
        second.first.close()
        assert inbox.released() == []
    finally:
        second.end()


def test_arenas_of_workers_that_come_and_go_are_not_kept(tmp_path: Path) -> None:
    with pair(tmp_path) as ends:
        counts: list[int] = []
        for seq in range(40):
            worker = Worker(slots=2)
            deliver(ends.inbox, seq, worker)
            for batch in ends.take():
                batch.release()
            eventually(lambda: len(ends.returns.look()) > len(counts), "the slot given back")
            worker.die()
            counts.append(open_descriptors())
        assert len(set(counts)) == 1
    assert open_descriptors() < counts[0]


def test_what_a_dead_worker_made_stays_whole_while_it_is_held(tmp_path: Path, worker: Worker) -> None:
    old = Worker()
    with pair(tmp_path) as ends:
        pixels = deliver(ends.inbox, 0, old)
        mine, theirs = ends.take()
        mine.release()
        # The feed gives everything up when a stream ends under its readers.
        old.die()
        for seq in (1, 2):
            deliver(ends.inbox, seq, worker)
            ends.take()
        assert theirs.pixels.tobytes() == pixels
        held = open_descriptors()
        theirs.release()
        # The arena's own descriptor and its mapping's.
        eventually(lambda: open_descriptors() <= held - 2, "the old arena closed")


def test_a_batch_of_an_arena_that_is_closed_is_refused(tmp_path: Path) -> None:
    worker = Worker()
    with pair(tmp_path) as ends:
        deliver(ends.inbox, 0, worker)
        worker.die()
        with pytest.raises(FourstageError, match="owner of an arena is gone"):
            ends.first.next(1.0)
        with pytest.raises(FourstageError, match="owner of an arena is gone"):
            ends.second.next(1.0)
