"""Any bytes give a message or a PeerError, nothing else, and without growing beyond their limits."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fourstage.errors import PeerError
from fourstage.wire.codec import MAX_BODY, MAX_FRAMES, decode, decode_body, encode
from fourstage.wire.messages import TYPES, Close, Hello, Message, Open, Opened, Progress, Samples, Stream
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


def limits_of(annotation: Any, metadata: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The bare type of a field, and its limits by name: ge, le, min_length, max_length, allow_inf_nan."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = [*metadata, *more]
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    limits: dict[str, Any] = {}
    for part in flat:
        for name in ("ge", "le", "min_length", "max_length", "allow_inf_nan"):
            if hasattr(part, name):
                limits[name] = getattr(part, name)
    return annotation, limits


def values_of(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Everything that a field of that type may hold; long ones seldom."""
    kind, limits = limits_of(annotation, metadata)
    least, most = limits.get("min_length", 0), min(limits.get("max_length", 40), 40)
    if dataclasses.is_dataclass(kind):
        return messages_of(kind)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[-1] is not Ellipsis:
            return st.tuples(*(values_of(item, []) for item in inner))
        return st.lists(values_of(inner[0], []), min_size=least, max_size=most).map(tuple)
    if kind is bytes:
        return st.binary(min_size=least, max_size=most)
    if kind is str:
        return st.text(min_size=least, max_size=most)
    if kind is float:
        return st.floats(limits.get("ge"), limits.get("le"), allow_nan=False, allow_infinity=False)
    if kind is int:
        return st.integers(limits["ge"], limits["le"])
    assert kind is bool, f"no values for {kind}"
    return st.booleans()


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    return dict(kind.__pydantic_fields__)


def messages_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every message of a type, from the types of its fields."""
    fields = {name: values_of(field.annotation, field.metadata) for name, field in fields_of(kind).items()}
    return st.builds(kind, **fields)


def bounds() -> Iterator[tuple[type[Message], str, int]]:
    """Every bounded integer field of every message, with a value just outside."""
    for kind in TYPES.values():
        for name, field in fields_of(kind).items():
            bare, limits = limits_of(field.annotation, field.metadata)
            if bare is int:
                yield kind, name, limits["ge"] - 1
                yield kind, name, limits["le"] + 1


def with_field(kind: type[Message], name: str, value: object) -> list[bytes]:
    """The golden message of a type with another value in one field, and its header."""
    golden = next(message for message in MESSAGES if type(message) is kind)
    header, body = encode(golden)
    return [header, msgpack.packb(msgpack.unpackb(body) | {name: value})]


def decodes_or_faults(frames: list[bytes]) -> None:
    try:
        message = decode(frames)
    except PeerError:
        return
    assert type(message) in TYPES.values()
    assert decode(encode(message)) == message


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_message_comes_out_as_it_went_in(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(kind))
    frames = encode(message)
    assert decode(frames) == message
    assert decode([memoryview(frame) for frame in frames]) == message


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


@pytest.mark.parametrize(("kind", "name", "value"), [*bounds()], ids=lambda value: getattr(value, "__name__", None))
def test_numbers_outside_their_limits_are_refused(kind: type[Message], name: str, value: int) -> None:
    if -(2**63) <= value < 2**64:
        with pytest.raises(PeerError, match=f"{kind.__name__}.{name}"):
            decode(with_field(kind, name, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1", True, None])
def test_a_matrix_of_colours_holds_finite_numbers(value: object) -> None:
    with pytest.raises(PeerError, match=r"Stream\.colours\.0"):
        decode(with_field(Stream, "colours", [value] * 9))


def test_an_integer_may_stand_for_a_number_but_a_number_not_for_an_integer() -> None:
    message = decode(with_field(Stream, "colours", [1] * 9))
    assert isinstance(message, Stream)
    assert message.colours == (1.0,) * 9
    with pytest.raises(PeerError, match=r"Stream\.seed"):
        decode(with_field(Stream, "seed", 1.0))


def test_augmenters_are_told_every_seed_that_a_trainer_may_ask_for() -> None:
    """A stream of a seed above 2^53 could be opened and not announced: the loader fell over its own message."""
    assert limits_of(*_field(Stream, "seed")) == limits_of(*_field(Open, "seed"))


def test_a_field_of_a_name_that_is_python_s_own_is_a_fault_like_any_other() -> None:
    """It reached the constructor as a keyword, where it was a TypeError."""
    for name in ("__dataclass_self__", "self", "args", "__class__", ""):
        with pytest.raises(PeerError, match="Close has no field"):
            decode(with_field(Close, name, 1))
    view = {"kind": "full", "crop": 1, "__dataclass_self__": 1}
    with pytest.raises(PeerError, match="View has no field"):
        decode(with_field(Open, "view", view))


def test_what_a_peer_named_is_cut_and_escaped_in_the_fault() -> None:
    """A loader that repeated all of it in REFUSED fell over the limit of its own message."""
    with pytest.raises(PeerError) as caught:
        decode(with_field(Hello, "protocol\n" + "\U0001f600" * 1000, 1))
    assert len(str(caught.value)) < 1024
    assert "\n" not in str(caught.value)


def test_a_million_wrong_elements_are_refused_at_the_first() -> None:
    """An error was made of each of them: three seconds and a gigabyte for a message of a megabyte."""
    with pytest.raises(PeerError, match=r"arrived\.0") as caught:
        decode(with_field(Progress, "arrived", [None] * (1 << 20)))
    assert isinstance(caught.value.__cause__, ValidationError)
    assert caught.value.__cause__.error_count() == 1


def test_the_longest_texts_and_arrays_pass_and_longer_ones_do_not() -> None:
    longest = Samples(bytes(8 * 65_536), bytes(4 * 65_536), ("\U0001f600" * 12,) * 65_536)
    assert decode_body(Samples, encode(longest)[1]) == longest
    assert decode(with_field(Opened, "splits", ["\U0001f600" * 1024] * 64))
    for splits in (["x" * 1025], ["x"] * 65):
        with pytest.raises(PeerError, match="splits"):
            decode(with_field(Opened, "splits", splits))
    with pytest.raises(PeerError, match=f"limit is {MAX_BODY}"):
        decode(with_field(Opened, "classes", ["x" * 1024] * 5000))


def _field(kind: type[Message], name: str) -> tuple[Any, list[Any]]:
    field = fields_of(kind)[name]
    return field.annotation, field.metadata
