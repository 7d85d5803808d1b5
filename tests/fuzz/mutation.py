"""What is done to a valid message: its fields, its frames, its bytes. Every choice is drawn from ``dice``."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeAlias

import msgpack

from fourstage.wire.codec import MAGIC
from fourstage.wire.messages import PROTOCOL, TYPES

Frames: TypeAlias = list[bytes]
Fields: TypeAlias = dict[str, Any]

_BYTES = {kind: byte for byte, kind in TYPES.items()}
_KINDS = tuple(TYPES)
_INTEGERS = (0, 1, 2, 63, 255, 4096, 65_535, 65_536, 65_537, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**64 - 1)
_DEEP = 300


def fields_of(message: Any) -> Fields:
    """A message's fields by name, nested ones as maps, as they travel."""
    fields: Fields = {}
    for name in message.__dataclass_fields__:
        value = getattr(message, name)
        fields[name] = fields_of(value) if hasattr(value, "__dataclass_fields__") else value
    return fields


def header(kind: type) -> bytes:
    """Frame 0 of a message of that type."""
    return MAGIC + bytes((PROTOCOL, _BYTES[kind]))


def frames_of(message: object, payload: Sequence[bytes] = ()) -> Frames:
    """The frames of a valid message."""
    return [header(type(message)), msgpack.packb(fields_of(message)), *payload]


def mutated(dice: Random, message: object, payload: Sequence[bytes] = ()) -> Frames:
    """The frames of a message to which something was done; one time in five nothing was."""
    luck = dice.random()
    if luck < 0.2:
        return frames_of(message, payload)
    fields = fields_of(message)
    if luck < 0.6:
        for _ in range(1 if luck < 0.5 else 3):
            _change_a_field(dice, fields)
        return [header(type(message)), _packed(fields), *payload]
    if luck < 0.65:
        return [header(type(message)), _misshapen(dice, fields), *payload]
    frames = [header(type(message)), msgpack.packb(fields), *payload]
    _change_a_frame(dice, frames)
    return frames


def nasty(dice: Random) -> Any:
    """A value of any type, most of them wrong wherever they are put."""
    return dice.choice(_NASTY)(dice)


def _change_a_field(dice: Random, fields: Fields) -> None:
    if not fields:
        fields["none"] = nasty(dice)
        return
    name = dice.choice(list(fields))
    if isinstance(fields[name], dict) and dice.random() < 0.7:
        _change_a_field(dice, fields[name])
        return
    luck = dice.random()
    if luck < 0.55:
        fields[name] = near(dice, fields[name])
    elif luck < 0.8:
        fields[name] = nasty(dice)
    elif luck < 0.88:
        del fields[name]
    elif luck < 0.94:
        other = dice.choice(list(fields))
        fields[name], fields[other] = fields[other], fields[name]
    else:
        fields[dice.choice(("", "peer", "x" * 100, "line\nbreak", "self", "__init__"))] = nasty(dice)


def near(dice: Random, value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        other: int = dice.choice((value + 1, value - 1, -value, value * 2, value ^ 1 << dice.randrange(54), *_INTEGERS))
        return min(max(other, -(2**63)), 2**64 - 1)
    if isinstance(value, float):
        return dice.choice((-value, value + 1e-9, value * 1e6, 0.0, float("nan"), float("inf"), 1e12, 1e308, 5e-324))
    if isinstance(value, bytes):
        return damaged(dice, value) if value else dice.randbytes(dice.choice((1, 3, 16, 17)))
    if isinstance(value, str):
        return dice.choice(
            (value + "x", value[:-1], value.upper(), "\0", "\n\x1b[31m", "x" * 1025, "/" + value, "é" * 9)
        )
    if isinstance(value, (tuple, list)):
        return _near_array(dice, tuple(value))
    return nasty(dice)


def _near_array(dice: Random, value: tuple[Any, ...]) -> tuple[Any, ...]:
    at = dice.randrange(len(value) + 1)
    if not value:
        return (nasty(dice),)
    match dice.randrange(6):
        case 0:
            return value[:at]
        case 1:
            return value + value
        case 2:
            return value[::-1]
        case 3:
            return (*value[:at], nasty(dice), *value[at:])
        case 4:
            return (*value[:at], near(dice, value[at % len(value)]), *value[at + 1 :])
        case _:
            return value * (min(4096, 200_000 // len(value)) if dice.random() < 0.01 else 3)


def damaged(dice: Random, data: bytes) -> bytes:
    """Bytes with a few bits turned, cut off, lengthened, repeated or exchanged."""
    at = dice.randrange(len(data) + 1)
    match dice.randrange(6):
        case 0 | 1:
            changed = bytearray(data)
            for _ in range(dice.choice((1, 1, 1, 4))):
                if changed:
                    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
            return bytes(changed)
        case 2:
            return data[:at]
        case 3:
            return data[:at] + dice.randbytes(dice.randrange(1, 9)) + data[at:]
        case 4:
            return data[:at] + data[at + dice.randrange(1, 9) :]
        case _:
            return data[at:] + data[:at]


def _change_a_frame(dice: Random, frames: Frames) -> None:
    luck = dice.random()
    if luck < 0.5:
        at = dice.randrange(1, len(frames))
        frames[at] = damaged(dice, frames[at])
    elif luck < 0.6:
        frames[0] = damaged(dice, frames[0])
    elif luck < 0.7:
        frames[0] = MAGIC + bytes((PROTOCOL, dice.choice(_KINDS)))
    elif luck < 0.8:
        del frames[dice.randrange(len(frames))]
    elif luck < 0.9:
        frames.insert(dice.randrange(len(frames) + 1), dice.choice((b"", b"\0", frames[-1], dice.randbytes(40))))
    elif luck < 0.95:
        first, second = dice.randrange(len(frames)), dice.randrange(len(frames))
        frames[first], frames[second] = frames[second], frames[first]
    else:
        frames.extend([frames[-1]] * dice.randrange(1, 8))


def _misshapen(dice: Random, fields: Fields) -> bytes:
    """msgpack that no library writes: a field twice, lengths that are not there, nesting without end."""
    pairs = [msgpack.packb(name) + msgpack.packb(value) for name, value in fields.items()]
    body = b"".join(pairs)
    match dice.randrange(7):
        case 0 if pairs:
            return b"".join((b"\xde", (len(pairs) + 1).to_bytes(2, "big"), body, dice.choice(pairs)))
        case 1:
            return b"\xdf\xff\xff\xff\xff" + body
        case 2:
            return b"\x81\xa7arrived" + b"\xdd\x00\x10\x00\x00" * dice.choice((1, 10, _DEEP, 2000))
        case 3:
            return b"\x91" * dice.choice((10, 511, 600, 1023, 1024, 1025, 60_000)) + b"\x00"
        case 4:
            return b"\x81\xa4peer" + dice.choice((b"\xc6", b"\xdb", b"\xc9")) + b"\xff\xff\xff\xff" + body
        case 5:
            return (
                b"\x81" + dice.choice((b"\xc0", b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\x90", b"\x80", b"\xc4\x01x")) + b"\x01"
            )
        case _:
            return dice.randbytes(dice.choice((0, 1, 8, 64)))


def _packed(fields: Fields) -> bytes:
    body: bytes = msgpack.packb(fields, datetime=False)
    return body


def _nested(dice: Random) -> Any:
    value: Any = ()
    for _ in range(dice.choice((2, 5, _DEEP))):
        value = [value]
    return value


_NASTY: tuple[Callable[[Random], Any], ...] = (
    lambda dice: dice.choice(_INTEGERS),
    lambda dice: -dice.choice(_INTEGERS[:-1]),
    lambda dice: dice.choice((None, True, False)),
    lambda dice: dice.choice((float("nan"), float("inf"), -float("inf"), -0.0, 1e308)),
    lambda dice: dice.randbytes(dice.choice((0, 1, 15, 16, 17, 32, 33))),
    lambda dice: dice.choice(("", "x", "augmenter", "x" * 1024, "x" * 5000, "\0", "\n", "../../x", "tcp://", "\ud7ff")),
    lambda dice: [dice.choice(_INTEGERS) for _ in range(dice.randrange(4))],
    lambda dice: {"kind": dice.choice(("random", "full", ""))},
    lambda dice: msgpack.ExtType(dice.randrange(128), dice.randbytes(dice.choice((0, 1, 8)))),
    lambda dice: msgpack.Timestamp(dice.choice((0, 2**40)), 5),
    _nested,
)
