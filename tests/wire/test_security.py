"""Who comes in over TCP, over real sockets; and the files that say so."""

import dataclasses
import logging
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from fourstage.errors import FourstageError, SettingsError
from fourstage.views import View
from fourstage.wire.gate import Gate
from fourstage.wire.handshakes import Handshakes, Outcome
from fourstage.wire.keys import make_keys
from fourstage.wire.messages import Batch, Close, Gone, Lease, Open, Times
from fourstage.wire.peer_keys import add_peer, revoke_peer
from fourstage.wire.refusals import Quiet, Refusals, Trouble
from fourstage.wire.security import FOR_AUGMENTERS, FOR_BATCHES, FOR_TRAINERS, ROLES, Entrance, Role, Security, load
from fourstage.wire.sockets import Bound, Dialled
from tests.pipeline.harness import eventually

TCP = "tcp://127.0.0.1:0"
OURS, THEIRS = Close(b"\x01" * 16), Close(b"\x02" * 16)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    make_keys(folder)
    return folder


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    make_keys(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made here survives a kill, and need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def of(folder: Path, role: Role) -> Security:
    security = load(str(folder / role), role)
    assert security is not None
    return security


class Counted(Bound):
    """A bound socket that counts whom it refused, and keeps what came."""

    def __init__(
        self, address: str = TCP, security: Security | None = None, entrance: Entrance = FOR_AUGMENTERS
    ) -> None:
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.received: list[object] = []
        super().__init__(address, entrance=entrance, security=security, on_refused=self._count)

    def _count(self, what: str, reason: str, number: int) -> None:
        self.reasons[what, reason] += number

    @property
    def refused(self) -> int:
        return sum(self.reasons.values())

    def look(self) -> int:
        """Take in what has come; how many were refused so far."""
        while (arrival := self.receive()) is not None:
            self.received.append(arrival[1])
        return self.refused


def passes(bound: Counted, dialled: Dialled) -> None:
    """A message goes there and the answer back."""
    eventually(lambda: dialled.receive() or dialled.send(OURS), "a connection", 20.0)
    arrival = eventually(bound.receive, "a message", 20.0)
    assert arrival is not None
    assert arrival[1] == OURS
    assert bound.send(arrival[0], Gone(bytes(16)))
    answer = eventually(dialled.receive, "an answer", 20.0)
    assert answer is not None
    assert answer[0] == Gone(bytes(16))


def stranger(kind: str, keys: Path, other_keys: Path) -> Security | None:
    known, foreign = of(keys, "augmenter"), of(other_keys, "augmenter")
    return {
        "an unknown key": dataclasses.replace(known, own=foreign.own),
        "another server's key": dataclasses.replace(known, servers=foreign.servers),
        "keys of another set": foreign,
        "no key": None,
    }[kind]


STRANGERS = ["an unknown key", "another server's key", "keys of another set", "no key"]


ENTRANCES = [FOR_AUGMENTERS, FOR_TRAINERS, FOR_BATCHES]


@pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda entrance: entrance.domain)
def test_a_known_key_passes_and_every_message_says_whose_it_is(keys: Path, entrance: Entrance) -> None:
    security = of(keys, entrance.client)
    with (
        Counted(security=of(keys, entrance.server), entrance=entrance) as bound,
        Dialled(bound.address, server=entrance.server, security=security) as dialled,
    ):
        passes(bound, dialled)
        assert dialled.send(OURS)
        arrival = eventually(bound.receive, "a message", 20.0)
        assert arrival is not None
        assert arrival.user == security.own.public.decode()
        assert bound.name(arrival.user) == entrance.client
        assert bound.refused == 0


@pytest.mark.parametrize("entrance", [FOR_AUGMENTERS, FOR_TRAINERS], ids=lambda entrance: entrance.domain)
def test_a_key_of_the_other_role_is_refused_by_its_name(
    keys: Path, entrance: Entrance, caplog: pytest.LogCaptureFixture
) -> None:
    other: Role = "trainer" if entrance is FOR_AUGMENTERS else "augmenter"
    with (
        Counted(security=of(keys, "loader"), entrance=entrance) as bound,
        Dialled(bound.address, security=of(keys, other)) as dialled,
    ):
        eventually(lambda: dialled.receive() or bound.look(), "a refusal", 20.0)
        assert not dialled.send(THEIRS)
        assert bound.reasons.keys() == {("handshakes", "role")}
        assert bound.received == []
    assert f"the key of {other} is not for this socket, which lets in {entrance.client}s alone" in caplog.text


def test_a_trainers_key_does_not_pass_for_the_loaders(keys: Path) -> None:
    """Whoever listens at the loader's address with another key than the loader's hears nothing."""
    with (
        Counted(security=of(keys, "trainer"), entrance=FOR_BATCHES) as false_loader,
        Dialled(false_loader.address, security=of(keys, "augmenter")) as dialled,
    ):
        eventually(lambda: dialled.receive() or (false_loader.look() and dialled.trouble), "a refusal", 20.0)
        assert not dialled.send(OURS)
        assert false_loader.received == []


def test_a_key_that_is_taken_away_is_heard_no_more_and_a_new_one_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_keys(tmp_path)
    add_peer(tmp_path, "augmenter-7")
    lost = of(tmp_path, "augmenter")
    seven = load(str(tmp_path / "augmenter-7"), "augmenter")
    with (
        Counted(security=of(tmp_path, "loader")) as bound,
        Dialled(bound.address, security=lost) as dialled,
        Dialled(bound.address, security=seven) as other,
    ):
        passes(bound, dialled)
        passes(bound, other)
        assert bound.revoked() == set()
        revoke_peer(tmp_path, "augmenter")
        eventually(lambda: dialled.send(THEIRS) and bound.look(), "a message is refused", 20.0)
        assert bound.reasons["messages", "revoked"] > 0
        assert bound.revoked() == {lost.own.public.decode()}
        assert bound.revoked() == set()
        # Its connection is cut, and the next handshake fails.
        eventually(lambda: dialled.receive() or (bound.look() and dialled.trouble), "a refusal", 30.0)
        assert bound.reasons["handshakes", "key"] > 0
        known = bound.received.count(THEIRS)
        assert not dialled.send(THEIRS)
        bound.look()
        assert bound.received.count(THEIRS) == known
        passes(bound, other)
        add_peer(tmp_path, "augmenter-8")
        eventually(lambda: bound.look() and "augmenter-8 is let in from now on" in caplog.text, "the new key", 20.0)
        with Dialled(bound.address, security=load(str(tmp_path / "augmenter-8"), "augmenter")) as fresh:
            passes(bound, fresh)
    assert "the key of augmenter is let in no more" in caplog.text
    assert caplog.text.count("dropped a message at") == 1


def test_half_a_key_in_the_folder_lets_nobody_in_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_keys(tmp_path)
    with (
        Counted(security=of(tmp_path, "loader")) as bound,
        Dialled(bound.address, security=of(tmp_path, "augmenter")) as dialled,
    ):
        passes(bound, dialled)
        (tmp_path / "loader" / "peers" / "augmenter-8.key").write_text("public-key")
        eventually(lambda: bound.look() or "a key is not let in" in caplog.text, "the words", 20.0)
        passes(bound, dialled)
        assert bound.revoked() == set()


def test_a_trainer_is_taken_by_its_own_key_and_no_other(tmp_path: Path) -> None:
    make_keys(tmp_path)
    augmenter = of(tmp_path, "augmenter")
    # Added after the augmenter has started.
    add_peer(tmp_path, "trainer-b")
    b = load(str(tmp_path / "trainer-b"), "trainer")
    assert b is not None
    with (
        Counted(security=b, entrance=FOR_BATCHES) as bound,
        Dialled(bound.address, server="trainer", server_key=b.own.public, security=augmenter) as dialled,
    ):
        passes(bound, dialled)
        with pytest.raises(SettingsError, match="does not know the trainer with the key"):
            Dialled(bound.address, server="trainer", server_key=b"x" * 40, security=augmenter)
        with pytest.raises(SettingsError, match="which of 2 trainers"):
            Dialled(bound.address, server="trainer", security=of(tmp_path, "augmenter"))


def test_bytes_of_another_protocol_are_refused_and_counted(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Counted(security=of(keys, "loader")) as bound:
        port = int(bound.address.rpartition(":")[2])
        for data in (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", bytes(100), bytes(range(255))):
            before = bound.refused
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(data)
                eventually(lambda: bound.look() > before, "a refusal", 20.0)  # noqa: B023  called at once
        assert bound.reasons == {("handshakes", "protocol"): 3}
        # A port scan and a health check say nothing.
        socket.create_connection(("127.0.0.1", port)).close()
        with Dialled(bound.address, security=of(keys, "augmenter")) as dialled:
            passes(bound, dialled)
        assert bound.look() == 3
        assert bound.received == []
    assert caplog.text.count("does not speak ZeroMQ's protocol") == 1


def test_a_unix_socket_is_its_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    with umask(0), Counted(f"ipc://{tmp_path / 'socket'}"):
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", STRANGERS)
def test_nothing_of_a_stranger_arrives_and_both_ends_say_why(
    keys: Path, other_keys: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Counted(security=of(keys, "loader")) as bound,
        Dialled(bound.address, security=of(keys, "augmenter")) as known,
        Dialled(bound.address, security=stranger(kind, keys, other_keys)) as unknown,
    ):

        def known_at_both() -> bool:
            assert unknown.receive() is None
            assert not unknown.send(THEIRS)
            return bound.look() > 0 and bool(unknown.trouble)

        # Without keys either end may be the first to hang up, and the other then knows no reason until next time.
        eventually(known_at_both, "a refusal at both ends", 60.0)
        passes(bound, known)
        assert bound.received == []
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    there = [line for line in lines if line.startswith("refused a connection")]
    here = [line for line in lines if line.startswith("no connection to the loader at tcp://")]
    assert there
    assert here
    assert len(there) + len(here) <= 4
    assert all("keys" in line for line in lines)
    if kind == "an unknown key":
        assert of(other_keys, "augmenter").own.public.decode() in there[0]
        assert "from 127.0.0.1" in there[0]
        assert "does not let this process's key in" in here[0]


def test_a_client_that_queued_its_words_before_the_handshake_is_not_heard(keys: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    plain, password = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    password.setsockopt(zmq.PLAIN_USERNAME, b"augmenter")
    password.setsockopt(zmq.PLAIN_PASSWORD, b"augmenter")
    with Counted(security=of(keys, "loader")) as bound:
        for socket in (plain, password):
            handshakes = Handshakes(socket)
            socket.connect(bound.address)
            socket.send_multipart([b"4S\x02\x04", b"\x80"])
            outcomes = eventually(handshakes.take, "the end of a handshake", 20.0)
            assert Outcome.OPENED not in outcomes
            handshakes.close()
        with Dialled(bound.address, security=of(keys, "augmenter")) as known:
            passes(bound, known)
        assert bound.received == []
    plain.close(0)
    password.close(0)
    context.term()


def test_keys_here_and_none_there_is_said_at_both_ends(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Counted() as bound, Dialled(bound.address, security=of(keys, "augmenter")) as dialled:

        def known_at_both() -> bool:
            assert dialled.receive() is None
            assert not dialled.send(THEIRS)
            return bound.look() > 0 and bool(dialled.trouble)

        eventually(known_at_both, "a refusal at both ends", 60.0)
        assert bound.received == []
    assert "the peer has keys and this process has none" in caplog.text
    assert "no connection to the loader" in caplog.text


def test_who_was_refused_comes_in_once_the_keys_are_right(keys: Path, other_keys: Path) -> None:
    with Counted(security=of(other_keys, "loader")) as wrong:
        address = wrong.address
        dialled = Dialled(address, security=dataclasses.replace(of(keys, "augmenter"), servers={
            of(other_keys, "loader").own.public: "loader"}))  # fmt: skip
        eventually(lambda: dialled.receive() or (wrong.look() and dialled.trouble), "a refusal", 20.0)
    known_after_all = dataclasses.replace(
        of(other_keys, "loader"), clients=of(keys, "loader").clients, folder=keys / "loader"
    )
    with Counted(address, known_after_all) as right, dialled:
        passes(right, dialled)
        assert dialled.trouble == ""


def test_two_sockets_of_one_process_have_keys_of_their_own(keys: Path, other_keys: Path) -> None:
    with Counted(security=of(keys, "loader")) as first, Counted(security=of(other_keys, "loader")) as second:
        for bound, folder in ((first, keys), (second, other_keys)):
            with Dialled(bound.address, security=of(folder, "augmenter")) as dialled:
                passes(bound, dialled)
        with Dialled(second.address, security=of(keys, "augmenter")) as dialled:
            eventually(lambda: dialled.receive() or second.look(), "a refusal", 20.0)
        assert second.received == []


def test_a_unix_socket_asks_for_no_key(keys: Path, tmp_path: Path) -> None:
    with (
        Counted(f"ipc://{tmp_path / 'socket'}", of(keys, "loader")) as bound,
        Dialled(bound.address, security=of(keys, "augmenter")) as with_keys,
        Dialled(bound.address) as without,
    ):
        passes(bound, with_keys)
        passes(bound, without)


def test_without_its_gate_a_socket_lets_nobody_in_and_says_so(keys: Path) -> None:
    bound = Counted(security=of(keys, "loader"))
    assert bound._gate is not None
    bound._gate.pipe.send(b"TERMINATE")
    bound._gate.thread.join()
    with Dialled(bound.address, security=of(keys, "augmenter")) as dialled:
        for _ in range(50):
            assert not dialled.send(THEIRS)
            assert not bound.socket.poll(10)
    with pytest.raises(FourstageError, match="nobody checks keys"):
        bound.receive()
    bound.close()


def test_a_fault_in_the_gate_refuses_and_does_not_end_it(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Counted(security=of(keys, "loader")) as bound:
        with monkeypatch.context() as broken, Dialled(bound.address, security=of(keys, "augmenter")) as dialled:
            broken.setattr(Gate, "curve_user_id", lambda *_: 1 // 0)
            eventually(lambda: dialled.receive() or bound.look(), "a refusal", 20.0)
        with Dialled(bound.address, security=of(keys, "augmenter")) as dialled:
            passes(bound, dialled)
        assert bound.received == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda *_: True, "an unknown key was let in"),
        (lambda *_: False, "a known key was not let in"),
    ],
    ids=["open to all", "open to none"],
)
def test_a_gate_that_does_not_do_its_work_never_opens(
    keys: Path, monkeypatch: pytest.MonkeyPatch, broken: Any, words: str
) -> None:
    monkeypatch.setattr(Gate, "callback", broken)
    with pytest.raises(FourstageError, match=words):
        Counted(security=of(keys, "loader"))


def test_a_stranger_that_is_refused_before_it_can_speak_does_not_hold_up_the_start(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = zmq.Socket.connect

    def connect_and_be_refused(socket: "zmq.Socket[bytes]", address: str) -> None:
        connect(socket, address)
        time.sleep(0.5)

    monkeypatch.setattr(zmq.Socket, "connect", connect_and_be_refused)
    bound: list[Bound] = []
    start = threading.Thread(
        target=lambda: bound.append(Bound("tcp://127.0.0.1:0", security=of(keys, "loader"))), daemon=True
    )
    start.start()
    start.join(30.0)
    assert bound, "the self-test of the keys hangs"
    bound[0].close()


def test_each_refusal_is_said_once_in_a_while() -> None:
    refusals = Refusals(has_keys=True)
    assert refusals.hear([Outcome.OPENED, Outcome.HUNG_UP], 0.0) == []
    assert len(refusals.hear([Outcome.MISMATCH, Outcome.MISMATCH, Outcome.WRONG_SERVER], 0.0)) == 2
    assert refusals.hear([Outcome.MISMATCH], 29.0) == []
    assert len(refusals.hear([Outcome.MISMATCH], 31.0)) == 1
    # The gate has said and counted it already, with address and key.
    assert refusals.hear([Outcome.REFUSED], 31.0) == []
    assert refusals.take() == {"no key": 4, "wrong server": 1}
    assert refusals.take() == {}


def test_ever_new_subjects_do_not_fill_the_memory() -> None:
    quiet = Quiet()
    assert all(quiet.may_say(number, 0.0) for number in range(5000))
    assert len(quiet._said) <= 1024


@pytest.mark.parametrize("has_keys", [False, True])
def test_trouble_is_news_once_and_a_single_hang_up_is_none(has_keys: bool) -> None:
    trouble = Trouble(has_keys=has_keys)
    assert not trouble.hear([Outcome.HUNG_UP, Outcome.OPENED, Outcome.HUNG_UP])
    assert trouble.hear([Outcome.HUNG_UP])
    assert not trouble.hear([Outcome.HUNG_UP])
    assert trouble.hear([Outcome.MISMATCH])
    assert not trouble.hear([Outcome.HUNG_UP, Outcome.MISMATCH])
    for outcome in set(Outcome) - {Outcome.OPENED, Outcome.HUNG_UP}:
        trouble.hear([outcome])
        assert trouble.reason
    assert not trouble.hear([Outcome.OPENED])
    assert trouble.reason == ""


# Files


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_one_set(folder: Path) -> bool:
    loader, trainer, augmenter = (of(folder, role) for role in ROLES)
    return (
        loader.clients == {trainer.own.public: "trainer", augmenter.own.public: "augmenter"}
        and trainer.clients == {augmenter.own.public: "augmenter"}
        and trainer.servers == {loader.own.public: "loader"}
        and augmenter.servers == {loader.own.public: "loader", trainer.own.public: "trainer"}
        and augmenter.clients == {}
    )


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_keys_are_their_owners_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    for role in ("loader", "trainer"):
        (tmp_path / "keys" / role).mkdir(parents=True, mode=0o755)
    with umask(mask):
        assert make_keys(tmp_path / "keys")
        assert os.umask(mask) == mask
    assert is_one_set(tmp_path / "keys")
    for path in (tmp_path / "keys").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_each_folder_holds_what_its_role_needs_and_no_more(keys: Path) -> None:
    assert set(contents(keys)) == {
        "loader/loader.key_secret", "loader/peers/trainer.key", "loader/peers/augmenter.key",
        "trainer/trainer.key_secret", "trainer/loader.key", "trainer/peers/augmenter.key",
        "augmenter/augmenter.key_secret", "augmenter/loader.key", "augmenter/trainer.key",
    }  # fmt: skip
    for name, text in contents(keys).items():
        assert (b"secret-key" in text) == name.endswith(".key_secret")


def test_keys_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    assert make_keys(tmp_path)
    before = contents(tmp_path)
    assert not make_keys(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("volumes", [False, True], ids=["new folders", "empty volumes"])
def test_killed_at_any_moment_it_leaves_nothing_half_made_and_goes_on(tmp_path: Path, volumes: bool) -> None:
    """SIGKILL before the n-th change of the file system, for every n."""
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        if volumes:
            for role in ROLES:
                (folder / role / "lost+found").mkdir(parents=True)
        killed = make_and_die(folder, number)
        used = {}
        for role in ROLES:
            try:
                used[role] = of(folder, role)
            except SettingsError:
                continue
        assert not used or len(used) == 3 or any((folder / role / ".unfinished").exists() for role in ROLES)
        make_keys(folder)
        assert is_one_set(folder)
        assert not any((folder / role / ".unfinished").exists() for role in ROLES)
        # Whoever may have begun with these keys still has the right ones.
        assert {role: of(folder, role) for role in used} == used
        shutil.rmtree(folder)
        if not killed:
            assert number > 30
            return
    raise AssertionError("it never ended")


def make_and_die(folder: Path, number: int, make: Callable[[Path], object] = make_keys) -> bool:
    """Make keys in another process, which is killed before its ``number``-th change; whether it did."""
    pid = os.fork()
    if pid == 0:
        left = number

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod") or (
                event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
            )
            left -= writes
            if left == 0 and writes:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            make(folder)
        except BaseException:
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_keys_in_use_are_never_written_over(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "augmenter").rename(tmp_path / "carried away")
    before = contents(tmp_path)
    with pytest.raises(SettingsError, match="no whole set"):
        make_keys(tmp_path)
    assert contents(tmp_path) == before


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file"):
        make_keys(tmp_path / "file")


def test_no_folder_is_no_keys() -> None:
    assert load("", "loader") is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("rm -r loader", "there is no such folder.*fourstage keys init DIR"),
        ("rm loader/loader.key_secret", "loader.key_secret is missing.*this process takes DIR/loader"),
        ("rm loader/peers/*", "nobody could come in"),
        ("mkdir loader/.unfinished", "half-made; run fourstage keys init again"),
        ("mv trainer/* loader/; rm loader/loader.key_secret", "is the folder of the trainer, and this is the loader"),
        ("mkdir loader/loader; mv loader/loader.key_secret loader/loader", "this process takes .*/loader/loader"),
        ("echo nonsense > loader/loader.key_secret", "loader.key_secret holds no key"),
        ("cp loader/peers/trainer.key loader/loader.key_secret", "no pair of a public and its secret key"),
        ("sed -i 's/secret-key = \"./&./' loader/loader.key_secret", "no pair of a public and its secret key"),
        ("echo public-key > loader/peers/trainer.key", "trainer.key holds no key"),
        ("echo 'public-key = \"short\"' > loader/peers/trainer.key", "trainer.key holds no public key"),
        ("cp loader/peers/trainer.key loader/peers/augmenter.key", "trainer.key holds the key of augmenter.key"),
        ("mv loader/peers/trainer.key loader/peers/friend.key", "lets no 'friend' in; call it trainer or augmenter"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_named_with_the_fix(tmp_path: Path, spoil: str, words: str) -> None:
    make_keys(tmp_path)
    assert os.system(f"cd {tmp_path} && {spoil}") == 0
    with pytest.raises(SettingsError, match=words):
        load(str(tmp_path / "loader"), "loader")


def test_a_second_key_of_a_role_comes_in_beside_the_first(keys: Path, other_keys: Path, tmp_path: Path) -> None:
    shutil.copytree(keys, tmp_path, dirs_exist_ok=True)
    shutil.copy(other_keys / "augmenter" / "augmenter.key_secret", tmp_path / "augmenter")
    shutil.copy(other_keys / "loader" / "peers" / "augmenter.key", tmp_path / "loader" / "peers" / "augmenter-2.key")
    with Counted(security=of(tmp_path, "loader")) as bound:
        for folder in (keys, tmp_path):
            with Dialled(bound.address, security=of(folder, "augmenter")) as dialled:
                passes(bound, dialled)


def test_a_secret_that_others_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_keys(tmp_path)
    of(tmp_path, "loader")
    assert caplog.text == ""
    (tmp_path / "loader" / "loader.key_secret").chmod(0o640)
    of(tmp_path, "loader")
    assert f"chmod 600 {tmp_path / 'loader' / 'loader.key_secret'}" in caplog.text


def test_a_secret_is_not_shown(keys: Path) -> None:
    security = of(keys, "loader")
    assert security.own.secret.decode() not in repr(security)
    assert security.own.secret.decode() not in str(security.own)


def test_each_peer_can_have_a_key_of_its_own_and_lose_it_alone(tmp_path: Path) -> None:
    make_keys(tmp_path)
    before = contents(tmp_path)
    with umask(0o022):
        told = [
            *add_peer(tmp_path, "augmenter-7"),
            *add_peer(tmp_path, "trainer-b"),
            *add_peer(tmp_path, "augmenter-8"),
        ]
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert {str(path.relative_to(tmp_path)) for path in told} == {
        "loader/peers/augmenter-7.key", "trainer/peers/augmenter-7.key", "loader/peers/trainer-b.key",
        "augmenter/trainer-b.key", "augmenter-7/trainer-b.key", "loader/peers/augmenter-8.key",
        "trainer/peers/augmenter-8.key", "trainer-b/peers/augmenter-8.key",
    }  # fmt: skip
    everybody = {"augmenter": "augmenter", "augmenter-7": "augmenter", "augmenter-8": "augmenter", "trainer": "trainer",
                 "trainer-b": "trainer"}  # fmt: skip
    peers = {name: load(str(tmp_path / name), role) for name, role in everybody.items()}  # type: ignore[arg-type]
    loader = of(tmp_path, "loader")
    assert sorted(loader.clients.values()) == sorted(everybody)
    for name, peer in peers.items():
        assert peer is not None
        assert loader.clients[peer.own.public] == name
        assert peer.server("loader") == loader.own.public
        if name.startswith("trainer"):
            assert sorted(peer.clients.values()) == ["augmenter", "augmenter-7", "augmenter-8"]
        else:
            assert set(peer.servers.values()) == {"loader", "trainer", "trainer-b"}
    # What is added is no reason to make keys anew.
    assert not make_keys(tmp_path)
    for name in ("augmenter-7", "augmenter-8", "trainer-b"):
        assert all(path.name == f"{name}.key" for path in revoke_peer(tmp_path, name))
    assert contents(tmp_path) == before


def test_the_shared_key_of_a_role_can_be_revoked_once_each_peer_has_its_own(tmp_path: Path) -> None:
    make_keys(tmp_path)
    add_peer(tmp_path, "augmenter-7")
    revoke_peer(tmp_path, "augmenter")
    assert list(of(tmp_path, "loader").clients.values()) == ["augmenter-7", "trainer"]
    assert not (tmp_path / "augmenter").exists()
    assert not make_keys(tmp_path)
    add_peer(tmp_path, "augmenter-8")
    assert sorted(of(tmp_path, "trainer").clients.values()) == ["augmenter-7", "augmenter-8"]


@pytest.mark.parametrize(
    "name", ["loader", "loader-b", "worker", "augmenter-", "augmenter-../x", "trainer-a b", "", "x/y"]
)
def test_a_name_that_is_no_peers_is_refused(tmp_path: Path, name: str) -> None:
    make_keys(tmp_path)
    before = contents(tmp_path)
    for change in (add_peer, revoke_peer):
        with pytest.raises(SettingsError, match="augmenter-NAME or trainer-NAME"):
            change(tmp_path, name)
    assert contents(tmp_path) == before


def test_a_peer_that_is_there_is_not_made_again_and_one_that_is_not_cannot_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="fourstage keys init"):
        add_peer(tmp_path, "augmenter-7")
    make_keys(tmp_path)
    add_peer(tmp_path, "augmenter-7")
    before = contents(tmp_path)
    for name in ("augmenter-7", "augmenter"):
        with pytest.raises(SettingsError, match=f"has a peer {name} already"):
            add_peer(tmp_path, name)
    with pytest.raises(SettingsError, match="it knows augmenter, augmenter-7, trainer"):
        revoke_peer(tmp_path, "augmenter-8")
    assert contents(tmp_path) == before


def test_killed_at_any_moment_a_peer_is_added_or_it_is_not(tmp_path: Path) -> None:
    """SIGKILL before the n-th change of the file system, for every n; the next call makes it whole."""
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        make_keys(folder)
        killed = make_and_die(folder, number, lambda path: add_peer(path, "trainer-b"))
        assert is_whole_with(folder, "trainer-b") or (folder / "trainer-b" / ".unfinished").exists() or killed
        # A loader that runs meanwhile never sees a torn file.
        assert set(of(folder, "loader").clients.values()) <= {"augmenter", "trainer", "trainer-b"}
        if not is_whole_with(folder, "trainer-b"):
            add_peer(folder, "trainer-b")
        assert is_whole_with(folder, "trainer-b")
        shutil.rmtree(folder)
        if not killed:
            assert number > 10
            return
    raise AssertionError("it never ended")


def is_whole_with(folder: Path, name: str) -> bool:
    try:
        peer = load(str(folder / name), "trainer")
    except SettingsError:
        return False
    return peer is not None and of(folder, "loader").clients.get(peer.own.public) == name


def test_secrets_do_not_show_where_messages_do() -> None:
    """A message in a log line, an error or a traceback shows neither a stream's secret nor a lease's code."""
    times, code = Times(), b"lease-code-bytes"
    said = [
        made_open(b"streams-secret-b"),
        Lease(stream=bytes(16), seq=0, session=1, number=1, head=False, epoch=0, first=0, rows=0, slot=-1, sizes=b"",
              code=code, times=times),
        Batch(stream=bytes(16), seq=0, session=1, number=1, slot=-1, rows=0, identity=b"", code=code, times=times),
    ]  # fmt: skip
    for message in said:
        assert "streams-secret" not in repr(message) + str(message)
        assert "lease-code" not in repr(message) + str(message)


def made_open(secret: bytes) -> Open:
    return Open(
        stream=bytes(16), split="train", view=View("centre", 4), batch_size=1, remainder="keep", shuffle=False, seed=1,
        rank=0, world=1, start=0, epochs=1, end=0, window=0, fingerprint="", identity=b"", transport="inline",
        receiver="", side="", worker=b"", on_corrupt="fail", secret=secret,
    )  # fmt: skip
