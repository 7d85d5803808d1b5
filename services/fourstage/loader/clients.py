"""Who is connected to the loader, and under which connection."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from fourstage.wire.messages import Hello, Usage
from fourstage.wire.sockets import Peer


@dataclass(slots=True)
class Client:
    """A trainer or an augmenter that said HELLO. ``heard``: monotonic seconds."""

    hello: Hello
    peer: Peer
    heard: float
    usage: Usage = field(default_factory=Usage)

    @property
    def uuid(self) -> bytes:
        return self.hello.peer

    @property
    def name(self) -> str:
        return self.hello.name


class Clients:
    """Clients by their own 16 bytes and by their connection's identity, which changes with every reconnect."""

    def __init__(self) -> None:
        self._clients: dict[bytes, Client] = {}
        self._by_peer: dict[Peer, Client] = {}
        self._past = Usage()
        """What augmenters did that are gone."""
        self.owned: set[bytes] = set()
        """Augmenters that belong to a trainer: they make the batches of its streams and no others."""
        self.trainers_lost: set[str] = set()
        """By name: a trainer that comes back is another process."""

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._clients.values()))

    def greet(self, peer: Peer, hello: Hello, now: float) -> tuple[Client, bool]:
        """A HELLO came; the client, and whether it is new."""
        client = self._clients.get(hello.peer)
        new = client is None
        if client is None:
            client = self._clients[hello.peer] = Client(hello, peer, now)
        self._by_peer.pop(client.peer, None)
        client.hello, client.peer, client.heard = hello, peer, now
        self._by_peer[peer] = client
        return client, new

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
        return [client for client in self.having("augmenter") if client.uuid not in self.owned]

    def may_serve(self, augmenter: Client, owner: bytes) -> bool:
        """Whether an augmenter is to know of a stream. owner: the one that alone makes its batches; empty: anybody."""
        return augmenter.uuid == owner if owner else augmenter.uuid not in self.owned

    def disown(self, but: Iterable[bytes]) -> None:
        """Forget who belonged to a trainer, but those that are connected and these."""
        self.owned &= {*but, *self._clients}

    def work(self) -> Usage:
        """What all augmenters did together, those that are gone included."""
        return total([self._past, *(client.usage for client in self.having("augmenter"))])


def total(usages: list[Usage]) -> Usage:
    """The sum of several stages' counters."""
    return Usage(
        batches=sum(usage.batches for usage in usages),
        busy=sum(usage.busy for usage in usages),
        wait_upstream=sum(usage.wait_upstream for usage in usages),
        wait_downstream=sum(usage.wait_downstream for usage in usages),
    )
