"""An inbox against any order of arrivals, takings, releases and reports: each batch once, in order."""

from typing import ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fourstage.order import BatchPlan, Order, Place
from fourstage.trainer.inbox import FeedBatch, Inbox
from fourstage.wire.messages import Opened
from tests.fuzz.samples import IDENTITY, made
from tests.fuzz.targets.feed import an_open

_BATCHES = 12
_EMPTY = np.empty(0)


def _batch(inbox: Inbox, seq: int) -> FeedBatch:
    return FeedBatch(
        seq=seq, place=Place(0, 0, 0), keys=(), indices=_EMPTY.astype(np.int64), labels=_EMPTY.astype(np.int32),
        offsets=_EMPTY.astype(np.int32), reflections=_EMPTY.astype(np.bool_), shifts=_EMPTY.astype(np.float32),
        pixels=np.empty((0, 0, 0, 3), np.uint8), identity=IDENTITY, source=b"worker", _release=inbox.give_back,
    )  # fmt: skip


class InboxMachine(RuleBasedStateMachine):
    """The model: a set of what has arrived, a list of what was taken."""

    seqs: ClassVar = st.integers(0, _BATCHES - 1)

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0
        self.inbox = Inbox(an_open(), self._wake)
        self.inbox.open(
            made(Opened, samples=36, batches_per_epoch=9, end=_BATCHES, largest_rows=4), np.zeros((1, 1, 3), np.float32)
        )
        self.arrived: set[int] = set()
        self.taken: list[FeedBatch] = []
        self.held: list[FeedBatch] = []
        self.released = 0
        self.consumed = 0

    def _wake(self) -> None:
        self.woken += 1

    @rule(seq=seqs)
    def arrives(self, seq: int) -> None:
        assert self.inbox.is_new(seq) == (seq not in self.arrived and seq >= self.consumed)
        if self.inbox.is_new(seq):
            self.inbox.put(_batch(self.inbox, seq))
            self.arrived.add(seq)

    @rule()
    def is_taken(self) -> None:
        batch = self.inbox.next(0.0)
        assert (batch is not None) == (len(self.taken) in self.arrived)
        if batch is not None:
            assert batch.seq == len(self.taken)
            self.taken.append(batch)
            self.held.append(batch)

    @rule()
    def is_trained_on(self) -> None:
        if self.consumed < len(self.taken):
            self.inbox.train_on(self.consumed)
            self.consumed += 1

    @rule(pick=st.integers(0, 3))
    def is_released(self, pick: int) -> None:
        if self.held:
            self.held.pop(pick % len(self.held)).release()
            self.released += 1

    @rule()
    def is_told(self) -> None:
        assert self.inbox.progress() == (self.consumed, tuple(sorted(s for s in self.arrived if s >= self.consumed)))

    @rule()
    def slots_come_back(self) -> None:
        assert len(self.inbox.released()) == self.released
        self.released = 0

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.inbox.waiting == len(self.arrived) - len(self.taken)
        assert self.inbox.done == (len(self.taken) == _BATCHES)


TestAnyOrder = InboxMachine.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=60, deadline=None, derandomize=True)


def test_the_order_of_the_machine_is_the_streams() -> None:
    inbox = Inbox(an_open(), lambda: None)
    inbox.open(
        made(Opened, samples=36, batches_per_epoch=9, end=_BATCHES, largest_rows=4), np.zeros((1, 1, 3), np.float32)
    )
    assert inbox.info is not None
    expected = Order(BatchPlan(36, 4), seed=5, shuffle=True).indices(3)
    assert (inbox.info.order.indices(3) == expected).all()
