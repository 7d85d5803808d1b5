"""The batches of one stream in order, from any batch on, for as long as somebody takes them."""

import dataclasses
import time

from fourstage.engine.pipeline import Service
from fourstage.errors import FourstageError, PeerLostError
from fourstage.trainer.feed import Feed
from fourstage.trainer.inbox import FeedBatch, Inbox, StreamInfo
from fourstage.views import View
from fourstage.wire.addresses import AUTO
from fourstage.wire.messages import Open
from fourstage.wire.security import Security

_TURN_SECONDS = 0.2


class Source:
    """A feed of its own with one stream, which ``seek`` opens anew at another batch."""

    def __init__(
        self, service: Service, spec: Open, *, trainers: str = AUTO, receiver: str, timeout: float,
        security: Security | None = None,
    ) -> None:  # fmt: skip
        """Open the stream and wait for the loader's answer.

        trainers: the service's address for trainers
        spec: a full view's crop is set here to the width of the store's images
        timeout: seconds without the loader, or without any augmenter, after which an error says so

        Raises PeerLostError where no loader answers, FourstageError with its reason where it refuses.
        """
        self.next = spec.start
        """The batch that ``wait`` gives; whoever has used that moves it on."""
        self._service = service
        self._timeout = timeout
        self._closed = False
        self._feed = Feed(
            service.address,
            trainers=trainers,
            name=f"stream-{spec.rank}",
            sockets=service.folder,
            receiver=receiver,
            patience=timeout,
            security=security,
        )
        try:
            if spec.view.kind == "full":
                spec = dataclasses.replace(spec, view=View("full", self._stored_size(spec)))
            self._inbox = self._feed.open(spec)
            self.info = self._opened(self._inbox)
        except BaseException:
            self._feed.close()
            raise
        self.spec = dataclasses.replace(spec, fingerprint=self.info.opened.fingerprint)
        self.identity = b""
        """Which pixels the batches so far are made of, and so all to come."""

    def wait(self) -> FeedBatch:
        """Wait for the next batch. Raises PeerLostError after ``timeout``, FourstageError when the stream failed."""
        since = time.monotonic()
        while not self._closed:
            self._check_service()
            batch = self._inbox.next(_TURN_SECONDS)
            if batch is None:
                self._check_wait(time.monotonic() - since)
            elif batch.seq == self.next:
                self.identity = batch.identity
                return batch
            else:
                # An exception came between the inbox and the loop: what was lost there is made again.
                batch.release()
                self.seek(self.next)
        raise FourstageError("the stream is closed")

    def used(self, batch: FeedBatch) -> None:
        """Nothing before the end of this batch is needed any more."""
        self._inbox.train_on(batch.seq)

    def seek(self, seq: int, identity: bytes = b"") -> None:
        """Go on with another batch; identity: of the pixels that are wanted, if there were no batches so far."""
        self.identity = self.identity or identity
        # An exception amid this, a Ctrl-C, leaves one that is open.
        before = self._inbox
        self._inbox = self._feed.open(dataclasses.replace(self.spec, start=seq, identity=self.identity))
        self._feed.end(before)
        self.next = seq

    def close(self) -> None:
        """Close the stream and say goodbye; whoever waits for a batch hears of it."""
        self._closed = True
        self._feed.close()

    def _stored_size(self, spec: Open) -> int:
        """Width of the store's images, which only an open stream tells: one of a single small batch."""
        probe = self._feed.open(
            dataclasses.replace(
                spec, view=View("centre", 1), batch_size=1, remainder="keep", rank=0, world=1, end=1, window=1
            )
        )
        size = self._opened(probe).opened.size
        self._feed.end(probe)
        return size

    def _opened(self, inbox: Inbox) -> StreamInfo:
        """The loader's answer; the feed itself gives a loader up that is away for too long."""
        while True:
            self._check_service()
            try:
                return inbox.opened(_TURN_SECONDS)
            except TimeoutError:
                continue

    def _check_service(self) -> None:
        if self._service.failure is not None:
            raise self._service.failure

    def _check_wait(self, seconds: float) -> None:
        why = self._feed.stages.waiting if self._feed.stages else ""
        if why and seconds > self._timeout:
            raise PeerLostError(
                f"no batch for {seconds:.0f} s from {self._service.address}: {why}",
                hint="start one with fourstage augmenter",
            )
