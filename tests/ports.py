"""TCP ports for whoever must name them before they are bound."""

import random
import socket
from contextlib import ExitStack

_FIRST, _LAST = 20_000, 30_000
"""Below those that the kernel gives to outgoing connections and to listeners without a wish (32768 on: ip(7),
``ip_local_port_range``), so that nobody is given one of them between the choice and the bind."""


def free_port(count: int = 1) -> int:
    """The first of ``count`` TCP ports in a row of 127.0.0.1 on which nobody listens now."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(_FIRST, _LAST)
        with ExitStack() as stack:
            try:
                for number in range(count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port + number)))
            except OSError:
                continue
            return port
    raise AssertionError(f"no {count} free ports in a row from {_FIRST} to {_LAST}")


def free_address() -> str:
    """A TCP address where nobody listens, nor at the next port, which is the loader's for trainers."""
    return f"tcp://127.0.0.1:{free_port(2)}"
