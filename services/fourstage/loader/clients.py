"""Who is connected to the loader, and under which connection."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fourstage.loader.streams import LoaderStream
from fourstage.wire.messages import Hello, Usage
from fourstage.wire.security import Role
from fourstage.wire.sockets import Peer

_MOST_BATCHES, _MOST_SECONDS = 2**53, 1e12
_MOST_LOST = 1024


@dataclass(slots=True)
class Client:
    """A trainer or an augmenter that said HELLO. ``heard``: monotonic seconds."""

    hello: Hello
    peer: Peer
    heard: float
    user: str = ""
    """Its public key; empty without keys."""
    place: Role = "augmenter"
    """Whose socket it came to. An augmenter that came to the trainers' is a trainer's own."""
    usage: Usage = field(default_factory=Usage)

    @property
    def uuid(self) -> bytes:
        return self.hello.peer

    @property
    def name(self) -> str:
        return self.hello.name

    @property
    def owned(self) -> bool:
        """Whether it is a trainer's own worker: it makes the batches of that one's streams and no others."""
        return self.hello.role == "augmenter" and self.place == "trainer"


class Clients:
    """Clients by their own 16 bytes and by their connection's identity, which changes with every reconnect."""

    def __init__(self) -> None:
        self._clients: dict[bytes, Client] = {}
        self._by_peer: dict[Peer, Client] = {}
        self._past = Usage()
        """What augmenters did that are gone."""
        self.trainers_lost: set[str] = set()
        """By name: a trainer that comes back is another process."""

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients.values()))

    def objection(self, hello: Hello, *, user: str, place: Role) -> tuple[Literal["role", "peer"], str] | None:
        """Why this HELLO is not taken: what about it, and in words; None: it is."""
        if place == "augmenter" and hello.role != "augmenter":
            return "role", f"a {hello.role} has its own address, loader.trainers: this one is for augmenters"
        client = self._clients.get(hello.peer)
        if client is not None and (client.user, client.place) != (user, place):
            return "peer", "its 16 bytes belong to another process"
        return None

    def greet(
        self, peer: Peer, hello: Hello, now: float, *, user: str = "", place: Role = "augmenter"
    ) -> tuple[Client, bool]:
        """A HELLO came to which there is no objection; the client, and whether it is new."""
        client = self._clients.get(hello.peer)
        new = client is None
        if client is None:
            client = self._clients[hello.peer] = Client(hello, peer, now, user, place)
        self._by_peer.pop(client.peer, None)
        client.hello, client.peer, client.heard = hello, peer, now
        self._by_peer[peer] = client
        return client, new

    def lose(self, trainer: Client) -> None:
        """A trainer has died."""
        if len(self.trainers_lost) < _MOST_LOST:
            self.trainers_lost.add(trainer.name)

    def forget(self, client: Client) -> None:
        """The client is gone; what it did stays counted."""
        del self._clients[client.uuid]
        self._by_peer.pop(client.peer, None)
        if client.hello.role == "augmenter":
            self._past = total([self._past, client.usage])

    def get(self, uuid: object) -> Client | None:
        """The client of these 16 bytes."""
        return self._clients.get(uuid) if isinstance(uuid, bytes) else None

    def behind(self, peer: Peer) -> Client | None:
        """The client behind a connection; None: it must say HELLO first."""
        return self._by_peer.get(peer)

    def having(self, role: Literal["augmenter", "trainer"]) -> list[Client]:
        """All clients of a role, in the order they came."""
        return [client for client in self._clients.values() if client.hello.role == role]

    def augmenters(self) -> list[Client]:
        """Those that work for anybody."""
        return [client for client in self.having("augmenter") if not client.owned]

    def may_serve(self, augmenter: Client, stream: LoaderStream) -> bool:
        """Whether an augmenter is to know of a stream: of those that name their worker, it alone does, and only where
        both came with one key."""
        if not augmenter.owned:
            return not stream.spec.worker
        return augmenter.uuid == stream.spec.worker and augmenter.user == stream.user

    def of(self, users: set[str]) -> list[Client]:
        """Those that came with one of these keys."""
        return [client for client in self._clients.values() if client.user in users]

    def work(self) -> Usage:
        """What all augmenters did together, those that are gone included."""
        return total([self._past, *(client.usage for client in self.having("augmenter"))])


def total(usages: list[Usage]) -> Usage:
    """The sum of several stages' counters, or the most that a message can say: a peer's may be anything."""
    return Usage(
        batches=min(_MOST_BATCHES, sum(usage.batches for usage in usages)),
        busy=min(_MOST_SECONDS, sum(usage.busy for usage in usages)),
        wait_upstream=min(_MOST_SECONDS, sum(usage.wait_upstream for usage in usages)),
        wait_downstream=min(_MOST_SECONDS, sum(usage.wait_downstream for usage in usages)),
    )
