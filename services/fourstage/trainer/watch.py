"""Who of the other trainers is still there: heartbeats through the training's key-value store.

torchrun itself waits 30 seconds for the processes that a dead one leaves behind, and those hang in a collective call
that nobody answers. So every trainer says twice a second that it lives and looks at the others: a death is noticed
within seconds, whoever is left says whose it was and ends. Stopping travels the same way, because a trainer that
waits for a batch takes part in no collective call.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Literal, Protocol, Self

import torch.distributed as dist

from fourstage.errors import PeerLostError
from fourstage.process import StopFlag

BEAT_SECONDS = 0.5
SILENCE_SECONDS = 6.0
"""A trainer that says nothing for this long is gone. Writing AlexNet's checkpoint holds the interpreter for two."""
_GRACE_SECONDS = 3.0
"""For the main thread to end by itself, before it is taken to hang in a call to the dead."""
_START_SECONDS = 120.0
_HINT = "fourstage run --resume goes on from the last checkpoint"


class Store(Protocol):
    """What is used of a ``torch.distributed`` store."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Sightings:
    """What is known of the others (pure): the last thing each said, and when that changed."""

    def __init__(self, rank: int, world: int, now: float) -> None:
        self._others = [other for other in range(world) if other != rank]
        self._said: dict[int, tuple[str, float]] = dict.fromkeys(self._others, ("", now))

    def see(self, said: Mapping[int, str], now: float) -> None:
        """Take note of what the others say at this time, in seconds."""
        for rank, words in said.items():
            if self._said[rank][0] != words:
                self._said[rank] = (words, now)

    def lost(self, now: float) -> str | None:
        """Words on the first other that failed or fell silent; None while all live or left in order."""
        for rank, (words, since) in self._said.items():
            if words.startswith("failed "):
                return f"trainer {rank} failed: {words.removeprefix('failed ')}"
            allowed = SILENCE_SECONDS if words else _START_SECONDS
            if words != "left" and now - since > allowed:
                return f"trainer {rank} of {len(self._others) + 1} is gone: nothing from it for {now - since:.0f} s"
        return None


class Watch:
    """A thread that beats, looks and tells; also the context in which collective calls are made."""

    def __init__(self, store: Store, rank: int, world: int, stop: StopFlag) -> None:
        """store: shared by all trainers; only this thread uses this connection to it."""
        self._store = store
        self._rank = rank
        self._world = world
        self._stop = stop
        self._words: str | None = None
        self._lost = threading.Event()
        self._left = threading.Event()
        self._last_word = "left"
        # At once: the others give time for a start only to those of whom they have heard nothing.
        self._store.set(str(rank), "beat 0")
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @classmethod
    def of_environment(cls, rank: int, world: int, stop: StopFlag) -> Self:
        """Over a connection of its own to the store that torchrun names (MASTER_ADDR, MASTER_PORT)."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False)  # type: ignore[attr-defined]
        run = os.environ.get("TORCHELASTIC_RUN_ID", "run")
        return cls(dist.PrefixStore(f"fourstage/{run}", store), rank, world, stop)  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> Literal[False]:
        if isinstance(error, RuntimeError):
            # The others' connections close before anybody knows why: wait for the reason.
            self._lost.wait(SILENCE_SECONDS + 2 * BEAT_SECONDS)
            if self._words:
                raise PeerLostError(self._words, hint=_HINT) from error
        return False

    def leave(self, failure: BaseException | None) -> None:
        """Say goodbye, or why this trainer fails; the thread ends."""
        self._last_word = "left" if failure is None else "failed " + " ".join(str(failure).split())[:500]
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        sightings = Sightings(self._rank, self._world, time.monotonic())
        beats, told = 0, False
        while not self._left.wait(BEAT_SECONDS):
            beats += 1
            try:
                self._store.set(str(self._rank), f"beat {beats}")
                if self._stop and not told:
                    told = True
                    self._store.set("stop", self._stop.reason)
                elif not told and self._store.check(["stop"]):
                    told = True
                    self._stop.set(self._store.get("stop").decode())
                sightings.see(self._others(), time.monotonic())
                self._words = sightings.lost(time.monotonic())
            except RuntimeError:
                self._words = "the training's store does not answer: torchrun, or the first trainer, is gone"
            if self._words:
                self._lost.set()
                if not self._left.wait(_GRACE_SECONDS):
                    self._end_here()
        try:
            self._store.set(str(self._rank), self._last_word)
        except RuntimeError:
            return  # whoever kept the store is gone: there is nobody to tell

    def _others(self) -> dict[int, str]:
        names = {rank: str(rank) for rank in range(self._world) if rank != self._rank}
        return {rank: self._store.get(name).decode() for rank, name in names.items() if self._store.check([name])}

    def _end_here(self) -> None:
        """The main thread hangs in a call that no signal ends: say why, and go."""
        print(f"fourstage: {self._words}; {_HINT}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)
