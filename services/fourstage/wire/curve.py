"""Both ends of a CURVE connection: what a socket is told before it binds or connects."""

import zmq

from fourstage.wire.security import KeyPair


def serve(socket: "zmq.Socket[bytes]", own: KeyPair, domain: str) -> None:
    """Make a socket a CURVE server that asks the gate of its context; before it binds. domain: of the ZAP questions."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def dial(socket: "zmq.Socket[bytes]", own: KeyPair, server: bytes) -> None:
    """Make a socket a CURVE client of the server with that public key; before it connects."""
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server)
