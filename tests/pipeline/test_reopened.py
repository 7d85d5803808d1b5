"""A stream that ends at a worker and comes again under its own name: the loader dropped a trainer that was silent, and
got the same OPEN from it once more."""

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
from tests.pipeline.receiving import greet, held, receiving, send

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
