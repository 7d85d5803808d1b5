"""Which key each augmenter belongs to: nobody sends under the name of another."""

from typing import Literal

from fourstage.wire.messages import Hello

_MOST = 4096


class Senders:
    """Augmenters by their 16 bytes, each with the key that first said HELLO with them; empty without keys."""

    def __init__(self) -> None:
        self._users: dict[bytes, str] = {}

    def objection(self, hello: Hello, user: str) -> tuple[Literal["role", "peer"], str] | None:
        """Why this HELLO is not taken: what about it, and in words; None: it is."""
        if hello.role != "augmenter":
            return "role", f"a {hello.role} has no business here: this address is for augmenters"
        if self._users.get(hello.peer, user) != user:
            return "peer", "its 16 bytes belong to another process"
        return None

    def greet(self, hello: Hello, user: str) -> None:
        """A HELLO came to which there is no objection."""
        self._users.pop(hello.peer, None)
        while len(self._users) >= _MOST:
            del self._users[next(iter(self._users))]
        self._users[hello.peer] = user

    def forget(self, users: set[str]) -> list[bytes]:
        """Forget whoever came with one of these keys; their 16 bytes."""
        gone = [worker for worker, user in self._users.items() if user in users] if users else []
        for worker in gone:
            del self._users[worker]
        return gone
