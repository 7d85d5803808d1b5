"""Every fault of a peer is counted."""

from collections.abc import Sequence

from fourstage.errors import PeerError
from fourstage.telemetry import Telemetry
from fourstage.wire.codec import decode
from tests.fuzz.campaign import BrokenError


class Faults:
    """Compares fourstage_peer_errors_total with the faults that were given."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._counter = telemetry.counter("fourstage_peer_errors_total")
        self._counted = 0.0
        self._expected = 0

    def expect(self, frames: Sequence[bytes]) -> None:
        """A message is on its way: where its frames are none, a fault must be counted."""
        try:
            decode([memoryview(frame) for frame in frames])
        except PeerError:
            self._expected += 1

    def check(self) -> None:
        """Everything that was on its way has been handled. Raises BrokenError."""
        counted = self._counter._value.get()
        if counted - self._counted < self._expected:
            raise BrokenError(f"{counted - self._counted:.0f} faults of peers were counted, {self._expected} came")
        self._counted, self._expected = counted, 0
