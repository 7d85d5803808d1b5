"""Who may in: the authenticator (ZAP, ZeroMQ RFC 27) of a socket that binds with keys.

libzmq lets every client in that knows the server's key unless an authenticator of the same context answers *and* the
socket has a domain and enforces it. So all of that is set here, before the bind, and tried before anybody can come.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import zmq
from zmq.auth.base import Authenticator
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from fourstage.errors import FourstageError
from fourstage.wire.binding import bind
from fourstage.wire.curve import DOMAIN, dial, serve
from fourstage.wire.handshakes import Handshakes, Outcome
from fourstage.wire.security import KeyPair

log = logging.getLogger(__name__)

_TRIAL = "self-test"
_TRIAL_SECONDS = 10.0
_QUIET_SECONDS = 30.0
"""Between two lines about the same address: a client that is refused comes again every second."""
_ADDRESSES = 1024
_STOP_MS = 1000


class Gate(ThreadAuthenticator):
    """Answers for every connection whether its key is known; a known one's name becomes its messages' User-Id.

    Must be held as long as the socket: without a reference it stops.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", names: Mapping[bytes, str]) -> None:
        """names: by public key, 40 characters of Z85."""
        super().__init__(context)
        self._names = dict(names)
        self._address = ""
        self._logged: dict[str, float] = {}
        self._trial: set[bytes] = set()
        self.configure_curve_callback(domain=DOMAIN, credentials_provider=self)

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

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """One question of libzmq's. Nothing may be raised: it would end the thread."""
        try:
            self._address = msg[3].decode("ascii", "replace").removeprefix("::ffff:")
            await super().handle_zap_message(msg)
        except Exception:
            log.exception("a connection is refused: the authenticator failed")
            with suppress(zmq.ZMQError):
                self._send_zap_reply(msg[1], b"500", b"Internal error")

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a key is known."""
        known = domain == DOMAIN and key in self._names
        if not known and key not in self._trial:
            self._log_refusal(self._address, key.decode("ascii", "replace"))
        return known

    def curve_user_id(self, client_public_key: bytes) -> str:
        """The name of a known key, which is given as its 32 bytes."""
        return self._names[z85.encode(client_public_key)]

    def try_out(self, own: KeyPair) -> None:
        """Prove that an unknown key is refused and a known one let in, as the right user.

        The keys of the trial are made for it and forgotten. Raises FourstageError where it fails.
        """
        known, unknown = KeyPair(*zmq.curve_keypair()), KeyPair(*zmq.curve_keypair())
        self._names[known.public] = _TRIAL
        self._trial = {unknown.public}
        try:
            failure = self._try_out(own, known, unknown)
        finally:
            del self._names[known.public]
            self._trial = set()
        if failure:
            raise FourstageError(
                f"the self-test of the keys failed: {failure}", hint="pyzmq is not what it should be: install it anew"
            )

    def _try_out(self, own: KeyPair, known: KeyPair, unknown: KeyPair) -> str:
        with ExitStack() as stack:
            server, friend, stranger = (self.context.socket(kind) for kind in (zmq.ROUTER, zmq.DEALER, zmq.DEALER))
            for socket in (server, friend, stranger):
                stack.callback(socket.close, 0)
            serve(server, own)
            bind(server, "tcp://127.0.0.1:*")
            of_friend, of_stranger = Handshakes(friend), Handshakes(stranger)
            stack.callback(of_friend.close)
            stack.callback(of_stranger.close)
            for socket, pair in ((friend, known), (stranger, unknown)):
                dial(socket, pair, own.public)
                socket.connect(server.getsockopt_string(zmq.LAST_ENDPOINT))
                # The stranger may be refused by now: nobody is left to send to, and a send would wait for ever.
                with suppress(zmq.Again):
                    socket.send(pair.public, zmq.NOBLOCK)
            passed = refused = False
            deadline = time.monotonic() + _TRIAL_SECONDS
            while time.monotonic() < deadline:
                if server.poll(10):
                    frame = server.recv_multipart(copy=False)[1]
                    if frame.bytes != known.public or frame.get("User-Id") != _TRIAL:
                        return "a connection with an unknown key was let in"
                    passed = True
                if set(of_friend.take()) - {Outcome.OPENED}:
                    return "a known key was not let in"
                outcomes = of_stranger.take()
                if Outcome.OPENED in outcomes:
                    return "a connection with an unknown key was let in"
                refused = refused or Outcome.REFUSED in outcomes
                if passed and refused:
                    return ""
            return "nobody answered"

    def _log_refusal(self, address: str, key: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(address, float("-inf")) < _QUIET_SECONDS:
            return
        if len(self._logged) >= _ADDRESSES:
            self._logged.clear()
        self._logged[address] = now
        log.warning(
            "refused a connection from %s: nobody here knows its key %s; if it is one of ours, use folders that one "
            "and the same fourstage keys init has made",
            address,
            key,
        )
