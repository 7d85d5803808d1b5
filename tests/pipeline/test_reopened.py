"""A stream that ends at a worker and comes again under its own name: the loader dropped a trainer that was silent, and
got the same OPEN from it once more."""

import os
from pathlib import Path
from typing import TypeVar

from fourstage.augmenter.service import AugmenterService
from fourstage.process import StopFlag
from fourstage.settings import AugmenterSettings, MetricsSettings
from fourstage.telemetry import Telemetry
from fourstage.views import View
from fourstage.wire.messages import Gone, Hello, Stream, Welcome
from fourstage.wire.sockets import Bound, Dialled, Peer
from tests.pipeline.harness import eventually
from tests.pipeline.receiving import PIXELS, greet, hand_over, hang_up, held, is_mapped, receiving, send

M = TypeVar("M")


def test_a_stream_that_came_again_was_greeted_under_a_session_that_had_been_used(tmp_path: Path) -> None:
    with Bound(f"ipc://{tmp_path / 'loader'}") as loader, Bound(f"ipc://{tmp_path / 'trainer'}") as trainer:
        service = AugmenterService(
            loader.address, AugmenterSettings(memory=1 << 20), name="w",
            telemetry=Telemetry("augmenter", MetricsSettings(), "test"), stop=StopFlag(),
        )  # fmt: skip

        def heard(at: Bound, kind: type[M]) -> tuple[Peer, M]:
            def probe() -> tuple[Peer, M] | None:
                service._turn()
                received = at.receive()
                return (received[0], received[1]) if received is not None and isinstance(received[1], kind) else None

            found = eventually(probe, kind.__name__, 10.0)
            assert found is not None
            return found

        try:
            worker, hello = heard(loader, Hello)
            loader.send(
                worker,
                Welcome(
                    peer=bytes(16), session=hello.session, build="", side="", heartbeat_seconds=0.5,
                    silence_seconds=60.0,
                ),
            )  # fmt: skip
            spec = Stream(
                stream=bytes(16), split="train", view=View("centre", 8), size=8, seed=0, largest_rows=1,
                colours=(0.0,) * 9, transport="inline", slots=1, slot_bytes=4096, receiver=trainer.address, side="",
                on_corrupt="fail",
            )  # fmt: skip
            loader.send(worker, spec)
            old, before = heard(trainer, Hello)
            loader.send(worker, Gone(spec.stream))
            loader.send(worker, spec)
            new, after = heard(trainer, Hello)
            while new == old:
                new, after = heard(trainer, Hello)
            assert after.session > before.session
        finally:
            service.close()


def test_a_worker_was_told_that_batches_had_been_heard_that_were_still_on_the_way(tmp_path: Path) -> None:
    with receiving(tmp_path) as running:
        inbox, opening = running.open()
        order = inbox.opened(0.0).order
        with Dialled(opening.receiver) as before, Dialled(opening.receiver) as after:
            greet(before, session=1)
            for seq in range(8):
                send(before, opening, order, seq, session=1, number=seq + 1)
            # Batches are held from then on, and so is all that is known of their worker.
            assert held(before, seen=8).seqs == tuple(range(8))

            greet(after, session=1)
            send(after, opening, order, 20, session=1, number=1)
            assert held(after, seen=1).seen == 1, "number 2 is on the way"


def test_a_worker_that_came_again_was_refused_its_new_arena_while_anything_lay_in_the_old_one(tmp_path: Path) -> None:
    with receiving(tmp_path) as running:
        inbox, opening = running.open()
        order = inbox.opened(0.0).order
        with Dialled(opening.receiver) as before, Dialled(opening.receiver) as after:
            connection, old = hand_over(opening, filled=1)
            greet(before, session=1)
            send(before, opening, order, 0, session=1, number=1, slot=0)
            first = inbox.next(10.0)
            assert first is not None
            hang_up(connection)
            inode = os.fstat(old.descriptor).st_ino
            old.close()

            connection, new = hand_over(opening, filled=2)
            greet(after, session=2)
            # From before the end, and late: its pixels are not in the new arena.
            send(before, opening, order, 3, session=1, number=2, slot=1)
            greet(before, session=1)
            assert 3 not in inbox.arrived
            # The same slot of another arena is free.
            send(after, opening, order, 1, session=2, number=1, slot=0)
            second = inbox.next(10.0)
            assert second is not None
            assert second.pixels.tobytes() == b"\2" * PIXELS
            assert first.pixels.tobytes() == b"\1" * PIXELS
            assert held(after, seen=1).seqs == (1,), "what lies in the old arena keeps no slot of the new one"

            assert is_mapped(inode)
            first.release()
            eventually(lambda: not is_mapped(inode), "the old arena is given back", 10.0)
            second.release()
            while held(after, seen=1).seqs:
                pass
            send(after, opening, order, 2, session=2, number=2, slot=0)
            assert inbox.next(10.0) is not None
            connection.close()
            new.close()


def test_a_batch_that_was_on_the_way_when_its_worker_hung_up_was_taken_for_a_lie(tmp_path: Path) -> None:
    with receiving(tmp_path) as running:
        inbox, opening = running.open()
        order = inbox.opened(0.0).order
        with Dialled(opening.receiver) as worker:
            connection, arena = hand_over(opening, filled=1)
            greet(worker, session=1)
            send(worker, opening, order, 0, session=1, number=1, slot=0)
            first = inbox.next(10.0)
            assert first is not None
            first.release()
            while held(worker, seen=1).seqs:
                pass
            hang_up(connection)
            send(worker, opening, order, 1, session=1, number=2, slot=1)
            second = inbox.next(10.0)
            assert second is not None
            assert second.pixels.tobytes() == b"\1" * PIXELS
        arena_inode = os.fstat(arena.descriptor).st_ino
        arena.close()
        second.release()
        eventually(lambda: not is_mapped(arena_inode), "the arena is given back", 10.0)
