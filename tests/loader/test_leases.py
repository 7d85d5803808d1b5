"""The books of leases against a world that loses messages, workers and the loader itself."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fourstage.loader.leases import Grant, Leases
from tests.loader.world import IDENTITY, TIMING, Share, Trainer, Worker, World

Pick = st.integers(0, 7)


class LeasesMachine(RuleBasedStateMachine):
    """Anything may happen in any order; ``World`` checks every grant, ``teardown`` that nothing is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def worker(self, pick: int) -> Worker:
        workers = list(self.world.workers.values())
        return workers[pick % len(workers)]

    def stream(self, pick: int) -> bytes:
        return list(self.world.trainers)[pick % len(self.world.trainers)]

    @initialize(
        batches=st.integers(6, 40), slots=st.lists(st.integers(1, 5), min_size=1, max_size=3), rounds=st.integers(0, 3)
    )
    def begin(self, batches: int, slots: list[int], rounds: int) -> None:
        self.world.open(start=0, batches=batches, window=0)
        for number in slots:
            self.world.hire(slots=number)
        for _ in range(rounds):
            self.world.round()

    @precondition(lambda self: len(self.world.trainers) < 3)
    @rule(start=st.integers(0, 3), batches=st.integers(1, 12), window=st.sampled_from((0, 0, 0, 1, 5)))
    def open(self, start: int, batches: int, window: int) -> None:
        self.world.open(start=start, batches=batches, window=window)

    @precondition(lambda self: len(self.world.workers) < 8)
    @rule(slots=st.integers(1, 4), identity=st.sampled_from((IDENTITY, IDENTITY, IDENTITY, b"others")))
    def hire(self, slots: int, identity: bytes) -> None:
        self.world.hire(slots=slots, identity=identity)

    @rule(rounds=st.integers(1, 3))
    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.round()

    @rule(seconds=st.sampled_from((0.1, 0.6, 1.2, 6.0)))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule()
    def plan(self) -> None:
        self.world.load()
        self.world.plan()

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick, times=st.integers(1, 3))
    def beat(self, pick: int, times: int) -> None:
        for _ in range(times):
            self.world.beat(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick, messages=st.integers(1, 3))
    def hear_worker(self, pick: int, messages: int) -> None:
        for _ in range(messages):
            self.world.hear_worker(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick, messages=st.integers(1, 3))
    def hear_loader(self, pick: int, messages: int) -> None:
        for _ in range(messages):
            self.world.hear_loader(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick)
    def work(self, pick: int) -> None:
        self.world.work(self.worker(pick))

    @precondition(lambda self: self.world.workers and self.world.trainers)
    @rule(worker=Pick, stream=Pick)
    def hear_batch(self, worker: int, stream: int) -> None:
        self.world.hear_batch(self.worker(worker), self.stream(stream))

    @precondition(lambda self: self.world.workers and self.world.trainers)
    @rule(worker=Pick, stream=Pick)
    def hear_holds(self, worker: int, stream: int) -> None:
        self.world.hear_holds(self.worker(worker), self.stream(stream))

    @precondition(lambda self: self.world.trainers)
    @rule(stream=Pick)
    def consume(self, stream: int) -> None:
        self.world.consume(self.stream(stream))

    @precondition(lambda self: self.world.trainers)
    @rule(stream=Pick)
    def report(self, stream: int) -> None:
        self.world.report(self.stream(stream))

    @precondition(lambda self: self.world.trainers)
    @rule(stream=Pick, which=st.integers(-3, -1))
    def hear_report(self, stream: int, which: int) -> None:
        self.world.hear_report(self.stream(stream), which)

    @precondition(lambda self: self.world.trainers)
    @rule(stream=Pick)
    def close(self, stream: int) -> None:
        self.world.close(self.stream(stream))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick)
    def kill(self, pick: int) -> None:
        self.world.fault_kill(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick)
    def notice_death(self, pick: int) -> None:
        self.world.notice_death(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick)
    def freeze(self, pick: int) -> None:
        self.world.fault_freeze(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick)
    def thaw(self, pick: int) -> None:
        self.world.thaw(self.worker(pick))

    @precondition(lambda self: self.world.workers)
    @rule(pick=Pick, noticed=st.booleans())
    def lose_loader(self, pick: int, noticed: bool) -> None:
        self.world.fault_lose_loader(self.worker(pick), noticed=noticed)

    @precondition(lambda self: self.world.workers and self.world.trainers)
    @rule(worker=Pick, stream=Pick)
    def lose_trainer(self, worker: int, stream: int) -> None:
        self.world.fault_lose_trainer(self.worker(worker), self.stream(stream))

    @rule(delivered=st.booleans())
    def restart_loader(self, delivered: bool) -> None:
        self.world.fault_restart_loader(delivered=delivered)

    @precondition(lambda self: self.world.trainers)
    @rule(stream=Pick)
    def reopen(self, stream: int) -> None:
        self.world.reopen(self.stream(stream))

    def teardown(self) -> None:
        self.world.settle()


TestAnythingMayHappen = LeasesMachine.TestCase
TestAnythingMayHappen.settings = settings(max_examples=60, stateful_step_count=60, deadline=None, derandomize=True)
