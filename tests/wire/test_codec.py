"""Any bytes give a message or a PeerError, nothing else, and without growing beyond their limits."""

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.errors import PeerError
from fourstage.wire.codec import MAX_BODY, MAX_FRAMES, decode, encode
from fourstage.wire.messages import TYPES, Message
from tests.wire.make_vectors import MESSAGES

CAREFUL = settings(max_examples=400, deadline=None, derandomize=True)
HEADERS = [encode(message)[0] for message in MESSAGES]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=20,
)


def decodes_or_faults(frames: list[bytes]) -> None:
    try:
        message = decode(frames)
    except PeerError:
        return
    assert type(message) in TYPES.values()
    assert decode(encode(message)) == message


@CAREFUL
@given(st.lists(st.binary(max_size=200), max_size=7))
def test_any_frames(frames: list[bytes]) -> None:
    decodes_or_faults(frames)


@CAREFUL
@given(st.sampled_from(HEADERS), st.binary(max_size=300))
def test_any_body_behind_a_good_header(header: bytes, body: bytes) -> None:
    decodes_or_faults([header, body])


@CAREFUL
@given(st.sampled_from(MESSAGES), st.data())
def test_any_value_in_any_field(message: Message, data: st.DataObject) -> None:
    fields: dict[Any, Any] = msgpack.unpackb(encode(message)[1])
    for name in data.draw(st.lists(st.sampled_from([*fields, "unknown"]), max_size=3)):
        fields[name] = data.draw(values)
    decodes_or_faults([encode(message)[0], msgpack.packb(fields, strict_types=False)])


@CAREFUL
@given(st.sampled_from(MESSAGES), st.data())
def test_flipped_cut_and_repeated_bytes(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message)[1])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    decodes_or_faults([encode(message)[0], bytes(body[:cut])])
    decodes_or_faults([encode(message)[0], bytes(body) * 2])


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000 + b"\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc7\xff\x01" + b"x" * 255,
        b"\xd4\x01x",
        b"\xc1",
        b"\x81\xa6stream\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\x00" * (MAX_BODY + 1),
    ],
    ids=["deep", "array", "map", "binary", "text", "extension", "fixext", "reserved", "nan", "large"],
)
def test_bombs_are_refused_without_being_built(body: bytes) -> None:
    for header in HEADERS:
        with pytest.raises(PeerError):
            decode([header, body])


def test_more_frames_than_any_message_has() -> None:
    with pytest.raises(PeerError, match=f"2 to {MAX_FRAMES}"):
        decode([*encode(MESSAGES[0]), *[b""] * MAX_FRAMES])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_are_frozen_and_take_no_other_fields(message: Message) -> None:
    for field in dataclasses.fields(message):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, field.name, None)
    assert not hasattr(message, "__dict__")
