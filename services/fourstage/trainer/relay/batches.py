"""A stream as its consumer sees it."""

from typing import Protocol

from fourstage.trainer.inbox import FeedBatch, Inbox, StreamInfo
from fourstage.wire.messages import Open


class Batches(Protocol):
    """A stream as its consumer sees it, whoever owns it: ``Inbox``, ``RelayingInbox`` or ``RelayedInbox``."""

    @property
    def spec(self) -> Open:
        """What was asked for."""

    @property
    def consumed(self) -> int:
        """Everything before this was trained on."""

    @property
    def identity(self) -> bytes:
        """Which pixels the batches are made of; empty before the first."""

    @property
    def duplicates(self) -> int:
        """Batches that came twice."""

    @property
    def waiting(self) -> int:
        """Batches that lie here, in order or not, and were not taken."""

    @property
    def done(self) -> bool:
        """Every batch was taken."""

    def opened(self, timeout: float) -> StreamInfo:
        """Wait for the loader's answer. Raises what went wrong, TimeoutError after ``timeout`` seconds."""

    def next(self, timeout: float) -> FeedBatch | None:
        """The next batch in order; None where it has not come within ``timeout`` seconds. Raises what went wrong."""

    def train_on(self, seq: int) -> None:
        """Batch ``seq`` was trained on."""

    def close(self) -> None:
        """Nobody will take anything any more. From any thread; ``next`` gives None from then on."""


class OverInbox:
    """What both ends of the relay say of themselves: what the inbox beneath says."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    @property
    def spec(self) -> Open:
        return self._inbox.spec

    @property
    def consumed(self) -> int:
        return self._inbox.consumed

    @property
    def identity(self) -> bytes:
        return self._inbox.identity

    @property
    def duplicates(self) -> int:
        return self._inbox.duplicates

    @property
    def waiting(self) -> int:
        return self._inbox.waiting

    @property
    def done(self) -> bool:
        return self._inbox.done

    def train_on(self, seq: int) -> None:
        """Batch ``seq`` was trained on, by both columns: neither can train alone."""
        self._inbox.train_on(seq)
