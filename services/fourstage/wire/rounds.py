"""When everything has been read that was whole at some moment, of a socket that never falls silent.

libzmq's ROUTER takes one message of each connection in turn. So who speaks for the third time has seen a whole round
pass since the first, in which everybody spoke who had something to say.
"""

from collections import Counter

import zmq

_TURNS = 3
_MOST_CONNECTIONS = 1 << 16
"""More than a process has; where so many have spoken and none three times, each came, spoke and went."""


class Round:
    """One round of a ROUTER, from now on."""

    def __init__(self, router: "zmq.Socket[bytes]") -> None:
        # ZeroMQ notices who has begun to speak with every hundredth frame, and when it is asked for events.
        router.getsockopt(zmq.EVENTS)
        self._turns: Counter[bytes] = Counter()

    def passed(self, identity: bytes) -> bool:
        """A message of that connection was read: whether all that was whole when the round began has been read."""
        self._turns[identity] += 1
        return self._turns[identity] >= _TURNS or len(self._turns) > _MOST_CONNECTIONS
