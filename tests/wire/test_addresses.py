"""Which address is whose, and which may be used without keys."""

from pathlib import Path

import pytest

from fourstage.errors import FourstageError, SettingsError
from fourstage.wire.addresses import beside, check_reach, is_local, resolve
from fourstage.wire.sockets import Bound, Dialled


def test_a_file_holds_the_present_addresses(tmp_path: Path) -> None:
    file = tmp_path / "loader.address"
    with pytest.raises(FourstageError, match=str(file)):
        resolve(f"file:{file}")
    for present in ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"):
        file.write_text(f"{present}\nipc:///run/trainers\n")
        assert resolve(f"file:{file}") == present
        assert resolve(f"file:{file}", "trainer") == "ipc:///run/trainers"
    file.write_text("")
    with pytest.raises(FourstageError, match="holds no address"):
        resolve(f"file:{file}", "trainer")


def test_trainers_find_their_address_beside_the_one_that_everybody_is_told(tmp_path: Path) -> None:
    file = tmp_path / "loader.address"
    file.write_text("tcp://127.0.0.1:5555\n")
    assert resolve(f"file:{file}", "trainer") == "tcp://127.0.0.1:5556"
    assert resolve("tcp://host:5555") == "tcp://host:5555"
    assert resolve("tcp://host:5555", "trainer") == "tcp://host:5556"
    assert resolve("tcp://[::1]:5555", "trainer") == "tcp://[::1]:5556"
    assert resolve("ipc:///run/loader", "trainer") == "ipc:///run/loader.trainers"
    assert resolve("tcp://host:5555", "trainer", "tcp://other:7") == "tcp://other:7"
    assert resolve("tcp://host:5555", "augmenter", "tcp://other:7") == "tcp://host:5555"


@pytest.mark.parametrize("address", ["tcp://host:65535", "tcp://host:0", "tcp://host:*"])
def test_a_port_that_no_other_follows_is_named_with_the_fix(address: str) -> None:
    with pytest.raises(SettingsError, match=r"set loader\.trainers"):
        beside(address)


@pytest.mark.parametrize(
    "address",
    [
        "ipc:///run/x",
        "ipc://@x",
        "tcp://127.0.0.1:1",
        "tcp://127.9.9.9:*",
        "tcp://[::1]:0",
        "tcp://localhost:5555",
        "tcp://[::ffff:127.0.0.1]:1",
    ],
)
def test_loopback_and_unix_sockets_are_this_machine(address: str) -> None:
    assert is_local(address)
    check_reach(address, role="loader", has_keys=False)


BEYOND = [
    "tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://[::]:0", "tcp://10.0.0.1:1", "tcp://host:1", "tcp://128.0.0.1:1",
    "tcp://localhost.example:1", "tcp://eth0:1", "tcp://[fe80::1]:1", "tcp://[::ffff:10.0.0.1]:1",
]  # fmt: skip


@pytest.mark.parametrize("address", BEYOND)
def test_what_others_can_reach_needs_keys_and_says_which_command_makes_them(address: str) -> None:
    for make in (Bound, Dialled):
        with pytest.raises(SettingsError) as refused:
            make(address)
        for words in (repr(address), "fourstage keys init DIR", "FOURSTAGE_KEYS=DIR/"):
            assert words in str(refused.value)
    check_reach(address, role="loader", has_keys=True)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:0;10.0.0.1:5555", "tcp://127.0.0.1@10.0.0.1:5", "vmci://*:5", "ws://127.0.0.1:5", "tcp://127.0.0.1",
        "udp://127.0.0.1:5", "tcp://:5", "tcp://127.0.0.1:5/x", "tcp://127.0.0.1:5\n", "", "127.0.0.1:5",
    ],
)  # fmt: skip
def test_an_address_that_may_mean_more_than_it_seems_is_none(address: str) -> None:
    with pytest.raises(SettingsError, match="no address"):
        is_local(address)
