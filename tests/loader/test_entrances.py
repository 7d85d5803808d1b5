"""The loader's two sockets, and whom it takes there for whom."""

import socket
from pathlib import Path
from typing import Any

import pytest

from fourstage.errors import SettingsError
from fourstage.loader.clients import Clients
from fourstage.loader.entrances import Entrances
from fourstage.settings import LoaderSettings
from fourstage.wire.messages import PROTOCOL, Hello, Who
from fourstage.wire.sockets import Dialled
from tests.pipeline.harness import eventually
from tests.ports import free_port


def entrances(folder: Path, **settings: Any) -> Entrances:
    return Entrances(LoaderSettings(**settings), folder, None, lambda *_: None)


def hello(role: str, peer: bytes = b"p" * 16) -> Hello:
    return Hello(protocol=PROTOCOL, role=role, peer=peer, session=1, name="x", build="", identity=b"")  # type: ignore[arg-type]


@pytest.mark.parametrize("any_port", ["0", "*"])
def test_of_any_free_port_trainers_get_the_next_one(tmp_path: Path, any_port: str) -> None:
    both = entrances(tmp_path, address=f"tcp://127.0.0.1:{any_port}")
    first, second = (int(address.rpartition(":")[2]) for address in (both.augmenters, both.trainers))
    assert second == first + 1
    both.close()


def test_a_file_gets_two_unix_sockets_of_their_own(tmp_path: Path) -> None:
    both = entrances(tmp_path, address=f"file:{tmp_path / 'address'}")
    assert both.augmenters.startswith(f"ipc://{tmp_path}/augmenters-")
    assert both.trainers.startswith(f"ipc://{tmp_path}/trainers-")
    both.close()
    other = entrances(tmp_path, address=f"ipc://{tmp_path}/here", trainers=f"ipc://{tmp_path}/there")
    assert (other.augmenters, other.trainers) == (f"ipc://{tmp_path}/here", f"ipc://{tmp_path}/there")
    other.close()


def test_a_taken_neighbour_is_named_with_the_setting_and_the_first_port_is_free_again(tmp_path: Path) -> None:
    port = free_port(2)
    with socket.create_server(("127.0.0.1", port + 1)), pytest.raises(SettingsError, match=r"loader\.trainers"):
        entrances(tmp_path, address=f"tcp://127.0.0.1:{port}")
    entrances(tmp_path, address=f"tcp://127.0.0.1:{port}").close()


def test_what_comes_in_says_by_which_socket_and_the_answer_goes_back_there(tmp_path: Path) -> None:
    both = entrances(tmp_path, address=f"ipc://{tmp_path}/loader")
    with Dialled(both.augmenters) as augmenter, Dialled(both.trainers) as trainer:
        for role, dialled in (("augmenter", augmenter), ("trainer", trainer)):
            eventually(lambda: dialled.send(hello(role)), "a connection")  # noqa: B023
            arrival = eventually(lambda: next(both.arrivals(10), None), "a message")
            assert arrival is not None
            assert (arrival.role, arrival.message) == (role, hello(role))
            assert both.send(arrival.peer, Who())
            answer = eventually(dialled.receive, "an answer")
            assert answer is not None
            assert answer[0] == Who()
    both.close()


def test_nobody_is_taken_for_another_process_or_role() -> None:
    clients = Clients()
    assert clients.objection(hello("trainer"), user="", place="augmenter") is not None
    assert clients.objection(hello("augmenter"), user="a", place="augmenter") is None
    clients.greet(b"1", hello("augmenter"), 0.0, user="a", place="augmenter")
    assert clients.objection(hello("augmenter"), user="a", place="augmenter") is None
    for user, place in (("b", "augmenter"), ("a", "trainer"), ("", "augmenter")):
        found = clients.objection(hello("augmenter"), user=user, place=place)  # type: ignore[arg-type]
        assert found is not None
        assert found[0] == "peer"
    assert [client.uuid for client in clients.of({"a"})] == [b"p" * 16]
    assert clients.of({"b"}) == []


def test_a_trainers_own_worker_is_none_of_everybodys() -> None:
    clients = Clients()
    own, _ = clients.greet(b"1", hello("augmenter"), 0.0, user="t", place="trainer")
    common, _ = clients.greet(b"2", hello("augmenter", b"q" * 16), 0.0, user="a", place="augmenter")
    assert own.owned
    assert clients.augmenters() == [common]
