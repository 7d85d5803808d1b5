"""How the handshakes at a TCP socket end. ZeroMQ tells nobody but a socket's monitor, and keeps trying in silence."""

import secrets
import struct
from collections.abc import Callable
from enum import Enum

import zmq


class Outcome(Enum):
    """Of one handshake."""

    OPENED = "opened"
    REFUSED = "refused"
    """The server does not know the client's key."""
    MISMATCH = "mismatch"
    """One end has keys, the other has none."""
    WRONG_SERVER = "wrong server"
    """The client wants a server with another key."""
    GARBLED = "garbled"
    """Whatever it was, it did not speak ZeroMQ's protocol."""
    FOREIGN = "foreign"
    """The kernel's connection ended before any handshake began: a browser, a scanner, another protocol."""
    HUNG_UP = "hung up"
    """The other end said no more: what it makes of a WRONG_SERVER, often of a MISMATCH, and of its own end."""


_OUTCOMES = {
    zmq.Event.HANDSHAKE_SUCCEEDED: Outcome.OPENED,
    zmq.Event.HANDSHAKE_FAILED_AUTH: Outcome.REFUSED,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: Outcome.GARBLED,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: Outcome.HUNG_UP,
}
_PROTOCOL_ERRORS = {
    zmq.Event.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: Outcome.MISMATCH,
    zmq.Event.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: Outcome.WRONG_SERVER,
}
_EVENT = struct.Struct("=Hi")
"""A monitor's first frame, the event's number and its value (zmq_socket_monitor(3)); pyzmq's own reader of it would
bring asyncio along."""


class Handshakes:
    """The monitor of one socket. Close it before the socket: ZeroMQ's thread would wait for it otherwise."""

    def __init__(self, socket: "zmq.Socket[bytes]", on_accepted: Callable[[int], object] | None = None) -> None:
        """on_accepted: told by ``take`` the descriptor of every connection that has come."""
        # Drawn, not counted: the name of a monitor that was closed is taken until ZeroMQ's thread gets round to it.
        address = f"inproc://handshakes-{secrets.token_hex(8)}"
        self._watched = socket
        self._on_accepted = on_accepted
        self._young: set[int] = set()
        """Descriptors of connections that have come, and of which nothing is known yet."""
        self._ending = False
        """The connection that ends next is the one whose handshake has just failed."""
        self._watched.monitor(address, sum(_OUTCOMES) | zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED)
        self._events: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
        # Without a bound: a full queue would stop ZeroMQ's thread, and with it every connection.
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._events.connect(address)

    def take(self) -> list[Outcome]:
        """What has become known since the last call."""
        outcomes: list[Outcome] = []
        while True:
            try:
                event, value = _EVENT.unpack(self._events.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return outcomes
            if event == zmq.Event.ACCEPTED:
                self._young.add(value)
                if self._on_accepted is not None:
                    self._on_accepted(value)
            elif event == zmq.Event.DISCONNECTED:
                if value in self._young and not self._ending:
                    outcomes.append(Outcome.FOREIGN)
                self._young.discard(value)
                self._ending = False
            elif (outcome := _OUTCOMES.get(zmq.Event(event))) is not None:
                if outcome is Outcome.GARBLED:
                    outcome = _PROTOCOL_ERRORS.get(zmq.Event(value), outcome)
                outcomes.append(outcome)
                self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        """A handshake has ended, and libzmq does not say of which connection.

        One that fails for what was sent ends at once. Else it may be any of those that have come: then none of them is
        held for foreign later.
        """
        self._ending = outcome not in (Outcome.OPENED, Outcome.REFUSED)
        if not self._ending:
            self._young.clear()

    def close(self) -> None:
        """Listen no more."""
        self._watched.disable_monitor()
        self._events.close(0)
