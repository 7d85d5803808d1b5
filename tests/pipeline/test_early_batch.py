"""A batch comes on another connection than the loader's words, and may be the faster of the two."""

from pathlib import Path
from typing import TypeVar

import numpy as np

from fourstage.order import permutation
from fourstage.trainer.feed import Feed
from fourstage.views import View
from fourstage.wire.codec import encode_body
from fourstage.wire.codes import lease_code
from fourstage.wire.messages import PROTOCOL, Batch, Hello, Holds, Open, Opened, Samples, Welcome
from fourstage.wire.sockets import Bound, Dialled
from tests.pipeline.harness import eventually

SIZE, CROP, SAMPLES = 8, 4, 4
M = TypeVar("M")


def heard(loader: Bound, kind: type[M]) -> tuple[bytes, M]:
    """The next message of one kind, and who sent it."""

    def probe() -> tuple[bytes, M] | None:
        received = loader.receive()
        return (received[0], received[1]) if received is not None and isinstance(received[1], kind) else None

    found = eventually(probe, kind.__name__, 10.0)
    assert found is not None
    return found


def answered(worker: Dialled, kind: type[M]) -> M:
    """The next message of one kind to a worker."""

    def probe() -> M | None:
        received = worker.receive()
        return received[0] if received is not None and isinstance(received[0], kind) else None

    found = eventually(probe, kind.__name__, 10.0)
    assert found is not None
    return found


def test_a_batch_that_overtakes_the_streams_opening_is_not_lost(tmp_path: Path) -> None:
    request = Open(
        stream=bytes(16), split="train", view=View("centre", CROP), batch_size=SAMPLES, remainder="keep", shuffle=True,
        seed=1, rank=0, world=1, start=0, epochs=1, end=0, window=0, fingerprint="", identity=b"", transport="inline",
        receiver="", side="", worker=b"", on_corrupt="fail", secret=bytes(16),
    )  # fmt: skip
    with Bound(f"ipc://{tmp_path / 'loader'}") as loader:
        feed = Feed(loader.address, trainers=loader.address, name="test", sockets=tmp_path)
        try:
            inbox = feed.open(request)
            trainer, hello = heard(loader, Hello)
            welcome = Welcome(
                peer=bytes(16), session=hello.session, build="", side="", heartbeat_seconds=0.1, silence_seconds=5.0
            )
            loader.send(trainer, welcome)
            _, opening = heard(loader, Open)

            with Dialled(opening.receiver) as worker:
                # A worker delivers while the loader's answer is still under way.
                greeting = Hello(
                    protocol=PROTOCOL, role="augmenter", peer=b"w" * 16, session=1, name="w", build="", identity=b"i"
                )
                eventually(lambda: worker.send(greeting), "a connection")
                answered(worker, Welcome)
                indices = permutation(1, 0, SAMPLES)
                keys = tuple(f"k/{index}" for index in indices)
                samples = Samples(indices.astype("<i8").tobytes(), np.zeros(SAMPLES, "<i4").tobytes(), keys)
                pixels = np.arange(SAMPLES * CROP * CROP * 3, dtype=np.uint8).tobytes()
                batch = Batch(
                    stream=opening.stream, seq=0, session=1, number=1, slot=-1, rows=SAMPLES, identity=b"i",
                    code=lease_code(
                        opening.secret, stream=opening.stream, seq=0, worker=greeting.peer, identity=b"i",
                        samples=encode_body(samples),
                    ),
                )  # fmt: skip
                worker.send(batch, [encode_body(samples), bytes(21 * SAMPLES), pixels])
                worker.send(greeting)
                answered(worker, Welcome)

                opened = Opened(
                    stream=opening.stream, samples=SAMPLES, batches_per_epoch=1, end=1, largest_rows=SAMPLES, size=SIZE,
                    fingerprint="f", classes=("k",), splits=("train",),
                )  # fmt: skip
                loader.send(trainer, opened, [np.zeros((SIZE, SIZE, 3), "<f4").tobytes()])
                arrived = inbox.next(5.0)
                assert arrived is not None
                assert arrived.pixels.tobytes() == pixels
                holds = answered(worker, Holds)
                assert (holds.seen, holds.seqs) == (1, (0,))
        finally:
            feed.close()
