"""Everybody who has no business in a run with keys tries to get in while it goes on; it ends as if nobody had."""

import dataclasses
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fourstage.errors import PeerLostError
from fourstage.stream import BatchStream
from fourstage.wire.addresses import beside
from fourstage.wire.messages import PROTOCOL, Hello, Message, Open, Refused, Welcome
from fourstage.wire.peer_keys import add_peer, revoke_peer
from fourstage.wire.security import Role, Security, load
from fourstage.wire.sockets import Dialled
from tests.pipeline.harness import CROP, Services, complete_run, eventually, services
from tests.pipeline.test_frozen_worker import request
from tests.ports import free_address, free_port

BATCH, EPOCHS = 8, 10
RUN = (f"batch_size={BATCH}", f"augmenter.crop={CROP}", f"train.epochs={EPOCHS}", "receipt=pixels")
SLOWLY = ("model.name=none", "transport=inline", "train.step_seconds=0.2", "loader.silence_seconds=2.0")
HANDSHAKES, MESSAGES = "fourstage_refused_handshakes_total", "fourstage_refused_messages_total"


@dataclasses.dataclass
class Scene:
    """A run with keys, and those of another service."""

    running: Services
    keys: Path
    other_keys: Path
    receiver: str
    """The trainer's."""
    table: list[tuple[str, str, str, float]] = dataclasses.field(default_factory=list)

    @property
    def loader(self) -> str:
        return self.running.address

    def of(self, name: str, role: Role | None = None, keys: Path | None = None) -> Security:
        security = load(str((keys or self.keys) / name), role or name.partition("-")[0], warn=False)  # type: ignore[arg-type]
        assert security is not None
        return security

    def log(self, name: str) -> str:
        return (self.running.folder / f"{name}.log").read_text()

    @contextmanager
    def refused(self, who: str, at: str, metric: str, reason: str, words: str) -> Iterator[Callable[[], bool]]:
        """What happens within is refused by ``at``: counted under that reason, and in its log. Gives: whether it is
        counted by now."""
        before = self.running.metric(at, metric, reason=reason)

        def counted() -> bool:
            return self.running.metric(at, metric, reason=reason) > before

        yield counted
        eventually(counted, f"{who}: counted by the {at} as {reason!r}", 40.0)
        eventually(lambda: words in self.log(at), f"{who}: {words!r} in the log of the {at}", 40.0)
        self.table.append((who, at, reason, self.running.metric(at, metric, reason=reason) - before))


def hello(role: str = "augmenter", peer: bytes = b"p" * 16) -> Hello:
    return Hello(protocol=PROTOCOL, role=role, peer=peer, session=1, name="intruder", build="", identity=b"i")  # type: ignore[arg-type]


def ask(dialled: Dialled, message: Message) -> Message:
    """Say something, and hear the answer to it."""
    eventually(lambda: dialled.receive() or dialled.send(message), "a connection", 20.0)
    answer = eventually(dialled.receive, "an answer", 20.0)
    assert answer is not None
    assert isinstance(answer[0], Message)
    return answer[0]


def knock(dialled: Dialled, counted: Callable[[], bool]) -> None:
    """Try to get in until it is refused; it cannot say a word."""
    with dialled:

        def tried() -> bool:
            assert dialled.receive() is None
            assert not dialled.send(hello())
            return counted()

        eventually(tried, "a refusal", 40.0)


def unknown_key(scene: Scene) -> None:
    """Our loader's public key, and a key of its own that nobody here knows."""
    foreign = scene.of("augmenter", keys=scene.other_keys)
    unknown = dataclasses.replace(scene.of("augmenter"), own=foreign.own)
    where = {"loader": (scene.loader, "loader"), "trainer": (scene.receiver, "trainer")}
    for at, (address, server) in where.items():
        with scene.refused("unknown key", at, HANDSHAKES, "key", "nobody here knows its key") as counted:
            knock(Dialled(address, server=server, security=unknown), counted)  # type: ignore[arg-type]


def keys_of_another_service(scene: Scene) -> None:
    with scene.refused("keys of another service", "loader", HANDSHAKES, "wrong server", "expects another key here"):
        scene.running.start_augmenter("stranger", keys=scene.other_keys / "augmenter")
    eventually(lambda: "no connection to the loader" in scene.log("stranger"), "the stranger's words")


def no_key(scene: Scene) -> None:
    for at, address in (("loader", scene.loader), ("loader", beside(scene.loader)), ("trainer", scene.receiver)):
        with scene.refused("no key", at, HANDSHAKES, "no key", "the peer has no keys") as counted:
            knock(Dialled(address), counted)


def plain_text(scene: Scene) -> None:
    for at, address in (("loader", scene.loader), ("trainer", scene.receiver)):
        with (
            scene.refused("plain text", at, HANDSHAKES, "protocol", "does not speak ZeroMQ's protocol") as counted,
            ExitStack() as stack,
        ):

            def asked() -> bool:
                connection = stack.enter_context(socket.create_connection(_host_and_port(address)))  # noqa: B023
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: loader\r\n\r\n")
                return counted()

            eventually(asked, "a refusal", 20.0)


def key_of_another_role(scene: Scene) -> None:
    words = "is not for this socket"
    with scene.refused("an augmenter's key where trainers come in", "loader", HANDSHAKES, "role", words) as counted:
        knock(Dialled(beside(scene.loader), security=scene.of("augmenter")), counted)
    with scene.refused("a trainer's key where augmenters come in", "loader", HANDSHAKES, "role", words) as counted:
        knock(Dialled(scene.loader, security=scene.of("trainer")), counted)
    trainer = dataclasses.replace(scene.of("trainer"), servers=scene.of("augmenter").servers)
    with scene.refused("a trainer's key at the trainer", "trainer", HANDSHAKES, "key", "nobody here knows") as counted:
        knock(Dialled(scene.receiver, server="trainer", security=trainer), counted)


def false_role(scene: Scene) -> None:
    with (
        scene.refused("an augmenter that says it is a trainer", "loader", MESSAGES, "role", "refused trainer intruder"),
        Dialled(scene.loader, security=scene.of("augmenter")) as dialled,
    ):
        assert isinstance(ask(dialled, hello("trainer")), Refused)
    with (
        scene.refused("the same at the trainer", "trainer", MESSAGES, "role", "refused trainer intruder"),
        Dialled(scene.receiver, server="trainer", security=scene.of("augmenter")) as dialled,
    ):
        assert isinstance(ask(dialled, hello("trainer")), Refused)
    before = scene.running.metric("loader", "fourstage_peer_errors_total")
    with Dialled(scene.loader, security=scene.of("augmenter")) as dialled:
        assert isinstance(ask(dialled, hello(peer=b"o" * 16)), Welcome)
        opening: Open = request("train", epochs=1)
        assert dialled.send(opening)
        eventually(lambda: scene.running.metric("loader", "fourstage_peer_errors_total") > before, "the count")
    assert "intruder sent Open, which is not for it to send" in scene.log("loader")
    scene.table.append(("an augmenter that opens a stream", "loader", "peer error", 1))


def stolen_peer(scene: Scene) -> None:
    where: tuple[tuple[str, str, Role], ...] = (
        ("loader", scene.loader, "loader"),
        ("trainer", scene.receiver, "trainer"),
    )
    for at, address, server in where:
        with (
            scene.refused("a key under another one's 16 bytes", at, MESSAGES, "peer", "belong to another process"),
            Dialled(address, server=server, security=scene.of("augmenter")) as owner,
            Dialled(address, server=server, security=scene.of("augmenter-lost")) as thief,
        ):
            assert isinstance(ask(owner, hello(peer=b"s" * 16)), Welcome)
            assert isinstance(ask(thief, hello(peer=b"s" * 16)), Refused)


def replayed_handshake(scene: Scene) -> None:
    """What a real peer has said, recorded on its way and said again over a new connection."""
    for at, address, server in (("loader", scene.loader, "loader"), ("trainer", scene.receiver, "trainer")):
        with Recorder(_host_and_port(address)) as recorder:
            through = f"tcp://127.0.0.1:{recorder.port}"
            with Dialled(through, server=server, security=scene.of("augmenter")) as dialled:  # type: ignore[arg-type]
                assert isinstance(ask(dialled, hello(peer=b"r" * 16)), Welcome)
        assert len(b"".join(recorder.said)) > 500
        for way, reason, words in (
            ("step by step", "wrong server", "repeats another one's bytes"),
            ("at once", "protocol", "does not speak ZeroMQ's protocol"),
        ):
            with scene.refused(f"a recorded handshake, {way}", at, HANDSHAKES, reason, words):
                # Its greeting and the first half of a handshake, never a READY or a message.
                heard = replay(
                    _host_and_port(address), recorder.said if way != "at once" else [b"".join(recorder.said)]
                )
                assert len(heard) < 300


def replay(target: tuple[str, int], steps: list[bytes]) -> bytes:
    """Say it, waiting for an answer after each step; what was answered until the other end hung up."""
    heard = b""
    with socket.create_connection(target) as connection:
        for step in steps:
            connection.settimeout(0.2)
            try:
                connection.sendall(step)
                heard += connection.recv(1 << 16)
            except OSError:
                continue
        connection.settimeout(20.0)
        while data := _receive(connection):
            heard += data
    return heard


def revoked_augmenter(scene: Scene) -> None:
    """It works for the run, until its key is taken away."""
    scene.running.start_augmenter("lost", keys=scene.keys / "augmenter-lost")

    def made() -> float:
        return scene.running.metric("lost", "fourstage_batches_total", stage="transform")

    eventually(lambda: made() > 3, "its batches", 60.0)
    with (
        Dialled(scene.loader, security=scene.of("augmenter-lost")) as talker,
        scene.refused("a revoked augmenter", "loader", MESSAGES, "revoked", "lost@") as counted,
        scene.refused("a revoked augmenter", "trainer", MESSAGES, "revoked", "is forgotten: its key is let in no more"),
        scene.refused("a revoked augmenter, again", "loader", HANDSHAKES, "key", "nobody here knows its key"),
    ):
        assert isinstance(ask(talker, hello(peer=b"v" * 16)), Welcome)
        revoke_peer(scene.keys, "augmenter-lost")

        def said() -> bool:
            # Ours hang up at once. Whoever goes on talking is not heard.
            talker.send(hello(peer=b"v" * 16))
            return counted()

        eventually(said, "a refusal on the live connection", 40.0)
    log = scene.log("loader")
    forgotten = next(line for line in log.splitlines() if "is forgotten: its key is let in no more" in line)
    assert "lost@" in forgotten
    before = made()
    step = scene.running.status()["step"]
    eventually(lambda: scene.running.status()["step"] > step + 20, "more steps", 60)
    assert made() <= before + 3


def revoked_trainer(scene: Scene) -> None:
    """Another trainer's stream ends with its key."""
    add_peer(scene.keys, "trainer-b")
    eventually(lambda: "the key of trainer-b is let in from now on" in scene.log("loader"), "the new key")
    wanted = {"augmenter.crop": CROP, "transport": "inline", "keys": str(scene.keys / "trainer-b")}
    with BatchStream(scene.loader, batch_size=BATCH, settings=wanted, timeout=3.0) as stream:
        batches = iter(stream)
        next(batches)
        with (
            Dialled(beside(scene.loader), security=scene.of("trainer-b")) as talker,
            scene.refused("a revoked trainer", "loader", MESSAGES, "revoked", "stream-0 is forgotten") as counted,
        ):
            assert isinstance(ask(talker, hello("trainer", peer=b"w" * 16)), Welcome)
            revoke_peer(scene.keys, "trainer-b")

            def said() -> bool:
                talker.send(hello("trainer", peer=b"w" * 16))
                return counted()

            eventually(said, "a refusal on the live connection", 40.0)
        with pytest.raises(PeerLostError):
            list(batches)
    assert scene.running.metric("loader", "fourstage_streams") == 1


INTRUDERS = (
    unknown_key, keys_of_another_service, no_key, plain_text, key_of_another_role, false_role, stolen_peer,
    replayed_handshake, revoked_augmenter, revoked_trainer,
)  # fmt: skip


@pytest.mark.slow
def test_intruders_are_refused_counted_and_named_and_the_run_goes_on(store: Path, tmp_path: Path) -> None:
    keys, other_keys = tmp_path / "keys", tmp_path / "theirs"
    from fourstage.wire.keys import make_keys

    make_keys(keys)
    make_keys(other_keys)
    add_peer(keys, "augmenter-lost")
    flags = [part for setting in RUN for part in ("--set", setting)]
    undisturbed = complete_run(store, tmp_path / "alone", "--recipe", "drain", "--augmenters", "1", *flags)
    port = free_port()
    settings = [*RUN, *SLOWLY, f"receiver=tcp://127.0.0.1:{port}", f"receiver_bind=tcp://127.0.0.1:{port}"]
    folder = tmp_path / "services"
    folder.mkdir()
    with services(store, folder, 1, settings, loader=free_address(), keys=keys) as running:
        running.start_trainer("drain")
        eventually(lambda: running.status().get("step", 0) > 0, "the first step", 60.0)
        scene = Scene(running, keys, other_keys, f"tcp://127.0.0.1:{port}")
        for intrude in INTRUDERS:
            intrude(scene)
        assert running.processes["trainer"].poll() is None, "the run was over before everybody had tried"
        assert running.processes["trainer"].wait(240) == 0, scene.log("trainer")
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["receipt"]["digest"] == undisturbed["receipt"]["digest"]
    assert summary["receipt"]["delivered"] == undisturbed["receipt"]["delivered"]
    shutil.rmtree(folder)
    for who, at, reason, number in scene.table:
        print(f"{who:42} refused by the {at:8} as {reason!r:15} {number:4.0f} times")
    assert len(scene.table) == 24


class Recorder:
    """A TCP proxy for one connection that keeps what the dialler says."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.said: list[bytes] = []
        """Piece by piece, as it was sent."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]

    def __enter__(self) -> "Recorder":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._ends):
            with ExitStack() as stack:
                stack.callback(end.close)
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        for thread in self._threads:
            thread.join(10.0)

    def _serve(self) -> None:
        here, _ = self._listener.accept()
        there = socket.create_connection(self._target)
        self._ends += [here, there]
        self._threads.append(threading.Thread(target=self._pump, args=(there, here, False), daemon=True))
        self._threads[-1].start()
        self._pump(here, there, True)

    def _pump(self, source: socket.socket, sink: socket.socket, kept: bool) -> None:
        while data := _receive(source):
            if kept:
                self.said.append(data)
            try:
                sink.sendall(data)
            except OSError:
                return


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)
