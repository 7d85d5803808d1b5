"""Messages and frames; the only msgpack.

::

    frame 0    '4' 'S'  protocol  type        4 bytes
    frame 1    msgpack map: the message's fields by name
    frame 2..  payloads, raw bytes, as the message's type says

Any bytes give a message or a PeerError, nothing else.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import msgpack
from pydantic import ValidationError

from fourstage.errors import PeerError
from fourstage.views import View
from fourstage.wire.messages import PROTOCOL, TYPES, Batch, Beat, Lease, Message, Open, Stages, Stream, Times, Usage

M = TypeVar("M", bound=Message)
D = TypeVar("D")

MAGIC = b"4S"
MAX_FRAMES = 5
"""Header, body and at most three payloads."""
MAX_BODY = 4 << 20
"""Bytes of frame 1: 100,000 class names of 40 bytes."""

_MOST_MAPS = 8
_SHOWN = 64
"""Characters of a peer's text that an error repeats."""

_HEADERS = {message: MAGIC + bytes((PROTOCOL, byte)) for byte, message in TYPES.items()}
_LIMITS = {
    "max_str_len": 1 << 12,
    "max_bin_len": 1 << 20,
    "max_array_len": 1 << 20,
    "max_map_len": 64,
    "max_ext_len": 0,
}
_NESTED: dict[type, dict[str, type]] = {
    Open: {"view": View},
    Stream: {"view": View},
    Beat: {"usage": Usage},
    Stages: {"load": Usage, "transform": Usage},
    Lease: {"times": Times},
    Batch: {"times": Times},
}
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in (*TYPES.values(), View, Usage, Times)
}
_NAMES: dict[type, frozenset[str]] = {kind: frozenset(names) for kind, names in _FIELDS.items()}


class _Maps:
    """Makes the maps of one message: few, and of no field twice. A million empty ones would take a second."""

    def __init__(self) -> None:
        self._left = _MOST_MAPS

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {_MOST_MAPS} maps")
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a field twice")
        return fields


def encode(message: Message) -> list[bytes]:
    """The header frame and the body frame of a message; payload frames follow as they are."""
    return [_HEADERS[type(message)], encode_body(message)]


def encode_body(message: Message) -> bytes:
    """The msgpack map alone, as ``Samples`` travels inside a payload frame."""
    fields = _as_map(message)
    for name in _NESTED.get(type(message), ()):
        fields[name] = _as_map(fields[name])
    body: bytes = msgpack.packb(fields)
    return body


def decode(frames: Sequence[bytes | memoryview]) -> Message:
    """The message of the first two frames. Raises PeerError for anything that is not one."""
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise PeerError(f"{len(frames)} frames; a message has 2 to {MAX_FRAMES}")
    header = bytes(frames[0][:5])
    if len(header) != 4 or header[:2] != MAGIC:
        raise PeerError(f"frame 0 is {header!r}, not a fourstage header")
    if header[2] != PROTOCOL:
        raise PeerError(f"protocol {header[2]}; this side speaks {PROTOCOL}", hint="run one version everywhere")
    kind = TYPES.get(header[3])
    if kind is None:
        raise PeerError(f"unknown message type {header[3]}")
    return decode_body(kind, frames[1])


def decode_body(kind: type[M], body: bytes | memoryview) -> M:
    """A message of a known type from its msgpack map. Raises PeerError."""
    if len(body) > MAX_BODY:
        raise PeerError(f"{kind.__name__} of {len(body)} bytes; the limit is {MAX_BODY}")
    try:
        # First without making anything of it: an array is made as long as it says, before its elements have come.
        unpacker = msgpack.Unpacker(read_size=len(body) or 1, max_buffer_size=MAX_BODY)
        unpacker.feed(body)
        unpacker.skip()
        fields: Any = msgpack.unpackb(body, use_list=False, strict_map_key=True, object_pairs_hook=_Maps(), **_LIMITS)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise PeerError(f"{kind.__name__} is not msgpack: {error}") from error
    try:
        return _build(kind, fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PeerError(f"{kind.__name__}.{place}: {first['msg']}") from error


def _build(kind: type[D], fields: object) -> D:
    """A dataclass from a map; pydantic checks every field, but in strict mode takes no map for a dataclass."""
    if not isinstance(fields, dict):
        raise PeerError(f"{kind.__name__} is not a map")
    # Before the call, not by it: the peer's names become Python keywords there, and text of a log line.
    if not fields.keys() <= _NAMES[kind]:
        unknown = next(name for name in fields if name not in _NAMES[kind])
        raise PeerError(f"{kind.__name__} has no field {unknown[:_SHOWN]!r}")
    for name, inner in _NESTED.get(kind, {}).items():
        if name in fields:
            fields[name] = _build(inner, fields[name])
    return kind(**fields)


def _as_map(value: object) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _FIELDS[type(value)]}
