"""The vocabulary of the wire, in flow order. ``proto/README.md`` is the specification; this file follows it.

State is soft: instead of events that a lost connection could swallow, peers send what they *hold* (``Beat``,
``Progress``, ``Holds``), complete every time, and the receiver reconciles. So every message may be repeated.
"""

from dataclasses import field
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, FailFast, Field
from pydantic.dataclasses import dataclass

from fourstage.views import View

PROTOCOL = 2
"""Raised when a message changes so that an older peer would misread it; both ends must have the same."""

_STRICT = ConfigDict(strict=True, extra="forbid")

Uuid = Annotated[bytes, Field(min_length=16, max_length=16)]
"""16 random bytes: a process, or a stream. Made anew at every start and every OPEN."""
Digest = Annotated[bytes, Field(max_length=32)]
"""A digest; empty: not known yet."""
Text = Annotated[str, Field(max_length=1024)]
Seq = Annotated[int, Field(ge=0, le=2**53)]
"""Sequence number of a batch within its stream, counted through all epochs."""
Seqs = Annotated[tuple[Seq, ...], Field(max_length=65_536), FailFast()]
"""Long arrays are refused at their first wrong element: an error for each of a million takes seconds."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Rows = Annotated[int, Field(ge=0, le=65_536)]
Slot = Annotated[int, Field(ge=-1, le=65_536)]
"""Slot of an arena; -1: the bytes travel with the message."""
Time = Annotated[float, Field(ge=0.0, le=1e12, allow_inf_nan=False)]
Real = Annotated[float, Field(allow_inf_nan=False)]
MOST_REFUSED = 4096
"""Workers that a trainer may name."""
Code = Annotated[bytes, Field(min_length=16, max_length=16)]
"""Proof of a lease (``wire.codes``)."""
PublicKey = Annotated[bytes, Field(max_length=40)]
"""Of CURVE, 40 characters of Z85."""
RowNumbers = Annotated[tuple[Annotated[int, Field(ge=0, le=65_535)], ...], Field(max_length=65_536), FailFast()]
"""Rows of a batch, in ascending order."""
OnCorrupt: TypeAlias = Literal["fail", "skip"]
"""What an image that cannot be decoded does: end the stream, or be left out of its batch."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Usage:
    """What a stage did since its process started; only differences mean anything."""

    batches: Count = 0
    busy: Time = 0.0
    """Seconds of work."""
    wait_upstream: Time = 0.0
    """Seconds without work because nothing came."""
    wait_downstream: Time = 0.0
    """Seconds without work because nobody took what was done."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Times:
    """Where a batch was when, in seconds of the loader's clock; 0: not there yet, or nobody said."""

    read_from: Time = 0.0
    read_to: Time = 0.0
    leased: Time = 0.0
    """The lease was sent."""
    received: Time = 0.0
    """The augmenter has read the lease."""
    made_from: Time = 0.0
    made_to: Time = 0.0
    sent: Time = 0.0
    """The finished batch was sent."""


# Anybody -> the one that binds, and back


@dataclass(frozen=True, slots=True, config=_STRICT)
class Hello:
    """First message on every connection, and the answer to ``Who``."""

    protocol: Count
    role: Literal["augmenter", "trainer"]
    peer: Uuid
    session: Count
    """Counts this peer's HELLOs; numbering of leases and batches starts again with each."""
    name: Text
    build: Text
    identity: Digest


@dataclass(frozen=True, slots=True, config=_STRICT)
class Welcome:
    """The peer is known now."""

    peer: Uuid
    session: Count
    build: Text
    side: Text
    """Path of the Unix socket that hands descriptors over."""
    heartbeat_seconds: Annotated[Time, Field(ge=0.01)]
    """At least 10 ms: peers would do nothing else."""
    silence_seconds: Time


@dataclass(frozen=True, slots=True, config=_STRICT)
class Refused:
    """No, and why."""

    reason: Text


@dataclass(frozen=True, slots=True, config=_STRICT)
class Who:
    """You are not known on this connection: say HELLO again."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Bye:
    """The sender leaves in order; what it holds is free at once."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Ping:
    """To the loader: what does your clock show?"""

    sent: Time
    """The sender's monotonic clock."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Pong:
    """The loader's answer, at once."""

    sent: Time
    """As in the Ping."""
    clock: Time
    """The loader's monotonic clock."""


# Trainer -> loader


@dataclass(frozen=True, slots=True, config=_STRICT)
class Open:
    """Deliver batches ``start`` to ``end`` of this order to this receiver."""

    stream: Uuid
    split: Text
    view: View
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    remainder: Literal["keep", "drop"]
    shuffle: bool
    seed: Seed
    rank: Rows
    world: Annotated[int, Field(ge=1, le=65_536)]
    start: Seq
    epochs: Annotated[int, Field(ge=1, le=2**20)]
    end: Seq
    """First batch that is not wanted; 0: the end of the last epoch."""
    window: Rows
    """Batches between the last one consumed and the furthest that may be read; 0: the loader decides."""
    fingerprint: Text
    """The store's; empty: any."""
    identity: Digest
    """Which pixels are wanted; empty: those of the first worker, from then on only those."""
    transport: Literal["arena", "inline"]
    receiver: Text
    """Where augmenters send the batches."""
    side: Text
    """Path of the Unix socket where augmenters hand their arenas over."""
    worker: Annotated[bytes, Field(max_length=16)]
    """The only augmenter that is given leases, by its 16 bytes: the trainer's own. Empty: any."""
    on_corrupt: OnCorrupt
    secret: Annotated[bytes, Field(min_length=16, max_length=16)] = field(repr=False)
    """Known to the trainer and the loader alone: ``codes`` makes of it what proves that a worker was given a lease."""
    receiver_key: PublicKey = b""
    """Under which the trainer receives; empty: none."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Progress:
    """All that the trainer has of a stream: everything before ``consumed`` was used, ``arrived`` lies ready."""

    stream: Uuid
    consumed: Seq
    arrived: Seqs
    refused: Annotated[tuple[Uuid, ...], Field(max_length=MOST_REFUSED), FailFast()] = ()
    """Workers that have sent what no worker in its right mind sends: nothing of theirs is taken any more."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Close:
    """The stream is over; its leases are void."""

    stream: Uuid


# Loader -> trainer


@dataclass(frozen=True, slots=True, config=_STRICT)
class Opened:
    """What the stream delivers. Payload: the mean image, float32 (size, size, 3)."""

    stream: Uuid
    samples: Count
    batches_per_epoch: Count
    end: Seq
    largest_rows: Rows
    size: Annotated[int, Field(ge=1, le=65_500)]
    fingerprint: Text
    classes: Annotated[tuple[Text, ...], Field(max_length=1_000_000), FailFast()]
    splits: Annotated[tuple[Text, ...], Field(max_length=64), FailFast()]
    """All that the store has."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Failed:
    """The stream cannot go on; also from an augmenter that cannot serve it."""

    stream: Uuid
    seq: Seq
    row: Slot
    """Row of the batch whose image is corrupt; -1: not one sample's fault."""
    reason: Text


@dataclass(frozen=True, slots=True, config=_STRICT)
class Stages:
    """The loader's heartbeat to trainers: the stages before them."""

    load: Usage
    transform: Usage
    """Sums over all augmenters, those that are gone included."""
    augmenters: Count
    leased: Count
    loaded: Count
    window: Count
    redispatched: Count
    waiting: Text
    """Why nothing is being leased, in words; empty while leases flow."""


# Loader -> augmenter


@dataclass(frozen=True, slots=True, config=_STRICT)
class Stream:
    """A stream that this worker may serve. The JPEG arena follows on the side connection."""

    stream: Uuid
    split: Text
    view: View
    size: Annotated[int, Field(ge=1, le=65_500)]
    seed: Seed
    largest_rows: Rows
    colours: Annotated[tuple[Real, ...], Field(min_length=9, max_length=9), FailFast()]
    """3x3, row by row: a colour shift is this matrix times the three coefficients."""
    transport: Literal["arena", "inline"]
    slots: Rows
    slot_bytes: Count
    """Of the loader's JPEG arena."""
    receiver: Text
    side: Text
    on_corrupt: OnCorrupt
    receiver_key: PublicKey = b""
    """The trainer's public key, which its receiver must have; empty: none."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Lease:
    """Make this batch. Payload: the samples (``Samples``), then, inline, the JPEG bytes."""

    stream: Uuid
    seq: Seq
    session: Count
    number: Count
    """Counts the leases given to this worker in this session, from 1."""
    head: bool
    """Training waits for this one: it may take the spare slot and goes first."""
    epoch: Count
    first: Count
    """Position of row 0 in the epoch."""
    rows: Rows
    slot: Slot
    sizes: Annotated[bytes, Field(max_length=4 * 65_536)]
    """uint32 little-endian (rows,): the JPEG images lie one behind another."""
    code: Code = field(repr=False)
    times: Times = Times()
    """Up to ``leased``."""
    skip: RowNumbers = ()
    """Rows that are not to be decoded: each has killed its workers."""
    trial: tuple[Rows, Rows] = (0, 0)
    """From where to where to decode, all for nothing: the batch has killed workers, and its guilty row is looked for.
    (0, 0): make the batch."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Gone:
    """The stream is over: drop its leases, slots and arena."""

    stream: Uuid


@dataclass(frozen=True, slots=True, config=_STRICT)
class Samples:
    """Which samples a batch is made of; made by the loader, passed on untouched to the trainer."""

    indices: Annotated[bytes, Field(max_length=8 * 65_536)]
    """int64 little-endian (rows,)."""
    labels: Annotated[bytes, Field(max_length=4 * 65_536)]
    """int32 little-endian (rows,)."""
    keys: Annotated[tuple[Text, ...], Field(max_length=65_536), FailFast()]


# Augmenter -> loader

StreamSlots: TypeAlias = tuple[Uuid, Rows, Rows]
"""Stream, free slots, slots in all."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Beat:
    """All that an augmenter holds; sent when a slot comes free and as its heartbeat."""

    seen: Count
    """Number of the last lease received in this session."""
    held: Annotated[tuple[tuple[Uuid, Seq, Code], ...], Field(max_length=4096), FailFast()] = field(repr=False)
    """Leases in work, or finished and not yet acknowledged by their receiver, and their codes."""
    slots: Annotated[tuple[StreamSlots, ...], Field(max_length=4096), FailFast()]
    usage: Usage


@dataclass(frozen=True, slots=True, config=_STRICT)
class Tried:
    """The rows of a trial were decoded, or found corrupt, and the worker lives; its lease is over."""

    stream: Uuid
    seq: Seq
    trial: tuple[Rows, Rows]
    """As in the lease."""


# Augmenter -> trainer


@dataclass(frozen=True, slots=True, config=_STRICT)
class Batch:
    """A finished batch. Payload: the samples, the draws, then, inline, the pixels.

    Draws: int32 (rows, 2) offsets, uint8 (rows,) reflections, float32 (rows, 3) shifts, little-endian.
    Pixels: uint8 (rows less those skipped, crop, crop, 3).
    """

    stream: Uuid
    seq: Seq
    session: Count
    number: Count
    """Counts the batches sent on this connection in this session, from 1."""
    slot: Slot
    rows: Rows
    """As in the lease; ``skipped`` ones among them."""
    identity: Digest
    code: Code = field(repr=False)
    """As in the lease."""
    times: Times = Times()
    skipped: RowNumbers = ()
    """Rows that could not be decoded: the pixels of the others lie one behind another."""


# Trainer -> augmenter


@dataclass(frozen=True, slots=True, config=_STRICT)
class Holds:
    """All that the trainer holds of this worker's slots: batches up to number ``seen`` that are not named here
    are free."""

    stream: Uuid
    session: Count
    """The augmenter's, on this connection: what was said of an older numbering is void."""
    seen: Count
    seqs: Seqs


Message: TypeAlias = (
    Hello
    | Welcome
    | Refused
    | Who
    | Bye
    | Ping
    | Pong
    | Open
    | Progress
    | Close
    | Opened
    | Failed
    | Stages
    | Stream
    | Lease
    | Gone
    | Samples
    | Beat
    | Tried
    | Batch
    | Holds
)

TYPES: dict[int, type[Message]] = {
    1: Hello, 2: Welcome, 3: Refused, 4: Who, 5: Bye, 6: Ping, 7: Pong,
    16: Open, 17: Progress, 18: Close, 19: Opened, 20: Failed, 21: Stages,
    32: Stream, 33: Lease, 34: Gone, 35: Samples, 36: Beat, 37: Tried,
    48: Batch, 49: Holds,
}  # fmt: skip
"""Type byte of each message; 1.. everybody, 16.. loader and trainer, 32.. loader and augmenter, 48.. the rest."""
