"""When to say HELLO: at once, and again where no answer comes, each time after twice as long.

An answer to an older HELLO is void: who asked again sooner than any answer can come would never be answered.
"""

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 8.0


class Greetings:
    """The HELLOs to one peer. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._said_at: float | None = None
        self._wait = _FIRST_SECONDS

    def is_due(self, now: float) -> bool:
        """Whether none was said, or the last one has waited long enough."""
        return self._said_at is None or now - self._said_at > self._wait

    def is_hopeless(self, now: float) -> bool:
        """Whether the last one has waited as long as any does."""
        return self._said_at is not None and self._wait == _LONGEST_SECONDS and self.is_due(now)

    def said(self, now: float) -> None:
        """One was said."""
        if self._said_at is not None:
            self._wait = min(_LONGEST_SECONDS, 2.0 * self._wait)
        self._said_at = now

    def begin_anew(self) -> None:
        """It was answered, or the peer has asked for one."""
        self._said_at = None
        self._wait = _FIRST_SECONDS
