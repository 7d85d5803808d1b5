"""CLOSE is one message, and messages are lost with a connection."""

import time
from pathlib import Path

from fourstage.wire.messages import Close, Open, Who
from fourstage.wire.sockets import Dialled
from tests.pipeline.harness import eventually
from tests.pipeline.receiving import HEARTBEAT, greet, held, receiving, send
from tests.pipeline.test_early_batch import heard


def test_a_stream_that_was_closed_while_the_loader_was_away_stayed_open_there(tmp_path: Path) -> None:
    with receiving(tmp_path) as running:
        closed, opening = running.open()
        _, other = running.open()
        # The loader does not know the trainer's connection any more, and until it has answered hears nothing.
        running.loader.send(running.trainer, Who())
        hello = running.greeted()
        running.feed.end(closed)
        eventually(lambda: opening.stream not in running.feed._inboxes, "the end")
        running.welcome(hello)
        assert heard(running.loader, Close)[1].stream == opening.stream
        assert heard(running.loader, Open)[1].stream == other.stream


def test_a_stream_whose_end_the_loader_had_not_heard_was_made_over_and_over(tmp_path: Path) -> None:
    with receiving(tmp_path) as running:
        inbox, opening = running.open()
        order = inbox.opened(0.0).order
        with Dialled(opening.receiver) as worker:
            greet(worker, session=1)
            began, number = time.monotonic(), 0
            running.feed.end(inbox)
            # It is lost, and the loader goes on with its leases.
            heard(running.loader, Close)

            def said_again() -> bool:
                nonlocal number
                number += 1
                send(worker, opening, order, number, session=1, number=number)
                assert held(worker, seen=number).seqs == ()
                received = running.loader.receive()
                return received is not None and received[1] == Close(opening.stream)

            for _ in range(3):
                eventually(said_again, "CLOSE")
            assert time.monotonic() - began >= 3 * HEARTBEAT
