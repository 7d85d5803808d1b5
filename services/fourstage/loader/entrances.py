"""The loader's two sockets, used as one: where augmenters come in, and where trainers do.

Each has keys of its own role only. So what a client may say depends on where it came in, not on what it says of itself.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fourstage.errors import PeerError, SettingsError
from fourstage.process import socket_path
from fourstage.settings import LoaderSettings
from fourstage.wire.addresses import AUTO, at_port, beside, is_any_port
from fourstage.wire.binding import AddressTakenError
from fourstage.wire.messages import Message
from fourstage.wire.security import FOR_AUGMENTERS, FOR_TRAINERS, Entrance, Role, Security
from fourstage.wire.sockets import Bound, OnRefused, Payload, Peer, Waiter

_ATTEMPTS = 20
"""To find two free ports in a row where the kernel chooses the first."""


class Arrival(NamedTuple):
    """A message, or the error that its bytes are, and who sent it."""

    peer: Peer
    """The connection's identity behind one byte that says at which socket."""
    message: Message | PeerError
    payload: list[Payload]
    user: str
    """The sender's public key; empty without keys."""
    role: Role
    """For whom the socket is."""


class Entrances:
    """Both sockets. ``peer`` is an arrival's."""

    def __init__(
        self, settings: LoaderSettings, sockets: Path, security: Security | None, on_refused: OnRefused
    ) -> None:
        """Bind both. Raises as ``Bound`` does."""
        self._augmenters, self._trainers = _bind(settings, sockets, security, on_refused)
        self._both = (self._trainers, self._augmenters)

    @property
    def augmenters(self) -> str:
        """The augmenters' address."""
        return self._augmenters.address

    @property
    def trainers(self) -> str:
        """The trainers' address."""
        return self._trainers.address

    def wake(self, waiter: Waiter) -> None:
        """Let a waiter wake for both."""
        for socket in self._both:
            waiter.add(socket)

    def arrivals(self, most: int) -> Iterator[Arrival]:
        """All that has come, up to ``most`` messages at each socket; trainers', which are few, first.

        One socket is emptied before the other is looked at: a look that finds nothing costs more than a message.
        """
        roles: tuple[Role, Role] = ("trainer", "augmenter")
        for number, (socket, role) in enumerate(zip(self._both, roles, strict=True)):
            prefix = bytes((number,))
            for peer, message, payload, user in islice(iter(socket.receive, None), most):
                yield Arrival(prefix + peer, message, payload, user, role)

    def send(self, peer: Peer, message: Message, payload: Sequence[bytes | memoryview] = ()) -> bool:
        """Queue a message; False where the peer is gone or its queue is full."""
        return self._both[peer[0]].send(peer[1:], message, payload)

    def revoked(self) -> set[str]:
        """Users whose keys are let in no more since the last call."""
        return self._augmenters.revoked() | self._trainers.revoked()

    def name(self, user: str) -> str:
        """What a user is called here, for logs; empty without keys."""
        return self._trainers.name(user)

    def close(self) -> None:
        """Close both; queued messages get a second to leave."""
        for socket in self._both:
            socket.close()


def _bind(
    settings: LoaderSettings, sockets: Path, security: Security | None, on_refused: OnRefused
) -> tuple[Bound, Bound]:
    address, trainers = settings.address, settings.trainers
    if address.startswith("file:"):
        # The caller writes the file.
        address = f"ipc://{socket_path(sockets, 'augmenters')}"
        trainers = f"ipc://{socket_path(sockets, 'trainers')}" if trainers == AUTO else trainers

    def at(address: str, entrance: Entrance) -> Bound:
        return Bound(address, entrance=entrance, security=security, on_refused=on_refused)

    for left in reversed(range(_ATTEMPTS)):
        first = at(address, FOR_AUGMENTERS)
        try:
            return first, at(_trainers(address, trainers, first), FOR_TRAINERS)
        except AddressTakenError as error:
            first.close(linger=False)
            if trainers != AUTO or not is_any_port(address):
                raise SettingsError(
                    str(error), hint="loader.trainers, by default the port after loader.address, may be another one"
                ) from error
            if not left:
                raise
        except BaseException:
            first.close(linger=False)
            raise
    raise AssertionError("not reached")


def _trainers(address: str, trainers: str, first: Bound) -> str:
    if trainers != AUTO:
        return trainers
    if is_any_port(address):
        return beside(at_port(address, int(first.address.rpartition(":")[2])))
    return beside(address)
