"""ZeroMQ makes a lost connection anew without a word: whoever only listens is nobody to the other end."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
import pytest

from fourstage.augmenter.draws import Draws
from fourstage.augmenter.outbox import Outbox
from fourstage.views import View
from fourstage.wire.messages import Batch, Hello, Holds, Lease, Stream, Welcome
from fourstage.wire.sockets import Bound, Peer, Waiter
from tests.faults.proxy import Proxy
from tests.pipeline.harness import eventually
from tests.wire.make_vectors import MESSAGES

M = TypeVar("M")
SILENCE = 5.0
DRAWS = Draws(np.zeros((1, 2), np.int64), np.zeros(1, np.bool_), np.zeros((1, 3), np.float32))
LEASE = next(
    dataclasses.replace(message, seq=0, rows=1, stream=bytes(16)) for message in MESSAGES if isinstance(message, Lease)
)


@pytest.fixture
def trainer() -> Iterator[Bound]:
    with Bound("tcp://127.0.0.1:0") as bound:
        yield bound


def outbox_to(address: str) -> Outbox:
    spec = Stream(
        stream=bytes(16), split="train", view=View("centre", 8), size=8, seed=0, largest_rows=1, colours=(0.0,) * 9,
        transport="inline", slots=1, slot_bytes=4096, receiver=address, side="", on_corrupt="fail",
    )  # fmt: skip
    return Outbox(
        spec, peer=bytes(16), name="w", identity=b"", slots=1, memory=1 << 20, waiter=Waiter(),
        sessions=itertools.count(1),
    )  # fmt: skip


def welcome(session: int) -> Welcome:
    return Welcome(peer=b"t" * 16, session=session, build="", side="", heartbeat_seconds=0.5, silence_seconds=SILENCE)


def finish_a_batch(outbox: Outbox) -> None:
    outbox.accept(LEASE, b"", memoryview(b""), time.monotonic())  # type: ignore[arg-type]  # any bytes
    outbox.finish(outbox.leased[0], DRAWS, (), made_from=0.0, now=time.monotonic(), clock_offset=0.0)


def test_a_worker_whose_batches_all_lay_with_the_trainer_was_never_told_that_they_were_free(trainer: Bound) -> None:
    port = urlsplit(trainer.address).port
    assert port is not None
    with Proxy(port) as network:
        outbox = outbox_to(f"tcp://127.0.0.1:{network.port}")

        def heard(kind: type[M], ahead: float = 0.0) -> tuple[Peer, M]:
            """The next message of a kind. ahead: seconds of the outbox's clock before ours."""

            def probe() -> tuple[Peer, M] | None:
                outbox.turn(time.monotonic() + ahead)
                received = trainer.receive()
                return (received[0], received[1]) if received is not None and isinstance(received[1], kind) else None

            found = eventually(probe, kind.__name__, 10.0)
            assert found is not None
            return found

        def welcomed(ahead: float = 0.0) -> tuple[Peer, int]:
            """A greeting, answered: who said it, and its session."""
            peer, hello = heard(Hello, ahead)
            trainer.send(peer, welcome(hello.session))
            return peer, hello.session

        def told(peer: Peer, session: int, *seqs: int) -> None:
            """What the trainer holds, until the worker knows."""
            trainer.send(peer, Holds(stream=bytes(16), session=session, seen=1, seqs=seqs))

            def knows() -> bool:
                outbox.turn(time.monotonic())
                return outbox.held == [] and outbox.slots[1] == 2 - len(seqs)

            eventually(knows, "HOLDS", 10.0)

        try:
            before, session = welcomed()
            finish_a_batch(outbox)
            heard(Batch)
            told(before, session, 0)

            network.hang_up()
            after, session = welcomed(SILENCE + 1.0)
            assert after != before
            heard(Batch)
            told(after, session)
        finally:
            outbox.close()


def test_a_trainer_whose_answer_took_more_than_half_a_second_was_never_sent_a_batch(trainer: Bound) -> None:
    way = 0.7
    answers: list[tuple[float, Peer, int]] = []
    outbox = outbox_to(trainer.address)
    finish_a_batch(outbox)

    def told() -> bool:
        now = time.monotonic()
        outbox.turn(now)
        arrival = trainer.receive()
        if arrival is not None and isinstance(arrival.message, Hello):
            answers.append((now + way, arrival.peer, arrival.message.session))
        while answers and answers[0][0] <= now:
            _, peer, session = answers.pop(0)
            trainer.send(peer, welcome(session))
        return arrival is not None and isinstance(arrival.message, Batch)

    try:
        eventually(told, "BATCH", 5.0)
    finally:
        outbox.close()
