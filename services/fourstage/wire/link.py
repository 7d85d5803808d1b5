"""A peer's connection to the loader: found, lost and found again, also at another address."""

import logging
import secrets
import socket
from collections.abc import Callable
from typing import Literal

import fourstage
from fourstage.errors import FourstageError, PeerError, RefusedError, SettingsError
from fourstage.wire import side
from fourstage.wire.addresses import AUTO, resolve
from fourstage.wire.clock import ClockOffset
from fourstage.wire.greetings import Greetings
from fourstage.wire.messages import PROTOCOL, Bye, Hello, Message, Ping, Pong, Refused, Welcome, Who
from fourstage.wire.security import Role, Security
from fourstage.wire.sockets import Dialled, Payload, Waiter

log = logging.getLogger(__name__)

_MAX_FRAME = 1 << 30
"""Bytes of the largest inline frame: one batch of JPEG images."""
_ADDRESS_SECONDS = 0.5
"""Between two looks at where the loader is, while it does not answer."""
_NO_ADDRESS_SECONDS = 0.02
"""Between two looks for an address that no loader has written yet: it starts at the same time, and everybody waits."""
_SIDE_SECONDS = 5.0
_LATEST_CLOCK = 1e11
"""Seconds: what is added to it or taken from it is still a time that a message can say."""
_CLOCK_SECONDS = 2.0
"""Between two questions for the loader's clock."""


class LoaderLink:
    """HELLO, WELCOME and the side connection, kept up by ``turn``."""

    def __init__(
        self,
        address: str,
        *,
        role: Literal["augmenter", "trainer"],
        name: str,
        waiter: Waiter,
        trainers: str = AUTO,
        process: Role | None = None,
        identity: bytes = b"",
        security: Security | None = None,
        on_fault: Callable[[], object] = lambda: None,
    ) -> None:
        """address, trainers: the settings ``loader.address`` and ``loader.trainers``.

        role: as what it takes part. process: what it is, if that is something else: a trainer's own worker comes in at
        the trainers' socket, with the trainer's key. on_fault: called for every message that is none.
        """
        self.peer = secrets.token_bytes(16)
        self.session = 0
        self.welcome: Welcome | None = None
        self.side: socket.socket | None = None
        self.lost_since: float | None = None
        self._address = address
        self._trainers = trainers
        self._process: Role = process or role
        self._role: Literal["augmenter", "trainer"] = role
        self._name = name
        self._identity = identity
        self._waiter = waiter
        self._security = security
        self._on_fault = on_fault
        self._socket: Dialled | None = None
        self._heard = float("-inf")
        self._looked = float("-inf")
        self._greetings = Greetings()
        self._greeted = False
        """Whether HELLO was said over this connection, as far as is known."""
        self._welcomed = False
        """Whether any session's WELCOME has come over this connection."""
        self._clock = ClockOffset()
        self._ask_clock_at = float("-inf")

    @property
    def clock_offset(self) -> float:
        """What to add to this process's monotonic clock for the loader's; 0 on its host, where they are one."""
        return 0.0 if self.side is not None else self._clock.seconds

    @property
    def trouble(self) -> str:
        """Why the loader does not answer, if handshakes tell; else empty."""
        return self._socket.trouble if self._socket is not None else ""

    @property
    def heartbeat(self) -> float:
        """Seconds between two of this peer's heartbeats, as the loader wants it."""
        return self.welcome.heartbeat_seconds if self.welcome else 0.5

    @property
    def patience(self) -> float:
        """Seconds that its owner may sleep until the next ``turn`` where nothing comes."""
        return self.heartbeat if self._socket is not None else _NO_ADDRESS_SECONDS

    def turn(self, now: float) -> list[tuple[Message, list[Payload]]]:
        """Everything that has come. A Welcome among it means: a new session, tell the loader all you hold.

        Raises RefusedError when the loader will not have us.
        """
        # Heard before it is judged: who has slept itself finds here what the loader has said meanwhile.
        received = self._hear(self._socket, now) if self._socket is not None else []
        if self._is_lost(now):
            self._lose()
        if self.welcome is None:
            self._find(now)
        if not self._greeted or (not self._is_known and self._greetings.is_due(now)):
            self._greet(now)
        return received

    def send(self, message: Message) -> bool:
        """Queue a message; False while the loader is away, or has not answered this session's HELLO."""
        return self._socket is not None and self._is_known and self._socket.send(message)

    def close(self) -> None:
        """Say goodbye and hang up."""
        if self._socket is not None:
            self._socket.send(Bye())
            self._hang_up(linger=True)
        if self.side is not None:
            self.side.close()

    def _hear(self, connection: Dialled, now: float) -> list[tuple[Message, list[Payload]]]:
        """All that has come over the connection and is for our owner. Raises RefusedError."""
        received: list[tuple[Message, list[Payload]]] = []
        while (arrival := connection.receive()) is not None:
            message, payload = arrival
            if isinstance(message, PeerError):
                self._on_fault()
                log.warning("dropped a message of the loader: %s", message)
                continue
            self._heard = now
            if isinstance(message, Welcome):
                self._welcomed = True
                if message.session == self.session and self._is_news(message):
                    self._on_welcome(message)
                    received.append((message, payload))
            elif isinstance(message, Pong) and (message.sent > now or message.clock > _LATEST_CLOCK):
                self._on_fault()
                log.warning("dropped a message of the loader: its clock shows %g s", message.clock)
            elif isinstance(message, Pong):
                self._clock.add(asked=message.sent, theirs=message.clock, answered=now)
            elif isinstance(message, Who):
                self._greetings.begin_anew()
                self._greet(now)
            elif isinstance(message, Refused) and self._welcomed:
                log.warning("the loader says: %s", message.reason)
            elif isinstance(message, Refused):
                raise RefusedError(f"the loader refused this {self._role}: {message.reason}")
            elif isinstance(message, Bye):
                self._heard = float("-inf")
            elif self.welcome is not None:
                received.append((message, payload))
        if self.welcome is not None and self.side is None and now >= self._ask_clock_at:
            self._ask_clock_at = now + _CLOCK_SECONDS
            connection.send(Ping(now))
        return received

    @property
    def _is_known(self) -> bool:
        """Whether the loader has answered this session's HELLO."""
        return self.welcome is not None and self.welcome.session == self.session

    def _is_lost(self, now: float) -> bool:
        if self.welcome is None:
            # Sooner an answer is late than a connection dead without a word.
            return self._greeted and self._greetings.is_hopeless(now)
        if now - self._looked < _ADDRESS_SECONDS:
            return False
        silent = now - self._heard > self.welcome.silence_seconds
        return silent or (self.side is not None and side.hung_up(self.side))

    def _lose(self) -> None:
        """Hang up on a loader that is silent. Its connection may be dead where a new one comes about (a router that has
        forgotten it, another host under the address), and what still lies in it was said before."""
        if self.welcome is not None:
            log.warning("the loader is away")
        self.welcome = None
        if self.side is not None:
            self.side.close()
            self.side = None
        self._hang_up(linger=False)
        self._looked = float("-inf")

    def _find(self, now: float) -> None:
        """Dial the loader where it is now, unless that has been done."""
        if now - self._looked < (_ADDRESS_SECONDS if self._socket is not None else _NO_ADDRESS_SECONDS):
            return
        self._looked = now
        if self.lost_since is None:
            self.lost_since = now
        try:
            address = resolve(self._address, self._process, self._trainers)
        except SettingsError:
            raise
        except FourstageError:
            return
        if self._socket is not None:
            if self._socket.address == address:
                return
            self._hang_up(linger=False)
        self._socket = Dialled(address, max_frame=_MAX_FRAME, role=self._process, security=self._security)
        self._waiter.add(self._socket)

    def _hang_up(self, *, linger: bool) -> None:
        if self._socket is not None:
            self._waiter.remove(self._socket)
            self._socket.close(linger=linger)
            self._socket = None
        self._greeted = self._welcomed = False

    def _greet(self, now: float) -> None:
        if self._socket is None:
            return
        self.session += 1
        hello = Hello(
            protocol=PROTOCOL,
            role=self._role,
            peer=self.peer,
            session=self.session,
            name=self._name,
            build=fourstage.__version__,
            identity=self._identity,
        )
        self._greeted = self._socket.send(hello)
        if self._greeted:
            self._greetings.said(now)
        else:
            self.session -= 1
        self._waiter.until_connected(self._socket, not self._greeted)

    def _is_news(self, message: Welcome) -> bool:
        return self.welcome is None or self.welcome.session != message.session or self.welcome.peer != message.peer

    def _on_welcome(self, message: Welcome) -> None:
        same_loader = self.welcome is not None and self.welcome.peer == message.peer
        if self.welcome is None:
            # Perhaps another host's: what the old one's clock showed means nothing.
            self._clock, self._ask_clock_at = ClockOffset(), float("-inf")
        self.welcome = message
        self._greetings.begin_anew()
        self.lost_since = None
        if same_loader and self.side is not None:
            return
        if self.side is not None:
            self.side.close()
        self.side = self._connect_side(message)

    def _connect_side(self, message: Welcome) -> socket.socket | None:
        connection = side.connect(message.side, _SIDE_SECONDS)
        if connection is None:
            return None
        try:
            said = side.send(connection, side.Packet(self.peer, b""))
            answer = side.receive_answer(connection) if said else None
        except (PeerError, TimeoutError) as error:
            log.warning("no side connection to the loader: %s", error)
            answer = None
        if answer is None or answer.peer != message.peer:
            connection.close()
            return None
        return connection
