"""A worker's first words to a trainer."""

import itertools

from fourstage.augmenter.outbox import Outbox
from fourstage.views import View
from fourstage.wire.messages import Hello, Stream
from fourstage.wire.sockets import Bound, Waiter
from tests.pipeline.harness import eventually


def test_a_worker_greets_once_it_is_connected_not_half_a_second_later() -> None:
    waiter = Waiter()
    with Bound("tcp://127.0.0.1:0") as trainer:
        spec = Stream(
            stream=bytes(16), split="train", view=View("centre", 8), size=8, seed=0, largest_rows=1, colours=(0.0,) * 9,
            transport="inline", slots=1, slot_bytes=4096, receiver=trainer.address, side="", on_corrupt="fail",
        )  # fmt: skip
        outbox = Outbox(
            spec, peer=bytes(16), name="w", identity=b"", slots=1, memory=1 << 20, waiter=waiter,
            sessions=itertools.count(1),
        )  # fmt: skip

        def greeted() -> bool:
            # No time passes: whatever waits for a moment to come waits for ever.
            outbox.turn(0.0)
            received = trainer.receive()
            return received is not None and isinstance(received[1], Hello)

        try:
            eventually(greeted, "a greeting", 5.0)
        finally:
            outbox.close()
