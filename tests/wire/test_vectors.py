"""proto/vectors.json is the truth for every language; here it drives this one."""

import json
import os
import socket
from typing import Any

import pytest

from fourstage.arena import PAGE, Arena
from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.transform import identity
from fourstage.errors import PeerError
from fourstage.trainer.inbox import Draws
from fourstage.wire import side
from fourstage.wire.codec import decode, encode
from fourstage.wire.messages import TYPES
from tests.wire.make_vectors import MESSAGES, PATH, plain, text

VECTORS: dict[str, Any] = json.loads(PATH.read_text("utf-8"))


def test_the_file_is_what_the_code_makes() -> None:
    assert PATH.read_text("utf-8") == text(), "run python -m tests.wire.make_vectors"


def test_every_type_of_message_has_a_vector() -> None:
    assert {entry["type"] for entry in VECTORS["messages"]} == {kind.__name__ for kind in TYPES.values()}


@pytest.mark.parametrize("entry", VECTORS["messages"], ids=lambda entry: entry["type"])
def test_frames_decode_to_the_fields_and_encode_from_them(entry: dict[str, Any]) -> None:
    frames = [bytes.fromhex(frame) for frame in entry["frames"]]
    message = decode(frames)
    assert plain(message) == entry["fields"]
    assert message in MESSAGES
    assert encode(message) == frames


@pytest.mark.parametrize("entry", VECTORS["malformed"], ids=lambda entry: entry["fault"])
def test_malformed_frames_are_named_peer_errors(entry: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match=entry["fault"]):
        decode([bytes.fromhex(frame) for frame in entry["frames"]])


def test_philox_gives_the_published_known_answers() -> None:
    # Random123's kat_vectors of philox4x64-10: counter and key of zeros, of ones, and the digits of pi.
    assert [entry["words"] for entry in VECTORS["philox4x64_10"]] == [
        ["16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b"],
        ["87b092c3013fe90b", "438c3c67be8d0224", "9cc7d7c69cd777b6", "a09caebf594f0ba0"],
        ["a528f45403e61d95", "38c72dbd566e9788", "a5a1610e72fd18b5", "57bd43b5e52b7fe6"],
    ]


@pytest.mark.parametrize("entry", VECTORS["side"], ids=["greeting", "arena"])
def test_a_side_packet_is_read_as_it_was_written(entry: dict[str, Any]) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packet = side.Packet(
        bytes.fromhex(entry["peer"]), bytes.fromhex(entry["stream"]), entry["slots"], entry["slot_bytes"]
    )
    arena = Arena.create(1, PAGE)
    assert side.send(left, packet, arena.descriptor if packet.slots else None)
    assert right.recv(512) == bytes.fromhex(entry["packet"])
    socket.send_fds(left, [bytes.fromhex(entry["packet"])], [arena.descriptor] if packet.slots else [])
    received = side.receive(right)
    assert received is not None
    assert received[0] == packet
    if received[1] is not None:
        os.close(received[1])
    arena.close()
    left.close()
    right.close()


@pytest.mark.parametrize(
    "entry", VECTORS["draws"], ids=lambda entry: f"{entry['view']['kind']} {entry['view']['crop_positions']}"
)
def test_packed_draws_are_read_as_they_were_drawn(entry: dict[str, Any]) -> None:
    draws = Draws.unpack(memoryview(bytes.fromhex(entry["packed"])), len(entry["offsets"]))
    assert draws.offsets.tolist() == entry["offsets"]
    assert draws.reflections.tolist() == entry["reflections"]
    assert draws.shifts.tolist() == entry["shifts_float32"]


@pytest.mark.parametrize("name", ["simplejpeg", "turbojpeg"])
def test_both_decoders_have_the_golden_identity(name: str) -> None:
    if name == "turbojpeg":
        pytest.importorskip("turbojpeg").TurboJPEG()
    assert identity(make_decoder(name)).hex() == VECTORS["identity"]["identity"]  # type: ignore[arg-type]
