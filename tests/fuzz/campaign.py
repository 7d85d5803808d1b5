"""Many seeded cases against one target: nothing but the documented outcome, in bounded time and memory.

A case is drawn from (seed, number) and the state that the cases before it have left. Every ``WORLD`` cases the target
is made anew, so a failure replays from the beginning of its world: ``--first`` names that case.
"""

import gc
import logging
import os
import resource
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, ClassVar, Protocol

WORLD = 50_000
"""Cases of one target before it is made anew; whatever grows shows within them."""
_SLOW_SECONDS = 2.0
"""Of the processor's time, for one case."""
_HUNG_SECONDS = 60.0
_LOOK, _CENSUS = 1024, 4096
"""Cases between two looks at the time and the memory, and between two counts of what a target holds."""
_MOST_ADDRESSES = 8 << 30
"""Bytes of addresses that a target may take beyond those that it begins with: an allocation of a length that a peer
has made up fails."""
_PAGE = os.sysconf("SC_PAGESIZE")


class HangError(Exception):
    """A case did not end."""


class BrokenError(Exception):
    """A promise was broken, without an exception of the product's own."""


class Target(Protocol):
    """A handler in the world that it lives in; made with (a folder of its own, a source of secrets)."""

    name: ClassVar[str]
    most: ClassVar[int]
    """Entries that no container of it may exceed, whatever is said to it."""

    def play(self, cases: "Cases") -> None:
        """Handle ``cases.next()`` until it is None. Raises whatever the handler raises."""

    def worked(self) -> int:
        """How often what it is for was reached: a harness that gets nowhere proves nothing."""

    def root(self) -> object:
        """What must not grow."""

    def close(self) -> None: ...


@dataclass
class Failure:
    """What went wrong, and how to see it again."""

    target: str
    seed: int
    first: int
    case: int
    what: str
    frames: list[str]
    """Of the last cases, newest last, in hexadecimal."""


@dataclass
class Outcome:
    """Of one campaign."""

    target: str
    seed: int
    cases: int = 0
    seconds: float = 0.0
    worked: int = 0
    """How often the target did what it is for."""
    resident: list[int] = field(default_factory=list)
    """Bytes of memory after the warm-up (a tenth), in the middle and in the end."""
    largest: dict[str, int] = field(default_factory=dict)
    """Entries of the largest containers that were seen."""
    failure: Failure | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Cases:
    """Hands out one source of chance for each case and watches its time."""

    def __init__(self, seed: int, first: int, last: int, look: Callable[[int], None]) -> None:
        self.number = first - 1
        self.shown: deque[Sequence[bytes]] = deque(maxlen=8)
        self._seed = seed
        self._last = last
        self._dice = Random()
        self._began = time.thread_time()
        self._look = look

    def next(self) -> Random | None:
        """The next case's chance; None after the last one. The case before has ended."""
        now = time.thread_time()
        if now - self._began > _SLOW_SECONDS:
            raise BrokenError(f"a case took {now - self._began:.1f} s of the processor's time")
        self.number += 1
        if self.number >= self._last:
            return None
        if self.number % _LOOK == 0:
            signal.setitimer(signal.ITIMER_REAL, _HUNG_SECONDS)
            self._look(self.number)
        self._began = time.thread_time()
        self._dice.seed(self._seed << 32 | self.number)
        return self._dice

    def show(self, frames: Sequence[bytes]) -> None:
        """What the case gives, for the report of a failure."""
        self.shown.append(frames)


def run(
    make: Callable[[Path, Random], Target],
    name: str,
    folder: Path,
    *,
    seed: int,
    cases: int,
    first: int = 0,
    progress: Callable[[int, float], None] = lambda *_: None,
) -> Outcome:
    """Play ``cases`` cases, the first of them ``first``, which begins a world."""
    outcome = Outcome(name, seed)
    began = time.perf_counter()
    playing: list[Target] = []
    marks = [first + cases // 10, first + cases // 2]

    def look(number: int) -> None:
        progress(number - first, time.perf_counter() - began)
        while marks and number >= marks[0]:
            marks.pop(0)
            outcome.resident.append(resident())
        if playing and number % _CENSUS == 0:
            _count(playing[0], outcome)

    with guarded():
        begin = first
        while begin < first + cases and outcome.failure is None:
            end = min(first + cases, (begin // WORLD + 1) * WORLD)
            handed = Cases(seed, begin, end, look)
            try:
                playing.clear()
                playing[:] = [_made(make, folder / f"{name}-{begin}", Random(seed << 32 | begin))]
                _play(playing[0], handed, outcome)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                frames = [" | ".join(frame.hex() for frame in shown) for shown in handed.shown]
                text = "".join(traceback.format_exception(error))
                outcome.failure = Failure(name, seed, begin, handed.number, text, frames)
            outcome.cases = handed.number - first
            begin = end
    outcome.resident.append(resident())
    outcome.seconds = time.perf_counter() - began
    return outcome


def _made(make: Callable[[Path, Random], Target], folder: Path, dice: Random) -> Target:
    # What is left of one that failed would be closed while this one counts its descriptors.
    gc.collect()
    folder.mkdir()
    return make(folder, dice)


def _play(target: Target, cases: Cases, outcome: Outcome) -> None:
    try:
        target.play(cases)
        _count(target, outcome)
        outcome.worked += target.worked()
    finally:
        target.close()


def _count(target: Target, outcome: Outcome) -> None:
    """BrokenError where a container has more entries than any may have."""
    for path, entries in sizes(target.root()).items():
        outcome.largest[path] = max(entries, outcome.largest.get(path, 0))
        if entries > target.most:
            raise BrokenError(f"{path} has grown to {entries} entries, {target.most} are allowed")


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


@contextmanager
def guarded() -> Iterator[None]:
    """Nothing hangs for ever, nothing allocates without bound, and the log is heard by nobody."""

    def hung(_number: int, _frame: FrameType | None) -> None:
        raise HangError(f"no case has ended for {_HUNG_SECONDS:.0f} s")

    logger = logging.getLogger("fourstage")
    level = logger.level
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    with ExitStack() as stack:
        stack.callback(logger.setLevel, level)
        stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, hung))
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        logger.setLevel(logging.CRITICAL)
        signal.setitimer(signal.ITIMER_REAL, _HUNG_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (addresses + _MOST_ADDRESSES, hard))
        yield


def sizes(root: object) -> dict[str, int]:
    """Entries of every container that a product's object holds, by the names that lead there: the largest of each."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque([(type(root).__name__, root)])
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (dict, set, frozenset, list, deque)):
            found[path] = max(len(value), found.get(path, 0))
            entries = value.values() if isinstance(value, dict) else value
            waiting.extend((f"{path}[]", entry) for entry in entries)
        elif type(value).__module__.startswith("fourstage"):
            waiting.extend((f"{path}.{name}", part) for name, part in _parts(value))
    return found


def _parts(value: object) -> Iterator[tuple[str, object]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(value, name):
                yield name, getattr(value, name)
