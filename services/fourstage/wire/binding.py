"""Binding where the kernel chooses the port."""

import zmq

from fourstage.errors import SettingsError

_ATTEMPTS = 5


class AddressTakenError(SettingsError):
    """Another process listens there."""


def bind(socket: "zmq.Socket[bytes]", address: str) -> None:
    """Bind; raises ZMQError.

    The kernel may offer one free port (``tcp://HOST:0`` or ``:*``) to two processes at the same moment, because libzmq
    sets SO_REUSEADDR: the second one to listen loses it, and is offered another.
    """
    attempts = _ATTEMPTS if address.endswith((":0", ":*")) else 1
    for left in reversed(range(attempts)):
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or not left:
                raise
        else:
            return
