"""The loader's books alone, told anything in any order."""

import itertools
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fourstage.loader.leases import Leases, Timing
from tests.fuzz.campaign import BrokenError, Cases

_TIMING = Timing(silence=5.0, hedge=1.0, missing=1.0)
_WORKERS, _STREAMS = 6, 3
_BATCHES = 200


class LeasesTarget:
    """``Leases``: whatever it is told, it raises nothing, gives a batch to two at most, and stays small."""

    name: ClassVar[str] = "leases"
    most: ClassVar[int] = 4096

    def __init__(self, _folder: Path, _dice: Random) -> None:
        self._leases = Leases(_TIMING)
        self._now = 0.0
        self._workers = [b"worker-%d" % number for number in range(_WORKERS)]
        self._streams = [b"stream-%d" % number for number in range(_STREAMS)]
        self._granted = 0

    def play(self, cases: Cases) -> None:
        doings = [
            (self._open, 3), (self._close, 1), (self._load, 20), (self._progress, 15), (self._join, 3),
            (self._leave, 3), (self._beat, 40), (self._tick, 8), (self._plan, 25), (self._try, 4),
        ]  # fmt: skip
        kinds = [doing for doing, _ in doings]
        weights = list(itertools.accumulate(weight for _, weight in doings))
        while (dice := cases.next()) is not None:
            doing = dice.choices(kinds, cum_weights=weights)[0]
            cases.show([doing.__name__.encode()])
            doing(dice)

    def worked(self) -> int:
        """Leases that were given."""
        return self._granted

    def root(self) -> object:
        return self._leases

    def close(self) -> None: ...

    def _open(self, dice: Random) -> None:
        stream, start = dice.choice(self._streams), dice.choice((0, 0, 5, 2**53))
        only: dict[str, Any] = {"only": dice.choice(self._workers)} if dice.random() < 0.1 else {}
        self._leases.close(stream)
        self._leases.open(
            stream, start=start, end=dice.choice((0, 1, _BATCHES, 2**53)), window=dice.choice((0, 0, 1, 9)),
            identity=dice.choice((b"", b"i")), rows=lambda _: 4, arrived=[dice.randrange(9)], **only,
        )  # fmt: skip

    def _close(self, dice: Random) -> None:
        self._leases.close(dice.choice((*self._streams, b"unknown")))

    def _load(self, dice: Random) -> None:
        for stream in self._leases.emptiest():
            for seq in list(itertools.islice(self._leases.wanted(stream), 4)):
                self._leases.loaded(stream, seq)
        self._leases.loaded(dice.choice(self._streams), dice.randrange(_BATCHES))

    def _progress(self, dice: Random) -> None:
        stream = dice.choice((*self._streams, b"unknown"))
        book = self._leases._streams.get(stream)
        consumed = (book.consumed if book else 0) + dice.choice((0, 1, 1, 3, -1))
        arrived = [consumed + dice.randrange(12) for _ in range(dice.randrange(4))]
        if dice.random() < 0.01:
            arrived += [dice.randrange(2**53) for _ in range(50)]
            consumed = dice.choice((consumed, 2**53, 0))
        self._leases.progress(stream, max(0, consumed), arrived, now=self._now)

    def _join(self, dice: Random) -> None:
        self._leases.join(dice.choice(self._workers), dice.choice((b"i", b"i", b"j")), self._now)

    def _leave(self, dice: Random) -> None:
        self._leases.leave(dice.choice((*self._workers, b"unknown")), died=dice.random() < 0.5)

    def _beat(self, dice: Random) -> None:
        worker = dice.choice((*self._workers, b"unknown"))
        books = self._leases._workers.get(worker)
        held = [entry for entry in (sorted(books.holds) if books else ()) if dice.random() < 0.8]
        if dice.random() < 0.3:
            held.append(
                (dice.choice((*self._streams, b"unknown")), dice.choice((0, 3, dice.randrange(_BATCHES), 2**53)))
            )
        slots = [(stream, dice.randrange(4), dice.choice((0, 3, 3, 3))) for stream in self._streams]
        if dice.random() < 0.1:
            slots += [(dice.randbytes(2), 65_536, 65_536), (self._streams[0], 100, 3)]
        seen = (books.numbers if books else 0) + dice.choice((0, 0, 0, -1, -5, 1, 2**53))
        self._leases.beat(worker, seen=max(0, seen), held=held, slots=slots, now=self._now)

    def _tick(self, dice: Random) -> None:
        self._now += dice.choice((0.0, 0.1, 0.6, 0.6, 1.2, 6.0))
        self._leases.tick(self._now)

    def _plan(self, dice: Random) -> None:
        for grant in itertools.islice(self._leases.plan(self._now), 8):
            self._granted += 1
            batch = self._leases._streams[grant.stream].batches[grant.seq]
            if batch.arrived or not batch.loaded or grant.worker not in batch.holders:
                raise BrokenError(f"{grant} of {batch}")
            if dice.random() < 0.1:
                self._leases.revoke(grant)

    def _try(self, dice: Random) -> None:
        """A trial was lived through, or was none."""
        worker = dice.choice(self._workers)
        books = self._leases._workers.get(worker)
        held = sorted(books.holds) if books else []
        stream, seq = dice.choice(held) if held else (dice.choice(self._streams), dice.randrange(9))
        if tried := getattr(self._leases, "tried", None):
            tried(worker, stream, seq, dice.choice(((0, 2), (0, 4), (2, 4), (1, 2), (0, 1))))
            self._leases.skip(stream, seq, dice.randrange(5))
