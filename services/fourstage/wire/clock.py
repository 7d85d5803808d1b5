"""How far another host's clock is from ours: pure, times in, seconds out."""

from collections import deque

_SAMPLES = 32
"""Questions that are remembered: about a minute of them, in which clocks of 20 ppm drift apart by 1.2 ms."""


class ClockOffset:
    """Estimates the difference of two clocks from questions and answers, as NTP does (RFC 5905, section 8).

    An answer's error is at most half of its way there and back, so the shortest one is believed.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def add(self, *, asked: float, theirs: float, answered: float) -> None:
        """One question. asked, answered: seconds of our clock; theirs: of the other one, in between."""
        self._samples.append((answered - asked, theirs - (asked + answered) / 2.0))

    @property
    def seconds(self) -> float:
        """What to add to our clock for the other one; 0 before the first answer."""
        return min(self._samples)[1] if self._samples else 0.0
