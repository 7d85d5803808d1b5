"""What the trainer's side says of each batch: soon, complete, and without waiting for a heartbeat."""

import threading
from pathlib import Path

import numpy as np

from fourstage.order import Order
from fourstage.trainer.feed import Feed
from fourstage.trainer.inbox import Inbox
from fourstage.views import View
from fourstage.wire.codec import encode_body
from fourstage.wire.codes import lease_code
from fourstage.wire.messages import PROTOCOL, Batch, Hello, Holds, Open, Opened, Progress, Samples, Welcome
from fourstage.wire.sockets import Bound, Dialled
from tests.pipeline.harness import eventually
from tests.pipeline.test_early_batch import answered, heard

SIZE, CROP, ROWS, BATCHES = 4, 2, 2, 200
NO_HEARTBEAT = 600.0
"""Longer than any test: what is heard was said because something had changed."""


def use_up(inbox: Inbox) -> None:
    """A consumer in a thread of its own, as the copy and train stages are."""
    while (batch := inbox.next(30.0)) is not None:
        batch.release()
        inbox.train_on(batch.seq)
        if batch.seq == BATCHES - 1:
            return


def test_every_batch_that_was_used_is_told_to_both_sides_without_a_heartbeat(tmp_path: Path) -> None:
    request = Open(
        stream=bytes(16), split="train", view=View("centre", CROP), batch_size=ROWS, remainder="keep", shuffle=False,
        seed=1, rank=0, world=1, start=0, epochs=1, end=0, window=0, fingerprint="", identity=b"", transport="inline",
        receiver="", side="", worker=b"", on_corrupt="fail", secret=bytes(16),
    )  # fmt: skip
    with Bound(f"ipc://{tmp_path / 'loader'}") as loader:
        feed = Feed(loader.address, trainers=loader.address, name="test", sockets=tmp_path)
        try:
            inbox = feed.open(request)
            trainer, hello = heard(loader, Hello)
            welcome = Welcome(
                peer=bytes(16), session=hello.session, build="", side="", heartbeat_seconds=NO_HEARTBEAT,
                silence_seconds=NO_HEARTBEAT,
            )  # fmt: skip
            loader.send(trainer, welcome)
            _, opening = heard(loader, Open)
            opened = Opened(
                stream=opening.stream, samples=ROWS * BATCHES, batches_per_epoch=BATCHES, end=BATCHES,
                largest_rows=ROWS, size=SIZE, fingerprint="f", classes=("k",), splits=("train",),
            )  # fmt: skip
            loader.send(trainer, opened, [np.zeros((SIZE, SIZE, 3), "<f4").tobytes()])
            order: Order = inbox.opened(30.0).order
            consumer = threading.Thread(target=use_up, args=(inbox,), daemon=True)
            consumer.start()
            with Dialled(opening.receiver) as worker:
                greeting = Hello(
                    protocol=PROTOCOL, role="augmenter", peer=b"w" * 16, session=1, name="w", build="", identity=b"i"
                )
                eventually(lambda: worker.send(greeting), "a connection")
                answered(worker, Welcome)
                pixels = bytes(ROWS * CROP * CROP * 3)
                consumed = -1
                for seq in range(BATCHES):
                    indices = order.indices(seq)
                    samples = Samples(
                        indices.astype("<i8").tobytes(), np.zeros(ROWS, "<i4").tobytes(), tuple(map(str, indices))
                    )
                    message = Batch(
                        stream=opening.stream, seq=seq, session=1, number=seq + 1, slot=-1, rows=ROWS, identity=b"i",
                        code=lease_code(
                            opening.secret, stream=opening.stream, seq=seq, worker=greeting.peer, identity=b"i",
                            samples=encode_body(samples),
                        ),
                    )  # fmt: skip
                    worker.send(message, [encode_body(samples), bytes(21 * ROWS), pixels])
                    # The next one is only sent once this one's slot is known to be free, and its use at the loader.
                    while (holds := answered(worker, Holds)).seen <= seq or holds.seqs:
                        pass
                    while consumed <= seq:
                        _, progress = heard(loader, Progress)
                        assert progress.consumed >= consumed
                        consumed = progress.consumed
            consumer.join(30.0)
            assert not consumer.is_alive()
        finally:
            feed.close()
