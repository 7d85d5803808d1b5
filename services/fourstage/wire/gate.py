"""Who may in: the authenticator (ZAP, ZeroMQ RFC 27) of a socket that binds with keys.

libzmq lets every client in that knows the server's key unless an authenticator of the same context answers *and* the
socket has a domain and enforces it. So all of that is set here, before the bind, and tried before anybody can come.
"""

import logging
import time
from collections import Counter, deque
from contextlib import ExitStack, suppress

import zmq
from zmq.auth.base import Authenticator
from zmq.auth.thread import ThreadAuthenticator

from fourstage.errors import FourstageError
from fourstage.wire.admitted import Admitted
from fourstage.wire.binding import bind
from fourstage.wire.curve import dial, serve
from fourstage.wire.handshakes import Handshakes, Outcome
from fourstage.wire.refusals import Quiet
from fourstage.wire.security import ROLES, KeyPair

log = logging.getLogger(__name__)

_TRIAL_SECONDS = 10.0
_STOP_MS = 1000
_REMEMBERED = 10_000
"""Refusals between two looks at them."""


class Gate(ThreadAuthenticator):
    """Answers for every connection whether its key is let in; the key becomes its messages' User-Id.

    Must be held as long as the socket: without a reference it stops.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", admitted: Admitted) -> None:
        super().__init__(context)
        self._admitted = admitted
        self._entrance = admitted.entrance
        self._address = ""
        self._quiet = Quiet()
        self._refused: deque[str] = deque(maxlen=_REMEMBERED)
        self._trial: dict[str, str] = {}
        """Names of the keys of the self-test; empty: unknown."""
        self.configure_curve_callback(domain=self._entrance.domain, credentials_provider=self)

    def start(self) -> None:
        """Begin to answer."""
        super().start()
        # A thread that has died takes no goodbye.
        self.pipe.setsockopt(zmq.SNDTIMEO, _STOP_MS)

    def stop(self) -> None:
        """Answer no more: the socket then lets nobody in."""
        try:
            super().stop()
        except zmq.Again:
            self.pipe.close(0)
            self.pipe = None  # type: ignore[assignment]  # As the base class does.
            Authenticator.stop(self)

    def take(self) -> dict[str, int]:
        """How many were refused since the last call, by reason: an unknown ``key``, or a key of another ``role``."""
        counts: Counter[str] = Counter()
        with suppress(IndexError):
            while True:
                counts[self._refused.popleft()] += 1
        return counts

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """One question of libzmq's. Nothing may be raised: it would end the thread."""
        try:
            self._address = msg[3].decode("ascii", "replace").removeprefix("::ffff:")
            await super().handle_zap_message(msg)
        except Exception:
            log.exception("a connection is refused: the authenticator failed")
            self._refused.append("key")
            with suppress(zmq.ZMQError):
                self._send_zap_reply(msg[1], b"500", b"Internal error")

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a key is let in."""
        user = key.decode("ascii", "replace")
        if user in self._trial:
            return domain == self._entrance.domain and self._entrance.lets_in(self._trial[user])
        if domain == self._entrance.domain and user in self._admitted:
            return True
        self._refuse(user)
        return False

    def try_out(self, own: KeyPair) -> None:
        """Prove that an unknown key and one of another role are refused, and a right one let in, as who it is.

        The keys of the trial are made for it and forgotten. Raises FourstageError where it fails.
        """
        other = next(role for role in ROLES if role != self._entrance.client)
        names = (self._entrance.client, "", other)
        pairs = [KeyPair(*zmq.curve_keypair()) for _ in names]
        self._trial = {pair.public.decode(): name for pair, name in zip(pairs, names, strict=True)}
        try:
            failure = self._try_out(own, *pairs)
        finally:
            self._trial = {}
        if failure:
            raise FourstageError(
                f"the self-test of the keys failed: {failure}", hint="pyzmq is not what it should be: install it anew"
            )

    def _try_out(self, own: KeyPair, known: KeyPair, *strangers: KeyPair) -> str:
        with ExitStack() as stack:
            server = self.context.socket(zmq.ROUTER)
            stack.callback(server.close, 0)
            serve(server, own, self._entrance.domain)
            bind(server, "tcp://127.0.0.1:*")
            watches: dict[bytes, Handshakes] = {}
            for pair in (known, *strangers):
                socket = self.context.socket(zmq.DEALER)
                stack.callback(socket.close, 0)
                watches[pair.public] = Handshakes(socket)
                stack.callback(watches[pair.public].close)
                dial(socket, pair, own.public)
                socket.connect(server.getsockopt_string(zmq.LAST_ENDPOINT))
                # A stranger may be refused by now: nobody is left to send to, and a send would wait for ever.
                with suppress(zmq.Again):
                    socket.send(pair.public, zmq.NOBLOCK)
            to_be_refused = {pair.public for pair in strangers}
            passed = False
            deadline = time.monotonic() + _TRIAL_SECONDS
            while time.monotonic() < deadline:
                if server.poll(10):
                    frame = server.recv_multipart(copy=False)[1]
                    if frame.bytes != known.public or frame.get("User-Id") != known.public.decode():
                        return "a connection with an unknown key was let in"
                    passed = True
                for public, watch in watches.items():
                    outcomes = set(watch.take())
                    if public == known.public and outcomes - {Outcome.OPENED}:
                        return "a known key was not let in"
                    if public != known.public and Outcome.OPENED in outcomes:
                        return "a connection with an unknown key was let in"
                    if Outcome.REFUSED in outcomes:
                        to_be_refused.discard(public)
                if passed and not to_be_refused:
                    return ""
            return "nobody answered"

    def _refuse(self, user: str) -> None:
        name = self._admitted.name(user)
        self._refused.append("role" if name else "key")
        if not self._quiet.may_say((self._address, bool(name)), time.monotonic()):
            return
        if name:
            log.warning(
                "refused a connection from %s: the key of %s is not for this socket, which lets in %ss alone",
                self._address, name, self._entrance.client,
            )  # fmt: skip
            return
        log.warning(
            "refused a connection from %s: nobody here knows its key %s; if it is one of ours, use folders that one "
            "and the same fourstage keys init has made",
            self._address, user,
        )  # fmt: skip
